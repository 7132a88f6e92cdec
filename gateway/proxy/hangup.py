"""A client that has ended its side: does it wait for its answer, or has it hung up?

Both look the same: a FIN. A client that only ended its sending side (RFC 9112 §9.6) does so right behind its request
and must get its answer; for one that has closed, the upstream works for nobody. So before the answer has begun, an
interim `100 Continue` is sent, which every client discards (RFC 9110 §15.2.1): a closed socket's machine answers it
with a reset, and the socket then says so. A FIN in the middle of an answer is a hang-up, unless the rest of the answer
is there before anybody looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.http1.message import CONTINUE
from gateway.proxy.sockets import is_lost

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

PROBE_AFTER_S: Final = 0.03
LOOK_EVERY_S: Final = 0.05


class HangupWatch:
    """Watches one connection that is half-closed or not read. There are few of them, so each may have a timer.

    Args:
        loop: Runs the timer.
        transport: The client's.
        on_hangup: Called once, if the client turns out to be gone.
        missing_bytes: Says how many bytes of the request have still to be read, at the least.
        may_probe: Says whether an interim answer may be sent now: to an HTTP/1.1 client, before the final one. None:
            never.
    """

    __slots__ = ("_is_the_end", "_loop", "_may_probe", "_missing_bytes", "_on_hangup", "_timer", "_transport")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        on_hangup: Callable[[], None],
        missing_bytes: Callable[[], int],
        may_probe: Callable[[], bool] | None,
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._on_hangup = on_hangup
        self._missing_bytes = missing_bytes
        self._is_the_end = False
        self._may_probe = may_probe
        self._timer = loop.call_later(PROBE_AFTER_S, self._look)

    def expect_the_end(self) -> None:
        """Take it for a hang-up at the first look, if there is one."""
        self._is_the_end = True

    def stop(self) -> None:
        """Watch no longer."""
        self._timer.cancel()

    def _look(self) -> None:
        sock = self._transport.get_extra_info("socket")
        if self._transport.is_closing() or sock is None:
            return
        if self._is_the_end or is_lost(sock, self._missing_bytes()):
            self._on_hangup()
            return
        if self._may_probe is not None and self._may_probe():
            self._transport.write(CONTINUE)
        self._may_probe = None
        self._timer = self._loop.call_later(LOOK_EVERY_S, self._look)
