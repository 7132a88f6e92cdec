"""The HTTP clients that Python programs have, unchanged but for an address and a token."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import zlib
from typing import TYPE_CHECKING

import aiohttp
import pytest
import requests
import urllib3

from gateway import Config, Gateway
from tests.e2e import KEY, PatternCheck
from tests.kit.clients import CLIENTS, PythonClient
from tests.kit.upstream import (
    PATTERN,
    Call,
    Handler,
    Upstream,
    answering,
    asked_first,
    chunk,
    echo,
    events,
    generated,
    head,
    in_chunks,
    soon,
    until_close,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

BIG_BYTES = 5_000_000


@pytest.fixture
async def gateway(upstream: Upstream) -> AsyncIterator[Gateway]:
    async with Gateway(Config(target_api_url=upstream.url, target_api_key=KEY, rate_limit="1000/hour")) as running:
        yield running


@pytest.fixture(params=CLIENTS)
async def make(request: pytest.FixtureRequest, gateway: Gateway) -> AsyncIterator[Callable[[str], PythonClient]]:
    """Makes a client of each kind for a token."""
    made: list[PythonClient] = []

    def make(token: str) -> PythonClient:
        made.append(CLIENTS[request.param](gateway.url, token))
        return made[-1]

    yield make
    for client in made:
        await client.close()


@pytest.fixture
async def client(make: Callable[[str], PythonClient], gateway: Gateway) -> PythonClient:
    return make(gateway.issue_token())


# --- requests and answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "handler",
    [answering(b"hello"), in_chunks(b"hel", b"lo"), until_close(b"hello")],
    ids=["length", "chunked", "close"],
)
async def test_get(upstream: Upstream, client: PythonClient, handler: Handler) -> None:
    upstream.default = handler
    for _ in range(2):
        reply = await client.ask("GET", "/api/x?q=%20&q=a+b")
        assert (reply.status, reply.content) == (200, b"hello")
        assert reply.fields["ratelimit"].startswith('"hour";r=')
    received = upstream.requests[1]
    assert received.start_line == b"GET /v1/x?q=%20&q=a+b HTTP/1.1"
    assert received.field(b"authorization") == f"Bearer {KEY}".encode()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_json_with_each_method(upstream: Upstream, client: PythonClient, method: str) -> None:
    upstream.default = echo
    content = json.dumps({"a": "\u00e9"}).encode()
    reply = await client.ask(method, "/api/x", content, {"Content-Type": "application/json"})
    assert (reply.status, reply.content) == (200, content)
    (received,) = upstream.requests
    assert received.start_line == f"{method} /v1/x HTTP/1.1".encode()
    assert received.field(b"content-type") == b"application/json"


async def test_head_and_what_has_no_content_leave_the_connection_in_step(
    upstream: Upstream, client: PythonClient
) -> None:
    upstream.paths = {b"/v1/none": answering(b"", "204 No Content"), b"/v1/same": unchanged}
    for _ in range(2):
        reply = await client.ask("HEAD", "/api/x")
        assert (reply.status, reply.fields["content-length"], reply.content) == (200, "2", b"")
        assert (await client.ask("GET", "/api/none")).status == 204
        assert (await client.ask("GET", "/api/same", fields={"If-None-Match": '"1"'})).status == 304
        assert (await client.ask("GET", "/api/x")).content == b"ok"
    assert client.connections() == len(upstream.connections) == 1


async def unchanged(call: Call) -> None:
    call.write(head("304 Not Modified", 'ETag: "1"'))


async def test_one_connection_is_used_again(upstream: Upstream, client: PythonClient) -> None:
    upstream.default = in_chunks(b"a", b"b")
    for number in range(6):
        assert (await client.ask("GET" if number % 2 else "POST", "/api/x", b"")).content == b"ab"
    assert client.connections() == len(upstream.connections) == 1


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_an_encoded_answer_is_the_clients_to_decode(
    upstream: Upstream, client: PythonClient, coding: str
) -> None:
    content = b"Rate limits hold. " * 1000
    encoded = gzip.compress(content) if coding == "gzip" else zlib.compress(content)
    upstream.default = answering(encoded, "200 OK", f"Content-Encoding: {coding}")
    reply = await client.ask("GET", "/api/x", fields={} if client.asks_for_gzip else {"Accept-Encoding": coding})
    assert reply.content == content
    assert (reply.fields["content-encoding"], reply.fields["content-length"]) == (coding, str(len(encoded)))
    accepted = upstream.requests[0].field(b"accept-encoding")
    assert accepted is not None
    assert coding.encode() in accepted


async def test_a_redirect_is_the_clients_to_follow(upstream: Upstream, client: PythonClient) -> None:
    upstream.paths = {
        b"/v1/old": answering(b"", "307 Temporary Redirect", "Location: new?q=1"),
        b"/v1/away": answering(b"", "302 Found", "Location: https://elsewhere.test/x"),
        b"/v1/new": echo,
    }
    for path, location in (("old", "new?q=1"), ("away", "https://elsewhere.test/x")):
        reply = await client.ask("GET", f"/api/{path}")
        assert reply.fields["location"] == location
    assert len(upstream.requests) == 2
    reply = await client.ask("POST", "/api/old", b"{}", follow=True)
    assert (reply.status, reply.content) == (200, b"{}")
    lines = [received.start_line for received in upstream.requests[2:]]
    assert lines == [b"POST /v1/old HTTP/1.1", b"POST /v1/new?q=1 HTTP/1.1"]


async def test_trailers_leave_the_connection_in_step(upstream: Upstream, client: PythonClient) -> None:
    async def with_trailers(call: Call) -> None:
        call.write(head("200 OK", "Trailer: X-Sum", "Transfer-Encoding: chunked") + chunk(b"hello"))
        call.write(b"0\r\nX-Sum: 5\r\nX-Other: 6\r\n\r\n")

    upstream.default = with_trailers
    for _ in range(3):
        assert (await client.ask("GET", "/api/x")).content == b"hello"
    assert client.connections() == len(upstream.connections) == 1


# --- long bodies, and slow ones --------------------------------------------------------------------------------------


async def digest(call: Call) -> None:
    """Answer with what came, in short."""
    seen, size = hashlib.sha256(), 0
    async for piece in call.pieces():
        seen.update(piece)
        size += len(piece)
    await answering(f"{size} {seen.hexdigest()}".encode())(call)


@pytest.mark.parametrize("in_pieces", [False, True], ids=["length", "chunked"])
async def test_a_long_upload(upstream: Upstream, client: PythonClient, in_pieces: bool) -> None:  # noqa: FBT001
    upstream.default = digest
    pieces = [PATTERN[: 10_000 + number] for number in range(200)]
    content = b"".join(pieces)
    reply = await client.ask("POST", "/api/x", pieces if in_pieces else content)
    assert reply.content.decode() == f"{len(content)} {hashlib.sha256(content).hexdigest()}"
    (received,) = upstream.requests
    framing = (received.field(b"content-length"), received.field(b"transfer-encoding"))
    assert framing == ((None, b"chunked") if in_pieces else (str(len(content)).encode(), None))


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_long_download(upstream: Upstream, client: PythonClient, framing: str) -> None:
    upstream.default = generated(BIG_BYTES, framing)  # type: ignore[arg-type]
    check = PatternCheck()
    async for piece in client.stream("/api/x"):
        check.feed(piece)
    assert check.size == BIG_BYTES


async def test_events_come_one_by_one(upstream: Upstream, client: PythonClient) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    upstream.default = events(queue)
    queue.put_nowait(b"0")
    number = 0
    async for piece in client.stream("/api/x"):
        # The next is not made before this one is here.
        assert piece == b"data: %d\n\n" % number
        number += 1
        queue.put_nowait(b"" if number == 5 else b"%d" % number)
    assert number == 5


async def test_leaving_a_stream_ends_it_upstream(upstream: Upstream, client: PythonClient) -> None:
    upstream.default = generated(10**12)
    async with contextlib.aclosing(client.stream("/api/x")) as pieces:
        async for piece in pieces:
            assert piece
            break
    await soon(upstream.connections[0].ended.wait())


@pytest.mark.parametrize("framing", ["Content-Length: 5", "Transfer-Encoding: chunked"])
async def test_a_cut_answer_is_an_error(upstream: Upstream, client: PythonClient, framing: str) -> None:
    async def cut(call: Call) -> None:
        await call.send(head("200 OK", framing) + chunk(b"h")[:4])
        call.keep_alive = False

    upstream.default = cut
    with pytest.raises(client.broken):
        async for _ in client.stream("/api/x"):
            pass
    upstream.default = answering(b"whole")
    assert (await client.ask("GET", "/api/x")).content == b"whole"


# --- refusals --------------------------------------------------------------------------------------------------------


async def test_refusals_are_answers_like_any_other(
    upstream: Upstream, make: Callable[[str], PythonClient], gateway: Gateway
) -> None:
    pieces = [b"x" * 1000] * 10
    client = make("made-up")
    for content in (b"", b"{}", pieces):
        reply = await client.ask("POST", "/api/x", content)
        assert (reply.status, reply.fields["content-type"]) == (401, "application/problem+json")
        assert reply.fields["www-authenticate"].startswith("Bearer")
        assert json.loads(reply.content)["error"]["code"] == "token_invalid"
    client = make(gateway.issue_token(limits=["1/hour"]))
    assert (await client.ask("POST", "/api/x", b"{}")).status == 200
    for content in (b"", b"{}", pieces):
        reply = await client.ask("POST", "/api/x", content)
        assert (reply.status, reply.fields["x-should-retry"]) == (429, "false")
        assert json.loads(reply.content)["error"]["code"] == "rate_limited"
        assert int(reply.fields["retry-after"]) > 3000
    assert len(upstream.requests) == 1


async def test_urllib3_obeys_retry_after(upstream: Upstream, gateway: Gateway) -> None:
    token = gateway.issue_token(limits=["1/second"])

    def ask_twice() -> list[int]:
        with urllib3.PoolManager(retries=urllib3.Retry(total=3, status_forcelist=[429])) as pool:
            fields = {"Authorization": f"Bearer {token}"}
            return [pool.request("GET", f"{gateway.url}/api/x", headers=fields).status for _ in range(2)]

    assert await soon(asyncio.to_thread(ask_twice)) == [200, 200]
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("part", ["user", "password"])
async def test_requests_with_the_token_as_a_user(upstream: Upstream, gateway: Gateway, part: str) -> None:
    token = gateway.issue_token()
    auth = (token, "") if part == "user" else ("", token)

    def ask() -> tuple[int, str]:
        with requests.Session() as session:
            session.trust_env = False
            reply = session.get(f"{gateway.url}/api/x", auth=auth, timeout=10)
            return reply.status_code, reply.text

    assert await asyncio.to_thread(ask) == (200, "ok")
    assert upstream.requests[0].field(b"authorization") == f"Bearer {KEY}".encode()


@pytest.mark.parametrize("willing", [True, False], ids=["100", "417"])
async def test_aiohttp_waits_for_100_continue(upstream: Upstream, gateway: Gateway, willing: bool) -> None:  # noqa: FBT001
    upstream.default = asked_first(willing=willing)
    content = PATTERN * 3
    headers = {"Authorization": f"Bearer {gateway.issue_token()}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.post(f"{gateway.url}/api/x", data=content, expect100=True) as answer:
            assert (answer.status, await answer.read()) == ((200, content) if willing else (417, b"no"))
        upstream.default = echo
        async with session.post(f"{gateway.url}/api/x", data=b"again") as answer:
            assert await answer.read() == b"again"
    assert upstream.requests[0].field(b"expect") == b"100-continue"
    assert upstream.requests[0].raw_body == (content if willing else b"")
