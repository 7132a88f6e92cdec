"""Ending a connection at once, in a way that nobody can take for its orderly end."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


def reset(transport: asyncio.Transport) -> None:
    """Send a TCP reset and drop what is still to be sent.

    Closing alone would send a FIN, and only behind what the kernel still holds: a body that its connection's end ends
    would look whole, and a peer that does not read would never hear of it (socket(7), SO_LINGER).
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()
