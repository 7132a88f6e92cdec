"""The program's log on stderr, which waits for nobody who does not read it."""

from __future__ import annotations

import os
import select
import stat

PATIENCE_MS = 100
"""A reader that is only busy has read something by then. One that hangs is waited for once."""
PIECE_BYTES = 4096
"""What a pipe that has any room takes without a wait (pipe(7), PIPE_BUF); a terminal may have room for less."""


class LogStream:
    """What `logging.StreamHandler` writes to.

    A terminal that is held up (Ctrl-S), a pager, or a collector that hangs reads nothing. Whoever waited for it could
    answer nobody, nor hear of a signal to stop; and where stdout is the same pipe, the access log soon fills it.

    Args:
        descriptor: Where to.
    """

    __slots__ = ("_descriptor", "_lost", "_poll")

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = _unblocked(descriptor)
        self._lost = 0
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLOUT)

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


def _unblocked(descriptor: int) -> int:
    """Open a pipe or a terminal once more, so that no write waits: others may fill it first, with the room just found.

    To set the descriptor itself so would set it for whoever shares it. Return it as it is where there is nothing else.
    """
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            return os.open(f"/dev/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # no right to, or no such directory
        return descriptor
    return descriptor
