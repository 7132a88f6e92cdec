"""Connections: requests in a row, ahead of their answers, in pieces; who ends one, and what that ends."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from gateway import Config, Gateway
from tests.e2e import CUT_SHORT, Client, connected, fetch, request
from tests.e2e.transparency import fields, is_in_step, passed_up, read_answer, sending
from tests.kit.upstream import Call, answering, chunk, echo, head, in_chunks, soon

if TYPE_CHECKING:
    from tests.kit.upstream import Upstream

CHUNKED = "Transfer-Encoding: chunked"
VERSIONS = pytest.mark.parametrize("version", ["1.0", "1.1"])

HINTS = head("103 Early Hints", "Link: </a>")

# --- ahead of the answers --------------------------------------------------------------------------------------------

# Method, what it is sent as besides, the handler of its path, and what comes back.
IN_A_ROW: dict[str, tuple[str, tuple[str, ...], bytes, Any, tuple[int, bytes]]] = {
    "get": ("GET", (), b"", answering(b"one"), (200, b"one")),
    "head": ("HEAD", (), b"", answering(b"12345"), (200, b"")),
    "post": ("POST", ("Content-Length: 3",), b"GET", echo, (200, b"GET")),
    "chunks": ("PUT", (CHUNKED,), chunk(b"a") + chunk(b"bc") + chunk(b""), echo, (200, b"abc")),
    "none": ("DELETE", (), b"", answering(b"", "204 No Content"), (204, b"")),
    "same": ("GET", ('If-None-Match: "1"',), b"", sending(head("304 Not Modified", 'ETag: "1"')), (304, b"")),
    "stream": ("GET", (), b"", in_chunks(b"x" * 1000, b"y"), (200, b"x" * 1000 + b"y")),
    "options": ("OPTIONS", ("Content-Length: 0",), b"", answering(b""), (200, b"")),
    "hints": ("GET", (), b"", sending(HINTS + head("200 OK", "Content-Length: 1") + b"h"), (200, b"h")),
    "last": ("GET", ("Connection: close",), b"", answering(b"bye"), (200, b"bye")),
}  # fmt: skip


def in_a_row(upstream: Upstream, token: str) -> bytes:
    """Return all of those requests, and let the upstream answer each as it should."""
    data = b""
    for path, (method, lines, body, handler, _) in IN_A_ROW.items():
        upstream.paths[f"/v1/{path}".encode()] = handler
        data += request(f"/api/{path}", token, *lines, method=method) + body
    return data


async def are_answered(upstream: Upstream, client: Client) -> None:
    """Assert that they are answered in their order, and that the upstream had them in it."""
    for method, _, _, _, expected in IN_A_ROW.values():
        answer = await read_answer(client, method)
        assert (answer.status, answer.body) == expected
    assert await client.at_end()
    asked = [f"{method} /v1/{path} HTTP/1.1".encode() for path, (method, *_) in IN_A_ROW.items()]
    assert [received.start_line for received in upstream.requests] == asked
    for received, (_, lines, body, _, _) in zip(upstream.requests, IN_A_ROW.values(), strict=True):
        assert received.raw_body == body
        assert passed_up(received) == [line for line in fields(*lines) if line[0] != b"Connection"]
    assert len(upstream.connections) == 1


@pytest.mark.parametrize("cut", [None, 1, 13, 150])
async def test_requests_sent_ahead_are_answered_in_order_however_they_are_cut(
    upstream: Upstream, client: Client, token: str, cut: int | None
) -> None:
    data = in_a_row(upstream, token)
    for at in range(0, len(data), cut or len(data)):
        client.write(data[at : at + (cut or len(data))])
        await client.writer.drain()
    await are_answered(upstream, client)


async def test_requests_sent_ahead_of_a_half_close_are_all_answered(
    upstream: Upstream, client: Client, token: str
) -> None:
    client.write(in_a_row(upstream, token))
    client.writer.write_eof()
    await are_answered(upstream, client)


async def test_what_comes_behind_the_last_request_is_not_answered(
    upstream: Upstream, client: Client, token: str
) -> None:
    client.write(in_a_row(upstream, token) + request("/api/late", token))
    await are_answered(upstream, client)


@pytest.mark.parametrize("sent", [b"\r\n", b"GET /api/next HTTP/1.1\r\nHost: localhost\r\n\r\n"])
async def test_what_comes_as_the_last_request_is_answered_does_not_cost_the_answer(
    upstream: Upstream, client: Client, token: str, sent: bytes
) -> None:
    async def as_more_comes(call: Call) -> None:
        # Both are there when the gateway looks next, the answer first.
        call.write(head("200 OK", "Content-Length: 4") + b"last")
        os.write(client.writer.get_extra_info("socket").fileno(), sent)

    upstream.default = as_more_comes
    client.write(request("/api/x", token, "Connection: close"))
    assert (await read_answer(client)).body == b"last"
    assert await client.at_end()  # and no reset
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    "second", [b"GET /api/x HTTP/1.1\r\nHost : h\r\n\r\n", b"\x16\x03\x01\x00\x00\r\n\r\n", b"GET\r\n\r\n"]
)
async def test_a_second_request_that_is_none_leaves_the_first_its_answer(
    upstream: Upstream, client: Client, token: str, second: bytes
) -> None:
    upstream.default = echo
    client.write(request("/api/x", token, method="POST", body=b"first") + second + request("/api/third", token))
    assert (await read_answer(client)).body == b"first"
    refusal = await read_answer(client)
    assert (refusal.status, refusal.value(b"connection")) == (400, b"close")
    assert await client.at_end()
    assert len(upstream.requests) == 1


async def test_the_second_does_not_go_upstream_before_the_first_is_answered(
    upstream: Upstream, gateway: Gateway, client: Client, token: str
) -> None:
    release = asyncio.Event()

    async def late(call: Call) -> None:
        await call.unless_gone(release.wait())
        await answering(b"first")(call)

    upstream.paths = {b"/v1/first": late, b"/v1/second": answering(b"second")}
    client.write(request("/api/first", token) + request("/api/second", token))
    await upstream.requested()
    for _ in range(3):  # the gateway has had its turn, and has read all
        assert (await fetch(gateway.url, request("/healthz"))).status == 200
    assert len(upstream.requests) == 1
    release.set()
    assert [(await read_answer(client)).body for _ in range(2)] == [b"first", b"second"]


async def test_empty_lines_before_a_request_are_ignored(upstream: Upstream, client: Client, token: str) -> None:
    for lines in (1, 2, 8):
        client.write(b"\r\n" * lines + request("/api/x", token))
        assert (await read_answer(client)).status == 200
    await is_in_step(upstream, client, token)


# --- kept, or not ----------------------------------------------------------------------------------------------------


@VERSIONS
async def test_many_requests_take_one_connection_on_each_side(
    upstream: Upstream, client: Client, token: str, version: str
) -> None:
    lines = ("Connection: Keep-Alive", "Keep-Alive: timeout=5") if version == "1.0" else ()
    for number in range(100):
        upstream.default = answering(b"%d" % number)
        client.write(request(f"/api/{number}", token, *lines, version=version))
        answer = await read_answer(client)
        assert answer.body == b"%d" % number
        assert answer.value(b"connection") == (b"keep-alive" if version == "1.0" else None)
    assert (len(upstream.requests), len(upstream.connections)) == (100, 1)


ENDS = {
    "close": ("1.1", ["Connection: close"]),
    "close in another case": ("1.1", ["connection: Close"]),
    "close among others": ("1.1", ["Connection: X-Mine, close", "X-Mine: 1"]),
    "close in a second line": ("1.1", ["Connection: keep-alive", "Connection: close"]),
    "1.0": ("1.0", []),
    "1.0 that says close": ("1.0", ["Connection: close"]),
    "1.0 that says both": ("1.0", ["Connection: keep-alive, close"]),
}


@pytest.mark.parametrize("case", ENDS)
async def test_a_client_that_will_not_go_on_is_told_so_and_closed(
    upstream: Upstream, gateway: Gateway, client: Client, token: str, case: str
) -> None:
    version, lines = ENDS[case]
    client.write(request("/api/x", token, *lines, version=version))
    answer = await read_answer(client)
    assert (answer.body, answer.value(b"connection")) == (b"ok", b"close")
    assert await client.at_end()
    async with connected(gateway.url) as other:
        await is_in_step(upstream, other, token)  # the upstream's connection stays


UPSTREAM_ENDS = {
    "close": head("200 OK", "Connection: close", "Content-Length: 2") + b"ok",
    "close and chunks": head("200 OK", "Connection: Close", CHUNKED) + chunk(b"ok") + chunk(b""),
    "1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
}


@pytest.mark.parametrize("case", UPSTREAM_ENDS)
async def test_an_upstream_that_will_not_go_on_ends_no_clients_connection(
    upstream: Upstream, client: Client, token: str, case: str
) -> None:
    upstream.default = sending(UPSTREAM_ENDS[case])
    client.write(request("/api/x", token))
    answer = await read_answer(client)
    assert (answer.body, answer.value(b"connection")) == (b"ok", None)
    await soon(upstream.connections[0].ended.wait())
    await is_in_step(upstream, client, token, connections=2)


async def test_a_1_0_upstream_may_keep_its_connection(upstream: Upstream, client: Client, token: str) -> None:
    upstream.default = sending(b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok")
    client.write(request("/api/x", token))
    assert (await read_answer(client)).start == b"HTTP/1.1 200 OK"
    await is_in_step(upstream, client, token)


@VERSIONS
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_client_that_ends_its_side_behind_a_body_gets_its_answer(
    upstream: Upstream, client: Client, token: str, version: str, framing: str
) -> None:
    upstream.default = echo
    if framing == "length" or version == "1.0":
        client.write(request("/api/x", token, method="POST", body=b"body", version=version))
    else:
        client.write(request("/api/x", token, CHUNKED, method="POST") + chunk(b"body") + chunk(b""))
    client.writer.write_eof()
    answer = await read_answer(client)
    assert (answer.status, answer.body) == (200, b"body")
    assert await client.at_end()


# --- in time ---------------------------------------------------------------------------------------------------------

SLOW = {
    "half a line": b"GET /ap",
    "half a head": b"GET /api/x HTTP/1.1\r\nHost: gateway\r\nAccept:",
    "a head but for its end": b"GET /api/x HTTP/1.1\r\nHost: gateway\r\n",
}


@pytest.mark.parametrize("case", SLOW)
async def test_a_head_that_does_not_end_is_a_408(upstream: Upstream, case: str) -> None:
    config = Config(target_api_url=upstream.url, header_timeout="100ms")
    async with Gateway(config) as gateway, connected(gateway.url) as client:
        client.write(SLOW[case])
        answer = await read_answer(client)
        assert (answer.status, answer.value(b"connection")) == (408, b"close")
        assert await client.at_end()
    assert upstream.connections == []


@pytest.mark.parametrize("framing", ["Content-Length: 10", CHUNKED])
async def test_a_body_that_stalls_is_a_408_and_ends_both(upstream: Upstream, framing: str) -> None:
    gone = asyncio.Event()

    async def reading(call: Call) -> None:
        with pytest.raises((*CUT_SHORT, ValueError)):
            async for _ in call.pieces():
                pass
        gone.set()
        call.keep_alive = False

    upstream.default = reading
    config = Config(target_api_url=upstream.url, idle_timeout="100ms")
    async with Gateway(config) as gateway, connected(gateway.url) as client:
        client.write(request("/api/x", gateway.issue_token(), framing, method="POST") + b"4\r\n")
        answer = await read_answer(client)
        assert (answer.status, answer.value(b"x-gateway-error")) == (408, b"request_timeout")
        assert await client.at_end()
        await soon(gone.wait())


async def test_an_idle_connection_ends_without_a_word(upstream: Upstream) -> None:
    config = Config(target_api_url=upstream.url, keepalive_timeout="100ms")
    async with Gateway(config) as gateway:
        async with connected(gateway.url) as unused:
            assert await unused.at_end()
        async with connected(gateway.url) as used:
            used.write(request("/api/x", gateway.issue_token()))
            assert (await read_answer(used)).status == 200
            assert await used.at_end()
