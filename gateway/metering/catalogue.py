"""Prices of models as the `genai-prices` package knows them.

Importing that costs some 30 MB of memory and 0.2 s, so it is not imported before a model is asked for that has no price
of the operator's own.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeVar

from gateway.metering.hosts import regional_percent
from gateway.metering.rates import Rates, Tariff, pico_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

MAX_KNOWN: Final = 1024
"""Models that are remembered: their names are the clients' to choose."""
MAX_NAME_CHARACTERS: Final = 256

_RATES: Final = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cached",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "input_audio_mtok": "input_audio",
    "cache_audio_read_mtok": "cached_audio",
    "output_audio_mtok": "output_audio",
    "input_image_mtok": "input_image",
    "output_image_mtok": "output_image",
}
# Prices of a thousand: a million times what one of them costs in picodollars is a thousand times a million's.
_THOUSANDS: Final = {"requests_kcount": "request", "web_searches_kcount": "search"}
# Of things that these APIs do not do, or at no price of their own.
_ELSEWHERE: Final = {
    "storage_searches_kcount",
    "input_document_kpages",
    "input_annotated_document_kpages",
    "input_text_messages_kcount",
    "cache_image_read_mtok",
}
# What models of this kind make costs many times what a token of text does: with that price alone, none is known.
_MAKES: Final = (("audio", "output_audio"), ("image", "output_image"))
_K = TypeVar("_K")
_V = TypeVar("_V")


class Catalogue:
    """The prices of one provider's models, each found once.

    Args:
        url: The base URL of the target, which tells the provider; where it tells none, models' names do.
    """

    __slots__ = ("_known", "_models", "_provider", "_url")

    def __init__(self, url: str) -> None:
        self._url = url
        self._provider: Provider | None = None
        self._models: dict[str, tuple[ModelInfo | None, bool]] = {}
        self._known: dict[tuple[str, str, str, int], Tariff | None] = {}

    def find(self, model: str, tier: str, speed: str, now_s: float) -> Tariff | None:
        """Return a model's prices; None if they are not known, or are not by the token.

        Args:
            model: As requests name it.
            tier: The `service_tier` of the request, or of the answer; "" for the usual one.
            speed: Likewise, Anthropic's `speed`.
            now_s: Seconds since the epoch.

        Raises:
            ImportError: The package is not installed.
        """
        if len(model) > MAX_NAME_CHARACTERS:
            return None
        found, timed = self._model(model)
        if found is None:
            return None
        key = (model, tier, speed, int(now_s // 60) if timed else 0)  # what has times, has whole minutes
        try:
            return self._known[key]
        except KeyError:
            context = {"service_tier": tier, "speed": speed}
            percent = regional_percent(self._url, found.id)
            tariff = self._known[_room_in(self._known, key)] = _tariff(found, context, now_s, percent)
            return tariff

    def _model(self, model: str) -> tuple[ModelInfo | None, bool]:
        try:
            return self._models[model]
        except KeyError:
            found = self._look_up(model)
            timed = found is not None and (
                isinstance(found.prices, list) or any(one.constraint for one in found.price_variants or ())
            )
            self._models[_room_in(self._models, model)] = found, timed
            return found, timed

    def _look_up(self, model: str) -> ModelInfo | None:
        from genai_prices.data_snapshot import get_snapshot  # it is large: see the module's docstring

        snapshot = get_snapshot()
        if self._provider is None:
            try:
                self._provider = snapshot.find_provider(None, None, self._url)
            except LookupError:
                pass
            else:
                return self._look_up(model)
            for provider in snapshot.providers:
                if provider.model_match is not None and provider.model_match.is_match(model):
                    return provider.find_model(model, all_providers=snapshot.providers)
            return None
        return self._provider.find_model(model, all_providers=snapshot.providers)


def _room_in(known: dict[_K, _V], key: _K) -> _K:
    if len(known) >= MAX_KNOWN:
        known.clear()
    return key


def _tariff(model: ModelInfo, context: Mapping[str, str], now_s: float, percent: int) -> Tariff | None:
    prices = model.get_prices(datetime.fromtimestamp(now_s, UTC), context)
    base = _rates(prices, None, percent)
    if base is None or any(kind in model.id and getattr(base, rate) is None for kind, rate in _MAKES):
        return None
    starts = sorted({tier.start for price in prices.__dict__.values() for tier in getattr(price, "tiers", ())})
    tiers = tuple((start, rates) for start in starts if (rates := _rates(prices, start, percent)) is not None)
    return Tariff(base, tiers, model.context_window or 0)


def _rates(prices: ModelPrice, start: int | None, percent: int) -> Rates | None:
    """Return the rates of a tier, of the lowest if `start` is None; None where something costs what is not counted.

    Args:
        prices: Of all tiers.
        start: As of `Tariff.tiers`.
        percent: Of the prices of tokens.
    """
    found: dict[str, int] = {}
    for key, price in prices.__dict__.items():
        if price is None or key in _ELSEWHERE:
            continue
        value = _of_tier(price, start)
        if key in _RATES:
            found[_RATES[key]] = pico_of(value * percent / 100)
        elif key in _THOUSANDS:
            found[_THOUSANDS[key]] = pico_of(value * 1000)
        else:
            return None
    return Rates(**{"output": 0, **found}) if "input" in found else None


def _of_tier(price: Decimal | TieredPrices, start: int | None) -> Decimal:
    value: Decimal = getattr(price, "base", price)  # type: ignore[arg-type]
    for tier in getattr(price, "tiers", ()):
        if start is not None and tier.start <= start:
            value = tier.price
    return value
