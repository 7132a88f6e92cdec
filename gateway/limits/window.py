"""The strict sliding window, as a pure function of integers: the reference that every store is held to.

Time is cut in segments of a sixtieth of the window. A request counts in the segment it came in until that
whole segment has left the window: at segment `s`, segments `s - 60` to `s` count. So no interval as long as the
window ever holds more than the quota, and a place comes free at most one segment late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.limits.policy import SEGMENTS
from gateway.limits.standing import Standing

if TYPE_CHECKING:
    from gateway.limits.policy import Policy


class Window(NamedTuple):
    """What is remembered of one limit. The default is a window never used.

    `newest` is the newest segment charged; it stays when that charge is given back. `counts` holds
    `(segment, admissions)` pairs, oldest first, none of them zero.
    """

    newest: int = 0
    counts: tuple[tuple[int, int], ...] = ()

    def newest_us(self, policy: Policy) -> int:
        """Return the newest time known, in microseconds: the start of the newest segment charged."""
        return self.newest * policy.segment_us

    def standing(self, policy: Policy, at_us: int) -> Standing:
        """Say how much of the quota is used at a time that is not older than `newest_us`.

        A lower quota may have come with a new configuration: then more than the oldest segment has to leave before
        a place comes free.
        """
        counts = self._at(at_us // policy.segment_us)
        used = sum(count for _, count in counts)
        surplus, frees = max(used - policy.quota, 0), at_us // policy.segment_us
        for segment, count in counts:
            surplus -= count
            if surplus < 0:
                frees = segment + SEGMENTS + 1
                break
        return Standing(used, max(policy.quota - used, 0), frees * policy.segment_us)

    def charged(self, policy: Policy, at_us: int) -> Window:
        """Return the window with one admission more, at a time that is not older than `newest_us`."""
        segment = at_us // policy.segment_us
        counts = dict(self._at(segment))
        counts[segment] = counts.get(segment, 0) + 1
        return Window(segment, tuple(counts.items()))

    def refunded(self, policy: Policy, at_us: int) -> Window:
        """Return the window with one admission of `at_us` given back, if its segment still counts one."""
        lower = ((segment, count - (segment == at_us // policy.segment_us)) for segment, count in self.counts)
        return self._replace(counts=tuple(pair for pair in lower if pair[1]))

    def _at(self, segment: int) -> tuple[tuple[int, int], ...]:
        return tuple(pair for pair in self.counts if pair[0] >= segment - SEGMENTS)
