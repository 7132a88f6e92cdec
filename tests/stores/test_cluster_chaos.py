"""Four instances on a cluster whose slots move and whose nodes stand still under them: nothing is ever exceeded."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from typing import TYPE_CHECKING, Final

from gateway.errors import StoreUnavailable
from gateway.limits import parse_concurrency, parse_limits
from gateway.stores.cluster import ClusterStore
from gateway.stores.slots import key_slot
from tests.kit.stores import ask
from tests.kit.topologies import Cluster, running_cluster

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.redis import RedisServer

INSTANCES, CLIENTS_EACH, STEPS = 4, 6, 16
OWN, SHARED, OWN_IN_FLIGHT, IN_FLIGHT = 250, 700, 6, 14
POLICIES: Final = (
    *parse_limits(f"{OWN}/day"),
    *parse_limits(f"{SHARED}/day", shared=True),
    parse_concurrency(str(OWN_IN_FLIGHT)),
    parse_concurrency(str(IN_FLIGHT), shared=True),
)
SUBJECTS: Final = tuple(f"subject-{number}" for number in range(6))
ALL: Final = "all"


class Crowd:
    """Who asks, and counts what was admitted and is in flight."""

    def __init__(self, chance: random.Random) -> None:
        self.used: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.lost = 0
        self.over = False
        self._chance = chance
        self._in_flight: Counter[str] = Counter()
        self._outcomes = 0
        self._changed = asyncio.Event()

    async def outcomes(self, count: int) -> None:
        """Wait until so many more checks have ended, one way or another."""
        wanted = self._outcomes + count
        async with asyncio.timeout(30):
            while self._outcomes < wanted:
                self._changed.clear()
                await self._changed.wait()

    async def ask(self, store: ClusterStore) -> None:
        """Ask until it is over."""
        plans = {subject: store.plan(subject, POLICIES) for subject in SUBJECTS}
        while not self.over:
            subject = self._chance.choice(SUBJECTS)
            try:
                verdict = await ask(store, plans[subject])
            except StoreUnavailable:
                self.lost += 1
            else:
                if verdict.admitted:
                    self._in_flight.update((subject, ALL))
                    self.most |= self._in_flight
                    await self.turns()
                    self._in_flight.subtract((subject, ALL))
                    if self._chance.random() < 0.3:
                        store.refund(plans[subject], verdict)
                    else:
                        store.release(plans[subject], verdict)
                        self.used.update((subject, ALL))
            self._outcomes += 1
            self._changed.set()
            await self.turns()

    async def turns(self) -> None:
        """Let the others go on for a while."""
        for _ in range(self._chance.randrange(1, 30)):
            await asyncio.sleep(0)


class Owners:
    """Who has which slots by now."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._moved: dict[str, RedisServer] = {}

    async def move(self, tag: str, crowd: Crowd, chance: random.Random) -> None:
        """Move the slot of a tag to another master; while it is on its way, people ask."""
        slot = key_slot(tag.encode())
        source = self._moved.get(tag) or self._cluster.of_key(f"gateway:{{{tag}}}:")
        target = chance.choice([one for one in self._cluster.masters if one is not source])
        await asyncio.to_thread(self._cluster.begin_move, slot, source, target)
        await crowd.outcomes(20)
        await asyncio.to_thread(self._cluster.end_move, slot, source, target)
        self._moved[tag] = target


async def test_nothing_is_exceeded_and_every_place_comes_back(record_property: Callable[[str, object], None]) -> None:
    chance = random.Random(5)
    with running_cluster() as cluster:
        # What a lost reply may have taken ends with its lease: soon, here.
        stores = [ClusterStore(cluster.address, timeout_s=0.1, lease_us=5_000_000) for _ in range(INSTANCES)]
        await asyncio.gather(*(store.start() for store in stores))
        crowd, owners = Crowd(chance), Owners(cluster)
        asking = [asyncio.ensure_future(crowd.ask(store)) for store in stores for _ in range(CLIENTS_EACH)]
        for _ in range(STEPS):
            await crowd.outcomes(50)
            if chance.random() < 0.6:
                await owners.move(chance.choice([*SUBJECTS[:2], "global"]), crowd, chance)
            else:
                stopped = chance.choice(cluster.masters)
                stopped.signal(signal.SIGSTOP)
                await crowd.outcomes(50)
                stopped.signal(signal.SIGCONT)
        crowd.over = True
        await asyncio.gather(*asking)
        record_property("summary", f"{crowd.used[ALL]} used, {crowd.lost} lost, {crowd.most[ALL]} at once")
        assert crowd.lost
        assert SHARED / 2 < crowd.used[ALL] <= SHARED
        assert all(crowd.used[subject] <= OWN for subject in SUBJECTS)
        assert crowd.most[ALL] <= IN_FLIGHT
        assert all(crowd.most[subject] <= OWN_IN_FLIGHT for subject in SUBJECTS)

        # What was lost, refused by the other step, or given back holds no place; and what was used is still counted.
        async with asyncio.timeout(30):
            for subject in SUBJECTS:
                standings = await settled(stores[0], subject)
                assert standings[0] >= crowd.used[subject]
                assert standings[1] >= crowd.used[ALL]
        await asyncio.gather(*(store.close() for store in stores))


async def settled(store: ClusterStore, subject: str) -> list[int]:
    """Return what of each limit is used, once no place in flight is."""
    plan = store.plan(subject, POLICIES)
    while True:
        try:
            standings = await store.look(plan)
        except StoreUnavailable:
            standings = None
        if standings is not None and not standings[2].used and not standings[3].used:
            return [one.used for one in standings]
        await asyncio.sleep(0.02)
