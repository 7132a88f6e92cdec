"""SIGUSR2: a new program takes the place of the old one, and nobody notices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from perf.restarts import restarted
from tests.e2e import CUT_SHORT, connected, fetch, request
from tests.e2e.test_process import not_listening
from tests.e2e.test_workers import is_gone, shared, token_of, workers_process
from tests.kit.process import Program, gateway_process, until
from tests.kit.redis import RedisServer, running_redis
from tests.kit.upstream import Upstream, answering, events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


ROOT = Path(__file__).parents[2]
RUN_TIMEOUT_S = 120.0
"""A failsafe: the longest of the counted runs takes 10 s where there is nothing else to do."""


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text('rate_limit = "1000/minute"\n', encoding="ascii")
    return path


def write(file: Path, text: str) -> None:
    file.write_text(text, encoding="ascii")


@contextlib.asynccontextmanager
async def running(workers: int, upstream: Upstream, redis: RedisServer, **settings: str) -> AsyncIterator[Program]:
    """Run a gateway that keeps its counts and the secret of its tokens in Redis."""
    if workers > 1:
        async with workers_process(upstream, redis, workers, **settings) as program:
            yield program
    else:
        async with gateway_process(**shared(upstream, redis), **settings) as program:
            yield program


# --- under load -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "requests", "restarts"), [(2, 5000, 3), (1, 1000, 1)])
async def test_no_answer_is_broken_by_restarts(
    record_property: Callable[[str, object], None], workers: int, requests: int, restarts: int
) -> None:
    sizes = ["--workers", str(workers), "--requests", str(requests), "--restarts", str(restarts)]
    sizes += ["--pause-ms", "20"]  # it is one of several tests on this machine
    piped = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "perf.restarts", *sizes, cwd=ROOT, stdout=piped, stderr=piped
    )
    try:
        printed, told = await asyncio.wait_for(process.communicate(), RUN_TIMEOUT_S)
    finally:
        if process.returncode is None:
            process.terminate()  # it ends what it has started
            await process.wait()
    record_property("summary", printed.decode().partition("\n")[0])
    assert process.returncode == 0, (printed + told).decode()
    found = re.search(rf"^{restarts} restarts .*: ([\d,]+) requests \(([\d,]+) streams\).*: 0 broken", printed.decode())
    assert found is not None, printed
    sent, streams = (int(text.replace(",", "")) for text in found.groups())
    assert sent >= requests
    assert streams > 0


# --- one by one -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_is_in_flight_ends_on_the_old_program_while_the_new_one_serves(
    upstream: Upstream, redis: RedisServer, file: Path, workers: int
) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    upstream.paths = {b"/v1/stream": events(queue)}
    async with running(workers, upstream, redis, GATEWAY_CONFIG=str(file)) as program:
        token = await token_of(program.url)
        async with connected(program.url) as stream, connected(program.url) as idle, connected(program.url) as probe:
            stream.write(request("/api/stream", token))
            queue.put_nowait(b"before")
            assert (await stream.final_head()).status == 200
            assert await stream.chunk() == b"data: before\n\n"
            assert (await idle.ask(request("/healthz"))).status == 200
            write(file, 'rate_limit = "7/minute"\n')
            old = set(program.children()) or {program.process.pid}
            program.signal(signal.SIGUSR2)
            # A load balancer that keeps its connection for probes is told of no stop: there is none.
            while (ready := await probe.ask(request("/readyz")))["connection"] != "close":
                assert ready.status == 200
            assert ready.status == 200
            # The old one closes what is idle only when the new one serves.
            assert await idle.at_end()
            for _ in range(5):
                answer = await fetch(program.url, request("/api/x", token))
                assert (answer.status, answer["ratelimit-policy"]) == (200, '"minute";q=7;w=60')
            assert not all(map(is_gone, old))
            queue.put_nowait(b"after")
            assert await stream.chunk() == b"data: after\n\n"
            queue.put_nowait(b"")
            assert await stream.chunk() == b""
        # Whoever has started it still sees the same process.
        await until(lambda: len(program.children()) == workers and not old & set(program.children()))
        assert (await fetch(program.url, request("/healthz"))).status == 200
        program.signal(signal.SIGTERM)
        assert await program.ended() == 0
    assert "ERROR" not in program.printed


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_new_program_that_does_not_start_leaves_the_old_one_and_says_why(
    upstream: Upstream, redis: RedisServer, file: Path, workers: int
) -> None:
    async with running(workers, upstream, redis, GATEWAY_CONFIG=str(file), LOG_LEVEL="info") as program:
        token = await token_of(program.url)
        before = program.children()
        write(file, 'rate_limt = "7/minute"\n')
        program.signal(signal.SIGUSR2)
        await until(lambda: "not replaced, the old program goes on" in program.printed)
        assert "did you mean rate_limit" in program.printed
        assert "exit status 2" in program.printed
        assert program.children() == before
        async with connected(program.url) as client:
            for _ in range(5):
                answer = await client.ask(request("/api/x", token))
                assert (answer.status, "connection" in answer) == (200, False)
        # What is mended then is taken.
        write(file, 'rate_limit = "7/minute"\n')
        await restarted(program.process.pid, workers)
        assert (await fetch(program.url, request("/api/x", token)))["ratelimit-policy"] == '"minute";q=7;w=60'


async def test_the_number_of_workers_may_change(upstream: Upstream, redis: RedisServer, file: Path) -> None:
    async with running(1, upstream, redis, GATEWAY_CONFIG=str(file)) as program:
        for workers in (3, 1, 2):
            write(file, f"gateway_workers = {workers}\n")
            await restarted(program.process.pid, workers)
            for _ in range(10):
                assert (await fetch(program.url, request("/healthz"))).status == 200
        program.signal(signal.SIGTERM)
        assert await program.ended() == 0


async def test_the_supervisor_is_executed_anew_once_for_each_restart(upstream: Upstream, redis: RedisServer) -> None:
    def supervisor() -> list[str]:
        return Path(f"/proc/{program.process.pid}/cmdline").read_text(encoding="utf-8").split("\0")

    async with running(2, upstream, redis, LOG_LEVEL="debug") as program:
        for count in (1, 2):
            await restarted(program.process.pid, 2)
            serving = f"serving={','.join(map(str, program.children()))}"
            await until(lambda: serving in supervisor())  # noqa: B023 - called in this turn only
            assert program.printed.count("executing the supervisor anew") == count


async def test_a_new_program_that_is_killed_while_the_old_one_finishes_is_started_again(
    upstream: Upstream, redis: RedisServer
) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    upstream.default = events(queue)
    async with running(1, upstream, redis) as program:
        async with connected(program.url) as stream, connected(program.url) as idle:
            stream.write(request("/api/stream", await token_of(program.url)))
            assert (await stream.final_head()).status == 200
            assert (await idle.ask(request("/healthz"))).status == 200
            program.signal(signal.SIGUSR2)
            assert await idle.at_end()
            (new,) = program.children()
            os.kill(new, signal.SIGKILL)
            await until(lambda: is_gone(new))
            assert (await fetch(program.url, request("/healthz"))).status == 200
            queue.put_nowait(b"")
            assert await stream.chunk() == b""
        assert (await fetch(program.url, request("/healthz"))).status == 200
        program.signal(signal.SIGTERM)
        assert await program.ended() == 0


@pytest.mark.parametrize("is_in_haste", [False, True])
async def test_a_stop_in_the_middle_ends_both(upstream: Upstream, redis: RedisServer, is_in_haste: bool) -> None:  # noqa: FBT001
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    upstream.default = events(queue)
    async with running(1, upstream, redis) as program:
        token = await token_of(program.url)
        async with connected(program.url) as on_old, connected(program.url) as idle:
            on_old.write(request("/api/old", token))
            assert (await on_old.final_head()).status == 200
            assert (await idle.ask(request("/healthz"))).status == 200
            program.signal(signal.SIGUSR2)
            assert await idle.at_end()
            async with connected(program.url) as on_new:
                on_new.write(request("/api/new", token))
                assert (await on_new.final_head()).status == 200
                program.signal(signal.SIGTERM)
                await not_listening(program.url)
                if is_in_haste:
                    program.signal(signal.SIGTERM)
                    for stream in (on_old, on_new):
                        with pytest.raises(CUT_SHORT):
                            await stream.chunk()
                else:
                    for _ in range(2):
                        queue.put_nowait(b"")
                    for stream in (on_old, on_new):
                        assert await stream.chunk() == b""
        assert await program.ended() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_file_of_a_unix_socket_stays_until_the_last_program_stops(
    upstream: Upstream, redis: RedisServer, tmp_path: Path, workers: int
) -> None:
    path = tmp_path / "gateway.sock"
    upstream.default = answering(b"ok")
    async with running(workers, upstream, redis, GATEWAY_LISTEN=f"127.0.0.1:0,unix:{path}") as program:
        inode = path.stat().st_ino
        for _ in range(2):
            await restarted(program.process.pid, workers)
            assert path.stat().st_ino == inode
            assert (await fetch(f"unix:{path}", request("/healthz"))).status == 200
        program.signal(signal.SIGTERM)
        assert await program.ended() == 0
    assert not path.exists()
