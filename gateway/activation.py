"""Sockets that were opened for us before we were started: systemd's socket activation, sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

FIRST_DESCRIPTOR: Final = 3
"""SD_LISTEN_FDS_START: the first behind stdin, stdout and stderr."""

_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


def inherited_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Take over the listening sockets that this process was started with, if any.

    Args:
        environ: The process's environment; what tells of the sockets is taken out, as it is for this process alone.

    Raises:
        ConfigError: What was handed over is no listening stream socket.

    Source: sd_listen_fds(3). The caller has to close them.
    """
    pid, count, _ = (environ.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()) or not count:
        return []
    if not count.isascii() or not count.isdigit():
        raise ConfigError("LISTEN_FDS", "is not a number", "what systemd sets it to", "LISTEN_FDS=1")
    return [listening_socket(FIRST_DESCRIPTOR + number) for number in range(int(count))]


def listening_socket(descriptor: int) -> socket.socket:
    """Take over a descriptor, which no other process is to inherit by itself.

    Raises:
        ConfigError: It is no listening stream socket.
    """
    try:
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise _error(descriptor, f"is no socket ({error.strerror})") from None
    if sock.family not in _FAMILIES or sock.type != socket.SOCK_STREAM:
        raise _error(descriptor, "is no stream socket of IPv4, IPv6 or unix")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise _error(descriptor, "is a socket that does not listen")
    return sock


def _error(descriptor: int, problem: str) -> ConfigError:
    takes = "listening sockets alone: ListenStream= and Accept=no in the .socket unit"
    return ConfigError(f"LISTEN_FDS: descriptor {descriptor}", problem, takes, "ListenStream=127.0.0.1:3000")
