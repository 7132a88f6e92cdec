"""The log on stderr: what is not read is dropped, and where it is missing is said."""

from __future__ import annotations

import os
import pty
from typing import TYPE_CHECKING

from gateway.supervisor import stderr
from gateway.supervisor.stderr import LogStream

if TYPE_CHECKING:
    import pytest


def test_what_is_not_read_is_dropped_and_the_gap_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stderr, "PATIENCE_MS", 0)
    reading, writing = os.pipe()
    stream = LogStream(writing)
    for number in range(1000):  # 100 kB: a pipe holds 64
        stream.write(f"{number:099}\n")
    held = os.read(reading, 1 << 20).decode()
    kept = held.count("\n")
    assert held == "".join(f"{number:099}\n" for number in range(kept))
    stream.write("a traceback\n" * 1000)  # in pieces
    stream.write("and on it goes\n")
    told = f"(the log has a gap here: it was not read, and {1000 - kept} messages were dropped)\n"
    assert os.read(reading, 1 << 20).decode() == told + "a traceback\n" * 1000 + "and on it goes\n"
    os.close(reading)
    stream.write("nobody is there any more\n")
    os.close(writing)


def test_a_terminal_that_nobody_reads_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stderr, "PATIENCE_MS", 0)
    reading, writing = pty.openpty()  # as that of a connection by ssh that is gone
    stream = LogStream(writing)
    for number in range(5000):  # 500 kB: it has room for less, and in the end for a part of a line
        stream.write(f"{number:099}\n")
    assert os.read(reading, 101) == b"0" * 99 + b"\r\n"
    os.close(reading)
    os.close(writing)
