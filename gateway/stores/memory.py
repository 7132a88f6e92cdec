"""The embedded store: limits counted in this process, for one process.

The rule is `limits.window`'s, on counters that change in place: a check takes under a microsecond.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final, TypeAlias

from gateway.limits.policy import MAX_QUOTA, SEGMENTS
from gateway.stores import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.limits import Policy
    from gateway.stores import Plan, Waiter

_Limits: TypeAlias = "tuple[tuple[str, int, int], ...]"
"""Key, quota and segment in microseconds of each limit."""

_NO_LIMITS: Final = Verdict(admitted=True, policy=-1, remaining=0, reset_us=0, at_us=0)
_verdict: Final = tuple.__new__
"""Makes a Verdict in half the time that its constructor takes."""


def monotonic_us() -> int:
    """Return a time in microseconds that never steps back."""
    return time.monotonic_ns() // 1000


class _Counter:
    """The window of one limit: `limits.window.Window`, changed in place.

    `past` holds `[segment, count]` of the segments before `newest`, oldest first, none of them zero; what has
    left the window stays there until the next charge.
    """

    __slots__ = ("count", "newest", "past", "segment_us", "total")

    def __init__(self, segment_us: int) -> None:
        self.segment_us = segment_us
        self.newest = 0
        self.count = 0
        self.total = 0
        self.past: deque[list[int]] = deque()

    def total_at(self, segment: int) -> int:
        """Return how many admissions still count at `segment`."""
        last = segment - SEGMENTS
        if self.newest < last:
            return 0
        total = self.total
        for past, count in self.past:
            if past >= last:
                break
            total -= count
        return total

    def advance(self, segment: int) -> None:
        """Make `segment` the newest and forget what has left the window by then."""
        self.total = self.total_at(segment)
        if not self.total:
            self.past.clear()
        else:
            if self.count:
                self.past.append([self.newest, self.count])
            while self.past[0][0] < segment - SEGMENTS:
                self.past.popleft()
        self.newest = segment
        self.count = 0

    def oldest(self) -> int:
        """Return the oldest segment that counts. Only after a charge: then there is one."""
        return self.past[0][0] if self.past else self.newest

    def frees_at(self, quota: int) -> int:
        """Return when, in µs, fewer than `quota` admissions count, if now as many or more do."""
        surplus = self.total - quota
        for past, count in self.past:
            surplus -= count
            if surplus < 0:
                return (past + SEGMENTS + 1) * self.segment_us
        return (self.newest + SEGMENTS + 1) * self.segment_us

    def refund(self, segment: int) -> None:
        """Give back one admission of `segment`, if it still has one."""
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


class _Plan:
    """Keys and numbers of one subject's policies. No counters: a purge may drop those at any time."""

    __slots__ = ("limits",)

    def __init__(self, subject: str, policies: Sequence[Policy]) -> None:
        self.limits: _Limits = tuple(
            (f"{policy.owner(subject)}:{policy.name}", policy.quota, policy.segment_us) for policy in policies
        )


class MemoryStore:
    """Checks and charges limits within this process; every waiter is called back before `check` returns.

    Memory is bounded by the subjects seen in about two windows: whenever a counter is made or moves on, two
    others are looked at, and dropped if they count nothing any more.

    Args:
        now_us: The clock that limits are measured with, in microseconds.
    """

    __slots__ = ("_counters", "_now_us", "_to_purge")

    def __init__(self, now_us: Callable[[], int] = monotonic_us) -> None:
        self._now_us = now_us
        self._counters: dict[str, _Counter] = {}
        self._to_purge: deque[str] = deque()

    def plan(self, subject: str, policies: Sequence[Policy]) -> _Plan:
        """Prepare what every check of this subject needs; see `Store.plan`.

        Raises:
            ValueError: The subject is not one that limits can be counted for (`Policy.owner`).
        """
        return _Plan(subject, policies)

    def check(self, plan: Plan, waiter: Waiter) -> None:
        """Check all policies and charge 1 to each, or charge none; `waiter` is called back before it returns."""
        limits: _Limits = plan.limits  # type: ignore[attr-defined]  # opaque to others, but this store's own
        now_us = self._now_us()
        if len(limits) == 1:
            # By far the most frequent case, spelled out: one limit, and its segment is still the newest.
            ((key, quota, segment_us),) = limits
            counter = self._counters.get(key)
            if counter is not None and counter.newest == now_us // segment_us and counter.total < quota:
                counter.count += 1
                counter.total = total = counter.total + 1
                past = counter.past
                frees_us = ((past[0][0] if past else counter.newest) + SEGMENTS + 1) * segment_us
                waiter.on_verdict(_verdict(Verdict, (True, 0, quota - total, frees_us - now_us, now_us)))
                return
        waiter.on_verdict(self._decide(limits, now_us) if limits else _NO_LIMITS)

    def refund(self, plan: Plan, at_us: int) -> None:
        """Give back a charge of 1 made at `at_us` (a `Verdict`'s), where its segment is still counted."""
        limits: _Limits = plan.limits  # type: ignore[attr-defined]  # opaque to others, but this store's own
        for key, _, segment_us in limits:
            counter = self._counters.get(key)
            if counter is not None:
                counter.refund(at_us // segment_us)

    def at_least(self, plan: Plan, index: int, used: int, at_us: int) -> None:
        """See to it that a limit counts no less than is known from elsewhere.

        Args:
            plan: The subject's.
            index: Which of its limits.
            used: How many admissions counted, taken as if all had been made at `at_us`.
            at_us: When, on this store's clock; what is ahead of it counts as now.
        """
        limits: _Limits = plan.limits  # type: ignore[attr-defined]  # opaque to others, but this store's own
        key, _, segment_us = limits[index]
        now = self._now_us() // segment_us
        segment = min(at_us // segment_us, now)
        counter = self._counter(key, segment_us)
        missing = used - counter.total_at(max(now, counter.newest))
        if missing > 0 and segment >= now - SEGMENTS:
            if segment > counter.newest:
                counter.advance(segment)
            counter.count += missing
            counter.total += missing

    async def start(self) -> None:
        """Do nothing: this store is always ready."""

    async def ping(self) -> None:
        """Do nothing: this store always answers."""

    async def agree_secret(self, candidate: bytes) -> bytes:
        """Return `candidate`: nobody else shares this store."""
        return candidate

    async def close(self) -> None:
        """Do nothing: no check is ever in flight."""

    def _decide(self, limits: _Limits, now_us: int) -> Verdict:
        counters = [self._counter(key, segment_us) for key, _, segment_us in limits]
        # The newest time charged stands, should the clock have stepped back.
        at_us = max(now_us, *(counter.newest * counter.segment_us for counter in counters))
        refused, frees_us = -1, 0
        for index, (counter, (_, quota, segment_us)) in enumerate(zip(counters, limits, strict=True)):
            if counter.total >= quota and counter.total_at(at_us // segment_us) >= quota:
                limit_frees_us = counter.frees_at(quota)
                if limit_frees_us > frees_us:
                    refused, frees_us = index, limit_frees_us
        verdict = (
            Verdict(False, refused, 0, frees_us - now_us, at_us)
            if refused >= 0
            else _charge(counters, limits, now_us, at_us)
        )
        self._purge(now_us, 2 * len(limits))
        return verdict

    def _counter(self, key: str, segment_us: int) -> _Counter:
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = _Counter(segment_us)
            self._to_purge.append(key)
        return counter

    def _purge(self, now_us: int, many: int) -> None:
        # A counter is kept one window longer than it counts, so that a clock that steps back by less than
        # that finds it unchanged.
        for _ in range(min(many, len(self._to_purge))):
            key = self._to_purge.popleft()
            counter = self._counters[key]
            if now_us >= (counter.newest + 2 * SEGMENTS + 1) * counter.segment_us:
                del self._counters[key]
            else:
                self._to_purge.append(key)


def _charge(counters: Sequence[_Counter], limits: _Limits, now_us: int, at_us: int) -> Verdict:
    nearest, least, frees_us = -1, MAX_QUOTA, 0
    for index, (counter, (_, quota, segment_us)) in enumerate(zip(counters, limits, strict=True)):
        segment = at_us // segment_us
        if segment != counter.newest:
            counter.advance(segment)
        counter.count += 1
        counter.total += 1
        remaining = quota - counter.total
        if remaining < least:
            nearest, least = index, remaining
            frees_us = (counter.oldest() + SEGMENTS + 1) * segment_us
    return Verdict(True, nearest, least, frees_us - now_us, at_us)
