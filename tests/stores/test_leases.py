"""Places in flight in a real Redis: renewed together, given back when a process ends in order, and when it does not."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from gateway.errors import StoreUnavailable
from gateway.limits import parse_concurrency
from gateway.stores.redis import RedisStore
from tests.kit.stores import TIMEOUT_S, Waiting, ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.kit.redis import RedisServer

TWO = (parse_concurrency("2"), parse_concurrency("5", shared=True))
OWN, SHARED = "gateway:{abc}:inflight", "gateway:{global}:inflight"
LONG_US = 3600_000_000


@contextlib.asynccontextmanager
async def started(
    server: RedisServer, lease_us: int = LONG_US, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[RedisStore]:
    store = RedisStore(server.address, timeout_s=timeout_s, lease_us=lease_us)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


def held(server: RedisServer, key: str = OWN) -> int:
    count: Any = server.call("ZCARD", key)
    assert isinstance(count, int)
    return count


def ends(server: RedisServer) -> list[int]:
    pairs: Any = server.call("ZRANGE", OWN, 0, -1, "WITHSCORES")
    return [int(score) for score in pairs[1::2]]


async def until(server: RedisServer, count: int, store: RedisStore) -> None:
    while held(server) != count:
        await store.ping()


async def test_a_place_is_given_back_once_wherever_it_was_taken(server: RedisServer) -> None:
    async with started(server) as store:
        plan = store.plan("abc", TWO)
        one, other = await ask(store, plan), await ask(store, plan)
        assert not (await ask(store, plan)).admitted
        assert (held(server), held(server, SHARED)) == (2, 2)
        for _ in range(2):
            store.release(plan, one)
        await store.ping()
        assert (held(server), held(server, SHARED)) == (1, 1)
        store.refund(plan, other)
        await store.ping()
        assert (held(server), held(server, SHARED)) == (0, 0)


async def test_leases_are_renewed_together_by_one_timer(server: RedisServer) -> None:
    async with started(server, lease_us=300_000) as store:
        plan = store.plan("abc", (parse_concurrency("1000"),))
        verdicts = [await ask(store, plan) for _ in range(700)]
        server.call("CONFIG", "RESETSTAT")
        before = max(ends(server))
        # Longer than a lease would last by itself.
        while min(ends(server)) < before + 600_000:
            await store.ping()
        assert held(server) == 700
        stats: Any = server.call("INFO", "commandstats")
        calls = int(stats.decode().split("cmdstat_eval:calls=")[1].split(",")[0])
        assert calls < 40  # two commands for the 700, a few times
        for verdict in verdicts:
            store.release(plan, verdict)
        await store.ping()
        assert held(server) == 0


async def test_a_process_that_is_gone_gives_its_places_back_when_its_leases_end(server: RedisServer) -> None:
    async with started(server, lease_us=200_000) as lost, started(server, lease_us=200_000) as other:
        plan = lost.plan("abc", TWO)
        await ask(lost, plan)
        await ask(lost, plan)
        lost.leases._held.clear()  # as kill -9 does
        theirs = other.plan("abc", TWO)
        assert not (await ask(other, theirs)).admitted
        while not (await ask(other, theirs)).admitted:
            pass
        assert 1 <= held(server) <= 2
        expires: Any = server.call("PTTL", OWN)
        assert 0 < expires <= 205


async def test_a_process_that_ends_in_order_gives_its_places_back_at_once(server: RedisServer) -> None:
    async with started(server) as store:
        plan = store.plan("abc", TWO)
        await ask(store, plan)
        await ask(store, plan)
    assert (held(server), held(server, SHARED)) == (0, 0)


async def test_a_redis_that_lost_its_data_hears_of_what_is_held_before_it_is_asked_again(server: RedisServer) -> None:
    async with started(server) as store:
        plan = store.plan("abc", TWO)
        await ask(store, plan)
        kept = await ask(store, plan)
        server.kill()
        with contextlib.suppress(StoreUnavailable):
            await ask(store, plan)
        server.start()
        assert store.link._recovery is not None
        await store.link._recovery
        assert not (await ask(store, plan)).admitted
        assert (held(server), held(server, SHARED)) == (2, 2)
        store.release(plan, kept)
        assert (await ask(store, plan)).admitted


async def test_what_ends_while_redis_is_gone_is_given_back_when_it_is_back(server: RedisServer) -> None:
    async with started(server) as store:
        plan = store.plan("abc", TWO)
        verdicts = [await ask(store, plan) for _ in range(2)]
        server.call("CLIENT", "PAUSE", 60_000, "WRITE")
        store.release(plan, verdicts.pop())
        await asyncio.sleep(0)  # it is on its way
        server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        server.call("CLIENT", "UNPAUSE")
        with contextlib.suppress(StoreUnavailable):
            while True:
                await store.ping()
        for verdict in verdicts:
            store.release(plan, verdict)
        assert held(server) == 2
        assert store.link._recovery is not None
        await store.link._recovery
        assert (await ask(store, plan)).admitted
        assert (held(server), held(server, SHARED)) == (1, 1)


async def test_a_late_admission_gives_its_place_back(server: RedisServer) -> None:
    async with started(server, timeout_s=0.05) as store:
        plan = store.plan("abc", TWO)
        server.call("CLIENT", "PAUSE", 60_000, "WRITE")
        waiting = Waiting()
        store.check(plan, waiting)
        with contextlib.suppress(StoreUnavailable):
            await waiting.future
        store.link._timeout_s = TIMEOUT_S
        server.call("CLIENT", "UNPAUSE")
        while (await store.link.ask(("PING",)))[0] != b"PONG" or held(server):
            pass
        assert store.leases._held == {}


async def test_every_key_of_places_expires(server: RedisServer) -> None:
    async with started(server, lease_us=25_000_000) as store:
        await ask(store, store.plan("abc", TWO))
        store.leases.renew()
        await store.revoke("abc", 60)
        for key, limit_ms in ((OWN, 25_010), (SHARED, 25_010), ("gateway:{abc}:revoked", 60_000)):
            expires: Any = server.call("PTTL", key)
            assert 0 < expires <= limit_ms


async def test_an_instance_with_nothing_to_ask_tells_a_redis_that_lost_its_data_what_it_holds(
    server: RedisServer,
) -> None:
    async with started(server) as busy, started(server) as quiet:
        for _ in range(2):
            assert (await ask(quiet, quiet.plan("abc", TWO))).admitted
        server.kill()
        for store in (busy, quiet):
            with contextlib.suppress(StoreUnavailable):
                await store.ping()
        server.start()
        for store in (busy, quiet):
            assert store.link._recovery is not None
            await store.link._recovery
        await quiet.ping()
        assert not (await ask(busy, busy.plan("abc", TWO))).admitted
        assert (held(server), held(server, SHARED)) == (2, 2)


async def test_what_only_a_shadow_let_pass_keeps_no_renewal_from_the_others(server: RedisServer) -> None:
    async with started(server) as store:
        shadowed = store.plan("abc", [parse_concurrency("1;shadow")])
        one, other = await ask(store, shadowed), await ask(store, shadowed)
        assert (one.shadowed, other.shadowed) == (0, 1)
        server.call("DEL", OWN)
        store.leases.renew()
        await store.ping()
        assert held(server) == 1
        for verdict in (one, other):
            store.release(shadowed, verdict)
        await store.ping()
        assert held(server) == 0
