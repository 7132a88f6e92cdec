"""Does anybody notice a restart? `python -m perf.restarts [--workers N]`: requests without a pause, SIGUSR2 in between.

Three kinds of clients send: those that keep their connection, those that make a new one for each request, and those
that read event streams. None of them tries again. Whatever is not a whole and right answer counts as broken, whether it
is a connection that is refused or reset, an end in the middle, or a wrong status; exit code 1 if there is one, or if
another number of requests came to the upstream, or was counted in Redis.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvloop

from perf.client import request
from perf.lab import ROOT, Lab, Refused
from perf.upstream import ANSWER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

TIMEOUT_S: Final = 60.0
"""For any one answer, and any one restart: longer than `DRAIN_TIMEOUT`."""
EVENTS: Final = 20
EVENT_INTERVAL_MS: Final = 20
KEEPING, FRESH, STREAMING = 24, 4, 8
"""How many clients there are of each kind."""


@dataclass
class Tally:
    """What became of the requests."""

    answered: int = 0
    streams: int = 0
    connections: int = 0
    closes: int = 0
    """Answers that said `Connection: close`."""
    broken: collections.Counter[str] = field(default_factory=collections.Counter)

    @property
    def ended(self) -> int:
        """All requests, whatever became of them."""
        return self.answered + self.broken.total()

    def __str__(self) -> str:
        wrong = ", ".join(f"{count} {what}" for what, count in self.broken.most_common()) or "0 broken"
        return (
            f"{self.ended:,} requests ({self.streams:,} streams) on {self.connections:,} connections: {wrong}; "
            f"{self.closes:,} answers said Connection: close"
        )


class _Connection:
    """One client's connection; made anew where the one before has ended as it should."""

    def __init__(self, port: int, tally: Tally) -> None:
        self._port = port
        self._tally = tally
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> bytes:
        """Send a request and return the body of its answer.

        Raises:
            OSError, EOFError, ValueError: There is no whole answer.
        """
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
            self._tally.connections += 1
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200 "):
            raise ValueError(f"status {head[9:12].decode()}")
        body = b""
        if b"transfer-encoding: chunked" in head:
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                body += (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readexactly(2)
        else:
            body = await self._reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        if b"\r\nconnection: close\r\n" in head:
            self._tally.closes += 1
            self.close()
        return body

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


class Crowd:
    """Clients that send until they are told to stop.

    Args:
        port: The gateway's.
        token: For it.
        pause_s: Of each client, between two requests.
    """

    def __init__(self, port: int, token: str, pause_s: float = 0.0) -> None:
        self.tally = Tally()
        self._pause_s = pause_s
        self._port = port
        self._token = token
        self._stopping = False

    async def run(self, until: Awaitable[None]) -> None:
        """Send until something else has ended."""
        async with asyncio.TaskGroup() as group:
            for number in range(KEEPING):
                group.create_task(self._send("POST" if number % 2 else "GET", is_kept=True))
            for _ in range(FRESH):
                group.create_task(self._send("POST", is_kept=False))
            for _ in range(STREAMING):
                group.create_task(self._stream())
            try:
                await until
            finally:
                self._stopping = True

    async def counted(self) -> int:
        """Ask how many requests were counted for the token."""
        connection = _Connection(self._port, Tally())
        usage = json.loads(await connection.ask(self._request("GET", "/usage")))
        connection.close()
        used: int = usage["limits"][0]["used"]
        return used

    def _request(self, method: str, path: str) -> bytes:
        body = b"x" * 100 if method == "POST" else b""
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: lab\r\nAuthorization: Bearer {self._token}\r\n{length}\r\n"
        return head.encode() + body

    async def _send(self, method: str, *, is_kept: bool) -> None:
        sent = self._request(method, "/api/v1/chat/completions")
        expected = ANSWER.encode()
        await self._go_on(sent, lambda body: body == expected, is_kept=is_kept)

    async def _stream(self) -> None:
        sent = self._request("GET", f"/api/events?count={EVENTS}&interval_ms={EVENT_INTERVAL_MS}")

        def is_whole(body: bytes) -> bool:
            self.tally.streams += 1
            return [b'"index":%d,' % number in event for number, event in enumerate(body.split(b"\n\n")[:-1])] == (
                [True] * EVENTS
            )

        await self._go_on(sent, is_whole, is_kept=True)

    async def _go_on(self, request: bytes, is_right: Callable[[bytes], bool], *, is_kept: bool) -> None:
        connection = _Connection(self._port, self.tally)
        while not self._stopping:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    if is_right(await connection.ask(request)):
                        self.tally.answered += 1
                    else:
                        self.tally.broken["wrong"] += 1
            except (OSError, EOFError, ValueError) as error:
                self.tally.broken[str(error) if isinstance(error, ValueError) else type(error).__name__] += 1
                connection.close()
            if not is_kept:
                connection.close()
            if self._pause_s:
                await asyncio.sleep(self._pause_s)
        connection.close()


async def restarted(pid: int, workers: int) -> None:
    """Send SIGUSR2 and wait until the new program serves and nothing is left of the old one.

    Raises:
        TimeoutError: That takes too long.
    """
    before = _children(pid)
    os.kill(pid, signal.SIGUSR2)
    async with asyncio.timeout(TIMEOUT_S):
        while not _is_replaced(pid, before, workers):  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.05)


def _is_replaced(pid: int, before: set[int], workers: int) -> bool:
    now = _children(pid)
    # A single process turns into the supervisor of the new one when it has nothing left to do.
    return len(now) == workers and not now & before and b"-IS" in Path(f"/proc/{pid}/cmdline").read_bytes()


def _children(pid: int) -> set[int]:
    with contextlib.suppress(FileNotFoundError):
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()))
    return set()


async def restart_under_load(
    pid: int, crowd: Crowd, *, requests: int, restarts: int, workers: int
) -> tuple[list[float], int]:
    """Send so many requests at least, with restarts spread over them.

    Returns:
        How many seconds each restart took, and how many requests were counted.
    """
    took: list[float] = []

    async def go() -> None:
        for number in range(1, restarts + 2):
            async with asyncio.timeout(TIMEOUT_S * 10):
                while crowd.tally.ended < requests * number // (restarts + 1):  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.01)
            if number <= restarts:
                began = time.monotonic()
                await restarted(pid, workers)
                took.append(time.monotonic() - began)

    await crowd.run(go())
    return took, await crowd.counted()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="how many the gateway has (default: 2)")
    parser.add_argument("--requests", type=int, default=100_000, help="at least so many (default: 100000)")
    parser.add_argument("--restarts", type=int, default=10, help="how many (default: 10)")
    parser.add_argument("--pause-ms", type=int, default=0, help="of each client between two requests (default: 0)")
    options = parser.parse_args(arguments)
    with Lab() as lab:
        try:
            upstream = lab.start("mock API", [sys.executable, "-m", "perf.upstream", "@{port}"], cwd=ROOT)
            redis = lab.redis()
            if redis is None:
                raise Refused("redis-server is not installed, and the old and the new program need what they share")
            gateway = lab.gateway(
                upstream,
                redis,
                GATEWAY_WORKERS=str(options.workers),
                DRAIN_TIMEOUT="30s",
                RATE_LIMIT="10000000/hour",
                # Redis shares the machine with all the clients, and is not what is measured.
                STORE_TIMEOUT="10s",
            )
        except Refused as refused:
            print(f"restarts: {refused}", file=sys.stderr)
            return 1
        crowd = Crowd(gateway.port, gateway.token, options.pause_ms / 1000)
        pid, sizes = gateway.process.pid, {"requests": options.requests, "restarts": options.restarts}
        began = time.monotonic()
        took, counted = uvloop.run(restart_under_load(pid, crowd, workers=options.workers, **sizes))
        print(f"{len(took)} restarts of {options.workers} workers in {time.monotonic() - began:.0f} s: {crowd.tally}")
        with upstream.connect() as connection:
            connection.send(request("/count", "none"))
            arrived = int(connection.read()[1])
        print(f"came to the upstream: {arrived:,}; counted in Redis: {counted:,}")
        print(f"a restart took {min(took):.1f} to {max(took):.1f} s, of which 1 s is the grace of idle connections")
        return 0 if not crowd.tally.broken and arrived == counted == crowd.tally.ended else 1


if __name__ == "__main__":
    sys.exit(main())
