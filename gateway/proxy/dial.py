"""Connecting to the upstream: names looked up, all addresses tried, TLS verified."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

from aiohappyeyeballs import start_connection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohappyeyeballs import AddrInfoType

    from gateway.certificates import ReloadedTls
    from gateway.config import Target
    from gateway.proxy.upstream import UpstreamConnection

    _Making = asyncio.Task[tuple[asyncio.Transport, UpstreamConnection]]

HAPPY_EYEBALLS_DELAY_S: Final = 0.25  # RFC 8305 §5 recommends 250 ms


class Dialer:
    """Connects to one target.

    Args:
        target: Host and port.
        tls: The trusted roots, and the certificate that an upstream may ask for; None for plain HTTP.
    """

    def __init__(self, target: Target, tls: ReloadedTls | None) -> None:
        self._host = target.host
        self._port = target.port
        self._tls = tls
        # A loop keeps no task alive, and some of these outlive the wait for them.
        self._making: set[_Making] = set()
        self._looking_up: asyncio.Task[Sequence[AddrInfoType]] | None = None

    async def __call__(self, connection: UpstreamConnection) -> None:
        """Connect a new protocol; it is ready to send when this returns.

        Raises:
            OSError: No address could be connected to, or TLS was not acceptable (an SSLError).
        """
        loop = asyncio.get_running_loop()
        sock = await start_connection(await self._addresses(), happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY_S)
        tls = None if self._tls is None else self._tls.context
        host = None if tls is None else self._host
        making = loop.create_task(loop.create_connection(lambda: connection, sock=sock, ssl=tls, server_hostname=host))
        self._making.add(making)
        making.add_done_callback(partial(self._on_made, sock))
        try:
            await asyncio.wait((making,))
        except asyncio.CancelledError:
            # To cancel what makes it could leave a transport behind that still watches the descriptor: asyncio's does
            # where the handshake is just over. So the connection is ended beneath it, which every loop can take.
            making.add_done_callback(_discard)
            if not making.done():  # else the descriptor may be another's
                with contextlib.suppress(OSError):  # it has ended already
                    sock.shutdown(socket.SHUT_RDWR)
            raise
        transport, _ = making.result()
        if transport.is_closing():  # nobody would hear of its end a second time
            raise ConnectionResetError(errno.ECONNRESET, "it ended as it was made")

    async def closed(self) -> None:
        """Wait until the connections that were given up while they were made have ended."""
        if self._looking_up is not None:
            self._looking_up.cancel()
            await asyncio.wait((self._looking_up,))
        if self._making:
            await asyncio.wait(self._making)

    async def _addresses(self) -> Sequence[AddrInfoType]:
        """Look the name up; for each connection, so that a change of DNS is followed, but once for all who wait.

        A look-up that hangs holds a thread, whoever has given it up, and outside of the program there are few: libuv
        has two for all names. So this target's takes one of them, however many ask, and other names can be looked up.
        """
        looking_up = self._looking_up
        if looking_up is None:
            looking_up = self._looking_up = asyncio.get_running_loop().create_task(self._look_up())
            looking_up.add_done_callback(self._on_looked_up)
        await asyncio.wait((looking_up,))
        return looking_up.result()

    async def _look_up(self) -> Sequence[AddrInfoType]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        # Hosts as bytes: of a str, uvloop asks the codec of IDNA as it connects, which takes 4 ms to load, and 0.2 MB.
        return [
            (family, kind, protocol, name, (host.encode() if isinstance(host, str) else host, *rest))
            for family, kind, protocol, name, (host, *rest) in found
        ]

    def _on_looked_up(self, looking_up: asyncio.Task[Sequence[AddrInfoType]]) -> None:
        self._looking_up = None
        if not looking_up.cancelled():
            looking_up.exception()  # all who wanted to know may have left

    def _on_made(self, sock: socket.socket, making: _Making) -> None:
        self._making.discard(making)
        if not making.cancelled() and making.exception() is not None:
            # The descriptor was the loop's to close, and it has. uvloop does not always tell the socket so, which would
            # close it again when it is forgotten, though it may be another's by then.
            sock.detach()


def _discard(making: _Making) -> None:
    """Take what nobody waits for any longer, be it a connection or why there is none."""
    if not making.cancelled() and making.exception() is None:
        making.result()[0].abort()
