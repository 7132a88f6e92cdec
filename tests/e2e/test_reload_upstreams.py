"""What becomes of connections to the upstream at a reload: idle ones end, those in use go on, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING

import pytest

from gateway import Gateway
from gateway.stores.memory import MemoryStore
from tests.e2e import connected, request
from tests.e2e.test_reload import config
from tests.kit.process import until
from tests.kit.upstream import Upstream, answering, events, hang, head, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from gateway.stores import Plan, Waiter
    from tests.kit.upstream import Call


class Undecided(MemoryStore):
    """Holds checks back until `decide`, as a Redis that takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Plan, Waiter]] = []
        self.holds = False

    def check(self, plan: Plan, waiter: Waiter) -> None:
        if self.holds:
            self.asked.append((plan, waiter))
        else:
            super().check(plan, waiter)

    def decide(self) -> None:
        self.holds = False
        for plan, waiter in self.asked:
            super().check(plan, waiter)


@pytest.fixture
async def other() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        running.default = answering(b"new")
        yield running


async def test_idle_connections_end_at_once(upstream: Upstream, other: Upstream) -> None:
    upstream.default = answering(b"old")
    usual = {"upstream_idle": "1h"}
    async with Gateway(config(upstream, **usual)) as gateway:
        token = gateway.issue_token()
        async with connected(gateway.url) as one, connected(gateway.url) as two:
            await asyncio.gather(*(client.ask(request("/api/x", token)) for client in (one, two)))
            gateway.reload(config(other, **usual))
            for connection in upstream.connections:
                await soon(connection.closed.wait())
            assert len(gateway._upstreams) == 0
            assert (await one.ask(request("/api/x", token))).content == b"new"


async def test_a_request_that_waits_for_its_verdict_meanwhile_goes_where_it_was_to_go(
    upstream: Upstream, other: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Undecided()
    monkeypatch.setattr("gateway.server.make_store", lambda *_: store)
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    upstream.default = events(queue)
    async with Gateway(config(upstream)) as gateway, connected(gateway.url) as client:
        token = gateway.issue_token()
        store.holds = True
        client.write(request("/api/x", token))
        await until(lambda: store.asked)
        for turn in range(3):
            gateway.reload(config(other, target_api_key=f"sk-{turn}"))
        store.decide()
        queue.put_nowait(b"old")
        assert (await client.final_head()).status == 200
        assert upstream.requests[0].field(b"authorization") == b"Bearer sk-first"
        # It is counted among those that there are descriptors for, whatever is reloaded meanwhile.
        assert len(gateway._upstreams) == 1
        gateway.reload(config(other))
        assert len(gateway._upstreams) == 1
        queue.put_nowait(b"")
        while await client.chunk():
            pass
        await soon(upstream.connections[0].closed.wait())
        assert len(gateway._upstreams) == 0
        assert other.requests == []


async def test_a_tunnel_goes_on(upstream: Upstream, other: Upstream) -> None:
    async def echo(call: Call) -> None:
        call.write(head("101 Switching Protocols", "Connection: Upgrade", "Upgrade: bytes"))
        while piece := await call.reader.read(100):
            call.write(piece)
        call.keep_alive = False

    upstream.default = echo
    async with Gateway(config(upstream)) as gateway, connected(gateway.url) as client:
        token = gateway.issue_token()
        client.write(request("/api/x", token, "Connection: Upgrade", "Upgrade: bytes"))
        assert (await client.head()).status == 101
        for _ in range(2):
            gateway.reload(config(other))
            client.write(b"hello")
            assert await soon(client.reader.readexactly(5)) == b"hello"
            assert len(gateway._upstreams) == 1
        client.writer.write_eof()
        assert await client.at_end()
        await until(lambda: len(gateway._upstreams) == 0)


async def test_closing_ends_what_a_reload_left_in_use(upstream: Upstream, other: Upstream) -> None:
    upstream.default = hang
    async with Gateway(config(upstream)) as gateway, connected(gateway.url) as client:
        client.write(request("/api/x", gateway.issue_token()))
        await upstream.requested()
        gateway.reload(config(other))
    await soon(upstream.connections[0].ended.wait())


@pytest.fixture
def no_gc() -> Iterator[None]:
    """What goes by itself goes at once; the program collects garbage once in a long while."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_gc")
async def test_nothing_is_left_of_what_was_before(upstream: Upstream, other: Upstream) -> None:
    upstream.default = answering(b"old")
    targets = {"two": {"url": other.url, "keys": ["a", "b"]}}
    async with Gateway(config(upstream, targets=targets)) as gateway, connected(gateway.url) as client:
        token = gateway.issue_token()
        assert gateway._context is not None
        watched = len(gateway._context.clock.watched)
        seen: list[weakref.ref[object]] = []
        for turn in range(5):
            for path in ("/api/x", "/two/x"):
                assert (await client.ask(request(path, token))).status == 200
            seen += [weakref.ref(pool) for pool, _ in gateway._upstreams._ends]
            gateway.reload(config((other, upstream)[turn % 2], targets=targets))
        for connection in [*upstream.connections, *other.connections]:
            await soon(connection.closed.wait())
        await until(lambda: len(gateway._upstreams) == 0)
        assert [one for one in seen if one() is not None] == []
        assert len(gateway._context.clock.watched) == watched


async def test_a_key_that_rests_rests_on(upstream: Upstream) -> None:
    usual = {"url": upstream.url, "keys": ["one", "two", "three"]}

    async def answer(call: Call) -> None:
        is_one = call.received.field(b"authorization") == b"Bearer one"
        await answering(b"", *(("429 Slow", "Retry-After: 600") if is_one else ("200 OK",)))(call)

    upstream.default = answer
    async with Gateway(config(upstream, targets={"many": usual})) as gateway, connected(gateway.url) as client:
        token = gateway.issue_token()

        async def statuses() -> list[int]:
            return [(await client.ask(request("/many/x", token))).status for _ in range(6)]

        assert await statuses() == [429] + [200] * 5
        for limit in ("100000/hour", "90000/hour"):
            gateway.reload(config(upstream, rate_limit=limit, targets={"many": usual}))
            assert await statuses() == [200] * 6
        gateway.reload(config(upstream, targets={"many": {**usual, "keys": ["two", "four", "one"]}}))
        assert await statuses() == [200] * 6
        gateway.reload(config(upstream))
        # Whoever takes it out and puts it back has mended it, perhaps.
        gateway.reload(config(upstream, targets={"many": usual}))
        assert await statuses() == [429] + [200] * 5
