"""Load generators, unchanged, in short bounded runs: what they count is what the upstream was asked, and charged."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from gateway import Config, Gateway
from tests.e2e import fetch, request
from tests.kit.programs import program, run
from tests.kit.upstream import Handler, Upstream, answering, echo, in_chunks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

QUOTA = 1_000_000
CONNECTIONS = 8


@pytest.fixture
async def gateway(upstream: Upstream) -> AsyncIterator[Gateway]:
    async with Gateway(Config(target_api_url=upstream.url, target_api_key="sk", rate_limit=f"{QUOTA}/hour")) as running:
        yield running


async def charged(gateway: Gateway, token: str) -> int:
    """How much of its quota a token has used, before this."""
    answer = await fetch(gateway.url, request("/api/last", token))
    return QUOTA - 1 - int(answer["ratelimit"].partition(";r=")[2].partition(";")[0])


# --- wrk -------------------------------------------------------------------------------------------------------------


class Counted:
    """What wrk says it saw."""

    def __init__(self, printed: str) -> None:
        found = re.search(r"^  (\d+) requests in ", printed, re.MULTILINE)
        assert found is not None, printed
        self.answers = int(found[1])
        refused = re.search(r"^  Non-2xx or 3xx responses: (\d+)$", printed, re.MULTILINE)
        self.refused = 0 if refused is None else int(refused[1])
        self.failed = re.findall("Socket errors.*", printed)


async def wrk(gateway: Gateway, token: str, *options: str) -> Counted:
    code, out, err = await run(
        *(program("wrk"), "--threads", "1", "--connections", str(CONNECTIONS), "--duration", "1s", *options),
        *("--header", f"Authorization: Bearer {token}", f"{gateway.url}/api/x"),
    )
    assert (code, err) == (0, b"")
    return Counted(out.decode())


@pytest.mark.parametrize("handler", [answering(b"hello"), in_chunks(b"hel", b"lo")], ids=["length", "chunked"])
async def test_wrk_gets(upstream: Upstream, gateway: Gateway, handler: Handler) -> None:
    upstream.default = handler
    token = gateway.issue_token()
    counted = await wrk(gateway, token)
    assert (counted.refused, counted.failed) == (0, [])
    # When its time is over it leaves what is under way, once on each connection at most.
    asked = len(upstream.requests)
    assert 0 < counted.answers <= asked <= await charged(gateway, token) <= counted.answers + CONNECTIONS


async def test_wrk_posts(upstream: Upstream, gateway: Gateway, tmp_path: Path) -> None:
    upstream.default = echo
    script = tmp_path / "post.lua"
    script.write_text(
        'wrk.method = "POST"\nwrk.body = string.rep("x", 1000)\n'
        "function response(status, headers, body)\n"
        '  if body ~= wrk.body then io.stderr:write("another body: ", body) end\nend\n',
        encoding="ascii",
    )
    token = gateway.issue_token()
    counted = await wrk(gateway, token, "--script", str(script))
    assert (counted.refused, counted.failed) == (0, [])
    assert 0 < counted.answers <= len(upstream.requests) <= counted.answers + CONNECTIONS


async def test_wrk_gets_no_more_through_than_the_limit(upstream: Upstream, gateway: Gateway) -> None:
    counted = await wrk(gateway, gateway.issue_token(limits=["60/hour"]))
    assert counted.failed == []
    assert counted.answers - counted.refused == len(upstream.requests) == 60
    assert counted.refused > 0


# --- ab --------------------------------------------------------------------------------------------------------------


async def ab(gateway: Gateway, token: str, *options: str, path: str = "/api/x") -> dict[str, str]:
    """Run ab; return what it says it saw, by its own names."""
    code, out, err = await run(
        *(program("ab", "apache2-utils"), "-q", "-n", "300", "-c", str(CONNECTIONS), "-s", "15", *options),
        *("-H", f"Authorization: Bearer {token}", gateway.url + path),
    )
    assert (code, err) == (0, b"")
    lines = (line.partition(":") for line in out.decode().splitlines())
    return {name: value.strip() for name, _, value in lines}


@pytest.mark.parametrize("options", [(), ("-k",), ("-i",), ("-k", "-i")], ids=["", "-k", "-i", "-k -i"])
async def test_ab_asks_in_http_1_0(upstream: Upstream, gateway: Gateway, options: tuple[str, ...]) -> None:
    upstream.default = answering(b"hello")
    token = gateway.issue_token()
    counted = await ab(gateway, token, *options)
    assert (counted["Complete requests"], counted["Failed requests"]) == ("300", "0")
    assert "Non-2xx responses" not in counted
    assert counted.get("Keep-Alive requests") == ("300" if "-k" in options else None)
    assert [received.start_line[-8:] for received in upstream.requests] == [b"HTTP/1.1"] * 300
    assert await charged(gateway, token) == 300


async def test_ab_gets_what_came_in_chunks(upstream: Upstream, gateway: Gateway) -> None:
    upstream.default = in_chunks(b"hel", b"lo")
    counted = await ab(gateway, gateway.issue_token(), "-k")
    assert (counted["Complete requests"], counted["Failed requests"]) == ("300", "0")
    assert counted["HTML transferred"] == f"{300 * 5} bytes"
    assert len(upstream.requests) == 300


async def test_ab_posts(upstream: Upstream, gateway: Gateway, tmp_path: Path) -> None:
    upstream.default = echo
    content = tmp_path / "content"
    content.write_bytes(b"x" * 10_000)
    counted = await ab(gateway, gateway.issue_token(), "-k", "-p", str(content), "-T", "text/plain")
    assert (counted["Complete requests"], counted["Failed requests"]) == ("300", "0")
    assert (counted["Document Length"], counted["Keep-Alive requests"]) == ("10000 bytes", "300")
    assert {received.raw_body for received in upstream.requests} == {b"x" * 10_000}
    assert len(upstream.requests) == 300


async def test_ab_gets_no_more_through_than_the_limit(upstream: Upstream, gateway: Gateway) -> None:
    counted = await ab(gateway, gateway.issue_token(limits=["60/hour"]), "-k", "-l")
    assert (counted["Complete requests"], counted["Non-2xx responses"]) == ("300", "240")
    assert len(upstream.requests) == 60
