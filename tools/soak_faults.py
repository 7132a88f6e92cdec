"""The faults of a soak: its servers are killed and paused, each kind on its own, so that several may be out at once."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import signal
import subprocess
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from perf.lab import ROOT

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from perf.lab import Server

BETWEEN_S: Final = (0.5, 7.0)
"""How long each kind of server is left alone between two faults: long enough for most of the traffic to get through."""
HOLD_S: Final = (0.05, 1.0)
"""How long a server is paused, or gone."""
LONG_HOLD_S: Final = 6.0
"""Longer than the gateway waits for an answer's head in a soak."""


class Faults:
    """Who does them, and how many there were.

    Args:
        say: Prints a line for each.
        upstream: The mock API.
        redis: The store.
        gateways: Those whose workers are paused, and how many each has. Where there are several, a supervisor starts
            them again: they are killed as well, and all of them restarted.
        chance: Decides all.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        upstream: Server,
        redis: Server,
        gateways: Sequence[tuple[Server, int]],
        chance: random.Random,
    ) -> None:
        self.done: collections.Counter[str] = collections.Counter()
        self._say = say
        self._upstream = upstream
        self._redis = redis
        self._gateways = gateways
        self._chance = chance

    async def run(self, seconds: float) -> None:
        """Do faults for so long, and undo them all."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                group.create_task(self._on_server("upstream", self._upstream))
                group.create_task(self._on_server("Redis", self._redis))
                group.create_task(self._on_workers())

    def _note(self, what: str, hold_s: float = 0.0) -> None:
        self.done[what] += 1
        self._say(f"{what} for {hold_s:.1f} s" if hold_s else what)

    async def _between(self) -> None:
        await asyncio.sleep(self._chance.uniform(*BETWEEN_S))

    async def _on_server(self, name: str, server: Server) -> None:
        while True:
            await self._between()
            hold_s = LONG_HOLD_S if self._chance.random() < 0.1 else self._chance.uniform(*HOLD_S)
            if self._chance.random() < 0.5:
                self._note(f"{name} killed", hold_s)
                await _killed(server, hold_s)
            else:
                self._note(f"{name} paused", hold_s)
                await _paused(server.process.pid, hold_s)

    async def _on_workers(self) -> None:
        gateway, count = max(self._gateways, key=itemgetter(1))
        what = "restarted"  # in a soak of a minute, it might not come by chance
        while True:
            await self._between()
            pids = workers(gateway, count)
            # One that is killed again and again is started again later and later.
            if count == 1 or len(pids) != count or what == "paused":
                hold_s = self._chance.uniform(*HOLD_S)
                self._note("worker paused", hold_s)
                for pid in self._chance.sample(pids, min(1, len(pids))):
                    await _paused(pid, hold_s)
            elif what == "killed":
                self._note("worker killed")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._chance.choice(pids), signal.SIGKILL)
            else:
                self._note("workers restarted")
                gateway.process.send_signal(signal.SIGUSR2)
            gateway, count = self._chance.choice(self._gateways)
            what = self._chance.choice(("paused", "paused", "killed", "killed", "restarted"))


def workers(gateway: Server, count: int) -> list[int]:
    """Return the processes of a gateway that serve: itself, or the children of its supervisor.

    Args:
        gateway: The gateway.
        count: How many there should be. There are fewer after a crash, and more in a restart.
    """
    return gateway.pids if count == 1 else gateway.pids[1:]


async def _killed(server: Server, hold_s: float) -> None:
    server.process.kill()
    server.process.wait()
    try:
        await asyncio.sleep(hold_s)
    finally:
        # On the same port, where everybody looks for it.
        server.process = subprocess.Popen(  # noqa: ASYNC220 - as the lab started it; nobody reads from it
            server.process.args,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


async def _paused(pid: int, hold_s: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(hold_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
