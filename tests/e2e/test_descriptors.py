"""More connections than descriptors: they wait for each other; nobody is dropped, nothing falls over, nothing spins."""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e import CUT_SHORT, Client, connected, fetch, request
from tests.e2e.test_process import register
from tests.kit.process import Program, gateway_process, until
from tests.kit.upstream import Upstream, answering, hang, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e import Answer

LIMIT = 64
CLIENTS = 200
PAUSED = "new connections have to wait"
OVER = "accepting connections without a pause again"
NO_DESCRIPTOR = "Too many open files"
MODULES = ["gateway", "tests.kit.embedded"]
"""The program on uvloop, and a gateway embedded in a program on asyncio's loop."""


@pytest.fixture(params=MODULES, ids=["uvloop", "asyncio"])
async def program(upstream: Upstream, request: pytest.FixtureRequest) -> AsyncIterator[Program]:
    settings = {"TARGET_API_URL": upstream.url, "RATE_LIMIT": "10000", "UPSTREAM_IDLE": "2s"}
    settings["GATEWAY_LISTEN"] = "127.0.0.1:0,127.0.0.1:0"
    async with gateway_process(module=request.param, ulimit=f"-n {LIMIT}", **settings) as running:
        yield running


def allow(program: Program, count: int) -> None:
    """Change how many descriptors a running program may have, which it cannot know of."""
    resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE, (count, LIMIT))


async def use_up(program: Program, sockets: int) -> None:
    """Leave a program no descriptor but those that it has, once it has so many sockets."""
    await until(lambda: program.sockets() == sockets)
    allow(program, program.next_descriptor())


def limits(program: Program) -> tuple[str, str]:
    """Return a program's soft and hard limit of descriptors."""
    text = Path(f"/proc/{program.process.pid}/limits").read_text(encoding="ascii")
    found = re.search(r"^Max open files +(\w+) +(\w+)", text, re.MULTILINE)
    assert found is not None
    return found[1], found[2]


async def ask_last(client: Client, data: bytes) -> Answer:
    """Ask, and end the connection with the answer."""
    answer = await client.ask(data)
    await client.close()
    return answer


async def test_more_clients_than_fit_wait_in_the_queue_and_all_are_served(upstream: Upstream, program: Program) -> None:
    at_rest = program.sockets()
    token = await register(program.url)
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(program.url)) for _ in range(CLIENTS)]
        await until(lambda: PAUSED in program.printed)
        # The first that came can be served meanwhile, each with an upstream connection of its own.
        upstream.paths = {b"/v1/hang": hang}
        asked = len(upstream.requests)
        for client in clients[:15]:
            client.write(request("/api/hang", token))
        await upstream.requested(asked + 15)
        assert program.descriptors() < LIMIT
        for client in clients[:15]:
            await client.close()
        last = [request(f"/api/{number}", token, "Connection: close") for number in range(15, CLIENTS)]
        answers = await asyncio.gather(*map(ask_last, clients[15:], last))
    assert [answer.status for answer in answers] == [200] * (CLIENTS - 15)
    assert {received.start_line.split(b" ")[1] for received in upstream.requests[asked + 15 :]} == {
        b"/v1/%d" % number for number in range(15, CLIENTS)
    }
    await until(lambda: program.sockets() == at_rest)
    await until(lambda: OVER in program.printed)
    assert program.printed.count(PAUSED) == program.printed.count(OVER) == 1
    assert f"that {LIMIT} descriptors allow" in program.printed
    assert "ulimit -n" in program.printed
    assert NO_DESCRIPTOR not in program.printed
    assert "Traceback" not in program.printed
    # The next time it says so again.
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(LIMIT):
            await stack.enter_async_context(connected(program.url))
        await until(lambda: program.printed.count(PAUSED) == 2)


async def test_every_listener_rests_and_goes_on(program: Program) -> None:
    urls = re.findall(r"http://127\.0\.0\.1:\d+(?=, )", program.printed)
    assert len(urls) == 2
    async with contextlib.AsyncExitStack() as stack:
        fill = [await stack.enter_async_context(connected(urls[0])) for _ in range(LIMIT)]
        await until(lambda: PAUSED in program.printed)
        other = await stack.enter_async_context(connected(urls[1]))
        other.write(request("/healthz"))
        assert (await fill[0].ask(request("/healthz"))).status == 200
        for client in fill:
            await client.close()
        assert (await other.answer()).status == 200
        assert (await fetch(urls[0], request("/healthz"))).status == 200


async def test_a_stop_does_not_wait_for_who_was_not_let_in(program: Program) -> None:
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(program.url)) for _ in range(LIMIT)]
        await until(lambda: PAUSED in program.printed)
        program.signal(signal.SIGTERM)
        assert await program.ended() == 0
        with pytest.raises(CUT_SHORT):
            await clients[-1].ask(request("/healthz"))
    assert "Traceback" not in program.printed


async def test_descriptors_that_others_take_only_make_clients_wait(program: Program) -> None:
    at_rest = program.sockets()
    async with connected(program.url) as first:
        assert (await first.ask(request("/healthz"))).status == 200
        await use_up(program, at_rest + 1)
        async with connected(program.url) as second, connected(program.url) as third:
            second.write(request("/healthz"))
            await until(lambda: PAUSED in program.printed)
            # One comes free, and is taken: the other still waits.
            for _ in range(3):
                assert (await first.ask(request("/healthz"))).status == 200
            await first.close()
            assert (await second.answer()).status == 200
            allow(program, LIMIT)
            assert (await third.ask(request("/healthz"))).status == 200
    await until(lambda: OVER in program.printed)
    assert program.printed.count(PAUSED) == program.printed.count(NO_DESCRIPTOR) == 1
    assert "Traceback" not in program.printed


async def test_no_descriptor_for_the_upstream_is_a_502_and_passes(upstream: Upstream, program: Program) -> None:
    at_rest = program.sockets()
    token = await register(program.url)
    async with connected(program.url) as client:
        assert (await client.ask(request("/healthz"))).status == 200
        await use_up(program, at_rest + 1)
        for number in range(3):
            refused = await client.ask(request("/api/x", token))
            assert (refused.status, refused["x-gateway-error"]) == (502, "upstream_unreachable")
            # What was not sent is not counted.
            assert refused["ratelimit"] == '"minute";r=9999;t=61', number
        assert upstream.connections == []
        allow(program, LIMIT)
        assert (await client.ask(request("/api/x", token))).status == 200
    assert re.search(f"WARNING.*cannot connect to target api.*{NO_DESCRIPTOR}.*ulimit -n", program.printed)
    assert "Traceback" not in program.printed


async def test_an_upstream_connection_that_is_there_is_used_without_a_descriptor(
    upstream: Upstream, program: Program
) -> None:
    upstream.default = answering(b"kept")
    at_rest = program.sockets()
    token = await register(program.url)
    async with connected(program.url) as client:
        assert (await client.ask(request("/api/x", token))).content == b"kept"
        await use_up(program, at_rest + 2)
        for _ in range(3):
            assert (await client.ask(request("/api/x", token))).content == b"kept"
    assert len(upstream.connections) == 1


async def test_serve_takes_all_the_descriptors_it_may_have_and_an_embedded_gateway_none(upstream: Upstream) -> None:
    for module, soft in zip(MODULES, (str(LIMIT * 2), str(LIMIT)), strict=True):
        ulimit = f"-S -n {LIMIT} && ulimit -H -n {LIMIT * 2}"
        async with gateway_process(module=module, ulimit=ulimit, TARGET_API_URL=upstream.url) as program:
            assert limits(program) == (soft, str(LIMIT * 2))
            async with contextlib.AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(connected(program.url)) for _ in range(LIMIT * 2)]
                await until(lambda: f"that {soft} descriptors allow" in program.printed)  # noqa: B023 - awaited here
                for client in clients:
                    client.reset()
            assert (await soon(fetch(program.url, request("/healthz")))).status == 200
