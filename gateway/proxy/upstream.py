"""One connection to the upstream: sends requests, reads answer heads, and is watched while it idles."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol, cast

from gateway.errors import UpstreamProtocolError
from gateway.http1.message import HEAD_END, MAX_HEAD_BYTES
from gateway.proxy.sockets import ended_in_order, last_bytes, reset, untaken

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.http1.message import AnswerHead
    from gateway.http1.opening import Opening
    from gateway.http1.parser import AnswerParser

MAX_INTERIM_ANSWERS: Final = 32


class ByteReader(Protocol):
    """Who takes what comes behind the last head, and hears of the connection."""

    @property
    def sends_on(self) -> bool:
        """Whether it sends, or has sent, more than what the connection began with."""
        ...

    def on_answer_bytes(self, data: bytes) -> None:
        """More of the body came."""
        ...

    def on_answer_eof(self) -> bool:
        """The upstream ended its side in good order after the final head.

        Returns:
            Whether the connection stays, to be sent to.
        """
        ...

    def on_upstream_lost(self, *, unsent: bool, heard: bool) -> None:
        """The connection ended with the exchange unfinished.

        Args:
            unsent: No byte of the request left this machine.
            heard: A byte of an answer came.
        """
        ...

    def on_upstream_full(self) -> None:
        """The upstream reads slower than it is sent to: send no more."""
        ...

    def on_upstream_ready(self) -> None:
        """The upstream has caught up."""
        ...


class AnswerReader(ByteReader, Protocol):
    """Who sent the request and takes the answer, from its first head on."""

    def on_interim(self, head: AnswerHead) -> None:
        """A 1xx head came; the final one follows."""
        ...

    def on_answer(self, head: AnswerHead, rest: bytes) -> None:
        """The final head came, and `rest` behind it."""
        ...

    def on_switch(self, head: AnswerHead, rest: bytes) -> None:
        """A 101 came in place of a final head, and `rest` behind it: HTTP ends there (RFC 9110 §15.2.2)."""
        ...

    def on_bad_answer(self, error: UpstreamProtocolError) -> None:
        """What came is no answer."""
        ...


class UpstreamConnection(asyncio.Protocol):
    """A persistent connection, lent to one exchange at a time.

    Args:
        parser: The process's answer parser.
        on_end: Called when the connection is closed, and again when its transport has told of the end.
    """

    __slots__ = (
        "_awaiting",
        "_buffer",
        "_interims",
        "_on_end",
        "_opening",
        "_parser",
        "_sent_bytes",
        "_unsent",
        "idle_since_s",
        "old_at_s",
        "reader",
        "reusable",
        "reused",
        "transport",
        "untaken_bytes",
        "writable",
    )

    def __init__(self, parser: AnswerParser, on_end: Callable[[UpstreamConnection], None]) -> None:
        # For the process.
        self._parser = parser
        self._on_end = on_end
        # For the connection.
        self.transport = cast("asyncio.Transport", None)
        self.reused = False
        self.writable = True
        self.idle_since_s = self.old_at_s = 0.0
        self._opening: Opening[AnswerHead] | None = None
        # For the exchange.
        # Without a reader, whatever arrives ends the connection.
        self.reader: ByteReader | None = None
        self.reusable = False
        self._buffer = b""
        self._awaiting: AnswerReader | None = None  # a head, that is; else what comes are bytes
        self._interims = 0
        self._sent_bytes = 0
        self.untaken_bytes = 0  # how many there were when it was last looked
        self._unsent = False

    def begin(self, reader: AnswerReader, request: bytes) -> None:
        """Send a request (its head, and as much of its body as there is) and give its answer to `reader`."""
        self.reader = reader
        self.reusable = False
        self._awaiting = reader
        self._interims = 0
        self._sent_bytes = self.untaken_bytes = len(request)
        self.transport.write(request)

    def close(self) -> None:
        """End the connection now. Never waits: a TLS peer that answers no close_notify would hold it for 30 s."""
        in_use, self.reader = self.reader is not None, None
        self._on_end(self)
        if in_use:
            reset(self.transport)
        elif self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        reader, awaiting = self.reader, self._awaiting
        if reader is None:
            # Nobody asked: a stale answer, or an attempt to answer the next request before it is made.
            self.close()
            return
        if awaiting is None:
            reader.on_answer_bytes(data)
            return
        if self._buffer:
            data = self._buffer + data
        try:
            while self.reader is not None:
                opening = self._opening
                found = (None if opening is None else opening.read(data)) or self._find_head(data)
                if found is None:
                    return
                self._buffer = b""
                head, end = found
                data = data[end:]
                if head.status < 200 and head.status != 101:
                    self._pass_interim(awaiting, head)
                    continue
                self._awaiting = None
                if head.status == 101:
                    awaiting.on_switch(head, data)
                else:
                    awaiting.on_answer(head, data)
                return
        except UpstreamProtocolError as error:
            awaiting.on_bad_answer(error)

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`."""
        if self.reader is not None and self._awaiting is None:
            if ended_in_order(self.transport):
                return self.reader.on_answer_eof()
            self.transport.abort()
            return False
        # Closing in good order would first send what is still in the buffer, to be acted on and never answered.
        self._unsent = self.transport.get_write_buffer_size() >= self._sent_bytes > 0
        self.transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._on_end(self)
        reader = self.reader
        # It may have refused the rest, and a write of that have failed before this was read.
        may_refuse = isinstance(exc, OSError) and reader is not None and reader.sends_on
        if may_refuse and (last := last_bytes(self.transport)):
            self.data_received(last)
        reader, self.reader = self.reader, None
        if reader is not None:
            reader.on_upstream_lost(unsent=self._unsent, heard=bool(self._buffer))

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self.writable = False
        self.untaken_bytes = untaken(self.transport)
        if self.reader is not None:
            self.reader.on_upstream_full()

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self.writable = True
        if self.reader is not None:
            self.reader.on_upstream_ready()

    def _pass_interim(self, reader: AnswerReader, head: AnswerHead) -> None:
        self._interims += 1
        if self._interims > MAX_INTERIM_ANSWERS:
            raise UpstreamProtocolError("The upstream sent interim answers without end.")
        reader.on_interim(head)

    def _find_head(self, data: bytes) -> tuple[AnswerHead, int] | None:
        """Read a head and say where it ends in `data`, or keep what there is of one."""
        end = data.find(HEAD_END)
        # As long as its end has not come, the last three bytes may be the begin of it.
        if end > MAX_HEAD_BYTES or (end < 0 and len(data) > MAX_HEAD_BYTES + 3):
            raise UpstreamProtocolError("The upstream's answer head is longer than the gateway reads.")
        if end < 0:
            self._parser.check_unfinished(data, len(self._buffer))
            self._buffer = data
            return None
        head = self._parser.parse(data[:end])
        self._opening = head.opening
        return head, end + len(HEAD_END)
