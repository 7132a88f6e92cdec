"""The Redis store behind three real sentinels: found, failed over under load, and told why when it is not found."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from typing import TYPE_CHECKING

import pytest

from gateway.errors import StoreUnavailable
from gateway.limits import parse_limits
from gateway.stores import Verdict
from gateway.stores import sentinel as sentinel_module
from gateway.stores.address import RedisAddress, SentinelAddress
from gateway.stores.link import Link
from gateway.stores.redis import RedisStore
from gateway.stores.sentinel import Whereabouts
from tests.kit.redis import running_redis, until
from tests.kit.scripted_redis import ScriptedRedis, scripted_redis
from tests.kit.stores import TIMEOUT_S, Waiting, ask, until_answered
from tests.kit.topologies import Sentinels, running_sentinels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.kit.redis import RedisServer

FEW = parse_limits("5/day")
PLENTY = parse_limits("1000000/day")


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    with running_sentinels() as running:
        yield running


@pytest.fixture
async def store(sentinels: Sentinels) -> AsyncIterator[RedisStore]:
    store = RedisStore(sentinels.address, timeout_s=0.2)
    await store.start()
    yield store
    await store.close()


async def load(store: RedisStore, begun: asyncio.Event, over: asyncio.Event) -> list[Verdict | BaseException]:
    """Check over and over, a few at a time, and return all that came of it; it has begun when the first came back."""
    plan, outcomes = store.plan("load", PLENTY), []
    while not over.is_set():
        waiting = [Waiting() for _ in range(8)]
        for waiter in waiting:
            store.check(plan, waiter)
        outcomes += await asyncio.gather(*(waiter.future for waiter in waiting), return_exceptions=True)
        begun.set()
        await asyncio.sleep(0.005)  # the pace of the load
    return outcomes


@pytest.mark.parametrize("how", ["killed", "hung", "demoted"])
async def test_a_failover_under_load_loses_some_checks_and_no_count(
    sentinels: Sentinels, store: RedisStore, how: str
) -> None:
    few = store.plan("few", FEW)
    assert [(await ask(store, few)).admitted for _ in range(3)] == [True] * 3
    old = sentinels.master()
    (new,) = [server for server in sentinels.servers if server is not old]
    # Replication is asynchronous: what is not with the replica when the master dies is lost with it.
    key = "gateway:{few}:limit:day"
    until(lambda: new.call("GET", key) == old.call("GET", key), "a replica in step")
    begun, over = asyncio.Event(), asyncio.Event()
    loading = asyncio.ensure_future(load(store, begun, over))
    await asyncio.wait_for(begun.wait(), 30)
    if how == "killed":
        old.kill()
    elif how == "hung":
        old.signal(signal.SIGSTOP)
    else:
        assert sentinels.sentinels[0].call("SENTINEL", "FAILOVER", "limits") == b"OK"
    await asyncio.to_thread(sentinels.promoted, old)
    if how == "hung":
        old.signal(signal.SIGCONT)
    async with asyncio.timeout(30):
        while not new.call("GET", "gateway:{global}:probe"):  # noqa: ASYNC110 - the store has come to the new master
            await asyncio.sleep(0.01)
    await until_answered(store)
    over.set()
    outcomes = await loading
    assert {type(outcome) for outcome in outcomes} <= {Verdict, StoreUnavailable}
    assert isinstance(outcomes[0], Verdict)
    assert [(await ask(store, few)).admitted for _ in range(3)] == [True, True, False]
    assert new.call("EXISTS", "gateway:{few}:limit:day") == 1


def named(server: RedisServer) -> bool:
    """Whether a gateway is connected."""
    listed = server.call("CLIENT", "LIST", "TYPE", "normal")
    return isinstance(listed, bytes) and b"rate-limiting-gateway" in listed


async def test_a_master_that_was_replaced_is_left_though_it_still_answers() -> None:
    with running_redis() as old, running_redis() as new:
        master = [old.address]

        async def locate(_within_s: float) -> RedisAddress:
            return master[0]

        link = Link("limits", locate, timeout_s=TIMEOUT_S, rehearsal=(), consequence=str, moves=True)
        await link.start()
        master[0] = new.address
        async with asyncio.timeout(30):
            while named(old) or not named(new) or link.live is None:  # noqa: ASYNC110 - the servers tell nobody
                await asyncio.sleep(0.01)
        await link.ask(("PING",))
        await link.close()


async def test_a_sentinel_that_is_down_or_hangs_does_not_matter(sentinels: Sentinels) -> None:
    sentinels.sentinels[1].kill()
    sentinels.sentinels[2].signal(signal.SIGSTOP)
    nobody = RedisAddress("127.0.0.1", 1)
    address = dataclasses.replace(sentinels.address, sentinels=(nobody, *reversed(sentinels.address.sentinels)))
    store = RedisStore(address, timeout_s=TIMEOUT_S)
    await store.start()
    assert (await ask(store, store.plan("abc", PLENTY))).admitted
    await store.close()


def says(sentinel: ScriptedRedis, port: int, epoch: int) -> None:
    """Have a sentinel name a master of an epoch. One reply serves both questions: a place, and fields."""
    words = b"127.0.0.1", b"%d" % port, b"config-epoch", b"%d" % epoch
    sentinel.greetings[b"SENTINEL"] = b"*4\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


async def test_a_sentinel_that_has_not_heard_of_the_failover_does_not_lead_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with scripted_redis() as quick, scripted_redis() as slow:
        whereabouts = Whereabouts(SentinelAddress((quick.address, slow.address), "limits"))
        says(quick, 1111, 1)
        says(slow, 1111, 1)
        assert (await whereabouts(TIMEOUT_S)).port == 1111
        says(slow, 2222, 2)
        assert (await whereabouts(TIMEOUT_S)).port == 2222
        del slow.greetings[b"SENTINEL"]  # now it hangs
        with pytest.raises(StoreUnavailable, match="have not heard"):
            await whereabouts(TIMEOUT_S)
        says(quick, 2222, 2)
        assert (await whereabouts(TIMEOUT_S)).port == 2222
        # Of sentinels that were set up anew, all begin at the first epoch again: then they are believed in the end.
        says(quick, 3333, 0)
        monkeypatch.setattr(sentinel_module, "NEWS_S", 0.0)
        assert (await whereabouts(TIMEOUT_S)).port == 3333


async def test_database_and_password_are_the_servers(sentinels: Sentinels) -> None:
    for server in sentinels.servers:
        server.call("ACL", "SETUSER", "gateway", "on", ">s3cret", "~gateway:*", "+@all")
    places = tuple(
        dataclasses.replace(one, username="gateway", password="s3cret") for one in sentinels.address.sentinels
    )
    store = RedisStore(SentinelAddress(places, "limits", 3), timeout_s=TIMEOUT_S)
    await store.start()
    assert (await ask(store, store.plan("abc", PLENTY))).admitted
    keyspace = sentinels.master().call("INFO", "keyspace")
    assert isinstance(keyspace, bytes)
    assert b"db3:" in keyspace
    await store.close()


async def test_sentinels_with_a_password_are_told_it(sentinels: Sentinels) -> None:
    for server in sentinels.servers:
        server.call("ACL", "SETUSER", "gateway", "on", ">s3cret", "~gateway:*", "+@all")
    for sentinel in sentinels.sentinels:
        sentinel.call("ACL", "SETUSER", "gateway", "on", ">s3cret", "+@all")
        sentinel.call("ACL", "SETUSER", "default", "off")
    places = tuple(
        dataclasses.replace(one, username="gateway", password="s3cret") for one in sentinels.address.sentinels
    )
    store = RedisStore(SentinelAddress(places, "limits"), timeout_s=TIMEOUT_S)
    await store.start()
    await store.close()
    wrong = tuple(dataclasses.replace(one, password="wr0ng") for one in places)
    with pytest.raises(StoreUnavailable, match="They refuse to say") as caught:
        await RedisStore(SentinelAddress(wrong, "limits"), timeout_s=TIMEOUT_S).start()
    assert "wr0ng" not in str(caught.value)


async def test_why_no_master_is_found(sentinels: Sentinels) -> None:
    unknown = dataclasses.replace(sentinels.address, service="other")
    with pytest.raises(StoreUnavailable, match=r"No sentinel knows the master of 'other': They have no such service\."):
        await RedisStore(unknown, timeout_s=TIMEOUT_S).start()
    for sentinel in sentinels.sentinels:
        sentinel.kill()
    with pytest.raises(StoreUnavailable, match=r"No sentinel knows the master of 'limits': .*refused"):
        await RedisStore(sentinels.address, timeout_s=TIMEOUT_S).start()
