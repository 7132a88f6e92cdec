"""When a change of files is told of: once, when it stands still, whatever kind of change it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from gateway.proxy.clock import TICK_S, Clock
from gateway.stamps import stamp
from gateway.watching import POLL_S, FileWatch
from tests.kit.script import ScriptLoop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.stamps import Stamp


def known(*files: Path) -> dict[Path, Stamp | None]:
    return {file: stamp(file) for file in files}


class Watching:
    def __init__(self, folder: Path) -> None:
        self.loop = ScriptLoop()
        self.clock = Clock(self.loop)
        self.file = folder / "file"
        self.file.write_text("one", encoding="ascii")
        self.told = 0
        self.watch = FileWatch(known(self.file, folder / "missing"), self.clock, self._tell)
        self.clock.watched.add(self.watch)
        self.clock.start()

    def _tell(self) -> None:
        self.told += 1

    def after(self, looks: int) -> int:
        """How often it was told of a change by then."""
        self.loop.pass_time(looks * (POLL_S + TICK_S))
        return self.told


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Watching]:
    found = Watching(tmp_path)
    yield found
    found.clock.stop()
    found.loop.close()


def test_nothing_changes(watching: Watching) -> None:
    assert watching.after(5) == 0


def test_a_change_is_told_of_once(watching: Watching) -> None:
    watching.after(2)
    watching.file.write_text("other", encoding="ascii")
    assert watching.after(5) == 1


def test_a_change_that_goes_on_is_waited_for(watching: Watching) -> None:
    watching.after(2)
    for size in range(4, 8):
        watching.file.write_text("x" * size, encoding="ascii")
        assert watching.after(1) == 0
    assert watching.after(3) == 1


def test_a_file_that_is_replaced_goes_and_comes(watching: Watching, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("two", encoding="ascii")
    before = watching.file.stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))  # as old and as long, but another file
    other.replace(watching.file)
    assert watching.after(3) == 1
    watching.file.unlink()
    assert watching.after(3) == 2
    (tmp_path / "missing").touch()
    assert watching.after(3) == 3


def test_what_is_watched_anew_is_known_as_it_is(watching: Watching, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("two", encoding="ascii")
    watching.watch.watch(known(other))
    assert watching.after(3) == 0
    watching.file.write_text("nobody looks any more", encoding="ascii")
    assert watching.after(3) == 0


def test_what_changes_while_it_is_read_is_told_of_as_well(watching: Watching) -> None:
    def read_and_watch_on() -> None:
        watching.told += 1
        before = known(watching.file)
        if watching.told == 1:
            watching.file.write_text("in the meantime", encoding="ascii")
        watching.watch.watch(before)

    watching.watch._on_change = read_and_watch_on
    watching.file.write_text("other", encoding="ascii")
    assert watching.after(8) == 2


def test_what_changed_before_the_watch_began_is_told_of(tmp_path: Path) -> None:
    file, told = tmp_path / "file", []
    file.write_text("one", encoding="ascii")
    before = known(file)
    file.write_text("other", encoding="ascii")
    loop = ScriptLoop()
    clock = Clock(loop)
    clock.watched.add(FileWatch(before, clock, lambda: told.append(file)))
    clock.start()
    loop.pass_time(3 * (POLL_S + TICK_S))
    clock.stop()
    loop.close()
    assert told == [file]


def test_what_was_looked_at_meanwhile_is_known(watching: Watching) -> None:
    watching.after(2)
    watching.file.write_text("other", encoding="ascii")
    watching.watch.look()
    assert watching.after(3) == 0
    watching.file.write_text("and another", encoding="ascii")
    assert watching.after(3) == 1
