"""How fast a token spends money, against its own usual pace. Pure; `now` is an argument.

The pace is what it spent in the window that ends now, the usual pace what it spent on average in a window of the last
24 hours, without that window. What is usual has to be known first: nothing is held against a token with too little
behind it, and small money never is.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

SEGMENTS: Final = 12
"""Parts of a window, the last of which is not over: of a steady pace, the window is never seen as more than it is."""
SPANS: Final = 48
"""Parts of the history. What lies before it is forgotten a part at a time."""
HISTORY_US: Final = 86_400_000_000
MIN_WINDOWS: Final = 12
"""A history is no shorter than so many windows; of windows longer than two hours, it goes back further than a day."""
MIN_REQUESTS: Final = 20
"""Of so many requests an average says something; or of fewer, in a quarter of the history's parts."""
FLOOR: Final = 10_000_000
"""Atoms: 0.01 USD in a window is nothing to warn of."""
MOST_WAIT_US: Final = 5_000_000
"""What a request waits for at most while its token is slowed."""


class Level(IntEnum):
    """What a guard does."""

    USUAL = 0
    WARN = 1
    SLOW = 2
    STOP = 3


class SpendGuard(NamedTuple):
    """`SPEND_GUARD`: `10x/5m`.

    Args:
        times: At so many times the usual pace it warns, at half as many more it slows, at twice as many it stops; 2 to
            1000.
        window_us: What the pace is measured in, in microseconds; 1 minute to 24 hours.
    """

    times: int
    window_us: int

    @property
    def segment_us(self) -> int:
        """A part of the window, in microseconds."""
        return self.window_us // SEGMENTS

    @property
    def history_us(self) -> int:
        """How long the history is, with the window, in microseconds."""
        return max(HISTORY_US, MIN_WINDOWS * self.window_us)

    @property
    def span_us(self) -> int:
        """A part of the history, in microseconds."""
        return self.history_us // SPANS

    def warns_at(self, usual: int) -> int:
        """Return how many atoms in a window are too many, of so many that are usual."""
        return max(usual * self.times, FLOOR)

    def stops_at(self, usual: int) -> int:
        """Return with how many a token is stopped."""
        return 2 * self.warns_at(usual)


class Reading(NamedTuple):
    """What a pace amounts to.

    Args:
        level: What is to be done.
        spent: Atoms in the window that ends now.
        usual: Atoms in a window, on average; None: not known yet.
        wait_us: Microseconds until it is no longer stopped, should nothing more be spent; or what a request waits for
            while it is slowed; 0 else.
    """

    level: Level
    spent: int
    usual: int | None
    wait_us: int


class Pace:
    """What one token spent, and when. Bounded: a dozen numbers for the window, some four dozen for the history."""

    __slots__ = ("_first_us", "_recent", "_spans")

    def __init__(self) -> None:
        self._first_us = -1
        self._recent: dict[int, list[int]] = {}  # atoms and requests by segment
        self._spans: dict[int, list[int]] = {}  # likewise, by span: all of the history, with the window

    def spend(self, guard: SpendGuard, atoms: int, at_us: int, share: float = 1.0) -> None:
        """Enter what a request did cost.

        Args:
            guard: The same one always.
            atoms: 0 or more.
            at_us: When it was settled, in microseconds since the epoch; older ones may come later.
            share: Of it, as much counts.
        """
        if at_us // guard.span_us not in self._spans:
            self._forget(guard, at_us)
        if not self._spans or at_us < self._first_us:
            self._first_us = at_us
        for parts, unit_us in ((self._recent, guard.segment_us), (self._spans, guard.span_us)):
            part = parts.setdefault(at_us // unit_us, [0, 0])
            part[0] += int(atoms * share)
            part[1] += 1

    def read(self, guard: SpendGuard, now_us: int) -> Reading:
        """Say how the pace stands."""
        self._forget(guard, now_us)
        recent = sorted(self._recent.items())
        spent = sum(atoms for _, (atoms, _) in recent)
        usual = self._usual(guard, spent, sum(count for _, (_, count) in recent), now_us)
        if usual is None:
            return Reading(Level.USUAL, spent, None, 0)
        warns_at, stops_at = guard.warns_at(usual), guard.stops_at(usual)
        slows_at = (warns_at + stops_at) // 2
        if spent >= stops_at:
            left, wait_us = spent, 0
            for segment, (atoms, _) in recent:
                left, wait_us = left - atoms, (segment + SEGMENTS) * guard.segment_us - now_us
                if left < stops_at:
                    break
            return Reading(Level.STOP, spent, usual, wait_us)
        if spent >= slows_at:
            return Reading(Level.SLOW, spent, usual, MOST_WAIT_US * (spent - slows_at) // (stops_at - slows_at))
        return Reading(Level.WARN if spent >= warns_at else Level.USUAL, spent, usual, 0)

    def is_idle(self, guard: SpendGuard, now_us: int) -> bool:
        """Whether there is nothing left to know."""
        self._forget(guard, now_us)
        return not self._spans

    def _usual(self, guard: SpendGuard, spent: int, count: int, now_us: int) -> int | None:
        """Return the average of the history without the window, where there is enough of it."""
        if not self._spans:
            return None
        # Of one that had long been idle, the history begins when it came back.
        since_us = max(self._first_us, min(self._spans) * guard.span_us)
        passed_us = (now_us // guard.segment_us - SEGMENTS + 1) * guard.segment_us - since_us
        requests = sum(part[1] for part in self._spans.values()) - count
        if passed_us < guard.window_us or (requests < MIN_REQUESTS and (not requests or len(self._spans) < SPANS // 4)):
            return None
        total = sum(part[0] for part in self._spans.values()) - spent
        return total * guard.window_us // passed_us

    def _forget(self, guard: SpendGuard, now_us: int) -> None:
        """Drop what has left the window, and the history."""
        for parts, unit_us, count in ((self._recent, guard.segment_us, SEGMENTS), (self._spans, guard.span_us, SPANS)):
            oldest = now_us // unit_us - count + 1
            for number in [number for number in parts if number < oldest]:
                del parts[number]
