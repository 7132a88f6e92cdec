"""One proxied request's life: authenticate → admit → acquire → send → relay → finish.

Read it top to bottom. Each phase is one short method, called by the phase before it or called back by what it waits
for. Every exchange ends in `_finish`, which gives the upstream back and lets the client connection go on, or in `_end`.
One whose upstream switches protocols ends in `on_switch`, and leaves both connections to a `Tunnel`.

It is counted in `account`; how long it waits is in `waiting`, how answers' heads look in `heads`, and errors in `own`.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from gateway.errors import GatewayError, MethodNotAllowed, StoreUnavailable, UpstreamProtocolError, UpstreamUnreachable
from gateway.http1 import framing, writer
from gateway.http1.message import IDEMPOTENT, REFUSED_METHODS, RELAYED_METHODS, UNTIL_CLOSE
from gateway.proxy import account, heads, own, waiting
from gateway.proxy.clock import NEVER
from gateway.proxy.relay import Relay, begin_upload
from gateway.proxy.tunnel import Tunnel

if TYPE_CHECKING:
    import asyncio

    from gateway.access_lines import Spent
    from gateway.http1.message import AnswerHead, RequestHead
    from gateway.proxy.client import ClientConnection
    from gateway.proxy.context import Destination
    from gateway.proxy.upstream import UpstreamConnection
    from gateway.stores import Verdict
    from gateway.subject import Subject


class Exchange:
    """A request to the target, its answer, and what the gateway holds for them meanwhile.

    Args:
        context: What all exchanges with its target share.
        client: The connection that the request came on.

    Those modules and the client connection read what has no underscore. An exchange that ended well, so that nothing
    refers to it any more, may take the next request: `_finish` leaves it as a new one is, but for what `start` sets.
    """

    # fmt: off
    __slots__ = (
        "context", "client", "head", "keep_alive", "_over",  # the exchange
        "subject", "verdict", "sent", "_leased", "_connecting", "_upstream",  # what it holds
        "request_done", "_start", "_request", "_content", "upload",  # on the way up
        "answer_started", "_answered_early", "answer", "answer_bytes", "status", "limits", "timing",  # on the way down
        "lap_began_s", "own_s", "tally",  # time spent, and what counts it
    )
    # fmt: on

    spent: Spent | None = None
    """What the log has to know of what it cost; see `metered`."""

    def __init__(self, context: Destination, client: ClientConnection) -> None:
        self.context = context
        self.client = client
        self.subject: Subject | None = None
        self.verdict: Verdict | None = None
        self._leased = self._answered_early = False
        self._connecting: asyncio.Task[None] | None = None
        self._upstream: UpstreamConnection | None = None
        self._request = b""  # what to send, and then, as long as it is all of the request, to send again
        self._content = b""
        self.upload: Relay | None = None
        self.answer: Relay | None = None
        self.limits = self.timing = b""

    def start(self, head: RequestHead, data: bytes) -> bytes:
        """Take a request's head and what came behind it; return what belongs to the next one. `begin` has to follow.

        Raises:
            BadRequest, BodyTooLarge, TokenError: Broken framing, content over `MAX_BODY`, or a stranger's that is long.
        """
        self.lap_began_s = perf_counter()
        self.head = head
        self.keep_alive = head.keep_alive
        self._over = self.sent = self.answer_started = False
        self.answer_bytes = self.status = 0
        length, limit = head.length, self.context.settings.max_body
        if 0 <= length <= len(data) and (limit is None or length <= limit):  # all of it is here: nothing to relay
            self.request_done = True
            if length == len(data):
                self._content = data
                return b""
            self._content = data[:length]
            return data[length:]
        self.request_done = False
        self.upload, rest = begin_upload(self.context, head, self.client.transport, data)
        self.request_done = self.upload.body.done
        return rest

    # --- authenticate, admit -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Find out whose request this is, and ask for a place for it."""
        context, head = self.context, self.head
        self.client.deadline_s = NEVER  # the store and the pool have their own
        try:
            if head.method in REFUSED_METHODS:
                raise MethodNotAllowed(RELAYED_METHODS)
            self.subject = subject = context.admission.authenticate(head.bearer, context.clock.wall_s)
            tally = context.usage.tallies.get(subject.id) or context.usage.open(subject.id, subject.about())
            self.tally = tally
            tally.begun += 1
            if subject.scope is not None:
                subject.scope.check(context.route.name, head.method, context.route.path_of(head.target))
                subject.scope.check_fields(head.lines)
            self._start = context.route.start_of(head)
            if context.pool.health.is_open:  # before anything is charged, and for good tokens only
                context.pool.check()
        except GatewayError as error:
            self._refuse(error)
            return
        self._ask(subject)
        if self.verdict is None and not context.writes_late and not self._over:  # while the store is at work
            self._request = context.route.write_head(head, self._start, self._content)

    def _ask(self, subject: Subject) -> None:
        self.context.admission.store.check(subject.plan, self)

    def on_verdict(self, verdict: Verdict) -> None:
        """See `stores.Waiter`."""
        subject = self.subject
        assert subject is not None  # noqa: S101 - `begin` sets it before it asks
        self.verdict = verdict
        if subject.is_special:
            self._leased = verdict.lease != b""
            self.context.metrics.on_shadowed(subject.id, subject.shadowed(verdict))
        if self._over:  # the client has left
            self._end()
        elif verdict.admitted:
            self._acquire()
        else:
            self._refuse(self.context.admission.refusal(subject, verdict))

    def on_store_loss(self, error: StoreUnavailable) -> None:
        """See `stores.Waiter`. What is wrong with the store stands in the log: it is no business of the client's."""
        self._refuse(StoreUnavailable("The limits cannot be checked right now, so nothing was sent to the API."))

    # --- acquire, send -------------------------------------------------------------------------------------------

    def _acquire(self) -> None:
        context = self.context
        if not self._request:
            if context.keys is not None:  # not before now: a refused request must not turn the ring
                self.context = context = context.keys.take()
                self._start = context.route.start_of(self.head)
            self._request = context.route.write_head(self.head, self._start, self._content)
        connection = context.pool.take()
        if connection is None:
            self._connecting = context.pool.connect(self)
        else:
            self.on_connected(connection)

    def on_connect_failed(self, error: GatewayError) -> None:
        """See `pool.Connector`."""
        self._connecting = None
        self._refuse(error)

    def on_connected(self, connection: UpstreamConnection) -> None:
        """Send the request, on a new connection (see `pool.Connector`) or on one that was kept."""
        self._connecting = None
        self._upstream = connection
        self.sent = True
        upload = self.upload
        request = self._request
        self._content = b""
        if upload is not None:
            request += upload.take_held()
            self._request = request if self.request_done else b""
        sent_s = perf_counter()
        self.own_s = sent_s - self.lap_began_s
        self.lap_began_s = sent_s
        connection.begin(self, request)
        subject, verdict = self.subject, self.verdict
        assert subject is not None and verdict is not None  # noqa: S101, PT018 - without them nobody gets this far
        self.limits = subject.limit_lines(verdict)  # while the upstream is at work
        if upload is not None:
            upload.open(connection.transport)
            if not connection.writable:  # the first bytes have filled it already
                self.on_upstream_full()
            waiting.await_upstream(self)
        else:
            self.client.deadline_s = self.context.clock.soon_s + self.context.settings.response_timeout_s

    # --- relay ---------------------------------------------------------------------------------------------------

    def on_client_bytes(self, data: bytes) -> bytes:
        """Take what came on the client connection; return what belongs to the next request."""
        upload = self.upload
        if upload is None or self.request_done:
            return data
        if upload.waits(self.context.shared.loop, self._on_heard, data):
            return b""
        return self._pass_up(upload, data)

    def _on_heard(self, data: bytes) -> None:
        """Pass on what has waited until the upstream was heard, if that still is one for it."""
        if self.upload is not None and self._upstream is not None:
            self.client.keep(self._pass_up(self.upload, data))

    def _pass_up(self, upload: Relay, data: bytes) -> bytes:
        try:
            rest = upload.feed(data)
        except GatewayError as error:
            self._refuse(error)
            return b""
        self.request_done = upload.body.done
        if self._upstream is not None:
            waiting.await_upstream(self)
        return rest

    def on_interim(self, head: AnswerHead) -> None:
        """Pass a 1xx answer on, but not to an HTTP/1.0 client (RFC 9110 §15.2)."""
        self._request = b""  # it has been heard: nothing may be sent twice
        if self.head.minor == 1:
            self.context.route.hide_key(head)
            self.client.write(writer.interim_head(head))

    def on_answer(self, head: AnswerHead, rest: bytes) -> None:
        """Write the answer's head, and what has come of its body, in one piece."""
        answered_s = perf_counter()
        upstream, client = self._upstream, self.client
        assert upstream is not None  # noqa: S101 - it is the one that calls
        self._answered_early = not self.request_done
        length = head.length
        if head.status != 200 or self.head.method == b"HEAD":  # else it is as its fields say
            length = framing.answer_length(self.head.method, head)
        upstream.reusable = head.keep_alive and length != UNTIL_CLOSE
        if length == len(rest):  # all of it is here: nothing to relay
            self.answer_started = True
            self.answer_bytes = length
            client.write(heads.answer_head(self, head, length, answered_s, rest))
            self._finish()
            return
        self.answer = answer = Relay(self._answer_body(length), upstream.transport)
        try:
            extra = answer.feed(rest)
        except UpstreamProtocolError as error:
            self._refuse(error)
            return
        self.answer_started = True
        client.write(heads.answer_head(self, head, length, answered_s, answer.take_held()))
        answer.open(client.transport)
        if not client.writable:
            self.on_client_full()
        self._after_bytes(extra)

    def _answer_body(self, length: int) -> framing.Body:
        trailers = self.context.route.answer_trailers
        return framing.body(length, UpstreamProtocolError, decode=self.head.minor == 0, trailers=trailers)

    def on_switch(self, head: AnswerHead, rest: bytes) -> None:
        """Let a tunnel take this exchange's place, if the upstream took up an offer of the client's (RFC 9110 §7.8)."""
        upstream = self._upstream
        assert upstream is not None  # noqa: S101 - it is the one that calls
        if not head.upgrade or not head.upgrade <= self.head.upgrade:
            self._refuse(UpstreamProtocolError("The upstream switched protocols unasked."))
            return
        self.answer_bytes = len(rest)
        Tunnel(self.context, self.client, upstream, self._on_tunnel_done).begin(heads.switch_head(self, head) + rest)

    def on_answer_bytes(self, data: bytes) -> None:
        """Pass on what came of the answer's body."""
        answer = self.answer
        assert answer is not None  # noqa: S101 - the head came before, and not all of the body with it
        try:
            extra = answer.feed(data)
        except UpstreamProtocolError:
            self._abort(by_upstream=True)
            return
        self._after_bytes(extra)

    def _after_bytes(self, extra: bytes) -> None:
        if extra and self._upstream is not None:
            # Bytes behind the end may be an answer to a request that is not made yet.
            self._upstream.reusable = False
        if self.answer is not None and self.answer.body.done:
            self._finish()
        else:
            waiting.await_upstream(self)

    def on_answer_eof(self) -> bool:
        """The upstream has sent all it will: an until-close body is whole, any other is cut short."""
        if self.answer is not None and isinstance(self.answer.body, framing.UntilCloseBody):
            self._finish()
        else:
            self._abort(by_upstream=True)
        return False

    @property
    def missing_bytes(self) -> int:
        """How many bytes of the request have not been read yet, at the least."""
        return 0 if self.upload is None else self.upload.body.least_left

    @property
    def sends_on(self) -> bool:
        """See `upstream.ByteReader`."""
        return self.upload is not None

    def on_client_ended(self) -> bool:
        """Whether the answer has begun, behind the whole request: a client that ends its side then has read enough."""
        return self.answer_started and not self._answered_early

    @property
    def takes_interim(self) -> bool:
        """Whether an interim answer may still be written to the client (RFC 9110 §15.2)."""
        return self.head.minor == 1 and not self.answer_started

    def on_client_full(self) -> None:
        """The client reads slower than the upstream sends."""
        if self.answer is not None:
            self.answer.pause()

    def on_client_ready(self) -> None:
        """The client has caught up."""
        if self.answer is not None:
            self.answer.resume()
            waiting.await_upstream(self)

    def on_upstream_full(self) -> None:
        """See `upstream.AnswerReader`."""
        if self.upload is not None and self._upstream is not None and not self.request_done:
            self.client.rest()

    def on_upstream_ready(self) -> None:
        """See `upstream.AnswerReader`."""
        if self.upload is not None:
            self.client.unwatch_unread()
            if self.request_done:
                self.client.read_on()
            else:
                self.upload.resume()
        waiting.await_upstream(self)

    # --- what goes wrong -----------------------------------------------------------------------------------------

    def on_upstream_lost(self, *, unsent: bool, heard: bool) -> None:
        """Try once more where that can bill nobody twice; else say so, or cut what had begun."""
        connection, self._upstream = self._upstream, None
        self.lap_began_s = perf_counter() - self.own_s  # what this upstream took is not the gateway's share
        stale = connection is not None and connection.reused and not heard
        if self.answer_started:
            self._abort(by_upstream=True)
        elif stale and self._request and (unsent or self.head.method in IDEMPOTENT):
            self._connecting = self.context.pool.connect(self)
        else:
            self._refuse(UpstreamUnreachable("The upstream ended the connection without an answer."))

    def on_bad_answer(self, error: UpstreamProtocolError) -> None:
        """See `upstream.AnswerReader`."""
        self._refuse(error)

    def on_client_lost(self) -> None:
        """The client hung up: what the upstream still makes of it would be paid for and read by nobody."""
        if not self._over:
            account.left(self)
        self._end()

    def on_deadline(self) -> None:
        """What was waited for did not come in time."""
        if self.answer_started and not self.client.writable:  # it takes nothing: it has left, or might as well have
            self.client.abort()
            return
        error = waiting.overdue(self, self._upstream)
        if error is not None:
            self._refuse(error)

    def _refuse(self, error: GatewayError) -> None:
        if self._over:
            return
        if self.answer_started:
            self._abort(by_upstream=error.blames_upstream)
            return
        account.refused(self, error)
        self._end()
        own.answer_refused(self, error)

    def _abort(self, *, by_upstream: bool) -> None:
        """End both connections so that a cut answer cannot look whole."""
        if not self._over:
            account.cut(self, by_upstream=by_upstream)
        self._end()
        self.client.abort()

    # --- finish --------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """The answer is written: give the upstream back, and let the client connection go on."""
        account.settle(self)
        upstream = self._upstream
        if upstream is not None and upstream.reusable and self.request_done:
            self._over = True
            self._upstream = None
            if self.answer is not None:
                self.answer.resume()
                self.answer = None
            self.context.pool.give_back(upstream)
            if self._leased:
                self._release()
            if self.upload is None and (not self.context.writes_late or self._forgets()):
                # A line of the log is made by now. Many connections may wait with one like this, so it holds nothing.
                client = self.client
                self.head.lines = b""
                del self.head
                self._start = self._content = self._request = self.limits = self.timing = b""
                self.subject = self.verdict = None
                self.lap_began_s = self.own_s = 0.0
                if client.opening is not None:
                    client.opening.values = None
                client.spare = self
        else:
            self._end()
        self.client.on_exchange_done(self.keep_alive)

    def _forgets(self) -> bool:
        """Forget what a subclass knows of this request, if that is possible; return whether it is. See `metered`."""
        return False

    def _end(self) -> None:
        """Let go of everything that is not the client's; a place that nothing was sent for is given back."""
        self._over = True
        if not self.sent and self.subject is not None and self.verdict is not None and self.verdict.admitted:
            self.sent, self._leased = True, False
            self.context.admission.give_back(self.subject, self.verdict)
        self._release()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._upstream is not None:
            self._upstream.close()
        self._connecting = self._upstream = None

    def _on_tunnel_done(self, received: int, sent: int) -> None:
        """The connections that a tunnel joined have ended, or one of them has, and after so many bytes each way."""
        if not self._over:
            self._over = True
            account.switched(self, received, sent)
            self._release()

    def _release(self) -> None:
        """Give the places in flight back, once, if there are any."""
        if self._leased and self.subject is not None and self.verdict is not None:
            self._leased = False
            self.context.admission.release(self.subject, self.verdict)
