"""An exchange whose request is read before anybody is asked for a place: it may be one that repeats (`LOOP_GUARD`).

What `exchange` has is done here as well. A longer body than `MAX_READ_BYTES` goes on as it comes, and is not guarded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import BadRequest, GatewayError, LoopDetected
from gateway.http1 import fields
from gateway.http1.chunked import ChunkedBody
from gateway.http1.message import CHUNKED, CONTINUE
from gateway.metering import MAX_READ_BYTES
from gateway.proxy import repeats, waiting
from gateway.proxy.clock import NEVER
from gateway.proxy.exchange import Exchange

if TYPE_CHECKING:
    from gateway.proxy.client import ClientConnection
    from gateway.proxy.context import Destination
    from gateway.subject import Subject


class GuardedExchange(Exchange):
    """See `Exchange`."""

    __slots__ = ("_collecting", "_continued", "_mark")

    _needs_body: bool = True

    def __init__(self, context: Destination, client: ClientConnection) -> None:
        super().__init__(context, client)
        self._collecting = self._continued = False
        self._mark = ""

    # --- read ----------------------------------------------------------------------------------------------------

    def _ask(self, subject: Subject) -> None:
        """Ask when all is known that the answer depends on."""
        head, upload = self.head, self.upload
        if upload is None or not self._needs_body or head.length > MAX_READ_BYTES or self.request_done:
            self._ask_read(subject)
            return
        self._collecting = True
        upload.hold(MAX_READ_BYTES)
        if head.expects_continue:
            self._continued = True
            self.client.write(CONTINUE)
        waiting.await_upstream(self)

    def on_client_bytes(self, data: bytes) -> bytes:
        """See `Exchange`."""
        rest = Exchange.on_client_bytes(self, data)
        upload, subject = self.upload, self.subject
        if self._collecting and not self._over and upload is not None and subject is not None:
            self._collecting = not self.request_done and upload.held_bytes <= MAX_READ_BYTES
            if self._collecting:
                waiting.await_upstream(self)
            else:
                self.client.deadline_s = NEVER  # the store and the pool have their own
                self.client.keep(rest)  # before this is refused, perhaps: it may be the last that is read as a request
                rest = b""
                self._ask_read(subject)
        return rest

    def _ask_read(self, subject: Subject) -> None:
        """Ask, as `Exchange._ask` does, when the request has been read as far as it is going to be."""
        try:
            subject = self._counted_apart(subject, self._read(), spends=False)
        except GatewayError as error:
            self._refuse(error)
            return
        Exchange._ask(self, subject)

    def _read(self) -> bytes | None:
        """Return the request's whole content; None if it has not all been read.

        Raises:
            BadRequest: Its framing is broken.
        """
        upload = self.upload
        if upload is None:
            return self._content
        if not self.request_done or upload.body.seen_bytes > MAX_READ_BYTES:
            return None
        body = upload.held()
        return ChunkedBody(BadRequest, decode=True).feed(body)[0] if self.head.length == CHUNKED else body

    # --- admit ---------------------------------------------------------------------------------------------------

    def _counted_apart(self, subject: Subject, body: bytes | None, *, spends: bool) -> Subject:
        """Return the subject to ask for, of which this request is counted by what it is as well, where it is known."""
        context, guard, head = self.context, self.context.settings.loop_guard, self.head
        if guard is not None and body is not None:
            path = context.route.path_of(head.target)
            self._mark = mark = repeats.mark_of(context.route.name, head.method, path, body)
            self.subject = subject = context.admission.repeated.subject(subject, guard, mark, spends=spends)
        return subject

    def _acquire(self) -> None:
        """Leave out what the client has had its answer to, and go on as `Exchange` does."""
        if self._continued:
            self._drop(b"\r\nexpect:")
        Exchange._acquire(self)

    def _drop(self, name: bytes) -> None:
        """Leave a field out of what is sent, given as CRLF, its name in lower case, and the colon.

        The rest stays where the log looks for it.
        """
        self.head.lines = fields.without_field(self.head.lines, name)

    def _refuse(self, error: GatewayError) -> None:
        if isinstance(error, LoopDetected) and not self._over:
            error = repeats.note(self, self._mark, self._read() or b"", error)
        Exchange._refuse(self, error)
