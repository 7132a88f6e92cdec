"""Budgets in a cluster and behind sentinels: two slots, slots that move, a master that is gone."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from gateway.budgets.budget import Budget
from gateway.budgets.spending import Ask, Entry, Mark, Settlement
from gateway.errors import StoreUnavailable
from gateway.limits import parse_concurrency, parse_limits
from gateway.stores.cluster import ClusterStore
from gateway.stores.redis import RedisStore
from gateway.stores.slots import key_slot
from tests.kit.spending import reserve
from tests.kit.stores import TIMEOUT_S, until_answered
from tests.kit.topologies import Cluster, running_cluster, running_sentinels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

DAY = Budget(unit="USD", amount=100, calendar="day")
ABOVE = Budget(unit="USD", amount=90, window_us=3600_000_000, above=1)
ALL = Budget(unit="USD", amount=150, calendar="month", shared=True)


@pytest.fixture(scope="module")
def lasting() -> Iterator[Cluster]:
    with running_cluster() as running:
        yield running


@pytest.fixture
def cluster(lasting: Cluster) -> Cluster:
    for one in lasting.masters:
        one.call("FLUSHALL")
    return lasting


@contextlib.asynccontextmanager
async def started(cluster: Cluster) -> AsyncIterator[ClusterStore]:
    store = ClusterStore(cluster.address, timeout_s=TIMEOUT_S)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


def asking(id_: str, token: str, dollars: int, **more: Any) -> Ask:
    return Ask(id_, {"USD": dollars}, about=Entry(id_, 1, token, "api", reserved={"USD": dollars}).text(), **more)


def cost(id_: str, token: str, dollars: int) -> Settlement:
    return Settlement({"USD": dollars}, Mark.EXACT, Entry(id_, 1, token, "api", cost={"USD": dollars}).text())


async def stands(store: RedisStore, plan: Any) -> list[tuple[int, int]]:
    return [(one.spent, one.held) for one in await store.ledger.standings(plan)]


async def arrived(store: RedisStore) -> None:
    """Wait until every settlement is acknowledged."""
    async with asyncio.timeout(30):
        while store.ledger._kept:  # noqa: ASYNC110 - an event would have to be the server's
            await asyncio.sleep(0.001)


def subject_of(cluster: Cluster, number: int) -> str:
    """Return a subject whose keys a master has."""
    names = (f"subject-{count}" for count in range(1000))
    return next(name for name in names if cluster.of_key(f"gateway:{{{name}}}:") is cluster.masters[number])


async def test_budgets_in_two_slots_are_reserved_and_settled_in_both(cluster: Cluster) -> None:
    async with started(cluster) as store:
        family = [subject_of(cluster, number) for number in range(3)]
        policies = [*parse_limits("9/hour"), *parse_limits("50/hour", shared=True), parse_concurrency("9", shared=True)]
        plans = [store.spend_plan(f"{name}.kid", policies, (ALL, DAY, ABOVE)) for name in family]
        verdicts = [
            await reserve(store, plan, asking(f"r-{number}", f"{name}.kid", 60))
            for number, (name, plan) in enumerate(zip(family, plans, strict=True))
        ]
        assert [(one.admitted, one.policy, one.used) for one in verdicts] == [
            (True, 0, (60, 60, 60)),
            (True, 0, (120, 60, 60)),
            (False, 3, (120, 60, 60)),
        ]
        await arrived(store)
        # What the second step refused, the first has given back.
        assert await stands(store, plans[2]) == [(0, 120), (0, 0), (0, 0)]
        assert [one.used for one in await store.look(plans[2]) or ()] == [0, 2, 2]
        own = await reserve(store, plans[0], asking("r-3", f"{family[0]}.kid", 31))
        assert (own.admitted, own.policy, own.used) == (False, 5, (0, 60, 60))
        assert {one.id for one in await store.ledger.open()} == {"r-0", "r-1"}
        for number in range(2):
            one = asking(f"r-{number}", f"{family[number]}.kid", 60)
            store.release(plans[number], verdicts[number])
            store.ledger.settle(plans[number], one, 0, cost(one.id, f"{family[number]}.kid", 10 + number))
        await arrived(store)
        assert await stands(store, plans[0]) == [(21, 0), (10, 0), (10, 0)]
        costs = {one.id: one.cost for one in await store.ledger.entries(0)}
        assert costs == {"r-0": {"USD": 10}, "r-1": {"USD": 11}}
        found = await store.ledger.find(f"{family[1]}.kid", "r-1")
        assert found is not None
        assert found.mark is Mark.EXACT


async def test_the_smaller_grant_of_two_slots_stands_and_the_surplus_is_settled(cluster: Cluster) -> None:
    async with started(cluster) as store:
        small = Budget(unit="USD", amount=50, calendar="month", shared=True)
        plan = store.spend_plan("abc", (), (DAY, small))
        wanted = asking("r-1", "abc", 10, each={"USD": 2}, most=1000, least=1)
        verdict = await reserve(store, plan, wanted)
        assert (verdict.granted, verdict.used) == (20, (100, 50))
        store.ledger.renew()
        store.ledger.settle(plan, wanted, verdict.granted, cost("r-1", "abc", 50))
        await arrived(store)
        assert await stands(store, plan) == [(50, 0), (50, 0)]


async def test_what_is_held_in_two_slots_is_released_by_hand_in_both(cluster: Cluster) -> None:
    async with started(cluster) as store, started(cluster) as other:
        plan = store.spend_plan("abc", (), (DAY, ALL))
        await reserve(store, plan, asking("r-1", "abc", 60))
        released = await other.ledger.release("r-1")
        assert released is not None
        assert (released.id, released.token) == ("r-1", "abc")
        assert await stands(other, plan) == [(0, 0), (0, 0)]
        # Its holder does not bring it back, but says what it cost when it is over.
        store.ledger.renew()
        await arrived(store)
        assert await stands(other, plan) == [(0, 0), (0, 0)]
        assert [one.mark for one in await other.ledger.entries(0)] == [Mark.RELEASED]
        store.ledger.settle(plan, asking("r-1", "abc", 60), 0, cost("r-1", "abc", 60))
        await arrived(store)
        assert await stands(other, plan) == [(60, 0), (60, 0)]
        assert [one.mark for one in await other.ledger.entries(0)] == [Mark.EXACT]


async def test_a_settlement_follows_its_slot(cluster: Cluster) -> None:
    source, target = cluster.masters[:2]
    name = subject_of(cluster, 0)
    slot = key_slot(f"{{{name}}}".encode())
    async with started(cluster) as store:
        plan = store.spend_plan(name, parse_limits("9/hour"), (DAY, ALL))
        for number in range(4):
            await reserve(store, plan, asking(f"r-{number}", name, 10))
        cluster.move_slot(slot, source, target)
        store.ledger.settle(plan, asking("r-0", name, 10), 0, cost("r-0", name, 1))
        assert (await reserve(store, plan, asking("r-4", name, 10))).admitted
        await arrived(store)
        assert await stands(store, plan) == [(1, 40), (1, 40)]
        # On its way back: what is not there is asked for at the other node, or a moment later.
        cluster.begin_move(slot, target, source)
        store.ledger.settle(plan, asking("r-1", name, 10), 0, cost("r-1", name, 1))
        await asyncio.sleep(0)
        cluster.end_move(slot, target, source)
        for number in range(2, 5):
            store.ledger.settle(plan, asking(f"r-{number}", name, 10), 0, cost(f"r-{number}", name, 1))
        await arrived(store)
        assert await stands(store, plan) == [(5, 0), (5, 0)]
        assert len(await store.ledger.entries(0, name)) == 5


async def test_a_second_step_that_is_lost_gives_the_first_back(cluster: Cluster) -> None:
    shared = cluster.of_key("gateway:{global}:")
    name = next(subject_of(cluster, number) for number in range(3) if cluster.masters[number] is not shared)
    what = (name, parse_limits("9/hour"), (DAY, ALL))
    async with started(cluster) as store, started(cluster) as other:
        plan, theirs = store.spend_plan(*what), other.spend_plan(*what)
        store.link_of("gateway:{global}:").leave("A test has cut it.")
        with pytest.raises(StoreUnavailable, match="A test has cut it"):
            await reserve(store, plan, asking("r-1", name, 10))
        await arrived(store)
        assert await stands(other, theirs) == [(0, 0), (0, 0)]
        assert [one.used for one in await other.look(theirs) or ()] == [0]
        assert await other.ledger.open() == []


async def test_what_is_reserved_outlives_a_failover() -> None:
    with running_sentinels() as sentinels:
        store = RedisStore(sentinels.address, timeout_s=TIMEOUT_S)
        await store.start()
        plan = store.spend_plan("abc", (), (DAY,))
        for id_ in ("r-1", "r-2"):
            await reserve(store, plan, asking(id_, "abc", 40))
        old = sentinels.master()
        old.kill()
        with contextlib.suppress(StoreUnavailable):
            await store.ping()
        store.ledger.settle(plan, asking("r-1", "abc", 40), 0, cost("r-1", "abc", 7))
        sentinels.promoted(old)
        await until_answered(store)
        await arrived(store)
        assert await stands(store, plan) == [(7, 40)]
        assert [(one.id, one.mark) for one in await store.ledger.entries(0)] == [("r-1", Mark.EXACT)]
        await store.close()
