"""`from gateway import Admission`: the limits without HTTP, in this process and in Redis, and beside a gateway."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from gateway import Admission, ConcurrencyLimited, Config, ConfigError, Gateway, Grant, RateLimited, StoreUnavailable
from gateway.stores.memory import MemoryStore
from tests.e2e import fetch, request
from tests.kit.redis import RedisServer, running_redis
from tests.kit.upstream import Upstream, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from gateway.stores import Plan, Waiter

LIMIT = 5


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
def redis_url(request: pytest.FixtureRequest) -> str | None:
    if request.param == "memory":
        return None
    server: RedisServer = request.getfixturevalue("redis")
    server.call("FLUSHALL")
    return server.url


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        yield running


async def taken(admission: Admission, subject: str = "worker-7", most: int = 3 * LIMIT) -> int:
    """Take places until there are none left; return how many there were."""
    for number in range(most):
        try:
            await soon(admission.admit(subject))
        except RateLimited:
            return number
    return most


async def test_it_admits_as_many_as_the_limit_says_and_then_says_when(redis_url: str | None) -> None:
    async with Admission(rate_limit=f"{LIMIT}/hour", redis_url=redis_url) as admission:
        grant = await admission.admit("worker-7")
        assert isinstance(grant, Grant)
        assert (grant.subject, grant.limit, grant.remaining) == ("worker-7", "hour", LIMIT - 1)
        assert 3500 < grant.reset_s <= 3660
        assert await taken(admission) == LIMIT - 1
        with pytest.raises(RateLimited) as caught:
            await admission.admit("worker-7")
        assert 3500 < caught.value.retry_after_s <= 3660
        assert caught.value.limit_fields[0] == ("RateLimit-Policy", f'"hour";q={LIMIT};w=3600')
        assert caught.value.limit_fields[1][1].startswith('"hour";r=0;t=36')
        assert await taken(admission, "worker-8") == LIMIT


async def test_all_limits_hold_for_all_together(redis_url: str | None) -> None:
    limits = {"rate_limit": f"{LIMIT}/hour", "global_rate_limit": f"{LIMIT + 2}/day"}
    async with Admission(redis_url=redis_url, **limits) as admission:
        assert await taken(admission, "a") == LIMIT
        assert await taken(admission, "b") == 2
        with pytest.raises(RateLimited, match="'global-day'"):
            await admission.admit("c")


async def test_what_was_not_used_is_given_back_once(redis_url: str | None) -> None:
    async with Admission(rate_limit=f"{LIMIT}/hour", redis_url=redis_url) as admission:
        unused = await admission.admit("worker-7")
        used = await admission.admit("worker-7")
        admission.settle(unused, used=False)
        admission.settle(unused, used=False)
        admission.settle(used)
        admission.settle(used, used=False)
        assert await taken(admission) == LIMIT - 1


async def test_a_block_that_fails_may_have_sent_something(redis_url: str | None) -> None:
    async with Admission(rate_limit=f"{LIMIT}/hour", redis_url=redis_url) as admission:
        with pytest.raises(ZeroDivisionError):
            async with await admission.admit("worker-7"):
                raise ZeroDivisionError
        async with await admission.admit("worker-7") as grant:
            grant.settle(used=False)
        assert await taken(admission) == LIMIT - 1


async def test_many_at_once_get_no_more_than_there_is(redis_url: str | None) -> None:
    async with Admission(rate_limit=f"{LIMIT}/hour", redis_url=redis_url, store_timeout="10s") as admission:
        asked = [admission.admit("worker-7") for _ in range(100)]
        outcomes = await soon(asyncio.gather(*asked, return_exceptions=True))
    assert [type(outcome) for outcome in outcomes].count(Grant) == LIMIT
    assert [type(outcome) for outcome in outcomes].count(RateLimited) == 100 - LIMIT


async def test_it_counts_under_the_keys_of_the_gateways_tokens(upstream: Upstream, redis: RedisServer) -> None:
    redis.call("FLUSHALL")
    config = Config(target_api_url=upstream.url, rate_limit=f"{LIMIT}/hour", redis_url=redis.url)
    async with Gateway(config) as gateway, Admission(config) as admission:
        registered = json.loads((await fetch(gateway.url, request("/register", method="POST"))).content)
        await admission.admit(registered["id"])
        answers = [await fetch(gateway.url, request("/api/x", registered["token"])) for _ in range(LIMIT)]
        assert [answer.status for answer in answers] == [200] * (LIMIT - 1) + [429]
        assert await taken(admission, registered["id"]) == 0


async def test_a_caller_that_is_cancelled_takes_nothing(redis: RedisServer) -> None:
    redis.call("FLUSHALL")
    async with Admission(rate_limit=f"{LIMIT}/hour", redis_url=redis.url, store_timeout="10s") as admission:
        redis.signal(signal.SIGSTOP)
        try:
            waiting = [asyncio.ensure_future(admission.admit("worker-7")) for _ in range(LIMIT)]
            await asyncio.sleep(0)  # they are sent
            for one in waiting:
                one.cancel()
            assert all(
                isinstance(outcome, asyncio.CancelledError)
                for outcome in await soon(asyncio.gather(*waiting, return_exceptions=True))
            )
        finally:
            redis.signal(signal.SIGCONT)
        # Their charges are given back as their replies come, and the first of these waits behind those.
        with pytest.raises(RateLimited):
            await admission.admit("worker-7")
        assert await taken(admission) == LIMIT


class Slow(MemoryStore):
    """Decides when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Plan, Waiter]] = []

    def check(self, plan: Plan, waiter: Waiter) -> None:
        self.asked.append((plan, waiter))

    def decide(self) -> None:
        while self.asked:
            super().check(*self.asked.pop())


async def test_a_verdict_and_a_cancellation_in_the_same_turn_take_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Slow()
    monkeypatch.setattr("gateway.library.make_store", lambda _: store)
    async with Admission(rate_limit=f"{LIMIT}/hour") as admission:
        for order in (("decide", "cancel"), ("cancel", "decide")):
            task = asyncio.ensure_future(admission.admit("worker-7"))
            await asyncio.sleep(0)  # it asks
            for step in order:
                if step == "decide":
                    store.decide()
                else:
                    task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        task = asyncio.ensure_future(admission.admit("worker-7"))
        await asyncio.sleep(0)
        store.decide()
        assert (await task).remaining == LIMIT - 1


@pytest.mark.parametrize("of", [Admission, Gateway])
async def test_a_stop_whose_caller_is_cancelled_gives_all_sockets_back(
    redis: RedisServer, of: type[Admission | Gateway]
) -> None:
    for turns in (1, 2, 3, 5, 8):
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only counted
        one = of(Config(target_api_url="http://127.0.0.1:9", redis_url=redis.url))
        await one.start()
        closing = asyncio.ensure_future(one.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        with contextlib.suppress(asyncio.CancelledError):  # it may have been quicker
            await soon(closing)
        for _ in range(3):  # the loop closes what transports have given up
            await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize("of", [Admission, Gateway])
async def test_what_runs_is_not_started_again_unless_it_was_stopped(
    redis: RedisServer, of: type[Admission | Gateway]
) -> None:
    one = of(Config(target_api_url="http://127.0.0.1:9", redis_url=redis.url))
    both = await asyncio.gather(one.start(), one.start(), return_exceptions=True)
    assert {type(outcome) for outcome in both} == {type(None), RuntimeError}
    await one.close()
    for _ in range(2):
        async with one:
            with pytest.raises(RuntimeError, match="already"):
                await one.start()
    if isinstance(one, Gateway):
        with pytest.raises(RuntimeError, match="not running"):
            _ = one.url


async def test_a_redis_that_is_silent_is_not_waited_for(redis: RedisServer) -> None:
    async with Admission(rate_limit=f"{LIMIT}/hour", redis_url=redis.url) as admission:
        redis.signal(signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable, match="did not answer within 100 ms"):
                await soon(admission.admit("worker-7"))
        finally:
            redis.signal(signal.SIGCONT)


async def test_no_redis_is_told_at_the_start() -> None:
    with pytest.raises(StoreUnavailable, match=r"nowhere\.sock"):
        async with Admission(redis_url="unix:///nowhere.sock"):
            pass


async def test_what_it_does_not_take() -> None:
    with pytest.raises(ConfigError, match="rate_limit: "):
        Admission(rate_limit="often")
    with pytest.raises(TypeError):
        Admission(rate_limits="5")
    config = Config(target_api_url="http://api.example", rate_limit="5")
    with pytest.raises(TypeError, match="not both"):
        Admission(config, rate_limit="6")
    admission = Admission(config)
    with pytest.raises(RuntimeError, match="async with"):
        await admission.admit("worker-7")
    async with admission:
        for subject in ("", "global", "a b", "x" * 65, "a:b"):
            with pytest.raises(ValueError, match="letters, digits"):
                await admission.admit(subject)
    with pytest.raises(RuntimeError, match="async with"):
        await admission.admit("worker-7")


def test_it_loads_no_server_and_no_client() -> None:
    """What a program pays for the limits alone."""
    script = "import gateway, sys; gateway.Admission; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "gateway.library" in loaded
    assert not {"gateway.server", "gateway.proxy", "gateway.http1", "h11", "uvloop", "httpx", "hiredis"} & set(loaded)


async def test_a_place_in_flight_is_taken_until_the_grant_is_settled(redis_url: str | None) -> None:
    async with Admission(rate_limit="100/hour", concurrency_limit=2, redis_url=redis_url) as admission:
        first = await admission.admit("worker-7")
        async with await admission.admit("worker-7"):
            with pytest.raises(ConcurrencyLimited) as caught:
                await admission.admit("worker-7")
            assert caught.value.policy == "concurrency"
        second = await admission.admit("worker-7")
        admission.settle(first, used=False)
        admission.settle(first)
        # Given back unused, it took its charge along; only the places of two are held.
        third = await admission.admit("worker-7")
        assert third.remaining == 100 - 3
        with pytest.raises(ConcurrencyLimited):
            await admission.admit("worker-7")
        for grant in (second, third):
            grant.settle()
        assert [(await admission.admit("worker-7")).remaining for _ in range(2)] == [96, 95]


async def test_a_shadow_refuses_nothing(redis_url: str | None) -> None:
    async with Admission(rate_limit="2/hour", rate_limit_mode="shadow", redis_url=redis_url) as admission:
        assert [(await admission.admit("worker-7")).remaining for _ in range(4)] == [1, 0, 0, 0]


async def test_a_grant_that_outlives_its_store_frees_nobody_elses_place() -> None:
    admission = Admission(rate_limit="100/hour", concurrency_limit=1)
    await admission.start()
    old = await admission.admit("worker-7")
    await admission.close()
    async with admission:
        await admission.admit("worker-7")
        old.settle()
        with pytest.raises(ConcurrencyLimited):
            await admission.admit("worker-7")
