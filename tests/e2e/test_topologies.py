"""The program on Redis by Sentinel and by Cluster: a failover under load, as clients and the upstream see it."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from typing import TYPE_CHECKING

from tests.e2e import connected, fetch, request
from tests.kit.process import Program, gateway_process
from tests.kit.topologies import running_cluster, running_sentinels

if TYPE_CHECKING:
    from tests.kit.upstream import Upstream


async def register(program: Program) -> str:
    answer = await fetch(program.url, request("/register", method="POST"))
    token: str = json.loads(answer.content)["token"]
    return token


async def load(program: Program, token: str, over: asyncio.Event) -> Counter[int]:
    """Ask over and over, on a few connections, and count the statuses."""

    async def one_after_the_other() -> Counter[int]:
        statuses: Counter[int] = Counter()
        async with connected(program.url) as client:
            while not over.is_set():
                statuses[(await client.ask(request("/api/x", token))).status] += 1
        return statuses

    return sum(await asyncio.gather(*(one_after_the_other() for _ in range(4))), Counter())


async def ready(program: Program, over: bool = True) -> None:  # noqa: FBT001, FBT002 - the state to wait for
    """Wait until the program says that it is, or that it is not."""
    async with asyncio.timeout(30):
        while ((await fetch(program.url, request("/readyz"))).status == 200) is not over:  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.02)


async def test_sentinels_fail_over_under_load_and_no_request_goes_unanswered_or_unchecked(upstream: Upstream) -> None:
    with running_sentinels() as sentinels:
        settings = {"TARGET_API_URL": upstream.url, "REDIS_URL": sentinels.url, "RATE_LIMIT": "1000000/hour"}
        async with gateway_process(STORE_TIMEOUT="200ms", **settings) as program:
            token, over = await register(program), asyncio.Event()
            loading = asyncio.ensure_future(load(program, token, over))
            master = sentinels.master()
            master.kill()
            await ready(program, over=False)
            await asyncio.to_thread(sentinels.promoted, master)
            await ready(program)
            assert (await fetch(program.url, request("/api/x", token))).status == 200
            over.set()
            statuses = await loading
        assert set(statuses) == {200, 503}
        assert len(upstream.requests) == statuses[200] + 1
        assert "Traceback" not in program.printed


async def test_a_cluster_holds_limits_of_two_instances_through_a_failover(upstream: Upstream) -> None:
    with running_cluster() as cluster:
        settings = {"TARGET_API_URL": upstream.url, "REDIS_URL": cluster.url, "RATE_LIMIT": "1000000/hour"}
        settings |= {"STORE_TIMEOUT": "200ms", "GLOBAL_RATE_LIMIT": "1000000/day"}
        async with gateway_process(**settings) as one, gateway_process(**settings) as other:
            token, over = await register(one), asyncio.Event()
            loading = [asyncio.ensure_future(load(program, token, over)) for program in (one, other)]
            assert (await fetch(other.url, request("/api/x", token))).status == 200
            cluster.masters[0].signal(signal.SIGSTOP)
            for program in (one, other):
                await ready(program, over=False)
            await asyncio.to_thread(cluster.taken_over)
            for program in (one, other):
                await ready(program)
                assert (await fetch(program.url, request("/api/x", token))).status == 200
            over.set()
            statuses = sum(await asyncio.gather(*loading), Counter[int]())
        assert set(statuses) <= {200, 503}
        assert len(upstream.requests) == statuses[200] + 3
        assert "Traceback" not in one.printed + other.printed
