"""One cell: a load on a server, what its processes used meanwhile, and whether that can be believed."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from perf.lab import CONF, ROOT, Refused, Server, which
from perf.load import PERCENTILES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

PATH: Final = "/api/v1/chat/completions"
AGREEMENT: Final = 0.15
"""Two measurements of one cell that lie further apart than this are no result."""
SATURATED: Final = 0.8
"""Of the time a saturated server runs or wants to run; the rest is what two full cores take to hand work over."""
PACE_KEPT: Final = 0.95
"""Of the requests that were due; less is no longer the pace that is claimed."""
GENERATOR_MOST: Final = 0.8
"""Of a core; a paced generator that has less time to spare is late itself."""

WRK_LEAST_S: Final = 1.0
"""wrk takes whole seconds; a shorter run is our own generator's."""

_WARM_UP_S: Final = 0.2


@dataclass(frozen=True)
class Load:
    """What a load generator saw."""

    requests: int
    seconds: float
    latencies_us: dict[float, float]
    """By percentile: the keys are `PERCENTILES`."""
    generator: str
    generator_share: float
    """Of one core."""
    late_us: float = 0.0
    """By how much a paced generator with a free connection was late itself, 99th percentile."""

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


@dataclass(frozen=True)
class Sample:
    """One measurement of a cell."""

    load: Load
    cpu_us: float
    """Per request, of the server under test."""
    rss_bytes: int
    shares: dict[str, float] = field(default_factory=dict)
    """CPU of each process of the chain, as a share of one core."""
    wanted: float = 0.0
    """Share of the time that the server under test ran, or would have run had a core been free."""

    def p(self, percentile: float) -> float:
        """Latency at a percentile, in microseconds."""
        return self.load.latencies_us[percentile]


def wrk_for(seconds: float) -> str | None:
    """Find wrk, if it is there and can run for so short a time; else our own generator is used."""
    return which("wrk") if seconds >= WRK_LEAST_S else None


def drive(server: Server, *, connections: int, seconds: float, rate: float = 0.0, path: str = PATH) -> Load:
    """Send requests, and nothing else meanwhile.

    Args:
        server: Where to.
        connections: How many, each with one request at a time.
        seconds: How long.
        rate: Requests per second; 0: as many as the answers allow.
        path: The request-target.

    Raises:
        Refused: Some answer was not 2xx, or did not come.
    """
    wrk = wrk_for(seconds) if rate == 0 else None
    if wrk is not None:
        target = f"http://127.0.0.1:{server.port}{path}"
        command = [wrk, "-t1", f"-c{connections}", f"-d{round(seconds)}s", "--timeout", "5s"]
        command += ["-s", str(CONF / "unique.lua"), target]
    else:
        command = [sys.executable, "-m", "perf.load", str(server.port), path, "--connections", str(connections)]
        command += ["--seconds", str(seconds), "--rate", str(rate)]
    points = ",".join(f"{point:g}" for point in PERCENTILES)
    environ = {**os.environ, "TOKEN": server.token, "PERCENTILES": points}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or ["(nothing)"]
        raise Refused(f"the load generator failed on {server.name}: {said[-1]}")
    seen: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    # wrk calls 400 and more an error; `warm_up`, which is never wrk's, would have seen a 3xx.
    failed = {name: count for name, count in seen["errors"].items() if count}
    if failed or not seen["requests"]:
        listed = ", ".join(f"{count} {name} errors" for name, count in failed.items()) or "none came"
        raise Refused(f"{server.name}: not every answer was 2xx ({listed} among {seen['requests']} answers)")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Load(
        requests=seen["requests"],
        seconds=seen["seconds"],
        latencies_us={float(point): value for point, value in seen["latencies_us"].items()},
        generator="wrk" if wrk else "perf/load.py",
        generator_share=seen.get("cpu_share", cpu_s / seen["seconds"]),
        late_us=seen.get("late_us", 0.0),
    )


def check_answer(server: Server) -> None:
    """Ask once, and see that it is the mock upstream that answers.

    Raises:
        Refused: It is not.
    """
    with server.connect() as connection:
        head = f"POST {PATH} HTTP/1.1\r\nHost: lab\r\nAuthorization: Bearer {server.token}\r\nContent-Length: 0\r\n\r\n"
        connection.send(head.encode())
        status, body = connection.read()
    if status != 200 or b"chatcmpl-123" not in body:
        raise Refused(f"{server.name}: not the upstream's answer, but {status} {body[:80]!r}")


def warm_up(server: Server, connections: int = 32) -> None:
    """Fill pools and caches before anything counts."""
    check_answer(server)
    drive(server, connections=connections, seconds=_WARM_UP_S)


def sample(server: Server, chain: Iterable[Server], *, connections: int, seconds: float, rate: float = 0.0) -> Sample:
    """Measure a cell once.

    Args:
        server: The server under test.
        chain: The servers behind it.
        connections: As for `drive`.
        seconds: As for `drive`.
        rate: As for `drive`.

    Raises:
        Refused: As for `drive`.
    """
    servers = [server, *(one for one in chain if one is not server)]
    before = [one.usage() for one in servers]
    load = drive(server, connections=connections, seconds=seconds, rate=rate)
    after = [one.usage() for one in servers]
    used = [new.cpu_s - old.cpu_s for new, old in zip(after, before, strict=True)]
    shares = {one.name: cpu_s / load.seconds for one, cpu_s in zip(servers, used, strict=True)}
    shares[load.generator] = load.generator_share
    wanted = (used[0] + after[0].waiting_s - before[0].waiting_s) / load.seconds
    return Sample(load, used[0] / load.requests * 1e6, server.rss_bytes(), shares, wanted)


def disagreement(values: Sequence[float]) -> float:
    """How far apart a cell lies from itself, measured again: the odd rounds' median against the even rounds'.

    Returns:
        The difference as a share of the smaller one; 0 for fewer than two rounds.
    """
    if len(values) < 2:
        return 0.0
    one, other = statistics.median(values[::2]), statistics.median(values[1::2])
    return abs(one - other) / min(one, other) if min(one, other) > 0 else float(one != other)


def not_the_bottleneck(server: str, samples: Sequence[Sample]) -> str | None:
    """Say why this server is not what limited the requests per second, or None if it is."""
    wanted = statistics.median(one.wanted for one in samples)
    share = statistics.median(one.shares[server] for one in samples)
    if wanted < SATURATED:
        return f"{server} was not the bottleneck: it had work for {wanted:.0%} of the time, not {SATURATED:.0%}"
    for name in samples[0].shares:
        other = statistics.median(one.shares[name] for one in samples)
        if name != server and other > share:
            return f"{server} was not the bottleneck: it used {share:.0%} of a core, {name} {other:.0%}"
    return None


def in_turns(
    cells: Sequence[str],
    measure: Callable[[str, int], None],
    doubts: Callable[[], Sequence[str]],
    *,
    rounds: int,
    short: bool,
) -> list[str]:
    """Measure all cells in turns, and again while there are doubts about them.

    Args:
        cells: What to measure in each round, in this order.
        measure: Measures one cell once; it is given the round, from 0.
        doubts: Why the figures so far cannot be believed, a line each.
        rounds: How many are asked for.
        short: Whether to leave it at that; else up to half as many more are made while there are doubts.

    Returns:
        The doubts that are left; the caller must not report the figures as if there were none.
    """
    limit = rounds if short else rounds + (rounds + 1) // 2
    for number in range(limit):
        if number >= rounds and not doubts():
            break
        for cell in cells:
            measure(cell, number)
    return list(doubts())
