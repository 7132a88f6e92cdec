"""`[targets.NAME.cost]` and `[prices."MODEL"]`: what requests cost, and where their cost is read from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, cast, get_args

from gateway.budgets.budget import COUNTED, NANO
from gateway.budgets.grammar import check_unit, parse_amount
from gateway.config.budgets import COST_EXAMPLE, COST_TAKES
from gateway.config.target import FIELD_NAME
from gateway.config.values import kind_of, quoted
from gateway.errors import ConfigError
from gateway.metering.costs import CostTable, FixedPrice, Measured, UnitPrice, UnknownPrice
from gateway.metering.rates import Rates, rates_of

if TYPE_CHECKING:
    from typing import Literal

_T = TypeVar("_T")

MAX_PATTERNS: Final = 256
"""Of `fixed` in one table: they are tried one after the other for each request."""
MAX_OUTPUT: Final = 10_000_000
"""Output tokens; no model writes as many."""

_METHOD: Final = re.compile(r"[A-Z][A-Z-]{0,30}|\*")
_PATH: Final = re.compile(r"/[!-~]*")
_POINTER: Final = re.compile(r"(?:/(?:[^/~]|~[01])*)+")
_SIZES: Final = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_TIMES: Final = {"second": 1, "minute": 60, "hour": 3600}
_COUNTS: Final = re.compile("[1-9][0-9]{0,11}")


class Key(NamedTuple):
    """One row of what a cost table may have: what it takes, in words, and a line that would work."""

    takes: str
    example: str


_AMOUNT: Final = "an amount like 0.005 USD, several joined by commas"
KEYS: Final[dict[str, Key]] = {
    "fixed": Key(
        f"{_AMOUNT}; or a table of such by method and path",
        'fixed = { "GET /geocode" = "0.005 USD", "* /*" = "0.001 USD" }',
    ),
    "llm": Key("true", "llm = true"),
    "json": Key(
        "a table of pointer, a JSON pointer into the answer, and price, of one of what it leads to, or of a number",
        'json = { pointer = "/usage/total", price = "2 USD/1000" }',
    ),
    "header": Key(
        "a table of name, of a field of the answer with a number, and unit, or price as of json",
        'header = { name = "X-Cost", unit = "USD" }',
    ),
    "bytes": Key("an amount of one unit for a B, kB, MB, GB, TB, KiB, MiB or GiB", 'bytes = "0.09 USD/GB"'),
    "seconds": Key("an amount of one unit, perhaps /minute or /hour", 'seconds = "0.0001 USD"'),
    "reserve": Key(_AMOUNT, 'reserve = "0.50 USD"'),
    "unknown_price": Key("deny, default (with default_price) or warn", 'unknown_price = "deny"'),
    "default_price": Key(_AMOUNT, 'default_price = "0.01 USD"'),
    "max_output": Key(f"a whole number of tokens from 1 to {MAX_OUTPUT}", "max_output = 4096"),
}
MEASURES: Final = ("json", "header", "bytes", "seconds")
PRICES_TAKES: Final = 'tables [prices."MODEL"] of USD per million tokens: input, output, cached_input, cache_write, …'
PRICES_EXAMPLE: Final = '[prices."my-model"] with input = 2.5 and output = 10'


def read_prices(tables: object, where: str) -> Mapping[str, Rates] | None:
    """Read the tables `[prices."MODEL"]`.

    Args:
        tables: By model; a name that ends with `*` is for all that begin so.
        where: What names of places end in: ` in gateway.toml`, or nothing.

    Raises:
        ConfigError: One of them is no prices.
    """
    if not isinstance(tables, Mapping):
        problem = f"is {kind_of(tables)}, not a table of tables"
        raise ConfigError(f"prices{where}", problem, PRICES_TAKES, PRICES_EXAMPLE)
    found = {}
    for model, table in tables.items():
        place = f"prices.{quoted(str(model))[1:-1]}{where}"
        if not isinstance(model, str) or not model or "*" in model[:-1]:
            problem = "is not a model's name, perhaps with one '*' at its end"
            raise ConfigError(place, problem, PRICES_TAKES, PRICES_EXAMPLE)
        if not isinstance(table, Mapping):
            raise ConfigError(place, f"is {kind_of(table)}, not a table", PRICES_TAKES, PRICES_EXAMPLE)
        try:
            found[model] = rates_of(table)
        except ValueError as error:
            raise ConfigError(place, str(error), PRICES_TAKES, PRICES_EXAMPLE) from None
    return found or None


def parse_cost(text: str) -> CostTable:
    """Read the one-line form: `llm`, or what each request costs.

    Raises:
        ValueError: It is neither.
    """
    if text == "llm":
        return CostTable(llm=True)
    if not text[:1].isdigit():
        raise ValueError(f"{quoted(text)} is neither llm nor an amount")
    return CostTable(fixed=(FixedPrice(b"*", b"/*", parse_amounts(text)),))


def parse_amounts(text: str) -> dict[str, int]:
    """Read amounts of different units, joined by commas, as atoms by unit.

    Raises:
        ValueError: One is not an amount, or two are of the same unit.
    """
    amounts: dict[str, int] = {}
    for part in text.split(","):
        unit, atoms = parse_amount(part.strip(" "))
        if unit in amounts:
            raise ValueError(f"{quoted(text)} has two amounts in {unit}")
        amounts[unit] = atoms
    return amounts


def cost_of(name: str, where: str, value: object, prices: Mapping[str, Rates] | None) -> CostTable | None:
    """Read what a target's requests cost, in either form; None if nothing is said of it.

    Args:
        name: Where it stands: `targets.maps.cost`.
        where: What names of places end in: ` in gateway.toml`, or nothing.
        value: A text, a table, or None.
        prices: Own prices, for a language model's requests.

    Raises:
        ConfigError: It has something that the gateway cannot run with.
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        table = _CostReader(name, where, value).read()
    else:
        try:
            if not isinstance(value, str):
                raise TypeError(f"is {kind_of(value)}, not a table or a text")
            table = parse_cost(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(name + where, str(error), COST_TAKES, COST_EXAMPLE) from None
    if not table.llm:
        return table
    if not prices and find_spec("genai_prices") is None:
        problem = "llm needs the package genai-prices, of the extra 'llm', or prices of your own"
        raise ConfigError(name + where, problem, COST_TAKES, PRICES_EXAMPLE)
    return replace(table, prices=prices)


class _CostReader:
    """Reads one cost table, and turns what is wrong with it into a ConfigError that names the place.

    Args:
        name: The table's: `targets.maps.cost`.
        where: What names of places end in: ` in gateway.toml`, or nothing.
        table: The table.
    """

    def __init__(self, name: str, where: str, table: Mapping[str, object]) -> None:
        self._name = name
        self._where = where
        self._table = table

    def read(self) -> CostTable:
        """Read it.

        Raises:
            ConfigError: It has something that the gateway cannot run with.
        """
        for key in self._table:
            if key not in KEYS:
                raise self._unknown(str(key))
        measure = self._measure()
        llm = self._llm()
        fixed = self._fixed()
        if not (measure or llm or fixed):
            raise ConfigError(
                self._name + self._where, "says nothing of what a request costs", COST_TAKES, COST_EXAMPLE
            )
        table = CostTable(
            fixed=fixed,
            llm=llm,
            measured=measure,
            reserve=self._text("reserve", parse_amounts),
            unknown_price=self._text("unknown_price", _unknown_price) or "deny",
            default=self._text("default_price", parse_amounts),
        )
        if table.unknown_price == "default" and table.default is None:
            raise self._error("default_price", 'is not set, and unknown_price is "default"')
        if table.unknown_price != "default" and table.default is not None:
            raise self._error("default_price", 'is of no use without unknown_price = "default"')
        if "max_output" in self._table:
            if not llm:
                raise self._error("max_output", "is of no use where no language model answers")
            table = replace(table, max_output=self._max_output())
        if measure is not None and not (table.reserve or {}).get(measure.price.unit):
            problem = f"has no amount in {measure.price.unit}, and nobody knows beforehand what a request will cost"
            raise self._error("reserve", problem)
        if llm and table.reserve is not None and not table.reserve.get("USD"):
            raise self._error("reserve", "has no amount in USD, in which a language model's tokens are paid")
        return table

    def _llm(self) -> bool:
        value = self._table.get("llm", False)
        if not isinstance(value, bool):
            raise self._error("llm", f"is {kind_of(value)}, not true")
        given = [key for key in MEASURES if key in self._table]
        if value and given:
            raise self._error(given[0], "is there together with llm; one of them is enough")
        return value

    def _fixed(self) -> tuple[FixedPrice, ...]:
        value = self._table.get("fixed")
        if not isinstance(value, Mapping):
            price = self._text("fixed", parse_amounts)
            return () if price is None else (FixedPrice(b"*", b"/*", price),)
        if len(value) > MAX_PATTERNS:
            raise self._error("fixed", f"has {len(value)} patterns, more than {MAX_PATTERNS}")
        return tuple(self._try("fixed", _pattern, str(pattern), price) for pattern, price in value.items())

    def _measure(self) -> Measured | None:
        given = [key for key in MEASURES if key in self._table]
        if not given:
            return None
        if len(given) > 1:
            raise self._error(given[1], f"is there together with {given[0]}; one of them is enough")
        (kind,) = given
        if kind == "bytes":
            return self._text(kind, lambda text: Measured(kind="bytes", price=_price(text, _size)))
        if kind == "seconds":
            return self._text(kind, lambda text: Measured(kind="seconds", price=_price(text, _time)))
        value = self._table[kind]
        if not isinstance(value, Mapping):
            raise self._error(kind, f"is {kind_of(value)}, not a table")
        return self._try(kind, _placed, "json" if kind == "json" else "header", value)

    def _max_output(self) -> int:
        value = self._table["max_output"]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_OUTPUT:
            raise self._error("max_output", f"{quoted(str(value))} is not such a number")
        return value

    def _text(self, key: str, parse: Callable[[str], _T]) -> _T | None:
        value = self._table.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self._error(key, f"is {kind_of(value)}, not a text")
        return self._try(key, parse, value)

    def _try(self, key: str, parse: Callable[..., _T], *values: object) -> _T:
        try:
            return parse(*values)
        except (TypeError, ValueError) as error:
            raise self._error(key, str(error)) from None

    def _error(self, key: str, problem: str) -> ConfigError:
        row = KEYS[key]
        return ConfigError(f"{self._name}.{key}{self._where}", problem, row.takes, row.example)

    def _unknown(self, key: str) -> ConfigError:
        import difflib  # only for somebody who mistyped

        near = difflib.get_close_matches(key.lower().replace("-", "_"), KEYS, n=1)
        suggestion = f"; did you mean {near[0]}?" if near else ""
        example = KEYS[near[0] if near else "llm"].example
        name = f"{self._name}.{key}{self._where}"
        return ConfigError(name, f"is not a setting of a cost{suggestion}", ", ".join(KEYS), example)


def _unknown_price(text: str) -> UnknownPrice:
    for known in get_args(UnknownPrice):
        if text == known:
            return cast("UnknownPrice", known)
    raise ValueError(f"{quoted(text)} is not one of its values")


def _pattern(pattern: str, price: object) -> FixedPrice:
    method, _, path = pattern.partition(" ")
    if not _METHOD.fullmatch(method) or not _PATH.fullmatch(path):
        raise ValueError(f'{quoted(pattern)} is not like "GET /geocode", with * for any method')
    if "*" in path[:-1] or "?" in path:
        raise ValueError(f"{quoted(pattern)} is not a path without a query, perhaps with one '*' at its end")
    if not isinstance(price, str):
        raise TypeError(f"the price of {quoted(pattern)} is {kind_of(price)}, not a text")
    return FixedPrice(method.encode(), path.encode(), parse_amounts(price))


def _placed(kind: Literal["json", "header"], table: Mapping[str, object]) -> Measured:
    """Read what a number in the answer costs, and where that is."""
    place_key = "pointer" if kind == "json" else "name"
    for key, value in table.items():
        if key not in {place_key, "price", "unit"}:
            raise ValueError(f"{quoted(key)} is not one of {place_key}, price and unit")
        if not isinstance(value, str):
            raise TypeError(f"{key} is {kind_of(value)}, not a text")
    place, price, unit = (str(table.get(key, "")) for key in (place_key, "price", "unit"))
    if kind == "json" and not _POINTER.fullmatch(place):
        raise ValueError(f"{quoted(place)} is not a JSON pointer (RFC 6901)")
    if kind == "header" and not FIELD_NAME.fullmatch(place):
        raise ValueError(f"{quoted(place)} is not a field's name")
    if bool(price) is bool(unit):
        raise ValueError("has one of price and unit: the number is of something with a price, or is the cost in a unit")
    if unit:
        check_unit(unit)
        return Measured(kind=kind, price=UnitPrice(unit, 1 if unit in COUNTED else NANO), place=_folded(kind, place))
    return Measured(kind=kind, price=_price(price, _count), place=_folded(kind, place))


def _folded(kind: str, place: str) -> str:
    return place.lower() if kind == "header" else place


def _price(text: str, per_of: Callable[[str], int]) -> UnitPrice:
    """Read `0.09 USD/GB`, where `per_of` reads what stands behind the slash, or that nothing does."""
    amount, _, per = text.partition("/")
    unit, atoms = parse_amount(amount)
    return UnitPrice(unit, atoms, per_of(per))


def _size(text: str) -> int:
    return _one_of(text, _SIZES)


def _time(text: str) -> int:
    return _one_of(text or "second", _TIMES)


def _count(text: str) -> int:
    if not _COUNTS.fullmatch(text or "1"):
        raise ValueError(f"{quoted(text)} behind '/' is not a whole number")
    return int(text or "1")


def _one_of(text: str, known: Mapping[str, int]) -> int:
    if text not in known:
        raise ValueError(f"{quoted(text)} behind '/' is not one of {', '.join(known)}")
    return known[text]
