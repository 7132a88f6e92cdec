"""Processes of a measurement: started on free ports, measured through /proc, ended by their own ids.

A *lab* runs the servers of one measurement. A *cell* is one system under one kind of load; rounds go through all cells
in turns, so that the machine's mood falls on all alike. A *load* is what a generator saw: requests, latencies, errors.
What cannot be vouched for is *refused*, not printed. The gateway is started as users start it; nothing of it is
imported.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from perf.client import ADMIN_KEY, Connection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

ROOT: Final = Path(__file__).resolve().parent.parent
CONF: Final = ROOT / "perf" / "conf"

START_TIMEOUT_S: Final = 15.0
END_TIMEOUT_S: Final = 5.0
PORT_TRIES: Final = 3
"""A port that the kernel found free can be taken before its server binds it."""

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "VIRTUAL_ENV")
_GATEWAY_SETTINGS: Final = {
    "ADMIN_KEY": ADMIN_KEY,
    "TARGET_API_KEY": "sk-real",
    "RATE_LIMIT": "1000000000/minute",
    "DRAIN_TIMEOUT": "1s",
}


class Refused(Exception):
    """A figure cannot be had, or cannot be vouched for; the message is the one line that says why."""


@dataclass(frozen=True)
class Usage:
    """What a tree of processes has used so far."""

    cpu_s: float
    waiting_s: float
    """Runnable, but waiting for a CPU that something else was using."""


@dataclass
class Server:
    """A running server of the lab."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    start_s: float
    """From its start to the first connection that it accepted."""
    token: str = "none"  # noqa: S105 (a word that is no token)

    @property
    def pids(self) -> list[int]:
        """Itself and its descendants: nginx works in a child."""
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split())
        return found

    def usage(self) -> Usage:
        """Read its CPU time; take the difference of two."""
        pids = self.pids
        return Usage(sum(map(_cpu_s, pids)), sum(map(_waiting_s, pids)))

    def cpu_s_of_each(self) -> list[float]:
        """Read the CPU time of each of its processes; take the differences of two."""
        return [_cpu_s(pid) for pid in self.pids]

    def rss_bytes(self, line: str = "VmRSS") -> int:
        """Read its resident memory; what processes share is counted in each of them."""
        return sum(_memory_bytes(pid, line) for pid in self.pids)

    def connect(self) -> Connection:
        """Open a connection to it."""
        return Connection(self.port)

    def stop(self) -> None:
        """End it and wait until it is gone."""
        pids = self.pids
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self.process.wait()
        else:
            self.process.wait()


class Lab:
    """A temporary directory and the servers started in it; the end of the `with` block ends them all."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._count = 0

    def __enter__(self) -> Self:
        # A SIGTERM (of `timeout`, of a CI) has to end the servers too.
        replaced = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        self._stack.callback(signal.signal, signal.SIGTERM, replaced)
        self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-perf-")))
        self.directory.chmod(0o755)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        conf: str | None = None,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        **values: object,
    ) -> Server:
        """Start a server and wait until it accepts a connection.

        Args:
            name: For people.
            command: Its command line.
            conf: The file in perf/conf that it is configured by.
            environ: Its environment, beside PATH and the like.
            cwd: Where it runs; None: in the lab's directory.
            values: What to put for `@{NAME}` in all of these; `port`, `directory`, `conf` and `user` are there.

        Raises:
            Refused: It ended, or did not listen in time; the message has the last line of its output.
        """
        for last_try in (*[False] * (PORT_TRIES - 1), True):
            self._count += 1
            port = free_port()
            written = self.directory / f"{self._count}-{conf or 'unused'}"
            given = {
                "port": port,
                "directory": self.directory,
                "conf": written,
                # nginx started by root would change to a user that cannot read the directory.
                "user": "user root;" if os.geteuid() == 0 else "",
                **values,
            }
            if conf is not None:
                written.write_text(_fill((CONF / conf).read_text(encoding="utf-8"), given), encoding="utf-8")
            kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
            output = self.directory / f"{self._count}.out"
            with output.open("wb") as sink:
                began = time.monotonic()
                process = subprocess.Popen(
                    [_fill(word, given) for word in command],
                    cwd=cwd or self.directory,
                    env={**kept, **{key: _fill(value, given) for key, value in (environ or {}).items()}},
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    # A Ctrl-C is for the script, which then ends its servers in order.
                    start_new_session=True,
                )
            server = Server(name, process, port, 0.0)
            self._stack.callback(server.stop)
            if _accepts(server, began):
                return server
            server.stop()
            said = output.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["(nothing)"]
            if last_try or "in use" not in " ".join(said).lower():
                hint = " (pip install '.[perf]')" if said[-1].startswith("ModuleNotFoundError") else ""
                raise Refused(f"{name} did not start: {said[-1]}{hint}")
        raise AssertionError

    def gateway(
        self, upstream: Server, redis: Server | None, *, root: Path = ROOT, label: str = "gateway", **settings: str
    ) -> Server:
        """Start the gateway of a checkout, and get a token from it.

        Args:
            upstream: Its target.
            redis: Its store; None: the embedded one.
            root: The checkout.
            label: For people.
            settings: More of its environment.
        """
        environ = {
            **_GATEWAY_SETTINGS,
            "TARGET_API_URL": f"http://127.0.0.1:{upstream.port}",
            "GATEWAY_LISTEN": "127.0.0.1:@{port}",
            # The working directory is on the path already with -m; an installed copy must not come first.
            "PYTHONPATH": str(root),
            **settings,
        }
        if redis is not None:
            environ["REDIS_URL"] = f"redis://127.0.0.1:{redis.port}/0"
        name = f"{label}, {'embedded' if redis is None else 'Redis'}"
        server = self.start(name, [sys.executable, "-m", "gateway"], environ=environ, cwd=root)
        with server.connect() as connection:
            server.token = connection.register()
        return server

    def redis(self) -> Server | None:
        """Start a Redis that keeps nothing, if there is one."""
        binary = which("redis-server")
        if binary is None:
            return None
        options = ["--port", "@{port}", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        return self.start("Redis", [binary, *options, "--dir", "@{directory}", "--loglevel", "warning"])


def which(program: str) -> str | None:
    """Find a program; daemons of Debian are in a place that is not on every user's path."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """Let the kernel choose a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def allow_descriptors(wanted: int) -> int:
    """Raise the number of open files as far as it goes, for this process and those it starts.

    Returns:
        How many it may now have open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class _Blanks(string.Template):
    """`@{NAME}` is a blank; `$` is the servers' own."""

    delimiter = "@"


def _fill(text: str, values: Mapping[str, object]) -> str:
    return _Blanks(text).substitute(values)


def _accepts(server: Server, began: float) -> bool:
    """Wait for the first accepted connection, a millisecond between two tries, and note how long it took."""
    while time.monotonic() < began + START_TIMEOUT_S and server.process.poll() is None:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", server.port), 1.0):
            server.start_s = time.monotonic() - began
            return True
        time.sleep(0.001)
    return False


def _cpu_s(pid: int) -> float:
    """User and system time of one process, all threads; exact to a tick."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _waiting_s(pid: int) -> float:
    """Time in the run queue; 0 where the kernel does not keep it."""
    waited_ns = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            waited_ns += int((task / "schedstat").read_text(encoding="ascii").split()[1])
    return waited_ns / 1e9


def _memory_bytes(pid: int, line: str) -> int:
    for one in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if one.startswith(f"{line}:"):
            return int(one.split()[1]) * 1024
    return 0
