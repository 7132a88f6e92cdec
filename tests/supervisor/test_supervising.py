"""The gateway's side: what a worker knows of its sockets, and a successor that does not come to serving."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import TYPE_CHECKING, cast

import pytest

from gateway import Config, workers
from gateway.supervising import SHARED_DIR, Place, Successor
from gateway.supervisor.plan import Plan
from tests.kit.upstream import soon

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gateway import Gateway


@pytest.mark.parametrize(
    ("workers", "exclusive", "sole"),
    [(2, True, [0]), (1, True, [0, 1, 2]), (2, False, []), (3, True, [])],
    ids=["one for each, and one for all", "more than workers", "somebody else's too", "fewer than workers"],
)
def test_a_worker_that_stops_with_all_others_knows_which_of_its_sockets_are_its_alone(
    tmp_path: Path, *, workers: int, exclusive: bool, sole: list[int]
) -> None:
    first, file = socket.create_server(("127.0.0.1", 0), reuse_port=True), socket.socket(socket.AF_UNIX)
    file.bind(str(tmp_path / "gateway.sock"))
    with first, file, socket.create_server(first.getsockname(), reuse_port=True) as second:
        sockets = [first, second, file]
        given = [os.dup(sock.fileno()) for sock in sockets]
        none = (-1, -1)
        plan = Plan(["x"], sockets=given, lifeline=none, signals=none, shared=str(tmp_path), exclusive=exclusive)
        place = Place(0, sockets, *none)
        place.sockets(workers)
        assert not place.sole_sockets({SHARED_DIR: str(tmp_path)})
        plan.stop_listening()
        assert list(place.sole_sockets({SHARED_DIR: str(tmp_path)})) == [sockets[at] for at in sole]
        for descriptor in given:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)


def test_a_successor_that_cannot_be_started_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    settings = Config(target_api_url="http://localhost").settings
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - only compared
    with pytest.raises(FileNotFoundError):
        Successor([os.dup(0)], {"TMPDIR": str(tmp_path)}, settings, exclusive=True)
    assert (os.listdir("/proc/self/fd"), os.listdir(tmp_path)) == (before, [])  # noqa: PTH208


class Stopping:
    """A gateway that has nothing left to do as soon as its sockets are its own."""

    def __init__(self) -> None:
        self.owned = asyncio.Event()

    def own_sockets(self, sockets: Sequence[socket.socket]) -> None:
        assert sockets
        self.owned.set()

    async def drain(self, *, notice_s: float, handed_over: bool) -> bool:
        del notice_s, handed_over
        return await self.owned.wait()


async def test_a_worker_that_is_told_to_stop_before_its_supervisor_still_hears_that_all_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "NOTICE_S", 0.01)
    none, gateway = (-1, -1), Stopping()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        place = Place(0, [sock], *none)
        place.sockets(1)
        settings = Config(target_api_url="http://127.0.0.1:9").settings
        environ = {SHARED_DIR: str(tmp_path)}
        life = workers._Life(cast("Gateway", gateway), settings, place, environ, is_activated=False)
        draining = asyncio.create_task(life.drain())
        await asyncio.sleep(0)
        Plan(["x"], sockets=[], lifeline=none, signals=none, shared=str(tmp_path), exclusive=True).stop_listening()
        await soon(draining)


async def test_a_successor_that_ends_early_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = f"import os, sys; open(os.environ['{SHARED_DIR}'] + '/worker-0.lock', 'x'); sys.exit(3)"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-ISc", begun])
    settings = Config(target_api_url="http://localhost").settings
    successor = Successor([], {"TMPDIR": str(tmp_path)}, settings, exclusive=True)
    with pytest.raises(OSError, match=r"ended before it served \(exit status 3\)"):
        await soon(successor.serves())
    assert not os.listdir(tmp_path)  # noqa: PTH208 - only counted
