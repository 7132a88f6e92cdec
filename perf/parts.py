"""Cases that need no event loop, beside `heads`: bodies, the log, tokens, and limits in the embedded store.

What only some of them need is imported by those: under valgrind an import takes seconds.
"""

from __future__ import annotations

from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Final

from gateway.access_lines import JsonLines, Record
from gateway.errors import TokenInvalid, UpstreamProtocolError
from gateway.http1 import framing, writer
from gateway.http1.message import CHUNKED
from gateway.http1.parser import AnswerParser, RequestParser
from gateway.limits import parse_limits
from gateway.metrics import Metrics
from gateway.stores.memory import MemoryStore
from perf import messages
from perf.bench import EVENT_BODIES, LARGE_BODIES, ROUND, SLOW_ROUND, Bench, CheckError, each, expect, twin
from perf.heads import TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.admission import Admission
    from gateway.errors import StoreUnavailable
    from gateway.http1.message import RequestHead
    from gateway.http1.opening import Opening
    from gateway.stores import Plan, Verdict
    from gateway.tokens import TokenSigner

CHUNKS_IN_64K: Final = 16
EVENTS: Final = 1000
_READ_BYTES: Final = 64 * 1024
_NOW_S: Final = 1_800_000_000


class LastVerdict:
    """A waiter that keeps what it was told last."""

    def __init__(self) -> None:
        self.verdict: Verdict | None = None

    def on_verdict(self, verdict: Verdict) -> None:
        """See `stores.Waiter`."""
        self.verdict = verdict

    def on_store_loss(self, error: StoreUnavailable) -> None:
        """See `stores.Waiter`."""
        raise error


# --- bodies ----------------------------------------------------------------------------------------------------------


def chunked_64k() -> Bench:
    """Set up: 64 KiB in chunks of 4 KiB, in reads that end anywhere."""
    content = bytes(65 + at % 26 for at in range(4096 - len(b"1000000 ")))
    return _chunked(LARGE_BODIES, CHUNKS_IN_64K, content, _cut)


def chunked_tiny() -> Bench:
    """Set up: 1000 chunks of 51 bytes that come together."""
    return _chunked(EVENT_BODIES, EVENTS, b'data: {"delta":{"content":"token"},"i":0}\n\n', _cut)


def chunked_events() -> Bench:
    """Set up: 1000 chunks of 51 bytes, each in a read of its own, as an upstream streams events."""
    return _chunked(EVENT_BODIES, EVENTS, b'data: {"delta":{"content":"token"},"i":0}\n\n', lambda chunks: chunks)


def _cut(chunks: list[bytes]) -> list[bytes]:
    body = b"".join(chunks)
    return [body[at : at + _READ_BYTES] for at in range(0, len(body), _READ_BYTES)]


def _chunked(bodies: int, chunks: int, content: bytes, cut: Callable[[list[bytes]], list[bytes]]) -> Bench:
    numbers = messages.numbers()
    head = AnswerParser().parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked")

    def fresh() -> list[list[bytes]]:
        return [cut(messages.chunked(number, chunks, content)) for number in islice(numbers, bodies)]

    def run(inputs: Sequence[list[bytes]]) -> None:
        for reads in inputs:
            body = framing.body(framing.answer_length(b"POST", head), UpstreamProtocolError)
            for read in reads:
                body.feed(read)

    def idle(inputs: Sequence[list[bytes]]) -> None:
        for reads in inputs:
            for _ in reads:
                pass

    def check() -> None:
        expect("the body's length", head.length, CHUNKED)
        reads = cut(messages.chunked(next(numbers), chunks, content))
        body = framing.body(framing.answer_length(b"POST", head), UpstreamProtocolError)
        passed_on = [body.feed(read) for read in reads]
        expect("what is passed on", b"".join(forward for forward, _ in passed_on), b"".join(reads))
        expect("what is behind the end", passed_on[-1][1], b"")
        expect("whether the body is whole", body.done, True)
        try:
            framing.body(CHUNKED, UpstreamProtocolError).feed(b"1\r\nno\r\n")
        except UpstreamProtocolError:
            return
        raise CheckError("a chunk longer than its size was passed on")

    return Bench(fresh, run, idle, check)


# --- tokens ----------------------------------------------------------------------------------------------------------


def log_line() -> Bench:
    """Set up: requests of one connection, each with an id and a `traceparent`."""
    return _log_lines(lambda request: request)


def log_line_plain() -> Bench:
    """Set up: the same without either field."""
    return _log_lines(messages.without_ids)


def _log_lines(change: Callable[[bytes], bytes]) -> Bench:
    parser, numbers = RequestParser(), messages.numbers()
    made: list[tuple[bytes, int]] = []
    lines = JsonLines(lambda: _NOW_S)
    timing = writer.TIMING % (0.071, 412.771)
    opening: Opening[RequestHead] | None = None
    while opening is None:  # of the first few heads it is not known how they begin
        opening = parser.parse(change(messages.request_head(next(numbers), TOKEN))).opening

    def fresh() -> list[bytes]:
        made.clear()
        return [change(messages.request(number, TOKEN)) for number in islice(numbers, ROUND)]

    def run(requests: Sequence[bytes]) -> None:
        for request in requests:
            head, _ = opening.read(request) or (None, 0)
            if not lines.again(opening, "api", 200, timing, 69, 310):
                lines.add(Record(head, opening, "id", "api", "", 200, 69, 310, timing, None))
        made.append(lines.take())

    def read(requests: Sequence[bytes]) -> None:
        for request in requests:
            _, _ = opening.read(request) or (None, 0)

    def check() -> None:
        expect("the number of lines", sum(count for _, count in made), ROUND)

    return Bench(fresh, run, read, check)


def counts_gathered() -> Bench:
    """Set up: the counts of one token's requests, all of them passed."""
    metrics = Metrics()
    usage = metrics.target("api")

    def fresh() -> list[Metrics]:
        tally = usage.open("token", {})
        tally.begun, tally.passed = ROUND, [2000] * ROUND
        tally.own_s = [(number * 7919 % 997 + 60) / 1e6 for number in range(ROUND)]
        tally.upstream_s = [(number * 7907 % 991 + 200) / 1e4 for number in range(ROUND)]
        return [metrics]

    def check() -> None:
        gathered = usage.totals["passed"]
        fresh()
        metrics.gather()
        expect("how many more have passed", usage.totals["passed"] - gathered, ROUND)

    return each(fresh, Metrics.gather, check)


def token_seen() -> Bench:
    """Set up: 1000 tokens, each verified before; their bytes come anew."""
    admission, _ = _admission()
    issued = [admission.issue(_NOW_S, ttl_s=3600) for _ in range(ROUND)]
    for token, _ in issued:
        admission.authenticate(token.encode(), _NOW_S)

    def fresh() -> list[bytes]:
        return [token.encode() for token, _ in issued]

    def run(tokens: Sequence[bytes]) -> None:
        for token in tokens:
            admission.authenticate(token, _NOW_S)

    def check() -> None:
        for token, claims in issued:
            expect("whose token it is", admission.authenticate(token.encode(), _NOW_S).id, claims.id)

    return Bench(fresh, run, twin, check)


def token_unseen() -> Bench:
    """Set up: tokens that were never verified."""
    admission, signer = _admission()

    def fresh() -> list[bytes]:
        return [admission.issue(_NOW_S, ttl_s=3600)[0].encode() for _ in range(SLOW_ROUND)]

    def check() -> None:
        token, claims = admission.issue(_NOW_S, ttl_s=3600)
        expect("what the token grants", signer.verify(token.encode(), now_s=_NOW_S), claims)
        try:
            signer.verify(token.encode().replace(b"gw_", b"gw_A"), now_s=_NOW_S)
        except TokenInvalid:
            return
        raise CheckError("a changed token was taken")

    return each(fresh, partial(signer.verify, now_s=_NOW_S), check)


def _admission() -> tuple[Admission, TokenSigner]:
    from gateway.admission import Admission
    from gateway.tokens import TokenSigner

    signer = TokenSigner([b"perf" * 8])
    return Admission(MemoryStore(), signer, parse_limits("60/minute"), (), None), signer


# --- limits ----------------------------------------------------------------------------------------------------------


def limit_1() -> Bench:
    """Set up: one limit."""
    return _limits("100000/minute")


def limit_3() -> Bench:
    """Set up: three limits; the shortest moves on to its next segment at every fifth check."""
    return _limits("10000/second,1000000/minute,100000000/day")


def _limits(text: str) -> Bench:
    # A clock of its own, as costly as the real one, so that what is counted does not hang on the machine's pace.
    ticks = count(10**12, 50_000)
    store = MemoryStore(lambda: next(ticks) // 1000)
    policies = parse_limits(text)
    plans = [store.plan(f"subject-{number}", policies) for number in range(64)]
    waiter = LastVerdict()

    def fresh() -> list[Plan]:
        return [plans[at % len(plans)] for at in range(ROUND)]

    def run(inputs: Sequence[Plan]) -> None:
        for plan in inputs:
            store.check(plan, waiter)

    def check() -> None:
        plan = store.plan("checked", parse_limits("2/day"))
        verdicts = []
        for _ in range(3):
            store.check(plan, waiter)
            verdicts.append(waiter.verdict)
        told = [verdict and (verdict.admitted, verdict.policy, verdict.remaining) for verdict in verdicts]
        expect("what two places a day allow", told, [(True, 0, 1), (True, 0, 0), (False, 0, 0)])
        for verdict in verdicts[:2]:
            if verdict is not None:
                store.refund(plan, verdict)
        store.check(plans[0], waiter)
        expect("whether the measured checks admit", waiter.verdict and waiter.verdict.admitted, True)

    return Bench(fresh, run, twin, check)
