"""The strict sliding window, as a pure function of integers: the reference that every store is held to.

Time is cut in segments of a sixtieth of the window. A request counts in the segment it came in until that
whole segment has left the window: at segment `s`, segments `s - 60` to `s` count. So no interval as long as the
window ever holds more than the quota, and a place comes free at most one segment late.

If the clock steps back, the newest time charged in any of the request's windows stands in its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.limits.policy import SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.limits.policy import Policy


class Window(NamedTuple):
    """What is remembered of one limit. The default is a window never used.

    `newest` is the newest segment charged; it stays when that charge is given back. `counts` holds
    `(segment, admissions)` pairs, oldest first, none of them zero.
    """

    newest: int = 0
    counts: tuple[tuple[int, int], ...] = ()

    def total(self) -> int:
        """Return how many admissions are counted."""
        return sum(count for _, count in self.counts)

    def at(self, segment: int) -> Window:
        """Return the window without what has left it by `segment`."""
        return self._replace(counts=tuple(pair for pair in self.counts if pair[0] >= segment - SEGMENTS))

    def charged(self, segment: int) -> Window:
        """Return the window with one admission more in `segment`, which is not older than `newest`."""
        counts = dict(self.counts)
        counts[segment] = counts.get(segment, 0) + 1
        return Window(segment, tuple(counts.items()))

    def refunded(self, segment: int) -> Window:
        """Return the window with one admission of `segment` given back, if it still counts one."""
        lower = ((past, count - (past == segment)) for past, count in self.counts)
        return self._replace(counts=tuple(pair for pair in lower if pair[1]))

    def frees_at(self, quota: int, segment_us: int) -> int:
        """Return when, in µs, fewer than `quota` admissions count, if now as many or more do.

        A lower quota may have come with a new configuration: then more than the oldest segment has to leave.
        """
        surplus = self.total() - quota
        for segment, count in self.counts:
            surplus -= count
            if surplus < 0:
                return (segment + SEGMENTS + 1) * segment_us
        raise ValueError("fewer admissions than the quota count already")


class Decision(NamedTuple):
    """What the rule says about one request; the fields mean what those of `stores.Verdict` mean."""

    admitted: bool
    policy: int
    remaining: int
    reset_us: int
    at_us: int


def decide(policies: Sequence[Policy], windows: Sequence[Window], now_us: int) -> tuple[Decision, tuple[Window, ...]]:
    """Check all policies of a request and charge 1 to each, or charge none.

    Args:
        policies: At least one.
        windows: The window of each policy, in the same order.
        now_us: The store's time in microseconds, not negative.

    Returns:
        The decision, and the windows as they are to be kept. A refused request changes none of them.
    """
    at_us = max(now_us, *(w.newest * p.segment_us for p, w in zip(policies, windows, strict=True)))
    segments = [at_us // policy.segment_us for policy in policies]
    live = [window.at(segment) for window, segment in zip(windows, segments, strict=True)]

    refusals = [
        (window.frees_at(policy.quota, policy.segment_us), -index)
        for index, (policy, window) in enumerate(zip(policies, live, strict=True))
        if window.total() >= policy.quota
    ]
    if refusals:
        free_us, minus_index = max(refusals)
        return Decision(False, -minus_index, 0, free_us - now_us, at_us), tuple(windows)

    charged = tuple(window.charged(segment) for window, segment in zip(live, segments, strict=True))
    remaining = [policy.quota - window.total() for policy, window in zip(policies, charged, strict=True)]
    nearest = remaining.index(min(remaining))
    oldest = charged[nearest].counts[0][0]
    free_us = (oldest + SEGMENTS + 1) * policies[nearest].segment_us
    return Decision(True, nearest, remaining[nearest], free_us - now_us, at_us), charged


def refund(policies: Sequence[Policy], windows: Sequence[Window], at_us: int) -> tuple[Window, ...]:
    """Give back a charge of 1 made at `at_us` (a decision's), where its segment is still counted.

    Args:
        policies: Those of the decision.
        windows: The window of each policy, in the same order.
        at_us: `Decision.at_us` of the charge.

    Returns:
        The windows as they are to be kept.
    """
    return tuple(window.refunded(at_us // policy.segment_us) for policy, window in zip(policies, windows, strict=True))
