"""The ASGI middleware: its refusals are the gateway's, and what it lets through is the application's own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway import Admission, Config, Gateway
from gateway.integrations.asgi import App, LimitMiddleware, Message, Receive, Scope, Send
from tests.e2e import Answer, fetch, request
from tests.kit.redis import running_redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, MutableMapping

    from tests.kit.upstream import Upstream

LIMIT = 2


class Site:
    """A tiny application that counts what reaches it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(scope["type"])
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
            await send({"type": "http.response.body", "body": b"hello"})


def user(scope: Scope) -> str | None:
    """Whoever is named in `X-User`; nobody: no limit."""
    return dict(scope["headers"]).get(b"x-user", b"").decode() or None


@pytest.fixture
async def admission() -> AsyncIterator[Admission]:
    async with Admission(rate_limit=f"{LIMIT}/hour") as running:
        yield running


def client(app: App) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://site")


async def test_each_subject_has_its_limits_and_nobody_has_none(admission: Admission) -> None:
    site = Site()
    async with client(LimitMiddleware(site, admission=admission, subject=user)) as http:
        for name in ("ann", "bob"):
            answers = [await http.get("/", headers={"X-User": name}) for _ in range(LIMIT + 1)]
            assert [answer.status_code for answer in answers] == [200, 200, 429]
            assert answers[0].content == b"hello"
            assert answers[0].headers["x-own"] == "1"
            assert answers[0].headers["ratelimit-policy"] == f'"hour";q={LIMIT};w=3600'
            assert answers[0].headers["ratelimit"].startswith(f'"hour";r={LIMIT - 1};t=36')
        for _ in range(LIMIT + 1):
            answer = await http.get("/")
            assert answer.status_code == 200
            assert "ratelimit" not in answer.headers
    assert site.seen.count("http") == 2 * LIMIT + LIMIT + 1


def shape(fields: list[tuple[str, str]], content: bytes) -> tuple[list[str], list[str], object]:
    """What two refusals have in common when only the seconds differ, and the connection's own fields."""
    names = sorted(name.lower() for name, _ in fields)
    same = [name for name in names if name not in {"date", "connection"}]
    fixed = [value for name, value in sorted(fields) if name.lower() in {"x-gateway-error", "content-type"}]
    problem = json.loads(content)
    problem["detail"] = problem["error"]["message"] = problem["detail"].partition(";")[0]
    return same, fixed, problem


async def test_a_refusal_is_the_gateways_own_field_by_field(upstream: Upstream, admission: Admission) -> None:
    async with client(LimitMiddleware(Site(), admission=admission, subject=user)) as http:
        ours = [await http.get("/", headers={"X-User": "ann"}) for _ in range(LIMIT + 1)][-1]
    async with Gateway(Config(target_api_url=upstream.url, rate_limit=f"{LIMIT}/hour")) as gateway:
        token = gateway.issue_token()
        theirs: Answer = [await fetch(gateway.url, request("/api/x", token)) for _ in range(LIMIT + 1)][-1]
    assert (ours.status_code, theirs.status) == (429, 429)
    assert "x-should-retry" in ours.headers
    assert shape(list(ours.headers.items()), ours.content) == shape(theirs.fields, theirs.content)


async def converse(app: App, scope: dict[str, Any], *received: Message) -> list[MutableMapping[str, Any]]:
    """Drive an application without a server; return what it sent."""
    sent: list[Message] = []
    rest = list(received)

    async def receive() -> Message:
        return rest.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


async def test_a_head_is_refused_without_a_body(admission: Admission) -> None:
    app = LimitMiddleware(Site(), admission=admission, subject=user)
    scope = {"type": "http", "method": "HEAD", "headers": [(b"x-user", b"ann")]}
    start, body = [await converse(app, scope) for _ in range(LIMIT + 1)][-1]
    assert (start["status"], body["body"]) == (429, b"")
    assert int(dict(start["headers"])[b"content-length"]) > 100


async def test_without_redis_it_is_the_503_of_the_gateway() -> None:
    site = Site()
    with running_redis() as redis:
        async with Admission(redis_url=redis.url) as admission:
            redis.kill()
            async with client(LimitMiddleware(site, admission=admission, subject=user)) as http:
                answer = await http.get("/", headers={"X-User": "ann"})
    assert (answer.status_code, answer.headers["x-gateway-error"]) == (503, "store_unavailable")
    assert answer.headers["retry-after"] == "1"
    assert site.seen == []


async def test_a_websocket_counts_once_and_one_too_many_is_refused(admission: Admission) -> None:
    app = LimitMiddleware(Site(), admission=admission, subject=user)
    scope = {"type": "websocket", "headers": [(b"x-user", b"ann")]}
    for _ in range(LIMIT):
        (accepted,) = await converse(app, scope, {"type": "websocket.connect"})
        assert accepted["type"] == "websocket.accept"
        assert dict(accepted["headers"])[b"ratelimit-policy"] == b'"hour";q=2;w=3600'
    (closed,) = await converse(app, scope, {"type": "websocket.connect"})
    assert (closed["type"], closed["code"]) == ("websocket.close", 1013)
    able = {**scope, "extensions": {"websocket.http.response": {}}}
    start, body = await converse(app, able, {"type": "websocket.connect"})
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 429)
    assert json.loads(body["body"])["error"]["code"] == "rate_limited"


async def test_the_lifespan_passes(admission: Admission) -> None:
    site = Site()
    assert await converse(LimitMiddleware(site, admission=admission, subject=user), {"type": "lifespan"}) == []
    assert site.seen == ["lifespan"]
