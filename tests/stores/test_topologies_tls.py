"""The Redis store over TLS, on a real cluster and behind real sentinels: servers that speak nothing else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import trustme

from gateway.config import Config
from gateway.errors import StoreUnavailable
from gateway.limits import parse_limits
from gateway.stores import REVOKED
from gateway.stores.choice import make_store
from gateway.stores.slots import key_slot
from tests.kit.redis import until
from tests.kit.stores import ask, until_answered
from tests.kit.tls import pem_file
from tests.kit.topologies import Tls, running_cluster, running_sentinels

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.stores import Store

BOTH = parse_limits("5/day") + parse_limits("1000/day", shared=True)
NAMES = tuple(f"subject-{number}" for number in range(12))
"""Enough for each node to have some."""


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(trustme.CA(), tmp_path)


def store_at(url: str) -> Store:
    """Return the store that a gateway with this `REDIS_URL` has."""
    return make_store(Config(target_api_url="http://api.example", redis_url=url, store_timeout="1s").settings)


async def refused_without_its_authority(url: str, others_ca_file: str) -> None:
    """Neither the system's roots vouch for these servers, nor does somebody else's authority."""
    plain, _, _ = url.partition("?")
    for unknown in (plain, f"{plain}?ca_file={others_ca_file}"):
        store = store_at(unknown)
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(store.start(), 30)
        await store.close()


@pytest.fixture
def others_ca_file(tmp_path: Path) -> str:
    (tmp_path / "other").mkdir()
    return pem_file(trustme.CA(), tmp_path / "other")


async def test_a_cluster_is_used_on_every_node_and_followed(tls: Tls, others_ca_file: str) -> None:
    with running_cluster(tls) as cluster:
        await refused_without_its_authority(cluster.url, others_ca_file)
        store = store_at(cluster.url)
        await store.start()
        plans = {name: store.plan(name, BOTH) for name in NAMES}
        owners = {name: cluster.of_key(f"gateway:{{{name}}}:") for name in NAMES}
        assert set(owners.values()) == set(cluster.masters)
        assert [(await ask(store, plan)).admitted for plan in plans.values()] == [True] * len(NAMES)
        old, other = cluster.masters[:2]
        one, moved = [name for name, owner in owners.items() if owner is old][:2]
        cluster.move_slot(key_slot(moved.encode()), old, other)
        assert (await ask(store, plans[moved])).remaining == 3
        until(lambda: cluster.replica.call("DBSIZE") == old.call("DBSIZE"), "a replica in step")
        cluster.fail_over()
        # The old master names one that the store has no connection to yet: it is asked all the same, over TLS.
        standings = await store.look(plans[one])
        assert standings is not None
        assert standings[0].used == 1
        await until_answered(store)
        assert (await ask(store, plans[one])).remaining == 3
        await store.close()


async def test_sentinels_are_asked_and_their_master_is_left_for_the_next(tls: Tls, others_ca_file: str) -> None:
    with running_sentinels(tls) as sentinels:
        await refused_without_its_authority(sentinels.url, others_ca_file)
        store = store_at(sentinels.url)
        await store.start()
        plan = store.plan("abc", BOTH)
        assert (await ask(store, plan)).remaining == 4
        old = sentinels.master()
        (new,) = [server for server in sentinels.servers if server is not old]
        key = "gateway:{abc}:limit:day"
        until(lambda: new.call("GET", key) == old.call("GET", key), "a replica in step")
        old.kill()
        await asyncio.to_thread(sentinels.promoted, old)
        await until_answered(store)
        assert (await ask(store, plan)).remaining == 3
        await store.revoke("abc", 60)
        assert (await ask(store, plan)).policy == REVOKED
        await store.close()
