"""What a provider bills: the tokens of a prompt, what they cost, and the invoice. Nothing of the gateway is imported.

A price is a decimal of US dollars for a million tokens, from the same table that the gateway has (`genai-prices`) or a
test's own. A request's cost is exact, and rounded up to the nano-USD once.
"""

from __future__ import annotations

import csv
import functools
import io
import tomllib
import zlib
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from genai_prices import Usage, calc_price

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

NANO: Final = 1_000_000_000
_MILLION: Final = 1_000_000

IMAGE_TOKENS: Final = 1105
"""Of an image that is elsewhere: the request has only its address."""
OF_A_MESSAGE: Final = 4
OF_A_PROMPT: Final = 3


class Tokens(NamedTuple):
    """The tokens of a request by kind.

    Args:
        input: Of the prompt, those below among them.
        cached: Of these, read from the provider's cache.
        written: Of these, written into it.
        written_1h: Of those written, to be kept for an hour.
        output: All that were generated.
        reasoning: Of these, what nobody is shown.
    """

    input: int
    cached: int = 0
    written: int = 0
    written_1h: int = 0
    output: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens; what is written into a cache is input."""

    input: Decimal
    cached: Decimal
    output: Decimal


class Prices:
    """The price list.

    Args:
        own: What models cost that are not, or not so, in `genai-prices`.
    """

    def __init__(self, own: Mapping[str, Price] | None = None) -> None:
        self._own = dict(own or {})

    def knows(self, model: str) -> bool:
        """Tell whether a model has a price."""
        return model in self._own or _is_listed(model)

    def cost(self, model: str, tokens: Tokens) -> Decimal:
        """Return what a request costs in US dollars, rounded up to the nano-USD.

        Raises:
            LookupError: Nobody knows the model's price.
        """
        own = self._own.get(model)
        if own is None:
            return _rounded(_listed(model, tokens))
        fresh = tokens.input - tokens.cached
        sums = fresh * own.input + tokens.cached * own.cached + tokens.output * own.output
        return _rounded(sums / _MILLION)

    def nano(self, model: str, tokens: Tokens) -> int:
        """Return the same in nano-USD."""
        return int(self.cost(model, tokens) * NANO)


class Row(NamedTuple):
    """One line of an invoice.

    Args:
        id: The provider's for the request, as it told it in its answer.
        began_us, ended_us: When the request had come and when the last token was made, in microseconds of this clock.
        model: That generated.
        user: Of the request: OpenAI's `user` and what others have for it, or the wish of that name.
        tokens: By kind.
        outcome: `whole`; `left`: the client had gone; `broken`, `failed`: as wished.
    """

    id: str
    began_us: int
    ended_us: int
    model: str
    user: str
    tokens: Tokens
    outcome: str


COLUMNS: Final = (
    "request_id",
    "time",
    "ended",
    "model",
    "user",
    "input_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "outcome",
    "cost_usd",
)
"""Of the CSV. Times are seconds since the epoch."""


class Invoice:
    """What was billed, in the order in which it ended.

    Args:
        prices: The price list.
    """

    def __init__(self, prices: Prices) -> None:
        self.rows: list[Row] = []
        self._prices = prices

    def nano(self, row: Row) -> int:
        """Return what a row costs, in nano-USD."""
        return self._prices.nano(row.model, row.tokens)

    @property
    def total(self) -> Decimal:
        """US dollars, in all."""
        return Decimal(sum(map(self.nano, self.rows))) / NANO

    def lines(self) -> Iterator[tuple[object, ...]]:
        """Yield the lines of the CSV, the first with the columns' names."""
        yield COLUMNS
        for row in self.rows:
            tokens = row.tokens
            counts = (tokens.input, tokens.cached, tokens.written, tokens.output, tokens.reasoning)
            cost = f"{self._prices.cost(row.model, tokens):.9f}"
            times = (_seconds(row.began_us), _seconds(row.ended_us))
            yield (row.id, *times, row.model, row.user, *counts, row.outcome, cost)

    def csv(self) -> str:
        """Return it as CSV."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(self.lines())
        return out.getvalue()

    def dump(self, path: Path) -> None:
        """Write it to a file."""
        path.write_text(self.csv(), encoding="utf-8")


def count_text(text: str, seed: int, *, dense: bool = False) -> int:
    """Return how many tokens a text has: the same ever again, and never more than it has bytes.

    Args:
        text: Any.
        seed: Another one counts otherwise: between a fifth and a half of the bytes.
        dense: Each byte is a token: the worst that a tokenizer makes of a text.
    """
    data = text.encode("utf-8", "surrogatepass")
    if dense or not data:
        return len(data)
    return max(1, len(data) * (20 + zlib.crc32(data, seed) % 31) // 100)


def count_json(value: Any, seed: int, *, dense: bool = False) -> int:
    """Return how many tokens the texts in a JSON value have, the names in it as well."""
    match value:
        case str():
            return count_text(value, seed, dense=dense)
        case {"image_url": {"url": str(url)}} if not url.startswith("data:"):
            return IMAGE_TOKENS
        case dict():
            return sum(
                count_text(name, seed, dense=dense) + count_json(part, seed, dense=dense)
                for name, part in value.items()
                if name not in {"type", "role", "cache_control"}
            )
        case list():
            return sum(count_json(part, seed, dense=dense) for part in value)
        case int() | float():
            return 1
    return 0


def count_messages(messages: Iterable[Any], seed: int, *, dense: bool = False) -> int:
    """Return how many tokens the messages of a conversation are."""
    return OF_A_PROMPT + sum(OF_A_MESSAGE + count_json(one, seed, dense=dense) for one in messages)


def own_prices(path: Path) -> Iterator[tuple[str, Price]]:
    """Yield the prices in a configuration of the gateway's: its tables `prices.MODEL`."""
    for model, price in tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal).get("prices", {}).items():
        kinds = [Decimal(price[name]) for name in ("input", "cached_input", "output")]
        yield model, Price(*kinds)


def _seconds(at_us: int) -> str:
    return f"{at_us // 1_000_000}.{at_us % 1_000_000:06d}"


def _rounded(cost: Decimal) -> Decimal:
    return (cost * NANO).to_integral_value(ROUND_CEILING) / NANO


@functools.lru_cache(maxsize=100_000)
def _listed(model: str, tokens: Tokens) -> Decimal:
    usage = Usage(
        input_tokens=tokens.input,
        cache_read_tokens=tokens.cached,
        cache_write_tokens=tokens.written,
        cache_write_1h_tokens=tokens.written_1h,
        output_tokens=tokens.output,
    )
    return calc_price(usage, model).total_price


@functools.cache
def _is_listed(model: str) -> bool:
    try:
        calc_price(Usage(input_tokens=1), model)
    except LookupError:
        return False
    return True
