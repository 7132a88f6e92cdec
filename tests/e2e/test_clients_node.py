"""Node's fetch and its older `node:http`, unchanged: `node_client.mjs` runs them and prints what they saw.

Not collected where there is no `node`: it is too large to install for these tests alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway import Config, Gateway
from tests.e2e import KEY
from tests.kit.programs import program, run
from tests.kit.upstream import (
    PATTERN,
    Call,
    Framing,
    Handler,
    Upstream,
    answering,
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
    from collections.abc import AsyncIterator

SCRIPT = str(Path(__file__).with_name("node_client.mjs"))
PROXY_SCRIPT = str(Path(__file__).with_name("proxy_client.mjs"))


@pytest.fixture
async def gateway(upstream: Upstream) -> AsyncIterator[Gateway]:
    async with Gateway(Config(target_api_url=upstream.url, target_api_key=KEY, rate_limit="1000/hour")) as running:
        yield running


async def node(gateway: Gateway, scenario: str, path: str = "/api/x", token: str | None = None) -> list[Any]:
    """Run a scenario to its end; return what it printed."""
    code, out, err = await run(
        program("node"), SCRIPT, scenario, gateway.url + path, gateway.issue_token() if token is None else token
    )
    assert (code, err) == (0, b"")
    return [json.loads(line) for line in out.splitlines()]


@contextlib.asynccontextmanager
async def node_running(gateway: Gateway, scenario: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(program("node"), SCRIPT, scenario, f"{gateway.url}/api/x", gateway.issue_token()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@pytest.mark.parametrize(
    ("handler", "connections"),
    [(answering(b"hello"), 1), (in_chunks(b"hel", b"lo"), 1), (until_close(b"hello"), 5)],
    ids=["length", "chunked", "close"],
)
async def test_get_on_a_kept_connection(
    upstream: Upstream, gateway: Gateway, handler: Handler, connections: int
) -> None:
    upstream.default = handler
    *replies, last = await node(gateway, "get", "/api/x?q=%20")
    assert [(reply["status"], reply["body"]) for reply in replies] == [(200, "hello")] * 5
    assert replies[4]["limit"].startswith('"hour";r=995;')
    assert last == {"connections": connections}
    assert [received.start_line for received in upstream.requests] == [b"GET /v1/x?q=%20 HTTP/1.1"] * 5
    assert upstream.requests[0].field(b"authorization") == f"Bearer {KEY}".encode()


async def test_what_has_no_content_leaves_the_connection_in_step(upstream: Upstream, gateway: Gateway) -> None:
    async def unchanged(call: Call) -> None:
        call.write(head("304 Not Modified", 'ETag: "1"'))

    upstream.paths = {b"/v1/none": answering(b"", "204 No Content"), b"/v1/same": unchanged}
    replies = await node(gateway, "bodiless", "/api")
    assert [(reply["status"], reply["body"]) for reply in replies] == [(200, ""), (204, ""), (304, ""), (200, "ok")]
    assert replies[0]["length"] == "2"
    assert len(upstream.connections) == 1


async def test_json_with_each_method(upstream: Upstream, gateway: Gateway) -> None:
    upstream.default = echo
    methods = ["POST", "PUT", "PATCH", "DELETE"]
    assert await node(gateway, "json") == [{"method": method, "body": {"a": "\u00e9"}} for method in methods]
    assert [received.start_line for received in upstream.requests] == [
        f"{method} /v1/x HTTP/1.1".encode() for method in methods
    ]


async def test_a_stream_is_uploaded_in_chunks(upstream: Upstream, gateway: Gateway) -> None:
    async def digest(call: Call) -> None:
        seen, size = hashlib.sha256(), 0
        async for piece in call.pieces():
            seen.update(piece)
            size += len(piece)
        await answering(f"{size} {seen.hexdigest()}".encode())(call)

    upstream.default = digest
    (seen,) = await node(gateway, "upload")
    assert seen["got"] == f"{seen['sent']['size']} {seen['sent']['sha256']}"
    assert upstream.requests[0].field(b"transfer-encoding") == b"chunked"


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_long_download(upstream: Upstream, gateway: Gateway, framing: Framing) -> None:
    size = 5_000_000
    upstream.default = generated(size, framing)
    content = (PATTERN * (size // len(PATTERN) + 1))[:size]
    assert await node(gateway, "download") == [{"size": size, "sha256": hashlib.sha256(content).hexdigest()}]


async def test_a_gzipped_answer_is_decoded(upstream: Upstream, gateway: Gateway) -> None:
    content = b"Rate limits hold. " * 1000
    upstream.default = answering(gzip.compress(content), "200 OK", "Content-Encoding: gzip")
    assert (await node(gateway, "get"))[0]["body"] == content.decode()
    assert b"gzip" in (upstream.requests[0].field(b"accept-encoding") or b"")


async def test_events_come_one_by_one(upstream: Upstream, gateway: Gateway) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    upstream.default = events(queue)
    async with node_running(gateway, "events") as process:
        assert process.stdout is not None
        for number in range(5):
            # The next is not made before this one is there.
            queue.put_nowait(b"%d" % number)
            assert json.loads(await soon(process.stdout.readline())) == f"data: {number}\n\n"
        queue.put_nowait(b"")
        assert await soon(process.wait()) == 0


async def test_leaving_a_stream_ends_it_upstream(upstream: Upstream, gateway: Gateway) -> None:
    upstream.default = generated(10**12)
    async with node_running(gateway, "leave") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(await soon(process.stdout.readline())) == {"came": True}
        await soon(upstream.connections[0].ended.wait())
        process.stdin.close()
        assert await soon(process.wait()) == 0


@pytest.mark.parametrize("framing", ["Content-Length: 5", "Transfer-Encoding: chunked"])
async def test_a_cut_answer_is_an_error(upstream: Upstream, gateway: Gateway, framing: str) -> None:
    async def cut(call: Call) -> None:
        await call.send(head("200 OK", framing) + chunk(b"h")[:4])
        call.keep_alive = False

    upstream.default = cut
    assert await node(gateway, "cut") == [{"status": 200, "ended": "TypeError"}]


async def test_a_redirect_is_the_clients_to_follow(upstream: Upstream, gateway: Gateway) -> None:
    upstream.paths = {b"/v1/x": answering(b"", "307 Temporary Redirect", "Location: new"), b"/v1/new": echo}
    kept, followed = await node(gateway, "redirects")
    assert kept == {"status": 307, "location": "new"}
    assert followed == {"status": 200, "body": "{}", "redirected": True}
    lines = [received.start_line for received in upstream.requests]
    assert lines == [b"GET /v1/x HTTP/1.1", b"POST /v1/x HTTP/1.1", b"POST /v1/new HTTP/1.1"]


async def test_refusals_are_answers_like_any_other(upstream: Upstream, gateway: Gateway) -> None:
    replies = await node(gateway, "refusals", token=gateway.issue_token(limits=["1/hour"]))
    assert replies == [
        {"status": 401, "code": "token_invalid", "retry": None},
        {"status": 200, "code": None, "retry": None},
        {"status": 429, "code": "rate_limited", "retry": "false"},
    ]
    assert len(upstream.requests) == 1


async def test_it_waits_for_100_continue_and_hears_hints(upstream: Upstream, gateway: Gateway) -> None:
    async def asked(call: Call) -> None:
        call.write(head("103 Early Hints", "Link: </x>"))
        call.write(head("100 Continue"))
        await echo(call)

    upstream.default = asked
    (reply,) = await node(gateway, "expect")
    assert (reply["status"], reply["body"]) == (200, "asked first")
    assert [103, "</x>"] in reply["interim"]


async def test_trailers_pass_both_ways(upstream: Upstream, gateway: Gateway) -> None:
    async def asked(call: Call) -> None:
        content = await call.content()
        call.write(head("200 OK", "Trailer: X-Count", "Transfer-Encoding: chunked"))
        call.write(chunk(content) + b"0\r\nX-Count: 1\r\n\r\n")

    upstream.default = asked
    reply = {"interim": [], "status": 200, "body": "hello", "trailers": {"x-count": "1"}}
    assert await node(gateway, "trailers") == [reply] * 2
    for received in upstream.requests:
        assert received.raw_body.lower().endswith(b"0\r\nx-sum: 5\r\n\r\n")


async def test_through_a_proxy(upstream: Upstream, gateway: Gateway) -> None:
    url, token = f"{upstream.url}/x?q=%20", gateway.issue_token()
    code, out, err = await run(program("node"), PROXY_SCRIPT, gateway.url, url, token)
    assert (code, err, json.loads(out)) == (0, b"", [200, "ok"])
    (received,) = upstream.requests
    assert received.start_line == b"GET /v1/x?q=%20 HTTP/1.1"
    assert received.field(b"authorization") == f"Bearer {KEY}".encode()
    assert received.field(b"proxy-authorization") is None
