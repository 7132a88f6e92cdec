"""The program's log on stderr, which waits for nobody who does not read it."""

from __future__ import annotations

import os
import select

PATIENCE_MS = 100
"""A reader that is only busy has read something by then. One that hangs is waited for once."""
PIECE_BYTES = 4096
"""What a pipe that has any room takes without a wait (pipe(7), PIPE_BUF)."""


class LogStream:
    """What `logging.StreamHandler` writes to.

    A terminal that is held up (Ctrl-S), a pager, or a collector that hangs reads nothing. Whoever waited for it could
    answer nobody, nor hear of a signal to stop; and where stdout is the same pipe, the access log soon fills it.

    Args:
        descriptor: Where to.
    """

    __slots__ = ("_descriptor", "_lost", "_poll")

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor
        self._lost = 0
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, lines: str) -> None:
        """Write whole lines, or drop them; the next that are written say how often that was."""
        if self._lost:
            lines = f"(the log has a gap here: it was not read, and {self._lost} messages were dropped)\n{lines}"
        data = lines.encode("utf-8", "backslashreplace")
        try:
            while data and self._poll.poll(0 if self._lost else PATIENCE_MS):
                data = data[os.write(self._descriptor, data[:PIECE_BYTES]) :]
        except OSError:  # nobody will ever read it, or a disk is full; and there is nobody else to tell
            self._lost += 1
        else:
            self._lost = self._lost + 1 if data else 0
