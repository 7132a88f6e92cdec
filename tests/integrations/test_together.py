"""A gateway, an ASGI application and an httpx client on one Redis: a token's limits hold for what all let pass."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, NamedTuple

import httpx
import pytest

from gateway import Admission, Config, Gateway
from gateway.integrations.asgi import LimitMiddleware, Receive, Scope, Send
from gateway.integrations.httpx import LimitTransport
from tests.e2e import fetch, request
from tests.kit.redis import RedisServer, running_redis
from tests.kit.upstream import soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.kit.upstream import Upstream


ATTEMPTS = 20


class Site:
    """An ASGI application that answers, waits for ever at `/hang`, and fails at `/fail`; and the same as an API."""

    def __init__(self) -> None:
        self.hanging = asyncio.Event()
        self.seen = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen += 1
        if scope["path"] == "/fail":
            raise RuntimeError("a defect")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/hang":
            self.hanging.set()
            await asyncio.Event().wait()
        await send({"type": "http.response.body", "body": b"hello"})


class Ways(NamedTuple):
    """Three ways to send a request for one token, and what is behind two of them."""

    gateway: httpx.AsyncClient
    asgi: httpx.AsyncClient
    api: httpx.AsyncClient
    site: Site

    async def statuses(self) -> list[int]:
        """Send one request each way, one after the other."""
        return [await self._status(client) for client in self[:3]]

    async def _status(self, client: httpx.AsyncClient) -> int:
        # The place that one instance gives back and another's question for it reach Redis by two connections, in
        # either order. Whoever is refused meanwhile asks once more, by when it has come free; far fewer times than
        # would wait for a lease to end.
        for _ in range(ATTEMPTS):
            answer = await client.get("/")
            if answer.headers.get("x-gateway-error") != "concurrency_limited":
                break
        return answer.status_code


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@contextlib.asynccontextmanager
async def ways(upstream: Upstream, redis: RedisServer, rate: str, in_flight: str) -> AsyncIterator[Ways]:
    redis.call("FLUSHALL")
    config = Config(
        target_api_url=upstream.url,
        redis_url=redis.url,
        rate_limit=rate,
        concurrency_limit=in_flight,
        store_timeout="10s",
    )
    async with Gateway(config) as gateway, Admission(config) as admission, contextlib.AsyncExitStack() as stack:
        token = json.loads((await fetch(gateway.url, request("/register", method="POST"))).content)
        site, name = Site(), token["id"]
        fields = {"Authorization": f"Bearer {token['token']}"}
        app = LimitMiddleware(site, admission=admission, subject=lambda _scope: name)
        clients = (
            httpx.AsyncClient(base_url=f"{gateway.url}/api", headers=fields, trust_env=False),
            httpx.AsyncClient(base_url="http://site", transport=httpx.ASGITransport(app)),
            httpx.AsyncClient(base_url=upstream.url, transport=LimitTransport(admission, name)),
        )
        for client in clients:
            await stack.enter_async_context(client)
        yield Ways(*clients, site)


async def test_each_counts_what_the_others_let_pass(upstream: Upstream, redis: RedisServer) -> None:
    async with ways(upstream, redis, "6/hour", "1") as three:
        assert [await three.statuses() for _ in range(3)] == [[200] * 3, [200] * 3, [429] * 3]
        assert three.site.seen == 2
    assert len(upstream.requests) == 4


async def test_a_place_that_one_holds_the_others_get_when_it_is_over(upstream: Upstream, redis: RedisServer) -> None:
    async with ways(upstream, redis, "100/hour", "1") as three:
        async with three.api.stream("GET", "/"):
            assert (await three.gateway.get("/")).status_code == 429
            assert (await three.asgi.get("/")).status_code == 429
        assert await three.statuses() == [200] * 3
        with pytest.raises(RuntimeError, match="a defect"):
            await three.asgi.get("/fail")
        assert await three.statuses() == [200] * 3
        hanging = asyncio.ensure_future(three.asgi.get("/hang"))
        await soon(three.site.hanging.wait())
        assert (await three.gateway.get("/")).status_code == 429
        assert (await three.api.get("/")).status_code == 429
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
        assert await three.statuses() == [200] * 3


async def test_those_who_are_refused_together_are_not_told_to_return_together(
    upstream: Upstream, redis: RedisServer
) -> None:
    async with ways(upstream, redis, "1/hour", "1") as three:
        assert (await three.gateway.get("/")).status_code == 200
        for client in three[:3]:
            answers = [await client.get("/") for _ in range(20)]
            waits_ms = [int(answer.headers["retry-after-ms"]) for answer in answers]
            exactly_ms = [1000 * int(answer.headers["x-ratelimit-reset"]) for answer in answers]
            assert max(waits_ms) - min(waits_ms) > 36_000  # of the 180 s that a twentieth of an hour is
            for wait_ms, exact_ms in zip(waits_ms, exactly_ms, strict=True):
                assert exact_ms - 1000 <= wait_ms <= 1.05 * exact_ms
