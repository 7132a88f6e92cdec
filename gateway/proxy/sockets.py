"""What only the kernel knows of a connection, or can do to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import sys
import termios
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import asyncio

_MOST_LAST_BYTES: Final = 256 * 1024
"""As much as one look of a loop's. Refusals are shorter."""
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


def reset(transport: asyncio.Transport) -> None:
    """Send a TCP reset and drop what is still to be sent.

    Closing alone would send a FIN, and only behind what the kernel still holds: a body that its connection's end ends
    would look whole, and a peer that does not read would never hear of it (socket(7), SO_LINGER).
    """
    sock = transport.get_extra_info("socket")
    # One that was closed is there as long as it has something to send; then its descriptor may be another's.
    if sock is not None and (not transport.is_closing() or transport.get_write_buffer_size()):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


def ended_in_order(transport: asyncio.Transport) -> bool:
    """Whether it was the peer who ended its side: below TLS, anybody on the way can (RFC 8446 §6.1).

    asyncio tells of a bare FIN as it does of a close_notify; uvloop does not tell of it.
    """
    tls = transport.get_extra_info("ssl_object")
    if tls is None:
        return True
    import ssl  # it takes 10 ms to load, and is there already where there is TLS

    try:
        tls.read(1)
    except ssl.SSLZeroReturnError:
        return True
    except ssl.SSLError:  # it waits for more
        return False
    return True


def end_writing(transport: asyncio.Transport) -> None:
    """Send a FIN behind what is still to be sent, where there is no TLS, which knows no half-closed connection.

    A connection that broke before says so by itself.
    """
    if transport.can_write_eof() and not transport.is_closing():
        with contextlib.suppress(OSError):  # asyncio's raises ENOTCONN, uvloop's calls connection_lost
            transport.write_eof()


def untaken(transport: asyncio.Transport) -> int:
    """Count the bytes that the far end has not yet taken: in the transport's buffer, and in the kernel's."""
    count = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        count += _queued(sock, termios.TIOCOUTQ)
    return count


def has_unread(transport: asyncio.Transport) -> bool:
    """Whether bytes wait in the kernel for the loop to read them; to close then would reset the connection."""
    sock = transport.get_extra_info("socket")
    return transport.is_reading() and sock is not None and sock.fileno() >= 0 and _queued(sock, termios.FIONREAD) > 0


def has_come(transport: asyncio.Transport) -> bool:
    """Whether bytes, an end or a reset wait for the loop to read them, and it will."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0 or not transport.is_reading():
        return False
    waits = select.poll()
    waits.register(sock.fileno(), select.POLLIN)
    return bool(waits.poll(0))


def last_bytes(transport: asyncio.Transport) -> bytes:
    """Read what had come before a connection broke, in its `connection_lost`: the loop does not where a write failed.

    Linux keeps it, also behind a reset. Nothing of TLS, which is closed already.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0 or not transport.can_write_eof():
        return b""
    with contextlib.suppress(OSError):
        return os.read(sock.fileno(), _MOST_LAST_BYTES)
    return b""


class Sender(Protocol):
    """A connection that is sent to.

    Attributes:
        untaken_bytes: How many bytes the far end had not yet taken when it was last looked.
    """

    transport: asyncio.Transport
    untaken_bytes: int


def still_takes(sender: Sender) -> bool:
    """Whether the far end has taken some of what waits for it since this was last asked: it is only slow."""
    before = sender.untaken_bytes
    sender.untaken_bytes = untaken(sender.transport)
    return 0 < sender.untaken_bytes < before


def is_lost(sock: socket.socket, missing_bytes: int) -> bool:
    """Whether the peer has reset the connection, or has ended it before all that is missing.

    Args:
        sock: The connection's; nobody reads it for now.
        missing_bytes: How many bytes have still to come, at the least.
    """
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        return True
    if missing_bytes == 0 or sock.fileno() < 0:
        return False
    ended = select.poll()
    ended.register(sock.fileno(), select.POLLRDHUP)
    return bool(ended.poll(0)) and _queued(sock, termios.FIONREAD) < missing_bytes


def _queued(sock: socket.socket, queue: int) -> int:
    """Count the bytes in a queue (tcp(7)): FIONREAD, to be read; TIOCOUTQ, not sent or not acknowledged."""
    return int.from_bytes(fcntl.ioctl(sock.fileno(), queue, bytes(4)), sys.byteorder)
