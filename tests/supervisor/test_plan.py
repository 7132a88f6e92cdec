"""What a supervisor is started with, and what it starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.supervisor.plan import Plan, make_shared_directory, remove_shared_directory, signal_pipe, spawn_worker


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


INTERRUPTED = """
import os, signal
os.kill(os.getpid(), signal.SIGINT)
os.write(int(os.environ["GATEWAY_WORKER"].split(":")[2]), b"2")
"""


def test_ctrl_c_is_nothing_to_a_worker_that_has_just_been_started() -> None:
    lifeline, signals = os.pipe(), signal_pipe()
    plan = Plan([sys.executable, "-ISc", INTERRUPTED], sockets=[], lifeline=lifeline, signals=signals, shared="")
    pid, ready = spawn_worker(plan, 0, {})
    assert (os.read(ready, 9), os.waitpid(pid, 0)) == (b"2", (pid, 0))
    for descriptor in (ready, *lifeline, *signals):
        os.close(descriptor)


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
