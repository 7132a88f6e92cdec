"""Bytes from one end to the other: one `Relay` for each direction of an exchange."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.errors import BadRequest, BodyTooLarge
from gateway.http1 import framing
from gateway.http1.message import CHUNKED
from gateway.proxy.sockets import has_come

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from gateway.http1.framing import Body
    from gateway.http1.message import RequestHead
    from gateway.proxy.context import Destination

MAX_HELD_BYTES: Final = 64 * 1024
"""How much of a body waits for the far end to be known, before its source is no longer read."""

MAX_STRANGERS_BYTES: Final = 4096
"""How much of a chunked body is walked before it is known whose it is: tiny chunks take half a microsecond a byte."""

MAX_HEARING_TURNS: Final = 4
"""How many turns of the loop a piece of a request waits for the upstream to be heard. What had come before it is read
within two; an answer that flows all the time must not hold up its request for ever."""


class Relay:
    """Walks a body and passes its bytes on, as the objects they came as.

    Until `open` says where to, bytes are held; past `MAX_HELD_BYTES` the source rests. The kernel's and the
    transport's buffers are then all that grows, and they are bounded.

    Args:
        body: Knows where the body ends.
        source: Where the bytes come from; paused and resumed.
        limit_bytes: The longest content; None: any.

    Attributes:
        held_bytes: How many bytes are held.
    """

    __slots__ = ("_held", "_limit_bytes", "_most_held_bytes", "_sink", "_source", "body", "held_bytes")

    def __init__(self, body: Body, source: asyncio.Transport, limit_bytes: int | None = None) -> None:
        self.body = body
        self._limit_bytes = limit_bytes
        self._source = source
        self._sink: asyncio.Transport | None = None
        self._held: list[bytes] = []
        self.held_bytes = 0
        self._most_held_bytes = MAX_HELD_BYTES

    def hold(self, most_bytes: int) -> None:
        """Hold more bytes than is usual: they are to be looked at before they go anywhere."""
        self._most_held_bytes = most_bytes
        if self.held_bytes <= most_bytes:
            self.resume()

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the source; return those behind the end of the body.

        Raises:
            GatewayError: The body's framing is broken.
            BodyTooLarge: It is longer than the limit.
        """
        forward, rest = self.body.feed(data)
        if self._limit_bytes is not None and self.body.seen_bytes > self._limit_bytes:
            raise _too_large(self._limit_bytes)
        if forward:
            if self._sink is not None:
                # uvloop raises on a write between a transport's failure and its connection_lost.
                if not self._sink.is_closing():
                    self._sink.write(forward)
            else:
                self._held.append(forward)
                self.held_bytes += len(forward)
                # Behind the end, the source is read for what else it says: that it has left.
                if self.held_bytes > self._most_held_bytes and not self.body.done:
                    self.pause()
        return rest

    def waits(self, loop: asyncio.AbstractEventLoop, go_on: Callable[[bytes], None], data: bytes) -> bool:
        """Whether bytes from the source have to wait for the far end to be heard; `go_on` takes them when it has been.

        It may refuse the rest and be gone: a write that fails would lose what it said, which is under TLS. The source
        is not read meanwhile, so that nothing overtakes them.
        """
        sink = self._sink
        if sink is None or sink.can_write_eof() or not has_come(sink):
            return False
        self.pause()
        loop.call_soon(self._hear, loop, sink, go_on, data, MAX_HEARING_TURNS)
        return True

    def _hear(
        self,
        loop: asyncio.AbstractEventLoop,
        sink: asyncio.Transport,
        go_on: Callable[[bytes], None],
        data: bytes,
        turns_left: int,
    ) -> None:
        if turns_left and has_come(sink):
            loop.call_soon(self._hear, loop, sink, go_on, data, turns_left - 1)
            return
        self.resume()
        go_on(data)

    def held(self) -> bytes:
        """Return what is held, which stays here."""
        if len(self._held) > 1:
            self._held = [b"".join(self._held)]
        return self._held[0] if self._held else b""

    def take_held(self) -> bytes:
        """Hand over what was held, to be written together with the head."""
        if not self._held:
            return b""
        held = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        self._held.clear()
        self.held_bytes = 0
        return held

    def open(self, sink: asyncio.Transport) -> None:
        """Pass bytes on to `sink` from now on."""
        self._sink = sink
        if not self.body.done:  # else it is not for this body that the source is not read
            self.resume()

    def pause(self) -> None:
        """Stop reading the source: the far end is slower."""
        if self._source.is_reading():
            self._source.pause_reading()

    def resume(self) -> None:
        """Read the source again."""
        if not self._source.is_reading() and not self._source.is_closing():
            self._source.resume_reading()


def begin_upload(
    context: Destination, head: RequestHead, source: asyncio.Transport, data: bytes
) -> tuple[Relay, bytes]:
    """Begin to relay a request's body that has not all come with its head, or may be too long.

    Args:
        context: What all exchanges with its target share.
        head: The request's.
        source: The client's.
        data: What came behind the head.

    Returns:
        The relay, which holds what has come of the body, and what lies behind its end.

    Raises:
        BadRequest: Its framing is broken.
        BodyTooLarge: It is longer than `MAX_BODY`, or says that it will be.
        TokenError: It is a stranger's, and much of it has come already.
    """
    limit_bytes = context.settings.max_body
    if limit_bytes is not None and head.length > limit_bytes:
        raise _too_large(limit_bytes)
    if head.length == CHUNKED and len(data) > MAX_STRANGERS_BYTES:
        context.admission.authenticate(head.bearer, context.clock.wall_s)
    body = framing.body(head.length, BadRequest, trailers=context.route.request_trailers)
    relay = Relay(body, source, limit_bytes)
    return relay, relay.feed(data)


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is longer than {limit_bytes} bytes.")
