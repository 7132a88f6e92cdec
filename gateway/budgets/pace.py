"""How fast a token spends money, against its own usual pace. Pure; `now` is an argument.

The pace is what it spent in the window that ends now, the usual pace what it spent on average in a window of the last
24 hours, without that window. What is usual has to be known first: nothing is held against a token with too little
behind it, and small money never is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

SEGMENTS: Final = 12
"""Parts of a window. The last one is not over, so that a steady pace is never overstated."""
SPANS: Final = 48
"""Parts of the history. What lies before it is forgotten a part at a time."""
HISTORY_US: Final = 86_400_000_000
MIN_WINDOWS: Final = 12
"""A history is no shorter than so many windows; of windows longer than two hours, it goes back further than a day."""
MIN_REQUESTS: Final = 20
"""From so many requests on, an average says something; or with fewer, spread over a quarter of the history's parts."""
FLOOR: Final = 10_000_000
"""Atoms: 0.01 USD in a window is nothing to warn of."""
MOST_WAIT_US: Final = 5_000_000
"""The longest that a request waits while its token is slowed."""


class Level(IntEnum):
    """What a guard does."""

    USUAL = 0
    WARN = 1
    SLOW = 2
    STOP = 3


@dataclass(frozen=True, slots=True)
class SpendGuard:
    """`SPEND_GUARD`: `10x/5m`.

    Args:
        times: At so many times the usual pace it warns, at half as many more it slows, at twice as many it stops; 2 to
            1000.
        window_us: What the pace is measured in, in microseconds; 1 minute to 24 hours.

    Attributes:
        segment_us: A part of the window, in microseconds.
        history_us: How long the history is, with the window.
        span_us: A part of the history.
    """

    times: int
    window_us: int
    segment_us: int = field(init=False)
    history_us: int = field(init=False)
    span_us: int = field(init=False)

    def __post_init__(self) -> None:
        history_us = max(HISTORY_US, MIN_WINDOWS * self.window_us)
        object.__setattr__(self, "segment_us", self.window_us // SEGMENTS)
        object.__setattr__(self, "history_us", history_us)
        object.__setattr__(self, "span_us", history_us // SPANS)

    def warns_at(self, usual: int) -> int:
        """Return from how many atoms in a window on it warns, if so many are usual."""
        return max(usual * self.times, FLOOR)

    def stops_at(self, usual: int) -> int:
        """Return likewise from how many on it stops the token."""
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


class _Sum:
    """Atoms and requests of the last so many parts of time, the one that is not over among them."""

    __slots__ = ("_newest", "atoms", "count", "oldest", "parts")

    def __init__(self) -> None:
        self.parts: dict[int, list[int]] = {}
        self.atoms = self.count = 0
        self.oldest = self._newest = 0

    def add(self, part: int, atoms: int) -> None:
        """Enter a request in a part; of those before the last, too."""
        if not self.parts or part < self.oldest:
            self.oldest = part
        found = self.parts.setdefault(part, [0, 0])
        found[0] += atoms
        found[1] += 1
        self.atoms += atoms
        self.count += 1

    def advance(self, newest: int, most: int) -> None:
        """Drop what lies before the last parts, `most` of them with the newest."""
        if newest == self._newest:
            return
        self._newest = newest
        for part in [part for part in self.parts if part <= newest - most]:
            atoms, count = self.parts.pop(part)
            self.atoms -= atoms
            self.count -= count
        if self.parts:
            self.oldest = min(self.parts)


class Pace:
    """What one token spent, and when. Bounded: a dozen numbers for the window, some four dozen for the history."""

    __slots__ = ("_first_us", "_history", "_window")

    def __init__(self) -> None:
        self._first_us = 0
        self._window = _Sum()
        self._history = _Sum()  # the window is a part of it

    def spend(self, guard: SpendGuard, atoms: int, at_us: int, share: float = 1.0) -> None:
        """Enter what a request cost.

        Args:
            guard: The same one always.
            atoms: 0 or more.
            at_us: When it was settled, in microseconds since the epoch; older ones may come later.
            share: How much of it counts, 0 to 1.
        """
        history, span = self._history, at_us // guard.span_us
        window, segment = self._window, at_us // guard.segment_us
        if segment not in window.parts:
            window.advance(segment, SEGMENTS)
            history.advance(span, SPANS)
        if not history.parts or at_us < self._first_us:
            self._first_us = at_us
        history.add(span, int(atoms * share))
        window.add(segment, int(atoms * share))

    def read(self, guard: SpendGuard, now_us: int) -> Reading:
        """Say how the pace stands."""
        self._forget(guard, now_us)
        spent, usual = self._window.atoms, self._usual(guard, now_us)
        if usual is None:
            return Reading(Level.USUAL, spent, None, 0)
        warns_at, stops_at = guard.warns_at(usual), guard.stops_at(usual)
        slows_at = (warns_at + stops_at) // 2
        if spent >= stops_at:
            left, wait_us = spent, 0
            for segment, (atoms, _) in sorted(self._window.parts.items()):
                left, wait_us = left - atoms, (segment + SEGMENTS) * guard.segment_us - now_us
                if left < stops_at:
                    break
            return Reading(Level.STOP, spent, usual, wait_us)
        if spent >= slows_at:
            return Reading(Level.SLOW, spent, usual, MOST_WAIT_US * (spent - slows_at) // (stops_at - slows_at))
        return Reading(Level.WARN if spent >= warns_at else Level.USUAL, spent, usual, 0)

    def _usual(self, guard: SpendGuard, now_us: int) -> int | None:
        """Return the average of the history without the window, where there is enough of it."""
        history, window = self._history, self._window
        requests = history.count - window.count
        if requests < MIN_REQUESTS and (not requests or len(history.parts) < SPANS // 4):
            return None
        # Of one that had long been idle, the history begins when it came back.
        since_us = max(self._first_us, history.oldest * guard.span_us)
        passed_us = (now_us // guard.segment_us - SEGMENTS + 1) * guard.segment_us - since_us
        if passed_us < guard.window_us:
            return None
        return (history.atoms - window.atoms) * guard.window_us // passed_us

    def _forget(self, guard: SpendGuard, now_us: int) -> None:
        """Drop what has left the window, and the history."""
        self._window.advance(now_us // guard.segment_us, SEGMENTS)
        self._history.advance(now_us // guard.span_us, SPANS)
