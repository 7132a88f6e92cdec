"""What a gateway holds when nothing goes on, seen from outside: descriptors, memory, connections, places in flight."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import hiredis

from perf.client import ADMIN_KEY, Connection, request
from tools.soak_faults import workers

if TYPE_CHECKING:
    from perf.lab import Server

_IN_FLIGHT: Final = re.compile(rb"^gateway_requests_in_flight\{[^}]*\} ([0-9.e+]+)$", re.MULTILINE)
_ESTABLISHED: Final = "01"


@dataclass(frozen=True)
class Held:
    """What one gateway holds; of several workers, what the one holds that has most.

    Args:
        descriptors: Open files and sockets.
        supervisor_descriptors: Those of its supervisor; 0: there is none.
        rss_bytes: Resident memory.
        to_upstream: Connections to the mock API.
    """

    descriptors: int
    supervisor_descriptors: int
    rss_bytes: int
    to_upstream: int


def held(gateway: Server, count: int, upstream_port: int) -> Held:
    """Look at a gateway's processes.

    Args:
        gateway: The gateway.
        count: How many workers it should have.
        upstream_port: The mock API's.

    Raises:
        OSError: One of them has ended meanwhile, or there are more or fewer.
    """
    pids = workers(gateway, count)
    if len(pids) != count:
        raise ProcessLookupError(f"{len(pids)} workers in place of {count}")
    open_files = [_open_files(pid) for pid in pids]
    connected = _inodes_connected_to(upstream_port)
    return Held(
        descriptors=max(map(len, open_files)),
        supervisor_descriptors=len(_open_files(gateway.process.pid)) if count > 1 else 0,
        rss_bytes=max(map(_rss_bytes, pids)),
        to_upstream=max(len(connected.intersection(one)) for one in open_files),
    )


def get(port: int, path: str) -> tuple[int, bytes]:
    """Ask a gateway for something of its own; status and body. 0 if it does not answer."""
    with contextlib.suppress(OSError), Connection(port) as connection:
        connection.send(request(path, ADMIN_KEY))
        return connection.read()
    return 0, b""


def in_flight(port: int) -> float:
    """Read how many requests a gateway says that are not over.

    Raises:
        OSError: It does not say.
    """
    found = _IN_FLIGHT.findall(get(port, "/metrics")[1])
    if not found:
        raise ConnectionError("/metrics does not tell what is in flight")
    return sum(map(float, found))


def places_in_flight(redis_port: int) -> int:
    """Count the places that are taken in Redis, of all tokens and of each.

    Raises:
        OSError: Redis does not answer.
    """
    with socket.create_connection(("127.0.0.1", redis_port), 5.0) as connection:
        reader = hiredis.Reader()

        def call(*command: str | bytes | int) -> Any:  # noqa: ANN401 - whatever Redis answers
            packed: Any = hiredis.pack_command
            connection.sendall(packed(command))
            while (reply := reader.gets()) is False:
                data = connection.recv(65536)
                if not data:
                    raise ConnectionResetError("Redis closed the connection")
                reader.feed(data)
            if isinstance(reply, hiredis.ReplyError):
                raise ConnectionError(str(reply))
            return reply

        seconds, micros = map(int, call("TIME"))
        now_us = seconds * 1_000_000 + micros
        return sum(call("ZCOUNT", key, now_us, "+inf") for key in call("KEYS", "gateway:*:inflight"))


def _open_files(pid: int) -> list[str]:
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(descriptor))  # noqa: PTH115 - it is no path
    return found


def _inodes_connected_to(port: int) -> set[str]:
    rows = [row.split() for row in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    # proc(5): address and port in hexadecimal, the state, six fields on the inode.
    ours = (row for row in rows if row[3] == _ESTABLISHED and int(row[2].partition(":")[2], 16) == port)
    return {f"socket:[{row[9]}]" for row in ours}


def _rss_bytes(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
