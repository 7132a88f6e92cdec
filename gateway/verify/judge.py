"""Was a limit exceeded? Decided from what clients saw, and only where no order of clocks could explain it.

A client knows that an admission happened between the instants at which it sent the request and had the answer. So
only what lies in an interval with both instants was certainly admitted in it. All instants are of one clock, in
microseconds.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

DRIFT: Final = 0.001
"""What two machines' clocks may disagree on a window's length: NTP slews each by at most 500 ppm."""

_POLICY: Final = re.compile(r'"([^"]+)";q=([0-9]{1,10});w=([1-9][0-9]{0,6})(?=\s*(?:,|\Z))')


class Limit(NamedTuple):
    """A limit as the gateway states it in `RateLimit-Policy`."""

    name: str
    quota: int
    window_s: int


class Seen(NamedTuple):
    """One admission: sent no later, and answered no earlier, than it happened."""

    sent_us: int
    received_us: int


class Finding(NamedTuple):
    """What became of one limit."""

    limit: Limit
    worst_window: int
    """The most that certainly were admitted in one window."""
    usable: float | None
    """Which share of the limit could be had, 0 to 1; None where nothing tells."""

    @property
    def over(self) -> int:
        """How many too many the worst window has; 0 as long as the limit holds."""
        return max(0, self.worst_window - self.limit.quota)


def read_policies(field: str) -> tuple[Limit, ...]:
    """Read the limits of a `RateLimit-Policy` field that are N requests in a window; others are passed over.

    Source: draft-ietf-httpapi-ratelimit-headers-10, §3.
    """
    return tuple(Limit(name, int(quota), int(window)) for name, quota, window in _POLICY.findall(field))


def judge(limit: Limit, admissions: Sequence[Seen], disturbed: Sequence[tuple[int, int]] = ()) -> Finding:
    """Hold all that was admitted against one limit.

    Args:
        limit: The limit.
        admissions: In any order.
        disturbed: Intervals, in microseconds of the same clock, that do not count for what was usable.
    """
    window_us = limit.window_s * 1_000_000
    worst = worst_window(admissions, int(window_us * (1 - DRIFT)))
    return Finding(limit, worst, _usable(limit.quota, window_us, admissions, disturbed))


def worst_window(admissions: Sequence[Seen], span_us: int) -> int:
    """Return the most admissions that lie, with both their instants, in one interval of `span_us`."""
    # One that took longer fits in no such interval. Without them, whatever was sent before an interval that ends at
    # some instant, and received by then, is whatever was sent before it: so two counts say how many lie inside.
    fitting = [seen for seen in admissions if seen.received_us - seen.sent_us <= span_us]
    sent = sorted(seen.sent_us for seen in fitting)
    worst = before = 0
    for count, end_us in enumerate(sorted(seen.received_us for seen in fitting), 1):
        while sent[before] < end_us - span_us:
            before += 1
        worst = max(worst, count - before)
    return worst


def _usable(
    quota: int, window_us: int, admissions: Sequence[Seen], disturbed: Sequence[tuple[int, int]]
) -> float | None:
    """Return the window over the time it took, on average, until the same place was given away again."""
    times_us = sorted((seen.sent_us + seen.received_us) // 2 for seen in admissions)
    taken_us = [
        end - begin
        for begin, end in zip(times_us, times_us[quota:], strict=False)
        if not any(begin < until and since < end for since, until in disturbed)
    ]
    total_us = sum(taken_us)
    return min(1.0, window_us * len(taken_us) / total_us) if total_us else None
