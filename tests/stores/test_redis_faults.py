"""The Redis store on a real server that is flushed, paused, cut off and killed."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import uvloop

from gateway.budgets.budget import Budget
from gateway.budgets.spending import Ask, Mark, Settlement
from gateway.errors import StoreUnavailable
from gateway.limits import parse_concurrency, parse_limits
from gateway.stores import REVOKED, Verdict
from gateway.stores.fallback import Local
from gateway.stores.instances import Instances
from gateway.stores.link import BACK_OFF_S, CONNECT_S
from gateway.stores.redis import RedisStore
from gateway.stores.redis_ledger import REMEMBERED
from tests.kit.rule import T
from tests.kit.spending import reserve
from tests.kit.stores import CLOCK_SCRIPT, TIMEOUT_S, Waiting, ask, connect, many

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.kit.redis import RedisServer

PLENTY = parse_limits("1000000/day")


@contextlib.asynccontextmanager
async def started(server: RedisServer, timeout_s: float = TIMEOUT_S) -> AsyncIterator[RedisStore]:
    store = RedisStore(server.address, timeout_s=timeout_s)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


async def back(store: RedisStore) -> None:
    """Wait until the store is out of its outage; its own back-off bounds the wait."""
    assert store.link._recovery is not None
    await store.link._recovery
    await store.ping()


def test_the_back_off_lets_no_outage_last_a_second_longer_than_redis_does() -> None:
    assert CONNECT_S + max(BACK_OFF_S) < 1


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_exactly_the_quota_is_admitted_over_four_instances(server: RedisServer, loop: Any) -> None:
    async def hammer() -> int:
        async with contextlib.AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(started(server)) for _ in range(4)]
            policies = parse_limits("100/hour,333/day")
            verdicts = await asyncio.gather(*(many(store, "many", policies, 200) for store in stores))
            return sum(verdict.admitted for of_one in verdicts for verdict in of_one)

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(hammer()) == 100
    server.call("FLUSHALL")


async def test_the_lost_script_fails_no_request(server: RedisServer) -> None:
    async with started(server) as store:
        for _ in range(20):
            server.call("SCRIPT", "FLUSH")
            verdicts = await many(store, "many", PLENTY, 50)
            assert all(verdict.admitted for verdict in verdicts)
        assert min(verdict.remaining for verdict in verdicts) == 1_000_000 - 20 * 50


async def test_a_pause_loses_checks_in_time_and_gives_them_back_when_it_ends(server: RedisServer) -> None:
    async with started(server, timeout_s=0.05) as store:
        plan = store.plan("abc", PLENTY)
        server.call("CLIENT", "PAUSE", 60_000, "WRITE")
        waiting = [Waiting() for _ in range(5)]
        for waiter in waiting:
            store.check(plan, waiter)
        for waiter in waiting:
            with pytest.raises(StoreUnavailable, match="within 50 ms"):
                await waiter.future
        # The breaker is open by now: answered at once, and sent nowhere.
        refused_at_once = Waiting()
        store.check(plan, refused_at_once)
        with pytest.raises(StoreUnavailable):
            refused_at_once.future.result()
        (retired,) = store.link._retired
        store.link._timeout_s = TIMEOUT_S  # for the next connection: this machine may be slow, too
        server.call("CLIENT", "UNPAUSE")
        await back(store)
        while retired.end_reason is None:
            await store.ping()
        assert (await ask(store, plan)).remaining == 1_000_000 - 1


async def test_a_cut_connection_is_replaced(server: RedisServer) -> None:
    async with started(server) as store:
        plan = store.plan("abc", PLENTY)
        await ask(store, plan)
        waiting = [Waiting() for _ in range(50)]
        for waiter in waiting:
            store.check(plan, waiter)
        server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        outcomes = await asyncio.gather(*(waiter.future for waiter in waiting), return_exceptions=True)
        assert all(isinstance(outcome, StoreUnavailable | Verdict) for outcome in outcomes)
        await back(store)
        assert (await ask(store, plan)).admitted


async def test_a_killed_server_is_noticed_and_so_is_its_return(server: RedisServer) -> None:
    async with started(server) as store:
        plan = store.plan("abc", parse_limits("3/day"))
        assert [(await ask(store, plan)).admitted for _ in range(4)] == [True, True, True, False]
        waiter = Waiting()
        server.kill()
        store.check(plan, waiter)
        with pytest.raises(StoreUnavailable, match=r"lost|closed"):
            await waiter.future
        with pytest.raises(StoreUnavailable):
            await ask(store, plan)
        server.start()
        await back(store)
        # Redis came back empty: that is one more quota, and no more.
        assert [(await ask(store, plan)).admitted for _ in range(4)] == [True, True, True, False]


async def test_a_stopped_server_is_waited_for(server: RedisServer) -> None:
    async with started(server, timeout_s=0.05) as store:
        plan = store.plan("abc", PLENTY)
        server.signal(signal.SIGSTOP)
        try:
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await ask(store, plan)
        finally:
            store.link._timeout_s = TIMEOUT_S  # for the next connection: this machine may be slow, too
            server.signal(signal.SIGCONT)
        await back(store)


@pytest.mark.parametrize(
    "value", ["60", "", "x" * 15, "0" * 19, "\x01" + "\0" * 13, "\x01" + "\0" * 15, "b" + "0" * 32]
)
async def test_a_foreign_value_is_a_loss_and_never_an_admission(server: RedisServer, value: str) -> None:
    async with started(server) as store:
        key = "gateway:{abc}:limit:day"
        server.call("SET", key, value)
        with pytest.raises(StoreUnavailable, match="Redis answered ERR"):
            await ask(store, store.plan("abc", PLENTY))
        assert server.call("GET", key) == value.encode()
        assert (await ask(store, store.plan("other", PLENTY))).admitted


async def test_a_key_of_another_type_is_a_loss(server: RedisServer) -> None:
    async with started(server) as store:
        server.call("RPUSH", "gateway:{abc}:limit:day", "1")
        with pytest.raises(StoreUnavailable, match="Redis answered WRONGTYPE"):
            await ask(store, store.plan("abc", PLENTY))


async def test_a_full_redis_refuses_what_it_cannot_count(server: RedisServer) -> None:
    async with started(server) as store:
        server.call("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="Redis answered OOM"):
            await ask(store, store.plan("abc", PLENTY))


async def test_every_key_expires_when_its_window_has_passed_and_no_sooner(server: RedisServer) -> None:
    async with started(server) as store:
        plan = store.plan("abc", parse_limits("5/minute,5/day") + parse_limits("5/hour", shared=True))
        for _ in range(3):
            verdict = await ask(store, plan)
        store.refund(plan, verdict)
        await store.agree_secret(b"x" * 32)
        client = connect(server.address)
        keys = {key.decode(): client.pttl(key) for key in client.scan_iter()}
        client.close()
        windows_s = {
            "gateway:{abc}:limit:minute": 60,
            "gateway:{abc}:limit:day": 86_400,
            "gateway:{global}:limit:hour": 3600,
            "gateway:{global}:secret": 400 * 86_400 - 10,
        }
        assert keys.keys() - {"gateway:{global}:probe"} == windows_s.keys()
        for key, window_s in windows_s.items():
            # Ten seconds for a slow machine; two segments for the rule's rounding.
            assert window_s * 1000 - 10_000 < keys[key] < window_s * 1000 * 62 / 60 + 10_000


async def test_a_refused_request_writes_nothing(server: RedisServer) -> None:
    store = RedisStore(server.address, timeout_s=TIMEOUT_S, script=CLOCK_SCRIPT)
    await store.start()
    server.call("SET", "test:clock", T)
    plan = store.plan("abc", parse_limits("1/minute,5/day"))
    assert (await ask(store, plan)).admitted
    values = [server.call("GET", f"gateway:{{abc}}:limit:{name}") for name in ("minute", "day")]
    assert values[0] == b"\1" + (10**6).to_bytes(6) + (1).to_bytes(4) * 2
    server.call("SET", "test:clock", T + 5_000_000)
    assert not (await ask(store, plan)).admitted
    assert values == [server.call("GET", f"gateway:{{abc}}:limit:{name}") for name in ("minute", "day")]
    await store.close()


async def test_all_instances_agree_on_the_first_secret(server: RedisServer) -> None:
    async with started(server) as one, started(server) as other:
        candidates = [b"a" * 32, b"b" * 32]
        agreed = await asyncio.gather(one.agree_secret(candidates[0]), other.agree_secret(candidates[1]))
        assert agreed[0] == agreed[1]
        assert agreed[0] in candidates
        assert await other.agree_secret(b"c" * 32) == agreed[0]


async def test_a_start_waits_longer_for_the_secret_than_a_request_would(server: RedisServer) -> None:
    async with started(server, 0.05) as store:
        server.signal(signal.SIGSTOP)
        try:
            agreeing = asyncio.create_task(store.agree_secret(b"x" * 32))
            await asyncio.sleep(0)
            with pytest.raises(StoreUnavailable):  # which has waited behind it
                await store.ping()
        finally:
            server.signal(signal.SIGCONT)
        assert await agreeing == b"x" * 32


async def test_a_start_waits_as_long_for_all_else_that_it_asks(server: RedisServer) -> None:
    class Stalled(Instances):
        async def announce(self, *args: int) -> None:
            if self._task is None and not stops:
                stops.append(signal.SIGSTOP)
                server.signal(stops[0])
                asyncio.get_running_loop().call_later(0.1, server.signal, signal.SIGCONT)
            await super().announce(*args)

    stops: list[signal.Signals] = []
    store = RedisStore(server.address, timeout_s=0.03, instances=Stalled(), is_long=True)
    try:
        await store.start()
    finally:
        await store.close()


@pytest.mark.parametrize(
    ("username", "password", "refusal"),
    [
        (None, None, None),
        ("gateway", "s3cret", None),
        ("gateway", "wrong", "WRONGPASS to AUTH"),
        ("default", "x", None),
    ],
)
async def test_login_and_database(
    server: RedisServer, username: str | None, password: str | None, refusal: str | None
) -> None:
    server.call("ACL", "SETUSER", "gateway", "on", ">s3cret", "~gateway:*", "+@all")
    address = dataclasses.replace(server.address, db=3, username=username, password=password)
    store = RedisStore(address, timeout_s=TIMEOUT_S)
    if refusal is None:
        await store.start()
        assert (await ask(store, store.plan("abc", PLENTY))).admitted
        assert b"db3:" in cast("bytes", server.call("INFO", "keyspace"))
    else:
        with pytest.raises(StoreUnavailable, match=refusal):
            await store.start()
    await store.close()


async def test_the_rights_that_the_readme_names_suffice(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    rights = re.search(r"`(~gateway:\* [^`]*)`", readme)
    assert rights is not None
    assert server.call("ACL", "SETUSER", "gateway", "on", ">s3cret", *rights[1].split()) == b"OK"
    address = dataclasses.replace(server.address, username="gateway", password="s3cret")
    instances = Instances()
    store = RedisStore(address, timeout_s=TIMEOUT_S, loss=Local(instances, lambda: PLENTY), instances=instances)
    await store.start()
    plan = store.plan("abc", PLENTY)
    verdict = await ask(store, plan)
    assert (await ask(store, plan)).admitted
    store.refund(plan, verdict)
    assert await store.agree_secret(b"x" * 32) == b"x" * 32
    await store.ping()
    assert (await ask(store, plan)).remaining == 1_000_000 - 2
    assert instances.seen == 1
    held = store.plan("held", (*PLENTY, parse_concurrency("2")))
    store.release(held, await ask(store, held))
    store.leases.renew()
    assert await store.look(held) is not None
    store.note("line", 2**31)
    await store.revoke("abc", 60)
    spends = store.spend_plan("spender", PLENTY, (Budget(unit="USD", amount=9, calendar="day"),))
    for id_, dollars in (("r-1", 3), ("r-2", 4)):
        assert (await reserve(store, spends, Ask(id_, {"USD": dollars}))).admitted
    store.ledger.settle(spends, Ask("r-1", {"USD": 3}), 0, Settlement({"USD": 2}, Mark.EXACT, ""))
    store.ledger.renew()
    for _ in range(REMEMBERED):
        store.ledger.forget()
    assert [one[:2] for one in await store.ledger.standings(spends)] == [(2, 4)]
    assert (await store.ledger.release("r-2")) is not None
    assert [one.id for one in await store.ledger.entries(0)] == ["r-1", "r-2"]
    assert await store.ledger.find("spender", "r-1") is not None
    assert await store.ledger.open() == []
    noted = await store.noted()
    assert noted.lines == ["line"]
    assert noted.revoked == {"abc"}
    assert (await ask(store, plan)).policy == REVOKED
    await store._look_for_rights()
    await store._look_for_rights()  # as another instance does
    assert caplog.text == ""
    server.call("ACL", "SETUSER", "gateway", "-@stream")
    await store._look_for_rights()
    assert "may not use XADD, XINFO, XRANGE, XDEL, which budgets" in caplog.text
    await store.close()
    keys = cast("list[bytes]", server.call("KEYS", "*"))
    assert all(cast("int", server.call("PTTL", key)) != -1 for key in keys)
    refused = cast("list[list[object]]", server.call("ACL", "LOG"))
    told = {b"config|get", b"xadd", b"xinfo|stream", b"xrange", b"xdel"}
    assert {entry[entry.index(b"object") + 1] for entry in refused} == told


async def test_a_redis_that_is_not_there_fails_the_start(server: RedisServer) -> None:
    server.kill()
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await RedisStore(server.address, timeout_s=TIMEOUT_S).start()


@pytest.mark.parametrize("how", ["silence", "loss"])
async def test_a_defect_in_one_request_takes_no_other_along_that_is_lost_with_it(server: RedisServer, how: str) -> None:
    class Defective(Waiting):
        def on_store_loss(self, error: StoreUnavailable) -> None:
            super().on_store_loss(error)
            raise RuntimeError("a defect")

    store = RedisStore(server.address, timeout_s=0.05 if how == "silence" else TIMEOUT_S)
    await store.start()
    plan = store.plan("abc", PLENTY)
    server.signal(signal.SIGSTOP)
    waiting = [Defective(), Waiting(), Waiting()]
    for waiter in waiting:
        store.check(plan, waiter)
    if how == "loss":
        await asyncio.sleep(0)
        server.kill()
    for waiter in waiting:
        with pytest.raises(StoreUnavailable):
            await waiter.future
    if how == "silence":
        server.signal(signal.SIGCONT)
    await store.close()
