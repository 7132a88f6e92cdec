"""How many instructions each part of the gateway's work takes: `python -m perf.counts [CASE ...]`, with valgrind.

A count is that of a round less that of its no-op twin, per operation: the median of some rounds, whose inputs differ.
Instructions do not depend on what else the machine does, so small regressions show where times would not: keep one
run's JSON (`-o`), and compare the next with it (`--compare`). The kernel's work and waiting are not in them.

Two runs of the same files differ by less than 0.2 % (most cases: by nothing). A change of other files, which puts
objects elsewhere in memory, moved counts by up to 0.8 %; so `--compare` takes 2 % for a change.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if not __package__:  # run as a file: `perf` and `gateway` are in the directory above
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from perf.cases import NAME_WIDTH, Case, chosen
from perf.one import COUNTED

if TYPE_CHECKING:
    from collections.abc import Sequence

SHORT: Final = "limit-1"
"""A case that takes least under valgrind."""
NOT_COUNTED: Final = "valgrind: not found; Debian's package valgrind has it"
_SUMMARY: Final = re.compile(r"^summary: (\d+)$", re.MULTILINE)
_ROOT: Final = Path(__file__).resolve().parent.parent


class CountError(Exception):
    """A case could not be counted."""


@dataclass(frozen=True, slots=True)
class Count:
    """What was counted of a case.

    Args:
        instructions: Per operation, the median of the rounds.
        spread: Between the least and the most round, as a share of `instructions`.
        twin: Instructions of the no-op twin, per operation; they are not in `instructions`.
    """

    instructions: float
    spread: float
    twin: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print a table, and compare.

    Args:
        arguments: The command line's; None: this process's.

    Returns:
        0; 1 when valgrind is missing, a case could not be counted in time, or one costs more than before.
    """
    options = _parser().parse_args(arguments)
    try:
        cases = chosen([SHORT] if options.short else options.cases)
        before = _read(options.compare) if options.compare else None
    except ValueError as error:
        print(f"counts: {error}", file=sys.stderr)
        return 2
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        print(f"counts: {NOT_COUNTED}", file=sys.stderr)
        return 1
    rounds = 1 if options.short else options.rounds
    counts, failures = _count_all(valgrind, cases, rounds, options)
    print("\n".join(table(cases, counts)))
    for failure in failures:
        print(f"counts: {failure}", file=sys.stderr)
    if options.output:
        options.output.write_text(json.dumps(_report(valgrind, counts), indent=2) + "\n", encoding="utf-8")
    worse = False
    if before is not None:
        lines, worse = compare(before, counts, options.threshold / 100)
        print("\n".join(["", *_setting_changes(before, valgrind), *lines]))
    return 1 if failures or worse else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Counts the instructions of each part of the gateway's work.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names, or how names begin; all cases without any")
    parser.add_argument("--short", action="store_true", help=f"one round of one case, {SHORT}")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds of each case (default: 3)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="cases at a time")
    parser.add_argument("--within", type=float, default=900, metavar="SECONDS", help="for all cases (default: 900)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the counts as JSON")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="print ratios to an earlier run's counts")
    parser.add_argument(
        "--threshold", type=float, default=2, metavar="PERCENT", help="growth that fails --compare (default: 2)"
    )
    parser.add_argument("--profiles", type=Path, metavar="DIR", help="keep the profiles, for callgrind_annotate")
    return parser


# --- counting --------------------------------------------------------------------------------------------------------


def _count_all(
    valgrind: str, cases: Sequence[Case], rounds: int, options: argparse.Namespace
) -> tuple[dict[str, Count], list[str]]:
    ends_s = time.monotonic() + options.within
    counts: dict[str, Count] = {}
    failures: list[str] = []

    def count(case: Case) -> None:
        try:
            counts[case.name] = _count(valgrind, case, rounds, ends_s - time.monotonic(), options.profiles)
        except CountError as error:
            failures.append(f"{case.name}: {error}")
        if sys.stderr.isatty():
            print(f"{len(counts) + len(failures)} of {len(cases)}: {case.name}", file=sys.stderr)

    with ThreadPoolExecutor(max(options.jobs, 1)) as pool:
        for _ in pool.map(count, cases):
            pass
    return counts, failures


def _count(valgrind: str, case: Case, rounds: int, within_s: float, keep: Path | None) -> Count:
    if within_s <= 0:
        raise CountError("not counted: the time is up; --within sets it")
    with tempfile.TemporaryDirectory(prefix="counts-") as directory:
        place = Path(directory) if keep is None else keep
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob(f"{case.name}.*"):
            old.unlink()
        command = [
            valgrind,
            "--tool=callgrind",
            f"--toggle-collect={COUNTED}",
            f"--dump-after={COUNTED}",
            f"--callgrind-out-file={place / case.name}",
            *(sys.executable, "-m", "perf.one", case.name, str(rounds)),
        ]
        # The order of sets and dicts, and with it the number of comparisons, is the hash seed's.
        environ = {**os.environ, "PYTHONHASHSEED": "0", "LC_ALL": "C", "TZ": "UTC"}
        try:
            process = subprocess.run(
                command, cwd=_ROOT, env=environ, timeout=within_s, capture_output=True, text=True, check=False
            )
        except subprocess.TimeoutExpired:
            raise CountError("not counted: it was not done in time; --within sets it") from None
        if process.returncode:
            raise CountError(f"perf.one failed:\n{process.stderr[-2000:]}")
        return _reduce(case, [_dumped(place / f"{case.name}.{part}") for part in range(1, 2 * rounds + 1)])


def _dumped(file: Path) -> int:
    """Return what callgrind counted between two dumps."""
    found = _SUMMARY.search(file.read_text(encoding="utf-8", errors="replace")) if file.exists() else None
    if found is None:
        raise CountError(f"callgrind did not see {COUNTED}: is {sys.executable} a stripped Python, or a wrapper?")
    return int(found[1])


def _reduce(case: Case, dumped: Sequence[int]) -> Count:
    """Make a count of what callgrind dumped: twin and run of each round in turn."""
    twins, runs = dumped[::2], dumped[1::2]
    net = [(run - twin) / case.operations for twin, run in zip(twins, runs, strict=True)]
    if min(net) <= 0:
        raise CountError("its no-op twin takes as much as it does: nothing was measured")
    middle = statistics.median(net)
    return Count(middle, (max(net) - min(net)) / middle, statistics.median(twins) / case.operations)


# --- reporting -------------------------------------------------------------------------------------------------------


def table(cases: Sequence[Case], counts: dict[str, Count]) -> list[str]:
    """Lay out counts; `±` is the spread between rounds."""
    lines = [f"{'case':<{NAME_WIDTH}} {'instructions':>14} {'±':>7} {'(twin)':>9}  what"]
    for case in cases:
        if (count := counts.get(case.name)) is not None:
            numbers = f"{count.instructions:>14,.0f} {count.spread:>7.2%} {count.twin:>9,.0f}"
            lines.append(f"{case.name:<{NAME_WIDTH}} {numbers}  {case.what}")
    return lines


def compare(before: dict[str, Any], counts: dict[str, Count], threshold: float) -> tuple[list[str], bool]:
    """Set counts against those of an earlier run.

    Args:
        before: The earlier run's JSON.
        counts: This run's.
        threshold: The growth, as a share, beyond which a case counts as worse.

    Returns:
        A table's lines, and whether any case is worse.
    """
    lines, worse = [f"{'case':<{NAME_WIDTH}} {'before':>14} {'now':>14} {'ratio':>7}"], False
    for name, count in counts.items():
        old = before["cases"].get(name)
        if old is None:
            lines.append(f"{name:<{NAME_WIDTH}} {'-':>14} {count.instructions:>14,.0f} {'new':>7}")
            continue
        ratio = count.instructions / old["instructions"]
        is_worse = ratio > 1 + threshold
        worse = worse or is_worse
        remark = f"  worse by more than {threshold:.1%}" if is_worse else ""
        lines.append(
            f"{name:<{NAME_WIDTH}} {old['instructions']:>14,.0f} {count.instructions:>14,.0f} {ratio:>7.3f}{remark}"
        )
    return lines, worse


def _setting(valgrind: str) -> dict[str, str]:
    version = subprocess.run([valgrind, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "python": f"{platform.python_version()} ({platform.python_compiler()})",
        "valgrind": version,
        "machine": platform.machine(),
        "system": platform.platform(),
    }


def _setting_changes(before: dict[str, Any], valgrind: str) -> list[str]:
    old = before.get("setting", {})
    return [
        f"note: {name} was {old.get(name)}, is {now}: counts of the two cannot be compared"
        for name, now in _setting(valgrind).items()
        if name != "system" and old.get(name) != now
    ]


def _report(valgrind: str, counts: dict[str, Count]) -> dict[str, Any]:
    cases = {
        name: {
            "instructions": round(count.instructions, 1),
            "spread": round(count.spread, 5),
            "twin": round(count.twin, 1),
        }
        for name, count in counts.items()
    }
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"made": made, "setting": _setting(valgrind), "cases": cases}


def _read(file: Path) -> dict[str, Any]:
    """Read an earlier run's JSON.

    Raises:
        ValueError: It cannot be read, or is something else.
    """
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        numbers = [case["instructions"] for case in report["cases"].values()]
        if not all(isinstance(number, int | float) and number > 0 for number in numbers):
            raise TypeError
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{file} is not what `counts -o` writes") from None
    return dict(report)


if __name__ == "__main__":
    sys.exit(main())
