"""Go's net/http, unchanged: by a base URL, as the example has it, and through a proxy named by the environment.

Not collected where there is no `go`: it is too large to install for these tests alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway import Config, Gateway
from tests.e2e import KEY
from tests.kit.programs import go_build, run
from tests.kit.upstream import Upstream, answering

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HERE = Path(__file__)
EXAMPLE = HERE.parents[2] / "tools" / "examples" / "main.go"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> str:
    return go_build(EXAMPLE, tmp_path_factory.mktemp("example"))


@pytest.fixture(scope="module")
def proxy_client(tmp_path_factory: pytest.TempPathFactory) -> str:
    return go_build(HERE.with_name("proxy_client.go"), tmp_path_factory.mktemp("proxy"))


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        running.default = answering(b"hello")
        yield running


@pytest.fixture
def url(upstream: Upstream) -> str:
    """The API's, by an address that is this machine's but no loopback address: for those, Go uses no proxy."""
    return upstream.url.replace("127.0.0.1", "0.0.0.0")


@pytest.fixture
async def gateway(url: str) -> AsyncIterator[Gateway]:
    async with Gateway(Config(target_api_url=url, target_api_key=KEY)) as running:
        yield running


def seen(upstream: Upstream) -> list[tuple[bytes, bytes | None, bytes | None]]:
    return [
        (request.start_line, request.field(b"authorization"), request.field(b"proxy-authorization"))
        for request in upstream.requests
    ]


def environment(**more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], **more}


async def test_the_example(upstream: Upstream, gateway: Gateway, example: str) -> None:
    settings = environment(GATEWAY_URL=f"{gateway.url}/api", GATEWAY_TOKEN=gateway.issue_token())
    assert await run(example, env=settings) == (0, b"hello", b"")
    assert seen(upstream) == [(b"GET /v1/models HTTP/1.1", f"Bearer {KEY}".encode(), None)]


async def test_the_example_without_a_good_token(upstream: Upstream, gateway: Gateway, example: str) -> None:
    settings = environment(GATEWAY_URL=f"{gateway.url}/api", GATEWAY_TOKEN="made-up")
    code, out, err = await run(example, env=settings)
    assert (code, out) == (1, b"")
    assert err.endswith(b"401 Unauthorized\n")
    assert seen(upstream) == []


@pytest.mark.parametrize("password", ["", ":x"])
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy"])
async def test_through_a_proxy(
    upstream: Upstream, gateway: Gateway, url: str, proxy_client: str, variable: str, password: str
) -> None:
    through = gateway.url.replace("http://", f"http://{gateway.issue_token()}{password}@")
    ran = await run(proxy_client, f"{url}/x?q=%20", env=environment(**{variable: through}))
    assert ran == (0, b"200 hello\n", b"")
    assert seen(upstream) == [(b"GET /v1/x?q=%20 HTTP/1.1", f"Bearer {KEY}".encode(), None)]


async def test_a_url_of_somebody_elses(upstream: Upstream, gateway: Gateway, proxy_client: str) -> None:
    through = gateway.url.replace("http://", f"http://{gateway.issue_token()}@")
    code, out, _ = await run(proxy_client, "http://api.test/x", env=environment(HTTP_PROXY=through))
    assert (code, out[:4]) == (0, b"403 ")
    assert seen(upstream) == []
