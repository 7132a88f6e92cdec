"""What a script shows: options, progress, tables, JSON, the machine it ran on."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from perf.lab import ROOT, Refused, which

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

OUT: Final = ROOT / "perf" / "out"
SHORT_NOTE: Final = "A short run shows that the measurement works. Its figures are not for quoting."

_VERSION_OF: Final = {"nginx": "-v", "haproxy": "-v", "redis-server": "-v", "wrk": "-v"}
_PACKAGES: Final = ("uvloop", "hiredis", "h11")


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The script's own words as they are, and each option's default."""


def parser(description: str, *, seconds: float, rounds: int | None) -> argparse.ArgumentParser:
    """Make a parser with the options that all scripts have.

    Args:
        description: What the script measures.
        seconds: The default of a cell's length.
        rounds: The default number of rounds; None: the script has none.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=_Help)
    made.add_argument("--seconds", type=_positive, default=seconds, help="length of one measurement")
    if rounds is not None:
        made.add_argument("--rounds", type=_count, default=rounds, help="how often each is made, in turns")
    made.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="where files are written")
    made.add_argument("--short", action="store_true", help="a quick run that shows that it works")
    return made


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def run(script: Callable[[Sequence[str] | None], None]) -> int:
    """Run a script's body.

    Returns:
        0; 1 after one line of why there is nothing to report; 130 after Ctrl-C.
    """
    try:
        script(None)
    except (Refused, OSError) as error:
        print(f"no report: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def progress(text: str) -> None:
    """Tell whoever waits, without getting into the output."""
    print(text, file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table that is also readable as it is; columns but the first are set to the right."""
    widths = [max(3, *(len(row[column]) for row in (head, *rows))) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        sized = zip(cells, widths, strict=True)
        padded = [cell.rjust(width) if at else cell.ljust(width) for at, (cell, width) in enumerate(sized)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * width if at == 0 else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    return "\n".join((line(head), "| " + " | ".join(rule) + " |", *map(line, rows)))


def write_json(directory: Path, name: str, content: Mapping[str, object]) -> Path:
    """Write figures for programs, with the machine they come from."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(json.dumps({"machine": machine(), **content}, indent=1) + "\n", encoding="utf-8")
    return path


def machine() -> dict[str, str]:
    """Describe where and with what this runs."""
    described = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": f"{len(os.sched_getaffinity(0))} x {_cpu_name()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "load": f"{os.getloadavg()[0]:.1f}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    for package in _PACKAGES:
        try:
            described[package] = version(package)
        except PackageNotFoundError:
            continue
    for program, option in _VERSION_OF.items():
        path = which(program)
        if path is not None:
            said = subprocess.run([path, option], capture_output=True, text=True, check=False)
            found = re.search(r"\d+\.\d+(?:\.\d+)?", said.stdout + said.stderr)
            described[program] = found[0] if found else "?"
    return described


def described_machine() -> str:
    """The same in two sentences."""
    known = machine()
    date, cpu, kernel, load = (known.pop(key) for key in ("date", "cpu", "kernel", "load"))
    versions = ", ".join(f"{name} {number}" for name, number in known.items())
    return f"{date}, {cpu}, {kernel}, load average {load}.\n{versions}."


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return re.sub(r"\s+", " ", line.partition(":")[2]).strip()
    return platform.machine()


def elapsed(began: float) -> str:
    """Say how long it took since a reading of `time.monotonic`."""
    return f"{time.monotonic() - began:.0f} s"
