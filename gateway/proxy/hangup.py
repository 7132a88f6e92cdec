"""Has a client that ended its side hung up, or does it wait for its answer?

Both look the same: a FIN. A client that only ended its sending side (RFC 9112 §9.6) must get its answer; for one
that has closed, the upstream works for nobody. So a little later an interim `100 Continue` is sent, which every
client discards (RFC 9110 §15.2.1); a closed socket's machine answers it with a reset, and the socket then says so.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

PROBE_AFTER_S: Final = 0.03
LOOK_EVERY_S: Final = 0.05


class HangupWatch:
    """Watches one half-closed connection. There are few of them, so each may have a timer.

    Args:
        loop: Runs the timer.
        transport: The client's.
        on_hangup: Called once, if the client turns out to be gone.
        probe: Whether an interim answer may be sent: HTTP/1.1, and no byte of the final one written yet.
    """

    __slots__ = ("_loop", "_on_hangup", "_probe", "_timer", "_transport")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        on_hangup: Callable[[], None],
        probe: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._on_hangup = on_hangup
        self._probe: Callable[[], bool] | None = probe
        self._timer = loop.call_later(PROBE_AFTER_S, self._look)

    def stop(self) -> None:
        """Watch no longer."""
        self._timer.cancel()

    def _look(self) -> None:
        sock = self._transport.get_extra_info("socket")
        if self._transport.is_closing() or sock is None:
            return
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._on_hangup()
            return
        if self._probe is not None and self._probe():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._probe = None
        self._timer = self._loop.call_later(LOOK_EVERY_S, self._look)
