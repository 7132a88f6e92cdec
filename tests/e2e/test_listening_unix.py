"""The gateway on unix sockets: whose file it may be, who may connect, and that clients there count as local."""

# ruff: noqa: ASYNC240 - a file's being there is what is tested, and looking takes microseconds
from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from gateway import Config, Gateway
from gateway.config import Address
from gateway.listening import ACCEPTS_A_TURN
from tests.e2e import CUT_SHORT, KEY, Client, PatternCheck, connected, fetch, request
from tests.kit.process import gateway_process, start
from tests.kit.upstream import PIECE_BYTES, Upstream, broken_off, chunk, echo, generated, hang, head, pattern, soon

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway.sock"


def config(upstream: Upstream, listen: str) -> Config:
    return Config(target_api_url=upstream.url, target_api_key=KEY, rate_limit="10000", gateway_listen=listen)


def leave_a_stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


async def test_clients_are_served_as_over_tcp(upstream: Upstream, path: Path) -> None:
    upstream.default = echo
    async with Gateway(config(upstream, f"unix:{path},127.0.0.1:0")) as gateway:
        by_unix, by_tcp = gateway.urls
        assert by_unix == f"unix:{path}"
        assert by_tcp.startswith("http://127.0.0.1:")
        for url in gateway.urls:
            async with connected(url) as client:
                for _ in range(2):
                    post = request("/api/x", gateway.issue_token(), method="POST", body=pattern(0, PIECE_BYTES))
                    answer = await client.ask(post)
                    assert (answer.status, answer.content) == (200, pattern(0, PIECE_BYTES))
    assert len(upstream.requests) == 4


async def test_a_client_there_is_local(upstream: Upstream, path: Path) -> None:
    async with Gateway(config(upstream, f"unix:{path}")) as gateway:
        assert (await fetch(gateway.url, request("/register", method="POST"))).status == 201


@pytest.mark.parametrize(("option", "mode"), [("", 0o600), (";mode=660", 0o660), (";mode=0666", 0o666)])
async def test_the_file_has_the_mode_that_was_said_whatever_the_umask(
    upstream: Upstream, path: Path, option: str, mode: int
) -> None:
    before = os.umask(0o027)
    try:
        async with Gateway(config(upstream, f"unix:{path}{option}")):
            assert stat.S_IMODE(path.stat().st_mode) == mode
            assert stat.S_ISSOCK(path.stat().st_mode)
    finally:
        os.umask(before)


async def test_the_file_goes_when_the_gateway_stops_listening(upstream: Upstream, path: Path) -> None:
    upstream.default = hang
    gateway = Gateway(config(upstream, f"unix:{path}"))
    async with gateway, connected(gateway.url) as client:
        client.write(request("/api/x", gateway.issue_token()))
        await upstream.requested()
        draining = asyncio.create_task(gateway.drain())
        await asyncio.sleep(0)
        assert not path.exists()
        draining.cancel()
    assert not path.exists()


async def test_a_stop_answers_all_who_wait_in_the_queues_and_refuses_who_comes_then(
    upstream: Upstream, path: Path
) -> None:
    async with Gateway(config(upstream, f"unix:{path},127.0.0.1:0")) as gateway, contextlib.AsyncExitStack() as stack:
        tcp = Address("127.0.0.1", int(gateway.urls[1].rpartition(":")[2]))
        waiting = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2 * ACCEPTS_A_TURN)]
        for sock in waiting:  # the loop has no turn before all wait
            sock.connect(str(path))
        waiting += [stack.enter_context(socket.create_connection(tcp)) for _ in waiting]
        for sock in waiting:
            sock.sendall(request("/healthz"))
        kept = path.with_suffix(".kept")
        kept.hardlink_to(path)
        stack.enter_context(socket.socket(fileno=gateway.share_sockets()[0]))
        assert await soon(gateway.drain())
        for sock in waiting:
            client = Client(*await asyncio.open_connection(sock=sock))
            answer = await client.answer()
            assert (answer.status, answer["connection"]) == (200, "close")
            client.writer.close()
        with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
            late.connect(str(kept))


async def test_a_dead_gateways_socket_makes_way(upstream: Upstream, path: Path) -> None:
    leave_a_stale_socket(path)
    async with Gateway(config(upstream, f"unix:{path}")) as gateway:
        assert (await fetch(gateway.url, request("/healthz"))).status == 200


async def test_a_live_gateways_socket_does_not(upstream: Upstream, path: Path) -> None:
    async with Gateway(config(upstream, f"unix:{path}")) as first:
        with pytest.raises(OSError, match=f"listen on unix:{path} .*: another process listens there"):
            await Gateway(config(upstream, f"127.0.0.1:0,unix:{path}")).start()
        assert (await fetch(first.url, request("/healthz"))).status == 200


async def test_nor_does_one_whose_queue_is_full(upstream: Upstream, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(OSError, match="another process listens there"):
            await Gateway(config(upstream, f"unix:{path}")).start()
        assert path.exists()


@pytest.mark.parametrize("kind", ["file", "directory", "link", "fifo", "datagrams"])
async def test_what_is_no_listening_socket_is_left_alone(upstream: Upstream, path: Path, kind: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        if kind == "file":
            path.write_text("somebody's", encoding="utf-8")
        elif kind == "directory":
            path.mkdir()
        elif kind == "link":
            leave_a_stale_socket(path.with_name("target"))
            path.symlink_to("target")
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            datagrams.bind(str(path))
        with pytest.raises(OSError, match=str(path)):
            await Gateway(config(upstream, f"unix:{path}")).start()
    if kind == "file":
        assert path.read_text(encoding="utf-8") == "somebody's"
    assert path.lstat()


async def test_a_directory_that_is_not_there_is_named(upstream: Upstream, path: Path) -> None:
    with pytest.raises(OSError, match=f"listen on unix:{path.parent}/none/x .*: No such file or directory"):
        await Gateway(config(upstream, f"unix:{path.parent}/none/x")).start()


async def test_a_file_that_took_its_place_is_not_removed(upstream: Upstream, path: Path) -> None:
    async with Gateway(config(upstream, f"unix:{path}")):
        path.unlink()
        leave_a_stale_socket(path)
    assert path.exists()


async def test_a_start_that_fails_leaves_no_file(upstream: Upstream, path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"unix:{path},127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match="in use"):
            await Gateway(config(upstream, listen)).start()
    assert not path.exists()


async def test_a_slow_reader_is_not_hung_up_on_and_gets_every_byte(upstream: Upstream, path: Path) -> None:
    size = 4 * 1024 * 1024 + 1
    upstream.default = generated(size)
    async with Gateway(config(upstream, f"unix:{path}")) as gateway, connected(gateway.url) as client:
        client.write(request("/api/x", gateway.issue_token()))
        assert (await client.final_head()).status == 200
        check = PatternCheck()
        while check.size < size:
            check.feed(await soon(client.reader.read(PIECE_BYTES)))


@pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked", "Content-Length: 1000"])
async def test_a_cut_answer_does_not_look_whole_where_its_framing_can_tell(
    upstream: Upstream, path: Path, framing: str
) -> None:
    upstream.default = broken_off(head("200 OK", framing) + chunk(b"x" * 500))
    async with Gateway(config(upstream, f"unix:{path}")) as gateway:
        with pytest.raises(CUT_SHORT):
            await fetch(gateway.url, request("/api/x", gateway.issue_token()))


async def test_a_client_that_hangs_up_ends_its_upstream_connection(upstream: Upstream, path: Path) -> None:
    upstream.default = hang
    async with Gateway(config(upstream, f"unix:{path}")) as gateway:
        async with connected(gateway.url) as client:
            client.write(request("/api/x", gateway.issue_token()))
            await upstream.requested()
        await soon(upstream.connections[0].ended.wait())


async def test_a_client_that_ended_its_side_gets_its_answer(upstream: Upstream, path: Path) -> None:
    async with Gateway(config(upstream, f"unix:{path}")) as gateway, connected(gateway.url) as client:
        client.write(request("/api/x", gateway.issue_token()))
        client.writer.write_eof()
        assert (await client.answer()).status == 200


async def test_the_program(upstream: Upstream, path: Path) -> None:
    """Killed, it leaves its file, which the next one replaces and a third one must not; ended, it takes it along."""
    settings = {"TARGET_API_URL": upstream.url, "GATEWAY_LISTEN": f"unix:{path},127.0.0.1:0"}
    async with gateway_process(**settings) as killed:
        await killed.kill()
    assert path.exists()
    async with gateway_process(**settings) as program:
        assert (await fetch(f"unix:{path}", request("/healthz"))).status == 200
        third = await start(**settings)
        try:
            assert await third.ended() == 1
        finally:
            await third.kill()
        assert (
            third.printed
            == f"gateway: [Errno 98] cannot listen on unix:{path} (GATEWAY_LISTEN): another process listens there\n"
        )
        check = [sys.executable, "-m", "gateway", "healthcheck"]
        environ = {**os.environ, "GATEWAY_LISTEN": settings["GATEWAY_LISTEN"]}
        assert (await asyncio.to_thread(subprocess.run, check, env=environ, check=False)).returncode == 0
        program.signal(signal.SIGTERM)
        assert await program.ended() == 0
    assert not path.exists()
