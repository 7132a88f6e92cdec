"""Several workers on one port, as their operator has them: they share limits, are replaced, and end together."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.e2e import CUT_SHORT, connected, fetch, request
from tests.kit.process import Program, gateway_process, start, until
from tests.kit.redis import RedisServer, running_redis
from tests.kit.upstream import Upstream, answering, events, hang, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

MOST_BYTES = 15 * 1024 * 1024
"""What the supervisor may take."""


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
async def program(upstream: Upstream, redis: RedisServer) -> AsyncIterator[Program]:
    async with workers_process(upstream, redis) as running:
        yield running


def shared(upstream: Upstream, redis: RedisServer) -> dict[str, str]:
    """Return the settings of a gateway that counts in Redis, however long that, or the gateway, gets no processor."""
    return {"TARGET_API_URL": upstream.url, "REDIS_URL": redis.url, "STORE_TIMEOUT": "10s"}


@contextlib.asynccontextmanager
async def workers_process(
    upstream: Upstream, redis: RedisServer, count: int = 2, **settings: str
) -> AsyncIterator[Program]:
    """Run a gateway with several workers, all of which serve."""
    usual = {**shared(upstream, redis), "GATEWAY_WORKERS": str(count)}
    async with gateway_process(**{**usual, **settings}) as program:
        await until(lambda: f"{count} workers serve" in program.printed)
        yield program


def is_gone(pid: int) -> bool:
    """Whether a process has ended, even if nobody has waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def sockets(pid: int) -> int:
    found = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(descriptor).startswith("socket:")  # noqa: PTH115 - it is no path
    return found


def shared_directory(pid: int) -> Path:
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (found,) = (one for one in environ if one.startswith(b"GATEWAY_SHARED_DIR="))
    return Path(found.partition(b"=")[2].decode())


async def token_of(url: str) -> str:
    token: str = json.loads((await fetch(url, request("/register", method="POST"))).content)["token"]
    return token


# --- serving ----------------------------------------------------------------------------------------------------------


async def test_connections_are_dealt_out_to_all_workers(program: Program) -> None:
    pids = program.children()
    before = [sockets(pid) for pid in pids]
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(40):
            client = await stack.enter_async_context(connected(program.url))
            assert (await client.ask(request("/healthz"))).status == 200
        held = [sockets(pid) - count for pid, count in zip(pids, before, strict=True)]
    assert sum(held) == 40
    # By chance alone, one of the two has fewer than 5 in 3 of 10,000,000 runs.
    assert min(held) >= 5


async def test_limits_hold_over_all_workers(upstream: Upstream, redis: RedisServer) -> None:
    async with workers_process(upstream, redis, 3, RATE_LIMIT="20/hour") as program:
        token = await token_of(program.url)
        statuses = [(await fetch(program.url, request("/api/x", token))).status for _ in range(60)]
    assert statuses == [200] * 20 + [429] * 40
    assert len(upstream.requests) == 20


async def test_a_revoked_token_is_refused_by_all(program: Program) -> None:
    answer = json.loads((await fetch(program.url, request("/register", method="POST"))).content)
    assert (await fetch(program.url, request("/api/x", answer["token"]))).status == 200
    await fetch(program.url, request(f"/admin/tokens/{answer['id']}", method="DELETE"))
    for _ in range(10):
        assert (await fetch(program.url, request("/api/x", answer["token"]))).status == 401


async def test_a_reload_reaches_all_workers(upstream: Upstream, redis: RedisServer, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('admin_key = "an-admin-key-of-32-characters-or-more"', encoding="ascii")
    file.chmod(0o644)
    async with workers_process(upstream, redis, GATEWAY_CONFIG=str(file)) as program:
        program.signal(signal.SIGHUP)
        await until(lambda: program.printed.count("INFO gateway: reloaded") == 2)
        assert program.printed.count("has secrets in it (admin_key) and mode 644") == 1  # however many read it


async def test_the_supervisor_is_small(program: Program) -> None:
    for _ in range(20):
        await fetch(program.url, request("/healthz"))
    assert program.memory_bytes("VmHWM") < MOST_BYTES


async def test_the_workers_have_a_directory_of_their_own_that_goes_with_them(program: Program) -> None:
    (directory,) = {shared_directory(pid) for pid in program.children()}
    assert directory.stat().st_mode & 0o777 == 0o700
    (directory / "left-behind").write_bytes(b"x")
    program.signal(signal.SIGTERM)
    assert await program.ended() == 0
    assert not directory.exists()


# --- starting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["serve", "check-config"])
def test_the_embedded_store_is_refused_with_the_mend(command: str) -> None:
    environ = {**os.environ, "TARGET_API_URL": "http://api.test", "GATEWAY_WORKERS": "2"}
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", command], env=environ, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(r"gateway: GATEWAY_WORKERS: 2 .+ REDIS_URL=redis://.+\n", ended.stderr)


async def test_a_port_in_use_is_one_line_and_exit_code_1(
    upstream: Upstream, redis: RedisServer, program: Program
) -> None:
    second = await start(
        TARGET_API_URL=upstream.url,
        REDIS_URL=redis.url,
        GATEWAY_WORKERS="2",
        GATEWAY_LISTEN=urlsplit(program.url).netloc,
    )
    try:
        assert await second.ended() == 1
    finally:
        await second.kill()
    assert re.fullmatch(r"gateway: .*cannot listen on .+ in use; another program.*\n", second.printed)


async def test_a_start_without_redis_is_one_line_and_exit_code_1(upstream: Upstream, tmp_path: Path) -> None:
    program = await start(TARGET_API_URL=upstream.url, REDIS_URL=f"unix://{tmp_path}/none.sock", GATEWAY_WORKERS="2")
    try:
        assert await program.ended() == 1
    finally:
        await program.kill()
    assert re.fullmatch(r"gateway: .+\n", program.printed)


# --- ends that nobody has asked for -----------------------------------------------------------------------------------


async def test_a_killed_worker_is_replaced_and_new_clients_are_served_all_the_time(program: Program) -> None:
    before = program.children()
    os.kill(before[0], signal.SIGKILL)
    for _ in range(30):
        assert (await fetch(program.url, request("/healthz"))).status == 200
    await until(lambda: len(program.children()) == 2 and before[0] not in program.children())
    (new,) = set(program.children()) - set(before)
    await until(lambda: program.printed.count("listening on") == 3)
    assert f"worker {before[0]} has ended (killed by signal 9): another one starts" in program.printed
    assert not is_gone(new)


async def test_clients_of_a_worker_that_hangs_are_served_by_the_others(program: Program) -> None:
    hanging = program.children()[0]
    os.kill(hanging, signal.SIGSTOP)
    try:
        for _ in range(20):
            assert (await fetch(program.url, request("/healthz"))).status == 200
    finally:
        os.kill(hanging, signal.SIGCONT)


async def test_workers_end_with_their_supervisor(program: Program) -> None:
    pids = program.children()
    directory = shared_directory(pids[0])
    (directory / "left-behind").write_bytes(b"x")
    program.process.kill()
    await until(lambda: all(map(is_gone, pids)))
    with pytest.raises(ConnectionError):
        await fetch(program.url, request("/healthz"))
    assert program.printed.count("the supervisor has ended") == 2
    assert not directory.exists()


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to_each", [False, True])
async def test_a_stop_lets_what_is_in_flight_end(upstream: Upstream, program: Program, to_each: bool) -> None:  # noqa: FBT001
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    upstream.default = events(queue)
    token = await token_of(program.url)
    async with connected(program.url) as stream:
        stream.write(request("/api/stream", token))
        assert (await stream.final_head()).status == 200
        if to_each:  # as service managers do, and terminals
            for pid in program.children():
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGINT)
        program.signal(signal.SIGTERM)
        # Long after all but the stream has ended.
        await until(lambda: len(program.children()) == 1)
        with pytest.raises(ConnectionError):
            async with connected(program.url):
                pass
        for text in (b"one", b"two"):
            queue.put_nowait(text)
            assert await stream.chunk() == b"data: %b\n\n" % text
        queue.put_nowait(b"")
        assert await stream.chunk() == b""
    assert await program.ended() == 0
    assert "ERROR" not in program.printed


async def test_a_second_signal_ends_all_workers_at_once(upstream: Upstream, program: Program) -> None:
    upstream.default = hang
    token = await token_of(program.url)
    async with connected(program.url) as client:
        client.write(request("/api/x", token))
        await upstream.requested()
        program.signal(signal.SIGTERM)
        await until(lambda: program.printed.count("stopping:") == 2)
        program.signal(signal.SIGTERM)
        with pytest.raises(CUT_SHORT):
            await client.answer()
    assert await program.ended() == 0


async def test_a_unix_socket_is_shared_and_its_file_goes_at_the_stop(
    upstream: Upstream, redis: RedisServer, tmp_path: Path
) -> None:
    path = tmp_path / "gateway.sock"
    listen = f"unix:{path},127.0.0.1:0"
    async with workers_process(upstream, redis, GATEWAY_LISTEN=listen) as program:
        upstream.default = answering(b"ok")
        token = await token_of(program.url)
        for _ in range(10):
            assert (await fetch(f"unix:{path}", request("/api/x", token))).content == b"ok"
        program.signal(signal.SIGTERM)
        assert await soon(program.ended()) == 0
    assert not path.exists()
