"""The body of an answer on its way through a meter: see `http1.framing.Body`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.http1.chunked import ChunkedBody
from gateway.http1.framing import UntilCloseBody

if TYPE_CHECKING:
    from gateway.http1.framing import Body
    from gateway.metering import Meter


class MeteredBody:
    """A body with an end of its own.

    Args:
        inner: Finds the content in what comes.
            If it was chunked, what the meter takes out is missing from what goes on, and that is framed anew. Of a
            known length all goes on as it came.
        meter: Is shown all of it.
        frames: What goes on is framed in chunks; else the connection's end is its end, for an HTTP/1.0 client.
    """

    __slots__ = ("_chunked", "_frames", "_inner", "_meter", "done", "seen_bytes")

    def __init__(self, inner: Body, meter: Meter, *, frames: bool) -> None:
        self._inner = inner
        self._chunked = inner if isinstance(inner, ChunkedBody) else None
        self._meter = meter
        self._frames = frames
        self.done = False
        self.seen_bytes = 0

    @property
    def least_left(self) -> int:
        """See `framing.Body`."""
        return self._inner.least_left

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """See `framing.Body`."""
        inner, meter = self._inner, self._meter
        content, rest = inner.feed(data)
        self.seen_bytes = inner.seen_bytes
        told = meter.feed(content) if content else b""
        self.done = done = inner.done
        if done:
            told += meter.finish()
        if self._chunked is None:
            return content, rest
        if self._frames:
            if told:
                told = b"%x\r\n%b\r\n" % (len(told), told)
            if done:
                told += b"0\r\n%b\r\n" % self._chunked.decoded_trailers
        return told, rest

    def cut(self, event: bytes) -> bytes | None:
        """End the body with an event; return what is to be written for that, None where it cannot end early."""
        if self._chunked is None:
            return None
        self.done = True
        return b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event) if self._frames else event


class MeteredUntilClose(UntilCloseBody):
    """A body that ends when its connection does.

    Args:
        meter: Is shown all of it.
    """

    __slots__ = ("_meter",)

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """See `framing.Body`."""
        super().feed(data)
        return self._meter.feed(data), b""

    def end(self) -> bytes:
        """Return what was held back."""
        return self._meter.finish()

    def cut(self, event: bytes) -> bytes:
        """See `MeteredBody.cut`; the connection ends behind it."""
        return event
