"""The guards of real gateways: on one Redis and on a cluster, with the official SDKs, over a reload and a restart."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from gateway import Config, Gateway
from tests.e2e import KEY, fetch, request
from tests.kit.provider import Provider
from tests.kit.provider_jobs import Wishes
from tests.kit.redis import running_redis
from tests.kit.sdks import openai
from tests.kit.topologies import running_cluster
from tests.kit.upstream import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.kit.upstream import Upstream

CHAT: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Done yet?"}], "max_tokens": 50}
OTHER: Any = {**CHAT, "temperature": 0.5}
SECRET = "a-signing-secret-of-32-characters-xx"


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with running_redis() as server:
        yield server.url


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    with running_cluster() as cluster:
        yield cluster.url


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with Provider(wishes=Wishes(output=7)) as running:
        yield running


def config(url: str, **settings: Any) -> Config:
    common = {"target_api_url": url, "target_api_key": KEY, "rate_limit": "1000/minute", "store_timeout": "10s"}
    return Config(**{**common, **settings})


def client(gateway: Gateway, token: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/api/v1", api_key=token, timeout=TIMEOUT_S, max_retries=3)


async def counts_on_both(provider: Provider, store: str, **settings: Any) -> None:
    shared = {"redis_url": store, "loop_guard": "4/hour", "target_cost": "llm", **settings}
    async with Gateway(config(provider.url, **shared)) as one, Gateway(config(provider.url, **shared)) as other:
        token = one.issue_token()
        async with client(one, token) as first, client(other, token) as second:
            for asking in (first, second, second, first):
                await asking.chat.completions.create(**CHAT)
            for asking in (first, second):
                with pytest.raises(openai.RateLimitError) as refused:
                    await asking.chat.completions.create(**CHAT)
                assert refused.value.response.headers["x-gateway-error"] == "loop_detected"
                await asking.chat.completions.create(**OTHER)
    assert len(provider.invoice.rows) == 6, "no SDK has sent it again"
    assert one.metrics.refused + other.metrics.refused == 2


async def test_instances_on_one_redis_count_a_loop_together(provider: Provider, redis_url: str) -> None:
    await counts_on_both(provider, redis_url, budget="5 USD/day", concurrency_limit="9")


async def test_and_on_a_cluster_where_shared_limits_are_elsewhere(provider: Provider, cluster_url: str) -> None:
    shared = {"global_rate_limit": "9000/minute", "global_budget": "9 USD/day"}
    await counts_on_both(provider, cluster_url, budget="5 USD/day", **shared)


@pytest.mark.parametrize("kind", ["redis", "cluster"])
async def test_what_costs_nothing_is_guarded_as_well(
    upstream: Upstream, redis_url: str, cluster_url: str, kind: str
) -> None:
    store = redis_url if kind == "redis" else cluster_url
    shared = {"redis_url": store, "loop_guard": "2/hour", "global_rate_limit": "9000/minute"}
    async with Gateway(config(upstream.url, **shared)) as gateway:
        statuses = await ask(gateway, gateway.issue_token(), 4)
    assert statuses == [200, 200, 429, 429]
    assert len(upstream.requests) == 2


async def ask(gateway: Gateway, token: str, count: int, path: str = "/api/x") -> list[int]:
    return [(await fetch(gateway.url, request(path, token))).status for _ in range(count)]


async def test_a_reload_turns_it_on_and_off(upstream: Upstream) -> None:
    async with Gateway(config(upstream.url)) as gateway:
        token = gateway.issue_token()
        assert await ask(gateway, token, 3) == [200] * 3
        assert gateway.reload(config(upstream.url, loop_guard="2/hour")) == []
        assert await ask(gateway, token, 3) == [200, 200, 429]
        assert gateway.reload(config(upstream.url)) == []
        assert await ask(gateway, token, 3) == [200] * 3


async def test_a_restart_knows_from_the_ledger_what_is_usual(upstream: Upstream, tmp_path: Path) -> None:
    settings = {
        "state_file": str(tmp_path / "state.db"),
        "token_secret": SECRET,
        "target_cost": "0.01 USD",
        "spend_guard": "10x/1m",
    }
    async with Gateway(config(upstream.url, **settings)) as gateway:
        token = gateway.issue_token()
        assert await ask(gateway, token, 3) == [200] * 3
    async with Gateway(config(upstream.url, **settings)) as gateway:
        deadline_s = time.monotonic() + TIMEOUT_S
        while True:
            answer = await fetch(gateway.url, request("/usage", token))
            told = json.loads(answer.content)["spend_guard"]
            if told["spent"] == "0.03" or time.monotonic() > deadline_s:
                break
    assert (told["spent"], told["usual"], told["level"]) == ("0.03", None, "usual")
