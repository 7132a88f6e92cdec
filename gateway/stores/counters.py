"""The states of `limits`, changed in place: what the embedded store counts with.

Each kind answers as its pure twin does; `quota` and `unit_us` (segment or interval) come from the plan, for a
configuration may change them while the counter lives.
"""

from __future__ import annotations

from typing import Protocol

from gateway.limits.places import RETRY_US
from gateway.limits.policy import SEGMENTS
from gateway.limits.standing import Standing


class Counter(Protocol):
    """One limit's state."""

    in_flight: bool
    """Whether it counts requests in flight."""

    def newest_us(self, unit_us: int) -> int:
        """Return the newest time charged."""
        ...

    def standing(self, quota: int, unit_us: int, at_us: int) -> Standing:
        """Say how much is used at a time that is not older than the newest."""
        ...

    def charge(self, unit_us: int, at_us: int, lease: bytes) -> None:
        """Count one more."""
        ...

    def refund(self, unit_us: int, at_us: int, lease: bytes) -> None:
        """Count one less, where it still counts."""
        ...

    def at_least(self, unit_us: int, used: int, at_us: int, now_us: int) -> None:
        """Count no less than `used`, as if all had been charged at `at_us`, which is not after `now_us`."""
        ...

    def idle_from_us(self, unit_us: int) -> int:
        """Return from when on it may be forgotten."""
        ...


class WindowCounter:
    """A sliding window: `limits.window.Window`.

    `past` holds `[segment, count]` of the segments before `newest`, oldest first, none of them zero; what has
    left the window stays there until the next charge.
    """

    __slots__ = ("count", "newest", "past", "total")
    in_flight = False

    def __init__(self) -> None:
        self.newest = 0
        self.count = 0
        self.total = 0
        self.past: list[list[int]] = []  # a deque takes 600 bytes before it has anything

    def newest_us(self, unit_us: int) -> int:
        """See `Counter`."""
        return self.newest * unit_us

    def standing(self, quota: int, unit_us: int, at_us: int) -> Standing:
        """See `Counter`."""
        segment = at_us // unit_us
        used = self._total_at(segment)
        surplus, frees = max(used - quota, 0), segment
        if used:
            frees = self.newest + SEGMENTS + 1
            for past, count in self.past:
                if past >= segment - SEGMENTS:
                    surplus -= count
                    if surplus < 0:
                        frees = past + SEGMENTS + 1
                        break
        return Standing(used, max(quota - used, 0), frees * unit_us)

    def charge(self, unit_us: int, at_us: int, lease: bytes = b"") -> None:
        """See `Counter`."""
        del lease
        segment = at_us // unit_us
        if segment != self.newest:
            self.advance(segment)
        self.count += 1
        self.total += 1

    def advance(self, segment: int) -> None:
        """Make `segment` the newest and forget what has left the window by then."""
        past, last = self.past, segment - SEGMENTS
        if self.count:
            past.append([self.newest, self.count])
        while past and past[0][0] < last:
            self.total -= past.pop(0)[1]
        self.newest = segment
        self.count = 0

    def refund(self, unit_us: int, at_us: int, lease: bytes = b"") -> None:
        """See `Counter`."""
        del lease
        segment = at_us // unit_us
        if segment == self.newest:
            if self.count:
                self.count -= 1
                self.total -= 1
            return
        for entry in self.past:
            if entry[0] == segment:
                entry[1] -= 1
                self.total -= 1
                if not entry[1]:
                    self.past.remove(entry)
                return

    def at_least(self, unit_us: int, used: int, at_us: int, now_us: int) -> None:
        """See `Counter`."""
        segment, now = at_us // unit_us, now_us // unit_us
        missing = used - self._total_at(max(now, self.newest))
        if missing > 0 and segment >= now - SEGMENTS:
            if segment > self.newest:
                self.advance(segment)
            self.count += missing
            self.total += missing

    def idle_from_us(self, unit_us: int) -> int:
        """See `Counter`. One window longer than it counts: a clock that steps back by less finds it unchanged."""
        return (self.newest + 2 * SEGMENTS + 1) * unit_us

    def _total_at(self, segment: int) -> int:
        last = segment - SEGMENTS
        if self.newest < last:
            return 0
        total = self.total
        for past, count in self.past:
            if past >= last:
                break
            total -= count
        return total


class BucketCounter:
    """A token bucket: `limits.bucket.Bucket`."""

    __slots__ = ("charged_us", "full_us")
    in_flight = False

    def __init__(self) -> None:
        self.charged_us = 0
        self.full_us = 0

    def newest_us(self, unit_us: int) -> int:
        """See `Counter`."""
        del unit_us
        return self.charged_us

    def standing(self, quota: int, unit_us: int, at_us: int) -> Standing:
        """See `Counter`."""
        owed_us = max(self.full_us - at_us, 0)
        room_us = quota * unit_us - owed_us
        wait_us = unit_us - room_us if room_us < 0 else owed_us % unit_us or unit_us
        return Standing(-(-owed_us // unit_us), max(room_us // unit_us, 0), at_us + wait_us)

    def charge(self, unit_us: int, at_us: int, lease: bytes = b"") -> None:
        """See `Counter`."""
        del lease
        self.charged_us = at_us
        self.full_us = max(self.full_us, at_us) + unit_us

    def refund(self, unit_us: int, at_us: int, lease: bytes = b"") -> None:
        """See `Counter`."""
        del lease
        if at_us == self.charged_us:
            self.full_us -= unit_us

    def at_least(self, unit_us: int, used: int, at_us: int, now_us: int) -> None:
        """See `Counter`."""
        del now_us
        if used:
            self.charged_us = max(self.charged_us, at_us)
            self.full_us = max(self.full_us, at_us + used * unit_us)

    def idle_from_us(self, unit_us: int) -> int:
        """See `Counter`. As long again as it took to fill: a clock that steps back by less finds it unchanged."""
        return 2 * max(self.full_us, self.charged_us + unit_us) - self.charged_us


class PlacesCounter:
    """Requests in flight: `limits.places.Places`, but for ends. A lease of this process ends with this process."""

    __slots__ = ("leases",)
    in_flight = True

    def __init__(self) -> None:
        self.leases: set[bytes] = set()

    def newest_us(self, unit_us: int) -> int:
        """See `Counter`. Places go by no time."""
        del unit_us
        return 0

    def standing(self, quota: int, unit_us: int, at_us: int) -> Standing:
        """See `Counter`."""
        del unit_us
        used = len(self.leases)
        return Standing(used, max(quota - used, 0), at_us + RETRY_US)

    def charge(self, unit_us: int, at_us: int, lease: bytes) -> None:
        """See `Counter`."""
        del unit_us, at_us
        self.leases.add(lease)

    def refund(self, unit_us: int, at_us: int, lease: bytes) -> None:
        """See `Counter`."""
        del unit_us, at_us
        self.leases.discard(lease)

    def at_least(self, unit_us: int, used: int, at_us: int, now_us: int) -> None:
        """Do nothing: what is in flight elsewhere, nobody here can tell."""

    def idle_from_us(self, unit_us: int) -> int:
        """See `Counter`."""
        del unit_us
        return 1 << 62 if self.leases else 0
