"""What only real sockets show of a client that sends ahead, breaks unread, or comes as the gateway closes."""

from __future__ import annotations

import asyncio
import select
import socket
import struct

import pytest

from gateway import Config, Gateway
from tests.e2e import connected, request
from tests.kit.upstream import TIMEOUT_S, Call, Upstream, answering, soon

PIECE = b"x" * 1_000_000
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
QUIET_TURNS = 500
"""Turns of the loop without a byte taken, after which all buffers on the way are full."""


def connect(gateway: Gateway) -> socket.socket:
    """Connect without a turn of the loop; the kernel accepts."""
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    sock = socket.create_connection((host, int(port)))
    sock.setblocking(False)
    return sock


# --- an upload that nobody reads -------------------------------------------------------------------------------------


async def fill(sock: socket.socket) -> int:
    """Send until nothing more is taken; return how much was."""
    sent_bytes = quiet_turns = 0
    async with asyncio.timeout(TIMEOUT_S):
        while quiet_turns < QUIET_TURNS:
            try:
                sent_bytes += sock.send(PIECE)
                quiet_turns = 0
            except BlockingIOError:
                quiet_turns += 1
            await asyncio.sleep(0)
    return sent_bytes


async def broken(sock: socket.socket) -> bool:
    """Wait until a connection breaks, without reading what came on it."""
    poll = select.poll()
    poll.register(sock, select.POLLHUP | select.POLLERR)
    return bool(await asyncio.get_running_loop().run_in_executor(None, poll.poll, TIMEOUT_S * 1000))


@pytest.mark.parametrize("first", [b"", b"x" * 200_000])
async def test_a_client_that_resets_while_nothing_is_read_of_it_takes_its_upstream_along(first: bytes) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        async with Gateway(Config(target_api_url=url)) as gateway:
            with connect(gateway) as client:
                upload = request("/api/x", gateway.issue_token(), "Content-Length: 1000000000000", method="POST")
                await soon(loop.sock_sendall(client, upload + first))
                upstream, _ = await soon(loop.sock_accept(listening))
                await fill(client)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            with upstream:
                assert await broken(upstream)


# --- requests ahead of their answers ---------------------------------------------------------------------------------


async def test_requests_sent_ahead_are_bounded_while_their_answers_are_not_read(
    upstream: Upstream,
) -> None:
    async with Gateway(Config(target_api_url=upstream.url)) as gateway:
        with connect(gateway) as client:
            health = request("/healthz")
            await soon(asyncio.get_running_loop().sock_sendall(client, health))
            sent_bytes = quiet_turns = offset = 0
            many = health * 30_000
            async with asyncio.timeout(TIMEOUT_S):
                while quiet_turns < QUIET_TURNS:
                    try:
                        size = client.send(many[offset:])
                        sent_bytes, offset, quiet_turns = sent_bytes + size, (offset + size) % len(many), 0
                    except BlockingIOError:
                        quiet_turns += 1
                    await asyncio.sleep(0)
            # The kernel's buffers, and the gateway's bounds: it came to rest, or this would not have ended.
            assert sent_bytes < 64_000_000


async def test_requests_sent_far_ahead_are_all_answered_in_order(upstream: Upstream) -> None:
    async def numbered(call: Call) -> None:
        await answering(call.received.start_line.split(b" ")[1])(call)

    upstream.default = numbered
    count = 2000
    config = Config(target_api_url=upstream.url, rate_limit="100000", upstream_idle="1h")
    async with Gateway(config) as gateway, connected(gateway.url) as client:
        token = gateway.issue_token()
        fields = "X-Long: " + "x" * 300
        ahead = [request(f"/api/{number}", token, fields) + request("/healthz") for number in range(count)]
        client.write(b"".join(ahead))
        for number in range(count):
            answer = await client.answer()
            assert (answer.status, answer.content) == (200, b"/v1/%d" % number)
            assert (await client.answer()).content == b'{"status": "ok"}\n'
        assert (await client.ask(request("/api/last", token))).content == b"/v1/last"
    assert [int(received.start_line.split(b" ")[1][4:]) for received in upstream.requests[:-1]] == list(range(count))
    assert len(upstream.connections) == 1


# --- the end of the gateway ------------------------------------------------------------------------------------------


async def ended(client: socket.socket) -> bool:
    """Whether a client sees the end of its connection, and nothing before it."""
    try:
        return await soon(asyncio.get_running_loop().sock_recv(client, 1000)) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("turns", range(7))
@pytest.mark.parametrize("sends", [False, True])
async def test_a_connection_accepted_as_the_gateway_closes_does_not_hold_it(
    upstream: Upstream, turns: int, *, sends: bool
) -> None:
    gateway = Gateway(Config(target_api_url=upstream.url))
    await gateway.start()
    token = gateway.issue_token()
    with connect(gateway) as client:
        if sends:
            client.send(request("/api/x", token))
        for _ in range(turns):
            await asyncio.sleep(0)
        await soon(gateway.close())
        assert await ended(client)


@pytest.mark.parametrize("turns", range(4))
async def test_a_connection_accepted_as_the_gateway_drains_does_not_hold_it(upstream: Upstream, turns: int) -> None:
    gateway = Gateway(Config(target_api_url=upstream.url, drain_timeout="10s"))
    await gateway.start()
    with connect(gateway) as client:
        for _ in range(turns):
            await asyncio.sleep(0)
        assert await soon(gateway.drain())
        await soon(gateway.close())
        assert await ended(client)
