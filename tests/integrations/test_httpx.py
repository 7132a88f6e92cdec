"""The httpx transport: what is refused is not sent, and SDKs on it behave as they do behind the gateway."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway import Admission
from gateway.integrations.httpx import LimitTransport
from tests.kit.sdks import openai
from tests.kit.upstream import answering, hang, in_chunks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.kit.upstream import Upstream

LIMIT = 2
NOBODY = "http://127.0.0.1:1"


@pytest.fixture
async def admission() -> AsyncIterator[Admission]:
    async with Admission(rate_limit=f"{LIMIT}/hour") as running:
        yield running


async def left(admission: Admission, subject: str = "worker-7") -> int:
    """How many places there are, one of which this takes."""
    return (await admission.admit(subject)).remaining + 1


async def test_what_is_refused_is_not_sent(upstream: Upstream, admission: Admission) -> None:
    upstream.default = in_chunks(b"hel", b"lo")
    async with httpx.AsyncClient(transport=LimitTransport(admission, "worker-7")) as client:
        answers = [await client.get(upstream.url) for _ in range(LIMIT + 2)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert answers[0].content == b"hello"
    assert answers[0].headers["ratelimit"].startswith(f'"hour";r={LIMIT - 1};t=36')
    assert answers[2].headers["x-gateway-error"] == "rate_limited"
    assert 3500 < int(answers[2].headers["retry-after"]) <= 3660 * 1.05
    assert answers[2].headers["ratelimit"].startswith('"hour";r=0;t=36')
    assert json.loads(answers[2].content)["error"]["code"] == "rate_limited"
    assert len(upstream.requests) == LIMIT
    assert len(upstream.connections) == 1


async def test_the_subject_may_be_read_from_the_request(upstream: Upstream, admission: Admission) -> None:
    transport = LimitTransport(admission, lambda asked: asked.headers["x-worker"])
    async with httpx.AsyncClient(transport=transport) as client:
        statuses = [
            (await client.get(upstream.url, headers={"X-Worker": worker})).status_code
            for worker in ("a", "a", "a", "b", "b", "b")
        ]
    assert statuses == [200, 200, 429, 200, 200, 429]


async def test_what_could_not_be_sent_is_given_back(admission: Admission) -> None:
    async with httpx.AsyncClient(transport=LimitTransport(admission, "worker-7")) as client:
        for _ in range(3 * LIMIT):
            with pytest.raises(httpx.ConnectError):
                await client.get(NOBODY)
    assert await left(admission) == LIMIT


async def test_what_was_sent_stays_counted(upstream: Upstream, admission: Admission) -> None:
    upstream.default = hang
    async with httpx.AsyncClient(transport=LimitTransport(admission, "worker-7"), timeout=0.1) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get(upstream.url)
    assert await left(admission) == LIMIT - 1


async def test_the_openai_sdk_stops_when_it_is_told_to(upstream: Upstream, admission: Admission) -> None:
    upstream.default = answering(b'{"object": "list", "data": []}', "200 OK", "Content-Type: application/json")
    http = httpx.AsyncClient(transport=LimitTransport(admission, "worker-7"))
    # It takes a client of httpx as well, but does not say so to type checkers.
    sdk: Any = openai.AsyncOpenAI
    async with sdk(base_url=upstream.url, api_key="sk-mine", http_client=http) as client:
        for _ in range(LIMIT):
            await client.models.list()
        with pytest.raises(openai.RateLimitError) as caught:
            await client.models.list()
    assert caught.value.code == "rate_limited"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(upstream.requests) == LIMIT
    assert upstream.requests[0].field(b"authorization") == b"Bearer sk-mine"
