"""Fields, both ways: what is meant for one hop ends here, and all else arrives as it was sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.http1 import template
from gateway.http1.message import MAX_FIELDS, MAX_HEAD_BYTES, MAX_LINE_BYTES
from tests.e2e import KEY, Client, connected, request
from tests.e2e.transparency import (
    ADDED_BELOW,
    as_sent,
    fields,
    is_in_step,
    is_new_date,
    passed_down,
    passed_up,
    read_answer,
    sending,
)
from tests.kit.upstream import answering, head, soon
from tests.kit.wire import read_head

if TYPE_CHECKING:
    from gateway import Gateway
    from tests.e2e.transparency import Fields
    from tests.kit.upstream import Upstream

WAYS = pytest.mark.parametrize("way", ["up", "down"])
BEFORE, AFTER = "X-Before: 1", "X-After: 2"


async def carried(upstream: Upstream, client: Client, token: str, way: str, *lines: str) -> Fields:
    """Send these field lines upstream, or back; return what arrives of them and of one before and one behind."""
    lines = (BEFORE, *lines, AFTER)
    if way == "up":
        client.write(request("/api/x", token, *lines))
        await read_answer(client)
        return passed_up(upstream.requests[-1])
    upstream.default = sending(head("200 OK", "Content-Length: 2", *lines) + b"ok")
    client.write(request("/api/x", token))
    first, *others = passed_down(await read_answer(client))
    assert first == (b"Content-Length", b"2")
    return others


# --- what ends here --------------------------------------------------------------------------------------------------

ENDS_HERE = {
    "Keep-Alive": ["Connection: keep-alive", "Keep-Alive: timeout=5, max=100"],
    "Keep-Alive that Connection does not name": ["Keep-Alive: timeout=5"],
    "Proxy-Connection": ["Proxy-Connection: keep-alive"],
    "Upgrade that is not asked for": ["Upgrade: h2c, foo/2"],
    "HTTP2-Settings": ["HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"],
    "Proxy-Authenticate": ['Proxy-Authenticate: Basic realm="x"'],
    "Proxy-Authorization": ["Proxy-Authorization: Basic eDp5"],
    "Proxy-Authentication-Info": ['Proxy-Authentication-Info: nextnonce="x"'],
    "TE": ["TE: gzip;q=0.5"],
    "Trailer where no trailers can follow": ["Trailer: X-Sum"],
    "any case": ["KEEP-ALIVE: 1", "proxy-connection: x", "hTTP2-sETTINGS: y"],
    "no value": ["Connection:", "Keep-Alive:", "TE:", "Upgrade:"],
    "repeated": ["Keep-Alive: 1", "X-Mine: 1", "Keep-Alive: 2", "Connection: X-Mine", "X-Mine: 2"],
    "a name in Connection": ["Connection: X-Mine", "X-Mine: 1"],
    "a name before Connection": ["X-Mine: 1", "Connection: X-Mine"],
    "names among others": ["Connection: keep-alive, X-Mine, X-Other", "X-Mine: 1", "X-Other: 2"],
    "names in another case": ["CONNECTION: x-MINE", "X-Mine: 1", "x-mine: 2", "X-MINE: 3"],
    "names in several lines": ["Connection: X-Mine", "X-Mine: 1", "connection: keep-alive, X-Other", "X-Other: 2"],
    "empty members": ["Connection: , X-Mine ,, ,\tX-Other,", "X-Mine: 1", "X-Other: 2"],
    "no space": ["Connection:X-Mine,X-Other", "X-Mine: 1", "X-Other: 2"],
    "a name that is not there": ["Connection: X-Nowhere"],
    "a field that everybody knows": ["Connection: Cookie, Cache-Control", "Cookie: a=b", "Cache-Control: no-cache"],
}


@WAYS
@pytest.mark.parametrize("case", ENDS_HERE)
async def test_what_is_meant_for_one_hop_ends_here(
    upstream: Upstream, client: Client, token: str, case: str, way: str
) -> None:
    for _ in range(3):  # the second and third are known to the parser
        assert await carried(upstream, client, token, way, *ENDS_HERE[case]) == fields(BEFORE, AFTER)
    upstream.default = answering()
    await is_in_step(upstream, client, token)


@WAYS
async def test_a_name_in_connection_takes_no_other_along(
    upstream: Upstream, client: Client, token: str, way: str
) -> None:
    others = ["X-Mine-Too: 1", "X: 2", "Not-X-Mine: X-Mine"]
    lines = ["Connection: X-Mine", "X-Mine: 0", *others]
    assert await carried(upstream, client, token, way, *lines) == fields(BEFORE, *others, AFTER)


NOT_TO_BE_TAKEN_OUT = [
    "Host",
    "Content-Length",
    "Authorization",
    "Content-Type",
    "Transfer-Encoding",
    "Content-Length, Host, authorization, TRANSFER-ENCODING",
]


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("named", NOT_TO_BE_TAKEN_OUT)
async def test_no_client_takes_a_request_apart_by_naming_its_fields(
    upstream: Upstream, client: Client, token: str, named: str, framing: str
) -> None:
    lines = (f"Connection: {named}", "Content-Type: text/plain", f"Connection: {named}")
    if framing == "length":
        client.write(request("/api/x", token, *lines, method="POST", body=b"body"))
    else:
        coded = request("/api/x", token, *lines, "Transfer-Encoding: chunked", method="POST")
        client.write(coded + b"4\r\nbody\r\n0\r\n\r\n")
    assert (await read_answer(client)).status == 200
    message = as_sent(upstream.requests[0])
    assert message.value(b"host") == f"127.0.0.1:{upstream.port}".encode()
    assert message.value(b"authorization") == f"Bearer {KEY}".encode()
    assert message.value(b"content-type") == b"text/plain"
    assert message.value(b"content-length") == (b"4" if framing == "length" else None)
    assert message.value(b"transfer-encoding") == (b"chunked" if framing == "chunked" else None)
    assert message.value(b"connection") is None
    await is_in_step(upstream, client, token)


@pytest.mark.parametrize(
    "named", ["Content-Length", "Transfer-Encoding", "Content-Type, Date", *map(bytes.decode, ADDED_BELOW)]
)
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_no_upstream_takes_an_answer_apart_by_naming_its_fields(
    upstream: Upstream, client: Client, token: str, named: str, framing: str
) -> None:
    lines = (f"Connection: {named}", "Content-Type: text/plain", "Date: Mon, 01 Jan 2024 00:00:00 GMT")
    framed = (
        ("Content-Length: 4", b"body")
        if framing == "length"
        else ("Transfer-Encoding: chunked", b"4\r\nbody\r\n0\r\n\r\n")
    )
    upstream.default = sending(head("200 OK", *lines, framed[0]) + framed[1])
    client.write(request("/api/x", token))
    answer = await read_answer(client)
    assert answer.body == b"body"
    assert answer.value(b"content-type") == b"text/plain"
    assert answer.value(b"date") == b"Mon, 01 Jan 2024 00:00:00 GMT"
    for name in ADDED_BELOW:
        assert answer.value(name) is not None
    await is_in_step(upstream, client, token)


# --- TE --------------------------------------------------------------------------------------------------------------

TAKES_TRAILERS = {
    "alone": ["TE: trailers"],
    "named in Connection": ["Connection: TE", "TE: trailers"],
    "behind the option": ["TE: trailers", "Connection: keep-alive, te"],
    "among codings": ["te: deflate;q=0.5, Trailers, gzip"],
    "in a line of its own": ["TE: gzip", "TE: trailers"],
    "twice": ["TE: trailers", "TE: trailers,trailers"],
}
TAKES_NONE = {
    "codings": ["TE: deflate;q=0.5, gzip"],
    "nothing": ["TE:"],
    "another name": ["TE: trailer, trailersx"],
    "only the option": ["Connection: TE"],
}


@pytest.mark.parametrize("case", TAKES_TRAILERS)
async def test_of_te_trailers_goes_on_named_in_connection(
    upstream: Upstream, client: Client, token: str, case: str
) -> None:
    for _ in range(3):
        sent = await carried(upstream, client, token, "up", *TAKES_TRAILERS[case])
        assert sent == fields(BEFORE, AFTER, "TE: trailers", "Connection: TE")
    await is_in_step(upstream, client, token)


@pytest.mark.parametrize("case", TAKES_NONE)
async def test_of_te_nothing_else_goes_on(upstream: Upstream, client: Client, token: str, case: str) -> None:
    for _ in range(3):
        assert await carried(upstream, client, token, "up", *TAKES_NONE[case]) == fields(BEFORE, AFTER)


async def test_te_of_a_1_0_client_goes_no_further(upstream: Upstream, client: Client, token: str) -> None:
    client.write(request("/api/x", token, "TE: trailers", "Connection: TE, keep-alive", version="1.0"))
    assert (await read_answer(client)).status == 200
    assert passed_up(upstream.requests[0]) == []


# --- what passes -----------------------------------------------------------------------------------------------------

PASSES = {
    "order, case and duplicates": ["b: 1", "A: 2", "B: 3", "X-CaSe: MiXeD", "a: 4", "b: 5"],
    "the same line twice": ["X-Same: 1", "X-Same: 1"],
    "empty values": ["X-Empty:", "x-empty:", "X-Full: 1", "X-Empty:"],
    "spaces within": ["X-Spaces: a  b \t c"],
    "every kind of byte": ["X-Bytes: !\"#$%&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~ é€"],
    "every kind of name": ["!#$%&'*+-.^_`|~09AZaz: 1", "_: 2", "1: 3"],
    "lists and quotes": ['X-List: a, "b, c", , d;q="\\""', "X-List: e"],
    "what looks like a field": ["X-Odd: Content-Length: 5", "X-Url: http://a.test/?b#c", "X: : :"],
    "cookies": ["Cookie: a=1; b=2", "Cookie: c=3", 'cookie: d="4;5"; e'],
    "cookies that are set": [
        "Set-Cookie: a=1; Path=/; Expires=Wed, 09 Jun 2027 10:18:14 GMT; HttpOnly",
        "Set-Cookie: b=2; Domain=.a.test; SameSite=None; Secure; Partitioned",
        "set-cookie: a=; Max-Age=0",
    ],
    "content codings": ["Accept-Encoding: gzip, br;q=1.0, zstd, *;q=0", "Accept-Encoding: identity"],
    "who asks, and who answers": ["User-Agent: curl/8.0 (é)", "Server: nginx", "X-Powered-By: PHP"],
    "a date": ["Date: Mon, 01 Jan 2024 00:00:00 GMT"],
    "caches": ["Cache-Control: no-cache, private", "Pragma: no-cache", "Age: 7", "Vary: *", 'ETag: W/"1"'],
    "conditions and ranges": ['If-None-Match: "a", W/"b"', "If-Range: x", "Range: bytes=0-1, -5", "Expires: 0"],
    "origins": ["Origin: https://a.test", "Sec-Fetch-Mode: cors", "Access-Control-Allow-Origin: *"],
    "other hops": [
        "X-Forwarded-For: 1.2.3.4, 10.0.0.1",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: a.test",
        "X-Real-IP: 1.2.3.4",
        'Forwarded: for=1.2.3.4;host="a.test"',
        "Via: 1.1 other",
        "Max-Forwards: 3",
    ],
    "tracing": ["traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "X-Request-Id: 7"],
    "the APIs' own": ["OpenAI-Organization: o", "anthropic-version: 2023-06-01", "Idempotency-Key: 1", "Accept: */*"],
    "the APIs' limits": ["x-ratelimit-remaining: 9", "Retry-After: 20", "retry-after-ms: 5", "x-should-retry: true"],
    "challenges": ['WWW-Authenticate: Bearer realm="api", error="invalid_token"', "Authentication-Info: x=y"],
    "timings": ["Server-Timing: db;dur=5.0", "Server-Timing: cache;desc=hit"],
    "content": ["Content-Type: text/plain; charset=utf-8", "Content-Encoding: br", "Content-Language: de", "Digest: x"],
    "redirects": ["Location: ../x?y=%2F;z#f", "Refresh: 5; url=/x", "Link: </a>; rel=next", "Content-Location: /x"],
}  # fmt: skip


@WAYS
@pytest.mark.parametrize("case", PASSES)
async def test_all_else_arrives_as_it_was_sent(
    upstream: Upstream, client: Client, token: str, case: str, way: str
) -> None:
    for _ in range(3):
        assert await carried(upstream, client, token, way, *PASSES[case]) == fields(BEFORE, *PASSES[case], AFTER)


@WAYS
async def test_space_around_a_value_is_no_part_of_it(upstream: Upstream, client: Client, token: str, way: str) -> None:
    arrived = await carried(upstream, client, token, way, "X-A:b", "X-C: \t d\t ", "X-Void:   ")
    assert arrived == fields(BEFORE, "X-A: b", "X-C: d", "X-Void:", AFTER)


# --- up to the limits ------------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("size", [1, 256, 257, 8192, MAX_LINE_BYTES])
async def test_a_long_value_arrives(upstream: Upstream, client: Client, token: str, size: int, way: str) -> None:
    line = "X-Long: ".ljust(size, "v")
    for _ in range(2):
        assert await carried(upstream, client, token, way, line) == fields(BEFORE, line, AFTER)


@WAYS
async def test_a_head_as_large_as_may_be_arrives(upstream: Upstream, client: Client, token: str, way: str) -> None:
    lines = [f"X-{number}: ".ljust(MAX_HEAD_BYTES // 2 - 500, "v") for number in range(2)]
    assert await carried(upstream, client, token, way, *lines) == fields(BEFORE, *lines, AFTER)


@WAYS
async def test_as_many_fields_as_may_be_arrive(upstream: Upstream, client: Client, token: str, way: str) -> None:
    others = {"up": 4, "down": 3}[way]  # Host, Authorization; Content-Length; the two around them
    lines = [f"X-{number % 7}: {number}" for number in range(MAX_FIELDS - others)]
    assert await carried(upstream, client, token, way, *lines) == fields(BEFORE, *lines, AFTER)


TOO_LARGE = {
    "a field": ["X-Long: ".ljust(MAX_LINE_BYTES + 1, "v")],
    "a head": [f"X-{number}: ".ljust(MAX_LINE_BYTES, "v") for number in range(2)],
    "many fields": ["X: 1"] * (MAX_FIELDS + 1),
}


@WAYS
@pytest.mark.parametrize("case", TOO_LARGE)
async def test_more_than_that_is_refused_and_goes_no_further(
    upstream: Upstream, gateway: Gateway, token: str, case: str, way: str
) -> None:
    upstream.default = sending(head("200 OK", "Content-Length: 2", *TOO_LARGE[case]) + b"ok")
    async with connected(gateway.url) as client:
        if way == "up":
            client.write(request("/api/x", token, *TOO_LARGE[case]))
            answer = await read_answer(client)
            assert (answer.status, answer.value(b"x-gateway-error")) == (431, b"fields_too_large")
            assert answer.value(b"connection") == b"close"
            assert await client.at_end()
            assert upstream.connections == []
        else:
            client.write(request("/api/x", token))
            answer = await read_answer(client)
            assert (answer.status, answer.value(b"x-gateway-error")) == (502, b"upstream_protocol")
            assert not [name for name in answer.names if name.startswith((b"X-L", b"X-0", b"X-1"))]
            await is_in_step(upstream, client, token, connections=2)


# --- nothing else is added -------------------------------------------------------------------------------------------


async def test_a_request_has_two_fields_of_the_gateways_and_no_more(
    upstream: Upstream, client: Client, token: str
) -> None:
    client.write(request("/api/x", token))
    await read_answer(client)
    lines = ("GET /v1/x HTTP/1.1", f"Host: 127.0.0.1:{upstream.port}", f"Authorization: Bearer {KEY}")
    assert upstream.requests[0].head.decode() == "\r\n".join(lines)


async def test_an_answer_has_three_fields_of_the_gateways_and_no_more(
    upstream: Upstream, client: Client, token: str
) -> None:
    for sent in (["date: then", "SERVER: up", "Content-Length: 0"], ["Content-Length: 0", "Date:"]):
        upstream.default = sending(head("200 OK", *sent))
        client.write(request("/api/x", token))
        answer = await read_answer(client)
        assert answer.names[-3:] == ADDED_BELOW
        assert answer.fields[:-3] == fields(*sent)


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "304 Not Modified", "500 Oops"])
async def test_an_answer_without_a_date_gets_one_however_often_it_is_seen(
    upstream: Upstream, client: Client, token: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template, "HEADS_A_TEMPLATE", 0)
    for number in range(8):  # in turns with answers that differ in nothing else
        own = [] if number % 2 else ["Date: Mon, 01 Jan 2024 00:00:00 GMT"]
        length = [] if status.startswith("204") else ["Content-Length: 0"]
        upstream.default = sending(head(status, *own, f"X-Id: {number}", *length))
        client.write(request("/api/x", token))
        answer = await read_answer(client)
        dates = [pair for pair in answer.fields if pair[0].lower() == b"date"]
        assert len(dates) == 1
        assert is_new_date(dates[0]) is not bool(own)
        assert passed_down(answer) == fields(*own, f"X-Id: {number}", *length)


async def test_an_interim_answer_gets_none(upstream: Upstream, client: Client, token: str) -> None:
    upstream.default = sending(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + head("200 OK", "Content-Length: 0"))
    client.write(request("/api/x", token))
    answer = await read_answer(client)
    assert answer.interims[0].fields == fields("Link: </x>")
    assert answer.value(b"date") is not None


REASONS = ["HTTP/1.1 200 OK", "HTTP/1.1 200 Très bien", "HTTP/1.1 200 ", "HTTP/1.1 200", "HTTP/1.0 200 a  b\tc"]


@pytest.mark.parametrize("line", REASONS)
async def test_a_reason_phrase_arrives(upstream: Upstream, client: Client, token: str, line: str) -> None:
    upstream.default = sending(f"{line}\r\nContent-Length: 0\r\n\r\n".encode())
    client.write(request("/api/x", token))
    data = await soon(client.reader.readuntil(b"\r\n\r\n"))
    reason = line.removeprefix("HTTP/1.").partition("200")[2] or " "
    assert read_head(data)[0].start == f"HTTP/1.1 200{reason}".encode()
