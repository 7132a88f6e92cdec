"""How many instances share a Redis, and what time it is there: asked every few seconds, beside the checks."""

from __future__ import annotations

import asyncio
import os
from importlib import resources
from typing import TYPE_CHECKING, Final

from gateway.errors import StoreUnavailable
from gateway.stores.memory import monotonic_us

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SCRIPT: Final = resources.files("gateway.stores").joinpath("instances.lua").read_text("utf-8")
EVERY_S: Final = 8.0
LIVES_US: Final = 25_000_000
"""Two turns may be missed; a killed instance is counted that much longer, which errs on the cautious side."""

_KEY: Final = b"gateway:{global}:instances"


class Instances:
    """The entry of this instance in the list that all of them keep in Redis, and what was last read there."""

    __slots__ = ("_ask", "_id", "_offset_us", "_task", "seen")

    def __init__(self) -> None:
        self._id = os.urandom(8).hex()
        self._ask: Callable[..., Awaitable[list[object]]] | None = None
        self._task: asyncio.Task[None] | None = None
        self._offset_us = 0
        self.seen = 1
        """How many there are, this one included, as last read."""

    def store_time_us(self) -> int:
        """Return what Redis's clock says by now, in microseconds, reckoned from when it was last read."""
        return monotonic_us() + self._offset_us

    async def start(self, ask: Callable[..., Awaitable[list[object]]]) -> None:
        """Enter this instance, and keep it entered.

        Args:
            ask: Sends commands to Redis and returns the replies (`Link.ask`).

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        self._ask = ask
        await self.announce()
        self._task = asyncio.get_running_loop().create_task(self._go_on())

    async def announce(self, lives_us: int = LIVES_US) -> None:
        """Enter this instance for so long; read how many there are, and the time."""
        assert self._ask is not None  # noqa: S101 - `start` sets it
        (reply,) = await self._ask(("EVAL", SCRIPT, 1, _KEY, self._id, lives_us))
        if isinstance(reply, list) and len(reply) == 2:
            self.seen = max(reply[0], 1)
            self._offset_us = reply[1] - monotonic_us()

    async def close(self) -> None:
        """Leave the list, if Redis answers."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        # If it does not, the entry expires.
        await asyncio.gather(self.announce(0), return_exceptions=True)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.announce()
            except StoreUnavailable:
                continue  # the store's own recovery sees to it; what was last read stands
