"""The faults of a soak: its servers are killed and paused, each kind on its own, so that several may be out at once."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Final

from perf.lab import ROOT

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from perf.lab import Server

BETWEEN_S: Final = (0.5, 4.0)
"""How long each kind of server is left alone between two faults."""
HOLD_S: Final = (0.05, 1.0)
"""How long a server is paused, or gone."""
LONG_HOLD_S: Final = 6.0
"""Longer than the gateway waits for an answer's head in a soak."""


class Faults:
    """Who does them, and how many there were.

    Args:
        upstream: The mock API.
        redis: The store.
        gateways: Those whose workers are paused.
        supervised: Those of them whose workers are killed as well, and that are restarted: they have a supervisor.
        chance: Decides all.
    """

    def __init__(
        self,
        upstream: Server,
        redis: Server,
        gateways: Sequence[Server],
        supervised: Sequence[Server],
        chance: random.Random,
    ) -> None:
        self.done: collections.Counter[str] = collections.Counter()
        self._upstream = upstream
        self._redis = redis
        self._gateways = gateways
        self._supervised = supervised
        self._chance = chance

    async def run(self, seconds: float) -> None:
        """Do faults for so long, and undo them all."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                group.create_task(self._on_server("upstream", self._upstream))
                group.create_task(self._on_server("Redis", self._redis))
                group.create_task(self._on_workers())

    async def _between(self) -> None:
        await asyncio.sleep(self._chance.uniform(*BETWEEN_S))

    async def _on_server(self, name: str, server: Server) -> None:
        while True:
            await self._between()
            hold_s = LONG_HOLD_S if self._chance.random() < 0.1 else self._chance.uniform(*HOLD_S)
            if self._chance.random() < 0.5:
                self.done[f"{name} killed"] += 1
                await _killed(server, hold_s)
            else:
                self.done[f"{name} paused"] += 1
                await _paused(server.process.pid, hold_s)

    async def _on_workers(self) -> None:
        while True:
            await self._between()
            if not self._supervised or self._chance.random() < 0.4:
                gateway = self._chance.choice(self._gateways)
                pid = self._chance.choice(workers(gateway))
                self.done["worker paused"] += 1
                await _paused(pid, self._chance.uniform(*HOLD_S))
                continue
            gateway = self._chance.choice(self._supervised)
            if self._chance.random() < 0.7:
                self.done["worker killed"] += 1
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._chance.choice(workers(gateway)), signal.SIGKILL)
            else:
                self.done["restart"] += 1
                gateway.process.send_signal(signal.SIGUSR2)


def workers(gateway: Server) -> list[int]:
    """Return the processes of a gateway that serve: its supervisor's children, or itself."""
    return gateway.pids[1:] or gateway.pids


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
