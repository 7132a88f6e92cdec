"""Socket activation: the program is started with sockets that listen already, as systemd starts it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Protocol

import pytest

from gateway import Config, Gateway
from gateway.activation import inherited_sockets
from gateway.errors import ConfigError
from tests.e2e import fetch, request
from tests.kit.printed import printed
from tests.kit.redis import running_redis

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kit.upstream import Upstream

TIMEOUT_S = 20.0

LAUNCHER = """
import os, sys
descriptors = [int(text) for text in sys.argv[1].split(",")]
for number, descriptor in enumerate(descriptors):
    os.dup2(descriptor, 3 + number)
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[2]))
os.environ["LISTEN_FDS"] = str(len(descriptors))
os.environ["LISTEN_FDNAMES"] = ":".join("gateway.socket" for _ in descriptors)
os.execv(sys.executable, [sys.executable, "-m", "gateway"])
"""
"""Puts descriptors where sd_listen_fds(3) has them, and becomes the gateway. They come with high numbers, so that
none is overwritten."""


class HasDescriptor(Protocol):
    def fileno(self) -> int: ...


@contextlib.contextmanager
def activated(*sockets: HasDescriptor, other_pid: bool = False, **settings: str) -> Iterator[subprocess.Popen[str]]:
    moved = [os.dup(sock.fileno()) for sock in sockets]
    high = [os.dup2(descriptor, 100 + number, inheritable=True) for number, descriptor in enumerate(moved)]
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, ",".join(map(str, high)), str(int(other_pid))],
        env={**{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}, **settings},
        pass_fds=high,
        stderr=subprocess.PIPE,
        text=True,
    )
    for descriptor in (*moved, *high):
        os.close(descriptor)
    with process:
        try:
            yield process
        finally:
            process.kill()


def told(process: subprocess.Popen[str], until: str = "sending to") -> str:
    """Return what it has logged until it listens, or says something else, or has ended."""
    assert process.stderr is not None
    lines = ""
    for line in process.stderr:
        printed.note(line)
        lines += line
        if until in line:
            break
    return lines


async def test_sockets_that_are_handed_over_are_used_in_place_of_the_setting(
    upstream: Upstream, tmp_path: Path
) -> None:
    path = tmp_path / "activated.sock"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen()
        setting = "127.0.0.1:1"  # root alone could
        with activated(tcp, unix, TARGET_API_URL=upstream.url, GATEWAY_LISTEN=setting) as process:
            lines = told(process)
            assert "not on GATEWAY_LISTEN" in lines
            urls = [f"http://127.0.0.1:{tcp.getsockname()[1]}", f"unix:{path}"]
            assert f"listening on {', '.join(urls)}, sending" in lines
            for url in urls:
                assert (await fetch(url, request("/healthz"))).status == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT_S) == 0
        assert os.path.exists(path)  # noqa: ASYNC240, PTH110 - it is systemd's
        # Whoever connects while nobody accepts waits for the next one.
        with socket.create_connection(tcp.getsockname()), activated(tcp, TARGET_API_URL=upstream.url) as process:
            told(process)
            assert (await fetch(urls[0], request("/healthz"))).status == 200


async def test_what_is_for_another_process_is_not_touched(upstream: Upstream) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        activated(tcp, other_pid=True, TARGET_API_URL=upstream.url, GATEWAY_LISTEN="127.0.0.1:0") as process,
    ):
        (url,) = re.findall(r"listening on (http://127\.0\.0\.1:\d+), sending", told(process))
        assert url != f"http://127.0.0.1:{tcp.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["unbound", "datagrams", "file", "connected"])
async def test_what_does_not_listen_is_bad_usage(upstream: Upstream, kind: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        handed: HasDescriptor
        if kind == "file":
            handed = stack.enter_context((tmp_path / "file").open("w"))
        elif kind == "connected":
            handed, other = socket.socketpair()
            stack.enter_context(other)
            stack.enter_context(handed)
        else:
            handed = stack.enter_context(
                socket.socket(type=socket.SOCK_DGRAM if kind == "datagrams" else socket.SOCK_STREAM)
            )
        with activated(handed, TARGET_API_URL=upstream.url) as process:
            assert re.fullmatch(r"gateway: LISTEN_FDS: descriptor 3: .*\n", told(process))
            assert process.wait(TIMEOUT_S) == 2


@pytest.mark.parametrize("count", ["x", "-1", "²", "1 "])
async def test_a_count_that_is_none_is_bad_usage(count: str) -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": "x", "PATH": "/bin"}
    with pytest.raises(ConfigError, match="LISTEN_FDS"):
        inherited_sockets(environ)
    assert environ == {"PATH": "/bin"}


async def test_the_variables_are_taken_out_of_the_environment() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x", "PATH": "/bin"}
    assert inherited_sockets(environ) == []
    assert environ == {"PATH": "/bin"}


async def test_workers_share_what_is_handed_over_and_so_does_the_next_program(upstream: Upstream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, running_redis() as redis:
        settings = {"TARGET_API_URL": upstream.url, "REDIS_URL": redis.url, "GATEWAY_WORKERS": "2"}
        url = f"http://127.0.0.1:{tcp.getsockname()[1]}"
        with activated(tcp, other_pid=False, **settings) as process:
            for _ in range(2):
                assert "2 workers serve" in told(process, until="workers serve")
                for _ in range(10):
                    assert (await fetch(url, request("/healthz"))).status == 200
                process.send_signal(signal.SIGUSR2)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0


async def test_a_librarys_caller_gives_sockets_itself(upstream: Upstream) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    async with Gateway(Config(target_api_url=upstream.url), sockets=[sock]) as gateway:
        assert gateway.urls == [f"http://127.0.0.1:{port}"]
        assert (await fetch(gateway.url, request("/healthz"))).status == 200
    assert sock.fileno() == -1
