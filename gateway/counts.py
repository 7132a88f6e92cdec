"""What is counted of requests, by name, and how it is told: the same names in memory, in Redis and on the wire. Pure.

Counts are a flat `Counter`, so that those of two instances, or of two seconds, add up: `passed`, `refused:CODE`,
`latency<=1ms`, `cost:USD`, … A count that is not there is 0. Costs are counted in atoms, whole billionths of a dollar
among them: see `budgets.budget`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from gateway.budgets.budget import spelled

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping, Sequence

Counts: TypeAlias = "Counter[str]"

REFUSED: Final = "refused:"
LATENCY: Final = "latency<="
COST: Final = "cost:"
"""Before a unit: atoms."""
SETTLED: Final = "settled:"
"""Before a mark: requests that cost something, or could have."""

QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

_STEPS: Final = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
"""In each power of ten: a quantile is then told to within a fifth or so, of a histogram that stays small."""
BOUNDS_US: Final[tuple[int, ...]] = (
    50,
    70,
    *(int(step * 10**power) for power in range(2, 8) for step in _STEPS),
    *(int(step * 10**8) for step in _STEPS[:-1]),
)
"""The upper ends of the histograms' buckets but for the last one, which has none: from 50 µs to 500 s."""
BOUNDS_S: Final = tuple(bound / 1e6 for bound in BOUNDS_US)
BUCKETS: Final = len(BOUNDS_US) + 1


def _spell(bound_us: int) -> str:
    for unit_us, unit in ((1_000_000, "s"), (1_000, "ms")):
        if bound_us >= unit_us:
            return f"{bound_us / unit_us:g}{unit}"
    return f"{bound_us}us"


BUCKET_NAMES: Final = (*(LATENCY + _spell(bound) for bound in BOUNDS_US), LATENCY + "inf")
"""What each bucket is counted as: `latency<=50us`, `latency<=1.5ms`, …; not cumulative."""

_PLAIN: Final = ("passed", "upstream_errors", "failed", "retries", "bytes_in", "bytes_out")
_PLACES: Final = {name: place for place, name in enumerate(BUCKET_NAMES)}


def bucketed(samples: list[float]) -> list[tuple[int, int]]:
    """Sort times, in seconds, and return how many of them lie in which bucket, of those that have any."""
    # Sorting and two searches for each bucket that has any: a quarter of what a search for each sample takes.
    samples.sort()
    found = []
    at = 0
    while at < len(samples):
        place = bisect_left(BOUNDS_S, samples[at])
        end = bisect_right(samples, BOUNDS_S[place], at) if place < len(BOUNDS_S) else len(samples)
        found.append((place, end - at))
        at = end
    return found


def add_up(
    tokens: dict[str, tuple[Counts, Mapping[str, str]]],
    token_id: str,
    counts: Counts,
    about: Mapping[str, str],
    most: int,
) -> int:
    """Add a token's counts to what there is of it; where it has none and there are `most`, the first makes room.

    Returns:
        How many tokens' counts were lost so: 0 or 1.
    """
    known = tokens.get(token_id)
    if known is not None:
        known[0].update(counts)
        return 0
    is_full = len(tokens) >= most
    if is_full:
        del tokens[next(iter(tokens))]
    tokens[token_id] = (counts, about)
    return int(is_full)


def told(counts: Mapping[str, int], in_flight: int) -> dict[str, Any]:
    """Return counts as users see them, in `/usage` and `/admin/usage`.

    Args:
        counts: Of requests that are over.
        in_flight: How many are not.
    """
    return {
        "requests": counts.get("requests", 0) + in_flight,
        "passed": counts.get("passed", 0),
        "refused": {
            name.removeprefix(REFUSED): count for name, count in sorted(counts.items()) if name.startswith(REFUSED)
        },
        **{name: counts.get(name, 0) for name in _PLAIN[1:]},
        "in_flight": in_flight,
        "cost": cost_of(counts),
        "latency_ms": quantiles_ms(buckets_of(counts)),
    }


def cost_of(counts: Mapping[str, int]) -> dict[str, str]:
    """Return what requests cost by unit, as decimal numbers in full: as texts, which lose nothing."""
    units = {name.removeprefix(COST): atoms for name, atoms in sorted(counts.items()) if name.startswith(COST)}
    return {unit: spelled(atoms, unit) for unit, atoms in units.items()}


def buckets_of(counts: Mapping[str, int]) -> list[int]:
    """Return the histogram that is among counts."""
    buckets = [0] * BUCKETS
    for name, count in counts.items():
        place = _PLACES.get(name)
        if place is not None:
            buckets[place] = count
    return buckets


def histogram_ms(counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the histogram as users see it, so that two of them can be subtracted: how long it took in between.

    `counts[i]` took at most `bounds[i]` milliseconds, and more than the bound before; the last, more than all bounds.
    """
    return {"bounds": [bound_us / 1e3 for bound_us in BOUNDS_US], "counts": buckets_of(counts)}


def quantiles_ms(buckets: Sequence[int]) -> dict[str, float | None]:
    """Estimate the median and others, in milliseconds; None where nothing was measured.

    Within a bucket, values are taken to lie evenly; of what is beyond the last bound, only that is known.
    """
    return {name: _quantile_ms(buckets, share) for name, share in QUANTILES.items()}


def _quantile_ms(buckets: Sequence[int], share: float) -> float | None:
    total = sum(buckets)
    if not total:
        return None
    wanted = share * total
    low_us = 0
    for count, high_us in zip(buckets, BOUNDS_US, strict=False):
        if count and wanted <= count:
            return round((low_us + (high_us - low_us) * wanted / count) / 1e3, 3)
        wanted -= count
        low_us = high_us
    return low_us / 1e3
