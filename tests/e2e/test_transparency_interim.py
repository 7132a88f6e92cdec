"""Before the final answer, and before the body: 1xx, `Expect`, and answers that do not wait for the request's end."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from gateway import Config, Gateway
from tests.e2e import Client, connected, fetch, request
from tests.e2e.transparency import fields, is_in_step, passed_up, read_answer, read_answer_head, sending
from tests.kit.tls import server_side
from tests.kit.upstream import PATTERN, Call, Handler, answering, chunk, echo, head, soon

if TYPE_CHECKING:
    import trustme

    from tests.kit.upstream import Upstream

CHUNKED = "Transfer-Encoding: chunked"
EXPECTS = "Expect: 100-continue"
BODIES = {"length": ("Content-Length: 4", b"body"), "chunked": (CHUNKED, chunk(b"body") + chunk(b""))}
FRAMINGS = pytest.mark.parametrize("framing", BODIES)

# --- interim answers -------------------------------------------------------------------------------------------------

HINTS = head("103 Early Hints", "Link: </a.css>; rel=preload", "link: </b.js>; rel=preload", "X-Empty:")
INTERIMS = {
    "one": [HINTS],
    "several": [head("102 Processing"), HINTS, head("103 Early Hints"), HINTS],
    "unknown ones": [head("110 Odd", "X-A: b"), head("199 ")],
    "a 100 that nobody expects": [head("100 Continue", "X-A: b")],
    "as many as may be": [head("102 Processing", f"X-Number: {number}") for number in range(32)],
}


@pytest.mark.parametrize("at_once", [True, False], ids=["with the answer", "by itself"])
@pytest.mark.parametrize("case", INTERIMS)
async def test_interim_answers_arrive_with_their_fields(
    upstream: Upstream, client: Client, token: str, case: str, *, at_once: bool
) -> None:
    pieces = [*INTERIMS[case], head("200 OK", "Content-Length: 4") + b"done"]
    upstream.default = sending(b"".join(pieces)) if at_once else sending(*pieces)
    client.write(request("/api/x", token))
    for interim in INTERIMS[case]:
        assert await soon(client.reader.readexactly(len(interim))) == interim
    assert (await read_answer(client)).body == b"done"
    await is_in_step(upstream, client, token)


async def test_interim_answers_are_not_held_back(upstream: Upstream, client: Client, token: str) -> None:
    async def after_the_body(call: Call) -> None:
        await call.send(HINTS)
        await answering(b"done")(call)

    upstream.default = after_the_body
    client.write(request("/api/x", token, "Content-Length: 4", method="POST"))
    assert (await read_answer_head(client)).status == 103
    client.write(b"body")  # which the final answer waits for
    assert (await read_answer(client)).body == b"done"
    await is_in_step(upstream, client, token)


async def test_what_an_interim_answer_says_of_its_hop_ends_here(upstream: Upstream, client: Client, token: str) -> None:
    lines = ("Connection: X-Mine", "X-Mine: 1", "Keep-Alive: 1", "Content-Length: 5", "Link: </a>")
    upstream.default = sending(head("103 Early Hints", *lines), head("204 No Content"))
    client.write(request("/api/x", token))
    (interim,) = (await read_answer(client)).interims
    assert interim.fields == [(b"Link", b"</a>")]
    await is_in_step(upstream, client, token)


@pytest.mark.parametrize("case", INTERIMS)
async def test_interim_answers_are_not_for_1_0_clients(
    upstream: Upstream, client: Client, token: str, case: str
) -> None:
    upstream.default = sending(*INTERIMS[case], head("200 OK", "Content-Length: 4") + b"done")
    client.write(request("/api/x", token, "Connection: keep-alive", version="1.0"))
    answer = await read_answer(client)
    assert (answer.status, answer.body, answer.interims) == (200, b"done", [])
    await is_in_step(upstream, client, token)


# --- Expect ----------------------------------------------------------------------------------------------------------


@FRAMINGS
@pytest.mark.parametrize("expects", [EXPECTS, "expect: 100-Continue"])
async def test_the_upstreams_100_is_what_the_client_gets(
    upstream: Upstream, client: Client, token: str, framing: str, expects: str
) -> None:
    async def willing(call: Call) -> None:
        await call.send(head("100 Continue", "X-From: upstream"))
        await echo(call)

    upstream.default = willing
    framed_by, body = BODIES[framing]
    client.write(request("/api/x", token, expects, framed_by, method="PUT"))
    go_on = await read_answer_head(client)
    assert (go_on.start, go_on.fields) == (b"HTTP/1.1 100 Continue", [(b"X-From", b"upstream")])
    client.write(body)
    answer = await read_answer(client)
    assert (answer.status, answer.body, answer.interims) == (200, b"body", [])
    assert passed_up(upstream.requests[0]) == fields(expects, framed_by)
    await is_in_step(upstream, client, token)


@FRAMINGS
@pytest.mark.parametrize("interims", [b"", head("100 Continue")], ids=["no 100", "a late 100"])
async def test_a_client_need_not_wait_for_100(
    upstream: Upstream, client: Client, token: str, framing: str, interims: bytes
) -> None:
    async def late(call: Call) -> None:
        content = await call.content()
        call.write(interims + head("200 OK", f"Content-Length: {len(content)}") + content)

    upstream.default = late
    framed_by, body = BODIES[framing]
    client.write(request("/api/x", token, EXPECTS, framed_by, method="PUT"))
    await upstream.requested()  # and it is in no hurry to say 100
    client.write(body)
    answer = await read_answer(client)
    assert (answer.status, answer.body, len(answer.interims)) == (200, b"body", bool(interims))
    await is_in_step(upstream, client, token)


def refusing(status: str, *pieces: bytes) -> Handler:
    """Answer with a chunked body before the request's has come, and read on until the gateway ends it."""

    async def handler(call: Call) -> None:
        call.write(head(status, CHUNKED))
        for piece in (*pieces, b""):
            await call.send(chunk(piece))
        call.received.raw_body = await call.reader.read()
        call.keep_alive = False

    return handler


@FRAMINGS
@pytest.mark.parametrize("then", ["keeps its body", "sends it all the same"])
@pytest.mark.parametrize("status", ["417 Expectation Failed", "413 Large", "401 Unauthorized", "307 Moved", "200 OK"])
async def test_a_refusal_in_place_of_100_costs_no_upload(
    upstream: Upstream, gateway: Gateway, client: Client, token: str, status: str, framing: str, then: str
) -> None:
    upstream.default = refusing(status, b"no ", b"thanks")
    framed_by, body = BODIES[framing]
    client.write(request("/api/x", token, EXPECTS, framed_by, method="POST"))
    answer = await read_answer(client)
    assert (answer.start, answer.body) == (f"HTTP/1.1 {status}".encode(), b"no thanks")
    assert answer.value(b"connection") == b"close"
    assert answer.interims == []
    if then == "sends it all the same":
        client.write(body + request("/api/smuggled", token))
    assert await client.at_end()
    await soon(upstream.connections[0].closed.wait())
    assert (len(upstream.requests), upstream.requests[0].raw_body) == (1, b"")
    async with connected(gateway.url) as other:  # which would else be read as the body that never came
        await is_in_step(upstream, other, token, connections=2)


@pytest.mark.parametrize("framed_by", ["Content-Length: 0", "X-Framed: by nothing"])
async def test_an_expectation_without_a_body_is_the_upstreams_business(
    upstream: Upstream, client: Client, token: str, framed_by: str
) -> None:
    upstream.default = sending(head("417 Expectation Failed", "Content-Length: 2") + b"no")
    client.write(request("/api/x", token, EXPECTS, framed_by, method="POST"))
    answer = await read_answer(client)
    assert (answer.status, answer.body) == (417, b"no")
    assert passed_up(upstream.requests[0]) == fields(EXPECTS, framed_by)
    await is_in_step(upstream, client, token)


@pytest.mark.parametrize("value", ["200-ok", "100-continue, x", "x 100-continue", "100-continue;x", ""])
async def test_any_other_expectation_is_refused(upstream: Upstream, client: Client, token: str, value: str) -> None:
    """What servers make of these differs, and some forget that there is a body (RFC 9110 §10.1.1)."""
    client.write(request("/api/x", token, f"Expect: {value}", method="POST", body=b"body"))
    answer = await read_answer(client)
    assert (answer.status, answer.value(b"x-gateway-error")) == (400, b"bad_request")
    assert await client.at_end()
    assert upstream.connections == []


async def test_an_expectation_of_a_1_0_client_goes_no_further(upstream: Upstream, client: Client, token: str) -> None:
    upstream.default = echo
    client.write(request("/api/x", token, EXPECTS, method="POST", body=b"body", version="1.0"))
    assert (await read_answer(client)).body == b"body"
    assert passed_up(upstream.requests[0]) == fields("Content-Length: 4")


# --- final answers while the body still comes -------------------------------------------------------------------------


@pytest.mark.parametrize("answer_bytes", [0, 5, len(PATTERN)])
@pytest.mark.parametrize("uploads", ["Content-Length: 1000000000", CHUNKED])
async def test_an_early_answer_is_read_whole_by_a_client_that_sends_on(
    upstream: Upstream, gateway: Gateway, client: Client, token: str, uploads: str, answer_bytes: int
) -> None:
    upload = PATTERN if uploads != CHUNKED else chunk(PATTERN)
    content = PATTERN[:answer_bytes]

    async def early(call: Call) -> None:
        await anext(call.pieces())
        await call.send(head("413 Content Too Large", f"Content-Length: {answer_bytes}") + content)
        await call.until_gone()

    upstream.default = early
    client.write(request("/api/x", token, uploads, method="POST") + upload)
    answer_head = await read_answer_head(client)
    client.write(upload)
    assert (answer_head.status, answer_head.value(b"connection")) == (413, b"close")
    assert await soon(client.reader.readexactly(answer_bytes)) == content
    client.write(upload)
    assert await client.at_end()  # and no reset, though bytes came that nobody wanted
    await soon(upstream.connections[0].ended.wait())
    async with connected(gateway.url) as other:
        await is_in_step(upstream, other, token, connections=2)


OVER_TLS = pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "TLS"])


@OVER_TLS
async def test_an_early_answer_arrives_though_its_upstream_resets_what_is_sent_on(
    ca: trustme.CA, ca_file: str, *, over_tls: bool
) -> None:
    def accept() -> tuple[socket.socket, bytes]:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a reset drops what waits to be sent
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock = server_side(ca, "localhost").wrap_socket(sock, server_side=True) if over_tls else sock
        got = b""
        while not got.endswith(b"abc"):
            got += sock.recv(65536)
        return sock, got

    with socket.create_server(("127.0.0.1", 0)) as listener:
        scheme, roots = ("https", ca_file) if over_tls else ("http", None)
        url = f"{scheme}://localhost:{listener.getsockname()[1]}"
        async with (
            Gateway(Config(target_api_url=url, target_ca_file=roots, rate_limit="9")) as gateway,
            connected(gateway.url) as client,
        ):
            client.write(request("/api/x", gateway.issue_token(), "Content-Length: 9", method="POST") + b"abc")
            upstream, got = await asyncio.get_running_loop().run_in_executor(None, accept)
            # When the gateway looks next, all of it is there: more to send, an answer, and the reset behind that.
            os.write(client.writer.get_extra_info("socket").fileno(), b"def")
            upstream.send(head("413 Content Too Large", "Content-Length: 5") + b"large")
            upstream.close()
            answer = await read_answer(client)
            assert (answer.status, answer.body, answer.value(b"connection")) == (413, b"large", b"close")
            assert await client.at_end()
            assert got.count(b"POST /x HTTP/1.1\r\n") == 1
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):  # it was not asked again
            listener.accept()


async def test_what_is_sent_on_as_an_interim_answer_comes_arrives_in_order(
    upstream: Upstream, client: Client, token: str
) -> None:
    async def in_between(call: Call) -> None:
        pieces = call.pieces()
        got = await anext(pieces)
        for piece in (b"def", b"ghi"):
            at_once.send(piece)
            if piece == b"ghi":
                at_once.shutdown(socket.SHUT_WR)
            call.write(HINTS)
            got += await anext(pieces)
        call.write(head("200 OK", "Content-Length: 9") + got)

    upstream.default = in_between
    with socket.socket(fileno=os.dup(client.writer.get_extra_info("socket").fileno())) as at_once:
        client.write(request("/api/x", token, "Content-Length: 9", method="POST") + b"abc")
        answer = await read_answer(client)
    assert (answer.status, answer.body, len(answer.interims)) == (200, b"abcdefghi", 2)
    assert len(upstream.requests) == 1


# --- refusals of the gateway's own, before the body -------------------------------------------------------------------

REFUSED = pytest.mark.parametrize("status", [401, 429])


def refused_request(status: int, token: str, *lines: str) -> tuple[bytes, bytes]:
    """Return a request that is refused: its head, and a body that would do harm if it were read as a request."""
    smuggled = request("/api/smuggled", token)
    fields = [line.replace("LENGTH", str(len(smuggled))) for line in lines]
    body = chunk(smuggled) + chunk(b"") if CHUNKED in lines else smuggled
    return request("/api/x", token if status == 429 else "made-up", *fields, method="POST"), body


@REFUSED
@pytest.mark.parametrize("framing", ["Content-Length: LENGTH", CHUNKED])
@pytest.mark.parametrize("expects", [EXPECTS, "X-Expects: nothing"])
async def test_a_refusal_waits_for_no_body_and_none_is_read_as_a_request(
    upstream: Upstream, status: int, framing: str, expects: str
) -> None:
    config = Config(target_api_url=upstream.url, rate_limit="2/hour")
    async with Gateway(config) as gateway:
        token = gateway.issue_token()
        for _ in range(2 if status == 429 else 0):
            assert (await fetch(gateway.url, request("/api/x", token))).status == 200
        sent_before = len(upstream.requests)
        for when in ("never", "behind the answer", "in part before it"):
            async with connected(gateway.url) as client:
                request_head, body = refused_request(status, token, expects, framing)
                early = body[:20] if when == "in part before it" else b""
                client.write(request_head + early)
                answer = await read_answer(client)
                assert (answer.status, answer.interims) == (status, [])
                assert answer.value(b"connection") == b"close"
                if when != "never":
                    client.write(body[len(early) :])
                assert await client.at_end()
        assert len(upstream.requests) == sent_before


@REFUSED
@pytest.mark.parametrize("framing", ["Content-Length: LENGTH", CHUNKED])
async def test_a_refused_body_that_has_all_come_is_behind_us(upstream: Upstream, status: int, framing: str) -> None:
    config = Config(target_api_url=upstream.url, rate_limit="1/hour")
    async with Gateway(config) as gateway, connected(gateway.url) as client:
        token = gateway.issue_token()
        if status == 429:
            assert (await fetch(gateway.url, request("/api/x", token))).status == 200
        client.write(b"".join(refused_request(status, token, framing)) + request("/healthz"))
        answer = await read_answer(client)
        assert (answer.status, answer.value(b"connection")) == (status, b"keep-alive")
        assert (await read_answer(client)).status == 200
    assert len(upstream.requests) == (status == 429)
