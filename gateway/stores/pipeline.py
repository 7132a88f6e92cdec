"""One multiplexed connection to Redis: commands go out as bytes, replies come back in the same order.

All commands of one tick of the event loop leave in one write; but where they come one at a time, each leaves at once.
There is no task, future or timer per command: one timer per connection watches the oldest command without a reply.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import hiredis

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.stores.address import RedisAddress

_NOTHING: Final = object()
_STALL_S: Final = 0.02
"""A timer this late means that this process stood still, and that replies may lie unread in the socket."""
_TICK_S: Final = 0.001
"""How exact uvloop's timers are."""
RETIRED_S: Final = 5.0
"""How long a connection that was replaced may still answer. What has been sent again on the next one must not arrive on
this one when that is forgotten, at the earliest after a third of `budgets.spending.LEASE_US`: it would count twice."""
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_NUMBERS: Final = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
_BUFFER_LIMIT_BYTES: Final = 256 * 1024
"""About a thousand checks that the kernel would not take: Redis is not reading, and more would help nobody."""


class Recipient(Protocol):
    """Who takes the reply to a command. Of the first two, exactly one is called, once.

    `context` is what was given with the command; so one recipient serves any number of commands.
    """

    def on_reply(self, context: Any, reply: object) -> None:  # noqa: ANN401 - the recipient's own
        """Take the reply: a value, or a `hiredis.ReplyError`."""
        ...

    def on_loss(self, connection: Connection, context: Any, reason: str) -> None:  # noqa: ANN401 - likewise
        """Hear that the reply did not come in time, or never will; `reason` is a sentence."""
        ...

    def on_late_reply(self, connection: Connection, reply: object) -> None:
        """Take a reply that came after its loss was told."""
        ...


class Connection(asyncio.Protocol):
    """A connection to Redis, from its making to its end. It is not made again: whoever needs one opens another.

    Args:
        timeout_s: How long a command waits for its reply, in seconds.
        on_end: Called once, with the connection and the reason, before the commands in flight hear of their loss.
    """

    __slots__ = (
        "_alone",
        "_late",
        "_loop",
        "_on_end",
        "_outgoing",
        "_postponed",
        "_reader",
        "_retired",
        "_retiring",
        "_sent_s",
        "_timeout_s",
        "_transport",
        "_waiting",
        "_watch",
        "congested",
        "end_reason",
    )

    def __init__(self, timeout_s: float, on_end: Callable[[Connection, str], None]) -> None:
        # For the connection's life.
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._on_end = on_end
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._transport: asyncio.Transport | None = None
        self._retired = False
        self._retiring: asyncio.TimerHandle | None = None
        self.end_reason: str | None = None
        self.congested = False
        # For the commands in flight; the abandoned ones (`_late`) are all older than the others.
        self._late: deque[Recipient] = deque()
        self._waiting: deque[tuple[Recipient, Any, float]] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._postponed = False
        self._alone = False  # the last write had one command: more than one at a time is not to be expected
        # For this tick.
        self._outgoing: list[bytes] = []
        self._sent_s = 0.0

    def send(self, packed: bytes, recipient: Recipient, context: object = None) -> None:
        """Send a command: at once, or with all the others of this tick.

        Args:
            packed: One command in RESP, which brings exactly one reply.
            recipient: Who is called back, never before this returns.
            context: Passed to the recipient.
        """
        waiting = self._waiting
        if not self._outgoing:
            self._sent_s = self._loop.time()
            if self._alone and not waiting:
                waiting.append((recipient, context, self._sent_s))
                self._write(packed)
                return
            self._loop.call_soon(self._flush)
        self._outgoing.append(packed)
        waiting.append((recipient, context, self._sent_s))

    def expect_replies_within(self, timeout_s: float) -> None:
        """Change how long commands wait; only while none is in flight."""
        self._timeout_s = timeout_s
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def retire(self) -> None:
        """End as soon as no reply is outstanding, and soon in any case; until then, late replies are still taken."""
        self._retired = True
        self._end_if_done()
        if self.end_reason is None and self._retiring is None:
            self._retiring = self._loop.call_later(RETIRED_S, self.cut, "The connection to Redis was replaced.")

    def cut(self, reason: str) -> None:
        """End now, as `end` does, and let nothing arrive that has not: the kernel would send it for minutes on."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            sock = transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.end(reason)

    def end(self, reason: str) -> None:
        """End now; what is in flight is lost for `reason`."""
        if self.end_reason is not None:
            return
        self.end_reason = reason
        self._alone = False  # what is still sent is lost, but not before `send` has returned
        for timer in (self._watch, self._retiring):
            if timer is not None:
                timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._late.clear()
        self._on_end(self, reason)
        self._lose_all(reason)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_BUFFER_LIMIT_BYTES)

    def data_received(self, data: bytes) -> None:
        """Hand each reply to the command that has waited longest, for Redis answers in order."""
        self._reader.feed(data)
        self._postponed = False
        next_reply, late, waiting = self._reader.gets, self._late, self._waiting
        try:
            while (reply := next_reply()) is not _NOTHING:
                if late:
                    late.popleft().on_late_reply(self, reply)
                elif waiting:
                    recipient, context, _ = waiting.popleft()
                    recipient.on_reply(context, reply)
                else:
                    self.end("Redis sent a reply that nobody asked for.")
                    return
        except hiredis.ProtocolError:
            self.end("What Redis sent was not the Redis protocol.")
        self._end_if_done()

    def pause_writing(self) -> None:
        """Note that Redis does not read."""
        self.congested = True

    def resume_writing(self) -> None:
        """Note that Redis reads again."""
        self.congested = False

    def connection_lost(self, exc: Exception | None) -> None:
        """End: the other side did."""
        self.end("The connection to Redis was lost." if exc else "Redis closed the connection.")

    # Inside

    def _flush(self) -> None:
        if self.end_reason is not None:
            self._lose_all(self.end_reason)
            return
        self._alone = len(self._outgoing) == 1
        self._write(b"".join(self._outgoing))
        self._outgoing.clear()

    def _write(self, commands: bytes) -> None:
        assert self._transport is not None  # noqa: S101 - nobody gets a connection before it is made
        self._transport.write(commands)
        if self._watch is None:
            self._watch_until(self._sent_s + self._timeout_s)

    def _watch_until(self, due_s: float) -> None:
        self._watch = self._loop.call_at(due_s, self._abandon_overdue, due_s)

    def _abandon_overdue(self, due_s: float) -> None:
        now_s = self._loop.time()
        if now_s - due_s > _STALL_S and not self._postponed:
            # uvloop runs timers before it reads sockets: read first, then judge.
            self._postponed = True
            self._watch_until(now_s + _TICK_S)
            return
        self._postponed = False
        self._watch = None
        waiting = self._waiting
        while waiting and waiting[0][2] + self._timeout_s <= now_s + _TICK_S:
            recipient, context, _ = waiting.popleft()
            self._late.append(recipient)
            recipient.on_loss(self, context, f"Redis did not answer within {self._timeout_s * 1000:.0f} ms.")
        if waiting and self._watch is None:  # else it is what was sent within `on_loss`
            self._watch_until(waiting[0][2] + self._timeout_s)

    def _lose_all(self, reason: str) -> None:
        lost = list(self._waiting)
        self._waiting.clear()
        self._outgoing.clear()
        for recipient, context, _ in lost:
            recipient.on_loss(self, context, reason)

    def _end_if_done(self) -> None:
        if self._retired and not self._waiting and not self._late:
            self.end("The connection to Redis was replaced.")


async def dial(address: RedisAddress, timeout_s: float, on_end: Callable[[Connection, str], None]) -> Connection:
    """Open a connection; see `Connection` for the arguments.

    Raises:
        OSError: It cannot be made.
    """
    loop = asyncio.get_running_loop()

    def make() -> Connection:
        return Connection(timeout_s, on_end)

    if address.unix_path is not None:
        return (await loop.create_unix_connection(make, address.unix_path))[1]
    tls = _tls_context(address.ca_file) if address.tls else None
    name = address.host if address.tls else None
    failure = OSError("the name has no address")
    # Looked up by the loop's method, which uvloop itself passes over: see `gateway.names`.
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    # As text with its scope, without which a link-local address is none (RFC 4007 §11).
    for host in [socket.getnameinfo(place, _NUMBERS)[0] for *_, place in found]:
        try:
            return (await loop.create_connection(make, host, address.port, ssl=tls, server_hostname=name))[1]
        except OSError as error:
            failure = error
    raise failure


@lru_cache(maxsize=1)
def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    # The system's roots take 10 ms to load: too long to do it for each connection, beside requests.
    return ssl.create_default_context(cafile=ca_file)
