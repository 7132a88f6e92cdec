"""A load generator of our own: paced, or as fast as the answers come, on a fixed number of connections.

`python -m perf.load PORT PATH --connections N --seconds S [--rate R]` prints its result as one line of JSON.

With `--rate`, requests are due at the times of a Poisson process (the same one in every run): about as many per second,
at random moments, as from many independent users. Each is sent on a connection that is free; its latency counts from
when it was *due*, so that a server's pause is charged to every request that it held up, and not to the one that hit it.

It is a plain loop over `select`, not asyncio: an event loop's timers are exact to a millisecond only, and it would take
more of the CPU that the servers need. Its own share of a core is part of the result.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import json
import os
import random
import re
import select
import socket
import sys
import time
from pathlib import Path
from typing import Final

CLOSED_LOOP: Final = 0.0
SEED: Final = 20_240_229
ANSWER_TIMEOUT_S: Final = 5.0
"""After the last request."""
PERCENTILES: Final = (
    *(0, 1, 5, 10, 20, 30, 40, 50, 60, 70, 75, 80, 85, 90, 92, 94, 95, 96, 97, 98, 99),
    *(99.2, 99.4, 99.5, 99.6, 99.7, 99.8, 99.9),
)

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_BODY: Final = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi %d"}]}'


class _Generator:
    """One run."""

    def __init__(self, port: int, path: str, token: str) -> None:
        self._port = port
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {token}\r\nUser-Agent: OpenAI/Python 1.50.0\r\nX-Stainless-Lang: python\r\n"
            "X-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\n"
            "Accept: application/json\r\nAccept-Encoding: gzip, deflate, br\r\n"
        ).encode()
        self._sent = 0
        self._due: dict[socket.socket, float] = {}
        self._pieces: dict[socket.socket, bytes] = {}
        self.latencies_us: list[int] = []
        self.lateness_us: list[int] = []
        self.errors = {"connect": 0, "read": 0, "write": 0, "status": 0, "timeout": 0}

    def run(self, connections: int, seconds: float, rate: float) -> float:
        """Send for that long; return how long it was."""
        idle: collections.deque[socket.socket] = collections.deque()
        for _ in range(connections):
            one = socket.create_connection(("127.0.0.1", self._port), 5.0)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            idle.append(one)
        every = list(idle)
        chance = random.Random(SEED)
        began = due = time.perf_counter()
        end = began + seconds
        while (now := time.perf_counter()) < end or self._due:
            if now < end:
                while idle and (not rate or due <= now):
                    self._send(idle.popleft(), due if rate else now)
                    if rate:
                        due += chance.expovariate(rate)
                wait = min(due, end) - now if rate and idle else end - now
            elif now < end + ANSWER_TIMEOUT_S:
                wait = end + ANSWER_TIMEOUT_S - now
            else:
                self.errors["timeout"] += len(self._due)
                break
            readable, _, _ = select.select(self._due, (), (), max(wait, 0.0))
            now = time.perf_counter()
            if rate and idle and now > due:
                # A connection was free and nothing but the clock was waited for.
                self.lateness_us.append(int((now - due) * 1e6))
            for one in readable:
                self._receive(one, now, idle)
        for one in every:
            one.close()
        return time.perf_counter() - began

    def _send(self, one: socket.socket, due: float) -> None:
        self._sent = number = self._sent + 1
        body = _BODY % number
        head = self._head + (
            b"X-Request-Id: req-%d\r\ntraceparent: 00-%032x-0000000000000001-01\r\nContent-Length: %d\r\n\r\n"
            % (number, number, len(body))
        )
        self._due[one] = due
        try:
            one.sendall(head + body)
        except OSError:
            self.errors["write"] += 1
            del self._due[one]

    def _receive(self, one: socket.socket, now: float, idle: collections.deque[socket.socket]) -> None:
        try:
            data = one.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.errors["read"] += 1
            del self._due[one]
            return
        if one in self._pieces:
            data = self._pieces.pop(one) + data
        end = data.find(b"\r\n\r\n")
        length = _LENGTH.search(data, 0, end + 2) if end >= 0 else None
        if length is None or len(data) < end + 4 + int(length[1]):
            self._pieces[one] = data
            return
        self.latencies_us.append(int((now - self._due.pop(one)) * 1e6))
        if not data.startswith(b"HTTP/1.1 2"):
            self.errors["status"] += 1
        idle.append(one)


def percentiles(values: list[int]) -> dict[str, int]:
    """The values at `PERCENTILES`, by nearest rank."""
    ordered = sorted(values) or [0]
    last = len(ordered) - 1
    return {f"{point:g}": ordered[min(last, round(point / 100 * last))] for point in PERCENTILES}


def main() -> int:
    """Run as a process of its own."""
    parser = argparse.ArgumentParser(description="Send requests to a port of this machine.")
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=CLOSED_LOOP, help="requests per second; 0: as fast as it goes")
    options = parser.parse_args()
    with contextlib.suppress(OSError):
        # The kernel may wake a sleeper 50 us late to save power; that would be half of what is measured here.
        Path("/proc/self/timerslack_ns").write_text("1000", encoding="ascii")
    generator = _Generator(options.port, options.path, os.environ.get("TOKEN", "none"))
    gc.disable()
    cpu_s = time.process_time()
    seconds = generator.run(options.connections, options.seconds, options.rate)
    cpu_s = time.process_time() - cpu_s
    result = {
        "requests": len(generator.latencies_us),
        "seconds": seconds,
        "latencies_us": percentiles(generator.latencies_us),
        "late_us": percentiles(generator.lateness_us)["99"],
        "errors": generator.errors,
        "cpu_share": cpu_s / seconds,
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
