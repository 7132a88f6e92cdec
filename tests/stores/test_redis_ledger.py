"""The ledger in a Redis that is cut off, killed and emptied: what is settled counts once, what is not is assumed."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest

from gateway.budgets.budget import Budget
from gateway.budgets.spending import LEASE_US, Ask, Entry, Mark, Settlement
from gateway.config import Config, Settings
from gateway.errors import StoreUnavailable
from gateway.limits import parse_concurrency, parse_limits
from gateway.stores import UNCHECKED
from gateway.stores import redis_ledger as redis_ledger_module
from gateway.stores.choice import make_store
from gateway.stores.fallback import Allow
from gateway.stores.link import at
from gateway.stores.redis import RedisStore
from gateway.stores.redis_ledger import REMEMBERED
from tests.kit.redis import RedisServer, running_redis, until
from tests.kit.redis_spending import stop_renewing
from tests.kit.spending import reserve
from tests.kit.stores import CLOCK_KEY, CLOCK_SCRIPT, CLOCK_SPENDS, TIMEOUT_S, Waiting, ask, until_answered

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from gateway.stores.ledger import SpendVerdict

HOUR = Budget(unit="USD", amount=100, window_us=3600_000_000)
DAY = Budget(unit="USD", amount=1000, calendar="day")
ALL = Budget(unit="USD", amount=500, calendar="month", shared=True)
BUDGETS = (HOUR, DAY, ALL)
BEGIN_US = 1_772_300_000_000_000


@pytest.fixture(scope="module")
def lasting() -> Iterator[RedisServer]:
    """A server that tests share, and leave as it was."""
    with running_redis() as one:
        yield one


@pytest.fixture
def shared(lasting: RedisServer) -> RedisServer:
    lasting.call("FLUSHALL")
    return lasting


@contextlib.asynccontextmanager
async def started(server: RedisServer, timeout_s: float = TIMEOUT_S, **more: Any) -> AsyncIterator[RedisStore]:
    store = RedisStore(server.address, timeout_s=timeout_s, **more)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def on_clock(server: RedisServer) -> AsyncIterator[RedisStore]:
    """A store on a clock in Redis, which nothing renews by itself."""
    async with started(server, script=CLOCK_SCRIPT, spends=CLOCK_SPENDS, now_s=lambda: BEGIN_US / 1e6) as store:
        stop_renewing(store)
        yield store


def asking(id_: str, dollars: int = 40, **more: Any) -> Ask:
    about = Entry(id_, 1, "abc", "api", reserved={"USD": dollars}).text()
    return Ask(id_, {"USD": dollars}, about=about, **more)


def cost(id_: str, dollars: int) -> Settlement:
    return Settlement({"USD": dollars}, Mark.EXACT, Entry(id_, 1, "abc", "api", cost={"USD": dollars}).text())


NOTHING = Settlement({}, Mark.EXACT, "")


async def stands(store: RedisStore, plan: Any) -> list[tuple[int, int]]:
    return [(one.spent, one.held) for one in await store.ledger.standings(plan)]


async def marks(store: RedisStore) -> list[tuple[str, str, int]]:
    return [(one.id, one.mark, one.cost.get("USD", 0)) for one in await store.ledger.entries(0)]


async def until_back(store: RedisStore) -> None:
    with contextlib.suppress(StoreUnavailable):
        await store.ping()
    if store.link._recovery is not None:
        await store.link._recovery
    await until_answered(store)


async def test_a_reservation_is_one_call_beside_its_limits(shared: RedisServer) -> None:
    async with started(shared) as store:
        plan = store.spend_plan("abc", [*parse_limits("2/minute"), parse_concurrency("5")], BUDGETS)
        first = await reserve(store, plan, asking("r-0", 10))
        shared.call("CONFIG", "RESETSTAT")
        verdict = await reserve(store, plan, asking("r-1"))
        stats = shared.info("commandstats").decode()
        assert sum(int(calls) for calls in re.findall(r"cmdstat_eval(?:sha)?:calls=(\d+)", stats)) == 1
        assert (verdict.admitted, verdict.policy, verdict.remaining, verdict.granted) == (True, 0, 0, 0)
        assert verdict.used == (50, 50, 50)
        limited = await reserve(store, plan, asking("r-2"))
        assert (limited.admitted, limited.policy, limited.used) == (False, 0, (50, 50, 50))
        exceeded = await reserve(store, plan, asking("r-3", 60))
        assert (exceeded.admitted, exceeded.policy, exceeded.reset_us) == (False, 2, 1_000_000)
        never = await reserve(store, plan, asking("r-4", 501))
        assert (never.admitted, never.policy, never.reset_us) == (False, 2, -1)
        # Nothing was sent: limits, the place in flight and the budgets have it back, and the ledger no entry.
        for id_, one in (("r-0", first), ("r-1", verdict)):
            store.refund(plan, one)
            store.ledger.settle(plan, asking(id_), one.granted, NOTHING)
        assert await stands(store, plan) == [(0, 0)] * 3
        looks = await store.look(plan)
        assert looks is not None
        assert [one.used for one in looks] == [0, 0]
        assert await marks(store) == []


async def test_who_looks_sends_a_script_only_to_a_redis_that_has_lost_it(shared: RedisServer) -> None:
    async with started(shared) as store:
        plan = store.spend_plan("abc", parse_limits("2/minute"), BUDGETS)
        assert (await reserve(store, plan, asking("r-0"))).admitted
        shared.call("SCRIPT", "FLUSH")
        for calls in (["2"], []):
            shared.call("CONFIG", "RESETSTAT")
            looks = await store.look(plan)
            assert looks is not None
            assert [one.used for one in looks] == [1]
            assert await stands(store, plan) == [(0, 40)] * 3
            assert re.findall(r"cmdstat_eval:calls=(\d+)", shared.info("commandstats").decode()) == calls


async def test_the_smallest_room_is_granted_and_what_it_was_not_used_for_comes_back(shared: RedisServer) -> None:
    async with started(shared) as store:
        plan = store.spend_plan("abc", (), BUDGETS)
        wanted = asking("r-1", 10, each={"USD": 3}, most=1000, least=20)
        verdict = await reserve(store, plan, wanted)
        assert (verdict.granted, verdict.used) == (30, (100, 100, 100))
        refused = await reserve(store, plan, wanted._replace(id="r-2"))
        assert (refused.admitted, refused.policy, refused.granted) == (False, 0, 0)
        store.ledger.settle(plan, wanted, verdict.granted, cost("r-1", 12))
        hour, day, month = await store.ledger.standings(plan)
        assert (hour[:2], day[:2], month[:2]) == ((12, 0),) * 3
        assert 3600 < hour.reset_us / 1e6 <= 3660
        assert 0 < day.reset_us / 1e6 <= 86_400
        assert 0 < month.reset_us / 1e6 <= 31 * 86_400
        assert await marks(store) == [("r-1", "exact", 12)]


async def test_no_more_is_admitted_than_there_is_with_many_at_once(shared: RedisServer) -> None:
    async with started(shared) as one, started(shared) as other:
        plans = [(store, store.spend_plan("abc", (), BUDGETS)) for store in (one, other)]
        waiting = []
        for number in range(200):
            store, plan = plans[number % 2]
            waiting.append(Waiting())
            store.reserve(plan, asking(f"r-{number}", 3), waiting[-1])
        admitted = [(await waiter.future).admitted for waiter in waiting]
        assert sum(admitted) == 33


async def test_a_holder_that_vanished_is_assumed_once_whoever_looks(shared: RedisServer) -> None:
    async with on_clock(shared) as lost, on_clock(shared) as other:
        shared.call("SET", CLOCK_KEY, BEGIN_US)
        plan, theirs = lost.spend_plan("abc", (), BUDGETS), other.spend_plan("abc", (), BUDGETS)
        await reserve(lost, plan, asking("r-1"))
        await reserve(other, theirs, asking("r-2", 50))
        lost.ledger._held.clear()  # as kill -9 does
        assert not (await reserve(other, theirs, asking("r-3", 20))).admitted
        shared.call("SET", CLOCK_KEY, BEGIN_US + LEASE_US // 2)
        other.ledger.renew()
        await other.ping()
        shared.call("SET", CLOCK_KEY, BEGIN_US + LEASE_US)
        assert await stands(other, theirs) == [(40, 50)] * 3
        for _ in range(2):
            assert await marks(other) == [("r-1", "assumed", 40)]
        assert [one.id for one in await other.ledger.open()] == ["r-2"]
        found = await other.ledger.find("abc", "r-1")
        assert found is not None
        assert (found.mark, found.at_us) == (Mark.ASSUMED, BEGIN_US + LEASE_US)
        released = await other.ledger.release("r-1")
        assert released is not None
        assert (released.mark, released.cost) == (Mark.ASSUMED, {"USD": 40})
        assert await stands(other, theirs) == [(0, 50)] * 3
        assert await marks(other) == [("r-1", "released", 0)]
        assert await other.ledger.release("r-1") is None


async def test_a_holder_that_comes_back_late_replaces_what_was_assumed(shared: RedisServer) -> None:
    async with on_clock(shared) as store:
        shared.call("SET", CLOCK_KEY, BEGIN_US)
        plan = store.spend_plan("abc", (), BUDGETS)
        for id_ in ("r-1", "r-2"):
            await reserve(store, plan, asking(id_))
        shared.call("SET", CLOCK_KEY, BEGIN_US + LEASE_US)
        assert await marks(store) == [("r-1", "assumed", 40), ("r-2", "assumed", 40)]
        store.ledger.settle(plan, asking("r-1"), 0, cost("r-1", 7))
        assert await stands(store, plan) == [(47, 0)] * 3
        assert store.link.live is not None
        store.ledger.tell_again()
        store.ledger.tell(store.link, store.link.live)
        assert await stands(store, plan) == [(7, 40)] * 3
        assert await marks(store) == [("r-1", "exact", 7)]
        assert [one.id for one in await store.ledger.open()] == ["r-2"]


async def test_a_settlement_whose_acknowledgement_is_lost_is_sent_again_and_counts_once(shared: RedisServer) -> None:
    async with started(shared) as store:
        plan = store.spend_plan("abc", (), BUDGETS)
        for number in range(5):
            await reserve(store, plan, asking(f"r-{number}", 10))
        for number in range(5):
            store.ledger.settle(plan, asking(f"r-{number}"), 0, cost(f"r-{number}", number))
        assert store.link.live is not None
        await asyncio.sleep(0)  # what is sent leaves at the end of the loop's turn
        until(lambda: shared.call("XLEN", "gateway:{abc}:ledger") == 5, "settlements")
        shared.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until_back(store)
        await store.ping()
        assert await stands(store, plan) == [(10, 0)] * 3
        assert sorted(await marks(store)) == [(f"r-{number}", "exact", number) for number in range(5)]
        assert store.ledger._kept == {}


async def test_what_is_settled_while_redis_is_away_arrives_when_it_is_back(server: RedisServer) -> None:
    async with started(server) as store:
        plan = store.spend_plan("abc", (), BUDGETS)
        for number in range(4):
            await reserve(store, plan, asking(f"r-{number}", 10))
        server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        with contextlib.suppress(StoreUnavailable):
            while True:
                await store.ping()
        for number in range(3):
            store.ledger.settle(plan, asking(f"r-{number}"), 0, cost(f"r-{number}", 1))
        await until_back(store)
        await store.ping()
        assert await marks(store) == [(f"r-{number}", "exact", 1) for number in range(3)]
        assert await stands(store, plan) == [(3, 10)] * 3


async def test_a_redis_that_lost_its_data_hears_of_what_is_held_and_what_was_settled(server: RedisServer) -> None:
    async with started(server) as store:
        plan = store.spend_plan("abc", (), BUDGETS)
        for id_ in ("r-0", "r-1"):
            await reserve(store, plan, asking(id_))
        store.ledger.settle(plan, asking("r-0"), 0, cost("r-0", 7))
        about = Entry("r-2", 1, "abc", "api", reserved={"USD": 20}, each={"USD": 3}).text()
        await reserve(store, plan, Ask("r-2", {"USD": 20}, {"USD": 3}, most=10, least=10, about=about))
        server.kill()
        with contextlib.suppress(StoreUnavailable):
            await store.ping()
        store.ledger.settle(plan, asking("r-1"), 0, cost("r-1", 33))
        server.start()
        await until_back(store)
        assert not (await reserve(store, plan, asking("r-3", 11))).admitted
        assert await stands(store, plan) == [(40, 50)] * 3
        assert sorted(await marks(store)) == [("r-0", "exact", 7), ("r-1", "exact", 33)]
        assert [(one.id, one.reserved) for one in await store.ledger.open()] == [("r-2", {"USD": 50})]


async def test_what_a_redis_acknowledges_that_was_replaced_meanwhile_is_told_to_the_next(server: RedisServer) -> None:
    with running_redis() as other:
        async with started(server) as store:
            plan = store.spend_plan("abc", (), BUDGETS)
            for id_ in ("r-1", "r-2"):
                await reserve(store, plan, asking(id_))
            server.signal(signal.SIGSTOP)
            store.ledger.settle(plan, asking("r-1"), 0, cost("r-1", 33))
            await asyncio.sleep(0)  # it is on its way
            store.link._locate = at(other.address)
            store.link._go_out("It has moved.")
            await until_back(store)
            server.signal(signal.SIGCONT)
            async with asyncio.timeout(TIMEOUT_S):
                while store.ledger._kept:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.01)
            assert await stands(store, plan) == [(33, 40)] * 3
            assert await marks(store) == [("r-1", "exact", 33)]


async def test_a_redis_that_is_restarted_with_its_data_has_it_all() -> None:
    with running_redis("--appendonly", "yes", "--appendfsync", "always") as server:
        async with started(server) as store:
            plan = store.spend_plan("abc", (), BUDGETS)
            for id_ in ("r-1", "r-2"):
                await reserve(store, plan, asking(id_))
            store.ledger.settle(plan, asking("r-1"), 0, cost("r-1", 5))
            await store.ping()
            server.kill()
            server.start()
            await until_back(store)
            assert await stands(store, plan) == [(5, 40)] * 3
            assert [one.id for _, one in store.ledger._recent] == ["r-1"]  # since it was first acknowledged
            store.ledger.settle(plan, asking("r-2"), 0, cost("r-2", 6))
            assert await stands(store, plan) == [(11, 0)] * 3
            assert await marks(store) == [("r-1", "exact", 5), ("r-2", "exact", 6)]


async def test_who_has_the_keys_by_now_hears_of_what_had_just_been_settled(server: RedisServer) -> None:
    async with started(server) as store:
        plan = store.spend_plan("abc", (), BUDGETS)
        await reserve(store, plan, asking("r-1"))
        store.ledger.settle(plan, asking("r-1"), 0, cost("r-1", 5))
        await until_kept(store)
        server.call("FLUSHALL")  # as a master of a cluster that took over without having heard of it
        store.ledger.tell_again()  # as when the cluster's shares are learnt
        await reserve(store, plan, asking("r-2"))
        await asyncio.sleep(0)  # it is told of behind what was under way
        await store.ping()
        assert await stands(store, plan) == [(5, 40)] * 3


async def test_scripts_that_redis_lost_are_brought_along(shared: RedisServer) -> None:
    async with started(shared) as store:
        plan = store.spend_plan("abc", parse_limits("5/minute"), BUDGETS)
        await reserve(store, plan, asking("r-0"))
        shared.call("SCRIPT", "FLUSH")
        assert (await reserve(store, plan, asking("r-1"))).admitted
        shared.call("SCRIPT", "FLUSH")
        store.ledger.settle(plan, asking("r-1"), 0, cost("r-1", 5))
        await store.ping()
        await store.ping()
        assert await marks(store) == [("r-1", "exact", 5)]


async def test_without_redis_nothing_passes_under_a_budget_whatever_the_policy_says(server: RedisServer) -> None:
    async with started(server, loss=Allow()) as store:
        budgeted = store.spend_plan("abc", (), BUDGETS)
        free = store.spend_plan("abc", parse_limits("5/minute"), ())
        await reserve(store, free, asking("r-0"))
        server.kill()
        with contextlib.suppress(StoreUnavailable):
            await store.ping()
        with pytest.raises(StoreUnavailable):
            await reserve(store, budgeted, asking("r-1"))
        verdict = await reserve(store, free, asking("r-2", most=77))
        assert (verdict.admitted, verdict.policy, verdict.granted, verdict.used) == (True, UNCHECKED, 77, ())
        store.ledger.settle(free, asking("r-2"), 77, cost("r-2", 9))
        server.start()
        await until_back(store)
        await store.ping()
        assert await marks(store) == [("r-2", "exact", 9)]


async def test_what_is_reserved_too_late_is_given_back(server: RedisServer) -> None:
    async with started(server, timeout_s=0.05) as store:
        plan = store.spend_plan("abc", [*parse_limits("5/minute"), parse_concurrency("5")], BUDGETS)
        server.signal(signal.SIGSTOP)
        for number in range(4):
            with contextlib.suppress(StoreUnavailable):
                await reserve(store, plan, asking(f"r-{number}", 10, each={"USD": 1}, most=number))
        store.link._timeout_s = TIMEOUT_S
        server.signal(signal.SIGCONT)
        await until_back(store)

        async def all_back() -> bool:
            looks = await store.look(plan)
            standings = await store.ledger.standings(plan)
            return not store.ledger._kept and not any(one.used for one in looks or ()) and not any(standings[0][:2])

        async with asyncio.timeout(30):
            while not await all_back():
                pass
        assert await stands(store, plan) == [(0, 0)] * 3
        assert await marks(store) == []
        assert await store.ledger.open() == []


async def test_what_comes_to_redis_after_it_was_given_back_reserves_nothing(shared: RedisServer) -> None:
    async with started(shared) as old, started(shared) as new:
        plan = new.spend_plan("abc", (), BUDGETS)
        waiting = Waiting()
        old.reserve(old.spend_plan("abc", (), BUDGETS), asking("r-1"), waiting)
        # Another connection is quicker, as one is that takes the place of one that broke.
        assert new.link.live is not None
        words = plan.settle_words(asking("r-1"), -1, NOTHING, time.time())  # type: ignore[attr-defined]  # this store's
        shared.call("EVAL", new.spends.settle.text, *words)
        assert not (await waiting.future).admitted
        assert await stands(new, plan) == [(0, 0)] * 3


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("about", [asking("r-1").about, ""])
async def test_what_was_reserved_unheard_is_given_back(shared: RedisServer, about: str, ended: bool) -> None:  # noqa: FBT001
    async with on_clock(shared) as store:
        shared.call("SET", CLOCK_KEY, BEGIN_US)
        plan: Any = store.spend_plan("abc", (), BUDGETS)
        wanted = asking("r-1", 10, each={"USD": 3}, most=100)._replace(about=about)
        await reserve(store, plan, wanted._replace(id="r-0", most=2))
        await reserve(store, plan, wanted)
        if ended:
            shared.call("SET", CLOCK_KEY, BEGIN_US + LEASE_US)
            assert len(await store.ledger.entries(0)) == 2
        # Its reply is lost with the connection.
        (lost,) = store.ledger._held.pop("r-1")
        lost.granted = -1
        store.ledger.give_back(lost)
        assert await stands(store, plan) == ([(16, 0)] * 3 if ended else [(0, 16)] * 3)
        assert len(await store.ledger.entries(0)) == int(ended)
        assert len(await store.ledger.open()) == int(not ended)


async def test_settlements_that_redis_never_takes_are_bounded(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_ledger_module, "MAX_KEPT", 3)
    async with started(server) as store:
        plan = store.spend_plan("abc", (), BUDGETS)
        for number in range(5):
            await reserve(store, plan, asking(f"r-{number}", 10))
        server.kill()
        with contextlib.suppress(StoreUnavailable):
            await store.ping()
        for number in range(5):
            store.ledger.settle(plan, asking(f"r-{number}"), 0, cost(f"r-{number}", 1))
        assert [one.id for one in store.ledger._kept] == ["r-2", "r-3", "r-4"]
        assert caplog.text.count("Redis takes no settlements") == 1


async def test_a_store_that_closes_takes_its_settlements_to_redis_first(shared: RedisServer) -> None:
    async with started(shared) as store:
        plan = store.spend_plan("abc", (), BUDGETS)
        await reserve(store, plan, asking("r-1"))
        store.ledger.settle(plan, asking("r-1"), 0, cost("r-1", 5))
    async with started(shared) as store:
        assert await marks(store) == [("r-1", "exact", 5)]


async def test_a_gateway_whose_clock_is_days_off_ends_nobodys_day(
    shared: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    off_s = [0]
    async with started(shared) as good, started(shared, now_s=lambda: time.time() + off_s[0]) as bad:
        plan, other = (store.spend_plan("abc", (), (DAY,)) for store in (good, bad))
        assert (await reserve(good, plan, asking("r-1", 600))).admitted
        good.ledger.settle(plan, asking("r-1", 600), 0, cost("r-1", 600))
        assert (await reserve(bad, other, asking("r-2", 300))).admitted
        for off_s[0] in (3 * 86_400, -3 * 86_400):
            for id_ in ("r-3", "r-4", "r-5", "r-6"):
                with pytest.raises(StoreUnavailable, match="answered CLOCK to the script"):
                    await reserve(bad, other, asking(id_, 1))
            with pytest.raises(StoreUnavailable, match="CLOCK"):
                await stands(bad, other)
            bad.ledger.renew()
            assert (await ask(bad, bad.plan("abc", parse_limits("9")))).admitted  # what has no calendar goes on
        assert caplog.text.count("No request passes under a calendar's budget") == 1
        bad.ledger.settle(other, asking("r-2", 300), 0, cost("r-2", 200))
        assert await stands(good, plan) == [(600, 300)]
        off_s[0] = 0
        bad.ledger.send_kept()
        await until_kept(bad)
        assert await stands(good, plan) == [(800, 0)]
        assert not (await reserve(good, plan, asking("r-7", 201))).admitted


@pytest.mark.parametrize("deleted", ["", ":held"])
@pytest.mark.parametrize("later", [False, True])
async def test_a_budget_whose_key_was_deleted_by_hand_holds_what_is_under_way(
    shared: RedisServer, deleted: str, *, later: bool
) -> None:
    async with started(shared) as store:
        plan = store.spend_plan("abc", (), (DAY,))
        for id_ in ("r-1", "r-2"):
            assert (await reserve(store, plan, asking(id_, 400))).admitted
        shared.call("DEL", f"gateway:{{abc}}:budget:day-USD{deleted}")
        if later:
            assert await stands(store, plan) == [(0, 0 if deleted else 800)]
        for id_ in ("r-1", "r-2"):
            store.ledger.settle(plan, asking(id_, 400), 0, cost(id_, 300))
        # What nobody holds any more is not spent, either: whoever deletes that gives it away.
        spent = 0 if deleted else 600
        assert await stands(store, plan) == [(spent, 0)]
        assert not (await reserve(store, plan, asking("r-3", 1001 - spent))).admitted
        assert (await reserve(store, plan, asking("r-4", 1000 - spent))).admitted
        assert cast("int", shared.call("PTTL", "gateway:{abc}:budget:day-USD")) > 0


async def until_kept(store: RedisStore) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while store.ledger._kept:
            store.ledger.send_kept()
            await store.ping()


async def test_every_key_expires_and_redis_forgets_whom_it_has_settled(shared: RedisServer) -> None:
    async with on_clock(shared) as store:
        shared.call("SET", CLOCK_KEY, BEGIN_US, "EX", 60)
        plan = store.spend_plan("abc.child", parse_limits("5/minute"), BUDGETS)
        for id_ in ("r-1", "r-2", "r-3"):
            await reserve(store, plan, asking(id_, 10))
        store.ledger.settle(plan, asking("r-1"), 0, cost("r-1", 5))
        await store.ping()
        assert store.link.live is not None
        store.ledger.tell_again()
        store.ledger.tell(store.link, store.link.live)
        await store.ping()
        shared.call("SET", CLOCK_KEY, BEGIN_US + LEASE_US, "EX", 60)
        await store.ledger.open()
        await stands(store, plan)
        keys: Any = shared.call("KEYS", "gateway:*")
        assert [key.endswith(b":assumed") for key in keys if key.endswith((b":held", b":assumed"))] == [True] * 4
        for key in keys:
            expires: Any = shared.call("PTTL", key)
            assert 0 < expires <= 35 * 86_400_000, key
        assert shared.call("ZCARD", "gateway:{abc}:open:settled") == 1
        for _ in range(REMEMBERED - 1):
            store.ledger.forget()
        await store.ping()
        assert shared.call("ZCARD", "gateway:{abc}:open:settled") == 1
        store.ledger.forget()
        await store.ping()
        assert shared.call("ZCARD", "gateway:{abc}:open:settled") == 0
        # What a process left behind that ended goes with a renewal, a day later.
        shared.call("ZADD", "gateway:{abc}:open:settled", BEGIN_US - 86_400_000_000, "another's")
        store.ledger.renew()
        await store.ping()
        assert shared.call("ZCARD", "gateway:{abc}:open:settled") == 0


async def test_a_revoked_token_reserves_nothing(shared: RedisServer) -> None:
    async with started(shared) as store:
        plan = store.spend_plan("abc.child", (), (DAY,))
        await store.revoke("abc", 60)
        verdict: SpendVerdict = await reserve(store, plan, asking("r-1"))
        assert (verdict.admitted, verdict.policy, verdict.used) == (False, -2, ())
        assert await stands(store, plan) == [(0, 0)]


async def test_a_child_spends_of_its_parent_and_each_sees_its_own(shared: RedisServer) -> None:
    above = Budget(unit="USD", amount=100, calendar="day", above=1)
    async with started(shared) as store:
        child, parent = store.spend_plan("abc.kid", (), (DAY, above)), store.spend_plan("abc", (), (HOUR,))
        about = Entry("r-1", 1, "abc.kid", "api").text()
        wanted = asking("r-1")._replace(about=about)
        await reserve(store, child, wanted)
        assert not (await reserve(store, child, asking("r-2", 61))).admitted
        await reserve(store, parent, asking("r-3", 1))
        entry = Entry("r-1", 1, "abc.kid", "api", cost={"USD": 9})
        store.ledger.settle(child, wanted, 0, Settlement(entry.cost, Mark.EXACT, entry.text()))
        store.ledger.settle(parent, asking("r-3", 1), 0, cost("r-3", 1))
        assert [one.id for one in await store.ledger.entries(0, "abc")] == ["r-1", "r-3"]
        assert [one.id for one in await store.ledger.entries(0, "abc.kid")] == ["r-1"]
        assert await store.ledger.find("abc.kid", "r-3") is None
        found = await store.ledger.find("abc", "r-1")
        assert found is not None
        assert found.cost == {"USD": 9}


async def test_pages_of_the_ledger_miss_nothing(shared: RedisServer) -> None:
    async with started(shared) as store:
        expected = []
        for number in range(30):
            family = f"family-{number % 3}" if number % 10 else "rare.kid"
            plan = store.spend_plan(family, (), ())
            one = Ask(f"r-{number}", {"USD": 1})
            await reserve(store, plan, one)
            entry = Entry(one.id, 1, family, "api", cost={"USD": 1})
            store.ledger.settle(plan, one, 0, Settlement(entry.cost, Mark.EXACT, entry.text()))
            await store.ping()
            expected.append(one.id)
        for token, limit in ((None, 4), (None, 1), ("family-1", 2), ("rare.kid", 1)):
            since_us, seen = 0, []
            while page := await store.ledger.entries(since_us, token, limit):
                seen += [entry.id for entry in page]
                since_us = page[-1].at_us + 1
            whole = [entry.id for entry in await store.ledger.entries(0, token)]
            assert seen == whole
            assert token is not None or seen == expected


async def test_a_limit_check_is_no_reservation(shared: RedisServer) -> None:
    async with started(shared) as store:
        plan = store.spend_plan("abc", parse_limits("5/minute"), BUDGETS)
        assert (await ask(store, plan)).admitted
        assert await stands(store, plan) == [(0, 0)] * 3


async def test_what_is_held_is_known_as_long_as_its_sum_is(shared: RedisServer) -> None:
    """Else the sum of a process that died would hold its money for ever, on a budget that is not asked for long."""
    minute = Budget(unit="USD", amount=100, window_us=60_000_000)
    async with on_clock(shared) as store:
        plan = store.spend_plan("abc", (), (minute,))
        keys = [f"gateway:{{abc}}:{minute.counter}{end}" for end in ("", ":held")]
        shared.call("SET", CLOCK_KEY, BEGIN_US)
        await reserve(store, plan, asking("dies"))
        await reserve(store, plan, asking("settles"))
        for key in keys:
            shared.call("PEXPIRE", key, 1000)  # as if most of it had gone by
        store.ledger.settle(plan, asking("settles"), 0, cost("settles", 5))
        await store.ping()
        sum_ms, held_ms = (int(str(shared.call("PTTL", key))) for key in keys)
    assert held_ms >= sum_ms - 100


async def test_what_is_reserved_too_late_is_given_back_whatever_was_granted(server: RedisServer) -> None:
    """Nobody has heard how many output tokens were."""
    async with started(server, timeout_s=0.05) as store:
        plan = store.spend_plan("abc", (), BUDGETS)
        server.signal(signal.SIGSTOP)
        for number in range(3):
            with contextlib.suppress(StoreUnavailable):
                await reserve(store, plan, asking(f"r-{number}", 10, each={"USD": 1}, most=9, least=number))
        store.link._timeout_s = TIMEOUT_S
        server.signal(signal.SIGCONT)
        await until_back(store)
        while store.ledger._kept:
            await store.ping()
        assert await stands(store, plan) == [(0, 0)] * 3
        assert await store.ledger.open() == []


@pytest.mark.parametrize(("appendonly", "warned"), [("no", True), ("yes", False)])
async def test_a_redis_that_forgets_is_warned_of_where_budgets_are_long(
    appendonly: str, caplog: pytest.LogCaptureFixture, *, warned: bool
) -> None:
    with running_redis("--appendonly", appendonly) as server:
        for budget in ("1 USD/hour", "1 USD/month"):
            settings = Config(
                target_api_url="http://api.test", target_cost="1 USD", budget=budget, redis_url=server.url
            ).settings
            for current in (None, partial(_the, settings)):  # who only looks, and who serves
                store = make_store(settings, current)
                caplog.clear()
                await store.start()
                await store.close()
                is_told = warned and current is not None and budget == "1 USD/month"
                assert ("appendonly no" in caplog.text) is is_told


def _the(settings: Settings) -> Settings:
    return settings
