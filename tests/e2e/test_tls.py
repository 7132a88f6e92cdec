"""An upstream that speaks TLS: verified before a byte of a request leaves, and left as fast as one that does not."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest
import trustme

from gateway import Config, Gateway
from tests.e2e import CUT_SHORT, KEY, PatternCheck, connected, fetch, request
from tests.kit.tls import deaf_server, pem_file, server_side
from tests.kit.upstream import (
    PIECE_BYTES,
    Call,
    Handler,
    Upstream,
    answering,
    broken_off,
    chunk,
    echo,
    events,
    generated,
    hang,
    head,
    pattern,
    soon,
    until_close,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def upstream(ca: trustme.CA) -> AsyncIterator[Upstream]:
    async with Upstream(server_side(ca, "localhost"), "localhost") as running:
        yield running


@pytest.fixture
async def gateway(upstream: Upstream, ca_file: str) -> AsyncIterator[Gateway]:
    config = Config(target_api_url=upstream.url, target_api_key=KEY, target_ca_file=ca_file, rate_limit="10000")
    async with Gateway(config) as running:
        yield running


async def test_a_verified_upstream_gets_the_request_and_its_own_name(upstream: Upstream, gateway: Gateway) -> None:
    upstream.default = echo
    async with connected(gateway.url) as client:
        for _ in range(3):
            post = request("/api/x", gateway.issue_token(), method="POST", body=pattern(0, PIECE_BYTES))
            answer = await client.ask(post)
            assert (answer.status, answer.content) == (200, pattern(0, PIECE_BYTES))
    (connection,) = upstream.connections
    assert connection.sni == "localhost"
    for received in upstream.requests:
        assert received.field(b"host") == f"localhost:{upstream.port}".encode()
        assert received.field(b"authorization") == f"Bearer {KEY}".encode()


async def test_an_address_is_verified_as_one(ca: trustme.CA, ca_file: str) -> None:
    async with (
        Upstream(server_side(ca, "127.0.0.1")) as upstream,
        Gateway(Config(target_api_url=upstream.url, target_ca_file=ca_file)) as gateway,
    ):
        assert (await fetch(gateway.url, request("/api/x", gateway.issue_token()))).status == 200
        # RFC 6066 §3: no literal addresses.
        assert upstream.connections[0].sni is None


@pytest.mark.parametrize("wrong", ["host", "ca", "system roots"])
async def test_an_upstream_that_cannot_be_verified_gets_nothing(
    wrong: str, ca: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    trusted: str | None = ca_file
    names = ["localhost"]
    if wrong == "host":
        names = ["api.example.com", "*.localhost", "127.0.0.2"]
    elif wrong == "ca":
        trusted = pem_file(trustme.CA(), tmp_path)
    elif wrong == "system roots":
        trusted = None
    async with Upstream(server_side(ca, *names), "localhost") as upstream:
        config = Config(target_api_url=upstream.url, target_api_key=KEY, target_ca_file=trusted)
        async with Gateway(config) as gateway, connected(gateway.url) as client:
            for _ in range(2):
                answer = await client.ask(request("/api/x", gateway.issue_token(), method="POST", body=b"{}"))
                assert (answer.status, answer["x-gateway-error"]) == (502, "upstream_unreachable")
                assert KEY not in str(answer)
        assert upstream.requests == []


async def test_an_upstream_without_tls_gets_nothing_but_a_greeting() -> None:
    got: list[bytes] = []

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.read(65536))
        writer.write(head("400 Bad Request", "Content-Length: 0"))
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        config = Config(target_api_url=f"https://127.0.0.1:{port}", target_api_key=KEY)
        async with Gateway(config) as gateway:
            answer = await fetch(gateway.url, request("/api/x", gateway.issue_token()))
    assert (answer.status, answer["x-gateway-error"]) == (502, "upstream_unreachable")
    assert len(got) == 1
    assert KEY.encode() not in got[0]


async def test_events_leave_as_they_arrive(upstream: Upstream, gateway: Gateway) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    upstream.default = events(queue)
    async with connected(gateway.url) as client:
        client.write(request("/api/stream", gateway.issue_token()))
        assert (await client.final_head()).status == 200
        for number in range(20):
            queue.put_nowait(b"%d" % number)
            assert await client.chunk() == b"data: %d\n\n" % number
        queue.put_nowait(b"")
        assert await client.chunk() == b""


async def test_a_large_answer_is_byte_exact(upstream: Upstream, gateway: Gateway) -> None:
    size = 8 * 1024 * 1024 + 1
    upstream.default = generated(size)
    async with connected(gateway.url) as client:
        client.write(request("/api/x", gateway.issue_token()))
        assert (await client.final_head())["content-length"] == str(size)
        check = PatternCheck()
        while check.size < size:
            check.feed(await soon(client.reader.read(PIECE_BYTES)))


async def test_an_answer_until_close_is_whole_when_tls_says_so(upstream: Upstream, gateway: Gateway) -> None:
    upstream.default = until_close(pattern(0, 100_000))
    answer = await fetch(gateway.url, request("/api/x", gateway.issue_token()))
    assert (answer.status, answer.content) == (200, pattern(0, 100_000))


@pytest.mark.parametrize("by", ["FIN", "reset"])
@pytest.mark.parametrize("framing", ["Connection: close", "Transfer-Encoding: chunked", "Content-Length: 1000"])
async def test_an_answer_cut_below_tls_never_looks_whole(
    upstream: Upstream, gateway: Gateway, framing: str, by: str
) -> None:
    """Without close_notify, anybody on the way could have cut it (RFC 8446 §6.1)."""
    cut = asyncio.Event()

    async def cut_later(call: Call) -> None:
        call.write(head("200 OK", framing) + (chunk(b"the first half") if "chunked" in framing else b"the first half"))
        await call.unless_gone(cut.wait())
        if by == "FIN":
            with socket.socket(fileno=os.dup(call.writer.get_extra_info("socket").fileno())) as same:
                same.shutdown(socket.SHUT_WR)
            await call.until_gone()
        else:
            call.reset()

    upstream.default = cut_later
    async with connected(gateway.url) as client:
        client.write(request("/api/x", gateway.issue_token()))
        assert (await client.final_head()).status == 200
        await soon(client.reader.readuntil(b"half"))
        cut.set()
        with pytest.raises(ConnectionError):  # an end in good order would be the answer's, where its end is
            await soon(client.reader.read())


@pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked", "Content-Length: 1000"])
async def test_an_answer_that_ends_too_early_in_good_order_never_looks_whole(
    upstream: Upstream, gateway: Gateway, framing: str
) -> None:
    upstream.default = broken_off(head("200 OK", framing) + chunk(b"x" * 500))
    with pytest.raises(CUT_SHORT):
        await fetch(gateway.url, request("/api/x", gateway.issue_token()))


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("phase", ["waiting", "streaming", "flooded"])
async def test_a_client_that_hangs_up_ends_its_upstream_connection_at_once(
    upstream: Upstream, gateway: Gateway, phase: str, how: str
) -> None:
    """At once: uvloop's `close()` would go on reading for up to 30 s, longer than `soon` waits."""
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    handlers: dict[str, Handler] = {"waiting": hang, "streaming": events(queue), "flooded": generated(10**12)}
    upstream.default = handlers[phase]
    async with connected(gateway.url) as client:
        client.write(request("/api/x", gateway.issue_token()))
        await upstream.requested()
        if phase != "waiting":
            await client.final_head()
        if how == "reset":
            client.reset()
        else:
            await client.close()
        queue.put_nowait(b"one more")
        await soon(upstream.connections[0].ended.wait())


async def test_an_upstream_that_does_not_answer_the_end_of_tls_is_left_all_the_same(
    ca: trustme.CA, ca_file: str
) -> None:
    """TLS asks for a farewell from both sides; this upstream, busy generating, says none."""
    async with deaf_server(ca) as deaf:
        config = Config(target_api_url=deaf.url, target_ca_file=ca_file)
        async with Gateway(config) as gateway, connected(gateway.url) as client:
            client.write(request("/api/x", gateway.issue_token()))
            await soon(deaf.asked.wait())
            await client.close()
            await soon(deaf.left.wait())


async def test_connections_are_kept_and_a_dead_one_is_not_used(upstream: Upstream, gateway: Gateway) -> None:
    token = gateway.issue_token()
    async with connected(gateway.url) as client:
        for _ in range(3):
            assert (await client.ask(request("/api/x", token))).status == 200
        assert len(upstream.connections) == 1

        async def closing(call: Call) -> None:
            await answering(b"last")(call)
            call.keep_alive = False

        upstream.default = closing
        assert (await client.ask(request("/api/x", token))).content == b"last"
        await soon(upstream.connections[0].closed.wait())
        upstream.default = answering(b"new")
        assert (await client.ask(request("/api/x", token, method="POST", body=b"{}"))).content == b"new"
    assert len(upstream.connections) == 2
