"""How many CPUs may be used, from the files in which the kernel tells of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from gateway.cpus import usable_cpus

if TYPE_CHECKING:
    from pathlib import Path

V2 = "0::/pods/one\n"
V1 = "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n"


def machine(root: Path, groups: str, **files: str) -> Path:
    """Write what `/proc/self/cgroup` says, and files below /sys/fs/cgroup; `__` is a slash in their names."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups, encoding="ascii")
    for name, content in files.items():
        file = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_max", ".max").replace("cfs", "cpu.cfs")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n", encoding="ascii")
    return root


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("150000 100000", 2),  # a part of a CPU is for one more process
        ("20000 100000", 1),
        ("50000 50000", 1),
        ("1600000 100000", 8),
        ("", 8),
        ("nonsense", 8),
        ("100000 0", 8),
    ],
)
def test_a_quota_of_version_2(tmp_path: Path, content: str, count: int) -> None:
    assert usable_cpus(8, machine(tmp_path, V2, pods__one__cpu_max=content)) == count


@pytest.mark.parametrize(
    ("quota", "count"), [("-1", 8), ("300000", 3), ("250000", 3), ("1000", 1), ("0", 8), ("much", 8)]
)
def test_a_quota_of_version_1(tmp_path: Path, quota: str, count: int) -> None:
    files = {"cpu,cpuacct__docker__x__cfs_quota_us": quota, "cpu,cpuacct__docker__x__cfs_period_us": "100000"}
    assert usable_cpus(8, machine(tmp_path, V1, **files)) == count


def test_the_least_of_the_groups_that_it_is_in_counts(tmp_path: Path) -> None:
    files = {"pods__one__cpu_max": "max 100000", "pods__cpu_max": "200000 100000", "cpu_max": "600000 100000"}
    assert usable_cpus(8, machine(tmp_path, V2, **files)) == 2


def test_in_a_container_the_group_may_be_mounted_as_the_root_whatever_its_path(tmp_path: Path) -> None:
    (tmp_path / "2").mkdir()
    (tmp_path / "1").mkdir()
    assert usable_cpus(8, machine(tmp_path / "2", V2, cpu_max="300000 100000")) == 3
    files = {"cpu__cfs_quota_us": "300000", "cpu__cfs_period_us": "100000"}
    assert usable_cpus(8, machine(tmp_path / "1", V1, **files)) == 3


def test_the_affinity_counts_without_control_groups(tmp_path: Path) -> None:
    assert usable_cpus(3, tmp_path) == 3
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)
