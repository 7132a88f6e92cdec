"""The thread that writes the access log: whole lines, in order, and nobody waits for who does not read them."""

from __future__ import annotations

import fcntl
import os
import threading
from typing import TYPE_CHECKING

import pytest

from gateway.access_log import ATOMIC_BYTES, MAX_LINES, LineWriter
from gateway.access_log import _pieces as pieces

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            continue  # the test has closed it


def read_all(descriptor: int) -> bytes:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read()


def test_lines_are_written_whole_and_in_order(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LineWriter(writing)
    lines = [f"line {number}\n" for number in range(5000)]
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(read_all(reading)))
    reader.start()
    for at in range(0, 5000, 100):
        assert writer.put("".join(lines[at : at + 100]).encode(), 100)
    writer.close()
    os.close(writing)
    reader.join()
    assert read == ["".join(lines).encode()]


def test_a_piece_is_what_a_pipe_takes_at_once_and_ends_with_a_line() -> None:
    lines = ["x" * (number % 700) + "\n" for number in range(2000)] + ["y" * 9000 + "\n", "z\n"]
    text = "".join(lines).encode()
    found = list(pieces(text))
    assert b"".join(found) == text
    assert all(piece.endswith(b"\n") for piece in found)
    assert all(len(piece) <= ATOMIC_BYTES or piece.count(b"\n") == 1 for piece in found)
    assert len(found) < len(text) / ATOMIC_BYTES * 1.3


def test_who_does_not_read_holds_nobody_up_and_costs_a_bounded_number_of_lines(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    batch = b"x" * 99 + b"\n"
    taken = 0
    while writer.put(batch * 4096, 4096):
        taken += 4096
    assert MAX_LINES - 4096 < taken < MAX_LINES + 2 * 4096
    os.close(pipe[0])  # the thread gets EPIPE
    writer.close()
    assert (writer.failed, writer.problem) == (taken, "Broken pipe")


def test_it_goes_on_when_a_disk_that_was_full_has_room(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    output = os.open("/dev/full", os.O_WRONLY)
    writer = LineWriter(output)
    assert writer.put(b"lost\n", 1)
    while not writer.failed:
        pass
    assert writer.problem == "No space left on device"
    os.dup2(writing, output)
    assert writer.put(b"kept\n", 1)
    writer.close()
    assert os.read(reading, 100) == b"kept\n"
    assert writer.failed == 1
    os.close(output)


def test_it_goes_on_when_it_is_read_again(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LineWriter(writing)
    batch = b"x" * 99 + b"\n"
    while writer.put(batch * 4096, 4096):
        pass
    seen = threading.Event()

    def read() -> None:
        while b"last\n" not in os.read(reading, 1 << 16):
            pass
        seen.set()

    reader = threading.Thread(target=read)
    reader.start()
    while not writer.put(b"last\n", 1):
        pass
    assert seen.wait(20)
    reader.join()
    writer.close()


def test_a_descriptor_that_does_not_block_is_waited_for(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    fcntl.fcntl(writing, fcntl.F_SETFL, fcntl.fcntl(writing, fcntl.F_GETFL) | os.O_NONBLOCK)
    writer = LineWriter(writing)
    lines = (b"x" * 99 + b"\n") * 4000  # more than a pipe holds
    assert writer.put(lines, 4000)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(read_all(reading)))
    reader.start()
    writer.close()
    os.close(writing)
    reader.join()
    assert read == [lines]
