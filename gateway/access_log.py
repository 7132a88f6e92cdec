"""A line for each request, on stdout: JSON or the common log format, in batches, and never in a request's way.

What there is to tell is kept for a tenth of a second, made lines of, and handed to a thread that writes. If stdout is
not read, that thread waits and nobody else does: what would pile up is dropped, and counted.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Protocol

from gateway.access_lines import CommonLines, JsonLines

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from gateway.access_lines import Lines, Record

    OnDropped = Callable[[int], None]

FLUSH_S: Final = 0.1
MAX_LINES: Final = 32_768
"""Under way at most: about 10 MB."""
MAX_BATCH: Final = 256
"""Lines in one batch: of more in a tenth of a second, some go sooner. To make them takes less than a millisecond."""
ATOMIC_BYTES: Final = 4096
"""What a pipe takes in one piece (PIPE_BUF), so that the lines of several workers on one pipe do not mix."""
STOP_S: Final = 1.0
"""How long a stop waits for stdout to take the rest."""
QUIET_S: Final = 60.0

_log = logging.getLogger("gateway")


class Sink(Protocol):
    """Takes lines."""

    def put(self, lines: Sequence[str]) -> bool:
        """Take some, or say that they are too many."""
        ...

    def close(self) -> None:
        """Write what was taken, if it can be written soon. May be called in a thread."""
        ...


class LineWriter:
    """Writes lines to a descriptor, in a thread.

    Args:
        descriptor: Where to.
    """

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._taken = 0
        self._written = 0  # the thread's
        self._broken = False
        self._queue: SimpleQueue[Sequence[str] | None] = SimpleQueue()
        # A daemon: it may wait for ever for somebody to read.
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
        self._thread.start()

    def put(self, lines: Sequence[str]) -> bool:
        """See `Sink`."""
        if self._broken or self._taken - self._written + len(lines) > MAX_LINES:
            return False
        self._taken += len(lines)
        self._queue.put(lines)
        return True

    def close(self) -> None:
        """See `Sink`."""
        self._queue.put(None)
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while (lines := self._queue.get()) is not None:
            try:
                for piece in _pieces(lines):
                    self._write(piece)
            except OSError:  # nobody will ever read it
                self._broken = True
                return
            self._written += len(lines)

    def _write(self, piece: bytes) -> None:
        while piece:
            try:
                piece = piece[os.write(self._descriptor, piece) :]
            except BlockingIOError:  # whoever shares it with this process does not want to wait
                select.select((), (self._descriptor,), ())


def _pieces(lines: Sequence[str]) -> list[bytes]:
    """Join lines, which are ASCII, to pieces that are written as one."""
    pieces, first, size = [], 0, 0
    for at, line in enumerate(lines):
        size += len(line)
        if size > ATOMIC_BYTES and at > first:
            pieces.append("".join(lines[first:at]).encode())
            first, size = at, len(line)
    pieces.append("".join(lines[first:]).encode())
    return pieces


class AccessLog:
    """Keeps what there is to tell of requests, and makes lines of it in batches: that costs half of one at a time.

    Args:
        style: `json` or `common`.
        sink: Takes the lines.
        loop: Runs the timer.
        on_dropped: Told how many lines were lost.

    Attributes:
        wants_host: Whether lines have the client's address.
    """

    # fmt: off
    __slots__ = (
        "_lines", "_loop", "_lost", "_on_dropped", "_quiet_until_s", "_records", "_sink", "_stamp", "_timer",
        "wants_host",
    )
    # fmt: on

    def __init__(self, style: str, sink: Sink, loop: asyncio.AbstractEventLoop, on_dropped: OnDropped) -> None:
        self.wants_host = style == "common"
        self._lines: Lines = CommonLines() if style == "common" else JsonLines()
        self._sink = sink
        self._loop = loop
        self._on_dropped = on_dropped
        self._records: list[Record] = []
        self._timer: asyncio.TimerHandle | None = None
        self._stamp = 0.0
        self._lost = 0
        self._quiet_until_s = 0.0

    def add(self, record: Record) -> None:
        """Take what there is to tell of a request that is over."""
        records = self._records
        if not records:
            self._timer = self._loop.call_later(FLUSH_S, self.flush)
            self._stamp = time.time()
        records.append(record)
        if len(records) >= MAX_BATCH:
            self.flush()

    def flush(self) -> None:
        """Hand all lines over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        records, self._records = self._records, []
        if records and not self._sink.put(self._lines.make(records, self._stamp)):
            self._lost += len(records)
            self._on_dropped(len(records))
            now_s = self._loop.time()
            if now_s >= self._quiet_until_s:
                _log.warning("%d lines of the access log were dropped: stdout is not read fast enough", self._lost)
                self._quiet_until_s, self._lost = now_s + QUIET_S, 0
