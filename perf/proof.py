"""`python -m perf.proof`: four gateways on one Redis on this machine, and `gateway verify` against them.

`--instances N` starts N gateways, `--workers N` gives each so many processes; all other options go to `gateway verify`:
`python -m perf.proof --pause-redis`. All that it starts has ended when it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shlex
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from perf.lab import ROOT, Lab, Refused, free_port, which

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

INSTANCES: Final = 4
LIMIT: Final = "200/second"
TIMEOUT_S: Final = 600.0
"""For the run as a whole; `gateway verify` ends long before, by its own bounds."""


def main() -> int:
    """Run it; return the exit code of `gateway verify`."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--instances", type=int, default=INSTANCES, help=f"how many gateways (default: {INSTANCES})")
    parser.add_argument("--workers", type=int, default=1, help="how many processes each of them has (default: 1)")
    options, words = parser.parse_known_args()
    with Lab() as lab:
        try:
            with _redis(lab) as (redis_url, restart):
                upstream = lab.start("mock API", [sys.executable, "-m", "perf.upstream", "@{port}"], cwd=ROOT)
                settings = {"REDIS_URL": redis_url, "ADMIN_KEY": secrets.token_hex(16)}
                environ = {
                    **settings,
                    "TARGET_API_URL": f"http://127.0.0.1:{upstream.port}",
                    "GATEWAY_LISTEN": "127.0.0.1:@{port}",
                    "PYTHONPATH": str(ROOT),
                    "GATEWAY_WORKERS": str(options.workers),
                    "DRAIN_TIMEOUT": "1s",  # they are stopped one after the other, with nothing in flight
                }
                command = [sys.executable, "-m", "gateway"]
                urls = [
                    f"http://127.0.0.1:{lab.start('gateway', command, environ=environ, cwd=ROOT).port}"
                    for _ in range(options.instances)
                ]
                return _verify(urls, settings, restart, words)
        except Refused as refused:
            print(f"proof: {refused}", file=sys.stderr)
            return 1


def _verify(urls: Sequence[str], settings: dict[str, str], restart: str, words: Sequence[str]) -> int:
    added = list(words)
    if "--limit" not in added:
        added += ["--limit", LIMIT]
    if "--kill-redis" in added:
        added += ["--yes", "--restart-redis", restart]
    print(shlex.join(["gateway", "verify", *urls, *added]), flush=True)
    command = [sys.executable, "-m", "gateway", "verify", *urls, *added]
    return subprocess.run(command, env={**os.environ, **settings}, cwd=ROOT, timeout=TIMEOUT_S, check=False).returncode


@contextlib.contextmanager
def _redis(lab: Lab) -> Iterator[tuple[str, str]]:
    """Start a Redis that forgets nothing when it is killed; yield its URL and the command that starts it again."""
    binary = which("redis-server")
    if binary is None:
        raise Refused("redis-server is not installed")
    port = free_port()
    conf = lab.directory / "redis.conf"
    # `always`: what it has answered, it still knows after a kill.
    conf.write_text(
        f'port {port}\nbind 127.0.0.1\ndir {lab.directory}\nsave ""\nappendonly yes\nappendfsync always\n'
        "loglevel warning\n",
        encoding="utf-8",
    )
    # Not one of the lab's servers: those get ports of their own, and this one may be another process by the end.
    restart = [binary, str(conf)]
    first = subprocess.Popen(restart, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait(port, first)
        yield f"redis://127.0.0.1:{port}/0", shlex.join(restart)
    finally:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5.0) as connection:
            connection.sendall(b"SHUTDOWN NOSAVE\r\n")
            connection.recv(64)
        first.kill()
        first.wait()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.005)
    raise Refused(f"redis-server ended with {process.returncode}")


if __name__ == "__main__":
    sys.exit(main())
