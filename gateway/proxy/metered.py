"""An exchange with a target that costs something: its price is asked before it leaves, and its answer is metered.

What `exchange` has is done here as well, and in between: the request's body is read where its price depends on it, the
most that it can cost is reserved together with its limits, the body is made to fit what was granted, the answer passes
through a meter, and the cost is settled once, however the exchange ends.

What a base class has is called by its name: `super()` would take longer than some of these methods.
"""

from __future__ import annotations

import time
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Final

from gateway.access_lines import Spent
from gateway.budgets.pace import Level
from gateway.budgets.spending import Ask, Entry, Mark, Settlement
from gateway.errors import GatewayError, NotImplementedHere, UpstreamProtocolError
from gateway.http1 import framing, writer
from gateway.http1.message import CHUNKED, UNTIL_CLOSE
from gateway.metering.fields import asked, codings_line
from gateway.proxy import account, waiting
from gateway.proxy.clock import NEVER
from gateway.proxy.guarded import GuardedExchange
from gateway.proxy.metered_body import MeteredBody, MeteredUntilClose
from gateway.proxy.overspent import Extension
from gateway.proxy.pacing import UNIT
from gateway.stores.ledger import SpendVerdict
from gateway.tuples import new

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.http1.message import AnswerHead
    from gateway.metering import Meter, Pricing, Quote
    from gateway.proxy.client import ClientConnection
    from gateway.proxy.context import Destination
    from gateway.proxy.pacing import Pacing
    from gateway.proxy.upstream import UpstreamConnection
    from gateway.stores import Verdict
    from gateway.subject import Subject

MAX_PATH: Final = 200
"""Of a path, so many characters are remembered."""
MAX_METHOD: Final = 32
"""Likewise of a method; no scope has longer ones."""
_NOTHING: Final[Mapping[str, int]] = {}
_ASSUMED: Final = Mark.ASSUMED


@lru_cache(maxsize=1024)
def _written(method: bytes, path: bytes) -> tuple[str, str]:
    """Return a method, and a path without its query, as the ledger has them."""
    return method.decode("latin-1"), path.partition(b"?")[0][:MAX_PATH].decode("latin-1")


class MeteredExchange(GuardedExchange):
    """See `GuardedExchange`.

    Attributes:
        spent: What it cost, for the log; None: nothing was sent, or it is not settled.
    """

    # fmt: off
    __slots__ = (
        "_pricing", "_needs_body", "_asked", "_granted",  # what it may cost
        "_meter", "_sent_s", "_extension", "spent",  # what it did
        "_waits", "_gone", "deadline_s",  # when its token is slowed, when the client has left
    )
    # fmt: on

    def __init__(self, pricing: Pricing, context: Destination, client: ClientConnection) -> None:
        super().__init__(context, client)
        self._pricing = pricing
        self._needs_body = pricing.needs_body or context.settings.loop_guard is not None
        self._clear()

    def _clear(self) -> None:
        """Know nothing of any request."""
        self._waits = self._gone = False
        self._asked: tuple[Quote, Ask, Entry] | None = None  # until it is settled
        self._granted = 0
        self._meter: Meter | None = None
        self._sent_s = 0.0
        self._extension: Extension | None = None
        self.spent: Spent | None = None
        self.deadline_s = NEVER

    # --- what it may cost ----------------------------------------------------------------------------------------

    def _ask(self, subject: Subject) -> None:
        """Ask for the limits and for the money, when all is known that the price depends on."""
        if self.head.upgrade:
            self._refuse(NotImplementedHere("What passes behind a switch of protocols cannot be metered."))
        elif self.upload is None:  # nothing is to be waited for
            self._ask_read(subject)
        else:
            GuardedExchange._ask(self, subject)

    def _ask_read(self, subject: Subject) -> None:
        pacing = self.context.shared.paces.now
        if pacing is None:
            self._reserve(subject)
        else:
            self._keep_pace(pacing, subject, waits=True)

    def _keep_pace(self, pacing: Pacing, subject: Subject, *, waits: bool) -> None:
        """Reserve when a token's pace allows it: at once, after a while (once, if `waits`), or not at all."""
        reading = pacing.strictest(subject.id)
        if reading.level is Level.STOP:
            self._refuse(pacing.refusal(subject.id, reading))
        elif reading.level is Level.SLOW and waits:
            self._waits = True
            self.deadline_s = self.context.clock.soon_s + reading.wait_us / 1e6
            self.context.clock.watched.add(self)
        else:
            self._reserve(subject)

    def _reserve(self, subject: Subject) -> None:
        context, head = self.context, self.head
        path = context.route.path_of(head.target)
        try:
            body = None
            if self._needs_body:
                body = self._content if self.upload is None else self._read()
            is_usual, kept, accepted = asked(head.lines, head.form)
            lines = () if is_usual else (head.lines,)
            quote = self._pricing.quote(head.method, path, lines, body, context.clock.wall_s)
            if context.settings.loop_guard is not None:
                subject = self._counted_apart(subject, body, spends=True)
        except GatewayError as error:
            self._refuse(error)
            return
        if quote.accepts:  # what the meter can read
            head.lines = kept + codings_line(quote.accepts, accepted)
        if quote.notice:
            context.shared.spending.tell(quote.notice)
        id_ = context.shared.spending.next_id()
        method, plain = (_written if len(path) <= MAX_PATH else _written.__wrapped__)(head.method[:MAX_METHOD], path)
        fixed, each, now_us, name = quote.fixed, quote.each, time.time_ns() // 1000, context.route.name
        # fmt: off
        told = (
            id_, now_us, subject.id, name, quote.model, method, plain, fixed, _NOTHING, _ASSUMED,
            _NOTHING, 0, "", 0, each, 0,
        )
        # fmt: on
        entry = new(Entry, told)
        ask = new(Ask, (id_, fixed, each, quote.most, quote.least, entry))
        self._asked = quote, ask, entry
        context.admission.reserve(subject, ask, self)

    def _read(self) -> bytes | None:
        """See `GuardedExchange`; where the body may be changed, it is sent in one piece from then on."""
        body, head = GuardedExchange._read(self), self.head
        if body is not None and self._pricing.needs_body:
            self.upload, self._content = None, body
            if head.length == CHUNKED:
                head.length = len(body)
                head.lines += b"\r\nContent-Length: %d" % len(body)
        return body

    def on_verdict(self, verdict: Verdict) -> None:
        """See `Exchange`."""
        if isinstance(verdict, SpendVerdict):
            self._granted = verdict.granted
        elif self._asked is not None:
            self._granted = self._asked[0].most
        GuardedExchange.on_verdict(self, verdict)

    def _acquire(self) -> None:
        """Make the request fit what was granted, and go on as `Exchange` does."""
        asked, head = self._asked, self.head
        assert asked is not None  # noqa: S101 - it comes before a verdict
        if self.upload is None and self._pricing.needs_body:
            content = self._content
            try:
                body = asked[0].body(self._granted)
            except GatewayError as error:
                self._refuse(error)
                return
            if body is not None and body is not content:
                self._content = content = body
            if len(content) != head.length:
                self._drop(b"\r\ncontent-length:")
                head.lines += b"\r\nContent-Length: %d" % len(content)
                head.length = len(content)
        GuardedExchange._acquire(self)

    def on_connected(self, connection: UpstreamConnection) -> None:
        """See `Exchange`."""
        self._sent_s = perf_counter()
        GuardedExchange.on_connected(self, connection)

    def on_upstream_lost(self, *, unsent: bool, heard: bool) -> None:
        """See `Exchange`; what has been sent and costs something may have been billed, whatever its method.

        And what has not costs nothing, if no other connection can be had for it. Of one that was still coming, only the
        last part may be what has not been sent.
        """
        if unsent and self._request and not self.answer_started:
            self.sent = False
        elif self._asked is not None and any(self._asked[1].fixed.values()):
            self._request = b""
        GuardedExchange.on_upstream_lost(self, unsent=unsent, heard=heard)

    # --- what it cost ----------------------------------------------------------------------------------------

    def on_answer(self, head: AnswerHead, rest: bytes) -> None:
        """See `Exchange`."""
        assert self._asked is not None  # noqa: S101 - it is not over
        quote, (id_, _, _, _, _, _), _ = self._asked
        content = rest if rest and framing.answer_length(self.head.method, head) == len(rest) else b""
        self._meter = meter = quote.meter(self._granted, head.status, (head.lines,), head.form, content)
        head.lines += b"\r\nX-Gateway-Request: " + id_.encode()
        if quote.limited:
            head.lines += b"\r\nX-Gateway-Max-Tokens: %d" % quote.limited
        if content:
            told = meter.feed(rest) + meter.finish()
            if len(told) != len(rest):
                head.lines = writer.without_length(head.lines) + b"\r\nContent-Length: %d" % len(told)
                head.length = len(told)
            rest = told
        GuardedExchange.on_answer(self, head, rest)

    def _answer_body(self, length: int) -> framing.Body:
        meter = self._meter
        assert meter is not None  # noqa: S101 - the head came before
        asked, subject = self._asked, self.subject
        assert asked is not None and subject is not None  # noqa: S101, PT018 - see above
        if self.context.settings.budget_cut and subject.budgets:
            _, ask, entry = asked
            self._extension = Extension(self.context.admission, subject, entry, ask.amounts(self._granted), self)
        if length == UNTIL_CLOSE:
            return MeteredUntilClose(meter)
        trailers = self.context.route.answer_trailers
        inner = framing.body(length, UpstreamProtocolError, decode=True, trailers=trailers)
        return MeteredBody(inner, meter, frames=self.head.minor == 1)

    def on_answer_eof(self) -> bool:
        """See `Exchange`."""
        if self.answer is not None and isinstance(self.answer.body, MeteredUntilClose):
            self.client.write(self.answer.body.end())
        return GuardedExchange.on_answer_eof(self)

    # --- when it costs more than was reserved --------------------------------------------------------------------

    def on_answer_bytes(self, data: bytes) -> None:
        """See `Exchange`."""
        GuardedExchange.on_answer_bytes(self, data)
        extension, meter = self._extension, self._meter
        if extension is not None and meter is not None and not self._over and not extension.is_asking:
            running = meter.running(self._elapsed_ms())
            if not extension.covers(running):
                if self.answer is not None:
                    self.answer.pause()
                self.client.deadline_s = NEVER  # the store has its own
                extension.ask(running)

    def on_more(self) -> None:
        """See `overspent.Held`."""
        if (self._gone or self.client.writable) and self.answer is not None:
            self.answer.resume()
        waiting.await_upstream(self)

    def on_no_more(self) -> None:
        """See `overspent.Held`: end the answer as its provider would, where that can be told from a whole one."""
        answer, meter, upstream = self.answer, self._meter, self._upstream
        event = b"" if meter is None else meter.cut_event()
        if event is None:
            self.on_more()  # of the answer, until it can end
            return
        if answer is None or upstream is None or not isinstance(answer.body, MeteredBody | MeteredUntilClose):
            return
        end = answer.body.cut(event)
        if not event or end is None:
            self._abort(by_upstream=False)
            return
        self._settle(whole=False)
        self.client.write(end)
        upstream.reusable = False
        self._finish()

    def on_client_ready(self) -> None:
        """See `Exchange`."""
        if self._extension is None or not self._extension.is_asking:
            GuardedExchange.on_client_ready(self)

    # --- settle --------------------------------------------------------------------------------------------------

    def on_client_lost(self) -> None:
        """See `Exchange`; but its answer may be read on for a while, so that what it cost is known."""
        drain_s, shared = self.context.settings.disconnect_drain_s, self.context.shared
        if drain_s and self.sent and self.request_done and not self._over and not shared.closed:
            assert self._asked is not None  # noqa: S101 - it has been sent
            self.spent = Spent(self._asked[1].id, None)
            account.left(self)
            self._gone = True
            self.deadline_s = self.context.clock.soon_s + drain_s
            self.context.clock.watched.add(self)
            shared.spending.left.add(self)
            if self.answer is not None:
                self.answer.resume()
            return
        self._settle(whole=False)
        GuardedExchange.on_client_lost(self)

    def on_deadline(self) -> None:
        """See `Exchange`; or go on with a request that has waited."""
        pacing, subject = self.context.shared.paces.now, self.subject
        if self._gone:
            self._settle(whole=False)
            self._end()
        elif self._waits and subject is not None:
            self._waits = False
            self.context.clock.watched.discard(self)
            if pacing is None:
                self._reserve(subject)
            else:
                self._keep_pace(pacing, subject, waits=False)
        else:
            GuardedExchange.on_deadline(self)

    def _refuse(self, error: GatewayError) -> None:
        self._settle(whole=False)
        if self._gone:
            self._end()
        else:
            GuardedExchange._refuse(self, error)

    def _abort(self, *, by_upstream: bool) -> None:
        self._settle(whole=False)
        if self._gone:
            self._end()
        else:
            GuardedExchange._abort(self, by_upstream=by_upstream)

    def _finish(self) -> None:
        self._settle(whole=True)
        if self._gone:
            self._end()
            return
        GuardedExchange._finish(self)

    def _forgets(self) -> bool:
        if self._extension is not None:
            return False
        self._clear()
        self._continued = False
        self._mark = ""
        return True

    def _end(self) -> None:
        self._settle(whole=False)
        self.context.clock.watched.discard(self)
        self.context.shared.spending.left.discard(self)
        GuardedExchange._end(self)

    def _settle(self, *, whole: bool) -> None:
        """Settle what was reserved, once."""
        asked, verdict, subject = self._asked, self.verdict, self.subject
        if asked is None or subject is None or verdict is None or not verdict.admitted:
            return
        self._asked = None
        quote, ask, entry = asked
        meter, elapsed_ms = self._meter, self._elapsed_ms()
        if not self.sent:
            settlement = Settlement({}, Mark.EXACT, "")
        else:
            if meter is None:
                cost = quote.unanswered(self._granted, elapsed_ms)
            else:
                cost = meter.result(whole=whole, elapsed_ms=elapsed_ms)
            spent, mark, units, model, upstream_id = cost
            status, granted = self.status, self._granted
            id_, began_us, token, target, quoted, method, path, held, _, _, _, _, _, _, each, _ = entry
            self.spent = new(Spent, (id_, spent))
            # fmt: off
            told = (
                id_, began_us, token, target, model or quoted, method, path, held, spent, mark,
                units, status, upstream_id, 0, each, granted,
            )
            # fmt: on
            settlement = new(Settlement, (spent, mark, new(Entry, told)))
            tally = self.tally
            if self._gone:  # for the tally it is over, so that there may be another one by now
                usage = self.context.usage
                tally = usage.tallies.get(subject.id) or usage.open(subject.id, subject.about())
            tally.settled.append((spent, mark))
            pacing = self.context.shared.paces.now
            if pacing is not None:
                pacing.spent(subject.id, spent.get(UNIT, 0))
        self.context.admission.settle(subject, ask, self._granted, settlement)
        if self._extension is not None:
            self._extension.close()

    def _elapsed_ms(self) -> int:
        return int((perf_counter() - self._sent_s) * 1000)
