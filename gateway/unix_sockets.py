"""Unix sockets to listen on: a dead gateway's file makes way, a live one's does not, and ours goes with us."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.config import UnixAddress

_log = logging.getLogger("gateway")


class SocketFile:
    """The file of a listening socket of ours.

    Args:
        path: Where it is. The socket has just been bound to it, and must stay open until `remove`: as long as it is, no
            other file has the same inode.
    """

    __slots__ = ("_identity", "_path")

    def __init__(self, path: str) -> None:
        self._path = path
        self._identity = _identity(path)

    @property
    def mark(self) -> str:
        """What another process needs to `remove` it in our place: `DEVICE:INODE:PATH`."""
        device, inode = self._identity
        return f"{device}:{inode}:{self._path}"

    def remove(self) -> None:
        """Remove it, unless somebody has put another file in its place."""
        try:
            if _identity(self._path) == self._identity:
                os.unlink(self._path)  # noqa: PTH108 - paths are text here, as socket takes them
        except FileNotFoundError:
            pass  # somebody has removed it already
        except OSError as error:
            _log.warning("the socket's file stays: %s", error)


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def listen_on(address: UnixAddress, backlog: int) -> tuple[socket.socket, SocketFile]:
    """Make a listening socket, and its file with exactly the mode that the address says.

    Raises:
        OSError: Somebody listens there, what is there is no socket, or the directory does not allow it.
    """
    path = address.path
    _make_way(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            sock.bind(path)
        except OSError as error:  # it does not say which file
            raise OSError(error.errno, error.strerror, path) from None
        file = SocketFile(path)
        try:
            # Nobody can connect before it listens, so there is no moment in which the mode is another.
            os.chmod(path, address.mode)  # noqa: PTH101 - see above
            sock.listen(backlog)
        except BaseException:
            file.remove()
            raise
    except BaseException:
        sock.close()
        raise
    return sock, file


def _make_way(path: str) -> None:
    """Remove the socket of somebody who has ended without doing so.

    Raises:
        OSError: Its owner has not ended, or it is no socket; or that cannot be found out.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "what is there is no socket, so it is left alone", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            _log.info("the socket of a process that has ended makes way: %s", path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108 - see above
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # somebody listens, and many wait there
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
    raise OSError(errno.EADDRINUSE, "another process listens there", path)
