"""Connecting to the upstream: names looked up, all addresses tried, TLS verified."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, Final

from aiohappyeyeballs import start_connection

if TYPE_CHECKING:
    from gateway.config import Target
    from gateway.proxy.upstream import UpstreamConnection

HAPPY_EYEBALLS_DELAY_S: Final = 0.25  # RFC 8305 §5 recommends 250 ms


class Dialer:
    """Connects to one target.

    Args:
        target: Host, port, and the trusted roots.

    Raises:
        OSError: The CA file cannot be read, or has no certificate in it (an SSLError).
    """

    def __init__(self, target: Target) -> None:
        self._host = target.host
        self._port = target.port
        self._tls = _tls_context(target.ca_file) if target.tls else None

    async def __call__(self, connection: UpstreamConnection) -> None:
        """Connect a new protocol; it is ready to send when this returns.

        Raises:
            OSError: No address could be connected to, or TLS was not acceptable (an SSLError).
        """
        loop = asyncio.get_running_loop()
        # Looked up for each connection, so that a change of DNS is followed.
        addresses = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        sock = await start_connection(addresses, happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY_S)
        try:
            await loop.create_connection(
                lambda: connection,
                sock=sock,
                ssl=self._tls,
                server_hostname=self._host if self._tls is not None else None,
            )
        except BaseException:
            sock.close()
            raise


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Verify the upstream against the system's roots, or against `TARGET_CA_FILE` alone."""
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context
