"""A real nginx as the upstream: in a directory of its own, on a port from the kernel, with a log of what it served."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.kit.programs import program
from tests.kit.upstream import soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_CONF: Final = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr notice; {user}
events {{ worker_connections 1024; }}
http {{
  log_format served '$connection $request_method $request_uri $status';
  access_log served.log served;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  default_type application/octet-stream;
  types {{ text/plain txt; application/json json; }}
  server {{
    listen 127.0.0.1:{port}{tls};
    root www;
{server}
  }}
}}
"""
_TLS: Final = " ssl;\n    ssl_certificate {pem}; ssl_certificate_key {pem}"


class Served(NamedTuple):
    """One line of its access log: written when a request is over, whatever became of it."""

    connection: int
    method: str
    target: str
    status: int


class Nginx:
    """A running nginx; `nginx` makes one.

    Args:
        process: Its master process, with stderr piped.
        directory: Of its configuration; `www` below it is what it serves.
        url: Where it listens.
    """

    def __init__(self, process: asyncio.subprocess.Process, directory: Path, url: str) -> None:
        assert process.stderr is not None
        self._process = process
        self._directory = directory
        self.url = url
        self.printed = ""
        self._has_ended = False
        self._said = asyncio.Condition()
        self._reading = asyncio.create_task(self._read(process.stderr))

    async def ready(self) -> None:
        """Wait until its worker runs."""
        await self._says("start worker process ")

    async def reload(self) -> None:
        """Let a new worker take over; return when the old one has ended, after its last request."""
        self._process.send_signal(signal.SIGHUP)
        await self._says(" exited with code 0")

    async def quit(self) -> list[Served]:
        """End it when the requests under way are answered; return what it served, in the order of their ends."""
        self._process.send_signal(signal.SIGQUIT)
        await soon(self._process.wait())
        lines = (self._directory / "served.log").read_text(encoding="ascii").splitlines()
        served = [line.split(" ") for line in lines]
        return [Served(int(connection), method, target, int(status)) for connection, method, target, status in served]

    async def end(self) -> None:
        """End it at once, with its workers, if it still runs."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await soon(self._process.wait())
        await soon(self._reading)

    async def _says(self, words: str) -> None:
        """Wait until it has said this once more than before."""
        before = self.printed.count(words)
        async with self._said:
            await soon(self._said.wait_for(lambda: self.printed.count(words) > before or self._has_ended))
        assert self.printed.count(words) > before, self.printed

    async def _read(self, stderr: asyncio.StreamReader) -> None:
        async for line in stderr:
            async with self._said:
                self.printed += line.decode()
                self._said.notify_all()
        async with self._said:
            self._has_ended = True
            self._said.notify_all()


@contextlib.asynccontextmanager
async def nginx(directory: Path, server: str = "", *, pem: Path | None = None) -> AsyncIterator[Nginx]:
    """Run nginx until the block ends.

    Args:
        directory: Empty but for `www`, whose files are served.
        server: Directives of the server.
        pem: Its key and its certificates, for HTTPS; the host is then `localhost`.
    """
    binary = program("nginx")
    with socket.create_server(("127.0.0.1", 0), backlog=511) as listener:
        # It leaves sockets that it takes over as they are. In a reload two workers accept from this one: the slower of
        # them would wait in accept(2) for yet another client, and neither serve nor end.
        listener.setblocking(False)
        port = listener.getsockname()[1]
        conf = _CONF.format(
            port=port,
            server=server,
            tls="" if pem is None else _TLS.format(pem=pem),
            # Started by root, it would change to a user that cannot read the directory.
            user="user root;" if os.geteuid() == 0 else "",
        )
        (directory / "www").mkdir(exist_ok=True)
        (directory / "nginx.conf").write_text(conf, encoding="ascii")
        process = await asyncio.create_subprocess_exec(
            *(binary, "-p", str(directory), "-e", "stderr", "-c", "nginx.conf"),
            # It takes the socket over as from an nginx before it, so no other process can have the port meanwhile,
            # and who connects before it is up waits.
            env={"NGINX": f"{listener.fileno()};"},
            pass_fds=(listener.fileno(),),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    scheme, host = ("http", "127.0.0.1") if pem is None else ("https", "localhost")
    running = Nginx(process, directory, f"{scheme}://{host}:{port}/v1")
    try:
        await running.ready()
        yield running
    finally:
        await running.end()
