"""What a supervisor is started with, and what it starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gateway.supervisor.plan import Plan, make_shared_directory, remove_shared_directory


def described(plan: Plan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in Plan.__slots__}


def test_a_plan_is_read_as_it_was_written() -> None:
    plan = Plan(
        ["/usr/bin/python3", "-m", "gateway", "--config", "a=b -- c"],
        sockets=[3, 4],
        lifeline=(5, 6),
        signals=(7, 8),
        shared="/tmp/with = and space",
        files=["1:2:/run/a=b.sock", "1:3:/run/c:d.sock"],
        exclusive=True,
        level="debug",
        wanted=2,
        serving=[11, 0],
        leaving=[9],
        stops=1,
    )
    assert described(Plan.read(plan.as_arguments())) == described(plan)
    bare = Plan(["x"], sockets=[3], lifeline=(4, 5), signals=(6, 7), shared="/tmp/x")
    assert described(Plan.read(["of-a-later=version", *bare.as_arguments()])) == described(bare)


def test_the_directory_is_where_there_is_a_place_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_shared_directory({"TMPDIR": str(tmp_path)})
    assert Path(path).parent == tmp_path
    assert Path(path).stat().st_mode & 0o777 == 0o700
    Path(path, "left-behind").touch()
    remove_shared_directory(path)
    assert not Path(path).exists()

    make = os.mkdir

    def read_only(path: str, mode: int) -> None:
        if not path.startswith("/dev/shm/"):
            raise OSError("read-only file system")
        make(path, mode)

    monkeypatch.setattr(os, "mkdir", read_only)
    path = make_shared_directory({"TMPDIR": str(tmp_path / "none")})
    assert path.startswith("/dev/shm/")
    remove_shared_directory(path)

    monkeypatch.setattr(os, "mkdir", refused)
    with pytest.raises(OSError, match="TMPDIR"):
        make_shared_directory({})


def refused(path: str, mode: int) -> None:
    raise OSError(path)
