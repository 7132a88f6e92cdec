"""One client connection: cuts the stream into requests and gives each to an exchange, one at a time."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Final, cast

from gateway.errors import Draining, GatewayError, RequestTimeout
from gateway.http1.message import CHUNKED, CRLF, HEAD_END, MAX_HEAD_BYTES, RequestHead
from gateway.http1.partial import HEAD_BEGINS, PartialHead
from gateway.proxy import lingering, own
from gateway.proxy.clock import NEVER
from gateway.proxy.exchange import Exchange
from gateway.proxy.hangup import HangupWatch
from gateway.proxy.local import LocalExchange
from gateway.proxy.peer import host_of, peer_of
from gateway.proxy.sockets import end_writing, has_unread, reset, still_takes, untaken

if TYPE_CHECKING:
    from gateway.http1.opening import Opening
    from gateway.proxy.context import ProxyContext
    from gateway.proxy.peer import Peer
    from gateway.proxy.tunnel import Tunnel

MAX_PIPELINED_BYTES: Final = 64 * 1024
REQUESTS_A_TURN: Final = 32
"""How many requests of one client may be refused before others have their turn: about a millisecond's."""
GRACE_S: Final = 1.0
"""When the gateway stops, a request may be on its way on a connection that is idle here, and no answer has said so
far. This is much more than a round trip, and lets a busy client come back for an answer with `Connection: close`."""


class ClientConnection(asyncio.Protocol):
    """Reads requests, answers in their order, and keeps what came too early.

    Args:
        context: What all connections share.
    """

    # fmt: off
    __slots__ = (
        "_context", "transport", "opening", "_advancing", "_buffer", "_partial", "_exchange", "spare",  # what comes
        "deadline_s", "writable", "untaken_bytes", "_held_back", "_half_closed", "_watch", "_lingering",
    )
    # fmt: on

    def __init__(self, context: ProxyContext) -> None:
        self._context = context
        self.transport = cast("asyncio.Transport", None)
        self.deadline_s = NEVER
        self.writable = True
        self._exchange: Exchange | LocalExchange | Tunnel | None = None
        self.spare: Exchange | None = None  # the last one, if nothing is left of it
        self._buffer = b""
        self._partial: PartialHead | None = None
        self.opening: Opening[RequestHead] | None = None
        self._advancing = False
        self._watch: HangupWatch | None = None
        self.untaken_bytes = sys.maxsize
        self._half_closed = False
        self._held_back = False  # there are more requests than are read for now
        self._lingering: lingering.Lingering | None = None

    # --- what the transport says ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)
        context = self._context
        if context.closed:  # it was accepted before the listener closed
            self.transport.abort()
            return
        context.connections.add(self)
        context.clock.watched.add(self)
        self.deadline_s = context.clock.soon_s + context.settings.keepalive_timeout_s
        if context.draining:
            self.drain()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._exchange is not None:
            data = self._exchange.on_client_bytes(data)
            if not data:
                return
        if self._lingering is not None:
            self._lingering.left_bytes -= len(data)
            self.deadline_s = min(self._context.clock.soon_s + lingering.LINGER_S, self._lingering.end_s)
            if self._lingering.left_bytes <= 0:
                self.transport.close()
            return
        self._buffer = self._buffer + data if self._buffer else data
        if self._exchange is None and self.writable:
            self._advance()
        if len(self._buffer) > MAX_PIPELINED_BYTES and self.transport.is_reading():
            self.transport.pause_reading()
            self._held_back = True

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`. A client may end its side and still wait for its answer (RFC 9112 §9.6)."""
        exchange = self._exchange
        if not self.transport.can_write_eof():  # TLS, whose end is that of both sides
            if exchange is not None:
                exchange.on_client_ended()
            return False
        # Without an exchange, what is in the buffer are requests that wait for their turn.
        if not (self._buffer if exchange is None else exchange.request_done):
            return False
        self._unwatch()
        self._half_closed = True
        self._watch = HangupWatch(
            self._context.loop, self.transport, self.abort, self._missing_bytes, self._takes_interim
        )
        if exchange is not None and not self._buffer and exchange.on_client_ended():
            self._watch.expect_the_end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._context.connections.discard(self)
        self._context.on_client_gone()
        self._context.clock.watched.discard(self)
        self.deadline_s = NEVER
        self._buffer = b""
        self._unwatch()
        exchange, self._exchange, self.spare = self._exchange, None, None
        if exchange is not None:
            exchange.on_client_lost()

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self.writable = False
        self.untaken_bytes = untaken(self.transport)
        if self._exchange is not None:
            self._exchange.on_client_full()

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self.writable = True
        if self._exchange is not None:
            self._exchange.on_client_ready()
        else:
            self._go_on()

    def on_deadline(self) -> None:
        """See `clock.Watched`."""
        self.deadline_s = NEVER
        if self._partial is None and still_takes(self):
            self.deadline_s = self._context.clock.soon_s + self._context.settings.idle_timeout_s
        elif self.transport.is_closing():
            self.abort()  # what it has not taken is lost, and the end must not look like the answer's
        elif self._exchange is not None:
            self._exchange.on_deadline()
        elif self._partial is None and self._lingering is None and has_unread(self.transport):
            self.deadline_s = self._context.clock.soon_s  # a request has come just in time
        elif self._partial is None:
            self.close()
        elif self._context.draining:
            self._refuse(Draining("This instance is stopping."))
        else:
            self._refuse(RequestTimeout("The request head did not come in time."))

    # --- requests ------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Start exchanges as long as there are whole heads and no exchange is under way, and others have their turn."""
        if self._advancing:
            return
        self._advancing = True
        exchange: Exchange | LocalExchange
        left = REQUESTS_A_TURN
        # Answers that a client does not read must not pile up: then its next request waits.
        while left and self._exchange is None and self._buffer and self.writable and self._lingering is None:
            left -= 1
            head = None
            try:
                opening = self.opening
                found = None if opening is None or self._partial is not None else opening.read(self._buffer)
                if found is not None:
                    head, end = found
                    self._buffer = self._buffer[end:]
                else:
                    head = self._next_head()
                    if head is None:
                        break
                routes = self._context.routes
                to = routes.known.get(head.target) or routes.find(head.target)
                spare, self.spare = self.spare, None
                if to is None:
                    exchange = LocalExchange(self._context, self)
                elif spare is not None and spare.context is to:
                    exchange = spare
                elif to.metered is None:
                    exchange = Exchange(to, self)
                else:
                    exchange = to.metered(to, self)
                self._exchange = exchange
                self._buffer = exchange.start(head, self._buffer)
                # The rest of its body cannot come any more, unless it is refused without a look at that.
                if self._half_closed and not exchange.request_done and (to is not None or head.length != CHUNKED):
                    self._exchange = None
                    self.close()
                    break
                exchange.begin()
            except GatewayError as error:
                self._refuse(error, head)
        if left:
            self._advancing = False
        else:
            self._context.loop.call_soon(self._advance_further)
        if self._held_back:
            self.read_on()

    def _advance_further(self) -> None:
        self._advancing = False
        self._go_on()

    def _next_head(self) -> RequestHead | None:
        """Take the next head out of the buffer, if it is all there.

        Raises:
            GatewayError: It is not one, or can no longer become one.
        """
        if self._partial is not None:
            whole = self._partial.feed(self._buffer)
            if whole is None:
                self._buffer = b""
                return None
            self._partial = None
            self._buffer = whole
        data = self._buffer
        end = data.find(HEAD_END)
        if not 0 <= end <= MAX_HEAD_BYTES or data.startswith(CRLF):
            return self._begin_partial(data)
        head = self._context.parser.parse(data[:end])
        self.opening = None if head.opening is None else head.opening.alone()
        self._buffer = data[end + len(HEAD_END) :]
        return head

    def _refuse(self, error: GatewayError, head: RequestHead | None = None) -> None:
        """Answer a request that does not get as far as to an exchange, or whose head cannot even be read."""
        is_heads = self._buffer.startswith(HEAD_BEGINS) if self._partial is None else self._partial.is_heads
        if head is None and is_heads:  # its answer has no content, whatever is wrong with it (RFC 9110 §9.3.2)
            head = RequestHead(b"HEAD", b"", 1)
        own.refuse(self, self._context, error, head)

    def _begin_partial(self, data: bytes) -> RequestHead | None:
        self._buffer = b""
        self._partial = PartialHead()
        whole = self._partial.feed(data)
        if whole is not None:  # there were empty lines before it
            self._partial = None
            self._buffer = whole
            return self._next_head()
        if self._half_closed:  # the rest can never come (RFC 9112 §8)
            self._partial = None
            self.close()
            return None
        context = self._context
        self.deadline_s = context.clock.soon_s + context.settings.header_timeout_s
        if context.draining:
            self.drain()
        return None

    # --- answers -------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send bytes of an answer, unless the connection is already ending."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def keep(self, data: bytes) -> None:
        """Take what lies behind a request from its exchange, which may end before it could return that."""
        self._buffer += data

    def on_exchange_done(self, keep_alive: bool) -> None:  # noqa: FBT001 - by its place, which takes less time
        """The answer is written: go on with the next request, or close."""
        exchange, self._exchange = self._exchange, None
        if self._watch is not None:
            self.unwatch_unread()
        transport, context = self.transport, self._context
        if transport.is_closing():
            return
        if not keep_alive:
            if exchange is None:  # what came was no request
                self._linger()
            elif self._buffer or not exchange.request_done or has_unread(transport):
                is_known = isinstance(exchange, Exchange) and exchange.subject is not None
                self._linger(lingering.MAX_UPLOAD_LINGER_BYTES, NEVER if is_known else lingering.MAX_UPLOAD_LINGER_S)
            else:
                self.close()
            return
        if self._half_closed and not self._buffer:
            self.close()
            return
        self.deadline_s = context.clock.soon_s + context.settings.keepalive_timeout_s
        if context.draining:
            self.drain()
        if self._buffer:
            self._advance()
        if not transport.is_reading():
            self.read_on()

    def switch(self, tunnel: Tunnel) -> tuple[bytes, bool]:
        """Give all that the client sends to a tunnel; return what has come already, and whether that was all."""
        self._exchange = tunnel
        early, self._buffer = self._buffer, b""
        return early, self._half_closed

    def on_tunnel_done(self) -> None:
        """The other side has ended in good order: let the client read what was sent, and close."""
        self._exchange = None
        if self._half_closed or not self.transport.can_write_eof():
            self.close()
        elif not self.transport.is_closing():
            self._linger()

    def _go_on(self) -> None:
        if self.transport.is_closing():
            return
        if self._buffer:
            self._advance()
        if not self.transport.is_reading():
            self.read_on()

    def read_on(self) -> None:
        """Read again, unless what was read is more than enough for now."""
        exchange = self._exchange
        if (
            len(self._buffer) <= MAX_PIPELINED_BYTES
            and (exchange is None or exchange.request_done)
            and not self._half_closed
            and self._lingering is None
            and not self.transport.is_closing()
        ):
            self._held_back = False
            self.transport.resume_reading()

    # --- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the connection in good order; what was written still goes out."""
        self.deadline_s = self._context.clock.soon_s + self._context.settings.idle_timeout_s
        self.transport.close()

    def abort(self) -> None:
        """Reset the connection, so that the client cannot take what it has for the whole."""
        reset(self.transport)

    def drain(self) -> None:
        """The gateway is stopping: a connection that waits ends soon, any other behind its next answer."""
        soon_s = self._context.clock.soon_s
        if self._lingering is not None:
            self._lingering.hurry(soon_s)
        elif self._exchange is None and self.writable and not self._buffer and not self.transport.is_closing():
            self.deadline_s = min(self.deadline_s, soon_s + GRACE_S)

    def _linger(self, most_bytes: int = lingering.MAX_LINGER_BYTES, most_s: float = lingering.LINGER_S) -> None:
        """Let the client read its answer before the connection ends: closing on unread bytes would reset it."""
        self._buffer, self._partial = b"", None
        self._lingering = lingering.Lingering(most_bytes, self._context.clock.soon_s + most_s)
        self.deadline_s = self._context.clock.soon_s + lingering.LINGER_S
        if self._context.draining:
            self.drain()
        end_writing(self.transport)
        if not self.transport.is_reading():
            self.transport.resume_reading()

    def rest(self) -> None:
        """Do not read for now, but look now and then whether the client has gone: the transport cannot tell."""
        if self.transport.is_reading():
            self.transport.pause_reading()
        if self._watch is None:
            self._watch = HangupWatch(self._context.loop, self.transport, self.abort, self._missing_bytes, None)

    def unwatch_unread(self) -> None:
        """End the watch that `rest` began; a half-closed client is watched on."""
        if not self._half_closed:
            self._unwatch()

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _missing_bytes(self) -> int:
        return self._exchange.missing_bytes if self._exchange is not None else 0

    def _takes_interim(self) -> bool:
        return self._exchange is not None and self._exchange.takes_interim

    @property
    def host(self) -> str:
        """The address at the other end, as the log has it."""
        return host_of(self.transport.get_extra_info("peername"))

    @property
    def peer(self) -> Peer:
        """Who is at the other end."""
        return peer_of(self.transport.get_extra_info("peername"))
