"""Usage over real sockets: what several processes counted is in one place, and survives their ends."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from gateway.stores.usage_redis import usage_key
from tests.e2e import connected, fetch, request
from tests.kit.process import Program, gateway_process
from tests.kit.topologies import running_cluster
from tests.kit.upstream import head, soon

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kit.redis import RedisServer
    from tests.kit.upstream import Call, Upstream

PATIENT = "10s"


def settings(upstream: Upstream, redis_url: str) -> dict[str, str]:
    return {
        "TARGET_API_URL": upstream.url,
        "REDIS_URL": redis_url,
        "STORE_TIMEOUT": PATIENT,
        "RATE_LIMIT": "50/hour",
    }


async def register(program: Program) -> tuple[str, str]:
    told = json.loads((await fetch(program.url, request("/register", method="POST"))).content)
    return told["token"], told["id"]


async def overview(program: Program) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((await fetch(program.url, request("/admin/usage"))).content)
    return told


async def ask(program: Program, token: str, times: int) -> None:
    async with connected(program.url) as client:
        for _ in range(times):
            await client.ask(request("/api/x", token))


def stored(redis: RedisServer, token_id: str) -> dict[str, int]:
    told = redis.call("HGETALL", usage_key(token_id))
    assert isinstance(told, list)
    fields = zip(told[::2], told[1::2], strict=True)
    return {name.decode(): int(value) for name, value in fields if value.isdigit()}


async def test_two_processes_tell_the_same_and_an_orderly_stop_loses_nothing(
    upstream: Upstream, redis: RedisServer
) -> None:
    async with (
        gateway_process(**settings(upstream, redis.url)) as one,
        gateway_process(**settings(upstream, redis.url)) as other,
    ):
        token, token_id = await register(one)
        await asyncio.gather(ask(one, token, 40), ask(other, token, 30))
        one.signal(signal.SIGTERM)
        assert await one.ended() == 0
        told = await overview(other)
        assert told["totals"]["requests"] == 70
        assert told["targets"]["api"]["passed"] == 50
        assert told["tokens"][0]["refused"] == {"rate_limited": 20}
        other.signal(signal.SIGTERM)
        assert await other.ended() == 0
    counts = stored(redis, token_id)
    assert (counts["requests"], counts["passed"], counts["refused:rate_limited"]) == (70, 50, 20)
    assert sum(count for name, count in counts.items() if name.startswith("latency<=")) == 50
    assert redis.call("KEYS", "gateway:{global}:usage-instance*") == []


async def test_what_a_killed_process_had_counted_for_a_second_is_there(upstream: Upstream, redis: RedisServer) -> None:
    async with gateway_process(**settings(upstream, redis.url)) as program:
        token, token_id = await register(program)
        await ask(program, token, 10)
        async with asyncio.timeout(20):
            while stored(redis, token_id).get("requests", 0) < 10:  # noqa: ASYNC110 - another process enters it
                await asyncio.sleep(0.05)
        program.signal(signal.SIGKILL)
        await program.ended()
    assert stored(redis, token_id)["requests"] == 10


async def test_the_other_process_knows_what_is_in_flight(upstream: Upstream, redis: RedisServer) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def hold(call: Call) -> None:
        asked.set()
        await go_on.wait()
        await call.send(head("200 OK", "Content-Length: 0"))

    upstream.default = hold
    async with (
        gateway_process(**settings(upstream, redis.url)) as one,
        gateway_process(**settings(upstream, redis.url)) as other,
    ):
        token, _ = await register(one)
        asking = asyncio.ensure_future(ask(one, token, 1))
        await soon(asked.wait())
        async with asyncio.timeout(20):
            while (told := await overview(other))["totals"]["in_flight"] != 1:  # noqa: ASYNC110 - another process enters it
                await asyncio.sleep(0.05)
        assert (told["instances"], told["tokens"][0]["in_flight"], told["tokens"][0]["requests"]) == (2, 1, 1)
        go_on.set()
        await asking
        async with asyncio.timeout(20):
            while (told := await overview(other))["totals"]["in_flight"]:  # noqa: ASYNC110 - another process enters it
                await asyncio.sleep(0.05)
        assert told["tokens"][0]["passed"] == 1


async def test_a_stream_over_a_socket_ends_whole_when_the_program_stops(upstream: Upstream, redis: RedisServer) -> None:
    async with gateway_process(**settings(upstream, redis.url)) as program, connected(program.url) as client:
        client.write(request("/admin/usage?stream"))
        assert (await client.head())["content-type"] == "text/event-stream"
        while not (await client.line()).startswith(b"data: {"):
            pass
        program.signal(signal.SIGTERM)
        rest = await soon(client.reader.read())
        assert rest.endswith(b"\r\n0\r\n\r\n")
        assert await program.ended() == 0


async def test_on_a_cluster_each_token_has_its_usage_where_its_limits_are(upstream: Upstream) -> None:
    with running_cluster() as cluster:
        async with gateway_process(**settings(upstream, cluster.url)) as program:
            tokens = [await register(program) for _ in range(6)]
            for token, _ in tokens:
                await ask(program, token, 2)
            told = await overview(program)
            assert told["totals"]["passed"] == 12
            assert {one["id"]: one["passed"] for one in told["tokens"]} == dict.fromkeys(dict(tokens).values(), 2)
            program.signal(signal.SIGTERM)
            assert await program.ended() == 0
        for _, token_id in tokens:
            assert stored(cluster.of_key(usage_key(token_id)), token_id)["passed"] == 2


async def test_a_scrape_of_any_worker_has_the_counts_of_all(upstream: Upstream, tmp_path: Path) -> None:
    shared = {"TARGET_API_URL": upstream.url, "TOKEN_SECRET": "s" * 32, "GATEWAY_SHARED_DIR": str(tmp_path)}
    async with gateway_process(**shared) as one, gateway_process(**shared) as other:
        token, _ = await register(one)
        await asyncio.gather(ask(one, token, 3), ask(other, token, 4))
        async with asyncio.timeout(20):
            while (await passed(one), await passed(other)) != (7, 7):  # noqa: ASYNC110 - told once a second
                await asyncio.sleep(0.05)
        one.signal(signal.SIGKILL)
        await one.ended()
        assert await passed(other) == 7


async def passed(program: Program) -> float | None:
    text = (await fetch(program.url, request("/metrics"))).content.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = families["gateway_requests"].samples
    return next((one.value for one in samples if one.labels == {"target": "api", "result": "passed"}), None)
