"""When the program reads its configuration anew: at SIGHUP, and once for each change of a file, whenever that comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from gateway.config import Config, load
from gateway.proxy.clock import TICK_S, Clock
from gateway.watching import POLL_S, FileWatch
from gateway.workers import _Reloading
from tests.kit.script import ScriptLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from gateway.server import Gateway
    from gateway.stamps import Stamp


class Program:
    """The program's part in a reload, in front of a gateway that only says what it was given."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "gateway.toml"
        self.key_file = folder / "key"
        self.other_key_file = folder / "other-key"
        for file in (self.key_file, self.other_key_file):
            file.touch(mode=0o600)
            file.write_text("sk-1", encoding="ascii")
        self.write(self.key_file)
        self.loop = ScriptLoop()
        self.clock = Clock(self.loop)
        self.clock.start()
        self.given: list[Config] = []
        self.reads = 0
        self.while_read: Callable[[], None] | None = None

    def write(self, *key_files: Path, limit: str = "50/hour") -> None:
        tables = (f'[targets.t{n}]\nurl = "http://t.test"\nkey_file = "{file}"\n' for n, file in enumerate(key_files))
        text = f'target_api_url = "http://api.test"\nrate_limit = "{limit}"\n{"".join(tables)}'
        self.file.write_text(text, encoding="ascii")

    def read(self) -> Config:
        self.reads += 1
        config = load(arguments={}, environ={}, file=self.file)
        change, self.while_read = self.while_read, None
        if change is not None:
            change()
        return config

    def start(self, config: Config) -> _Reloading:
        self.given.append(config)
        reloading = _Reloading(cast("Gateway", self), config, self.read)
        reloading.begin()
        return reloading

    def after(self, looks: int = 3) -> int:
        """How often it was reloaded by then."""
        self.loop.pass_time(looks * (POLL_S + TICK_S))
        return len(self.given) - 1

    @property
    def keys(self) -> list[str]:
        return [key for target in self.given[-1].settings.targets for key in target.keys]

    # --- what the gateway has for it ---

    def reload(self, config: Config) -> list[str]:
        self.given.append(config)
        return []

    def reload_certificates(self) -> None:
        pass

    def watch_files(self, known: Mapping[Path, Stamp | None], on_change: Callable[[], None]) -> FileWatch:
        watch = FileWatch(known, self.clock, on_change)
        self.clock.watched.add(watch)
        return watch


def write(key_file: Path) -> None:
    key_file.write_text("sk-22", encoding="ascii")


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path)
    yield made
    made.clock.stop()
    made.loop.close()


@pytest.mark.parametrize("changed", ["file", "key file"])
def test_what_changed_between_reading_and_watching_is_noticed(program: Program, changed: str) -> None:
    config = program.read()
    if changed == "file":
        program.write(program.key_file, limit="600/hour")
    else:
        write(program.key_file)
    program.start(config)
    assert program.after() == 1
    found = program.given[-1].rate_limit, program.keys
    assert found == (("600/hour", ["sk-1"]) if changed == "file" else ("50/hour", ["sk-22"]))


def test_what_changes_while_it_is_read_is_noticed(program: Program) -> None:
    program.while_read = lambda: write(program.key_file)
    program.start(program.read())
    assert program.keys == ["sk-1"]
    assert program.after() == 1
    assert program.keys == ["sk-22"]


def test_a_file_that_a_reload_names_first_may_change_meanwhile(program: Program) -> None:
    reloading = program.start(program.read())
    program.write(program.key_file, program.other_key_file)
    program.while_read = lambda: write(program.other_key_file)
    reloading()
    assert program.keys == ["sk-1", "sk-1"]
    assert program.after() == 2
    assert program.keys == ["sk-1", "sk-22"]
    assert program.after() == 2


def test_what_sighup_has_read_is_not_read_again(program: Program) -> None:
    reloading = program.start(program.read())
    program.write(program.key_file, limit="600/hour")
    reloading()
    assert program.after() == 1


def test_what_is_no_good_is_said_once(program: Program, caplog: pytest.LogCaptureFixture) -> None:
    reloading = program.start(program.read())
    program.write(program.key_file, limit="many")
    reloading()
    assert program.after(5) == 0
    (record,) = caplog.records
    assert "not reloaded" in record.getMessage()
    program.write(program.key_file, limit="600/hour")
    assert program.after() == 1


def test_a_key_file_that_is_closed_to_others_as_it_was_said_is_read(
    program: Program, caplog: pytest.LogCaptureFixture
) -> None:
    program.start(program.read())
    program.key_file.chmod(0o644)
    assert program.after() == 0
    (record,) = caplog.records
    assert "chmod 600" in record.getMessage()
    program.key_file.chmod(0o600)
    assert program.after() == 1


def test_nothing_changes(program: Program) -> None:
    program.start(program.read())
    assert program.after(10) == 0
    assert program.reads == 1
