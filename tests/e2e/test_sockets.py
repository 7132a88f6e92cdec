"""An embedded gateway between a real client and a real upstream, on asyncio's loop and on uvloop's."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import select
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from gateway import Config, Gateway
from gateway.proxy.client import ClientConnection
from tests.e2e import CUT_SHORT, KEY, Client, PatternCheck, connected, fetch, request
from tests.kit.upstream import (
    PIECE_BYTES,
    TIMEOUT_S,
    Call,
    Upstream,
    answering,
    broken_off,
    chunk,
    echo,
    events,
    generated,
    hang,
    head,
    in_chunks,
    pattern,
    soon,
    until_close,
)

if TYPE_CHECKING:
    from tests.kit.upstream import Handler


# --- one request ---------------------------------------------------------------------------------------------------


async def test_a_request_goes_through_with_the_key_swapped(upstream: Upstream, client: Client, token: str) -> None:
    upstream.default = answering(b'{"id": 1}', "201 Created", "Content-Type: application/json", "X-RateLimit-Limit: 9")
    answer = await client.ask(request("/api/things%2F1?a=b;c&&%7A", token, method="POST", body=b"content"))
    assert (answer.status, answer.content) == (201, b'{"id": 1}')
    assert (answer["content-type"], answer["x-ratelimit-limit"]) == ("application/json", "9")
    assert answer["ratelimit-policy"] == '"minute";q=10000;w=60'
    assert answer["ratelimit"].startswith('"minute";r=9999;t=')
    assert answer["server-timing"].startswith("gateway;dur=")
    assert KEY not in str(answer)
    (received,) = upstream.requests
    assert received.start_line == b"POST /v1/things%2F1?a=b;c&&%7A HTTP/1.1"
    assert received.raw_body == b"content"
    assert dict(received.fields) == {
        b"host": f"127.0.0.1:{upstream.port}".encode(),
        b"authorization": f"Bearer {KEY}".encode(),
        b"content-length": b"7",
    }
    assert token.encode() not in received.head


async def test_a_request_without_a_good_token_goes_nowhere(upstream: Upstream, gateway: Gateway, token: str) -> None:
    tampered = token[:-1] + ("A" if token[-1] != "A" else "B")
    for sent in (None, "made-up", tampered):
        answer = await fetch(gateway.url, request("/api/x", sent))
        assert answer.status == 401
        assert answer["www-authenticate"].startswith("Bearer ")
        assert json.loads(answer.content)["error"]["type"] == "authentication_error"
    assert upstream.connections == []


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_answers_arrive_whole_in_each_framing(
    upstream: Upstream, gateway: Gateway, client: Client, token: str, framing: str
) -> None:
    content = pattern(0, PIECE_BYTES)
    handlers = {
        "length": answering(content),
        "chunked": in_chunks(content[:1], content[1:1000], content[1000:]),
        "close": until_close(content),
    }
    upstream.default = handlers[framing]
    answer = await client.ask(request("/api/x", token))
    assert (answer.status, answer.content) == (200, content)
    if framing == "close":
        assert await client.at_end()
    else:
        assert (await client.ask(request("/api/x", token))).content == content
    old = await fetch(gateway.url, request("/api/x", token, version="1.0"))
    assert (old.status, old.content) == (200, content)
    assert "transfer-encoding" not in old


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_uploads_arrive_whole_in_each_framing(
    upstream: Upstream, client: Client, token: str, framing: str
) -> None:
    upstream.default = echo
    content = pattern(0, PIECE_BYTES)
    if framing == "length":
        client.write(request("/api/x", token, method="PUT", body=content))
    else:
        client.write(request("/api/x", token, "Transfer-Encoding: chunked", method="PUT"))
        for start, end in ((0, 1), (1, 70_000), (70_000, PIECE_BYTES)):
            client.write(chunk(content[start:end]))
        client.write(chunk(b""))
    answer = await client.answer()
    assert (answer.status, answer.content) == (200, content)
    (received,) = upstream.requests
    framed_by = b"content-length" if framing == "length" else b"transfer-encoding"
    assert [name for name, _ in received.fields if name in {b"content-length", b"transfer-encoding"}] == [framed_by]


async def test_a_large_answer_through_both_buffers_is_byte_exact(
    upstream: Upstream, client: Client, token: str
) -> None:
    size = 24 * 1024 * 1024 + 1
    upstream.default = generated(size)
    client.write(request("/api/x", token))
    assert (await client.final_head())["content-length"] == str(size)
    check = PatternCheck()
    while check.size < size:
        check.feed(await soon(client.reader.read(PIECE_BYTES)))
    assert (await client.ask(request("/healthz"))).status == 200


async def test_answers_without_content_leave_the_connection_in_step(
    upstream: Upstream, client: Client, token: str
) -> None:
    upstream.paths = {
        b"/v1/204": answering(b"", "204 No Content"),
        b"/v1/304": broken_off(head("304 Not Modified", "Content-Length: 500", 'ETag: "1"')),
        b"/v1/text": answering(b"text"),
    }
    assert (await client.ask(request("/api/204", token))).status == 204
    assert (await client.ask(request("/api/304", token)))["etag"] == '"1"'
    answer = await client.ask(request("/api/text", token, method="HEAD"))
    assert (answer.status, answer["content-length"], answer.content) == (200, "4", b"")
    assert (await client.ask(request("/api/text", token))).content == b"text"


async def test_interim_answers_are_passed_on(upstream: Upstream, client: Client, token: str) -> None:
    async def reluctant(call: Call) -> None:
        call.write(head("103 Early Hints", "Link: </a>; rel=preload") + head("100 Continue"))
        await answering(b"after all")(call)

    upstream.default = reluctant
    client.write(request("/api/x", token, "Expect: 100-continue", "Content-Length: 4", method="POST"))
    hints, go_on = await client.head(), await client.head()
    assert (hints.status, hints["link"], go_on.status) == (103, "</a>; rel=preload", 100)
    client.write(b"body")
    assert (await client.answer()).content == b"after all"
    assert upstream.requests[0].raw_body == b"body"
    assert upstream.requests[0].field(b"expect") == b"100-continue"


async def test_an_early_answer_reaches_a_client_that_still_uploads(
    upstream: Upstream, gateway: Gateway, client: Client, token: str
) -> None:
    async def refusing(call: Call) -> None:
        await anext(call.pieces())
        await call.send(head("413 Content Too Large", "Content-Length: 3") + b"no!")
        await call.until_gone()

    upstream.default = refusing
    client.write(request("/api/x", token, f"Content-Length: {10**9}", method="POST") + b"x" * 100_000)
    answer = await client.answer()
    assert (answer.status, answer.content, answer["connection"]) == (413, b"no!", "close")
    await soon(upstream.connections[0].ended.wait())
    upstream.default = answering()
    assert (await fetch(gateway.url, request("/api/x", token))).status == 200
    assert len(upstream.connections) == 2


async def test_pipelined_requests_are_answered_in_order(upstream: Upstream, client: Client, token: str) -> None:
    upstream.default = echo
    bodies = [b"%d" % number * 1000 for number in range(5)]
    client.write(b"".join(request("/api/x", token, method="POST", body=body) for body in bodies))
    assert [(await client.answer()).content for _ in bodies] == bodies
    assert [received.raw_body for received in upstream.requests] == bodies


# --- streams -------------------------------------------------------------------------------------------------------


async def test_events_leave_as_they_arrive(upstream: Upstream, client: Client, token: str) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    upstream.default = events(queue)
    client.write(request("/api/stream", token, method="POST", body=b'{"stream": true}'))
    # Nothing but the head is out yet: it does not wait for the first event.
    assert (await client.final_head())["content-type"] == "text/event-stream"
    for number in range(20):
        queue.put_nowait(b"%d" % number)
        assert await client.chunk() == b"data: %d\n\n" % number
    queue.put_nowait(b"")
    assert await client.chunk() == b""
    assert (await client.ask(request("/healthz"))).status == 200


async def test_an_upload_leaves_as_it_arrives(upstream: Upstream, client: Client, token: str) -> None:
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def piecewise(call: Call) -> None:
        async for piece in call.pieces():
            arrived.put_nowait(piece)
        await answering()(call)

    upstream.default = piecewise
    client.write(request("/api/x", token, "Transfer-Encoding: chunked", method="POST"))
    for number in range(20):
        client.write(chunk(b"piece %d" % number))
        assert await soon(arrived.get()) == b"piece %d" % number
    client.write(chunk(b""))
    assert (await client.answer()).status == 200


# --- clients that leave --------------------------------------------------------------------------------------------


async def leave(client: Client, how: str) -> None:
    if how == "reset":
        client.reset()
    else:
        await client.close()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_client_that_hangs_up_while_it_waits_ends_its_upstream_connection(
    upstream: Upstream, client: Client, token: str, how: str, method: str
) -> None:
    upstream.default = hang
    client.write(request("/api/x", token, method=method))
    await upstream.requested()
    await leave(client, how)
    await soon(upstream.connections[0].ended.wait())
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_hangs_up_mid_stream_ends_its_upstream_connection(
    upstream: Upstream, client: Client, token: str, how: str
) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    upstream.default = events(queue)
    client.write(request("/api/stream", token))
    queue.put_nowait(b"first")
    await client.final_head()
    assert await client.chunk() == b"data: first\n\n"
    await leave(client, how)
    # A closed socket's machine only tells by a reset to whatever is sent to it next.
    queue.put_nowait(b"second")
    await soon(upstream.connections[0].ended.wait())


async def test_a_client_that_resets_mid_stream_is_noticed_without_another_byte(
    upstream: Upstream, client: Client, token: str
) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    upstream.default = events(queue)
    client.write(request("/api/stream", token))
    queue.put_nowait(b"first")
    await client.final_head()
    assert await client.chunk() == b"data: first\n\n"
    client.reset()
    await soon(upstream.connections[0].ended.wait())


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_hangs_up_with_a_large_answer_unread_ends_its_upstream_connection(
    upstream: Upstream, client: Client, token: str, how: str
) -> None:
    upstream.default = generated(10**12)
    client.write(request("/api/x", token))
    await client.final_head()
    await leave(client, how)
    await soon(upstream.connections[0].ended.wait())


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_hangs_up_mid_upload_ends_its_upstream_connection(
    upstream: Upstream, client: Client, token: str, how: str
) -> None:
    got = asyncio.Event()

    async def reading(call: Call) -> None:
        async for _ in call.pieces():
            got.set()

    upstream.default = reading
    client.write(request("/api/x", token, "Content-Length: 1000", method="POST") + b"half")
    await soon(got.wait())
    await leave(client, how)
    await soon(upstream.connections[0].ended.wait())


async def test_a_half_closed_client_gets_its_answer(upstream: Upstream, client: Client, token: str) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    upstream.default = events(queue)
    client.write(request("/api/x", token))
    client.writer.write_eof()
    await upstream.requested()
    answer = await client.final_head()
    for number in range(3):
        queue.put_nowait(b"%d" % number)
        assert await client.chunk() == b"data: %d\n\n" % number
    queue.put_nowait(b"")
    assert (answer.status, await client.chunk(), await client.at_end()) == (200, b"", True)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_half_closed_client_that_waits_gets_its_answer(
    upstream: Upstream, client: Client, token: str, version: str
) -> None:
    release = asyncio.Event()

    async def late(call: Call) -> None:
        await call.unless_gone(release.wait())
        await answering(b"late")(call)

    upstream.default = late
    client.write(request("/api/x", token, version=version))
    client.writer.write_eof()
    await upstream.requested()
    interim = []
    if version == "1.1":
        # The gateway finds out whether the client is still there; a 1.0 client would not know the question.
        interim = [(await client.head()).status]
    release.set()
    answer = await client.answer()
    assert (answer.status, answer.content, interim + answer.interim) == (200, b"late", interim)
    assert await client.at_end()


# --- upstreams that fail -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["in good order", "reset"])
@pytest.mark.parametrize(
    ("framing", "sent"),
    [
        ("Content-Length: 1000", b"x" * 500),
        ("Content-Length: 1000", b""),
        ("Transfer-Encoding: chunked", chunk(b"x" * 500)),
        ("Transfer-Encoding: chunked", chunk(b"x" * 500)[:-200]),
        ("Transfer-Encoding: chunked", chunk(b"x" * 500) + b"0\r\n"),
    ],
)
async def test_a_cut_answer_never_looks_whole(
    upstream: Upstream, gateway: Gateway, client: Client, token: str, framing: str, sent: bytes, end: str
) -> None:
    by_reset = end == "reset"
    upstream.default = broken_off(head("200 OK", framing) + sent, by_reset=by_reset)
    client.write(request("/api/x", token))
    with contextlib.suppress(*CUT_SHORT):
        answer = await client.answer()
        # A reset may overtake even the head; then there is no answer to be cut.
        assert (answer.status, json.loads(answer.content)["error"]["code"]) == (502, "upstream_unreachable")
        assert by_reset
    assert len(upstream.requests) == 1
    upstream.default = answering()
    assert (await fetch(gateway.url, request("/api/x", token))).status == 200


async def test_a_cut_stream_never_looks_whole_however_late_it_is_cut(
    upstream: Upstream, client: Client, token: str
) -> None:
    cut = asyncio.Event()

    async def cut_later(call: Call) -> None:
        call.write(head("200 OK", "Transfer-Encoding: chunked") + chunk(b"first"))
        await call.unless_gone(cut.wait())
        call.keep_alive = False

    upstream.default = cut_later
    client.write(request("/api/x", token))
    assert (await client.final_head()).status == 200
    assert await client.chunk() == b"first"
    cut.set()
    with pytest.raises(CUT_SHORT):
        await client.chunk()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("framing", ["Connection: close", "Transfer-Encoding: chunked", "Content-Length: 1000"])
async def test_a_reset_upstream_is_a_reset_client_where_only_that_tells(
    upstream: Upstream, client: Client, token: str, version: str, framing: str
) -> None:
    cut = asyncio.Event()
    sent = chunk(b"the first half") if "chunked" in framing else b"the first half"

    async def cut_later(call: Call) -> None:
        call.write(head("200 OK", framing) + sent)
        await call.unless_gone(cut.wait())
        call.reset()

    upstream.default = cut_later
    client.write(request("/api/x", token, version=version))
    assert (await client.final_head()).status == 200
    assert b"first half" in await soon(client.reader.readuntil(b"half"))
    cut.set()
    with pytest.raises(ConnectionResetError):
        await soon(client.reader.read())


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_an_upstream_that_ends_before_the_answer_is_a_502(
    upstream: Upstream, client: Client, token: str, answer: bytes
) -> None:
    upstream.default = broken_off(answer)
    got = await client.ask(request("/api/x", token, method="POST", body=b"{}"))
    assert (got.status, got["x-gateway-error"]) == (502, "upstream_unreachable")
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        head("200 OK", "Content-Length: 2", "Transfer-Encoding: chunked") + b"ok",
        head("200 OK", "Content-Length: 2", "Content-Length: 3") + b"ok!",
        head("200 OK", "Transfer-Encoding: chunked") + b"zz\r\n",
        head("101 Switching Protocols", "Upgrade: websocket"),
    ],
)
async def test_an_upstream_that_speaks_something_else_is_a_502(
    upstream: Upstream, client: Client, token: str, answer: bytes
) -> None:
    async def handler(call: Call) -> None:
        call.write(answer)
        await call.until_gone()

    upstream.default = handler
    got = await client.ask(request("/api/x", token))
    assert (got.status, got["x-gateway-error"]) == (502, "upstream_protocol")
    await soon(upstream.connections[0].ended.wait())


async def test_an_upstream_that_refuses_connections_is_a_502() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        config = Config(target_api_url=f"http://127.0.0.1:{reserved.getsockname()[1]}", rate_limit="10000")
        async with Gateway(config) as gateway, connected(gateway.url) as client:
            for _ in range(2):
                answer = await client.ask(request("/api/x", gateway.issue_token()))
                assert (answer.status, answer["x-gateway-error"]) == (502, "upstream_unreachable")
                assert "127.0.0.1" not in answer.content.decode()


async def test_an_upstream_that_accepts_no_connection_is_a_504() -> None:
    async with contextlib.AsyncExitStack() as stack:
        # Nobody accepts, and the queue is full: the kernel drops what comes, as a far firewall would.
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        waiting = stack.enter_context(socket.create_connection(full.getsockname()))
        assert waiting.getpeername() == full.getsockname()
        config = Config(target_api_url=f"http://127.0.0.1:{full.getsockname()[1]}", connect_timeout="100ms")
        gateway = await stack.enter_async_context(Gateway(config))
        answer = await fetch(gateway.url, request("/api/x", gateway.issue_token()))
        assert (answer.status, answer["x-gateway-error"]) == (504, "upstream_timeout")


async def test_connecting_may_take_longer_than_any_other_phase() -> None:
    """Each phase has a timeout of its own: none of the others may run out while there is no connection."""
    others = ("header_timeout", "keepalive_timeout", "idle_timeout", "response_timeout")
    settings: dict[str, Any] = dict.fromkeys(others, "50ms")
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        async with Gateway(Config(target_api_url=url, connect_timeout="900ms", **settings)) as gateway:
            answer = await fetch(gateway.url, request("/api/x", gateway.issue_token()))
    assert (answer.status, answer["x-gateway-error"]) == (504, "upstream_timeout")
    assert "did not accept a connection" in json.loads(answer.content)["detail"]


async def test_an_upstream_that_does_not_answer_is_a_504(upstream: Upstream) -> None:
    upstream.default = hang
    config = Config(target_api_url=upstream.url, response_timeout="100ms")
    async with Gateway(config) as gateway, connected(gateway.url) as client:
        token = gateway.issue_token()
        answer = await client.ask(request("/api/x", token, method="POST", body=b"{}"))
        assert (answer.status, answer["x-gateway-error"]) == (504, "upstream_timeout")
        await soon(upstream.connections[0].ended.wait())
        upstream.default = answering()
        assert (await client.ask(request("/api/x", token))).status == 200
    assert len(upstream.requests) == 2


async def test_an_upstream_that_stops_mid_body_is_cut_off(upstream: Upstream) -> None:
    async def stopping(call: Call) -> None:
        call.write(head("200 OK", "Content-Length: 1000") + b"half")
        await call.until_gone()

    upstream.default = stopping
    config = Config(target_api_url=upstream.url, idle_timeout="100ms")
    async with Gateway(config) as gateway, connected(gateway.url) as client:
        client.write(request("/api/x", gateway.issue_token()))
        with pytest.raises(CUT_SHORT):
            await client.answer()
        await soon(upstream.connections[0].ended.wait())


# --- upstream connections ------------------------------------------------------------------------------------------


async def test_connections_are_kept_and_used_again(upstream: Upstream, gateway: Gateway, token: str) -> None:
    upstream.paths = {b"/v1/length": answering(), b"/v1/chunked": in_chunks(b"a", b"b")}
    for _ in range(3):
        async with connected(gateway.url) as client:
            for path in ("/api/length", "/api/chunked"):
                assert (await client.ask(request(path, token, method="POST", body=b"{}"))).status == 200
    assert (len(upstream.requests), len(upstream.connections)) == (6, 1)


async def test_requests_at_once_share_no_connection(upstream: Upstream, gateway: Gateway, token: str) -> None:
    release = asyncio.Event()

    async def together(call: Call) -> None:
        await call.unless_gone(release.wait())
        await answering(call.received.start_line.split(b" ")[1])(call)

    upstream.default = together
    asked = [asyncio.create_task(fetch(gateway.url, request(f"/api/{number}", token))) for number in range(20)]
    await upstream.requested(20)
    assert len(upstream.connections) == 20
    release.set()
    assert [(await answer).content for answer in asked] == [b"/v1/%d" % number for number in range(20)]


async def test_a_pooled_connection_that_the_upstream_ended_is_not_used(
    upstream: Upstream, client: Client, token: str
) -> None:
    async def closing(call: Call) -> None:
        await answering()(call)
        call.keep_alive = False  # without having said so

    upstream.default = closing
    for number in range(3):
        assert (await client.ask(request("/api/x", token, method="POST", body=b"{}"))).status == 200
        await soon(upstream.connections[number].ended.wait())
        # Answered by the gateway itself, after it has read what lay before it: the upstream's end.
        assert (await client.ask(request("/healthz"))).status == 200
    assert len(upstream.requests) == 3


@pytest.mark.parametrize("when", ["with the answer", "later"])
async def test_a_pooled_connection_that_brings_bytes_unasked_is_not_used(
    upstream: Upstream, client: Client, token: str, when: str
) -> None:
    later = asyncio.Event()

    async def generous(call: Call) -> None:
        call.write(head("200 OK", "Content-Length: 2") + b"ok")
        if when == "later":
            await call.unless_gone(later.wait())
        call.write(head("200 OK", "Content-Length: 4") + b"evil")
        await call.until_gone()

    upstream.default = generous
    assert (await client.ask(request("/api/x", token))).content == b"ok"
    later.set()
    await soon(upstream.connections[0].ended.wait())
    upstream.default = answering(b"good")
    assert (await client.ask(request("/api/x", token))).content == b"good"
    assert len(upstream.connections) == 2


async def test_a_get_on_a_connection_that_dies_is_sent_again_and_charged_once(
    upstream: Upstream, client: Client, token: str
) -> None:
    assert (await client.ask(request("/api/x", token)))["ratelimit"].startswith('"minute";r=9999;')
    upstream.paths = {b"/v1/stale": once_broken_off()}
    answer = await client.ask(request("/api/stale", token))
    assert (answer.status, answer["ratelimit"].partition(";t=")[0]) == (200, '"minute";r=9998')
    assert [received.connection for received in upstream.requests] == [1, 1, 2]


async def test_a_post_on_a_connection_that_dies_is_not_sent_again(
    upstream: Upstream, client: Client, token: str
) -> None:
    assert (await client.ask(request("/api/x", token))).status == 200
    upstream.paths = {b"/v1/stale": once_broken_off()}
    answer = await client.ask(request("/api/stale", token, method="POST", body=b"{}"))
    assert (answer.status, answer["x-gateway-error"]) == (502, "upstream_unreachable")
    assert len(upstream.requests) == 2


def once_broken_off() -> Handler:
    """Return a handler that answers nothing the first time."""
    left = [broken_off(b"")]

    async def handler(call: Call) -> None:
        await (left.pop() if left else answering())(call)

    return handler


# --- limits --------------------------------------------------------------------------------------------------------


async def test_60_lets_exactly_60_of_100_through(upstream: Upstream) -> None:
    async with Gateway(Config(target_api_url=upstream.url, rate_limit="60")) as gateway:
        token = gateway.issue_token()
        answers = await asyncio.gather(*(fetch(gateway.url, request("/api/x", token)) for _ in range(100)))
        other = await fetch(gateway.url, request("/api/x", gateway.issue_token()))
    assert sorted(answer.status for answer in answers) == [200] * 60 + [429] * 40
    assert other.status == 200
    assert len(upstream.requests) == 61
    passed = [answer["ratelimit"].split(";")[1] for answer in answers if answer.status == 200]
    assert sorted(passed) == sorted(f"r={left}" for left in range(60))
    for answer in answers:
        if answer.status == 429:
            problem = json.loads(answer.content)
            assert (problem["error"]["code"], problem["error"]["type"]) == ("rate_limited", "rate_limit_error")
            assert answer["content-type"] == "application/problem+json"
            assert (answer["x-gateway-error"], answer["x-ratelimit-limit"]) == ("rate_limited", "60")
            assert answer["x-ratelimit-remaining"] == "0"
            assert answer["ratelimit"] == f'"minute";r=0;t={answer["x-ratelimit-reset"]}'
            # Exact is when a place comes free; who is told to wait is told up to a twentieth more.
            free_s, wait_ms = int(answer["x-ratelimit-reset"]), int(answer["retry-after-ms"])
            assert (free_s - 1) * 1000 < wait_ms <= free_s * 1050
            assert 0 <= int(answer["retry-after"]) * 1000 - wait_ms < 1000
            assert free_s <= 61
    assert len({answer["retry-after-ms"] for answer in answers if answer.status == 429}) > 20


async def test_a_global_limit_counts_all_tokens_together(upstream: Upstream) -> None:
    config = Config(target_api_url=upstream.url, rate_limit="60", global_rate_limit="30")
    async with Gateway(config) as gateway:
        tokens = [gateway.issue_token() for _ in range(50)]
        answers = await asyncio.gather(*(fetch(gateway.url, request("/api/x", token)) for token in tokens))
    assert sorted(answer.status for answer in answers) == [200] * 30 + [429] * 20
    assert len(upstream.requests) == 30


async def test_a_refused_request_with_a_body_leaves_no_trace_upstream(upstream: Upstream) -> None:
    async with (
        Gateway(Config(target_api_url=upstream.url, rate_limit="1/hour")) as gateway,
        connected(gateway.url) as client,
    ):
        token = gateway.issue_token()
        post = request("/api/x", token, method="POST", body=b"GET /api/smuggled HTTP/1.1\r\n\r\n")
        assert (await client.ask(post)).status == 200
        for _ in range(3):
            assert (await client.ask(post)).status == 429
        assert (await client.ask(request("/healthz"))).status == 200
    assert len(upstream.requests) == 1


# --- embedding -----------------------------------------------------------------------------------------------------


async def test_two_gateways_in_one_loop_do_not_disturb_each_other(upstream: Upstream) -> None:
    async with Upstream() as other_upstream:
        upstream.default, other_upstream.default = answering(b"one"), answering(b"other")
        async with Gateway(Config(target_api_url=upstream.url, rate_limit="3/hour", target_api_key="key-1")) as one:
            config = Config(target_api_url=other_upstream.url, rate_limit="5/hour", target_api_key="key-2")
            async with Gateway(config) as other:
                tokens = {gateway: gateway.issue_token() for gateway in (one, other)}
                asked = [fetch(gateway.url, request("/api/x", tokens[gateway])) for gateway in (one, other) * 10]
                statuses = [(answer.status, answer.content) for answer in await asyncio.gather(*asked)]
                assert (statuses.count((200, b"one")), statuses.count((200, b"other"))) == (3, 5)
                assert (await fetch(other.url, request("/api/x", tokens[one]))).status == 401
            # The end of one is not the end of the other.
            assert (await fetch(one.url, request("/api/x", one.issue_token()))).content == b"one"
        assert {received.field(b"authorization") for received in upstream.requests} == {b"Bearer key-1"}
        assert {received.field(b"authorization") for received in other_upstream.requests} == {b"Bearer key-2"}


def descriptors() -> set[tuple[str, str]]:
    found = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names, not paths
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))  # noqa: PTH115 - likewise
    return found


def side_effects() -> dict[str, object]:
    """Return what an embedded gateway must not change, not even while it runs."""
    new_loop = asyncio.new_event_loop()
    new_loop.close()
    return {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "logging": {
            name: (
                list(logging.getLogger(name).handlers),
                logging.getLogger(name).level,
                logging.getLogger(name).propagate,
            )
            for name in ("", "gateway", "gateway.upstream", "gateway.store", "asyncio")
        },
        "loops": type(new_loop),
        "exceptions": asyncio.get_running_loop().get_exception_handler(),
        "gc": (gc.get_threshold(), gc.isenabled()),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "environment": dict(os.environ),
    }


def parts() -> int:
    """Count the living parts of gateways: a timer, a task or a socket left behind would hold some of them."""
    gc.collect()
    return sum(str(type(thing).__module__).startswith("gateway.proxy.") for thing in gc.get_objects())


async def test_embedding_leaves_nothing_behind(upstream: Upstream) -> None:
    # Once for what the loop and the resolver keep for themselves.
    async with Gateway(Config(target_api_url=upstream.url)) as gateway:
        await fetch(gateway.url, request("/api/x", gateway.issue_token()))
    await all_ended(upstream)
    del gateway
    effects, files, tasks, living = side_effects(), descriptors(), asyncio.all_tasks(), parts()
    frozen = gc.get_freeze_count()

    upstream.paths = {b"/v1/hang": hang}
    asked_before = len(upstream.requests)
    async with Gateway(Config(target_api_url=upstream.url)) as gateway:
        token = gateway.issue_token()
        async with connected(gateway.url) as idle, connected(gateway.url) as waiting:
            assert (await idle.ask(request("/api/x", token))).status == 200
            assert (await fetch(gateway.url, request("/register", method="POST"))).status == 201
            waiting.write(request("/api/hang", token))
            await upstream.requested(asked_before + 2)
            assert side_effects() == effects
            await gateway.close()
            with pytest.raises(CUT_SHORT):
                await waiting.answer()
            with pytest.raises(CUT_SHORT):
                await idle.answer()
    await all_ended(upstream)
    del gateway
    assert side_effects() == effects
    assert descriptors() == files
    assert asyncio.all_tasks() == tasks
    assert parts() <= living
    assert gc.get_freeze_count() <= frozen


async def all_ended(upstream: Upstream) -> None:
    """Wait until the upstream has seen the end of each connection, and is done with it."""
    for connection in upstream.connections:
        await soon(connection.closed.wait())
    await asyncio.sleep(0)  # asyncio closes a transport's socket in the loop's next turn


async def test_a_gateway_that_cannot_start_leaves_nothing_behind(upstream: Upstream) -> None:
    files, tasks = descriptors(), asyncio.all_tasks()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = Config(target_api_url=upstream.url, gateway_listen=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(OSError, match="in use"):
            async with Gateway(config):
                pytest.fail("two servers on one port")
    assert (descriptors(), asyncio.all_tasks()) == (files, tasks)


async def come_and_go(gateway: Gateway) -> None:
    """Be the last client to leave: a drain must not take that for its own success."""
    async with connected(gateway.url) as client:
        assert (await client.ask(request("/healthz", None, "Connection: close"))).status == 200
        assert await client.at_end()


async def test_drain_finishes_what_is_in_flight_and_takes_no_more(upstream: Upstream) -> None:
    release = asyncio.Event()

    async def late(call: Call) -> None:
        await call.unless_gone(release.wait())
        await answering(b"late")(call)

    upstream.default = late
    async with Gateway(Config(target_api_url=upstream.url)) as gateway:
        url, token = gateway.url, gateway.issue_token()
        await come_and_go(gateway)
        async with connected(url) as busy, connected(url) as idle:
            assert (await idle.ask(request("/healthz"))).status == 200
            busy.write(request("/api/x", token))
            await upstream.requested()
            drained = asyncio.create_task(gateway.drain())
            assert await idle.at_end()
            with pytest.raises(ConnectionError):
                async with connected(url):
                    pass
            assert not drained.done()
            release.set()
            answer = await busy.answer()
            assert (answer.status, answer.content, answer["connection"]) == (200, b"late", "close")
            assert await soon(drained)


async def test_a_request_that_is_there_but_not_read_yet_keeps_an_idle_connection_open(client: Client) -> None:
    assert (await client.ask(request("/healthz"))).status == 200
    here = client.writer.get_extra_info("sockname")
    known = (one.transport for one in gc.get_objects() if isinstance(one, ClientConnection))
    (transport,) = (one for one in known if one.get_extra_info("peername") == here)
    connection = transport.get_protocol()
    assert isinstance(connection, ClientConnection)
    client.write(request("/healthz"))
    # The kernel has it, on a busy machine a moment later, and the loop has had no turn to read it.
    assert select.select([transport.get_extra_info("socket")], [], [], TIMEOUT_S)[0]
    connection.on_deadline()
    assert (await client.answer()).status == 200
    connection.on_deadline()
    assert await client.at_end()


async def test_drain_gives_up_after_its_timeout(upstream: Upstream) -> None:
    upstream.default = hang
    async with Gateway(Config(target_api_url=upstream.url, drain_timeout="50ms")) as gateway:
        await come_and_go(gateway)
        async with connected(gateway.url) as busy:
            await assert_drain_gives_up(upstream, gateway, busy)


async def assert_drain_gives_up(upstream: Upstream, gateway: Gateway, busy: Client) -> None:
    busy.write(request("/api/x", gateway.issue_token()))
    await upstream.requested()
    assert not await soon(gateway.drain())
    await gateway.close()
    with pytest.raises(CUT_SHORT):
        await busy.answer()
    await soon(upstream.connections[0].ended.wait())
