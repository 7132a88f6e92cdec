"""How many times the requests of one worker do several carry? `python -m perf.scaling [--workers N]`

There need not be a core for each of them here: what counts is the CPU time that the gateway's processes take for a
request, so the upstream, Redis and the load generator are counted out. One worker is full when it takes a whole core.
So are several when the busiest of them does, which is the first as the kernel deals connections out unevenly:

    times = (CPU per request of one worker / CPU per request of several) / busiest worker's part of their CPU

Both gateways are measured in turns, with so many connections for each worker, and the median counts.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from perf.lab import Lab, Refused, Server
from perf.measure import sample, warm_up
from perf.peers import start_upstream
from perf.report import SHORT_NOTE, described_machine, elapsed, parser, progress, run, table, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

CONNECTIONS: Final = 32
"""For each worker."""
WANTED: Final = 0.85
"""Of the workers' number: two are to carry 1.7 times what one does."""
START_TIMEOUT_S: Final = 30.0


@dataclass
class Found:
    """What was measured of one gateway, round by round."""

    workers: int
    server: Server
    cpu_us: list[float] = field(default_factory=list)
    busiest: list[float] = field(default_factory=list)
    """The busiest worker's part of the CPU of all."""
    redis_us: list[float] = field(default_factory=list)

    @property
    def capacity(self) -> float:
        """Requests per second when the busiest worker takes a whole core."""
        return 1e6 / statistics.median(self.cpu_us) / statistics.median(self.busiest)

    def row(self) -> list[str]:
        """Lay it out for the table."""
        medians = [statistics.median(values) for values in (self.cpu_us, self.busiest, self.redis_us)]
        spread = f"{min(self.cpu_us):.1f} to {max(self.cpu_us):.1f}"
        return [str(self.workers), f"{medians[0]:.1f} ({spread})", f"{medians[1]:.0%}", f"{medians[2]:.1f}"]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report.

    Raises:
        Refused: Something did not answer as it should.
    """
    options = parser(__doc__ or "", seconds=3, rounds=5)
    options.add_argument("--workers", type=int, default=2, help="how many to compare with one")
    chosen = options.parse_args(argv)
    if chosen.short:
        chosen.seconds, chosen.rounds = 0.3, 1
    began = time.monotonic()
    with Lab() as lab:
        upstream, redis = start_upstream(lab), lab.redis()
        if redis is None:
            raise Refused("redis-server is not installed, and several workers need it")
        found = [
            Found(count, lab.gateway(upstream, redis, GATEWAY_WORKERS=str(count), STORE_TIMEOUT="5s"))
            for count in (1, chosen.workers)
        ]
        for one in found:
            _await_workers(one)
            warm_up(one.server, CONNECTIONS * one.workers)
        for number in range(chosen.rounds):
            for one in found:
                _measure(one, [upstream, redis], chosen.seconds)
                progress(f"round {number + 1}, {one.workers} workers: {one.cpu_us[-1]:.1f} us")
    print(described_machine() + "\n")
    print(table(["workers", "CPU per request, µs", "busiest worker", "CPU of Redis, µs"], [one.row() for one in found]))
    times = found[1].capacity / found[0].capacity
    print(
        f"{chosen.workers} workers carry {times:.2f} times the requests of one (wanted: {WANTED * chosen.workers:.2f})"
    )
    seen = [{"workers": one.workers, "cpu_us": one.cpu_us, "busiest": one.busiest} for one in found]
    if chosen.short:
        print(f"Note: {SHORT_NOTE}")
    written = write_json(chosen.out, "scaling.json", {"short": chosen.short, "times": times, "seen": seen})
    print(f"Written: {written} ({elapsed(began)})")


def _await_workers(one: Found) -> None:
    """Wait until all workers serve; the first client is served when one does."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    expected = 1 if one.workers == 1 else one.workers + 1
    while len(one.server.pids) != expected:
        if time.monotonic() > deadline_s:
            raise Refused(f"{one.server.name}: not all of {one.workers} workers have started")
        time.sleep(0.05)
    time.sleep(1.0)  # from the start of its process to its first client


def _measure(one: Found, chain: Sequence[Server], seconds: float) -> None:
    before = one.server.cpu_s_of_each()
    measured = sample(one.server, chain, connections=CONNECTIONS * one.workers, seconds=seconds)
    used = [new - old for new, old in zip(one.server.cpu_s_of_each(), before, strict=True)]
    one.cpu_us.append(measured.cpu_us)
    one.busiest.append(max(used) / sum(used))
    redis_share = measured.shares[chain[-1].name]
    one.redis_us.append(redis_share * measured.load.seconds / measured.load.requests * 1e6)


if __name__ == "__main__":
    sys.exit(run(main))
