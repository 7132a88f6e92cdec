"""Prices of tokens, as integers."""

from __future__ import annotations

from typing import NamedTuple


class Rates(NamedTuple):
    """What a model's tokens cost, in picodollars each (a millionth of the price in USD per million tokens).

    Args:
        input: Of a token of the request that is not one of the next three.
        output: Of a token of the answer.
        cached: Of one that was read from the provider's cache; None: as any other.
        cache_write: Of one written to it for five minutes, or however long; None: as any other.
        cache_write_1h: Of one written for an hour; None: as `cache_write`.
        request: Of the request itself.
    """

    input: int
    output: int
    cached: int | None = None
    cache_write: int | None = None
    cache_write_1h: int | None = None
    request: int = 0
