"""What `[targets.NAME.cost]` says, as values: how a target's requests are priced."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.metering.rates import Rates

MAX_OUTPUT: Final = 4096
"""Output tokens of a request that sets no limit, unless the cost table says another number."""

USUAL_COMPLETION: Final = 16
"""Output tokens of a legacy completion at OpenAI that sets no limit.

Source: https://platform.openai.com/docs/api-reference/completions/create
"""

UnknownPrice = Literal["deny", "default", "warn"]


def plain_path(path: bytes) -> bytes:
    """Spell a path as its price is looked for: what most servers take for the same path has the same price.

    Some servers decode it more than once, and some care neither for case nor for a slash at its end.
    """
    for _ in range(3):
        if b"%" in path:
            path = unquote_to_bytes(path)
    return path.lower().rstrip(b"/") or b"/"


_plain_pattern = lru_cache(maxsize=1024)(plain_path)  # not of clients' paths, which may be long


class FixedPrice(NamedTuple):
    """What requests of one pattern cost.

    Args:
        method: `b"GET"`; b"*" for all.
        path: `b"/maps/geocode"`, the whole path without a query; with `*` at its end, all that begin so.
        price: Atoms by unit.
    """

    method: bytes
    path: bytes
    price: Mapping[str, int]

    def fits(self, method: bytes, path: bytes) -> bool:
        """Whether a request is of this pattern; `path` without its query, as `plain_path` spells it."""
        if self.method not in {b"*", method}:
            return False
        own = _plain_pattern(self.path)
        return (path + b"/").startswith(own[:-1]) if own.endswith(b"*") else path == own

    @property
    def fits_all(self) -> bool:
        """Whether each request is of this pattern."""
        return (self.method, self.path) == (b"*", b"/*")


class UnitPrice(NamedTuple):
    """What so many of something cost: `0.09 USD/GB` is `("USD", 90_000_000, 1_000_000_000)`.

    Args:
        unit: `USD`, or another.
        atoms: Of `per` of them.
        per: 1 or more.
    """

    unit: str
    atoms: int
    per: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A cost that the answer says, or that is measured on it.

    Args:
        kind: `json`: the number that `place`, a JSON pointer, leads to in the answer; `header`: the number in the field
            `place`; `bytes`: of content; `seconds`: from when the request was sent to the answer's end.
        price: Of one of them, or of `per`.
        place: A JSON pointer (RFC 6901), or a field name in lower case; "" for the other kinds.
    """

    kind: Literal["json", "header", "bytes", "seconds"]
    price: UnitPrice
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """What a target's requests cost. `fixed` goes first; for a request of none of its patterns, the rest decides.

    Args:
        fixed: The first that fits counts.
        llm: Whether requests are a language model's, paid by the token.
        measured: How other requests are paid; None with `llm`.
        reserve: The most that a request of an unknown size costs, atoms by unit. With `measured` it must be there; with
            `llm`, it is added for what the length of a request does not bound, such as a file named by its id;
            empty: the whole of the model's context is.
        unknown_price: What becomes of a request whose price nobody has said: it is refused, costs `default`, or is free
            and told in the log.
        default: See there; atoms by unit.
        max_output: Output tokens, 1 or more, of a request that sets no limit: with clamping on it is sent.
        prices: Own prices by model, before those of the `genai-prices` package. A name that ends with `*` is for all
            that begin so.
    """

    fixed: tuple[FixedPrice, ...] = ()
    llm: bool = False
    measured: Measured | None = None
    reserve: Mapping[str, int] | None = None
    unknown_price: UnknownPrice = "deny"
    default: Mapping[str, int] | None = None
    max_output: int = MAX_OUTPUT
    prices: Mapping[str, Rates] | None = None

    @property
    def units(self) -> set[str]:
        """The units that costs may be in."""
        amounts = [one.price for one in self.fixed]
        if self.default is not None:
            amounts.append(self.default)
        units = {unit for amount in amounts for unit in amount}
        if self.llm:
            units |= {"USD", "tokens"}
        if self.measured is not None:
            units.add(self.measured.price.unit)
        return units
