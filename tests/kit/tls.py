"""Peers that speak TLS, with certificates that nobody else trusts."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import trustme


def pem_file(ca: trustme.CA, directory: Path) -> str:
    """Write the authority's certificate down, for `TARGET_CA_FILE`; return its path."""
    path = directory / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return str(path)


def server_side(ca: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    return context


class DeafServer:
    """An upstream that takes one request, and then hears nothing more of TLS: not even its end.

    Attributes:
        asked: Set when the request has come, and what is said to it was sent.
        left: Set when the connection has ended.
    """

    def __init__(self, context: ssl.SSLContext, says: bytes) -> None:
        self.asked = asyncio.Event()
        self.left = asyncio.Event()
        self.url = ""
        self._context = context
        self._says = says

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls_in, tls_out = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._context.wrap_bio(tls_in, tls_out, server_side=True)
        got = b""
        while b"\r\n\r\n" not in got:
            tls_in.write(await reader.read(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
                got += tls.read()
            writer.write(tls_out.read())
        if self._says:
            tls.write(self._says)
            writer.write(tls_out.read())
        self.asked.set()
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
        self.left.set()
        writer.close()


@contextlib.asynccontextmanager
async def deaf_server(ca: trustme.CA, says: bytes = b"") -> AsyncIterator[DeafServer]:
    """Run a `DeafServer` that answers its request with these bytes."""
    deaf = DeafServer(server_side(ca, "localhost"), says)
    async with await asyncio.start_server(deaf.serve, "127.0.0.1", 0) as server:
        deaf.url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        yield deaf


def client_side(ca: trustme.CA) -> ssl.SSLContext:
    """Trust this authority alone."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    ca.configure_trust(context)
    return context


class Pem(NamedTuple):
    """The paths of a certificate and of its key."""

    cert: Path
    key: Path

    def write(self, ca: trustme.CA, *names: str, key_of: trustme.CA | None = None) -> None:
        """Issue a certificate for these names and write it down, in place of what is there.

        Args:
            ca: Who issues it.
            names: Whom it is for.
            key_of: Whose key to write, if not its own.
        """
        made = ca.issue_cert(*names)
        keys = made if key_of is None else key_of.issue_cert(*names)
        self.cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        self.key.write_bytes(keys.private_key_pem.bytes())
        self.key.chmod(0o600)
