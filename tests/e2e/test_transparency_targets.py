"""Request-targets: the prefix is replaced, and behind it every byte is the client's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway import Config, Gateway
from gateway.http1.message import MAX_LINE_BYTES
from tests.e2e import KEY, connected, request
from tests.e2e.transparency import as_sent, is_in_step, read_answer

if TYPE_CHECKING:
    from tests.e2e import Client
    from tests.kit.upstream import Upstream

QUERIES = [
    "?",
    "??",
    "?a",
    "?a=",
    "?=",
    "?=a",
    "?a=1&a=2&a=3",
    "?&",
    "?&&",
    "?a&&b",
    "?a=1;b=2",
    "?;",
    "?a+b=c+d",
    "?a%20b=%2B",
    "?a=%2F&b=/../..&c=//",
    "?%2f%2F",
    "?a=%2e%2e%2f",
    "?%zz",
    "?%",
    "?%0",
    "?%00%0d%0a%0A",
    "?a?b",
    "?a=b=c",
    "?a[]=1&a[b]=2",
    "?a={x}|\\^`\"<>'",
    "?url=http://a.test:80/x?y=z&w",
    "?%C3%A9&%c3%a9&%FF",
    "?a=1,2&b=*&c=~!@$:()",
    "?Key=K&key=k",
    "?key=mine",
]
PATHS = [
    "",
    "/",
    "//",
    "/x",
    "/x/",
    "//x//y//",
    "/a%2Fb%2fc",
    "/a%5Cb\\c",
    "/%41%61a",
    "/%00",
    "/%zz%",
    "/%25%2525",
    "/%C3%A9%c3%a9",
    "/a+b%20c",
    "/a;b=1;c/d",
    "/models/gpt:generate@1,2",
    "/{x}|^`\"<>'()*!$&~",
    "/a/./b",
    "/.",
    "/./",
    "/a/..",
    "/a/../b",
    "/a/b/../../c",
    "/a/%2e%2E/b",
    "/a/.%2e/b",
    "/a%2f..%2fb",
    "/a/%2E/b",
    "/...",
    "/..a/a../.b",
    "/%2e",
    "/x?../../y",
    "/x?/%2e%2e/%2e%2e",
    "/api/x",
    "/v1/x",
    "/register",
]


@pytest.mark.parametrize("rest", [*PATHS, *("/x" + query for query in QUERIES), *QUERIES[:4]])
async def test_every_byte_behind_the_prefix_arrives(upstream: Upstream, client: Client, token: str, rest: str) -> None:
    for _ in range(2):  # the second is remembered
        client.write(request("/api" + rest, token))
        assert (await read_answer(client)).status == 200
        assert upstream.requests.pop().start_line == f"GET /v1{rest} HTTP/1.1".encode()
    await is_in_step(upstream, client, token)


@pytest.mark.parametrize("size", [256, 257, MAX_LINE_BYTES])
async def test_a_long_target_arrives(upstream: Upstream, client: Client, token: str, size: int) -> None:
    rest = "/x?q=".ljust(size - len("GET /api HTTP/1.1"), "%")
    client.write(request("/api" + rest, token))
    assert (await read_answer(client)).status == 200
    assert upstream.requests[0].start_line == f"GET /v1{rest} HTTP/1.1".encode()


async def test_a_longer_one_is_a_414(upstream: Upstream, client: Client, token: str) -> None:
    client.write(request("/api/".ljust(MAX_LINE_BYTES, "x"), token))
    answer = await read_answer(client)
    assert (answer.status, answer.value(b"x-gateway-error")) == (414, b"target_too_long")
    assert await client.at_end()
    assert upstream.connections == []


# --- a target without a path, and a key in the query ------------------------------------------------------------------

WITHOUT_A_PATH = {"": "/", "?": "/?", "?a&&b": "/?a&&b", "/": "/", "//": "//", "/x/": "/x/", "/%2F?": "/%2F?"}


@pytest.mark.parametrize("rest", WITHOUT_A_PATH)
async def test_a_target_without_a_path_takes_it_all(upstream: Upstream, rest: str) -> None:
    async with (
        Gateway(Config(target_api_url=upstream.url.removesuffix("/v1"))) as gateway,
        connected(gateway.url) as client,
    ):
        client.write(request("/api" + rest, gateway.issue_token()))
        assert (await read_answer(client)).status == 200
    assert upstream.requests[0].start_line == f"GET {WITHOUT_A_PATH[rest]} HTTP/1.1".encode()


WITH_A_KEY = {"": "?", "?": "?&", "?a": "?a&", "?a=1&": "?a=1&&", "??;%zz+": "??;%zz+&", "?key=mine": "?key=mine&"}


@pytest.mark.parametrize("query", WITH_A_KEY)
async def test_a_key_goes_behind_the_query_as_it_is(upstream: Upstream, query: str) -> None:
    config = Config(target_api_url=upstream.url, target_api_key=KEY, target_api_auth="query:key")
    async with Gateway(config) as gateway, connected(gateway.url) as client:
        client.write(request("/api/x" + query, gateway.issue_token()))
        assert (await read_answer(client)).status == 200
    assert upstream.requests[0].start_line == f"GET /v1/x{WITH_A_KEY[query]}key={KEY} HTTP/1.1".encode()


# --- what leads nowhere ----------------------------------------------------------------------------------------------

CLIMBS = [
    "/..",
    "/../",
    "/../x",
    "/..?x",
    "/./..",
    "//../..",
    "/a/../..",
    "/a/b/../../../c",
    "/%2e%2e",
    "/%2E%2e/x",
    "/.%2e/x",
    "/%2e./x",
    "/a/%2e%2e/%2e%2e/x",
    "/..%2fx",
    "/..%2F..%2Fx",
    "/a%2f..%2f..",
    "/a%2fb/../..",
    "/a\\b/../..",
    "/..\\x",
    "/..%5cx",
    "/..;x/y",
]
ELSEWHERE = {
    "/apix": (404, "not_found"),
    "/API/x": (404, "not_found"),
    "//api/x": (404, "not_found"),
    "/%61pi/x": (404, "not_found"),
    "/./api/x": (404, "not_found"),
    "/x/../api/x": (404, "not_found"),
    "/": (404, "not_found"),
    "http://elsewhere.test/api/x": (403, "not_allowed"),
    "https://elsewhere.test": (403, "not_allowed"),
    "/api/x#fragment": (400, "bad_request"),
    "/api/é": (400, "bad_request"),
    "api/x": (400, "bad_request"),
}


@pytest.mark.parametrize("rest", CLIMBS)
async def test_a_path_that_climbs_out_of_the_prefix_is_a_400(
    upstream: Upstream, client: Client, token: str, rest: str
) -> None:
    client.write(request("/api" + rest, token))
    answer = await read_answer(client)
    assert (answer.status, answer.value(b"x-gateway-error")) == (400, b"bad_request")
    assert await client.at_end()
    assert upstream.connections == []


@pytest.mark.parametrize("target", ELSEWHERE)
async def test_a_target_elsewhere_is_refused(upstream: Upstream, client: Client, token: str, target: str) -> None:
    client.write(request(target, token))
    answer = await read_answer(client)
    status, code = ELSEWHERE[target]
    assert (answer.status, answer.value(b"x-gateway-error")) == (status, code.encode())
    assert upstream.connections == []


# --- what else stands in the request line -----------------------------------------------------------------------------

METHODS = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "PROPFIND",
    "QUERY",
    "get",
    "M-SEARCH",
    "X!#$%&'*",
]


@pytest.mark.parametrize("method", METHODS)
async def test_any_method_arrives(upstream: Upstream, client: Client, token: str, method: str) -> None:
    client.write(request("/api/x", token, method=method))
    assert (await read_answer(client, method)).status == 200
    assert upstream.requests[0].start_line == f"{method} /v1/x HTTP/1.1".encode()
    await is_in_step(upstream, client, token)


@pytest.mark.parametrize("method", ["TRACE", "CONNECT"])
async def test_two_methods_would_show_the_key_or_go_past_it(
    upstream: Upstream, client: Client, token: str, method: str
) -> None:
    client.write(request("/api/x" if method == "TRACE" else "api.test:443", token, method=method))
    assert (await read_answer(client)).status == (405 if method == "TRACE" else 501)
    assert upstream.connections == []


@pytest.mark.parametrize("host", ["gateway", "other.test:81", "127.0.0.1", "[::1]:3000", ""])
async def test_the_upstream_hears_its_own_name_whatever_the_client_called(
    upstream: Upstream, client: Client, token: str, host: str
) -> None:
    client.write(request("/api/x", token).replace(b"Host: localhost", f"Host: {host}".strip().encode()))
    assert (await read_answer(client)).status == 200
    message = as_sent(upstream.requests[0])
    assert message.fields[0] == (b"Host", f"127.0.0.1:{upstream.port}".encode())
    assert [name for name in message.names if name not in {b"Host", b"Authorization"}] == []


async def test_a_1_0_request_without_host_goes_on_as_1_1_with_the_upstreams(
    upstream: Upstream, client: Client, token: str
) -> None:
    client.write(request("/api/x", token, version="1.0").replace(b"Host: localhost\r\n", b""))
    assert (await read_answer(client)).status == 200
    message = as_sent(upstream.requests[0])
    assert message.start == b"GET /v1/x HTTP/1.1"
    assert message.value(b"host") == f"127.0.0.1:{upstream.port}".encode()
