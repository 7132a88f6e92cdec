"""The gateway beside what a user would run instead: `python -m perf.compare`.

Peers: nginx with Lua and Redis, which does the same job; HAProxy and plain nginx, which count in their own memory and
do less. Each that is installed is measured; which are not is said. All run one worker on this machine, in front of one
mock upstream, and are measured in turns (A B C A B C ...), so that the machine's other work falls on all alike. Figures
are medians over the rounds. Compare the ratios: absolute figures belong to the machine.

`--only cpu` measures one figure again; a figure that came out of the same load comes with it. `--before DIR` measures a
second checkout of the gateway along with this one, in turns.

The added p99 is measured with requests due at random moments, half as many per second as the system took at its most,
by a generator of our own (perf/load.py): wrk has no pace, it always sends as much as is taken. Latency counts from when
a request was due.

There is no report when an answer was not 2xx. A single value is refused, and the exit code is 1, when the gateway had
idle time where its requests per second, or half of them, are claimed, when what is added is nothing, or when the odd
rounds and the even rounds differ by more than 15 %; before that, up to half as many rounds again are made.
"""

from __future__ import annotations

import functools
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # `python perf/compare.py` would put perf/ there

from perf.figures import BIG_TIMES, Bulk, Events, Field, Figure, Measurement, Paced, Saturated, Single, Start
from perf.lab import Lab, Refused, Server
from perf.measure import in_turns, wrk_for
from perf.peers import HAPROXY, NGINX_LUA, missing, peers
from perf.report import SHORT_NOTE, described_machine, elapsed, parser, progress, run, table, write_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

WITH_REDIS, EMBEDDED = "gateway, Redis", "gateway, embedded"
MEASUREMENTS: Final = (Saturated, Single, Paced, Bulk, Events, Start)


class Goal(NamedTuple):
    """What a figure has to be, and should be: of a system alone, or divided by that of another."""

    key: str
    system: str
    against: str | None
    must: float
    aim: float
    is_least: bool = False
    """Whether more is better."""


GOALS: Final = (
    Goal("cpu", WITH_REDIS, NGINX_LUA, 0.85, 0.6),
    Goal("cpu", WITH_REDIS, HAPROXY, 1.6, 1.0),
    Goal("p50", WITH_REDIS, NGINX_LUA, 1.0, 0.7),
    Goal("p99", WITH_REDIS, NGINX_LUA, 1.2, 0.8),
    Goal("rate", WITH_REDIS, None, 15_000, 25_000, is_least=True),
    Goal("rss", EMBEDDED, None, 30, 24),
    Goal("rss", WITH_REDIS, None, 42, 30),
    Goal("bulk", WITH_REDIS, HAPROXY, 1.1, 0.9),
    Goal("events", WITH_REDIS, None, 150, 60),
    Goal("start", WITH_REDIS, None, 400, 200),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report.

    Raises:
        Refused: Some figure cannot be reported; those that can have been.
    """
    chosen = read_options(argv)
    began = time.monotonic()
    with Lab() as lab:
        field = gather(lab, chosen)
        figures = []
        for measurement in choose(field, chosen):
            figures += carry_out(measurement, chosen)
    report(figures, field.systems, chosen)
    print(f"({elapsed(began)})")
    refused = find_doubts(figures, chosen)
    if refused and not chosen.short:
        raise Refused(f"{refused[0]}{f' ({len(refused) - 1} more like it)' if len(refused) > 1 else ''}")


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    options = parser(__doc__, seconds=2, rounds=3)
    keys = [key for kind in MEASUREMENTS for key in kind.keys]
    options.add_argument("--only", type=_names, metavar="FIGURE,...", help=f"these figures of {', '.join(keys)}")
    options.add_argument("--systems", type=_names, metavar="WORD,...", help="systems whose name has one of these words")
    options.add_argument("--before", type=Path, metavar="DIR", help="another checkout of the gateway")
    chosen = options.parse_args(argv)
    if unknown := set(chosen.only or ()) - set(keys):
        options.error(f"--only takes {', '.join(keys)}, not {', '.join(sorted(unknown))}")
    if chosen.before is not None and not (chosen.before / "gateway" / "__main__.py").is_file():
        options.error(f"--before: {chosen.before} is no checkout of the gateway")
    if chosen.short:
        chosen.seconds, chosen.rounds = 0.2, 1
    return chosen


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def gather(lab: Lab, chosen: argparse.Namespace) -> Field:
    """Find the systems that are to be measured, and are there."""
    redis = lab.redis()
    starters: dict[str, Callable[[Server], Server]] = {}
    checkouts = {"gateway": None, **({} if chosen.before is None else {"before": chosen.before.resolve()})}
    for label, root in checkouts.items():
        given = {"label": label} if root is None else {"label": label, "root": root}
        if redis is not None:
            starters[f"{label}, Redis"] = functools.partial(lab.gateway, redis=redis, **given)
        starters[f"{label}, embedded"] = functools.partial(lab.gateway, redis=None, **given)
    starters |= peers(lab, redis)
    if redis is None:
        progress("not measured: gateway, Redis (Debian: redis-server)")
    for name, packages in missing().items():
        progress(f"not measured: {name} (Debian: {packages})")
    if chosen.systems:
        words = [word.lower() for word in chosen.systems]
        starters = {name: start for name, start in starters.items() if any(word in name.lower() for word in words)}
    if not starters:
        raise Refused("no system is left to measure")
    return Field(lab, redis, starters)


def choose(field: Field, chosen: argparse.Namespace) -> list[Measurement]:
    """Pick the measurements that the wanted figures come out of."""
    seconds = chosen.seconds
    every: list[Measurement] = [
        Saturated(field, seconds),
        Single(field, seconds),
        Paced(field, seconds),
        Bulk(field, 1 if chosen.short else BIG_TIMES),
        Events(field, seconds),
        Start(field),
    ]
    return [one for one in every if chosen.only is None or set(chosen.only) & set(one.keys)]


def carry_out(measurement: Measurement, chosen: argparse.Namespace) -> list[Figure]:
    """Do one measurement, with progress."""
    title = ", ".join(measurement.keys)

    def measure(cell: str, number: int) -> None:
        progress(f"{title}, round {number + 1}: {cell}: {measurement.measure(cell, number)}")

    def doubts() -> list[str]:
        return find_doubts(measurement.figures(), chosen)

    in_turns(measurement.cells, measure, doubts, rounds=chosen.rounds, short=chosen.short)
    return measurement.figures()


def find_doubts(figures: Sequence[Figure], chosen: argparse.Namespace) -> list[str]:
    """Say why figures that were asked for cannot be believed, a line each."""
    return [
        f"{figure.key}: {system}: {doubt}"
        for figure in figures
        if chosen.only is None or figure.key in chosen.only
        for system, doubts in figure.doubts.items()
        for doubt in doubts
    ]


def report(figures: Sequence[Figure], systems: Sequence[str], chosen: argparse.Namespace) -> None:
    """Print the tables and write the files."""
    rows = []
    for figure in figures:
        refused = {} if chosen.short else figure.doubts
        cells = ["refused" if name in refused else f"{figure.values[name]:,.{figure.decimals}f}" for name in systems]
        rows.append([figure.label, *cells])
    rounds = max(len(values) for figure in figures for values in figure.rounds.values())
    lines = [
        table(["", *systems], rows),
        "",
        described_machine(),
        f"Medians of {rounds} x {chosen.seconds:g} s, in turns; one worker each; nginx's memory: two processes.",
        f"Load: {'wrk; p99: perf/load.py' if wrk_for(chosen.seconds) else 'perf/load.py'}.",
    ]
    markdown = "\n".join(lines)
    print(markdown)
    judged = judge(figures)
    if judged:
        print("\n" + table(["goal", "is", "must", "aim", ""], judged))
    for doubt in find_doubts(figures, chosen):
        print(f"Note: {doubt}" if chosen.short else f"Refused: {doubt}")
    if chosen.short:
        print(f"Note: {SHORT_NOTE}")
    content = {
        "short": chosen.short,
        "seconds": chosen.seconds,
        "systems": list(systems),
        "figures": [asdict(figure) for figure in figures],
        "goals": [dict(zip(("goal", "is", "must", "aim", "reached"), row, strict=True)) for row in judged],
    }
    written = write_json(chosen.out, "compare.json", content)
    (chosen.out / "compare.md").write_text(markdown + "\n", encoding="utf-8")
    print(f"Written: {written}, {chosen.out / 'compare.md'}", end=" ")


def judge(figures: Sequence[Figure]) -> list[list[str]]:
    """Hold the figures against the goals, a row each: what, its value, must, aim, and what is reached."""
    by_key = {figure.key: figure for figure in figures}
    rows = []
    for goal in GOALS:
        figure = by_key.get(goal.key)
        needed = [goal.system, *([] if goal.against is None else [goal.against])]
        if figure is None or not set(needed) <= figure.values.keys():
            continue
        value = figure.values[goal.system]
        label = f"{figure.label}: {goal.system}"
        digits, sign = figure.decimals, "≥" if goal.is_least else "≤"
        if goal.against is not None:
            value /= figure.values[goal.against] or float("nan")
            label, digits = f"{label} / {goal.against}", 2
        bounds = [f"{sign} {bound:,.{digits}f}" for bound in (goal.must, goal.aim)]
        is_refused = bool(figure.doubts.keys() & needed)
        shown = ("refused", "") if is_refused else (f"{value:,.{digits}f}", _reached(goal, value))
        rows.append([label, shown[0], *bounds, shown[1]])
    return rows


def _reached(goal: Goal, value: float) -> str:
    for word, bound in (("aim", goal.aim), ("must", goal.must)):
        if (value >= bound) if goal.is_least else (value <= bound):
            return word
    return "missed"


if __name__ == "__main__":
    sys.exit(run(main))
