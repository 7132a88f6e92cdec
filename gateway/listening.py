"""Listening and accepting: a `Listener` takes connections in, and never more than `Descriptors` has room for.

It accepts by itself: asyncio's server accepts all that wait before the first of them can be counted, and uvloop's,
out of descriptors, ends the connections of all that wait and says nothing. A client that is not accepted waits in the
kernel's queue. A listener knows nothing of HTTP, and reaches the rest of the gateway only through what it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
from typing import TYPE_CHECKING, Final

from gateway.closing import turn_away
from gateway.config import Address, UnixAddress
from gateway.unix_sockets import SocketFile, listen_on

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Sequence, Sized

    from gateway.certificates import ReloadedTls
    from gateway.proxy.clock import Clock

BACKLOG: Final = 2048
ACCEPTS_A_TURN: Final = 64
"""How many are accepted before everybody else gets a turn."""
MOST_WAITING: Final = 2 * BACKLOG
"""How many are accepted when it is for the last time: where nobody is turned away, there could be more and more."""
SHUTDOWN_S: Final = 2.0
"""How long a client may take over the end of TLS, which some never answer; the loops' own 30 s would hold a place."""
CALM_S: Final = 1.0
"""So long after the last pause, an overload is over: under one, a place is free now and then."""

_MENDS: Final = {
    errno.EADDRINUSE: "; another program listens there already",
    errno.EACCES: "; a port below 1024 takes root or CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "; this machine has no such address",
}

_UNLIMITED: Final = 2**31
_UPSTREAM_SHARE: Final = 2048

_log = logging.getLogger("gateway")


class Descriptors:
    """The descriptors that the process may have open, and what connections may use of them.

    Each client needs one, and a second one for the upstream while it is answered. Places for the second ones are kept
    free, so that no client is let in only to be refused; above a few thousand clients, though, most are taken to idle.

    Args:
        limit: How many descriptors there are; see `soft_limit`.
        upstreams: The upstream connections.
    """

    __slots__ = ("_limit", "_share", "_upstreams", "_usable", "enough")

    def __init__(self, limit: int, upstreams: Sized) -> None:
        self._limit = limit
        self._upstreams = upstreams
        # The rest is for what is no connection: the loop's own, listeners, Redis, looking names up, files.
        self._usable = limit - max(limit // 16, min(64, limit // 3))
        self._share = max(limit // 8, min(limit // 2, _UPSTREAM_SHARE))
        self.enough = 2 + limit // 256
        """How much room there has to be before a pause ends: pausing for each single connection would help nobody."""

    def room(self, clients: int) -> int:
        """Count the descriptors that so many clients would leave."""
        return self._usable - clients - max(len(self._upstreams), min(clients, self._share))

    def describe(self, clients: int) -> str:
        """Say what fills them, for the log."""
        upstreams = len(self._upstreams)
        return f"{clients} clients (with {upstreams} upstream connections) are all that {self._limit} descriptors allow"


def soft_limit() -> int:
    """Return how many descriptors this process may have open (`ulimit -n`)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _UNLIMITED if soft == resource.RLIM_INFINITY else soft


@contextlib.contextmanager
def listening_on(address: Address | UnixAddress) -> Iterator[None]:
    """Make an OSError inside say on which address listening failed, and what would mend that.

    Raises:
        OSError: That one, with the same errno.
    """
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while attempting")[0]  # asyncio's, the address again
        mend = _MENDS.get(error.errno or 0, "") if isinstance(address, Address) else ""
        where = str(address).partition(";")[0]  # without the mode
        raise OSError(error.errno, f"cannot listen on {where} (GATEWAY_LISTEN): {reason}{mend}") from None


class Listener:
    """The listening sockets of a gateway. Where something is to be done at each tick, also the clock's `Watched`.

    Where several processes listen, each has sockets of its own, and looks at the others' at each tick: a client that
    still waits there then has come to a process that is busy, or gone.

    Args:
        clock: The process's coarse time.
        make: Makes the protocol of a new connection.
        descriptors: Says whether there is room for one more.
        tls: What is spoken on TCP; None for plain HTTP. On a unix socket it is plain in any case.
        handshake_timeout_s: How long a client may take over the handshake of TLS.

    Attributes:
        clients: How many connections were accepted and have not ended.
        accepted: How many were accepted so far.
        emptied: Set when the last of them has ended.
        handshake_timeout_s: As above, for connections that are accepted from now on.
    """

    __slots__ = (
        "_calm_from_s",
        "_clock",
        "_descriptors",
        "_exclusive",
        "_files",
        "_loop",
        "_make",
        "_others",
        "_paused",
        "_shaking_hands",
        "_sockets",
        "_starting",
        "_tls",
        "accepted",
        "clients",
        "deadline_s",
        "emptied",
        "handshake_timeout_s",
    )

    def __init__(
        self,
        clock: Clock,
        make: Callable[[], asyncio.Protocol],
        descriptors: Descriptors,
        tls: ReloadedTls | None = None,
        handshake_timeout_s: float = 10.0,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._make = make
        self._descriptors = descriptors
        self._tls = tls
        self.handshake_timeout_s = handshake_timeout_s
        self._sockets: list[socket.socket] = []
        # Of these, those that are no other process's, unless it has shared them.
        self._exclusive: list[socket.socket] = []
        self._others: list[socket.socket] = []
        self._files: list[SocketFile] = []
        self._starting: dict[socket.socket, asyncio.Task[None]] = {}
        self._shaking_hands: set[socket.socket] = set()
        self.clients = self.accepted = 0
        self.emptied = asyncio.Event()
        self._paused = True
        self._calm_from_s = 0.0
        self.deadline_s = 0.0  # looks at each tick, as long as it is watched

    @property
    def urls(self) -> list[str]:
        """Where it listens: a base URL for each address, `unix:/path` for each unix socket."""
        return [_url(sock, "http" if self._tls is None else "https") for sock in self._sockets]

    async def bind(self, address: Address | UnixAddress) -> None:
        """Listen on a unix socket, or on all addresses of a host; nothing is accepted there before `start`.

        Raises:
            OSError: The name is not known, or there is something that cannot be listened on.
        """
        with listening_on(address):
            if isinstance(address, UnixAddress):
                sock, file = listen_on(address, BACKLOG)
                self._files.append(file)
                self._exclusive.append(sock)
                self.adopt(sock)
                return
            host, port = address
            found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, _, _, _, name in dict.fromkeys(found):
                sock = socket.create_server(name, family=family, backlog=BACKLOG)
                self._exclusive.append(sock)
                self.adopt(sock)

    def adopt(self, sock: socket.socket, *, is_own: bool = True) -> None:
        """Accept from a socket that listens already, from `start` on, and close it at the end.

        Args:
            sock: The socket.
            is_own: It is not another process's.
        """
        sock.setblocking(False)
        (self._sockets if is_own else self._others).append(sock)

    def start(self) -> None:
        """Accept, until `stop`."""
        self._paused = False
        for sock in self._sockets:
            self._loop.add_reader(sock, self._accept, sock)
        if self._others:
            self._clock.watched.add(self)

    def shared(self) -> list[int]:
        """Return descriptors of the sockets for another process, which listen on when these are closed."""
        return [os.dup(sock.fileno()) for sock in (*self._sockets, *self._others)]

    def leave_files(self) -> list[str]:
        """Leave the files of unix sockets to somebody else; return their marks."""
        files, self._files = self._files, []
        return [file.mark for file in files]

    def own(self, sockets: Sequence[socket.socket]) -> None:
        """Hear from which of its sockets no other process accepts any longer; leave the others' to those."""
        for sock in self._others:
            self._accept(sock, MOST_WAITING)  # for a process that is not there
            sock.close()
        self._others.clear()
        self._exclusive = list(sockets)

    async def until_calm(self, calm_s: float, longest_s: float) -> None:
        """Wait until no client has come for `calm_s`, but for `longest_s` at most."""
        end_s = self._loop.time() + longest_s
        known = -1
        while known != self.accepted and self._loop.time() < end_s:
            known = self.accepted
            await asyncio.sleep(min(calm_s, end_s - self._loop.time()))

    def turn_away(self) -> None:
        """Let nobody else into the queues of sockets that are this process's alone; `end` has to follow."""
        for sock in self._exclusive:
            turn_away(sock)
            if sock.family == socket.AF_UNIX:
                # To the loop there is something to read there ever after, and it would look without an end.
                self._loop.remove_reader(sock)
                self._accept(sock, MOST_WAITING)

    def end(self, *, handed_over: bool = False) -> None:
        """Give up listening in good order: first accept the clients in the kernel's queues, as long as there is room.

        Args:
            handed_over: Another process accepts from the same sockets: clients in their queues are left to it.
        """
        if not handed_over:
            self.turn_away()
            for sock in (*self._sockets, *self._others):
                self._accept(sock, MOST_WAITING)
        self.stop()

    def stop(self) -> None:
        """Give up listening: unless another process does, clients in the kernel's queue are reset. May be repeated."""
        if not self._paused:
            self._rest()
        self._clock.watched.discard(self)
        for file in self._files:
            file.remove()
        self._files.clear()
        for sock in (*self._sockets, *self._others):
            sock.close()
        self._sockets.clear()
        self._exclusive.clear()
        self._others.clear()

    async def close(self) -> None:
        """Stop, and see those that were just being accepted handed over to their protocols."""
        self.stop()
        self.end_handshakes()
        # Each is through in a few turns of the loop.
        await asyncio.gather(*self._starting.values(), return_exceptions=True)

    def end_handshakes(self) -> None:
        """Hang up on those with whom TLS is not agreed yet."""
        for sock in self._shaking_hands:
            # To cancel what makes it could leave a transport behind that still watches the descriptor (see `Dialer`).
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def on_client_gone(self) -> None:
        """Hear that a connection has ended: to be called once for each that was made."""
        self.clients -= 1
        if not self.clients:
            self.emptied.set()
        if self._paused:
            self._go_on()

    def on_deadline(self) -> None:
        """See `clock.Watched`. What keeps descriptors from us need not be ours: look whether there is room."""
        if self._paused:
            self._go_on()
        elif self._calm_from_s < self._clock.now_s:
            if self._calm_from_s:
                self._calm_from_s = 0.0
                _log.info("accepting connections without a pause again")
            if not self._others:
                self._clock.watched.discard(self)
        for sock in self._others:
            self._accept(sock)

    def _accept(self, listening: socket.socket, most: int = ACCEPTS_A_TURN) -> None:
        """Accept so many at most, unless there is no room."""
        if self._paused:
            return
        for _ in range(most):
            if self._descriptors.room(self.clients + 1) < 0:
                self._pause(self._descriptors.describe(self.clients))
                return
            try:
                sock, _ = listening.accept()
            except BlockingIOError:
                return
            except (InterruptedError, ConnectionAbortedError):
                continue
            except OSError as error:  # EMFILE and its like; the loop would call again and again
                self._pause(str(error))
                return
            sock.setblocking(False)
            self.clients += 1
            self.accepted += 1
            if self._tls is None or sock.family == socket.AF_UNIX:
                self._starting[sock] = self._loop.create_task(self._begin(sock))
            else:
                self._shaking_hands.add(sock)
                self._starting[sock] = self._loop.create_task(self._begin_tls(sock, self._tls.context))

    async def _begin(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, sock)
        except BaseException as error:
            sock.close()
            self.on_client_gone()
            if not isinstance(error, OSError):  # else the client has gone again
                raise
        finally:
            del self._starting[sock]

    async def _begin_tls(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make,
                sock,
                ssl=context,
                ssl_handshake_timeout=self.handshake_timeout_s,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except BaseException as error:
            # The loop has closed the descriptor, but uvloop does not always tell the socket so (see `Dialer`).
            sock.detach()
            self.on_client_gone()
            if not isinstance(error, OSError):
                raise
            _log.debug("a client and the gateway did not agree on TLS: %s", error or type(error).__name__)
        finally:
            del self._starting[sock]
            self._shaking_hands.discard(sock)

    def _pause(self, reason: str) -> None:
        self._rest()
        was_calm = not self._calm_from_s
        self._calm_from_s = self._clock.now_s + CALM_S
        self._clock.watched.add(self)
        if was_calm:
            _log.warning(
                "new connections have to wait: %s; to have more at a time, raise the limit of open files (ulimit -n)",
                reason,
            )

    def _rest(self) -> None:
        self._paused = True
        for sock in self._sockets:
            self._loop.remove_reader(sock)

    def _go_on(self) -> None:
        if self._sockets and self._descriptors.room(self.clients + 1) >= self._descriptors.enough:
            self.start()


def _url(sock: socket.socket, scheme: str) -> str:
    if sock.family == socket.AF_UNIX:
        name = sock.getsockname()
        # Bytes: an abstract one, which has no file (unix(7)).
        return f"unix:{name}" if isinstance(name, str) else f"unix:@{name[1:].decode('utf-8', 'backslashreplace')}"
    host, port = sock.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
