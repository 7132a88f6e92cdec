"""How much memory does the gateway take? `python perf/memory.py`.

It measures the resident memory (RSS) of the gateway's process, with the embedded store and with Redis if there is one:
at rest; for each idle client connection, before and after a request on it; for each exchange in flight whose client
does not read (a 200 MB answer); after many requests, each with a head of its own; and for each of many tokens.

It ends with exit code 1 when memory went on growing while the same requests came again and again.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # `python perf/memory.py` would put perf/ there

from perf.client import Connection, request
from perf.lab import Lab, Refused, Server, allow_descriptors
from perf.measure import PATH, drive, warm_up
from perf.peers import start_upstream
from perf.report import SHORT_NOTE, described_machine, elapsed, parser, progress, run, table, write_json
from perf.upstream import BIG_BYTES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

SPARE_DESCRIPTORS: Final = 1000
"""Beside the clients' connections: what a process has open anyway, and its upstream connections."""
GROWTH: Final = 0.03
"""From the first to the last tenth of the requests; an allocator does not come to rest to the byte."""
BATCH: Final = 50
"""Requests sent ahead of their answers where the time is of no interest."""

_SETTLED_BYTES: Final = 1 << 16
_SETTLE_S: Final = 0.2
_SETTLE_TRIES: Final = 25


@dataclass
class Found:
    """What was found for one store, in bytes; `None` where it was not measured."""

    store: str
    at_rest: int = 0
    warm: int = 0
    idle_connection: float = 0.0
    used_connection: float = 0.0
    exchange: float = 0.0
    after_requests: int = 0
    growth: float = 0.0
    token: float = 0.0
    most: int = 0


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report.

    Raises:
        Refused: Something did not answer as it should, or memory went on growing.
    """
    chosen = read_options(argv)
    began = time.monotonic()
    wanted = chosen.connections + SPARE_DESCRIPTORS
    allowed = allow_descriptors(wanted)
    notes = []
    if allowed < wanted:
        chosen.connections = max(1, allowed - SPARE_DESCRIPTORS)
        notes.append(f"{allowed} open files are allowed (ulimit -n): only {chosen.connections} idle connections.")
    with Lab() as lab:
        upstream = start_upstream(lab)
        redis = None if chosen.store == "embedded" else lab.redis()
        if redis is None and chosen.store != "embedded":
            if chosen.store == "redis":
                raise Refused("redis-server is not installed")
            notes.append("not measured with Redis: redis-server is not installed.")
        stores: list[Server | None] = [] if chosen.store == "redis" else [None]
        found = [examine(lab, upstream, store, chosen) for store in (*stores, *([redis] if redis is not None else []))]
    print(described_machine() + "\n")
    print(table(["RSS", *(one.store for one in found)], lay_out(found, chosen)))
    for note in (*notes, *([SHORT_NOTE] if chosen.short else [])):
        print(f"Note: {note}")
    sizes = {name: getattr(chosen, name) for name in ("connections", "exchanges", "requests", "tokens", "short")}
    written = write_json(chosen.out, "memory.json", {**sizes, "notes": notes, "stores": [asdict(one) for one in found]})
    print(f"Written: {written} ({elapsed(began)})")
    for one in found:
        if not chosen.short:
            check_growth(one, chosen.requests)


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    options = parser(__doc__, seconds=5, rounds=None)
    options.add_argument("--store", choices=("redis", "embedded"), help="only with this one")
    options.add_argument("--connections", type=int, default=8_000, help="idle client connections")
    options.add_argument("--exchanges", type=int, default=200, help="exchanges in flight with a client that stalls")
    options.add_argument("--requests", type=int, default=1_000_000, help="requests after which memory may not grow")
    options.add_argument("--tokens", type=int, default=50_000, help="tokens, each used once")
    chosen = options.parse_args(argv)
    if chosen.short:
        chosen.connections, chosen.exchanges, chosen.requests, chosen.tokens = 200, 20, 2_000, 200
        chosen.seconds = 0.3
    return chosen


def examine(lab: Lab, upstream: Server, redis: Server | None, chosen: argparse.Namespace) -> Found:
    """Measure the gateway with one store."""
    found = Found("embedded" if redis is None else "Redis")

    def tell(what: str, value: str) -> None:
        progress(f"{found.store}: {what}: {value}")

    with contextlib.closing(_Stopping(lab.gateway(upstream, redis))) as stopping:
        gateway = stopping.server
        found.at_rest = settled(gateway)
        warm_up(gateway)
        found.warm = settled(gateway)
        tell("at rest, and after the first requests", f"{megabytes(found.at_rest)}, {megabytes(found.warm)}")
        found.idle_connection, found.used_connection = idle_connections(gateway, chosen.connections)
        tell(
            f"each of {chosen.connections:,} idle connections",
            f"{found.idle_connection:,.0f} bytes, {found.used_connection:,.0f} after a request",
        )
        found.exchange = stalled_exchanges(gateway, chosen.exchanges)
        tell(f"each of {chosen.exchanges:,} exchanges in flight", f"{found.exchange / 1e3:,.1f} kB")
    # The rest in a process of its own: what the first one has freed, but not given back, would hide growth.
    with contextlib.closing(_Stopping(lab.gateway(upstream, redis))) as stopping:
        gateway = stopping.server
        found.after_requests, found.growth = many_requests(gateway, chosen.requests, chosen.seconds, tell)
        found.token = many_tokens(gateway, chosen.tokens)
        tell(f"each of {chosen.tokens:,} tokens", f"{found.token:,.0f} bytes")
        found.most = gateway.rss_bytes("VmHWM")
    return found


class _Stopping:
    """A server that is stopped at the end of a block, before its lab's end."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def close(self) -> None:
        self.server.stop()


def settled(server: Server) -> int:
    """Read the memory once it has stopped changing."""
    last = server.rss_bytes()
    for _ in range(_SETTLE_TRIES):
        time.sleep(_SETTLE_S)
        last, before = server.rss_bytes(), last
        if abs(last - before) < _SETTLED_BYTES:
            break
    return last


def idle_connections(gateway: Server, count: int) -> tuple[float, float]:
    """Return the bytes for each idle connection: one that has sent nothing yet, and one that had a request."""
    before = settled(gateway)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(gateway.connect()) for _ in range(count)]
        fresh = settled(gateway)
        for connection in connections:
            connection.send(request(PATH, gateway.token))
            expect_success(connection.read()[0])
        used = settled(gateway)
    return (fresh - before) / count, (used - before) / count


def stalled_exchanges(gateway: Server, count: int) -> float:
    """Return the bytes for each exchange whose client reads the head of a long answer and nothing after it."""
    before = settled(gateway)
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(Connection(gateway.port, receive_bytes=4096))
            connection.send(request("/api/big", gateway.token))
            status, length = connection.read_head()
            expect_success(status)
            if length != BIG_BYTES:
                raise Refused(f"the answer says {length} bytes instead of {BIG_BYTES}")
        return (settled(gateway) - before) / count


def many_requests(gateway: Server, count: int, slice_s: float, tell: Callable[[str, str], None]) -> tuple[int, float]:
    """Send that many requests, on 32 connections.

    Returns:
        The memory after them, and by which share it grew from the first to the last tenth of them.
    """
    done = 0
    seen: list[tuple[int, int]] = []
    told = time.monotonic()
    while done < count or len(seen) < 2:
        done += drive(gateway, connections=32, seconds=slice_s).requests
        seen.append((done, gateway.rss_bytes()))
        if time.monotonic() > told + 5 or done >= count:
            told = time.monotonic()
            tell(f"after {done:,} requests", megabytes(seen[-1][1]))
    first = [size for at, size in seen if at <= done / 10] or [seen[0][1]]
    last = [size for at, size in seen if at >= done * 0.9] or [seen[-1][1]]
    start = statistics.median(first)
    return seen[-1][1], (statistics.median(last) - start) / start


def many_tokens(gateway: Server, count: int) -> float:
    """Return the bytes for each token that was issued and used once."""
    before = settled(gateway)
    with gateway.connect() as registering, gateway.connect() as using:
        left = count
        while left > 0:
            batch = min(BATCH, left)
            tokens = [registering.register() for _ in range(batch)]
            using.send(*(request(PATH, token) for token in tokens))
            for _ in tokens:
                expect_success(using.read()[0])
            left -= batch
    return (settled(gateway) - before) / count


def check_growth(found: Found, requests: int) -> None:
    """Refuse memory that went on growing.

    Raises:
        Refused: It did.
    """
    if found.growth > GROWTH:
        raise Refused(f"gateway, {found.store}: memory grew by {found.growth:.1%} within {requests:,} requests")


def expect_success(status: int) -> None:
    """Refuse whatever is not 2xx."""
    if not 200 <= status < 300:
        raise Refused(f"not every answer was 2xx: {status}")


def megabytes(size: float) -> str:
    """Write a size."""
    return f"{size / 1e6:.1f} MB"


def lay_out(found: Sequence[Found], chosen: argparse.Namespace) -> list[list[str]]:
    """Make the table's rows, a column for each store."""
    rows: list[tuple[str, Callable[[Found], str]]] = [
        ("at rest", lambda one: megabytes(one.at_rest)),
        ("after the first requests", lambda one: megabytes(one.warm)),
        (f"each of {chosen.connections:,} idle connections", lambda one: f"{one.idle_connection / 1e3:.2f} kB"),
        ("the same, each after one request", lambda one: f"{one.used_connection / 1e3:.2f} kB"),
        (f"each of {chosen.exchanges:,} exchanges, client stalled", lambda one: f"{one.exchange / 1e3:.1f} kB"),
        (f"after {chosen.requests:,} requests", lambda one: megabytes(one.after_requests)),
        ("growth from the first tenth to the last", lambda one: f"{one.growth:+.1%}"),
        (f"each of {chosen.tokens:,} tokens", lambda one: f"{one.token / 1e3:.2f} kB"),
        ("the most it ever was", lambda one: megabytes(one.most)),
    ]
    return [[label, *(write(one) for one in found)] for label, write in rows]


if __name__ == "__main__":
    sys.exit(run(main))
