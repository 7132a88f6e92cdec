"""How long each part of the gateway's work takes: `python -m perf.micro [CASE ...]`, with pyperf's options.

A value is the CPU time of a round less that of its no-op twin, per operation; ± is the median absolute deviation. The
garbage collector is off meanwhile; what it costs is seen in whole-process measurements. CPU time leaves out when others
ran, but not what they did to caches and cores: compare figures of one session, or count instructions instead
(counts.py).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
from functools import cache
from pathlib import Path
from time import thread_time
from typing import TYPE_CHECKING, Any, Final

if not __package__:  # run as a file: `perf` and `gateway` are in the directory above
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from perf.bench import CheckError
from perf.cases import CASES, NAME_WIDTH, Case, chosen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perf.bench import Bench

STEADY: Final = 0.15
"""The largest spread, as a share of the value, with which a value still says something."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or list or check the cases.

    Args:
        arguments: The command line's; None: this process's.

    Returns:
        0; 1 when pyperf is missing, a case does not do what it says, or a value is not steady.
    """
    parser = argparse.ArgumentParser(add_help=False)
    _add_arguments(parser)
    options, others = parser.parse_known_args(arguments)
    if options.list:
        for case in CASES:
            print(f"{case.name:<{NAME_WIDTH}} {case.what}")
        return 0
    if options.short:
        if others:
            print(f"micro: --short takes no other options: {' '.join(others)}", file=sys.stderr)
            return 2
        return _short(options.cases)
    return _measure(arguments)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names, or how names begin; all cases without any")
    parser.add_argument("--list", action="store_true", help="name the cases")
    parser.add_argument("--short", action="store_true", help="do not measure; check that each case does what it says")


def _short(names: Sequence[str]) -> int:
    for case in _chosen(names):
        try:
            bench = case.set_up()
            bench.once()
            bench.close()
        except CheckError as error:
            print(f"micro: {case.name}: {error}", file=sys.stderr)
            return 1
        print(f"{case.name:<{NAME_WIDTH}} ok: {case.operations} operations")
    return 0


def _measure(arguments: Sequence[str] | None) -> int:
    try:
        # Has no types, and is only needed here.
        pyperf: Any = importlib.import_module("pyperf")
    except ImportError:
        print("micro: pyperf is not installed: pip install 'rate-limiting-gateway[perf]'", file=sys.stderr)
        return 1
    runner = pyperf.Runner(
        processes=5,  # three minutes for all cases
        program_args=(str(Path(__file__).resolve()),),
        add_cmdline_args=lambda command, options: command.extend(options.cases),
    )
    _add_arguments(runner.argparser)
    runner.argparser.description = "Measures how long each part of the gateway's work takes."
    options = runner.parse_args(arguments)
    rows = []
    for case in _chosen(options.cases):
        result = runner.bench_time_func(case.name, time_rounds, case, inner_loops=case.operations)
        if result is not None and not options.worker:
            rows.append((case, result.median(), result.median_abs_dev()))
    if options.worker:
        return 0
    print("\n".join(table(rows)))
    return 1 if any(not is_steady(value, spread) for _, value, spread in rows) else 0


def _chosen(names: Sequence[str]) -> list[Case]:
    try:
        return chosen(names)
    except ValueError as error:
        print(f"micro: {error}", file=sys.stderr)
        sys.exit(2)


def time_rounds(rounds: int, case: Case) -> float:
    """Return the CPU seconds that `rounds` rounds of a case took, without their twins'.

    Raises:
        CheckError: The case did not do what it says.
    """
    bench = _set_up(case)
    seconds = 0.0
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        inputs = bench.fresh()
        began_s = thread_time()
        bench.twin(inputs)
        twin_ended_s = thread_time()
        bench.run(inputs)
        seconds += (thread_time() - twin_ended_s) - (twin_ended_s - began_s)
    gc.enable()
    bench.check()
    return seconds


@cache
def _set_up(case: Case) -> Bench:
    bench = case.set_up()
    bench.once()
    return bench


def is_steady(value: float, spread: float) -> bool:
    """Whether a value's spread is small enough for it to be reported."""
    return spread <= STEADY * value


def table(rows: Sequence[tuple[Case, float, float]]) -> list[str]:
    """Lay out results; a value that is not steady is left out.

    Args:
        rows: Case, median and median absolute deviation, in seconds per operation.
    """
    lines = [f"{'case':<{NAME_WIDTH}} {'median µs':>10} {'±':>8}  what"]
    for case, value_s, spread_s in rows:
        shown = f"{value_s * 1e6:.2f}" if is_steady(value_s, spread_s) else "unsteady"
        lines.append(f"{case.name:<{NAME_WIDTH}} {shown:>10} {spread_s * 1e6:>8.2f}  {case.what}")
    if any(not is_steady(value_s, spread_s) for _, value_s, spread_s in rows):
        lines.append(f"unsteady: ± is over {STEADY:.0%} of the value; measure again while nothing else runs")
    return lines


if __name__ == "__main__":
    sys.exit(main())
