"""The book of usage, in every store: what instances counted is added up, once, and never in a request's way."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from gateway.errors import StoreUnavailable
from gateway.metrics import Delta
from gateway.stores import usage_redis
from gateway.stores.address import parse_redis_url
from gateway.stores.redis import RedisStore
from tests.kit.scripted_redis import scripted_redis
from tests.kit.stores import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.stores import Store
    from gateway.stores.link import Link
    from tests.kit.redis import RedisServer
    from tests.kit.stores import Subject

ABOUT = {"name": "worker", "limits": "10/second"}


def delta(
    tokens: Mapping[str, dict[str, int]] | None = None,
    targets: Mapping[str, dict[str, int]] | None = None,
    *,
    flying: Mapping[str, int] | None = None,
) -> Delta:
    return Delta(
        {token: (Counter(counts), ABOUT) for token, counts in (tokens or {}).items()},
        {name: Counter(counts) for name, counts in (targets or {}).items()},
        dict(flying or {}),
        {"api": sum((flying or {}).values())},
    )


async def overview(store: Store, most: int = 100) -> Any:
    told = await store.usage.overview(most)
    return (
        {name: (dict(used.counts), used.in_flight) for name, used in told.targets.items()},
        {token: (dict(used.counts), used.in_flight) for token, used in told.tokens.items()},
    )


async def test_what_was_entered_is_added_up(under_test: Subject) -> None:
    store = await under_test.fresh()
    assert dict((await store.usage.of("a")).counts) == {}
    store.usage.add(delta({"a": {"requests": 2, "refused:rate_limited": 1}}, {"api": {"requests": 2}, "": {"x": 1}}))
    store.usage.add(delta({"a": {"requests": 1}, "a.b": {"requests": 5}}, {"api": {"requests": 6}}))
    used = await store.usage.of("a")
    assert dict(used.counts) == {"requests": 3, "refused:rate_limited": 1}
    assert dict(used.about) == ABOUT
    targets, tokens = await overview(store)
    assert targets == {"api": ({"requests": 8}, 0), "": ({"x": 1}, 0)}
    assert tokens == {"a": ({"requests": 3, "refused:rate_limited": 1}, 0), "a.b": ({"requests": 5}, 0)}
    assert (await store.usage.overview()).others == 0


async def test_the_busiest_are_told_of(under_test: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_redis, "BATCH", 1000)
    store = await under_test.fresh()
    store.usage.add(delta({f"t{number}": {"requests": number} for number in range(300)}))
    _, tokens = await overview(store, 3)
    assert set(tokens) == {"t299", "t298", "t297"}


async def test_of_many_tokens_a_batch_goes_at_once_and_the_rest_by_the_end(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PAUSE_S", "SPREAD_S"):
        monkeypatch.setattr(usage_redis, name, 3600.0)
    store = await started(server)
    store.usage.add(delta({f"t{number}": {"requests": 1} for number in range(usage_redis.BATCH * 2 + 1)}))
    await store.ping()
    assert len(keys(server)) == usage_redis.BATCH
    await store.usage.close()
    assert len(keys(server)) == usage_redis.BATCH * 2 + 1
    await store.close()


async def test_the_rest_of_many_tokens_goes_in_batches_with_pauses(server: RedisServer) -> None:
    store = await started(server)
    store.usage.add(delta({f"t{number}": {"requests": 1} for number in range(usage_redis.BATCH * 2 + 1)}))
    async with asyncio.timeout(20):
        while len(keys(server)) < usage_redis.BATCH * 2 + 1:  # noqa: ASYNC110 - a timer sends them
            await asyncio.sleep(0.01)
    await store.close()


async def test_tokens_of_a_node_that_is_out_keep_nobody_else_waiting() -> None:
    sent: list[bytes] = []
    node = SimpleNamespace(congested=False, end_reason=None, send=lambda packed, _recipient: sent.append(packed))
    links = {here: SimpleNamespace(live=node if here else None) for here in (True, False)}
    usage = usage_redis.RedisUsage(lambda key: cast("Link", links["down" not in key]), pytest.fail)
    names = [*(f"down{number}" for number in range(usage_redis.BATCH * 3 - 1)), "up"]
    for _ in range(3):  # flushes
        usage.add(delta({name: {"requests": 1} for name in names}))
    assert any(usage_redis.usage_key("up").encode() in packed for packed in sent)


async def test_instances_add_to_the_same_counts_and_know_what_the_others_have_in_flight(server: RedisServer) -> None:
    one, other = await started(server), await started(server)
    one.usage.add(delta({"a": {"requests": 2}}, {"api": {"requests": 2}}, flying={"a": 3}))
    await one.ping()
    other.usage.add(delta({"a": {"requests": 1}}, {"api": {"requests": 1}}, flying={"a": 1}))
    assert await other.usage.of("a") == (Counter(requests=3), ABOUT, 3)
    assert await overview(other) == ({"api": ({"requests": 3}, 3)}, {"a": ({"requests": 3}, 3)})
    assert (await other.usage.overview()).others == 1
    await one.usage.close()  # an orderly stop: it is not there any more, what it counted is
    assert await other.usage.of("a") == (Counter(requests=3), ABOUT, 0)
    assert (await other.usage.overview()).others == 0
    await one.close()
    await other.close()


async def test_a_killed_instance_is_not_counted_any_more_nor_what_it_had_in_flight(server: RedisServer) -> None:
    one, other = await started(server), await started(server)
    one.usage.add(delta({"a": {"requests": 1}}, flying={"a": 3}))
    await one.ping()
    assert (await other.usage.overview()).others == 1
    for key in server.call("KEYS", "gateway:{global}:usage-instance:*"):  # type: ignore[attr-defined]  # a list
        server.call("DEL", key)  # as its expiry does
    assert (await other.usage.overview()).others == 0
    assert (await other.usage.of("a")).in_flight == 0
    assert server.call("ZRANGE", "gateway:{global}:usage-instances", "0", "-1") == []
    await one.close()
    await other.close()


async def test_a_hash_is_readable_and_every_key_expires(server: RedisServer) -> None:
    store = await started(server)
    counts = {"requests": 1, "passed": 1, "latency<=1.5ms": 1}
    store.usage.add(delta({"a.b": counts}, {"api": counts}, flying={"a.b": 1}))
    await store.ping()
    told = server.call("HGETALL", "gateway:{a}:b:usage")
    assert isinstance(told, list)
    assert dict(zip(told[::2], told[1::2], strict=True)) == {
        b"requests": b"1",
        b"passed": b"1",
        b"latency<=1.5ms": b"1",
        b"name": b"worker",
        b"limits": b"10/second",
    }
    assert server.call("HGET", "gateway:{global}:usage", "api:requests") == b"1"
    for key in server.call("KEYS", "*"):  # type: ignore[attr-defined]  # a list
        assert 0 < server.call("TTL", key) <= usage_redis.USAGE_LIVES_S, key  # type: ignore[operator]  # a number
    await store.close()


async def test_what_is_counted_while_redis_is_out_is_entered_when_it_is_back(server: RedisServer) -> None:
    store = await started(server)
    live, store.link.live = store.link.live, None
    store.usage.add(delta({"a": {"requests": 1}}, {"api": {"requests": 1}}))
    store.usage.add(delta({"a": {"requests": 1}}, {"api": {"requests": 1}}))
    store.link.live = live
    store.usage.add(delta())
    assert await overview(store) == ({"api": ({"requests": 2}, 0)}, {"a": ({"requests": 2}, 0)})
    await store.close()


async def test_what_redis_refused_is_entered_later(server: RedisServer) -> None:
    store = await started(server)
    server.call("CONFIG", "SET", "maxmemory", "1")  # OOM to whatever writes
    store.usage.add(delta({"a": {"requests": 1}}, {"api": {"requests": 1}}))
    with pytest.raises(StoreUnavailable, match=r"answered OOM to the script \(its memory is full"):
        await store.ping()  # so /readyz tells it before a request has found out
    server.call("CONFIG", "SET", "maxmemory", "0")
    await store.ping()
    store.usage.add(delta())
    assert await overview(store) == ({"api": ({"requests": 1}, 0)}, {"a": ({"requests": 1}, 0)})
    await store.close()


async def test_what_was_sent_on_a_connection_that_broke_is_sent_again(server: RedisServer) -> None:
    store = await started(server)
    store.usage.add(delta({"a": {"requests": 1}}, {"api": {"requests": 1}}))
    assert store.link.live is not None
    store.link.live.end("A test ended it.")
    await back(store)
    store.usage.add(delta())
    assert await overview(store) == ({"api": ({"requests": 1}, 0)}, {"a": ({"requests": 1}, 0)})
    await store.close()


async def test_what_was_sent_into_a_silence_is_sent_again_when_the_connection_has_ended() -> None:
    async with scripted_redis() as scripted:
        store = RedisStore(scripted.address, timeout_s=0.01)
        await store.start()

        async def sent_to(token: bytes) -> asyncio.StreamWriter:
            async with asyncio.timeout(TIMEOUT_S):
                while True:
                    writer, command = await scripted.commands.get()
                    if command[3:4] == [b"gateway:{%b}:usage" % token]:
                        return writer
                    writer.write(b":1\r\n")

        store.usage.add(delta({"a": {"requests": 1}, "b": {"requests": 1}}))
        (await sent_to(b"a")).write(b":1\r\n")
        await sent_to(b"b")
        while not usage_of(store)._unanswered:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        store.usage.add(delta())
        assert not usage_of(store)._tokens  # it may still be answered
        silent = store.link.live
        scripted.drop_all()
        while store.link.live in {None, silent}:  # noqa: ASYNC110 - a connection is made in the background
            await asyncio.sleep(0.01)
        store.usage.add(delta())
        await sent_to(b"b")
        await store.close()


async def test_a_key_that_is_no_hash_spoils_no_other(server: RedisServer) -> None:
    store = await started(server)
    server.call("SET", "gateway:{a}:usage", "mine")
    store.usage.add(delta({"a": {"requests": 1}, "b": {"requests": 1}}))
    store.usage.add(delta())
    assert set((await overview(store))[1]) == {"b"}
    assert server.call("GET", "gateway:{a}:usage") == b"mine"
    await store.close()


async def started(server: RedisServer) -> RedisStore:
    address = parse_redis_url(server.url)
    store = RedisStore(address, timeout_s=TIMEOUT_S)  # type: ignore[arg-type]  # a single server's
    await store.start()
    return store


def usage_of(store: RedisStore) -> usage_redis.RedisUsage:
    return store.usage


async def back(store: RedisStore) -> None:
    while store.link.live is None:  # noqa: ASYNC110 - a connection is made in the background
        await asyncio.sleep(0.01)


def keys(server: RedisServer) -> list[bytes]:
    found = server.call("KEYS", "gateway:{t*}:usage")
    assert isinstance(found, list)
    return found
