"""The clients that people have, unchanged but for a proxy: the token in its URL, the API's own URL to ask for."""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import requests

from gateway import Config, Gateway
from tests.e2e import KEY
from tests.kit.programs import program, run
from tests.kit.upstream import TIMEOUT_S, Upstream, answering, echo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

Reply = tuple[int, bytes]
NODE_CLIENT = str(Path(__file__).with_name("proxy_client.mjs"))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
async def gateway(upstream: Upstream) -> AsyncIterator[Gateway]:
    upstream.default = answering(b"hello")
    async with Gateway(Config(target_api_url=upstream.url, target_api_key=KEY, rate_limit="100/hour")) as running:
        yield running


def proxy(gateway: Gateway, user: str) -> str:
    return gateway.url.replace("http://", f"http://{user}@")


def by_requests(through: str, url: str) -> Reply:
    answer = requests.get(url, proxies={"http": through}, timeout=TIMEOUT_S)
    return answer.status_code, answer.content


def by_httpx(through: str, url: str) -> Reply:
    with httpx.Client(proxy=through, trust_env=False, timeout=TIMEOUT_S) as client:
        answer = client.get(url)
    return answer.status_code, answer.content


def by_urllib(through: str, url: str) -> Reply:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": through}))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


PYTHON: dict[str, Callable[[str, str], Reply]] = {"requests": by_requests, "httpx": by_httpx, "urllib": by_urllib}


async def curl(through: str, url: str, *more: str) -> tuple[int, bytes, bytes]:
    return await run(program("curl"), "--silent", "--show-error", "--max-time", "15", "--proxy", through, *more, url)


def seen(upstream: Upstream) -> list[tuple[bytes, bytes | None, bytes | None]]:
    return [
        (request.start_line, request.field(b"authorization"), request.field(b"proxy-authorization"))
        for request in upstream.requests
    ]


GOOD = [(b"GET /v1/x?q=%20 HTTP/1.1", f"Bearer {KEY}".encode(), None)]


@pytest.mark.parametrize("name", PYTHON)
async def test_a_token_with_any_password(upstream: Upstream, gateway: Gateway, name: str) -> None:
    through = proxy(gateway, f"{gateway.issue_token()}:x")
    assert await asyncio.to_thread(PYTHON[name], through, f"{upstream.url}/x?q=%20") == (200, b"hello")
    assert seen(upstream) == GOOD


@pytest.mark.parametrize(("name", "status"), [("requests", 401), ("httpx", 200), ("urllib", 401)])
async def test_who_sends_a_token_without_a_password(
    upstream: Upstream, gateway: Gateway, name: str, status: int
) -> None:
    answered, content = await asyncio.to_thread(
        PYTHON[name], proxy(gateway, gateway.issue_token()), f"{upstream.url}/x?q=%20"
    )
    assert answered == status
    assert (b"http://TOKEN:x@" in content) is (status == 401)
    assert seen(upstream) == (GOOD if status == 200 else [])


@pytest.mark.parametrize("password", ["", ":", ":x"])
async def test_curl(upstream: Upstream, gateway: Gateway, password: str) -> None:
    through = proxy(gateway, gateway.issue_token() + password)
    assert await curl(through, f"{upstream.url}/x?q=%20") == (0, b"hello", b"")
    assert seen(upstream) == GOOD


@pytest.mark.parametrize("name", ["http_proxy", "ALL_PROXY"])
async def test_curl_by_its_environment(
    upstream: Upstream, gateway: Gateway, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, proxy(gateway, gateway.issue_token()))
    out = await run(program("curl"), "--silent", "--show-error", "--max-time", "15", f"{upstream.url}/x?q=%20")
    assert out == (0, b"hello", b"")
    assert seen(upstream) == GOOD


async def test_curl_posts(upstream: Upstream, gateway: Gateway) -> None:
    through = proxy(gateway, gateway.issue_token())
    upstream.default = echo
    assert (await curl(through, f"{upstream.url}/x", "--data-binary", "what"))[:2] == (0, b"what")
    assert upstream.requests[0].start_line == b"POST /v1/x HTTP/1.1"


async def test_another_url_is_a_403_and_reaches_nobody(upstream: Upstream, gateway: Gateway) -> None:
    async with Upstream() as other:
        through = proxy(gateway, gateway.issue_token())
        code, out, _ = await curl(through, f"{other.url}/x", "--include")
        assert (code, out.split(b" ")[1]) == (0, b"403")
        assert b"X-Gateway-Error: not_allowed" in out
        assert (upstream.requests, other.requests) == ([], [])


async def test_an_https_url_is_told_what_to_do_instead(upstream: Upstream, gateway: Gateway) -> None:
    through = proxy(gateway, gateway.issue_token())
    code, out, _ = await curl(through, "https://api.test/v1/x", "--include")
    assert code == 56  # curl's "failure in receiving network data": its tunnel was refused
    assert out.split(b" ")[1] == b"501"
    assert upstream.requests == []


@pytest.mark.skipif(shutil.which("node") is None, reason="node is too large to install for this test alone")
async def test_node_http(upstream: Upstream, gateway: Gateway) -> None:
    code, out, err = await run(
        program("node"), NODE_CLIENT, gateway.url, f"{upstream.url}/x?q=%20", gateway.issue_token()
    )
    assert (code, err, json.loads(out)) == (0, b"", [200, "hello"])
    assert seen(upstream) == GOOD
