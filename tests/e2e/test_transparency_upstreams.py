"""Upstreams: whose error is it, what is no answer, what is more than one, and what is less."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tests.e2e import connected, request
from tests.e2e.transparency import fields, is_in_step, passed_down, read_answer, read_answer_head, sending
from tests.kit.upstream import PATTERN, Call, broken_off, chunk, head, soon

if TYPE_CHECKING:
    from gateway import Gateway
    from tests.e2e import Client
    from tests.kit.upstream import Upstream

CHUNKED = "Transfer-Encoding: chunked"
FRAMED = {
    "length": head("200 OK", "Content-Length: 5") + b"hello",
    "chunked": head("200 OK", CHUNKED) + chunk(b"hello") + chunk(b""),
    "nothing": head("204 No Content"),
    "not modified": head("304 Not Modified", "Content-Length: 5"),
}
CONTENTS = {"length": b"hello", "chunked": b"hello", "nothing": b"", "not modified": b""}

# --- whose error -----------------------------------------------------------------------------------------------------

ERRORS = {
    "401": "401 Unauthorized",
    "403": "403 Forbidden",
    "404": "404 Not Found",
    "429": "429 Too Many Requests",
    "500": "500 Internal Server Error",
    "502": "502 Bad Gateway",
    "503": "503 Service Unavailable",
    "504": "504 Gateway Timeout",
}


@pytest.mark.parametrize("status", ERRORS)
async def test_an_error_of_the_apis_is_not_taken_for_one_of_the_gateways(
    upstream: Upstream, client: Client, token: str, status: str
) -> None:
    lines = ("Content-Type: application/json", "Retry-After: 20", "Content-Length: 9")
    upstream.default = sending(head(ERRORS[status], *lines) + b'{"e": 1}\n')
    client.write(request("/api/x", token))
    answer = await read_answer(client)
    assert (answer.start, answer.body) == (f"HTTP/1.1 {ERRORS[status]}".encode(), b'{"e": 1}\n')
    assert passed_down(answer) == fields(*lines)
    assert answer.value(b"x-gateway-error") is None
    await is_in_step(upstream, client, token)


@pytest.mark.parametrize(
    ("path", "good", "status", "code"),
    [
        ("/api/x", False, 401, "token_invalid"),
        ("/nowhere", True, 404, "not_found"),
        ("/api/..", True, 400, "bad_request"),
    ],
)
async def test_an_error_of_the_gateways_says_so(
    client: Client, token: str, path: str, status: int, code: str, *, good: bool
) -> None:
    client.write(request(path, token if good else "made-up"))
    answer = await read_answer(client)
    assert (answer.status, answer.value(b"x-gateway-error")) == (status, code.encode())
    assert answer.value(b"content-type") == b"application/problem+json"
    problem = json.loads(answer.body)
    assert (problem["status"], problem["error"]["code"]) == (status, code)


# --- what is no answer -----------------------------------------------------------------------------------------------

NO_ANSWER = {
    "length and chunked": head("200 OK", "Content-Length: 5", CHUNKED) + b"0\r\n\r\n",
    "two lengths": head("200 OK", "Content-Length: 5", "Content-Length: 6") + b"hello!",
    "two equal lengths": head("200 OK", "Content-Length: 5", "Content-Length: 5") + b"hello",
    "a list of lengths": head("200 OK", "Content-Length: 5, 5") + b"hello",
    "a signed length": head("200 OK", "Content-Length: +5") + b"hello",
    "a length in hexadecimal": head("200 OK", "Content-Length: 0x5") + b"hello",
    "no length in its field": head("200 OK", "Content-Length:") + b"hello",
    "chunked twice": head("200 OK", CHUNKED, CHUNKED) + b"0\r\n\r\n",
    "another coding": head("200 OK", "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    "an unknown coding": head("200 OK", "Transfer-Encoding: x") + b"0\r\n\r\n",
    "chunked in 1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk size that is none": head("200 OK", CHUNKED) + b"five\r\nhello\r\n0\r\n\r\n",
    "CR in a value": b"HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
    "LF in a value": b"HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
    "NUL in a value": b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
    "a folded line": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "a space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
    "a line without a colon": b"HTTP/1.1 200 OK\r\nX\r\nContent-Length: 0\r\n\r\n",
    "CR in the reason": b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
    "another protocol": b"220 mail.test ESMTP\r\n\r\n",
    "another version": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "a status that is none": b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    "a switch that nobody asked for": head("101 Switching Protocols", "Upgrade: x", "Connection: Upgrade"),
}


@pytest.mark.parametrize("case", NO_ANSWER)
async def test_what_is_no_answer_is_a_502_and_the_last_on_its_connection(
    upstream: Upstream, client: Client, token: str, case: str
) -> None:
    async def wrong(call: Call) -> None:
        call.write(NO_ANSWER[case])
        await call.until_gone()

    upstream.default = wrong
    client.write(request("/api/x", token))
    answer = await read_answer(client)
    assert (answer.status, answer.value(b"x-gateway-error")) == (502, b"upstream_protocol")
    assert answer.values(b"set-cookie") == []
    await soon(upstream.connections[0].ended.wait())
    await is_in_step(upstream, client, token, connections=2)


# --- what is more than an answer -------------------------------------------------------------------------------------

EXTRA = {
    "a byte": b"!",
    "a line": b"\r\n",
    "another answer": head("200 OK", "Content-Length: 6") + b"poison",
    "another chunk": chunk(b"poison"),
}


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "apart"])
@pytest.mark.parametrize("extra", EXTRA)
@pytest.mark.parametrize("framing", FRAMED)
async def test_bytes_behind_an_answer_are_cut_and_end_the_upstreams_connection(
    upstream: Upstream, client: Client, token: str, framing: str, extra: str, *, apart: bool
) -> None:
    async def generous(call: Call) -> None:
        for piece in (FRAMED[framing], EXTRA[extra]) if apart else (FRAMED[framing] + EXTRA[extra],):
            await call.send(piece)
        await call.until_gone()

    upstream.default = generous
    client.write(request("/api/x", token))
    assert (await read_answer(client)).body == CONTENTS[framing]
    await soon(upstream.connections[0].ended.wait())
    await is_in_step(upstream, client, token, connections=2)


async def test_a_body_behind_an_answer_to_head_is_cut(upstream: Upstream, client: Client, token: str) -> None:
    async def talkative(call: Call) -> None:
        call.write(FRAMED["length"])
        await call.until_gone()

    upstream.default = talkative
    client.write(request("/api/x", token, method="HEAD"))
    assert (await read_answer(client, "HEAD")).value(b"content-length") == b"5"
    await soon(upstream.connections[0].ended.wait())
    await is_in_step(upstream, client, token, connections=2)


# --- what is less ----------------------------------------------------------------------------------------------------

CUT = {
    "a byte short": head("200 OK", "Content-Length: 65522") + PATTERN,
    "no byte": head("200 OK", "Content-Length: 5"),
    "no last chunk": head("200 OK", CHUNKED) + chunk(PATTERN),
    "within a chunk": head("200 OK", CHUNKED) + chunk(PATTERN)[:-9],
    "within a chunk's line": head("200 OK", CHUNKED) + chunk(PATTERN) + b"1",
    "within the last chunk": head("200 OK", CHUNKED) + chunk(PATTERN) + b"0\r\n",
    "within the trailers": head("200 OK", CHUNKED) + chunk(PATTERN) + b"0\r\nX-Sum: 1\r\n",
}
ENDS = pytest.mark.parametrize("by_reset", [False, True], ids=["in good order", "by a reset"])


@ENDS
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("case", CUT)
async def test_an_answer_that_was_cut_is_cut_for_the_client_too(
    upstream: Upstream, gateway: Gateway, client: Client, token: str, case: str, version: str, *, by_reset: bool
) -> None:
    read = asyncio.Event()

    async def cutting(call: Call) -> None:
        call.write(CUT[case])
        await call.unless_gone(read.wait())  # a reset would overtake what is not read yet
        await broken_off(b"", by_reset=by_reset)(call)

    upstream.default = cutting
    client.write(request("/api/x", token, "Connection: keep-alive", version=version))
    assert (await read_answer_head(client)).status == 200
    read.set()
    with pytest.raises(ConnectionResetError):  # no end in good order, which is how a 1.0 client knows the whole
        await soon(client.reader.read())
    assert len(upstream.requests) == 1
    async with connected(gateway.url) as other:
        await is_in_step(upstream, other, token, connections=2)


@ENDS
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 2", head("103 Early Hints")])
async def test_an_end_before_the_answer_is_a_502(
    upstream: Upstream, client: Client, token: str, sent: bytes, *, by_reset: bool
) -> None:
    upstream.default = broken_off(sent, by_reset=by_reset)
    client.write(request("/api/x", token, method="POST", body=b"{}"))
    answer = await read_answer(client)
    assert (answer.status, answer.value(b"x-gateway-error")) == (502, b"upstream_unreachable")
    assert len(upstream.requests) == 1
    await is_in_step(upstream, client, token, connections=2)
