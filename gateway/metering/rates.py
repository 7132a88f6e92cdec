"""Prices of tokens, as integers, and what counted tokens cost by them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

PICO_IN_NANO: Final = 1000
MAX_USD: Final = 100_000
"""No million of tokens costs as much: such a price has the wrong unit."""
_PICO: Final = 1_000_000
"""Picodollars each token, where a million of them cost one USD."""


_SEARCH: Final = 10_000
"""Of a search in the web, as `request` is read: Anthropic's list price of 0.01 USD, the same for all of its models."""


class Counts(NamedTuple):
    """What an answer says that was used, in tokens unless it says otherwise.

    Args:
        input: Of the request, all of those below included.
        output: Of the answer, reasoning included.
        cached: Read from the provider's cache.
        cache_write: Written to it, those for an hour included.
        cache_write_1h: Written to it for an hour.
        input_audio, cached_audio, output_audio: Of sound.
        input_image, output_image: Of pictures.
        searches: Searches in the web, each with a price of its own.
    """

    input: int
    output: int
    cached: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    input_audio: int = 0
    cached_audio: int = 0
    output_audio: int = 0
    input_image: int = 0
    output_image: int = 0
    searches: int = 0


class Rates(NamedTuple):
    """What a model's tokens cost, in picodollars each (a millionth of the price in USD per million tokens).

    What is None costs as any other token of its direction does.

    Args:
        input: Of a token of the request, unless one of the others is for it.
        output: Of a token of the answer, likewise.
        cached: Of one that was read from the provider's cache.
        cache_write: Of one written to it.
        cache_write_1h: Of one written for an hour; None: as `cache_write`.
        input_audio, cached_audio, output_audio, input_image, output_image: Of sound and pictures.
        request: Of the request itself.
        search: Of each search in the web.
    """

    input: int
    output: int
    cached: int | None = None
    cache_write: int | None = None
    cache_write_1h: int | None = None
    input_audio: int | None = None
    cached_audio: int | None = None
    output_audio: int | None = None
    input_image: int | None = None
    output_image: int | None = None
    request: int = 0
    search: int = 0

    def pico(self, counts: Counts) -> int:
        """Return what has been used costs, in picodollars."""
        asked, said, cached, written, hour, heard, recalled, spoken, seen, drawn, searches = counts
        if hour or heard or recalled or spoken or seen or drawn or searches:  # as nearly none has
            return self._pico_of_many_kinds(counts)
        # By name, each would take as long as all of them.
        each, each_said, each_cached, each_written, _, _, _, _, _, _, request, _ = self
        plain = asked - cached - written
        pico = request + said * each_said
        if plain > 0:
            pico += plain * each
        if cached:
            pico += cached * (each if each_cached is None else each_cached)
        if written:
            pico += written * (each if each_written is None else each_written)
        return pico

    def _pico_of_many_kinds(self, counts: Counts) -> int:
        heard = 0 if self.input_audio is None else max(counts.input_audio - counts.cached_audio, 0)
        recalled = 0 if self.cached_audio is None else counts.cached_audio
        seen = 0 if self.input_image is None else counts.input_image
        said = 0 if self.output_audio is None else counts.output_audio
        drawn = 0 if self.output_image is None else counts.output_image
        written = self.input if self.cache_write is None else self.cache_write
        written_1h = written if self.cache_write_1h is None else self.cache_write_1h
        plain = counts.input - counts.cached - counts.cache_write - heard - seen
        return (
            self.request
            + max(plain, 0) * self.input
            + max(counts.cached - recalled, 0) * (self.input if self.cached is None else self.cached)
            + max(counts.cache_write - counts.cache_write_1h, 0) * written
            + counts.cache_write_1h * written_1h
            + heard * (self.input_audio or 0)
            + recalled * (self.cached_audio or 0)
            + seen * (self.input_image or 0)
            + max(counts.output - said - drawn, 0) * self.output
            + said * (self.output_audio or 0)
            + drawn * (self.output_image or 0)
            + counts.searches * self.search
        )

    def dearest_input(self, *, written: bool, written_1h: bool, media: bool) -> int:
        """Return the most that a token of a request can cost.

        Args:
            written: Whether it may be written to a cache.
            written_1h: Whether that may be for an hour.
            media: Whether it may be one of sound or of a picture.
        """
        most = max(self.input, self.cached or 0)
        if written:
            most = max(most, self.cache_write or 0)
        if written_1h:
            most = max(most, self.cache_write_1h or 0)
        if media:
            most = max(most, self.input_audio or 0, self.cached_audio or 0, self.input_image or 0)
        return most

    @property
    def dearest_output(self) -> int:
        """The most that a token of an answer can cost."""
        return max(self.output, self.output_audio or 0, self.output_image or 0)


@dataclass(frozen=True, slots=True)
class Tariff:
    """The rates of a model, which may rise with the size of a request.

    Args:
        base: Of requests of few tokens.
        tiers: From how many input tokens on, exclusive, which rates are for all of a request's tokens; lowest first.
        context: How many input tokens a request may have; 0: that is not known.
    """

    base: Rates
    tiers: tuple[tuple[int, Rates], ...] = ()
    context: int = 0

    def rates(self, input_tokens: int) -> Rates:
        """Return the rates of a request of so many input tokens."""
        found = self.base
        for start, rates in self.tiers:
            if input_tokens > start:
                found = rates
        return found

    def nano(self, counts: Counts, percent: int = 100) -> int:
        """Return what has been used costs, in nanodollars, rounded up.

        Args:
            counts: What has been used.
            percent: Of the price of each token.
        """
        rates = self.rates(counts.input) if self.tiers else self.base
        pico = rates.pico(counts)
        if percent != 100:
            pico += -(-(pico - rates.request - counts.searches * rates.search) * (percent - 100) // 100)
        return -(-pico // PICO_IN_NANO)


def is_cheaper(tariff: Tariff | None, usual: Tariff) -> bool:
    """Whether one of two tariffs is, for some tokens at least."""
    return tariff is not None and (tariff.base.input < usual.base.input or tariff.base.output < usual.base.output)


def rates_of(prices: Mapping[str, object]) -> Rates:
    """Read own prices, `{"input": 2.5, "cached_input": 1.25, "output": 10}`, in USD per million tokens.

    There may be `cache_write` and `cache_write_1h` as well, `input_audio` and `output_audio`, and `request` and
    `search`, in USD of one. Without `cached_input`, what is cached costs as what is not. An embedding's model has no
    `output`.

    Raises:
        ValueError: Half a sentence that says what is wrong.
    """
    names = {"cached_input": "cached"}
    known = {
        "input",
        "output",
        "cached_input",
        "cache_write",
        "cache_write_1h",
        "input_audio",
        "output_audio",
        "request",
        "search",
    }
    for name in prices:
        if name not in known:
            raise ValueError(f"{name!r} is not one of {', '.join(sorted(known))}")
    if "input" not in prices:
        raise ValueError("'input' is missing, the price of a million tokens in USD")
    # A price in USD of one request is a million times that of one among a million.
    rates = {names.get(name, name): _pico_of(name, price) for name, price in prices.items()}
    for name, usual in (("request", 0), ("search", _SEARCH)):
        rates[name] = rates.get(name, usual) * 1_000_000
    return Rates(**{"output": 0, **rates})


def pico_of(per_million: Decimal) -> int:
    """Return a price in USD per million tokens as picodollars each, rounded up."""
    return int((per_million * _PICO).to_integral_value(ROUND_CEILING))


def _pico_of(name: str, price: object) -> int:
    if isinstance(price, bool) or not isinstance(price, int | float | Decimal):
        raise ValueError(f"{name} is not a number")  # noqa: TRY004 - of configuration
    exact = Decimal(str(price))
    if not exact.is_finite() or not 0 <= exact <= MAX_USD:
        raise ValueError(f"{name} is not between 0 and {MAX_USD} USD")
    return pico_of(exact)
