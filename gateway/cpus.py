"""How many CPUs this process may use: its affinity, and what its control groups leave it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_V1_PLACES: Final = ("cpu", "cpu,cpuacct", "cpuacct,cpu")
"""Where the controller is mounted, below /sys/fs/cgroup, by distribution."""


def usable_cpus(affinity: int | None = None, root: Path = Path("/")) -> int:
    """Count them, at least 1; a part of one counts as one, for a limit of 1.5 cannot be used up by one process.

    Args:
        affinity: How many CPUs the process may run on; None: ask the kernel.
        root: Where `/proc` and `/sys` are.

    Source: cgroups(7); cpu.max in the kernel's cgroup-v2.rst, cpu.cfs_quota_us in sched-bwc.rst.
    """
    if affinity is None:
        # There is no sched_getaffinity on macOS.
        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [-(-quota // period) for quota, period in _quotas(root) if quota > 0 and period > 0]
    return max(1, min([affinity, *quotas]))


def _quotas(root: Path) -> Iterator[tuple[int, int]]:
    """List the limits of our groups and of those that they are in, as quota and period."""
    mounted = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for directory in _upwards(mounted, path):
                quota, _, period = _read(directory / "cpu.max").partition(" ")
                yield _number(quota), _number(period)
        elif "cpu" in controllers.split(","):
            for place in _V1_PLACES:
                for directory in _upwards(mounted / place, path):
                    quota, period = (_read(directory / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
                    yield _number(quota), _number(period)


def _upwards(mounted: Path, path: str) -> Iterator[Path]:
    """List a group's directory and those above it. In a container, the path may be the host's, and not be there."""
    inside = PurePosixPath(path.lstrip("/"))
    yield from (mounted / one for one in (inside, *inside.parents))


def _read(file: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return file.read_text(encoding="ascii")
    return ""


def _number(text: str) -> int:
    """Read a number; 0 for `max`, -1 (which both mean that there is no limit) and what is not there."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else 0
