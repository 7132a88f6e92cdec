"""Cases that run on an event loop: whole exchanges through a gateway, and the Redis store by itself."""

from __future__ import annotations

import os
import re
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from gateway import Config, Gateway
from gateway.budgets.spending import Mark
from gateway.limits import parse_limits
from gateway.proxy.clock import NEVER
from gateway.stores import Verdict
from gateway.stores.address import RedisAddress
from gateway.stores.redis import RedisStore
from perf import messages
from perf.bench import EXCHANGES, Bench, CheckError, expect
from perf.in_memory import REDIS_PORT, InMemoryLoop, verdict
from perf.parts import LastVerdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from perf.in_memory import Steps

    _Deliveries = list[tuple[Callable[[bytes], None], bytes]]
    _Batch = tuple[_Deliveries, bytes, _Deliveries]

_NOTED: Final = b":1\r\n"
"""Redis's reply to what comes before a token's first check: it is noted in the register."""
_TURNS_TO_CONNECT: Final = 1000
_ADDED: Final = re.compile(rb"(?i)(RateLimit|RateLimit-Policy|Server-Timing|X-Gateway-Request): .*")
_MOST: Final = "1000000000/minute"
_FOUR: Final = "1000000000/second,1000000000/minute,1000000000/hour,1000000000/day"
_USED_UP: Final = "1/hour"


def memory() -> Bench:
    """Set up: the embedded store, one client, one upstream connection."""
    return _Exchanges(1).bench()


def memory_4() -> Bench:
    """Set up: the same with four limits."""
    return _Exchanges(1, rate_limit=_FOUR).bench()


def memory_metered() -> Bench:
    """Set up: the same, of a language model's API whose requests have a cost, under a budget."""
    return _Exchanges(1, metered=True).bench()


def redis() -> Bench:
    """Set up: the Redis store, one client, one upstream connection."""
    return _Exchanges(1, redis=True).bench()


def redis_32() -> Bench:
    """Set up: the Redis store, 32 clients whose requests come in the same turn, 32 upstream connections."""
    return _Exchanges(32, redis=True).bench()


def redis_32_wrk() -> Bench:
    """Set up: the same, the fields of requests in wrk's order."""
    return _Exchanges(32, redis=True, request=messages.request_of_wrk).bench()


def redis_32_logged() -> Bench:
    """Set up: the same, with a line of the access log for each request."""
    return _Exchanges(32, redis=True, access_log="json").bench()


def refused() -> Bench:
    """Set up: the embedded store, and a limit that is used up."""
    return _Exchanges(1, rate_limit=_USED_UP).bench()


class _Exchanges:
    """A gateway, its clients and its upstream; every connection is made, and used once, before anything is measured.

    A round's inputs are batches: a request for each client, the replies of Redis to the checks of all, and an
    answer for each upstream connection, each with the method that takes it. Any answer answers any request.
    """

    def __init__(
        self,
        connections: int,
        *,
        redis: bool = False,
        rate_limit: str = _MOST,
        access_log: str = "off",
        metered: bool = False,
        request: Callable[[int, bytes], bytes] = messages.request,
    ) -> None:
        self._request = request
        self._connections = connections
        self._uses_redis = redis
        self._refuses = rate_limit == _USED_UP
        self._is_metered = metered
        self._numbers = messages.numbers()
        self._round: list[int] = []
        self._loop = loop = InMemoryLoop()
        self._gateway = gateway = Gateway(
            Config(
                target_api_url=messages.TARGET_URL,
                target_api_key=messages.KEY,
                rate_limit=rate_limit,
                redis_url=f"redis://127.0.0.1:{REDIS_PORT}" if redis else None,
                # valgrind is fifty times slower than the machine: no time may run out.
                store_timeout="1h",
                upstream_idle="1h",
                keepalive_timeout="1h",
                token_secret="perf" * 8,
                access_log=access_log,
                target_cost="llm" if metered else None,
                prices={"gpt-4o-mini": {"input": 0.15, "cached_input": 0.075, "output": 0.6}} if metered else {},
                budget="1000000 USD/minute" if metered else None,
            )
        )
        loop.run_until_complete(gateway.start())
        if gateway._line_writer is not None:  # what is measured writes to a file, and this process to a terminal
            gateway._line_writer._descriptor = os.open(os.devnull, os.O_WRONLY)
        # Once a second, at a time of its own: Redis would be asked for more than the checks of this round.
        if gateway._flush is not None:
            gateway._flush.deadline_s = NEVER
            gateway._flush = None  # nor at the end, when nobody answers
        self._token = gateway.issue_token().encode()
        self._clients = [loop.connect(gateway.url) for _ in range(connections)]
        for wire in loop.redis:
            wire.rest()
        loop.take_turns(self._connect_upstreams())
        expect("the connections to the upstream", len(loop.upstreams), connections)

    def bench(self) -> Bench:
        def fresh() -> list[_Batch]:
            for wire in (*self._clients, *self._loop.upstreams, *self._loop.redis):
                wire.sent.clear()
            self._round = list(islice(self._numbers, EXCHANGES))
            size = self._connections
            return [self._batch(self._round[at : at + size]) for at in range(0, EXCHANGES, size)]

        def run(batches: Sequence[_Batch]) -> None:
            self._loop.take_turns(self._exchange(batches))

        def twin(batches: Sequence[_Batch]) -> None:
            self._loop.take_turns(self._idle(batches))

        return Bench(fresh, run, twin, self._check, self._close)

    def _batch(self, numbers: list[int]) -> _Batch:
        requests: _Deliveries = [
            (wire.receive, self._request(number, self._token))
            for wire, number in zip(self._clients, numbers, strict=True)
        ]
        replies = b"".join(verdict(number) for number in numbers) if self._uses_redis else b""
        upstreams = [] if self._refuses else self._loop.upstreams
        answers: _Deliveries = [
            (wire.receive, messages.answer(number)) for wire, number in zip(upstreams, numbers, strict=False)
        ]
        return requests, replies, answers

    def _exchange(self, batches: Sequence[_Batch]) -> Steps:
        redis = self._loop.redis[0].receive if self._uses_redis else None
        for requests, replies, answers in batches:
            for receive, request in requests:
                receive(request)
            if redis is not None:
                yield  # the checks of a turn leave at its end
                redis(replies)
            for receive, answer in answers:
                receive(answer)

    def _idle(self, batches: Sequence[_Batch]) -> Steps:
        for requests, _replies, answers in batches:
            for _receive, _request in requests:
                pass
            if self._uses_redis:
                yield
            for _receive, _answer in answers:
                pass

    def _connect_upstreams(self) -> Steps:
        requests, replies, _ = self._batch(list(islice(self._numbers, self._connections)))
        for receive, request in requests:
            receive(request)
        if self._uses_redis:
            yield
            self._loop.redis[0].receive(_NOTED + replies)
        upstreams = self._loop.upstreams
        for _ in range(_TURNS_TO_CONNECT):
            if len(upstreams) == self._connections and all(wire.sent for wire in upstreams):
                break
            yield
        for wire in upstreams:
            wire.receive(messages.answer(next(self._numbers)))

    def _check(self) -> None:
        got = [message for wire in self._clients for message in messages.split(b"".join(wire.sent))]
        expect("the number of answers", len(got), EXCHANGES)
        sent = {message for wire in self._loop.upstreams for message in messages.split(b"".join(wire.sent))}
        if self._loop.redis:
            expect("the checks that Redis was asked for", len(self._loop.redis[0].commands()), EXCHANGES)
            expect("the writes to Redis", len(self._loop.redis[0].sent), EXCHANGES // self._connections)
        if self._refuses:
            expect("what goes upstream", sent, set())
            expect("the answers", {message.start for message in got}, {b"HTTP/1.1 429 Too Many Requests"})
            return
        expect("what goes upstream", sent, set(map(self._sent_upstream, self._round)))
        kept = {
            message._replace(fields=frozenset(line for line in message.fields if not _ADDED.fullmatch(line)))
            for message in got
        }
        expect("what goes to the clients", kept, {messages.sent_to_client(number) for number in self._round})
        added = {name[1].lower() for line in got[-1].fields if (name := _ADDED.fullmatch(line))}
        named = {b"x-gateway-request"} if self._is_metered else set()
        expect("the fields added", added, {b"ratelimit", b"ratelimit-policy", b"server-timing"} | named)
        if self._is_metered:
            store = self._gateway._store
            assert store is not None  # noqa: S101 - it has started
            entries = self._loop.run_until_complete(store.ledger.entries(0))
            costs = {(entry.cost["USD"], entry.mark) for entry in entries}
            expect("what they cost", costs, {(9 * 150 + 12 * 600, Mark.EXACT)})

    def _sent_upstream(self, number: int) -> messages.Message:
        message = messages.sent_upstream(number)
        if not self._is_metered:
            return message
        fields = {b"Accept-Encoding: gzip, identity" if b"Encoding" in line else line for line in message.fields}
        return message._replace(fields=frozenset(fields))

    def _close(self) -> None:
        self._loop.run_until_complete(self._gateway.close())
        self._loop.close()


def redis_check_1() -> Bench:
    """Set up: a check leaves, its reply comes, then the next one leaves."""
    return _redis_check(1)


def redis_check_64() -> Bench:
    """Set up: 64 checks leave in one write, their replies come in one read."""
    return _redis_check(64)


def _redis_check(in_flight: int) -> Bench:
    loop, numbers, waiter = InMemoryLoop(), messages.numbers(), LastVerdict()
    store = RedisStore(RedisAddress(port=REDIS_PORT), timeout_s=3600)
    loop.run_until_complete(store.start())
    (wire,) = loop.redis
    wire.rest()
    policies = parse_limits("60/minute")
    plans = [store.plan(f"subject-{number}", policies) for number in range(64)]

    def fresh() -> list[Any]:
        wire.sent.clear()
        return [
            (
                [plans[(at + offset) % len(plans)] for offset in range(in_flight)],
                b"".join(verdict(number) for number in islice(numbers, in_flight)),
            )
            for at in range(0, EXCHANGES, in_flight)
        ]

    def check_all(inputs: Sequence[Any]) -> Steps:
        check, receive = store.check, wire.receive
        for batch, replies in inputs:
            for plan in batch:
                check(plan, waiter)
            yield
            receive(replies)

    def idle(inputs: Sequence[Any]) -> Steps:
        for batch, _replies in inputs:
            for _plan in batch:
                pass
            yield

    def check() -> None:
        commands = wire.commands()
        expect("the checks that Redis was asked for", len(commands), EXCHANGES)
        expect("the writes to Redis", len(wire.sent), EXCHANGES // in_flight)
        if not all(any(b"subject-" in word for word in command) for command in commands):
            raise CheckError("a check names no subject")
        number = next(numbers) - 1
        expected = Verdict(True, 0, 10**9 - number, 1_000_000, 1_800_000_000_000_000 + number)
        expect("the last verdict", waiter.verdict, expected)

    def close() -> None:
        loop.run_until_complete(store.close())
        loop.close()

    return Bench(
        fresh,
        lambda inputs: loop.take_turns(check_all(inputs)),
        lambda inputs: loop.take_turns(idle(inputs)),
        check,
        close,
    )
