"""`gateway verify` as a command: against four instances on one Redis, and against a gateway that lies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shlex
import signal
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.kit.process import Program, gateway_process, start
from tests.kit.redis import RedisServer, running_redis
from tests.kit.tls import server_side
from tests.kit.upstream import Call, Upstream, answering, head, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import trustme

ADMIN_KEY = "an-admin-key-of-32-characters-or-more"
LIMIT = 30
SMALL = ("--processes", "2", "--connections", "2", "--most", "200000")
POLICY = f'RateLimit-Policy: "second";q={LIMIT};w=1'


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """One that forgets nothing when it is killed."""
    with running_redis("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture
async def instances(upstream: Upstream, redis: RedisServer) -> AsyncIterator[list[str]]:
    """Four gateways' addresses."""
    settings = {"TARGET_API_URL": upstream.url, "REDIS_URL": redis.url, "ADMIN_KEY": ADMIN_KEY}
    async with contextlib.AsyncExitStack() as stack:
        running = [stack.enter_async_context(gateway_process(**settings)) for _ in range(4)]
        yield [program.url for program in [await one for one in running]]


async def verify(*words: str, code: int, **settings: str) -> Program:
    program = await start("verify", *words, **settings)
    try:
        assert await program.ended() == code, program.printed
    finally:
        await program.kill()
    assert "Traceback" not in program.printed
    return program


def told(program: Program) -> dict[str, Any]:
    (line,) = [line for line in program.printed.splitlines() if line.startswith("{")]
    result: dict[str, Any] = json.loads(line)
    return result


async def test_four_instances_hold_while_redis_is_paused_and_killed(
    upstream: Upstream, instances: list[str], redis: RedisServer
) -> None:
    words = ("--limit", f"{LIMIT}/second", "--seconds", "5s", "--outage", "500ms", "--json", *SMALL)
    faults = ("--pause-redis", "--kill-redis", "--restart-redis", shlex.join(redis.command), "--yes")
    first = redis.pid
    try:
        program = await verify(*instances, *words, *faults, code=0, ADMIN_KEY=ADMIN_KEY, REDIS_URL=redis.url)
        assert redis.pid != first
    finally:
        os.kill(redis.pid, signal.SIGKILL)
    result = told(program)
    assert result["over_admission"] == 0
    (limit,) = result["limits"]
    assert (limit["name"], limit["quota"], limit["window_s"]) == ("second", LIMIT, 1)
    assert 0 < limit["worst_window"] <= LIMIT
    assert result["admitted"] == len(upstream.requests) >= 2 * LIMIT
    assert result["refused"] > 0
    assert result["neither"]["store_unavailable"] > 0
    assert [(outage["what"], outage["kept_data"]) for outage in result["outages"]] == [
        ("paused", True),
        ("killed", True),
    ]
    assert all(outage["lasted_s"] >= 0.4 for outage in result["outages"])
    # What it would do was said before, with nothing that is secret.
    assert "will wait for 0.5 s (CLIENT PAUSE)" in program.printed
    assert "will be killed (-9)" in program.printed
    assert "asked " in program.printed
    assert ADMIN_KEY not in program.printed


async def test_a_person_reads_what_it_found(upstream: Upstream, instances: list[str]) -> None:
    words = ("--limit", f"{LIMIT}/second", "--seconds", "2s", *SMALL)
    program = await verify(*instances, *words, code=0, ADMIN_KEY=ADMIN_KEY)
    assert f"in the worst window {LIMIT}\n" in program.printed
    assert "over-admission  0\n" in program.printed
    assert "verdict         no limit was exceeded\n" in program.printed
    assert len(upstream.requests) >= 2 * LIMIT


class Lying:
    """A gateway that says one limit and keeps another, strictly."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._admitted: deque[float] = deque()

    async def __call__(self, call: Call) -> None:
        now = time.monotonic()
        while self._admitted and self._admitted[0] < now - 1:
            self._admitted.popleft()
        if len(self._admitted) < self._kept:
            self._admitted.append(now)
            call.write(head("200 OK", POLICY, "Content-Length: 0"))
        else:
            call.write(head("429 Too Many Requests", POLICY, "X-Gateway-Error: rate_limited", "Content-Length: 0"))


GENEROUS = answering(b"", "200 OK", 'RateLimit-Policy: "second";q=1000000;w=1')
REGISTERED = answering(b'{"token": "gw_made-up"}', "201 Created")


@pytest.mark.parametrize(("kept", "code", "verdict"), [(LIMIT, 0, "no limit was"), (LIMIT + 1, 1, "EXCEEDED by 1")])
async def test_a_gateway_that_lets_one_too_many_through_is_found_out(
    upstream: Upstream, kept: int, code: int, verdict: str
) -> None:
    upstream.paths = {b"/register": REGISTERED}
    upstream.default = Lying(kept)
    program = await verify(upstream.url.removesuffix("/v1"), "--seconds", "1500ms", *SMALL, code=code)
    assert f"verdict         {verdict}" in program.printed


async def test_limits_that_change_are_not_judged(upstream: Upstream) -> None:
    upstream.paths = {b"/register": REGISTERED}
    quotas = itertools.cycle([5, 1000])

    async def wavering(call: Call) -> None:
        await answering(b"", "200 OK", f'RateLimit-Policy: "second";q={next(quotas)};w=1')(call)

    upstream.default = wavering
    program = await verify(upstream.url.removesuffix("/v1"), "--most", "50", code=1)
    assert "the limits were not the same all the time" in program.printed


async def test_it_asks_what_it_was_told_to_and_no_more_often(upstream: Upstream) -> None:
    upstream.paths = {b"/register": REGISTERED}
    upstream.default = GENEROUS
    words = ("--path", "/api/models?x=1", "--processes", "3", "--connections", "2", "--most", "50")
    program = await verify(upstream.url.removesuffix("/v1"), *words, "--json", code=0)
    result = told(program)
    assert (result["asked"], result["admitted"], result["most_reached"]) == (50, 50, True)
    asked = [received for received in upstream.requests if received.start_line.startswith(b"GET")]
    assert {received.start_line for received in asked} == {b"GET /api/models?x=1 HTTP/1.1"}
    assert {received.field(b"authorization") for received in asked} == {b"Bearer gw_made-up"}
    assert len(asked) == 50


async def test_an_instance_behind_tls(ca: trustme.CA, ca_file: str) -> None:
    async with Upstream(server_side(ca, "localhost"), "localhost") as upstream:
        upstream.default = GENEROUS
        url = upstream.url.removesuffix("/v1")
        program = await verify(url, "--most", "20", code=0, GATEWAY_TOKEN="gw_mine", SSL_CERT_FILE=ca_file)
        assert "admitted        20\n" in program.printed
        assert len(upstream.requests) == 20
        # Without the right roots nothing is sent, and nothing is shown.
        program = await verify(url, "--seconds", "1s", "--most", "20", code=1, GATEWAY_TOKEN="gw_mine")
        assert "unreachable" in program.printed
        assert len(upstream.requests) == 20


async def test_nobody_can_read_the_token_in_the_process_list(upstream: Upstream) -> None:
    seen = asyncio.Event()
    lines: list[bytes] = []

    def look() -> None:
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                lines.append(file.read_bytes())

    async def looking(call: Call) -> None:
        if not seen.is_set():
            seen.set()
            look()
        await GENEROUS(call)

    upstream.default = looking
    url = upstream.url.removesuffix("/v1")
    await verify(url, *SMALL, "--most", "500", code=0, GATEWAY_TOKEN="gw_canary", ADMIN_KEY=ADMIN_KEY)
    assert any(b"gateway.verify.worker" in line for line in lines)
    assert not any(b"gw_canary" in line or ADMIN_KEY.encode() in line for line in lines)
    assert upstream.requests[0].field(b"authorization") == b"Bearer gw_canary"


@pytest.mark.parametrize(
    ("status", "fields", "says"),
    [
        ("401 Unauthorized", ("X-Gateway-Error: token_invalid",), "token_invalid"),
        ("200 OK", (), "admitted"),
    ],
)
async def test_what_shows_nothing_is_a_failure(
    upstream: Upstream, status: str, fields: tuple[str, ...], says: str
) -> None:
    upstream.paths = {b"/register": REGISTERED}
    upstream.default = answering(b"", status, *fields)
    program = await verify(upstream.url.removesuffix("/v1"), "--most", "10", code=1)
    assert f"nothing is shown; there were 10 {says}" in program.printed


async def test_no_gateway_and_no_right_are_a_line_each(upstream: Upstream) -> None:
    refusal = b'{"detail": "Registering takes the admin key."}'
    upstream.paths = {b"/register": answering(refusal, "403 Forbidden")}
    url = upstream.url.removesuffix("/v1")
    program = await verify(url, code=1)
    assert f"gateway: {url} gives no token (403): Registering takes the admin key." in program.printed
    program = await verify("http://127.0.0.1:1", code=1)
    assert "gateway: No answer from http://127.0.0.1:1: " in program.printed


async def test_a_process_that_is_no_redis_is_not_killed(upstream: Upstream, redis: RedisServer) -> None:
    bystander = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        words = ("--kill-redis", "--redis-pid", str(bystander.pid), "--yes")
        program = await verify(upstream.url.removesuffix("/v1"), *words, code=2, REDIS_URL=redis.url)
        assert "is 'sleep', no Redis" in program.printed
        assert bystander.returncode is None
        assert upstream.requests == []
    finally:
        bystander.kill()
        await soon(bystander.wait())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_run_starts_redis_again(
    upstream: Upstream, redis: RedisServer, number: signal.Signals
) -> None:
    upstream.paths = {b"/register": REGISTERED}
    upstream.default = GENEROUS
    words = ("--kill-redis", "--restart-redis", shlex.join(redis.command), "--outage", "1h", "--yes", *SMALL)
    program = await start("verify", upstream.url.removesuffix("/v1"), *words, "--seconds", "1s", REDIS_URL=redis.url)
    try:
        await asyncio.to_thread(redis.until_gone)
        program.signal(number)
        assert await program.ended() == 130, program.printed
        await asyncio.to_thread(redis.until_there)
    finally:
        await program.kill()
        os.kill(redis.pid, signal.SIGKILL)
    assert "Traceback" not in program.printed


async def test_a_redis_that_comes_back_empty_is_told_of(upstream: Upstream) -> None:
    with running_redis() as redis:
        settings = {"TARGET_API_URL": upstream.url, "REDIS_URL": redis.url, "RATE_LIMIT": f"{LIMIT}/minute"}
        async with gateway_process(**settings) as program:
            words = ("--kill-redis", "--restart-redis", shlex.join(redis.command), "--outage", "200ms", "--yes")
            try:
                found = await verify(
                    program.url, *words, "--seconds", "4s", "--json", *SMALL, code=1, REDIS_URL=redis.url
                )
            finally:
                os.kill(redis.pid, signal.SIGKILL)
    result = told(found)
    # That is what it costs: the whole limit once more, and not a request beyond.
    assert (result["admitted"], result["over_admission"]) == (2 * LIMIT, LIMIT)
    assert [outage["kept_data"] for outage in result["outages"]] == [False]
    assert len(upstream.requests) == 2 * LIMIT
