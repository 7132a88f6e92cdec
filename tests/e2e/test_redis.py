"""Two gateways, as two processes, on one Redis: one budget, one set of tokens, and what happens when Redis is gone."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from gateway import Config, Gateway
from tests.e2e import connected, fetch, request
from tests.kit.process import Program, gateway_process, start
from tests.kit.upstream import head, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from tests.e2e import Answer
    from tests.kit.redis import RedisServer
    from tests.kit.upstream import Call, Upstream

LIMIT = 60
PATIENT = "10s"
"""A `STORE_TIMEOUT` for what is counted exactly: a busy machine must not turn a verdict into a loss."""


@pytest.fixture
async def pair(upstream: Upstream, redis: RedisServer) -> AsyncIterator[tuple[Program, Program]]:
    settings = {"TARGET_API_URL": upstream.url, "REDIS_URL": redis.url, "STORE_TIMEOUT": PATIENT}
    async with (
        gateway_process(RATE_LIMIT=f"{LIMIT}/hour", GLOBAL_RATE_LIMIT="150/hour", **settings) as one,
        gateway_process(RATE_LIMIT=f"{LIMIT}/hour", GLOBAL_RATE_LIMIT="150/hour", **settings) as other,
    ):
        yield one, other


async def register(program: Program) -> str:
    answer = await fetch(program.url, request("/register", method="POST"))
    assert answer.status == 201
    token: str = json.loads(answer.content)["token"]
    return token


async def ask_often(program: Program, token: str, count: int, connections: int = 10) -> list[Answer]:
    """Send so many requests, over some connections at once."""

    async def one_after_the_other(count: int) -> list[Answer]:
        async with connected(program.url) as client:
            return [await client.ask(request("/api/x", token)) for _ in range(count)]

    shares = await asyncio.gather(*(one_after_the_other(count // connections) for _ in range(connections)))
    return flat(shares)


def flat(shares: Iterable[list[Answer]]) -> list[Answer]:
    return [answer for share in shares for answer in share]


async def test_a_token_of_one_is_good_at_the_other(upstream: Upstream, pair: tuple[Program, Program]) -> None:
    for issuer, other in (pair, pair[::-1]):
        token = await register(issuer)
        for program in (issuer, other):
            assert (await fetch(program.url, request("/api/x", token))).status == 200
    assert len(upstream.requests) == 4


async def test_the_limit_holds_exactly_across_both(upstream: Upstream, pair: tuple[Program, Program]) -> None:
    token = await register(pair[0])
    answers = flat(await asyncio.gather(*(ask_often(program, token, 100) for program in pair)))
    assert Counter(answer.status for answer in answers) == {200: LIMIT, 429: 200 - LIMIT}
    assert len(upstream.requests) == LIMIT
    # Each place was given away once, whichever gateway gave it.
    left = [answer["ratelimit"].split(";")[1] for answer in answers if answer.status == 200]
    assert sorted(left) == sorted(f"r={places}" for places in range(LIMIT))


async def test_the_global_limit_holds_exactly_across_both(upstream: Upstream, pair: tuple[Program, Program]) -> None:
    tokens = [await register(program) for program in pair for _ in range(2)]
    asked = [ask_often(program, token, 50, 5) for program in pair for token in tokens]
    answers = flat(await asyncio.gather(*asked))
    assert Counter(answer.status for answer in answers) == {200: 150, 429: 250}
    assert len(upstream.requests) == 150


async def test_keys_have_an_expiry_and_no_token_in_them(
    upstream: Upstream, pair: tuple[Program, Program], redis: RedisServer
) -> None:
    token = await register(pair[0])
    assert (await fetch(pair[1].url, request("/api/x", token))).status == 200
    keys = redis.call("KEYS", "*")
    assert isinstance(keys, list)
    assert any(b":limit:" in key for key in keys)
    for key in keys:
        assert key.startswith(b"gateway:{")
        assert redis.call("TTL", key) != -1, f"{key!r} stays for ever"
        for part in token.encode().removeprefix(b"gw_").split(b"."):
            assert part not in key
    assert len(upstream.requests) == 1


async def test_a_killed_process_gives_its_places_back(upstream: Upstream, redis: RedisServer) -> None:
    """Two gateways with ten places together, all taken; one is killed with -9 under load, and its places come back."""
    in_flight = most = 0
    let_go = asyncio.Event()

    async def hold(call: Call) -> None:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        try:
            await call.unless_gone(let_go.wait())
        finally:
            in_flight -= 1
        await call.send(head("200 OK", "Content-Length: 0"))

    upstream.default = hold
    # The program's leases last 25 s; the same program with shorter ones keeps this test short.
    settings = {
        "TARGET_API_URL": upstream.url,
        "REDIS_URL": redis.url,
        "STORE_TIMEOUT": PATIENT,
        "RATE_LIMIT": "100000",
    }
    settings |= {"CONCURRENCY_LIMIT": "10", "GLOBAL_CONCURRENCY_LIMIT": "12"}
    short = "tests.e2e.short_leases"
    async with (
        gateway_process(module=short, **settings) as doomed,
        gateway_process(module=short, **settings) as other,
    ):
        token = await register(other)
        waiting = [asyncio.ensure_future(fetch(doomed.url, request("/api/x", token))) for _ in range(10)]
        await upstream.requested(10)
        assert (await fetch(other.url, request("/api/x", token)))["x-gateway-error"] == "concurrency_limited"
        # They are held for as long as their process lives, renewal after renewal.
        calls = _renewals(redis)
        while _renewals(redis) < calls + 6:
            refusal = await fetch(other.url, request("/api/x", token))
            assert (refusal.status, refusal["x-gateway-error"]) == (429, "concurrency_limited")
        doomed.signal(signal.SIGKILL)
        await asyncio.gather(*waiting, return_exceptions=True)
        patient = asyncio.ensure_future(_ask_until_admitted(other, token, let_go))
        assert (await soon(patient)).status == 200
        answers = await asyncio.gather(*(fetch(other.url, request("/api/x", token)) for _ in range(10)))
        assert [answer.status for answer in answers] == [200] * 10
        assert most == 10
    assert redis.call("ZCARD", "gateway:{global}:inflight") == 0


def _renewals(redis: RedisServer) -> int:
    stats = redis.call("INFO", "commandstats")
    assert isinstance(stats, bytes)
    found = re.search(rb"cmdstat_eval:calls=(\d+)", stats)
    return int(found[1]) if found else 0


async def _ask_until_admitted(program: Program, token: str, let_go: asyncio.Event) -> Answer:
    """Ask as long as there is a refusal; the upstream answers from the first that is none."""
    let_go.set()
    while (answer := await fetch(program.url, request("/api/x", token))).status == 429:
        assert answer["x-gateway-error"] == "concurrency_limited"
    return answer


async def ready(program: Program) -> None:
    """Wait until the program says that it is: how long Redis takes to come back is not what is tested."""
    async with asyncio.timeout(20):
        while (await fetch(program.url, request("/readyz"))).status != 200:  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_redis_that_is_gone_is_a_503_and_nothing_passes_until_it_is_back(
    upstream: Upstream, redis: RedisServer, how: str
) -> None:
    settings = {"TARGET_API_URL": upstream.url, "REDIS_URL": redis.url, "RATE_LIMIT": "1000/hour"}
    # Twice the default: on this side of it, the test is about a Redis that does answer.
    async with gateway_process(STORE_TIMEOUT="200ms", **settings) as program, connected(program.url) as client:
        token = await register(program)
        assert (await client.ask(request("/api/x", token))).status == 200
        if how == "killed":
            redis.kill()
        else:
            redis.signal(signal.SIGSTOP)
        for number in range(6):
            answer = await client.ask(request("/api/x", token, method="POST", body=b"%d" % number))
            assert (answer.status, answer["x-gateway-error"]) == (503, "store_unavailable")
            assert int(answer["retry-after"]) >= 1
        unready = await client.ask(request("/readyz"))
        assert (unready.status, unready["x-gateway-error"]) == (503, "store_unavailable")
        assert (await client.ask(request("/healthz"))).status == 200
        assert len(upstream.requests) == 1

        if how == "killed":
            redis.start()
        else:
            redis.signal(signal.SIGCONT)
        await ready(program)
        assert (await client.ask(request("/api/x", token))).status == 200
        assert len(upstream.requests) == 2
        program.signal(signal.SIGTERM)
        await client.at_end()
        assert await program.ended() == 0
    assert "Traceback" not in program.printed


async def test_a_client_is_not_told_where_the_store_is(upstream: Upstream, redis: RedisServer) -> None:
    async with gateway_process(TARGET_API_URL=upstream.url, REDIS_URL=redis.url) as program:
        token = await register(program)
        redis.kill()
        answers = [await fetch(program.url, request("/api/x", token)) for _ in range(5)]
    assert {answer.status for answer in answers} == {503}
    for answer in answers:
        assert "redis.sock" not in answer.content.decode()


async def test_a_redis_that_was_only_stopped_has_charged_nothing_for_what_was_refused(
    upstream: Upstream, redis: RedisServer
) -> None:
    settings = {"TARGET_API_URL": upstream.url, "REDIS_URL": redis.url, "RATE_LIMIT": "5/hour"}
    async with gateway_process(STORE_TIMEOUT="200ms", **settings) as program:
        token = await register(program)
        redis.signal(signal.SIGSTOP)
        # Sent to Redis, which answers them late: what it then charges is given back.
        refused = await asyncio.gather(*(fetch(program.url, request("/api/x", token)) for _ in range(5)))
        assert [answer.status for answer in refused] == [503] * 5
        redis.signal(signal.SIGCONT)
        await ready(program)
        answers = [await fetch(program.url, request("/api/x", token)) for _ in range(7)]
    assert [answer.status for answer in answers] == [200] * 5 + [429] * 2
    assert len(upstream.requests) == 5


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_local_limits_go_on_from_what_was_known_and_end_with_the_outage(
    upstream: Upstream, redis: RedisServer, how: str
) -> None:
    settings = {"TARGET_API_URL": upstream.url, "REDIS_URL": redis.url, "RATE_LIMIT": "6/hour"}
    async with (
        gateway_process(STORE_TIMEOUT="200ms", ON_STORE_LOSS="local", **settings) as one,
        gateway_process(STORE_TIMEOUT="200ms", ON_STORE_LOSS="local", **settings) as other,
    ):
        token = await register(one)
        for program in (one, other):
            assert (await fetch(program.url, request("/api/x", token)))["ratelimit"].startswith('"hour";r=')
        if how == "killed":
            redis.kill()
        else:
            redis.signal(signal.SIGSTOP)
        # `one` knew of one place taken, `other` of two.
        for program, places in ((one, 5), (other, 4)):
            answers = [await fetch(program.url, request("/api/x", token)) for _ in range(7)]
            assert [answer.status for answer in answers] == [200] * places + [429] * (7 - places)
            left = [answer["ratelimit"].split(";")[1] for answer in answers]
            assert left == [f"r={max(places - 1 - number, 0)}" for number in range(7)]
        assert len(upstream.requests) == 2 + 9
        # `other` counted the instances when it started, as the second of them.
        unready = await fetch(other.url, request("/readyz"))
        assert unready.status == 503
        says = "Instances seen: 2; so at worst, one window of 'hour' 12 more than 6."
        assert says in json.loads(unready.content)["detail"]
        assert other.printed.count(says) == 1

        if how == "killed":
            redis.start()
        else:
            redis.signal(signal.SIGCONT)
        await ready(one)
        # Redis knows nothing of what was admitted meanwhile, and goes on from what it has itself.
        statuses = [(await fetch(one.url, request("/api/x", token))).status for _ in range(7)]
        places = 6 if how == "killed" else 4
        assert statuses == [200] * places + [429] * (7 - places)


async def test_the_worst_case_is_told_of_the_limits_as_they_were_reloaded(
    upstream: Upstream, redis: RedisServer
) -> None:
    usual: dict[str, Any] = {"target_api_url": upstream.url, "redis_url": redis.url, "on_store_loss": "local"}
    async with Gateway(Config(**usual, rate_limit="6/hour")) as gateway:
        gateway.reload(Config(**usual, rate_limit="9/minute", global_rate_limit="50/minute"))
        redis.kill()
        unready = await fetch(gateway.url, request("/readyz"))
    assert unready.status == 503
    says = "at worst, one window of 'minute' 9 more than 9, 'global-minute' 50 more than 50."
    assert says in json.loads(unready.content)["detail"]


async def test_allow_lets_everything_pass_and_tells_of_no_limit(upstream: Upstream, redis: RedisServer) -> None:
    settings = {"TARGET_API_URL": upstream.url, "REDIS_URL": redis.url, "RATE_LIMIT": "3/hour"}
    async with gateway_process(STORE_TIMEOUT="200ms", ON_STORE_LOSS="allow", **settings) as program:
        token = await register(program)
        assert (await fetch(program.url, request("/api/x", token)))["ratelimit"].startswith('"hour";r=2;')
        redis.kill()
        answers = [await fetch(program.url, request("/api/x", token)) for _ in range(10)]
        for answer in answers:
            assert (answer.status, answer["x-gateway-limits"]) == (200, "unchecked")
            assert "ratelimit" not in answer
            assert "ratelimit-policy" not in answer
        assert len(upstream.requests) == 11
        unready = await fetch(program.url, request("/readyz"))
        assert unready.status == 503
        assert "pass unchecked" in json.loads(unready.content)["detail"]
        assert program.printed.count("pass unchecked") == 1
        redis.start()
        await ready(program)
        statuses = [(await fetch(program.url, request("/api/x", token))).status for _ in range(4)]
        assert statuses == [200] * 3 + [429]


async def test_no_redis_at_start_is_one_line_and_exit_code_1(upstream: Upstream, redis: RedisServer) -> None:
    redis.kill()
    program = await start(TARGET_API_URL=upstream.url, REDIS_URL=redis.url)
    try:
        assert await program.ended() == 1
    finally:
        await program.kill()
    assert re.fullmatch(r"gateway: .*redis\.sock.*\n", program.printed), program.printed
