"""Tests of what embeds in somebody's loop run on both loops; the others start programs, which bring their own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import trustme
import uvloop

from gateway import Config, Gateway
from tests.e2e import KEY, Client, connected
from tests.e2e.corpora import folder
from tests.kit.programs import has_go, node_has_fetch
from tests.kit.redis import RedisServer, running_redis
from tests.kit.tls import pem_file
from tests.kit.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

ON_BOTH = {
    "test_bounds",
    "test_dial",
    "test_listening",
    "test_listening_unix",
    "test_listening_tls",
    "test_names",
    "test_nginx_upstream",
    "test_secrets",
    "test_sick_upstreams",
    "test_sockets",
    "test_stale_pool",
    "test_tls",
    "test_websocket",
}

# They are not part of the project, so their absence is neither a failure nor a skip.
collect_ignore = [] if folder() else ["test_corpora.py"]
# Node and Go are too large to install for their tests alone: where they are not there, neither are the tests.
if not node_has_fetch():
    collect_ignore.append("test_clients_node.py")
if not has_go():
    collect_ignore.append("test_clients_go.py")


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.path.stem in ON_BOTH or item.path.stem.startswith("test_transparency_"):
        loops["uvloop"] = uvloop.new_event_loop
    return loops


# Some modules have their own of these.


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        yield running


@pytest.fixture
async def gateway(upstream: Upstream) -> AsyncIterator[Gateway]:
    # Idle for longer than a test waits: no connection ends for its age.
    config = Config(target_api_url=upstream.url, target_api_key=KEY, rate_limit="10000", upstream_idle="1h")
    async with Gateway(config) as running:
        yield running


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[Client]:
    async with connected(gateway.url) as connection:
        yield connection


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
async def mishaps() -> AsyncIterator[list[dict[str, Any]]]:
    """What the loop has no other place to tell of: a callback that failed, a result that nobody took."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    yield found
    assert found == []


@pytest.fixture
def token(gateway: Gateway) -> str:
    return gateway.issue_token()


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    return pem_file(ca, tmp_path_factory.mktemp("ca"))
