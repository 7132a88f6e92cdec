"""Slow and greedy clients against real sockets: each wait has an end, and hundreds of them take little memory."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from gateway import Config, Gateway
from tests.e2e import Client, connected, fetch, request
from tests.kit.process import Program, gateway_process
from tests.kit.upstream import Upstream, answering, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e import Answer

HEAD = b"GET /api/x HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
BAD_UPLOAD = b"POST /api/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer gw_stolen\r\n"
REGISTER = b"POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4096\r\n\r\n"
PACE_S = 0.005
"""Between two bytes of a slow client: some fifty of them fit into the shortest timeout here."""


# --- slow ------------------------------------------------------------------------------------------------------------


async def dribble(client: Client, first: bytes, again: bytes) -> tuple[Answer, int]:
    """Send byte by byte, without end, until there is an answer; return it, and how many bytes were sent by then."""
    client.write(first)
    answered = asyncio.ensure_future(client.answer())
    count = 0
    while not answered.done():
        client.write(again)
        count += 1
        await asyncio.sleep(PACE_S)
    return answered.result(), count


@pytest.mark.parametrize("first", [HEAD, HEAD[:3]], ids=["a field", "a method"])
async def test_single_bytes_buy_no_time_for_a_head(upstream: Upstream, first: bytes) -> None:
    config = Config(target_api_url=upstream.url, header_timeout="300ms", keepalive_timeout="1h", idle_timeout="1h")
    async with Gateway(config) as gateway, connected(gateway.url) as client:
        answer, count = await dribble(client, first, b"x")
        assert (answer.status, answer["x-gateway-error"], answer["connection"]) == (408, "request_timeout", "close")
        assert count > 10
        assert await client.at_end()
    assert upstream.connections == []


async def test_nor_for_the_second_head_of_a_connection(upstream: Upstream) -> None:
    config = Config(target_api_url=upstream.url, header_timeout="300ms", keepalive_timeout="1h", idle_timeout="1h")
    async with Gateway(config) as gateway, connected(gateway.url) as client:
        assert (await client.ask(request("/api/x", gateway.issue_token()))).status == 200
        answer, _ = await dribble(client, HEAD, b"x")
        assert answer.status == 408
        assert await client.at_end()
    assert len(upstream.requests) == 1


async def test_nor_for_the_body_that_an_endpoint_takes(upstream: Upstream) -> None:
    config = Config(target_api_url=upstream.url, header_timeout="300ms", keepalive_timeout="1h", idle_timeout="1h")
    async with Gateway(config) as gateway, connected(gateway.url) as client:
        answer, count = await dribble(client, REGISTER, b" ")
        assert (answer.status, answer["x-gateway-error"]) == (408, "request_timeout")
        assert count > 10
        assert await client.at_end()


async def test_bytes_of_a_body_do_buy_time(upstream: Upstream) -> None:
    config = Config(target_api_url=upstream.url, header_timeout="100ms", keepalive_timeout="100ms", idle_timeout="2s")
    upstream.default = answering(b"took it")
    async with Gateway(config) as gateway, connected(gateway.url) as client:
        client.write(request("/api/x", gateway.issue_token(), "Content-Length: 150", method="POST"))
        for _ in range(150):
            client.write(b"x")
            await asyncio.sleep(PACE_S)
        answer = await client.answer()
        assert (answer.status, answer.content) == (200, b"took it")
        # And then the time of an idle connection counts.
        assert await client.at_end()


@pytest.mark.parametrize("framing", ["Content-Length: 3000000", "Transfer-Encoding: chunked"])
async def test_a_body_beyond_max_body_is_refused_while_it_comes(upstream: Upstream, framing: str) -> None:
    config = Config(target_api_url=upstream.url, max_body="1MB")
    async with Gateway(config) as gateway, connected(gateway.url) as client:
        client.write(request("/api/x", gateway.issue_token(), framing, method="POST"))
        for _ in range(30):
            client.write(b"186a0\r\n" + b"x" * 100_000 + b"\r\n")
        answer = await client.answer()
        assert (answer.status, answer["x-gateway-error"], answer["connection"]) == (413, "body_too_large", "close")
        assert await ends(client)
    assert sum(len(received.raw_body) for received in upstream.requests) <= 1_000_000


# --- greedy ----------------------------------------------------------------------------------------------------------

CLIENTS = 200
MIB = 1024 * 1024
GROWTH_BYTES = 16 * MIB
"""80 kB for each of the clients: their heads, the allocator's habits, and what little else there is."""
ENDLESS_BYTES = 128 * MIB
"""More than is dropped behind an answer and the kernel's buffers on the way hold."""
UPLOADERS = 5
"""Of each, 64 MiB are dropped behind the answer, in place of one."""

HELD: dict[str, bytes] = {
    "a head": HEAD + b"x" * 16_000,
    "a head of many lines": b"GET /api/x HTTP/1.1\r\nHost: localhost\r\n" + b"X-Line: x\r\n" * 90,
    "a body for an endpoint": REGISTER + b" " * 4000,
}
"""The most that a client can have the gateway wait for before it is known."""

ENDLESS: dict[str, tuple[bytes, bytes, int]] = {
    "a head": (HEAD, b"x" * 10_000, 431),
    "lines": (HEAD + b"x\r\n", b"X-Line: x\r\n" * 1000, 431),
    "a body behind a bad token": (BAD_UPLOAD + b"Content-Length: 999999999999\r\n\r\n", b"x" * 10_000, 401),
    "chunks behind a bad token": (
        BAD_UPLOAD + b"Transfer-Encoding: chunked\r\n\r\n",
        (b"40\r\n" + b"x" * 64 + b"\r\n") * 150,
        401,
    ),
    "no HTTP": (b"", b"to be or not to be, " * 500, 414),
}


@pytest.fixture
async def program(upstream: Upstream) -> AsyncIterator[Program]:
    async with gateway_process(TARGET_API_URL=upstream.url, HEADER_TIMEOUT="1h", KEEPALIVE_TIMEOUT="1h") as running:
        yield running


async def ends(client: Client) -> bool:
    """Read up to the end, be it in good order or not."""
    with contextlib.suppress(ConnectionError):
        await soon(client.reader.read())
    return True


async def insist(url: str, case: str) -> None:
    """Send without end until the gateway closes, and only then read what it said."""
    first, again, status = ENDLESS[case]
    loop = asyncio.get_running_loop()
    address = urlsplit(url)
    with socket.socket() as sock:
        sock.setblocking(False)
        await soon(loop.sock_connect(sock, (address.hostname, address.port)))
        sent_bytes = 0
        with contextlib.suppress(ConnectionError):
            await soon(loop.sock_sendall(sock, first))
            while sent_bytes < ENDLESS_BYTES:
                await soon(loop.sock_sendall(sock, again))
                sent_bytes += len(again)
        assert sent_bytes < ENDLESS_BYTES, "the gateway took it all"
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := await soon(loop.sock_recv(sock, 65536)):
                answer += piece
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.endswith(b"}")


@pytest.mark.parametrize("case", HELD)
async def test_hundreds_who_let_the_gateway_wait_take_little_of_it(program: Program, case: str) -> None:
    assert (await fetch(program.url, request("/healthz"))).status == 200
    before = program.memory_bytes()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(CLIENTS):
            client = await stack.enter_async_context(connected(program.url))
            client.write(HELD[case])
            await soon(client.writer.drain())
        # Answered behind all that: the loop has read it by then, and still has time for others.
        for _ in range(5):
            assert (await fetch(program.url, request("/healthz"))).status == 200
        assert program.descriptors() > CLIENTS
        assert program.memory_bytes() - before < GROWTH_BYTES


@pytest.mark.parametrize("case", ENDLESS)
async def test_many_who_send_without_end_are_answered_and_closed(
    upstream: Upstream, program: Program, case: str
) -> None:
    await insist(program.url, case)
    before, descriptors = program.memory_bytes("VmHWM"), program.descriptors()
    count = UPLOADERS if "behind a bad token" in case else CLIENTS
    await asyncio.gather(*(insist(program.url, case) for _ in range(count)))
    assert program.memory_bytes("VmHWM") - before < GROWTH_BYTES
    assert program.descriptors() <= descriptors
    assert upstream.connections == []
    assert (await fetch(program.url, request("/healthz"))).status == 200
    assert "Traceback" not in program.printed
