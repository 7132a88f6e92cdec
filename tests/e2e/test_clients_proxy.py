"""The clients that people have, unchanged but for a proxy: the token in its URL, the API's own URL to ask for.

Node's and Go's are in `test_clients_node.py` and `test_clients_go.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import aiohttp
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


def by_the_environment(name: str, url: str) -> bytes:
    """Ask for a URL with nothing said about a proxy."""

    async def with_aiohttp() -> bytes:
        async with aiohttp.ClientSession(trust_env=True) as session, session.get(url) as answer:
            return await answer.read()

    if name == "aiohttp":
        return asyncio.run(with_aiohttp())
    if name == "urllib":
        # `urlopen` does the same, but looks at the environment once.
        with urllib.request.build_opener().open(url, timeout=TIMEOUT_S) as answer:
            return bytes(answer.read())
    answer = requests.get(url, timeout=TIMEOUT_S) if name == "requests" else httpx.get(url, timeout=TIMEOUT_S)
    return answer.content


@pytest.mark.parametrize(
    ("name", "variable", "password"),
    [
        *itertools.product([*PYTHON, "aiohttp"], ["HTTP_PROXY", "http_proxy"], [":x"]),
        ("requests", "ALL_PROXY", ":x"),
        ("httpx", "ALL_PROXY", ":x"),
        ("aiohttp", "HTTP_PROXY", ""),
    ],
)
async def test_the_environment_alone(
    upstream: Upstream, gateway: Gateway, name: str, variable: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, proxy(gateway, gateway.issue_token() + password))
    assert await asyncio.to_thread(by_the_environment, name, f"{upstream.url}/x?q=%20") == b"hello"
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
    assert code in (56, 7)  # curl's "failure in receiving network data", newer ones' "failed to connect": no tunnel
    assert out.split(b" ")[1] == b"501"
    assert upstream.requests == []
