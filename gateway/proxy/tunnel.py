"""Two connections joined after a `101 Switching Protocols`: bytes both ways, untouched (RFC 9110 §7.8, §15.2.2).

A `Tunnel` takes the exchange's place on both of them, and ends with them: neither carries HTTP again. Until the 101
has come there is none, and what the client sends meanwhile is its next request, if it is anything.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, ClassVar, Final

from gateway.proxy.sockets import end_writing, still_takes

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.proxy.client import ClientConnection
    from gateway.proxy.context import Destination
    from gateway.proxy.upstream import UpstreamConnection

FAREWELL_S: Final = 2.0
"""How long an upstream that takes no more bytes may take over the end, of TLS say: it may be working for nobody."""


class Tunnel:
    """Passes on bytes, ends and resets, each side's to the other.

    The client connection treats it as it does an `Exchange` whose request is whole.

    Args:
        context: What all exchanges with its target share.
        client: The connection that asked for the switch.
        upstream: The connection that switched.
        on_end: Called when either connection has ended, perhaps for each, with how many bytes have come from the client
            and from the upstream.
    """

    # What the client connection asks of an exchange: there is no request any more, and so nothing is missing of it.
    request_done: ClassVar[bool] = True
    missing_bytes: ClassVar[int] = 0
    takes_interim: ClassVar[bool] = False
    sends_on: ClassVar[bool] = True

    # fmt: off
    __slots__ = (
        "_client", "_client_ended", "_clock", "_from_client", "_from_upstream", "_idle_timeout_s", "_on_end",
        "_upstream", "_upstream_ended",
    )
    # fmt: on

    def __init__(
        self,
        context: Destination,
        client: ClientConnection,
        upstream: UpstreamConnection,
        on_end: Callable[[int, int], None],
    ) -> None:
        self._on_end = on_end
        self._clock = context.clock
        self._idle_timeout_s = context.settings.idle_timeout_s
        self._client = client
        self._upstream = upstream
        self._client_ended = False
        self._upstream_ended = False
        self._from_client = self._from_upstream = 0  # bytes

    def begin(self, first: bytes) -> None:
        """Join the connections.

        Args:
            first: What goes to the client before all else: the 101, and what came behind it.
        """
        client, upstream = self._client, self._upstream
        upstream.reader = self
        early, client_ended = client.switch(self)
        client.write(first)
        if not client.writable:
            self.on_client_full()
        self._on_bytes()
        if early:
            self.on_client_bytes(early)
        if client_ended:
            self.on_client_ended()
        elif upstream.writable:
            client.read_on()

    # --- from the client -----------------------------------------------------------------------------------------

    def on_client_bytes(self, data: bytes) -> bytes:
        """Pass bytes on; none of them belong to a next request."""
        transport = self._upstream.transport
        self._from_client += len(data)
        if not transport.is_closing():
            transport.write(data)
            self._upstream.untaken_bytes = sys.maxsize  # not known, until it is next asked for
        self._on_bytes()
        return b""

    def on_client_ended(self) -> bool:
        """Pass the client's end on; it is no hang-up, for the upstream may have more to say."""
        self._client_ended = True
        self._on_bytes()
        transport = self._upstream.transport
        if transport.can_write_eof() and not self._upstream_ended:
            end_writing(transport)
        else:
            transport.close()
            self._client.deadline_s = self._clock.soon_s + FAREWELL_S
        return False

    def on_client_full(self) -> None:
        """The client reads slower than the upstream sends."""
        transport = self._upstream.transport
        if transport.is_reading():
            transport.pause_reading()

    def on_client_ready(self) -> None:
        """The client has caught up."""
        self._on_bytes()
        transport = self._upstream.transport
        if not transport.is_reading() and not transport.is_closing():
            transport.resume_reading()

    def on_client_lost(self) -> None:
        """The client's connection broke, or has been closed behind the upstream's."""
        self._on_end(self._from_client, self._from_upstream)
        upstream = self._upstream
        over_tls = not self._client.transport.can_write_eof()
        if over_tls and self._client_ended and not upstream.transport.get_write_buffer_size():
            # It ended in good order: the kernel sends what came before, and the end. Nobody takes what comes back.
            upstream.reader = None
            upstream.transport.close()
        else:
            upstream.close()

    # --- from the upstream ---------------------------------------------------------------------------------------

    def on_answer_bytes(self, data: bytes) -> None:
        """Pass bytes on."""
        self._from_upstream += len(data)
        self._client.write(data)
        self._on_bytes()

    def on_answer_eof(self) -> bool:
        """Pass the upstream's end on; say whether it can still be sent to, and the client has not ended."""
        transport = self._upstream.transport
        if transport.is_closing():  # TLS that was closed first drops what comes before the end: not all was passed on
            return False
        self._upstream_ended = True
        self._on_bytes()
        end_writing(self._client.transport)
        # TLS knows no half-closed connection: it is closed in return, on either side.
        return transport.can_write_eof() and self._client.transport.can_write_eof() and not self._client_ended

    def on_upstream_full(self) -> None:
        """The upstream reads slower than the client sends."""
        self._client.rest()

    def on_upstream_ready(self) -> None:
        """The upstream has caught up."""
        self._on_bytes()
        self._client.unwatch_unread()
        self._client.read_on()

    def on_upstream_lost(self, *, unsent: bool, heard: bool) -> None:
        """The upstream's connection broke, or has closed behind its end: the client's goes the same way."""
        del unsent, heard
        self._on_end(self._from_client, self._from_upstream)
        if self._upstream_ended:
            self._client.on_tunnel_done()
        else:
            self._client.abort()

    # --- time ----------------------------------------------------------------------------------------------------

    def on_deadline(self) -> None:
        """Nothing came from either side for so long: reset both, unless the upstream is only slow to take bytes."""
        if still_takes(self._upstream):
            self._on_bytes()
        else:
            self._upstream.close()
            self._client.abort()

    def _on_bytes(self) -> None:
        self._client.deadline_s = self._clock.soon_s + self._idle_timeout_s
