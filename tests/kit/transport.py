"""A transport without a socket: the gateway writes to it, and a script plays the peer.

It does what uvloop's TCP transport does, and asyncio's: `tests/test_kit.py` holds all three to one contract.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

HIGH_WATER_BYTES: Final = 64 * 1024  # what asyncio's transports start with
LOW_WATER_BYTES: Final = HIGH_WATER_BYTES // 4


@functools.cache
def _untouched() -> tuple[socket.socket, socket.socket]:
    return _pair()


def _pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return ours, theirs


class FakeSocket:
    """What `get_extra_info("socket")` gives: options are remembered, `error` is what SO_ERROR reads."""

    def __init__(self) -> None:
        self.options: dict[tuple[int, int], int | bytes] = {}
        self.error = 0
        self._unread: tuple[socket.socket, socket.socket] | None = None

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        self.options[level, option] = value

    def getsockopt(self, level: int, option: int) -> int:
        del level, option
        return self.error

    def fileno(self) -> int:
        """Return a descriptor to ask about: nothing waits to be sent there, for the peer takes all that is written."""
        return (self._unread or _untouched())[0].fileno()

    def holds(self, data: bytes) -> None:
        """Have what the loop has not read yet; `close` has to follow."""
        self._unread = _pair()
        self._unread[1].send(data)

    def close(self) -> None:
        if self._unread is not None:
            for end in self._unread:
                end.close()
            self._unread = None


class FakeTransport(asyncio.Transport):
    """One end of a connection; `peer_…` methods and `take` are the other end.

    Args:
        loop: Tells the protocol of the connection's end, in its next turn.
        protocol: Gets `connection_made` from the caller, and all else from here.
        extra: What `get_extra_info` knows besides the socket.

    Attributes:
        aborted: The gateway called `abort`.
        failed: The peer reset the connection.
        eof_written: The peer has seen the gateway end its side.
        lost: `connection_lost` was called.
        socket: See `FakeSocket`.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol, extra: Mapping[str, object] | None = None
    ) -> None:
        self.socket = FakeSocket()
        super().__init__({"socket": self.socket, **(extra or {})})
        self._loop = loop
        self._protocol = protocol
        # Towards the peer.
        self._wire = bytearray()
        self._buffer = bytearray()
        self._peer_reads = True
        self._protocol_paused = False
        self._eof = False
        self._high, self._low = HIGH_WATER_BYTES, LOW_WATER_BYTES
        # From the peer; None is its end of stream.
        self._incoming: deque[bytes | None] = deque()
        self._reading = True
        # The end.
        self._closing = False
        self.aborted = self.failed = self.eof_written = self.lost = False

    # --- the gateway's end -----------------------------------------------------------------------------------------

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast("asyncio.Protocol", protocol)

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._closing:
            self._reading = True
            self._loop.call_soon(self._deliver)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        # uvloop and CPython >= 3.12 keep views: only bytes may be handed to a transport (DESIGN).
        assert type(data) is bytes, f"a {type(data).__name__} was written"
        if self.lost:
            raise RuntimeError("unable to perform operation; the handler is closed")  # as uvloop does
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self.failed or self.aborted or (self._closing and not self._buffer):
            return
        self._buffer += data
        if self._peer_reads:
            self._flush()
        elif len(self._buffer) > self._high and not self._protocol_paused:
            self._protocol_paused = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER_BYTES if high is None else high
        self._low = self._high // 4 if low is None else low

    def can_write_eof(self) -> bool:
        return self.get_extra_info("sslcontext") is None

    def write_eof(self) -> None:
        if not self._closing:
            self._eof = True
            self._flush()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._incoming.clear()
            self._flush()
            if not self._buffer:
                self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        self.aborted = True
        self._drop(None)

    # --- the peer's end --------------------------------------------------------------------------------------------

    def peer_sends(self, data: bytes) -> None:
        """Bytes arrive in one piece: at once, or when the gateway reads again."""
        self._incoming.append(data)
        self._deliver()

    def peer_ends(self) -> None:
        """The peer sends a FIN, behind what it has sent."""
        self._incoming.append(None)
        self._deliver()

    def peer_resets(self) -> None:
        """The connection breaks, whatever was under way."""
        self.breaks(ConnectionResetError(104, "Connection reset by peer"))

    def breaks(self, error: Exception) -> None:
        """The loop gives the connection up: for what the kernel said, or what the protocol raised."""
        if not self._closing:
            self.failed = True
            self._drop(error)

    def peer_stops_reading(self) -> None:
        """What the gateway writes stays in this transport's buffer."""
        self._peer_reads = False

    def peer_reads_on(self) -> None:
        """The buffer empties, and the protocol hears of it."""
        self._peer_reads = True
        self._flush()
        self._say_ready()

    def peer_reads(self, size: int) -> None:
        """So much of the buffer leaves; then the peer rests again."""
        self._peer_reads = False
        self._wire += self._buffer[:size]
        del self._buffer[:size]
        self._say_ready()
        if self._closing and not self._buffer:
            self._loop.call_soon(self._lose, None)

    def take(self) -> bytes:
        """Return what the peer has received since it was asked last."""
        taken = bytes(self._wire)
        self._wire.clear()
        return taken

    @property
    def untaken_bytes(self) -> int:
        """How much of what the peer sent the gateway has not read yet."""
        return sum(len(data) for data in self._incoming if data is not None)

    # ---------------------------------------------------------------------------------------------------------------

    def _say_ready(self) -> None:
        if self._protocol_paused and len(self._buffer) <= self._low:
            self._protocol_paused = False
            self._protocol.resume_writing()

    def _deliver(self) -> None:
        while self._incoming and self.is_reading():
            data = self._incoming[0]
            if data is not None:
                self._incoming.popleft()
                self._protocol.data_received(data)
                continue
            # An end of stream stays to be read: uvloop stops reading there, and says it again if told to read on.
            self._reading = False
            if not self._protocol.eof_received():
                self.close()

    def _flush(self) -> None:
        if self._peer_reads:
            self._wire += self._buffer
            self._buffer.clear()
            self.eof_written = self.eof_written or self._eof
            if self._closing and not self.lost:
                self._loop.call_soon(self._lose, None)

    def _drop(self, exc: Exception | None) -> None:
        if self.lost:
            return
        self._closing = True
        self._incoming.clear()
        self._buffer.clear()
        self._loop.call_soon(self._lose, exc)

    def _lose(self, exc: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            self._protocol.connection_lost(exc)
            self.socket.close()
