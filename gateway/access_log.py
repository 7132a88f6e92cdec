"""A line for each request, on stdout: JSON or the common log format, in batches, and never in a request's way.

Lines are kept for a tenth of a second, and then handed to a thread that writes. If stdout is not read, that thread
waits and nobody else does: what would pile up is dropped, and counted.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Protocol

from gateway.access_lines import CommonLines, JsonLines

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from gateway.access_lines import Lines

    OnDropped = Callable[[int], None]

FLUSH_S: Final = 0.1
MAX_LINES: Final = 32_768
"""Waiting to be written, at most: about 10 MB."""
ATOMIC_BYTES: Final = 4096
"""What a pipe takes in one piece (PIPE_BUF), so that the lines of several workers on one pipe do not mix."""
FILE_BYTES: Final = 1 << 20
STOP_S: Final = 1.0
"""How long a stop waits for stdout to take the rest."""
QUIET_S: Final = 60.0

_log = logging.getLogger("gateway")


class Sink(Protocol):
    """Takes lines.

    Attributes:
        failed: How many of those that it took could not be written.
        problem: Why.
    """

    failed: int
    problem: str

    def put(self, lines: bytes, count: int) -> bool:
        """Take so many whole lines, or say that they are too many."""
        ...

    def close(self) -> None:
        """Write what was taken, if it can be written soon. May be called in a thread."""
        ...


class LineWriter:
    """Writes lines to a descriptor, in a thread.

    Args:
        descriptor: Where to.

    Attributes:
        failed: See `Sink`: the thread's.
        problem: Likewise.
    """

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        # What is written to a file at once stays together, however much it is.
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._most_bytes = FILE_BYTES if is_file else ATOMIC_BYTES
        self._taken = 0
        self._written = 0  # the thread's
        self.failed, self.problem = 0, ""
        self._queue: SimpleQueue[tuple[bytes, int] | None] = SimpleQueue()
        # A daemon: it may wait for ever for somebody to read.
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
        self._thread.start()

    def put(self, lines: bytes, count: int) -> bool:
        """See `Sink`."""
        if self._taken - self._written + count > MAX_LINES:
            return False
        self._taken += count
        self._queue.put((lines, count))
        return True

    def close(self) -> None:
        """See `Sink`."""
        self._queue.put(None)
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while (taken := self._queue.get()) is not None:
            lines, count = taken
            try:
                for piece in _pieces(lines, self._most_bytes):
                    self._write(piece)
            except OSError as error:  # a disk that is full may have room again
                self.problem = error.strerror or str(error)
                self.failed += count
            self._written += count

    def _write(self, piece: bytes) -> None:
        while piece:
            try:
                piece = piece[os.write(self._descriptor, piece) :]
            except BlockingIOError:  # somebody who shares it with this process has set it so
                select.select((), (self._descriptor,), ())


def _pieces(lines: bytes, most_bytes: int = ATOMIC_BYTES) -> Iterator[bytes]:
    """Cut whole lines into pieces that are written as one."""
    begin = 0
    while len(lines) - begin > most_bytes:
        end = lines.rfind(b"\n", begin, begin + most_bytes) + 1 or lines.find(b"\n", begin) + 1
        yield lines[begin:end]
        begin = end
    yield lines[begin:]


class AccessLog:
    """Has lines made, in batches, and hands them over.

    Args:
        style: `json` or `common`.
        sink: Takes the lines.
        loop: Runs the timer.
        on_dropped: Told how many lines were lost.

    Attributes:
        wants_host: Whether lines have the client's address.
        lines: Takes what there is to tell of a request that is over.
    """

    __slots__ = ("_failed", "_loop", "_lost", "_on_dropped", "_quiet_until_s", "_sink", "_timer", "lines", "wants_host")

    def __init__(self, style: str, sink: Sink, loop: asyncio.AbstractEventLoop, on_dropped: OnDropped) -> None:
        self.wants_host = style == "common"
        kind = CommonLines if style == "common" else JsonLines
        self.lines: Lines = kind(self._begin)
        self._sink = sink
        self._loop = loop
        self._on_dropped = on_dropped
        self._timer: asyncio.TimerHandle | None = None
        self._lost = self._failed = 0
        self._quiet_until_s = 0.0

    def _begin(self) -> float:
        self._timer = self._loop.call_later(FLUSH_S, self.flush)
        return time.time()

    def flush(self) -> None:
        """Hand all lines over."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        lines, count = self.lines.take()
        known, self._failed = self._failed, self._sink.failed  # read once: the thread counts on
        failed = self._failed - known
        reason = f"stdout cannot be written to: {self._sink.problem}" if failed else "stdout is not read fast enough"
        dropped = failed if self._sink.put(lines, count) else failed + count
        if dropped:
            self._lost += dropped
            self._on_dropped(dropped)
            now_s = self._loop.time()
            if now_s >= self._quiet_until_s:
                _log.warning("%d lines of the access log were dropped: %s", self._lost, reason)
                self._quiet_until_s, self._lost = now_s + QUIET_S, 0
