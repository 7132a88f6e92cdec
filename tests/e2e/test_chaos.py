"""Four instances under load while Redis is paused, stopped, killed and started again, and an instance is killed.

Judged at the upstream: each request says when its client sent it, and the upstream notes when it came. It was admitted
between the two, so what lies with both in one window was certainly admitted in it. That clients are not kept waiting is
no matter of a stopwatch here: while Redis stands still, it stays so until everybody has had answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from gateway.verify.judge import DRIFT, Seen, worst_window
from tests.e2e import CUT_SHORT, fetch, request
from tests.kit.process import Program, gateway_process
from tests.kit.redis import RedisServer, running_redis
from tests.kit.upstream import TIMEOUT_S, Call, Upstream, answering, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

INSTANCES, CLIENTS_EACH, LIMIT = 4, 4, 40
SPAN_US: Final = int(1_000_000 * (1 - DRIFT))
PAUSE_MS: Final = 1500
PAUSE_S: Final = 0.01
"""Of a client between two requests: all of them together ask for forty times the limit."""
ADMITTED, REFUSED, UNDECIDED = 200, 429, 503

_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_OK: Final = answering(b"ok")


def now_us() -> int:
    return time.monotonic_ns() // 1000


class Crowd:
    """Clients of all instances, each with one request at a time; and what came of them, on both ends."""

    def __init__(self, upstream: Upstream, programs: list[Program], token: str) -> None:
        self.alive = list(programs)
        self.arrived: list[Seen] = []
        """At the upstream: when it was sent, and when it came."""
        self.names: Counter[bytes] = Counter()
        self.answers: Counter[tuple[int, str, int]] = Counter()
        """By client, instance and status code."""
        self.cut = 0
        self.slowest_us = 0
        self._token = token
        self._changed = asyncio.Event()
        self._over = False
        upstream.default = self._arrive

    async def _arrive(self, call: Call) -> None:
        name = call.received.field(b"x-sent")
        assert name is not None
        self.arrived.append(Seen(int(name.partition(b"-")[0]), now_us()))
        self.names[name] += 1
        await _OK(call)

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        clients = [asyncio.ensure_future(self._client(number)) for number in range(INSTANCES * CLIENTS_EACH)]
        try:
            yield
        finally:
            self._over = True
            await soon(asyncio.gather(*clients))

    async def _client(self, number: int) -> None:
        while not self._over:
            program = self.alive[number % len(self.alive)]
            with contextlib.suppress(*CUT_SHORT):
                await self._ask(number, program)

    async def _ask(self, number: int, program: Program) -> None:
        address = urlsplit(program.url)
        reader, writer = await soon(asyncio.open_connection(address.hostname, address.port))
        sent_us = 0
        try:
            while not self._over:
                sent_us = now_us()
                # POST: nothing may be sent twice for it, whatever dies meanwhile.
                writer.write(request("/api/x", self._token, f"X-Sent: {sent_us}-{number}", method="POST"))
                head = await soon(reader.readuntil(b"\r\n\r\n"))
                self.slowest_us = max(self.slowest_us, now_us() - sent_us)
                length = _LENGTH.search(head)
                assert length is not None
                await soon(reader.readexactly(int(length[1])))
                self.answers[number, program.url, int(head[9:12])] += 1
                self._changed.set()
                await asyncio.sleep(PAUSE_S)
        except CUT_SHORT:
            self.cut += 1
            raise
        finally:
            writer.transport.abort()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that answers bring about."""
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def everybody_answered(self, times: int = 3) -> None:
        """Wait until every client has had so many answers more."""
        before = self._by_client()
        await self.until(lambda: all(count >= before[number] + times for number, count in self._by_client().items()))

    async def everywhere(self, *statuses: int) -> None:
        """Wait until every instance that is alive has given one of these answers once more."""
        before = self._by_instance(statuses)
        urls = [program.url for program in self.alive]
        await self.until(lambda: all(self._by_instance(statuses)[url] > before[url] for url in urls))

    async def admitted(self, count: int) -> None:
        """Wait until so many requests more have come to the upstream."""
        wanted = len(self.arrived) + count
        await self.until(lambda: len(self.arrived) >= wanted)

    def _by_client(self) -> Counter[int]:
        counts: Counter[int] = Counter(dict.fromkeys(range(INSTANCES * CLIENTS_EACH), 0))
        for (number, _, _), count in self.answers.items():
            counts[number] += count
        return counts

    def _by_instance(self, statuses: tuple[int, ...]) -> Counter[str]:
        counts: Counter[str] = Counter()
        for (_, url, status), count in self.answers.items():
            counts[url] += count * (status in statuses)
        return counts

    def count(self, status: int) -> int:
        return sum(count for (_, _, code), count in self.answers.items() if code == status)

    def summary(self) -> str:
        return (
            f"chaos: {sum(self.answers.values()):,} answers, {self.count(ADMITTED):,} admitted, {self.cut} cut; "
            f"worst window {worst_window(self.arrived, SPAN_US)} of {LIMIT}; slowest {self.slowest_us / 1000:.0f} ms"
        )


@contextlib.asynccontextmanager
async def crowd(upstream: Upstream, redis: RedisServer) -> AsyncIterator[Crowd]:
    settings = {"TARGET_API_URL": upstream.url, "REDIS_URL": redis.url, "RATE_LIMIT": f"{LIMIT}/second"}
    async with contextlib.AsyncExitStack() as stack:
        programs = [await stack.enter_async_context(gateway_process(**settings)) for _ in range(INSTANCES)]
        registered = await fetch(programs[0].url, request("/register", method="POST"))
        made = Crowd(upstream, programs, json.loads(registered.content)["token"])
        yield made
        for program in programs:
            assert "Traceback" not in program.printed


async def test_no_window_holds_more_than_the_limit_whatever_happens(
    upstream: Upstream, record_property: Callable[[str, object], None]
) -> None:
    # Like this, Redis still knows after a kill what it had answered before.
    with running_redis("--appendonly", "yes", "--appendfsync", "always") as redis:
        async with crowd(upstream, redis) as load:
            async with load.asking():
                await load.admitted(2 * LIMIT)

                redis.call("CLIENT", "PAUSE", PAUSE_MS, "ALL")
                await load.everywhere(UNDECIDED)
                await load.everywhere(ADMITTED, REFUSED)
                await load.admitted(LIMIT)

                redis.signal(signal.SIGSTOP)
                await load.everywhere(UNDECIDED)
                await load.everybody_answered()
                redis.signal(signal.SIGCONT)
                await load.everywhere(ADMITTED, REFUSED)
                await load.admitted(LIMIT)

                killed = load.alive.pop()
                await killed.kill()
                await load.everybody_answered()
                await load.admitted(LIMIT)

                redis.kill()
                await load.everywhere(UNDECIDED)
                await load.everybody_answered()
                await asyncio.to_thread(redis.start)
                await load.everywhere(ADMITTED, REFUSED)
                await load.admitted(2 * LIMIT)
            record_property("summary", load.summary())

            assert worst_window(load.arrived, SPAN_US) <= LIMIT
            # Whatever died, nothing was sent twice, and nothing that a client was told of was not sent.
            assert set(load.names.values()) == {1}
            # What was cut belongs to the instance that was killed: the clients that it had.
            assert load.cut <= CLIENTS_EACH
            assert 0 <= len(load.arrived) - load.count(ADMITTED) <= CLIENTS_EACH
            assert {status for _, _, status in load.answers} == {ADMITTED, REFUSED, UNDECIDED}


async def test_a_redis_that_forgets_costs_one_full_limit_and_no_more(
    upstream: Upstream, record_property: Callable[[str, object], None]
) -> None:
    with running_redis() as redis:
        async with crowd(upstream, redis) as load:
            async with load.asking():
                await load.admitted(2 * LIMIT)
                redis.kill()
                await load.everywhere(UNDECIDED)
                await asyncio.to_thread(redis.start)
                await load.everywhere(ADMITTED, REFUSED)
                await load.admitted(2 * LIMIT)
            record_property("summary", load.summary())
            assert worst_window(load.arrived, SPAN_US) <= 2 * LIMIT
