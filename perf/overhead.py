"""What does the gateway cost on this machine? One command: `python perf/overhead.py`.

It starts a mock upstream, Redis if there is one, and the gateway, and sends requests to the upstream directly and
through the gateway, in turns, on 1, 32 and 128 connections. "Added" is the second minus the first, in the same round;
each figure is the median of the rounds. It needs only the package and its `perf` extra (without that there is no
picture); nginx as the upstream and wrk as the load generator are used where they are there.

There is no report when an answer was not 2xx, when the gateway had idle time on 32 or 128 connections (its requests per
second would be somebody else's), or when requests per second or CPU of the odd rounds and the even rounds differ by
more than 15 %. Where only an added percentile differs so much, it alone is left out, as unsteady. Before either, up to
half as many rounds again are made.
"""

from __future__ import annotations

import importlib
import math
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # `python perf/overhead.py` would put perf/ there

from perf.lab import Lab, Refused, Server, which
from perf.load import PERCENTILES
from perf.measure import AGREEMENT, Sample, disagreement, in_turns, not_the_bottleneck, sample, warm_up
from perf.peers import start_upstream
from perf.report import SHORT_NOTE, described_machine, elapsed, parser, progress, run, table, write_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

CONNECTIONS: Final = (1, 32, 128)
POINTS: Final = (50, 90, 99)
"""The percentiles of the table."""
UNSTEADY: Final = "unsteady"
DIRECT, PROXIED = "direct", "proxied"

Samples = dict[str, list[Sample]]
"""By cell: `direct 32`."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report.

    Raises:
        Refused: There is nothing that can be reported.
    """
    options = parser(__doc__, seconds=3, rounds=3)
    options.add_argument(
        "--store", choices=("redis", "embedded"), help="where limits are counted: Redis if there is one"
    )
    chosen = options.parse_args(argv)
    if chosen.short:
        chosen.seconds, chosen.rounds = 0.3, 1
    began = time.monotonic()
    samples: Samples = defaultdict(list)
    with Lab() as lab:
        upstream = start_upstream(lab)
        redis = None if chosen.store == "embedded" else lab.redis()
        if redis is None and chosen.store == "redis":
            raise Refused("redis-server is not installed")
        gateway = lab.gateway(upstream, redis)
        rest_bytes = gateway.rss_bytes()
        chain = [upstream] if redis is None else [upstream, redis]
        servers = {DIRECT: upstream, PROXIED: gateway}
        for server in servers.values():
            warm_up(server)

        def measure(cell: str, number: int) -> None:
            way, connections = cell.split()
            one = sample(servers[way], chain, connections=int(connections), seconds=chosen.seconds)
            samples[cell].append(one)
            progress(
                f"round {number + 1}: {way:<7} {connections:>3} connections  {one.load.rate:>9,.0f} req/s  "
                f"p50 {one.p(50):>6,.0f} us  p99 {one.p(99):>6,.0f} us"
            )

        cells = [f"{way} {connections}" for connections in CONNECTIONS for way in (DIRECT, PROXIED)]
        in_turns(
            cells,
            measure,
            lambda: [*find_doubts(samples, gateway), *find_unsteady(samples)],
            rounds=chosen.rounds,
            short=chosen.short,
        )
    doubts = find_doubts(samples, gateway)
    if doubts and not chosen.short:
        more = f" ({len(doubts) - 1} more like it)" if len(doubts) > 1 else ""
        raise Refused(f"after {len(samples[cells[0]])} rounds, {doubts[0]}{more}")
    store = "embedded" if redis is None else "Redis"
    report(samples, chosen, f"Store: {store}. Upstream: {upstream.name}.", rest_bytes, doubts)
    print(f"({elapsed(began)})")


def report(samples: Samples, chosen: argparse.Namespace, setting: str, rest_bytes: int, doubts: Sequence[str]) -> None:
    """Print the table and write the files.

    Args:
        samples: What was measured.
        chosen: The options.
        setting: Where limits were counted, and what answered: a sentence each.
        rest_bytes: The gateway's memory before the first measurement.
        doubts: Why the figures cannot be believed: only a short run is reported with any.
    """
    cells = list(samples)
    generator = samples[cells[0]][0].load.generator
    print(described_machine())
    print(f"{setting} Load: {generator}, {len(samples[cells[0]])} x {chosen.seconds:g} s per cell.\n")
    rows = [summarize(samples, connections) for connections in CONNECTIONS]
    print(table([column for column, _ in rows[0]], [[text for _, text in row] for row in rows]))
    last_bytes = samples[cells[-1]][-1].rss_bytes
    print(
        "\nOn more than one connection the load is all that the gateway takes: what is added there is mostly the queue."
    )
    print(f"Memory (RSS): {rest_bytes / 1e6:.1f} MB before, {last_bytes / 1e6:.1f} MB after.")
    if generator != "wrk":
        print(
            "The generator's own share is that of one core; at 90 % and more, requests per second are the generator's."
        )
    notes = [*doubts, *find_unsteady(samples), *([SHORT_NOTE] if chosen.short else [])]
    if lacking := missing(chosen.store):
        notes.append(f"Not installed, so done without: {', '.join(lacking)}.")
    for line in notes:
        print(f"Note: {line}")
    figures = {
        "setting": setting,
        "short": chosen.short,
        "notes": notes,
        "rss_bytes": {"before": rest_bytes, "after": last_bytes},
        "cells": {cell: describe(samples[cell]) for cell in cells},
    }
    written = [write_json(chosen.out, "overhead.json", figures)]
    picture = draw(samples, chosen.out / "overhead.png")
    if picture is None:
        print("No picture: matplotlib is not installed (pip install '.[perf]').")
    else:
        written.append(picture)
    print(f"Written: {', '.join(map(str, written))}", end=" ")


def find_doubts(samples: Samples, gateway: Server) -> list[str]:
    """Say why the figures so far cannot be believed, a line each."""
    found = []
    for cell, measured in samples.items():
        way, connections = cell.split()
        label = f"{way} on {connections} connections"
        apart = disagreement([one.load.rate for one in measured])
        if apart > AGREEMENT:
            found.append(f"{label}: requests per second differ by {apart:.0%} from round to round")
        if way == PROXIED:
            apart = disagreement([one.cpu_us for one in measured])
            if apart > AGREEMENT:
                found.append(f"{label}: CPU per request differs by {apart:.0%} from round to round")
            if int(connections) > 1 and (reason := not_the_bottleneck(gateway.name, measured)):
                found.append(f"{label}: {reason}")
    return found


def find_unsteady(samples: Samples) -> list[str]:
    """Name the added percentiles that differ too much from round to round to be shown, a line each."""
    return [
        f"added p{point} on {connections} connections: differs by {apart:.0%} from round to round"
        for connections in CONNECTIONS
        for point in POINTS
        if (apart := disagreement(added(samples, connections, point))) > AGREEMENT
    ]


def missing(store: str | None) -> list[str]:
    """Name the programs that would have been used if they were there.

    Args:
        store: The one that was asked for; None: Redis if there is one.
    """
    wanted = ("nginx", "wrk") if store == "embedded" else ("nginx", "wrk", "redis-server")
    return [program for program in wanted if which(program) is None]


def added(samples: Samples, connections: int, percentile: float) -> list[float]:
    """Round by round, what the gateway adds to a percentile, in microseconds."""
    pairs = zip(samples[f"{PROXIED} {connections}"], samples[f"{DIRECT} {connections}"], strict=True)
    return [proxied.p(percentile) - direct.p(percentile) for proxied, direct in pairs]


def shown(samples: Samples, connections: int, percentile: float, form: str = "{:,.0f}") -> str:
    """Write what the gateway adds to a percentile, the median over the rounds, or that it is unsteady.

    Args:
        samples: What was measured.
        connections: On how many.
        percentile: Which.
        form: How a number is written.
    """
    values = added(samples, connections, percentile)
    return UNSTEADY if disagreement(values) > AGREEMENT else form.format(statistics.median(values))


def summarize(samples: Samples, connections: int) -> list[tuple[str, str]]:
    """One row of the table, as column and text."""
    proxied, direct = samples[f"{PROXIED} {connections}"], samples[f"{DIRECT} {connections}"]
    row = [("connections", str(connections))]
    row += [(f"added p{point}, us", shown(samples, connections, point)) for point in POINTS]
    row += [
        ("req/s", f"{statistics.median(one.load.rate for one in proxied):,.0f}"),
        ("direct req/s", f"{statistics.median(one.load.rate for one in direct):,.0f}"),
        ("CPU us/request", f"{statistics.median(one.cpu_us for one in proxied):.1f}"),
        ("RSS, MB", f"{statistics.median(one.rss_bytes for one in proxied) / 1e6:.1f}"),
        ("generator's share", f"{statistics.median(one.load.generator_share for one in proxied):.0%}"),
    ]
    return row


def describe(measured: Sequence[Sample]) -> dict[str, object]:
    """One cell for the JSON file: the median, and each round."""
    return {
        "req_per_s": statistics.median(one.load.rate for one in measured),
        "cpu_us_per_request": statistics.median(one.cpu_us for one in measured),
        "latencies_us": {f"{point:g}": latency(measured, point) for point in PERCENTILES},
        "shares_of_a_core": {
            name: statistics.median(one.shares[name] for one in measured) for name in measured[0].shares
        },
        "rounds": [
            {
                "req_per_s": one.load.rate,
                "requests": one.load.requests,
                "cpu_us_per_request": one.cpu_us,
                "p50_us": one.p(50),
                "p99_us": one.p(99),
                "wanted_share": one.wanted,
            }
            for one in measured
        ],
    }


def latency(measured: Sequence[Sample], percentile: float) -> float:
    """Median over the rounds of a percentile, in microseconds."""
    return statistics.median(one.p(percentile) for one in measured)


def draw(samples: Samples, path: Path) -> Path | None:
    """Draw both latency distributions, from the fastest answer to the slowest in a thousand.

    Returns:
        The file; None without matplotlib.
    """
    try:
        # Not an import statement: matplotlib is in the `perf` extra only, for people and for type checkers alike.
        matplotlib: Any = importlib.import_module("matplotlib")
        matplotlib.use("Agg")
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        return None
    figure, axes = pyplot.subplots(1, len(CONNECTIONS), figsize=(13, 4.6), sharey=True, layout="constrained")
    # The scale that tails are read on: as much room from 90 to 99 % as from 99 to 99.9 %.
    places = [-math.log10(1 - point / 100) for point in PERCENTILES]
    ticks = (0, 50, 75, 90, 99, 99.9)
    for axis, connections in zip(axes, CONNECTIONS, strict=True):
        for way, colour, mark in ((DIRECT, "#7a7a7a", "--"), (PROXIED, "#0b6fb8", "-")):
            values = [latency(samples[f"{way} {connections}"], point) for point in PERCENTILES]
            label = "through the gateway" if way == PROXIED else way
            axis.plot(places, values, mark, color=colour, linewidth=2, label=label)
        adds = [f"p{point} {shown(samples, connections, point, '{:+,.0f} µs')}" for point in (50, 99)]
        axis.set_title(f"{connections} connection{'s' if connections > 1 else ''}: {', '.join(adds)}", fontsize=11)
        axis.set_yscale("log")
        axis.set_xticks([-math.log10(1 - point / 100) for point in ticks], [f"{point:g}" for point in ticks])
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.set_xlabel("percentile of requests")
        axis.grid(visible=True, which="both", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("latency, µs")
    axes[0].legend(loc="upper left", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


if __name__ == "__main__":
    sys.exit(run(main))
