"""Turning newcomers away from a listening socket, so that its queue can be emptied before it is closed.

Closing resets whoever waits in the queue, and between the last accept and the close there is time for another one.
"""

from __future__ import annotations

import array
import contextlib
import socket
import struct
from typing import Final

_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h; the socket module has no name for it
_DROP_OPENING_SEGMENTS: Final = (
    # (operation, where to if so, where to if not, operand): linux/filter.h, struct sock_filter
    (0x30, 0, 0, 13),  # the byte of the TCP header that has the flags (RFC 9293 §3.1)
    (0x54, 0, 0, 0x12),  # of them, ACK and SYN
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # then drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # else let all of it in
)


def turn_away(sock: socket.socket) -> None:
    """Let no new connection into the queue; what is there, or halfway there, may still be accepted.

    On TCP a newcomer's first segment is dropped; its machine sends it again a second later, and is refused by then. On
    a unix socket it is refused at once. Where a system can do neither, nothing changes.

    Args:
        sock: No other process may use it: it never lets anybody in again.
    """
    with contextlib.suppress(OSError):
        if sock.family == socket.AF_UNIX:
            sock.shutdown(socket.SHUT_RD)
            return
        program = array.array("B", b"".join(struct.pack("HBBI", *step) for step in _DROP_OPENING_SEGMENTS))
        address, _ = program.buffer_info()
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_DROP_OPENING_SEGMENTS), address))
