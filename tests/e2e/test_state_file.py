"""Budgets that outlive the process, without Redis: the program with `STATE_FILE`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import time
from typing import TYPE_CHECKING, Any

import pytest

from gateway.config import Config
from gateway.errors import StoreUnavailable
from gateway.server import Gateway
from gateway.tokens import TokenSigner
from tests.e2e import connected, fetch, request
from tests.e2e.test_workers import token_of
from tests.kit.process import gateway_process, start, until
from tests.kit.tls import Pem, client_side
from tests.kit.upstream import Upstream, answering, events

if TYPE_CHECKING:
    from pathlib import Path

    import trustme

SECRET = "0123456789abcdef" * 2


def settings_of(upstream: Upstream, tmp_path: Path) -> dict[str, str]:
    return {
        "TARGET_API_URL": upstream.url,
        "TARGET_COST": "1 USD",
        "BUDGET": "4 USD/month",
        "STATE_FILE": str(tmp_path / "state.db"),
        "TOKEN_SECRET": SECRET,
    }


def connections_of(gateway: Gateway) -> set[object]:
    assert gateway._context is not None
    return set(gateway._context.connections)


def names_in(directory: Path) -> set[str]:
    return {file.name for file in directory.iterdir()}


async def test_a_killed_program_has_spent_what_it_spent_and_what_it_had_sent(
    upstream: Upstream, tmp_path: Path
) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    upstream.default = answering(b"ok")
    upstream.paths = {b"/v1/stream": events(queue)}
    settings = settings_of(upstream, tmp_path)
    async with gateway_process(**settings) as program:
        token, ended = await token_of(program.url), await token_of(program.url)
        ended_id = TokenSigner([SECRET.encode()]).verify(ended.encode(), now_s=time.time()).id
        answer = await fetch(program.url, request(f"/admin/tokens/{ended_id}", method="DELETE"))
        assert answer.status == 200
        for _ in range(2):
            assert (await fetch(program.url, request("/api/x", token))).status == 200
        async with connected(program.url) as stream:
            stream.write(request("/api/stream", token))
            queue.put_nowait(b"begun")
            assert (await stream.final_head()).status == 200
            program.signal(signal.SIGKILL)
            await program.ended()
    queue.put_nowait(b"")
    async with gateway_process(**settings) as program:
        entries = json.loads((await fetch(program.url, request("/admin/ledger?since=1h"))).content)["entries"]
        assert [one["mark"] for one in entries] == ["exact", "exact", "assumed"]
        statuses = [(await fetch(program.url, request("/api/x", token))).status for _ in range(2)]
        assert statuses == [200, 429]
        assert (await fetch(program.url, request("/api/x", ended)))["x-gateway-error"] == "token_revoked"
        program.signal(signal.SIGTERM)
        assert await program.ended() == 0
    assert len(upstream.requests) == 4


async def test_a_program_that_stops_in_good_order_leaves_nothing_to_be_assumed(
    upstream: Upstream, tmp_path: Path
) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    upstream.paths = {b"/v1/stream": events(queue)}
    settings = settings_of(upstream, tmp_path) | {"DRAIN_TIMEOUT": "0"}
    async with gateway_process(**settings) as program:
        token = await token_of(program.url)
        async with connected(program.url) as stream:
            stream.write(request("/api/stream", token))
            queue.put_nowait(b"begun")
            assert (await stream.final_head()).status == 200
            program.signal(signal.SIGTERM)
            assert await program.ended() == 0
    queue.put_nowait(b"")
    assert names_in(tmp_path) == {"state.db", "state.db.lock"}
    async with gateway_process(**settings) as program:
        told = json.loads((await fetch(program.url, request("/admin/ledger?since=1h"))).content)
        assert [one["mark"] for one in told["entries"]] == ["exact"]
        assert told["open"] == []


async def test_a_second_program_on_the_same_file_is_refused(upstream: Upstream, tmp_path: Path) -> None:
    settings = settings_of(upstream, tmp_path)
    async with gateway_process(**settings) as program:
        second = await start(**settings)
        try:
            assert await second.ended() == 1
        finally:
            await second.kill()
        assert "another gateway uses it" in second.printed
        assert "Traceback" not in second.printed
        program.signal(signal.SIGUSR2)
        await until(lambda: "SIGUSR2: not replaced: STATE_FILE has one writer at a time" in program.printed)
        assert (await fetch(program.url, request("/healthz"))).status == 200


async def test_a_token_whose_budget_a_restart_would_forget_is_not_made(upstream: Upstream, tmp_path: Path) -> None:
    async with Gateway(Config(target_api_url=upstream.url)) as gateway:
        with pytest.raises(ValueError, match="a day or longer, which takes a STATE_FILE or REDIS_URL"):
            gateway.issue_token(budgets=["1 USD/month"])
        assert gateway.issue_token(budgets=["1 USD/minute"])
    async with Gateway(Config(target_api_url=upstream.url, state_file=str(tmp_path / "state.db"))) as gateway:
        assert gateway.issue_token(budgets=["1 USD/month"])


async def test_inside_another_program(upstream: Upstream, tmp_path: Path) -> None:
    upstream.default = answering(b"ok")
    config = Config(
        target_api_url=upstream.url,
        target_cost="1 USD",
        budget="2 USD/day",
        state_file=str(tmp_path / "state.db"),
        token_secret=SECRET,
    )
    async with Gateway(config) as gateway:
        token = gateway.issue_token()
        assert (await fetch(gateway.url, request("/api/x", token))).status == 200
        with pytest.raises(StoreUnavailable, match="another gateway uses it"):
            async with Gateway(config):
                pass
    async with Gateway(config) as gateway:
        statuses = [(await fetch(gateway.url, request("/api/x", token))).status for _ in range(2)]
        assert statuses == [200, 429]


@pytest.mark.parametrize("left", [False, True], ids=["still there", "left before"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_a_stop_settles_what_is_read_on_for_a_client_that_left(
    upstream: Upstream, tmp_path: Path, ca: trustme.CA, *, left: bool, secure: bool
) -> None:
    """Else it would be held, and assumed in full by the next process, though nobody was killed."""
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    upstream.paths = {b"/v1/stream": events(queue)}
    pem = Pem(tmp_path / "cert.pem", tmp_path / "key.pem")
    pem.write(ca, "127.0.0.1")
    tls: dict[str, Any] = {"gateway_tls_cert": str(pem.cert), "gateway_tls_key": str(pem.key)} if secure else {}
    config = Config(
        target_api_url=upstream.url,
        target_cost="1 USD",
        state_file=str(tmp_path / "state.db"),
        on_disconnect="drain:60s",
        **tls,
    )
    async with Gateway(config) as gateway:
        token = gateway.issue_token()
        async with connected(gateway.url, client_side(ca) if secure else None) as stream:
            stream.write(request("/api/stream", token))
            queue.put_nowait(b"begun")
            assert (await stream.final_head()).status == 200
            if left:
                stream.writer.transport.abort()
                await until(lambda: not connections_of(gateway))
            await gateway.close()
    queue.put_nowait(b"")
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as db:
        assert list(db.execute("SELECT request FROM held")) == []
        assert list(db.execute("SELECT mark FROM ledger")) == [("exact",)]
