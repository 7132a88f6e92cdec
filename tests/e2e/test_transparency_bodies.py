"""Bodies, both ways: what frames them, what has none, what follows them, and whose bytes they are."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING

import pytest

from tests.e2e import connected, request
from tests.e2e.transparency import (
    as_sent,
    fields,
    is_in_step,
    passed_down,
    passed_up,
    read_answer,
    sending,
)
from tests.kit.upstream import PATTERN, Call, answering, chunk, echo, head, until_close

if TYPE_CHECKING:
    from gateway import Gateway
    from tests.e2e import Client
    from tests.kit.upstream import Upstream

VERSIONS = pytest.mark.parametrize("version", ["1.0", "1.1"])
CHUNKED = "Transfer-Encoding: chunked"

# --- requests --------------------------------------------------------------------------------------------------------

METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"]


@pytest.mark.parametrize("framing", ["none", "Content-Length: 0", "Content-Length: 4", CHUNKED, "empty chunked"])
@pytest.mark.parametrize("method", METHODS)
async def test_any_method_has_the_body_that_its_fields_say(
    upstream: Upstream, client: Client, token: str, method: str, framing: str
) -> None:
    lines = {"none": [], "empty chunked": [CHUNKED]}.get(framing, [framing])
    body = {CHUNKED: b"4\r\nbody\r\n0\r\n\r\n", "empty chunked": b"0\r\n\r\n", "Content-Length: 4": b"body"}.get(
        framing, b""
    )
    client.write(request("/api/x", token, *lines, method=method) + body)
    assert (await read_answer(client, method)).status == 200
    (received,) = upstream.requests
    assert received.raw_body == body
    assert passed_up(received) == fields(*lines)
    await is_in_step(upstream, client, token)


@pytest.mark.parametrize("sizes", [(1,), (1, 1, 1), (0xA, 0xAB, 0xABC), (16_384, 1), (65_521,)])
async def test_chunks_of_a_request_arrive_as_they_were_cut(
    upstream: Upstream, client: Client, token: str, sizes: tuple[int, ...]
) -> None:
    body = b"".join(chunk(PATTERN[:size]) for size in (*sizes, 0))
    client.write(request("/api/x", token, CHUNKED, method="POST") + body)
    assert (await read_answer(client)).status == 200
    assert upstream.requests[0].raw_body == body
    await is_in_step(upstream, client, token)


ODD_CHUNKS = {
    "an extension": b"4;x\r\nbody\r\n0\r\n\r\n",
    "extensions with values": b'4;x=y ; z="a;b\\""\r\nbody\r\n0;last\r\n\r\n',
    "zeros before the size": b"0004\r\nbody\r\n0000\r\n\r\n",
}


@pytest.mark.parametrize("case", ODD_CHUNKS)
async def test_content_arrives_without_what_only_this_hop_was_told(
    upstream: Upstream, client: Client, token: str, case: str
) -> None:
    upstream.default = echo
    client.write(request("/api/x", token, CHUNKED, method="POST") + ODD_CHUNKS[case])
    assert (await read_answer(client)).body == b"body"
    assert b";" not in upstream.requests[0].raw_body
    upstream.default = sending(head("200 OK", CHUNKED) + ODD_CHUNKS[case])
    client.write(request("/api/x", token))
    assert (await read_answer(client)).body == b"body"
    await is_in_step(upstream, client, token)


# --- answers that have no body ---------------------------------------------------------------------------------------

BODILESS = {
    "HEAD": ("HEAD", "200 OK"),
    "HEAD, not found": ("HEAD", "404 Not Found"),
    "HEAD, 204": ("HEAD", "204 No Content"),
    "HEAD, 304": ("HEAD", "304 Not Modified"),
    "204": ("GET", "204 No Content"),
    "304": ("GET", "304 Not Modified"),
    "205": ("POST", "205 Reset Content"),
}


@VERSIONS
@pytest.mark.parametrize("framing", ["Content-Length: 500", "Content-Length: 0", CHUNKED, "X-No: framing"])
@pytest.mark.parametrize("case", BODILESS)
async def test_an_answer_without_a_body_ends_with_its_head(
    upstream: Upstream, client: Client, token: str, case: str, framing: str, version: str
) -> None:
    method, status = BODILESS[case]
    body = b""
    if status.startswith("205"):  # the one of them that must be framed: by the empty body (RFC 9110 §15.3.6)
        framing = framing.replace("500", "0").replace("X-No: framing", "Content-Length: 0")
        body = b"0\r\n\r\n" if framing == CHUNKED else b""
    upstream.default = sending(head(status, framing, 'ETag: "1"') + body)
    client.write(request("/api/x", token, "Connection: keep-alive", method=method, version=version))
    answer = await read_answer(client, method)
    assert answer.start == f"HTTP/1.1 {status}".encode()
    assert (answer.body, answer.value(b"etag")) == (b"", b'"1"')
    (framed_by,) = fields(framing)
    gone = status.startswith("204") and framing != "X-No: framing"  # RFC 9110 §8.6, RFC 9112 §6.1
    gone = gone or (framing == CHUNKED and version == "1.0")
    assert (framed_by in answer.fields) is not gone
    if version == "1.1" or framing != CHUNKED:
        # A 204 that announces a body may send it all the same: then it must not be the next answer's begin.
        announces = status.startswith("204") and framing in {"Content-Length: 500", CHUNKED}
        await is_in_step(upstream, client, token, connections=2 if announces else 1)


# --- answers that end with their connection ---------------------------------------------------------------------------

UNTIL_CLOSE = {
    "said": "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
    "unsaid": "HTTP/1.1 200 OK\r\n\r\n",
    "of a 1.0 upstream": "HTTP/1.0 200 OK\r\nServer: old\r\n\r\n",
    "though it said it would stay": "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n",
}


@VERSIONS
@pytest.mark.parametrize("case", UNTIL_CLOSE)
async def test_an_answer_until_close_arrives_whole_and_ends_alike(
    upstream: Upstream, gateway: Gateway, client: Client, token: str, case: str, version: str
) -> None:
    async def ending(call: Call) -> None:
        for piece in (UNTIL_CLOSE[case].encode(), PATTERN[:1], PATTERN[1:]):
            await call.send(piece)
        call.keep_alive = False

    upstream.default = ending
    client.write(request("/api/x", token, "Connection: keep-alive", version=version))
    answer = await read_answer(client)
    assert (answer.status, answer.body) == (200, PATTERN)
    assert answer.value(b"connection") == b"close"
    assert answer.value(b"transfer-encoding") is None
    async with connected(gateway.url) as other:
        await is_in_step(upstream, other, token, connections=2)


async def test_an_empty_answer_until_close(upstream: Upstream, client: Client, token: str) -> None:
    upstream.default = until_close(b"")
    client.write(request("/api/x", token))
    assert (await read_answer(client)).body == b""


# --- answers in chunks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 7, 1000])
async def test_an_answer_is_the_same_however_it_comes(upstream: Upstream, client: Client, token: str, cut: int) -> None:
    data = head("200 OK", CHUNKED, "X-A: b") + b"".join(chunk(PATTERN[:size]) for size in (1, 100, 17, 0))
    upstream.default = sending(*(data[at : at + cut] for at in range(0, len(data), cut)))
    client.write(request("/api/x", token))
    answer = await read_answer(client)
    assert passed_down(answer) == fields("X-A: b", CHUNKED)
    assert answer.body == PATTERN[:1] + PATTERN[:100] + PATTERN[:17]
    await is_in_step(upstream, client, token)


@pytest.mark.parametrize("keep", ["Connection: keep-alive", "X-No: keep-alive"])
async def test_a_chunked_answer_is_decoded_for_a_1_0_client(
    upstream: Upstream, client: Client, gateway: Gateway, token: str, keep: str
) -> None:
    data = head("200 OK", CHUNKED) + chunk(b"hello") + chunk(PATTERN) + b"0\r\nX-Sum: 1\r\n\r\n"
    upstream.default = sending(data)
    client.write(request("/api/x", token, keep, version="1.0"))
    answer = await read_answer(client)
    assert answer.body == b"hello" + PATTERN
    assert passed_down(answer) == fields("Connection: close")  # only the end tells a 1.0 client where the body ends
    async with connected(gateway.url) as other:
        await is_in_step(upstream, other, token)  # the upstream's connection is still good


# --- trailers --------------------------------------------------------------------------------------------------------

ANNOUNCED = pytest.mark.parametrize("announced", [True, False], ids=["announced", "unannounced"])
WAYS = pytest.mark.parametrize("way", ["up", "down"])
TRAILERS = {
    "one": (["X-Sum: 1"], ["X-Sum: 1"]),
    "several": (["X-Sum: 1", "x-sum: 2", "Server-Timing: t;dur=1", "X-Empty:"],) * 2,
    "of gRPC": (["grpc-status: 0", "grpc-message: "], ["grpc-status: 0", "grpc-message: "]),
    "none": ([], []),
    "one that frames": (["X-Sum: 1", "Content-Length: 5", "X-B: 2"], ["X-Sum: 1", "X-B: 2"]),
    "only such as frame, route or authenticate": (
        ["Transfer-Encoding: chunked", "Host: evil.test", "Authorization: Bearer x", "content-length: 0", "TE: x"],
        [],
    ),
    "such as say what to make of the content": (
        ["Content-Type: text/html", "Content-Encoding: gzip", "Set-Cookie: a=b", "Connection: close", "X-Sum: 1"],
        ["X-Sum: 1"],
    ),
}


@WAYS
@ANNOUNCED
@pytest.mark.parametrize("case", TRAILERS)
async def test_trailers_arrive_behind_the_body_and_only_there(
    upstream: Upstream, client: Client, token: str, case: str, way: str, *, announced: bool
) -> None:
    sent, arriving = TRAILERS[case]
    names = ", ".join(line.partition(":")[0] for line in sent)
    lines = [f"Trailer: {names}"] if announced else []
    body = b"4\r\nbody\r\n0\r\n" + "".join(line + "\r\n" for line in sent).encode() + b"\r\n"
    for _ in range(3):
        if way == "up":
            client.write(request("/api/x", token, *lines, CHUNKED, method="POST") + body)
            assert (await read_answer(client)).status == 200
            message = as_sent(upstream.requests[-1])
            arrived = passed_up(upstream.requests[-1])
        else:
            upstream.default = sending(head("200 OK", *lines, CHUNKED) + body)
            client.write(request("/api/x", token, "TE: trailers"))
            message = await read_answer(client)
            arrived = passed_down(message)
        assert (message.body, message.trailers) == (b"body", fields(*arriving))
        assert arrived == fields(*lines, CHUNKED)
    upstream.default = answering()
    await is_in_step(upstream, client, token)


# --- content is nobody's business ------------------------------------------------------------------------------------

CODED = {
    "gzip": gzip.compress(PATTERN),
    "deflate": zlib.compress(PATTERN),
    "br": b"\x0b\x02\x80hello\x03",
    "zstd": b"\x28\xb5\x2f\xfd\x00\x58broken",
    "x-unknown": PATTERN,
    "identity": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("coding", CODED)
async def test_coded_content_is_not_decoded(upstream: Upstream, client: Client, token: str, coding: str) -> None:
    lines = (f"Content-Encoding: {coding}", 'ETag: "1"', "Vary: Accept-Encoding")

    async def echoing(call: Call) -> None:
        content = await call.content()
        call.write(head("200 OK", *lines, f"Content-Length: {len(content)}") + content)

    upstream.default = echoing
    content = CODED[coding]
    client.write(request("/api/x", token, f"Content-Encoding: {coding}", method="POST", body=content))
    answer = await read_answer(client)
    assert upstream.requests[0].raw_body == answer.body == content
    assert passed_down(answer) == fields(*lines, f"Content-Length: {len(content)}")
    assert passed_up(upstream.requests[0]) == fields(lines[0], f"Content-Length: {len(content)}")


STATUSES = (
    *("200 OK", "201 Created", "202 Accepted", "203 X", "206 Partial Content", "207 Multi-Status", "226 IM Used"),
    *("300 Choices", "301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"),
    *("400 Bad Request", "401 Unauthorized", "402 Pay", "403 Forbidden", "404 Not Found", "407 Proxy", "408 Slow"),
    *("413 Large", "417 Unexpected", "418 Teapot", "421 Misdirected", "425 Early", "426 Upgrade", "429 Too Many"),
    *("451 Legal", "499 Odd", "500 Error", "502 Bad Gateway", "503 Busy", "504 Late", "529 Overloaded", "599 Last"),
)


@pytest.mark.parametrize("status", STATUSES)
async def test_any_status_arrives_with_its_body_and_is_the_upstreams(
    upstream: Upstream, client: Client, token: str, status: str
) -> None:
    """Redirects among them: they are followed by whoever asked, or not."""
    lines = ("Location: http://127.0.0.1:1/v1/y?z", "Retry-After: 7", "Content-Length: 4")
    upstream.default = sending(head(status, *lines) + b"body")
    client.write(request("/api/x", token))
    answer = await read_answer(client)
    assert (answer.start, answer.body) == (f"HTTP/1.1 {status}".encode(), b"body")
    assert passed_down(answer) == fields(*lines)  # X-Gateway-Error would say that it is the gateway's
    assert len(upstream.requests) == 1
    await is_in_step(upstream, client, token)


async def test_both_bodies_may_flow_at_once(upstream: Upstream, gateway: Gateway, client: Client, token: str) -> None:
    async def answering_piece_by_piece(call: Call) -> None:
        call.write(head("200 OK", CHUNKED))
        async for piece in call.pieces():
            call.write(chunk(piece.upper()))
        call.write(chunk(b""))

    upstream.default = answering_piece_by_piece
    client.write(request("/api/x", token, CHUNKED, method="POST"))
    assert (await client.final_head()).status == 200
    for number in range(10):
        client.write(chunk(b"piece %d" % number))
        assert await client.chunk() == b"PIECE %d" % number
    client.write(chunk(b""))
    assert await client.chunk() == b""
    assert await client.at_end()  # the answer had begun before it was known that the request would end
    async with connected(gateway.url) as other:
        await is_in_step(upstream, other, token)


async def test_an_answer_may_wait_for_as_long_as_its_request_takes(
    upstream: Upstream, client: Client, token: str
) -> None:
    upstream.default = echo
    client.write(request("/api/x", token, "Content-Length: 10", method="POST"))
    await upstream.requested()
    for number in range(10):
        client.write(b"%d" % number)
        await client.writer.drain()
    assert (await read_answer(client)).body == b"0123456789"
    await is_in_step(upstream, client, token)
