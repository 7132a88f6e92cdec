"""The Redis store on a real cluster: slots, two steps, and a cluster that changes while it is used."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
from typing import TYPE_CHECKING, Any

import pytest

from gateway.budgets.spending import Ask
from gateway.errors import StoreUnavailable
from gateway.limits import parse_concurrency, parse_limits
from gateway.stores import REVOKED
from gateway.stores import cluster as cluster_module
from gateway.stores.address import ClusterAddress, RedisAddress
from gateway.stores.cluster import ClusterStore
from gateway.stores.fallback import Allow, Local
from gateway.stores.instances import Instances
from gateway.stores.redis import RedisStore
from gateway.stores.slots import key_slot
from tests.kit.redis import until
from tests.kit.spending import reserve
from tests.kit.stores import TIMEOUT_S, Waiting, ask, many, until_answered
from tests.kit.topologies import Cluster, cluster_info, running_cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from gateway.stores import Plan, Standing, Verdict
    from gateway.stores.link import Link, Locate
    from gateway.stores.slots import Share
    from tests.kit.redis import RedisServer

PLENTY = parse_limits("1000000/day")
BOTH = parse_limits("5/day,1000/30s") + parse_limits("8/day", shared=True)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running_cluster() as running:
        yield running


@contextlib.asynccontextmanager
async def started(cluster: Cluster, timeout_s: float = TIMEOUT_S, **more: Any) -> AsyncIterator[ClusterStore]:
    store = ClusterStore(cluster.address, timeout_s=timeout_s, **more)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


def subject_of(cluster: Cluster, master: RedisServer) -> str:
    """Return a subject whose keys that master has."""
    names = (f"subject-{number}" for number in range(1000))
    return next(name for name in names if cluster.of_key(f"gateway:{{{name}}}:") is master)


async def look(store: ClusterStore, plan: Plan) -> list[Standing]:
    standings = await store.look(plan)
    assert standings is not None
    return standings


async def test_a_family_of_tokens_is_in_one_slot_and_ends_together(cluster: Cluster) -> None:
    own = (*parse_limits("3/hour"), parse_concurrency("5"))
    family = (*(dataclasses.replace(policy, above=1) for policy in own), *parse_limits("9/hour", shared=True))
    async with started(cluster) as store, started(cluster) as other:
        for master in cluster.masters:
            root = subject_of(cluster, master)
            plan = other.plan(f"{root}.child", (*parse_limits("2/hour"), *family))
            for _ in range(2):
                verdict = await ask(other, plan)
                assert verdict.admitted
                other.release(plan, verdict)
            assert [one.used for one in await look(other, plan)][:2] == [2, 2]
            assert (await ask(other, plan)).policy == 0
            await store.revoke(root, 60)
            assert (await ask(other, plan)).policy == REVOKED


async def test_exactly_the_quota_is_admitted_over_four_instances_and_three_nodes(cluster: Cluster) -> None:
    async with contextlib.AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(started(cluster)) for _ in range(4)]
        subjects = [subject_of(cluster, master) for master in cluster.masters]
        policies = parse_limits("100/hour,333/day") + parse_limits("250/hour", shared=True)
        checks = [many(store, subject, policies, 100) for store in stores for subject in subjects]
        admitted = [0, 0, 0]
        for number, verdicts in enumerate(await asyncio.gather(*checks)):
            admitted[number % 3] += sum(verdict.admitted for verdict in verdicts)
        assert max(admitted) <= 100
        # Some may be refused because of charges that were then given back; never one too many is admitted.
        assert sum(admitted) <= 250
        for subject in subjects:
            # What the shared limit refused is given back to the token: its own has as much left as it admitted not.
            await many(stores[0], subject, parse_limits("1000/hour"), 1)
        late = [await many(stores[0], subject, policies, 50) for subject in subjects]
        assert sum(admitted) + sum(verdict.admitted for verdicts in late for verdict in verdicts) == 250


async def test_two_steps_tell_the_limit_nearest_its_end_and_give_back(cluster: Cluster) -> None:
    async with started(cluster) as store:
        one, other = (store.plan(name, BOTH) for name in ("one", "other"))
        first = [await ask(store, one) for _ in range(6)]
        assert [(verdict.admitted, verdict.policy, verdict.remaining) for verdict in first] == [
            (True, 0, 4),
            (True, 0, 3),
            (True, 0, 2),
            (True, 0, 1),
            (True, 0, 0),
            (False, 0, 0),
        ]
        verdicts = [await ask(store, other) for _ in range(4)]
        assert [(verdict.admitted, verdict.policy, verdict.remaining) for verdict in verdicts] == [
            (True, 2, 2),
            (True, 2, 1),
            (True, 2, 0),
            (False, 2, 0),
        ]
        # What the shared limit refused was given back to the token's own.
        own = store.plan("other", BOTH[:2])
        assert (await ask(store, own)).remaining == 1
        # And a refund gives back both.
        store.refund(one, first[0])
        store.refund(other, verdicts[0])
        assert (await ask(store, other)).admitted


async def test_places_in_flight_are_held_and_given_back_on_every_node(cluster: Cluster) -> None:
    policies = (
        *parse_limits("100/day,3/hour;bucket;shadow"),
        parse_concurrency("2"),
        parse_concurrency("3", shared=True),
    )
    subjects = [subject_of(cluster, master) for master in cluster.masters]
    async with started(cluster) as store:
        plans = [store.plan(subject, policies) for subject in subjects]
        first, second = [await ask(store, plans[0]) for _ in range(2)]
        own = await ask(store, plans[0])
        assert (own.admitted, own.policy) == (False, 2)
        third = await ask(store, plans[1])
        shared = await ask(store, plans[2])
        assert (third.admitted, shared.admitted, shared.policy) == (True, False, 3)
        # What the shared limit refused holds no place of the token's own.
        assert [standing.used for standing in await look(store, plans[2])] == [0, 0, 0, 3]
        store.leases.renew()
        store.release(plans[0], first)
        assert [standing.used for standing in await look(store, plans[0])] == [2, 2, 1, 2]
        # The bucket is a shadow: it tells of what it would have refused, and lets it pass.
        shadowed = [await ask(store, plans[0]), await ask(store, plans[0])]
        assert [verdict.shadowed for verdict in shadowed] == [0, 0]
        assert [verdict.admitted for verdict in shadowed] == [True, False]
        store.release(plans[0], shadowed[0])
        last = await ask(store, plans[0])
        assert (last.admitted, last.shadowed) == (True, 1 << 1)
        store.refund(plans[0], last)
        assert [standing.used for standing in await look(store, plans[0])] == [3, 3, 1, 2]
        store.release(plans[0], second)
        store.release(plans[1], third)
        assert [standing.used for standing in await look(store, plans[1])] == [1, 1, 0, 0]


async def test_a_revoked_subject_is_refused_before_anything_is_charged(cluster: Cluster) -> None:
    async with started(cluster) as store:
        for master in cluster.masters:
            subject = subject_of(cluster, master)
            plan, shared = store.plan(subject, BOTH), store.plan(subject, BOTH[2:])
            assert (await ask(store, plan)).admitted
            await store.revoke(subject, 60)
            assert [(await ask(store, one)).policy for one in (plan, shared)] == [REVOKED, REVOKED]
            assert await store.look(plan) is None
        other = store.plan("other", BOTH)
        assert (await ask(store, other)).admitted
        assert [standing.used for standing in await look(store, other)] == [1, 1, 4]


async def test_a_subject_with_shared_limits_only_or_none(cluster: Cluster) -> None:
    async with started(cluster) as store:
        plan = store.plan("abc", BOTH[2:])
        assert [(await ask(store, plan)).admitted for _ in range(9)] == [True] * 8 + [False]
        assert (await ask(store, store.plan("abc", ()))).policy == -1


async def test_keys_are_where_the_cluster_has_them_and_all_expire(cluster: Cluster) -> None:
    async with started(cluster) as store:
        for name in ("a", "b", "c", "d"):
            assert (await ask(store, store.plan(name, BOTH))).admitted
        assert await store.agree_secret(b"x" * 32) == b"x" * 32
    keys = [(master, key) for master in cluster.masters for key in master.call("KEYS", "*")]  # type: ignore[attr-defined]
    assert len({master for master, _ in keys}) == 3
    for master, key in keys:
        assert key.startswith(b"gateway:{")
        ttl = master.call("PTTL", key)
        assert isinstance(ttl, int)
        assert ttl > 0 or ttl == -2, key


async def test_a_moved_slot_is_followed(cluster: Cluster) -> None:
    source, target = cluster.masters[:2]
    subject = subject_of(cluster, source)
    async with started(cluster) as store:
        plan = store.plan(subject, parse_limits("5/day"))
        assert [(await ask(store, plan)).remaining for _ in range(2)] == [4, 3]
        slot = key_slot(f"gateway:{{{subject}}}:".encode())
        cluster.begin_move(slot, source, target)
        cluster.end_move(slot, source, target)
        verdicts = await many(store, subject, parse_limits("5/day"), 4)
        assert [verdict.remaining for verdict in verdicts if verdict.admitted] == [2, 1, 0]
        assert (await ask(store, plan)).admitted is False
        assert store._owners[slot] is store._links[RedisAddress("127.0.0.1", target.port)]


async def test_checks_of_a_slot_on_its_way_are_lost_and_hurt_nobody_else(cluster: Cluster) -> None:
    source, target = cluster.masters[:2]
    subject = subject_of(cluster, source)
    async with started(cluster) as store:
        plan = store.plan(subject, parse_limits("5/day"))
        assert (await ask(store, plan)).remaining == 4
        slot = key_slot(f"gateway:{{{subject}}}:".encode())
        cluster.begin_move(slot, source, target)
        # A check has several keys, some here and some there or nowhere: no node can answer it.
        spends = store.spend_plan(subject, plan.policies, ())
        for number in range(5):
            with pytest.raises(StoreUnavailable, match="moving"):
                await ask(store, plan)
            with pytest.raises(StoreUnavailable, match="moving"):
                await reserve(store, spends, Ask(str(number), {}))
        assert all(link.losses == 0 for link in store._links.values())
        cluster.end_move(slot, source, target)
        assert (await ask(store, plan)).remaining == 3


@pytest.mark.parametrize("how", ["promoted", "killed", "hung"])
async def test_a_replica_that_takes_over_is_found(cluster: Cluster, how: str) -> None:
    old, replica = cluster.masters[0], cluster.replica
    subject, elsewhere = subject_of(cluster, old), subject_of(cluster, cluster.masters[1])
    key = f"gateway:{{{subject}}}:limit:day"
    async with started(cluster, timeout_s=0.3) as store:
        plan = store.plan(subject, parse_limits("5/day"))
        assert [(await ask(store, plan)).admitted for _ in range(3)] == [True] * 3
        until(lambda: cluster.replica_has(key) == old.call("GET", key), "a replica in step")
        if how == "promoted":
            cluster.fail_over()
            # The old master is up, and sends the check on to one that the store is not connected to yet.
            with pytest.raises(StoreUnavailable, match="not connected yet"):
                await ask(store, plan)
            await until_answered(store)
            assert (await ask(store, plan)).admitted
        else:
            old.kill() if how == "killed" else old.signal(signal.SIGSTOP)
            with pytest.raises(StoreUnavailable):
                await ask(store, plan)
            # The others go on while it is out.
            assert (await ask(store, store.plan(elsewhere, PLENTY))).admitted
            await asyncio.to_thread(cluster.taken_over)
            await until_answered(store)
            if how == "hung":
                old.signal(signal.SIGCONT)
            assert (await ask(store, plan)).admitted
        assert [(await ask(store, plan)).admitted for _ in range(2)] == [True, False]
        await until_answered(store)
        assert RedisAddress("127.0.0.1", replica.port) in store._links


class Behind(ClusterStore):
    """A store that every node but one tells of the cluster as it was at the start: news takes a while to spread."""

    informed: RedisAddress
    told = 0
    """How often the one that knows has been asked,"""
    others_told = 0
    """and how often one of the others."""
    slow: asyncio.Event
    """Set when a connection to it may be made: that takes longer than to ask."""
    old_news: tuple[list[Share], RedisAddress]

    async def _ask_shares(self, place: RedisAddress, within_s: float) -> tuple[list[Share], RedisAddress]:
        if place == self.informed:
            self.told += 1
            return await super()._ask_shares(place, within_s)
        if not self._links:
            self.old_news = await super()._ask_shares(place, within_s)
        self.others_told += 1
        return self.old_news

    def _link(self, name: str, locate: Locate, **more: Any) -> Link:
        async def slowly(within_s: float) -> RedisAddress:
            place = await locate(within_s)
            if place == self.informed:
                await self.slow.wait()
            return place

        return super()._link(name, slowly, **more)


async def test_the_node_that_another_one_names_is_believed_before_those_that_are_behind(cluster: Cluster) -> None:
    old, replica = cluster.masters[0], cluster.replica
    store = Behind(cluster.address, timeout_s=0.3)
    store.informed = RedisAddress("127.0.0.1", replica.port)
    store.slow = asyncio.Event()
    await store.start()
    try:
        plan = store.plan(subject_of(cluster, old), parse_limits("5/day"))
        assert (await ask(store, plan)).remaining == 4
        cluster.fail_over()
        with pytest.raises(StoreUnavailable, match="not connected yet"):
            await ask(store, plan)
        async with asyncio.timeout(30):
            while store.told < 4:  # noqa: ASYNC110 - several turns of looking for a cluster that is well
                await asyncio.sleep(0.01)
        store.slow.set()
        await until_answered(store)
        assert (await ask(store, plan)).remaining == 3
        assert store._refreshing is not None
        await store._refreshing
        assert store.informed in store._links
        assert (await ask(store, plan)).remaining == 2
    finally:
        await store.close()


async def test_an_answer_from_before_a_node_was_named_does_not_undo_that(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Behind(cluster.address, timeout_s=TIMEOUT_S)
    store.informed = RedisAddress("127.0.0.1", cluster.replica.port)
    store.slow = asyncio.Event()
    store.slow.set()
    await store.start()
    asked, answered = asyncio.Event(), asyncio.Event()

    async def learn(places: Sequence[RedisAddress], within_s: float) -> tuple[list[Share], RedisAddress]:
        if tuple(places) != (store.informed,):
            asked.set()
            await answered.wait()
        return await ClusterStore._learn(store, places, within_s)

    monkeypatch.setattr(store, "_learn", learn)
    try:
        plan = store.plan(subject_of(cluster, cluster.masters[0]), parse_limits("5/day"))
        assert (await ask(store, plan)).remaining == 4
        store._refresh()
        await asked.wait()
        cluster.fail_over()
        standings = await look(store, plan)  # the old master names the new one
        link = store._links[store.informed]
        answered.set()
        await until_answered(store)
        assert store._links[store.informed] is link
        assert standings[0].used == 1
    finally:
        await store.close()


async def test_the_node_that_was_named_is_not_believed_for_ever_when_nobody_can_connect_to_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "NEWS_S", 0.5)
    store = Behind(cluster.address, timeout_s=0.3)
    store.informed = RedisAddress("127.0.0.1", cluster.replica.port)
    store.slow = asyncio.Event()
    await store.start()
    try:
        cluster.fail_over()
        with pytest.raises(StoreUnavailable, match="not connected yet"):
            await ask(store, store.plan(subject_of(cluster, cluster.masters[0]), PLENTY))
        store.others_told = 0
        async with asyncio.timeout(30):
            while not store.others_told:  # noqa: ASYNC110 - several turns of looking for a cluster that is well
                await asyncio.sleep(0.01)
        assert store.told > 1
    finally:
        await store.close()


async def test_a_cluster_that_is_down_is_lost_until_its_node_is_back(cluster: Cluster) -> None:
    gone, lives = cluster.masters[1], cluster.masters[2]
    async with started(cluster) as store:
        plan = store.plan(subject_of(cluster, lives), parse_limits("5/day"))
        assert (await ask(store, plan)).remaining == 4
        gone.kill()
        # Its slots are covered by nobody, so the others do nothing any more either.
        until(lambda: b"cluster_state:fail" in cluster_info(lives), "a cluster that is down")
        with pytest.raises(StoreUnavailable, match="CLUSTERDOWN"):
            await ask(store, plan)
        gone.start()
        until(lambda: all(b"cluster_state:ok" in cluster_info(one) for one in cluster.masters), "a cluster that is up")
        await until_answered(store)
        assert (await ask(store, plan)).remaining == 3


async def test_a_lost_second_step_gives_the_first_back(cluster: Cluster) -> None:
    owner = cluster.of_key("gateway:{global}:")
    (other, *_) = [master for master in cluster.masters if master is not owner]
    subject = subject_of(cluster, other)
    async with started(cluster, timeout_s=0.3) as store:
        plan = store.plan(subject, BOTH)
        assert (await ask(store, plan)).remaining == 4
        owner.signal(signal.SIGSTOP)
        for _ in range(4):
            with pytest.raises(StoreUnavailable):
                await ask(store, plan)
        assert (await ask(store, store.plan(subject, BOTH[:2]))).remaining == 3
        owner.signal(signal.SIGCONT)


async def test_what_is_lost_goes_to_the_policy_step_by_step(cluster: Cluster) -> None:
    owner = cluster.of_key("gateway:{global}:")
    (other, *_) = [master for master in cluster.masters if master is not owner]
    subject = subject_of(cluster, other)
    for policy in ("local", "allow"):
        instances = Instances() if policy == "local" else None
        loss = Allow() if instances is None else Local(instances, lambda: BOTH)
        async with started(cluster, timeout_s=0.3, loss=loss, instances=instances) as store:
            plan = store.plan(f"{subject}", parse_limits(f"9/{'hour' if policy == 'local' else 'day'}") + BOTH[2:])
            owner.signal(signal.SIGSTOP)
            verdicts = [await ask(store, plan) for _ in range(10)]
            if policy == "local":
                # The shared limit of 8 is counted here, the token's own 9 in Redis.
                assert [verdict.admitted for verdict in verdicts] == [True] * 8 + [False] * 2
                store.refund(plan, verdicts[0])
                assert [(await ask(store, plan)).admitted for _ in range(2)] == [True, False]
            else:
                assert [verdict.admitted for verdict in verdicts] == [True] * 9 + [False]
            owner.signal(signal.SIGCONT)
            await until_answered(store)


async def test_a_dead_seed_does_not_matter_and_no_seed_is_told(cluster: Cluster) -> None:
    nobody = RedisAddress("127.0.0.1", 1)
    store = ClusterStore(ClusterAddress((nobody, cluster.address.seeds[2])), timeout_s=TIMEOUT_S)
    await store.start()
    assert (await ask(store, store.plan("abc", PLENTY))).admitted
    assert len(store._links) == 3
    await store.close()
    with pytest.raises(StoreUnavailable, match=r"redis\+cluster://127\.0\.0\.1:1: Redis cannot be reached: .*refused"):
        await ClusterStore(ClusterAddress((nobody,)), timeout_s=TIMEOUT_S).start()


async def test_a_server_that_is_no_cluster_is_told(server: RedisServer) -> None:
    address = ClusterAddress((server.address,))
    with pytest.raises(StoreUnavailable, match="Redis answered ERR to CLUSTER SLOTS"):
        await ClusterStore(address, timeout_s=TIMEOUT_S).start()


async def test_a_node_that_is_taken_for_a_single_server_is_told(cluster: Cluster) -> None:
    (node, *_) = [one for one in cluster.masters if one is not cluster.of_key("gateway:{global}:")]
    with pytest.raises(StoreUnavailable, match=r"redis\+cluster:// in place of"):
        await RedisStore(RedisAddress("127.0.0.1", node.port), timeout_s=TIMEOUT_S).start()


async def test_users_of_the_cluster_log_in_to_each_node(cluster: Cluster) -> None:
    for one in cluster.servers:
        one.call("ACL", "SETUSER", "gateway", "on", ">s3cret", "~gateway:*", "+@all")
        one.call("ACL", "SETUSER", "default", "resetpass")
    seeds = tuple(dataclasses.replace(seed, username="gateway", password="s3cret") for seed in cluster.address.seeds)
    store = ClusterStore(ClusterAddress(seeds), timeout_s=TIMEOUT_S)
    await store.start()
    for master in cluster.masters:
        with contextlib.suppress(TypeError):
            assert (await ask(store, store.plan(f"abc-{master.port}", PLENTY))).admitted
    await store.close()
    wrong = tuple(dataclasses.replace(seed, password="wr0ng") for seed in seeds)
    with pytest.raises(StoreUnavailable, match="WRONGPASS to AUTH") as caught:
        await ClusterStore(ClusterAddress(wrong), timeout_s=TIMEOUT_S).start()
    assert "wr0ng" not in str(caught.value)


async def test_each_evicting_node_is_warned_of(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    for one in cluster.masters[:2]:
        one.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    async with started(cluster):
        pass
    assert caplog.text.count("allkeys-lru") == 2


async def test_leases_follow_their_slot_whether_anything_is_asked_or_not(cluster: Cluster) -> None:
    source, target = cluster.masters[:2]
    subject, slot_of = subject_of(cluster, source), f"gateway:{{{subject_of(cluster, source)}}}:"
    key = f"{slot_of}inflight"
    one = (parse_concurrency("1"),)

    async def until_there(count: int) -> None:
        async with asyncio.timeout(30):
            while target.call("ZCARD", key) != count:  # noqa: ASYNC110 - an event would have to be the server's
                await asyncio.sleep(0.01)

    async with started(cluster) as busy, started(cluster) as quiet:
        plan = quiet.plan(subject, one)
        held = await ask(quiet, plan)
        cluster.move_slot(key_slot(slot_of.encode()), source, target)
        target.call("DEL", key)  # as if the lease had ended there
        quiet.leases.renew()
        await until_there(1)
        assert not (await ask(busy, busy.plan(subject, one))).admitted
        cluster.move_slot(key_slot(slot_of.encode()), target, source)
        cluster.move_slot(key_slot(slot_of.encode()), source, target)
        quiet.release(plan, held)
        await until_there(0)
        held = await ask(busy, busy.plan(subject, one))
        assert held.admitted


async def test_a_check_that_was_sent_on_and_lost_gives_its_place_back(cluster: Cluster) -> None:
    source, target = cluster.masters[:2]
    subject = subject_of(cluster, source)
    async with started(cluster) as store:
        plan = store.plan(subject, (parse_concurrency("1"),))
        cluster.move_slot(key_slot(subject.encode()), source, target)
        link = store._links[RedisAddress("127.0.0.1", target.port)]
        assert link.live is not None
        target.signal(signal.SIGSTOP)
        asked, connection = asyncio.ensure_future(ask(store, plan)), link.live
        while not connection._waiting or connection._outgoing:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        connection.end("A test ended it.")  # what was sent arrives all the same
        with pytest.raises(StoreUnavailable, match="A test"):
            await asked
        target.signal(signal.SIGCONT)
        async with asyncio.timeout(TIMEOUT_S):  # a lease would last longer
            while not await is_admitted(store, plan):  # noqa: ASYNC110 - it is the server that gives it back
                await asyncio.sleep(0.01)


async def is_admitted(store: ClusterStore, plan: Plan) -> bool:
    try:
        return (await ask(store, plan)).admitted
    except StoreUnavailable:
        return False


async def test_a_defect_at_the_verdict_gives_back_what_was_charged_once(cluster: Cluster) -> None:
    class Defective(Waiting):
        """Fails when it is told that it may go on, and gives back what it holds, as an exchange does."""

        verdict: Verdict | None = None

        def on_verdict(self, verdict: Verdict) -> None:
            self.verdict = verdict
            raise RuntimeError("a defect")

        def on_store_loss(self, error: StoreUnavailable) -> None:
            assert self.verdict is not None
            store.refund(plan, self.verdict)
            super().on_store_loss(error)

    async with started(cluster) as store:
        plan = store.plan("abc", BOTH)
        for _ in range(3):
            assert (await ask(store, plan)).admitted
        defective = Defective()
        store.check(plan, defective)
        with pytest.raises(StoreUnavailable):
            await defective.future
        await store.ping()
        assert [standing.used for standing in await look(store, plan)] == [3, 3, 3]


@pytest.mark.parametrize("policy", ["allow", "local"])
async def test_what_redis_did_not_decide_in_time_is_not_asked_a_second_time(cluster: Cluster, policy: str) -> None:
    instances = Instances() if policy == "local" else None
    loss = Allow() if instances is None else Local(instances, lambda: BOTH)
    async with started(cluster, timeout_s=0.2, loss=loss, instances=instances) as store:
        subject = subject_of(cluster, cluster.masters[0])
        shared_link = store._owners[key_slot(b"{global}")]
        assert shared_link is not None
        asked = shared_link.live
        assert asked is not None
        for master in cluster.masters:
            master.signal(signal.SIGSTOP)
        try:
            verdict = await ask(store, store.plan(subject, BOTH))
            assert verdict.admitted
            own_link = store._owners[key_slot(f"{{{subject}}}".encode())]
            # The node of the shared limits was not waited for as well.
            assert own_link is shared_link or not asked._waiting
        finally:
            for master in cluster.masters:
                master.signal(signal.SIGCONT)
        await until_answered(store)


@pytest.mark.parametrize("to", ["a master", "a replica that took over"])
async def test_what_is_asked_beside_the_checks_follows_its_slot_in_the_same_call(cluster: Cluster, to: str) -> None:
    source, other = cluster.masters[:2]
    # A subject that the first master has, and what all share, which is then moved there as well.
    subject, shared = subject_of(cluster, source), key_slot(b"{global}")
    if (owner := cluster.of_key("gateway:{global}:")) is not source:
        cluster.move_slot(shared, owner, source)
    instances = Instances()
    async with started(cluster, instances=instances) as store, started(cluster) as issuer:
        plan = store.plan(subject, parse_limits("5/day"))
        assert (await ask(store, plan)).admitted
        secret = await store.agree_secret(b"x" * 32)
        if to == "a master":
            for slot in (key_slot(f"{{{subject}}}".encode()), shared):
                cluster.move_slot(slot, source, other)
        else:
            cluster.fail_over()
        # Each of the first is asked of the node that has the keys no more.
        steps = {
            "a look": store.look(plan),
            "the secret": store.agree_secret(b"y" * 32),
            "the register": issuer.noted(),
            "the instances": instances.announce(),
            "a revocation": issuer.revoke(subject, 60),
        }
        outcomes = dict(zip(steps, [await step for step in steps.values()], strict=True))
        assert outcomes["the secret"] == secret
        assert [one.used for one in outcomes["a look"]] == [1]  # type: ignore[union-attr]
        assert (await ask(store, plan)).policy == REVOKED
        assert (await issuer.noted()).revoked == {subject}


async def test_a_token_that_is_issued_after_its_register_has_moved_is_in_it(cluster: Cluster) -> None:
    source = cluster.of_key("gateway:{global}:")
    target = next(one for one in cluster.masters if one is not source)
    async with started(cluster) as store:
        cluster.move_slot(key_slot(b"{global}"), source, target)
        store.note("line", 2**31)
        await until_answered(store)
        assert (await store.noted()).lines == ["line"]


async def test_what_is_asked_of_a_slot_on_its_way_is_answered(cluster: Cluster) -> None:
    source = cluster.of_key("gateway:{global}:")
    target = next(one for one in cluster.masters if one is not source)
    async with started(cluster) as store:
        secret = await store.agree_secret(b"x" * 32)
        cluster.begin_move(key_slot(b"{global}"), source, target)
        # The secret is still here; the register, which is nowhere yet, is asked for there.
        assert await store.agree_secret(b"y" * 32) == secret
        assert (await store.noted()).lines == []
        await store.revoke("abc", 60)
        cluster.end_move(key_slot(b"{global}"), source, target)
        assert (await store.noted()).revoked == {"abc"}
