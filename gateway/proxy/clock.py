"""Coarse time for the whole process: one timer that keeps `now_s` fresh and ends what is past its deadline."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

from gateway.http1.writer import http_date

if TYPE_CHECKING:
    import asyncio

TICK_S: Final = 0.25
NEVER: Final = float("inf")


class Watched(Protocol):
    """Something with a deadline."""

    deadline_s: float
    """On the clock's time line; `NEVER` for none."""

    def on_deadline(self) -> None:
        """The deadline has passed. Called at each tick until it is moved or the object is no longer watched."""
        ...


class Clock:
    """Reading it costs an attribute, setting a deadline as much.

    Attributes:
        now_s: The loop's time at the last tick.
        soon_s: What deadlines are counted from: so they are never early, and at most two ticks late.
        wall_s: Seconds since the epoch at the last tick.
        watched: What is looked at in every tick.
    """

    __slots__ = ("_date", "_loop", "_timer", "now_s", "soon_s", "wall_s", "watched")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self.now_s = loop.time()
        self.soon_s = self.now_s + TICK_S
        self.wall_s = time.time()
        self.watched: set[Watched] = set()
        self._date = (-1, "", b"")

    def start(self) -> None:
        """Begin to tick, until `stop`."""
        self._timer = self._loop.call_later(TICK_S, self._tick)

    def stop(self) -> None:
        """End the ticking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def date(self) -> str:
        """Spell the current time for a `Date` field."""
        return self._spelled()[1]

    def date_line(self) -> bytes:
        """Spell it as a whole field line, with a line end before it."""
        return self._spelled()[2]

    def _spelled(self) -> tuple[int, str, bytes]:
        second = int(self.wall_s)
        if self._date[0] != second:
            date = http_date(time.gmtime(second))
            self._date = (second, date, b"\r\nDate: " + date.encode())
        return self._date

    def sweep(self) -> None:
        """Take the time and end what is past its deadline."""
        self.now_s = now = self._loop.time()
        self.soon_s = now + TICK_S
        self.wall_s = time.time()
        for watched in tuple(self.watched):
            if watched.deadline_s < now:
                try:
                    watched.on_deadline()
                except Exception as error:  # noqa: BLE001 - a defect: the others must hear of their deadlines all the same
                    told = {"message": f"the deadline of {type(watched).__name__} was not handled", "exception": error}
                    self._loop.call_exception_handler(told)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._tick)
        self.sweep()
