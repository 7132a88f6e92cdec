"""`ON_STORE_LOSS`: what each policy makes of each way that Redis can fail to decide."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

import pytest

from gateway.errors import StoreUnavailable
from gateway.limits import parse_concurrency, parse_limits
from gateway.stores.fallback import PASSED, Allow, Deny, Local, LossPolicy
from gateway.stores.instances import Instances
from gateway.stores.memory import MemoryStore
from gateway.stores.redis import RedisStore
from tests.kit.scripted_redis import ScriptedRedis, admitted, scripted_redis
from tests.kit.stores import TIMEOUT_S, Waiting, ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.stores import Plan, Verdict
    from tests.kit.redis import RedisServer

MINUTE = parse_limits("5/minute")
NOW_US = 10**15
"""What the scripted Redis says the time is."""

REFUSALS = [
    b"-LOADING Redis is loading the dataset in memory\r\n",
    b"-READONLY You can't write against a read only replica.\r\n",
    b"-MASTERDOWN Link with MASTER is down\r\n",
    b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    b"-MISCONF Redis is configured to save RDB snapshots\r\n",
    b"-BUSY Redis is busy running a script.\r\n",
    b"-NOAUTH Authentication required.\r\n",
    b"-WRONGPASS invalid username-password pair\r\n",
    b"-NOPERM this user has no permissions\r\n",
    b"-CLUSTERDOWN The cluster is down\r\n",
    b"-MOVED 1 127.0.0.1:1\r\n",
    b"-NOREPLICAS Not enough good replicas to write.\r\n",
    b"-WRONGTYPE Operation against a key\r\n",
    b"-ERR whatever\r\n",
    b"+nothing of use\r\n",
]


def local(policies: str = "5/minute") -> tuple[LossPolicy, Instances]:
    instances = Instances()
    return Local(instances, lambda: parse_limits(policies)), instances


def named(policy: str, policies: str = "5/minute") -> tuple[LossPolicy, Instances | None]:
    if policy == "local":
        return local(policies)
    return Allow() if policy == "allow" else Deny(), None


@contextlib.asynccontextmanager
async def started(
    loss: LossPolicy, instances: Instances | None = None, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[tuple[ScriptedRedis, RedisStore]]:
    async with scripted_redis() as scripted:
        store = RedisStore(scripted.address, timeout_s=timeout_s, loss=loss, instances=instances)
        await store.start()
        try:
            yield scripted, store
        finally:
            await store.close()


async def answered(scripted: ScriptedRedis, store: RedisStore, plan: Plan, reply: bytes) -> Verdict:
    """Check, with Redis answering that."""
    asked = asyncio.ensure_future(ask(store, plan))
    writer, _ = await scripted.commands.get()
    writer.write(reply)
    return await asked


async def out(scripted: ScriptedRedis, store: RedisStore) -> None:
    """Have the store take Redis for lost, with no way back."""
    scripted.probe_reply = b"-LOADING Redis is loading\r\n"
    scripted.drop_all()
    while store.link.live is not None:  # noqa: ASYNC110 - an event would have to be the store's own
        await asyncio.sleep(0)


@pytest.mark.parametrize("reply", REFUSALS, ids=lambda reply: reply.split()[0][1:].decode())
@pytest.mark.parametrize("policy", ["deny", "local", "allow"])
async def test_each_error_of_redis_is_decided_on_by_the_policy(policy: str, reply: bytes) -> None:
    loss, instances = named(policy)
    async with started(loss, instances) as (scripted, store):
        plan = store.plan("abc", MINUTE)
        if policy == "deny":
            with pytest.raises(StoreUnavailable, match="Redis answered"):
                await answered(scripted, store, plan, reply)
        elif policy == "allow":
            assert await answered(scripted, store, plan, reply) == PASSED
        else:
            verdict = await answered(scripted, store, plan, reply)
            assert (verdict.admitted, verdict.policy, verdict.remaining) == (True, 0, 4)


@pytest.mark.parametrize("policy", ["local", "allow"])
async def test_silence_a_cut_connection_and_a_full_buffer_are_decided_on_as_well(policy: str) -> None:
    loss, instances = named(policy)
    async with started(loss, instances, timeout_s=0.05) as (scripted, store):
        plan = store.plan("abc", MINUTE)
        assert (await ask(store, plan)).admitted  # silence
        assert store.link.live is not None
        store.link.live.pause_writing()
        full = Waiting()
        store.check(plan, full)
        assert full.future.result().admitted
        store.link.live.resume_writing()
        asked = asyncio.ensure_future(ask(store, plan))
        await scripted.commands.get()
        await scripted.commands.get()
        await out(scripted, store)
        assert (await asked).admitted
        at_once = Waiting()
        store.check(plan, at_once)
        assert at_once.future.result().admitted


async def test_local_limits_begin_with_what_was_last_known() -> None:
    loss, instances = local()
    async with started(loss, instances) as (scripted, store):
        plan, other = store.plan("abc", MINUTE), store.plan("other", MINUTE)
        await answered(scripted, store, plan, admitted(NOW_US, remaining=2))
        await out(scripted, store)
        verdicts = [await ask(store, plan) for _ in range(4)]
        assert [(verdict.admitted, verdict.remaining) for verdict in verdicts] == [
            (True, 1),
            (True, 0),
            (False, 0),
            (False, 0),
        ]
        assert 59_000_000 < verdicts[-1].reset_us <= 61_000_000
        # Nothing is known of this one.
        assert [(await ask(store, other)).admitted for _ in range(6)] == [True] * 5 + [False]


async def test_what_was_known_a_window_ago_counts_no_more() -> None:
    loss, instances = local()
    async with started(loss, instances) as (scripted, store):
        plan = store.plan("abc", MINUTE)
        await answered(scripted, store, plan, admitted(NOW_US - 62_000_000, remaining=0))
        await out(scripted, store)
        assert [(await ask(store, plan)).admitted for _ in range(6)] == [True] * 5 + [False]


async def test_each_limit_begins_with_what_was_known_of_it() -> None:
    loss, instances = local()
    async with started(loss, instances) as (scripted, store):
        plan = store.plan("abc", parse_limits("2/second,9/day"))
        await answered(scripted, store, plan, b"*5\r\n:1\r\n:1\r\n:1\r\n:5\r\n:%d\r\n" % NOW_US)
        await answered(scripted, store, plan, b"*5\r\n:0\r\n:0\r\n:0\r\n:5\r\n:%d\r\n" % (NOW_US - 10_000_000))
        await out(scripted, store)
        verdicts = [await ask(store, plan) for _ in range(2)]
        assert [(verdict.admitted, verdict.policy) for verdict in verdicts] == [(True, 1), (False, 1)]


async def test_an_outage_after_the_other_brings_no_new_quota() -> None:
    loss, instances = local()
    async with started(loss, instances) as (scripted, store):
        plan = store.plan("abc", MINUTE)
        await out(scripted, store)
        assert [(await ask(store, plan)).admitted for _ in range(3)] == [True] * 3
        scripted.probe_reply = admitted(1)
        assert store.link._recovery is not None
        await store.link._recovery
        await answered(scripted, store, plan, admitted(NOW_US, remaining=4))
        await out(scripted, store)
        assert [(await ask(store, plan)).admitted for _ in range(3)] == [True, True, False]


async def test_a_local_place_that_nothing_was_sent_for_is_given_back_locally() -> None:
    loss, instances = local()
    async with started(loss, instances) as (scripted, store):
        plan = store.plan("abc", MINUTE)
        await out(scripted, store)
        verdicts = [await ask(store, plan) for _ in range(5)]
        scripted.probe_reply = admitted(1)
        assert store.link._recovery is not None
        await store.link._recovery
        # Redis is back by the time, and has nothing to give back.
        store.refund(plan, verdicts[-1])
        await store.ping()
        assert scripted.commands.empty()
        await out(scripted, store)
        assert [(await ask(store, plan)).admitted for _ in range(2)] == [True, False]


async def test_an_unchecked_place_is_given_back_nowhere() -> None:
    async with started(Allow()) as (scripted, store):
        plan = store.plan("abc", MINUTE)
        store.refund(plan, PASSED)
        await store.ping()
        assert scripted.commands.empty()


async def test_a_defect_at_a_verdict_hurts_no_other_check_of_the_outage() -> None:
    class Defective(Waiting):
        def on_verdict(self, verdict: Verdict) -> None:
            raise RuntimeError("a defect")

    async with started(Allow()) as (scripted, store):
        plan = store.plan("abc", MINUTE)
        waiters = [Defective(), Waiting()]
        for waiter in waiters:
            store.check(plan, waiter)
        for _ in waiters:
            await scripted.commands.get()
        await out(scripted, store)
        with pytest.raises(StoreUnavailable, match="Something went wrong"):
            await waiters[0].future
        assert (await waiters[1].future).admitted


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ("5/minute,20/day", "; so at worst, one window of 'minute' 15 more than 5, 'day' 60 more than 20."),
        # A window of a bucket's may hold nearly twice its quota, here and in Redis.
        ("5/minute;bucket,20/day;shadow", "; so at worst, one window of 'minute' 27 more than 9."),
        ("5/minute;shadow", "; no limit refuses anything."),
    ],
)
async def test_what_is_said_to_be_the_worst_is_what_each_limit_can_hold_in_a_window(limits: str, says: str) -> None:
    loss, instances = local(limits)
    instances.seen = 3
    assert loss.consequence().partition("Instances seen: 3")[2] == says


async def test_a_bucket_holds_in_a_window_what_is_said_and_no_more() -> None:
    (policy,) = parse_limits("5/minute;bucket")
    now_us = 10**15
    store = MemoryStore(lambda: now_us)
    plan, admitted_at = store.plan("abc", [policy]), []
    for step in range(3 * 60):
        now_us = 10**15 + step * 1_000_000
        while (await ask(store, plan)).admitted:
            admitted_at.append(now_us)
    worst = max(sum(at <= one < at + 60_000_000 for one in admitted_at) for at in admitted_at)
    assert worst == policy.most == 9


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("deny", "requests are refused (ON_STORE_LOSS=deny)"),
        ("allow", "requests pass unchecked"),
        ("local", "Instances seen: 3; so at worst, one window of 'minute' 15 more than 5, 'day' 60 more than 20."),
    ],
)
async def test_the_log_says_once_what_an_outage_means_and_readiness_says_it_too(
    caplog: pytest.LogCaptureFixture, policy: str, says: str
) -> None:
    caplog.set_level(logging.INFO, "gateway.store")
    loss, instances = named(policy, "5/minute,20/day")
    async with started(loss, instances) as (scripted, store):
        scripted.instances_reply = b"*2\r\n:3\r\n:%d\r\n" % NOW_US
        if instances is not None:
            await instances.announce()
        plan = store.plan("abc", MINUTE)
        await out(scripted, store)
        for _ in range(5):
            with contextlib.suppress(StoreUnavailable):
                await ask(store, plan)
        with pytest.raises(StoreUnavailable) as caught:
            await store.ping()
        assert says in caught.value.detail
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert says in record.getMessage()


async def test_instances_count_each_other_and_leave(server: RedisServer) -> None:
    instances = [Instances() for _ in range(3)]
    stores = [
        RedisStore(server.address, timeout_s=TIMEOUT_S, loss=Local(one, lambda: MINUTE), instances=one)
        for one in instances
    ]
    for store in stores:
        await store.start()
    await instances[0].announce()
    assert [one.seen for one in instances] == [3, 2, 3]
    seconds = server.call("TIME")
    assert isinstance(seconds, list)
    assert abs(instances[0].store_time_us() - int(seconds[0]) * 10**6) < 30 * 10**6
    ttl_ms = server.call("PTTL", "gateway:{global}:instances")
    assert isinstance(ttl_ms, int)
    assert 0 < ttl_ms <= 25_000
    await stores[2].close()
    await instances[0].announce()
    assert instances[0].seen == 2
    # One that was killed is taken for gone when its entry has expired.
    server.call("ZADD", "gateway:{global}:instances", 1, "killed")
    await instances[0].announce()
    assert instances[0].seen == 2
    for store in stores[:2]:
        await store.close()


async def test_local_counts_buckets_and_places_too_and_gives_places_back() -> None:
    policies = (*parse_limits("5/minute;bucket"), parse_concurrency("2"))
    instances = Instances()
    async with started(Local(instances, lambda: policies), instances) as (scripted, store):
        plan = store.plan("abc", policies)
        # What Redis has told of the bucket is gone here too.
        told = b"*7\r\n:1\r\n:0\r\n:3\r\n:1\r\n:%d\r\n:0\r\n$0\r\n\r\n" % NOW_US
        assert (await answered(scripted, store, plan, told)).remaining == 3
        await out(scripted, store)
        verdicts = [await ask(store, plan) for _ in range(3)]
        assert [(verdict.admitted, verdict.policy) for verdict in verdicts] == [(True, 0), (True, 0), (False, 1)]
        store.release(plan, verdicts[0])
        third = await ask(store, plan)
        assert (third.admitted, third.remaining) == (True, 0)
        store.refund(plan, third)
        again = await ask(store, plan)
        assert (again.admitted, again.remaining) == (True, 0)
        store.release(plan, again)
        assert (await ask(store, plan)).policy == 0
