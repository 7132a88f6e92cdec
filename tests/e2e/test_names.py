"""The names of upstreams: looked up anew for each connection, and one that hangs holds up no other."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from gateway import Config, Gateway
from gateway.names import Loop
from gateway.proxy import pool
from tests.e2e import AGAIN_S, connected, fetch, request
from tests.kit.redis import free_ports, running_redis
from tests.kit.upstream import Upstream, answering, hang, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

UNKNOWN = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class Names:
    """A resolver whose answers for `.test` the test changes.

    Args:
        real: Looks all else up.

    Attributes:
        addresses: Where each name leads; one without addresses is unknown.
        hung: Names whose look-ups get no answer until `answer`.
        asked: The names that were looked up, each time that they were.
    """

    def __init__(self, real: Callable[..., Awaitable[list[Any]]]) -> None:
        self._real = real
        self.addresses: dict[str, list[tuple[str, int]]] = {}
        self.hung: set[str] = set()
        self.asked: list[str] = []
        self._changed = asyncio.Condition()

    async def getaddrinfo(self, host: str | bytes, port: int, **hints: Any) -> list[Any]:
        """See `asyncio.AbstractEventLoop`. Ports are part of the answer: all that listens here has one address."""
        if not isinstance(host, str) or not host.endswith(".test"):
            return await self._real(host, port, **hints)
        self.asked.append(host)
        async with self._changed:
            self._changed.notify_all()
            await self._changed.wait_for(lambda: host not in self.hung)
        found = self.addresses.get(host, [])
        if not found:
            raise UNKNOWN
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address) for address in found]

    async def answer(self) -> None:
        """Let the look-ups that hang have their answer."""
        async with self._changed:
            self.hung.clear()
            self._changed.notify_all()

    async def looked_up(self, count: int) -> None:
        """Wait until there were so many look-ups."""
        async with self._changed:
            await soon(self._changed.wait_for(lambda: len(self.asked) >= count))

    def lead(self, name: str, *upstreams: Upstream) -> None:
        """Let a name lead to these, the first of them first."""
        self.addresses[name] = [("127.0.0.1", upstream.port) for upstream in upstreams]


@pytest.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Stand in for the resolver of the running loop, whichever that is."""
    loop = asyncio.get_running_loop()
    made = Names(loop.getaddrinfo)
    monkeypatch.setattr(loop, "getaddrinfo", made.getaddrinfo)
    return made


@pytest.fixture
async def old(upstream: Upstream) -> Upstream:
    upstream.default = answering(b"old")
    return upstream


@pytest.fixture
async def new() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        running.default = answering(b"new")
        yield running


async def test_a_change_is_followed_by_new_connections_and_old_ones_live_out_their_time(
    names: Names, old: Upstream, new: Upstream
) -> None:
    names.lead("api.test", old)
    async with Gateway(Config(target_api_url="http://api.test", upstream_idle="1s")) as gateway:
        token = gateway.issue_token()
        post = request("/api/x", token, method="POST", body=b"{}")
        assert (await fetch(gateway.url, post)).content == b"old"
        names.lead("api.test", new)
        old.paths = {b"/long": hang}
        async with connected(gateway.url) as waiting:
            waiting.write(request("/api/long", token))  # on the connection that is there
            await old.requested(2)
            assert (await fetch(gateway.url, post)).content == b"new"  # while that one is in use
        await soon(new.connections[0].ended.wait())  # idle for UPSTREAM_IDLE
        names.lead("api.test", old)
        assert (await fetch(gateway.url, post)).content == b"old"
    assert (len(old.requests), len(new.requests)) == (3, 1)
    assert [len(old.connections), len(new.connections)] == [2, 1]
    assert names.asked == ["api.test"] * 3


async def test_a_change_is_followed_though_the_old_server_goes_on_and_nothing_idles(
    names: Names, old: Upstream, new: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MOST_AGE_S", 0.0)
    names.lead("api.test", old)
    async with Gateway(Config(target_api_url="http://api.test")) as gateway, connected(gateway.url) as client:
        post = request("/api/x", gateway.issue_token(), method="POST", body=b"{}")
        assert (await client.ask(post)).content == b"old"
        names.lead("api.test", new)
        assert (await client.ask(post)).content == b"new"
        await soon(old.connections[0].ended.wait())


async def test_an_address_that_does_not_answer_is_passed_over(names: Names, new: Upstream) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
        names.addresses["api.test"] = [full.getsockname(), ("127.0.0.1", new.port)]
        async with Gateway(Config(target_api_url="http://api.test")) as gateway:
            post = request("/api/x", gateway.issue_token(), method="POST", body=b"{}")
            assert (await fetch(gateway.url, post)).content == b"new"
    assert len(new.requests) == 1


async def test_a_name_that_is_unknown_for_a_while(names: Names, new: Upstream) -> None:
    async with Gateway(Config(target_api_url="http://api.test")) as gateway, connected(gateway.url) as client:
        post = request("/api/x", gateway.issue_token(), method="POST", body=b"{}")
        statuses = [(await client.ask(post)).status for _ in range(8)]
        assert statuses == [502] * 5 + [503] * 3
        assert names.asked == ["api.test"] * 5
        names.lead("api.test", new)
        answer = await client.ask(post)
        while answer.status == 503:  # for the second that it was told to wait
            await asyncio.sleep(AGAIN_S)
            answer = await client.ask(post)
        assert answer.content == b"new"
    assert len(new.requests) == 1
    assert names.asked == ["api.test"] * 6


async def test_a_look_up_that_hangs_is_the_only_one_of_its_name_and_holds_up_no_other(
    names: Names, old: Upstream, new: Upstream
) -> None:
    names.lead("sick.test", old)
    names.lead("well.test", new)
    names.hung = {"sick.test"}
    config = Config(
        target_api_url="http://sick.test", connect_timeout="300ms", targets={"well": {"url": "http://well.test"}}
    )
    async with Gateway(config) as gateway:
        token = gateway.issue_token()
        post = request("/api/x", token, method="POST", body=b"{}")
        waiting = [asyncio.create_task(fetch(gateway.url, post)) for _ in range(20)]
        await names.looked_up(1)
        for _ in range(10):
            assert (await fetch(gateway.url, request("/well/x", token))).content == b"new"
        answers = await asyncio.gather(*waiting)
        assert {(answer.status, answer["x-gateway-error"]) for answer in answers} <= {
            (504, "upstream_timeout"),
            (503, "upstream_unreachable"),
        }
        assert names.asked.count("sick.test") == 1
        await names.answer()
        answer = await fetch(gateway.url, post)
        while answer.status == 503:
            await asyncio.sleep(AGAIN_S)
            answer = await fetch(gateway.url, post)
        assert answer.content == b"old"
    assert len(old.requests) == 1
    assert len(new.requests) == 10


async def test_a_gateway_that_stops_waits_for_no_look_up(names: Names) -> None:
    before = asyncio.all_tasks()
    names.hung = {"api.test"}
    async with Gateway(Config(target_api_url="http://api.test")) as gateway, connected(gateway.url) as client:
        client.write(request("/api/x", gateway.issue_token()))
        await names.looked_up(1)
        await soon(gateway.close())
        assert asyncio.all_tasks() == before


async def test_redis_is_where_its_name_leads_and_somebody_answers(names: Names, upstream: Upstream) -> None:
    (port,) = free_ports(1)
    with running_redis("--port", str(port), "--bind", "127.0.0.1"):
        names.addresses["redis.test"] = [("127.0.0.2", 0), ("127.0.0.1", 0)]
        config = Config(target_api_url=upstream.url, redis_url=f"redis://redis.test:{port}")
        async with Gateway(config) as gateway:
            assert (await fetch(gateway.url, request("/readyz"))).status == 200
    assert names.asked == ["redis.test"]


async def test_a_gateway_knows_the_name_that_it_listens_by(names: Names) -> None:
    names.addresses["gateway.test"] = [("127.0.0.1", 0)]
    async with Gateway(Config(target_api_url="http://api.test", gateway_listen="Gateway.test:0")) as gateway:
        asked = {
            name: await fetch(gateway.url, b"POST /register HTTP/1.1\r\nHost: %b\r\nContent-Length: 0\r\n\r\n" % name)
            for name in (b"gateway.test:3000", b"Gateway.test", b"rebound.test:3000")
        }
    assert [answer.status for answer in asked.values()] == [201, 201, 403]


def test_who_asks_again_and_again_for_a_name_that_gets_no_answer_holds_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []
    answered = threading.Event()

    def look_up(*question: object) -> list[object]:
        asked.append(question[0])
        answered.wait()
        raise UNKNOWN

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await loop.getaddrinfo("redis.test", 6379)
        last = [asyncio.ensure_future(loop.getaddrinfo("redis.test", 6379)) for _ in range(2)]
        await asyncio.sleep(0)
        answered.set()
        assert await asyncio.gather(*last, return_exceptions=True) == [UNKNOWN, UNKNOWN]
        with pytest.raises(socket.gaierror):
            await loop.getaddrinfo("redis.test", 6379)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(ask())
    assert asked == [b"redis.test"] * 2
