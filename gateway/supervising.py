"""What the program has to do with a supervisor: it becomes one, is a worker of one, or leaves its place to one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Final, Self

from gateway.activation import inherited_sockets, listening_socket
from gateway.config import UnixAddress
from gateway.errors import ConfigError
from gateway.listening import BACKLOG, listening_on
from gateway.supervisor.plan import (
    START_TIMEOUT_S,
    STOPPING,
    Plan,
    make_shared_directory,
    remove_shared_directory,
    signal_pipe,
    spawn_worker,
)
from gateway.unix_sockets import listen_on

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence
    from typing import NoReturn

    from gateway.config import Address, Settings

TURNS: Final = 5
"""Of the loop, to handle the signals that it knows of: one to read them, one to call what handles them, and more."""
SHARED_DIR: Final = "GATEWAY_SHARED_DIR"
"""Where a supervisor has its workers put their counts, for each other."""
LOOK_EVERY_S: Final = 0.5
"""How often the end of a successor is looked for: as long as a supervisor waits before it starts another worker."""
_MARK: Final = "GATEWAY_WORKER"
_OURS: Final = (_MARK, SHARED_DIR, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
"""What a process was told for itself alone."""

_log = logging.getLogger("gateway")


class Place:
    """A worker's place below its supervisor.

    Args:
        index: Which of the workers it is, from 0.
        sockets: The listening sockets of all workers, which it has to close.
        ready: Where to tell that it serves.
        lifeline: Comes to its end when the supervisor does.
    """

    __slots__ = ("_index", "_own", "_ready", "_sockets", "lifeline")

    def __init__(self, index: int, sockets: Sequence[socket.socket], ready: int, lifeline: int) -> None:
        self._index = index
        self._sockets = sockets
        self.lifeline = lifeline
        self._ready = ready
        self._own: list[socket.socket] = []  # of those for this worker, those that are for no other

    @classmethod
    def found(cls, environ: MutableMapping[str, str]) -> Self | None:
        """Return the place that this process was started for; None without a supervisor.

        Args:
            environ: The process's environment; what tells of the place is taken out.

        Raises:
            ConfigError: What is there does not come from a supervisor.
        """
        told = environ.pop(_MARK, "")
        if not told:
            return None
        try:
            index, sockets, ready, lifeline = told.split(":")
            for descriptor in (ready, lifeline):
                os.set_inheritable(int(descriptor), False)
            taken = [listening_socket(int(one)) for one in sockets.split(",")]
            return cls(int(index), taken, int(ready), int(lifeline))
        except (ValueError, OSError):
            takes = "what the supervisor sets it to for its workers"
            raise ConfigError(_MARK, "does not come from a supervisor", takes, f"to unset {_MARK}") from None

    def sockets(self, workers: int) -> tuple[list[socket.socket], list[socket.socket]]:
        """Return those that are this worker's own, and those that are others'.

        Args:
            workers: How many there are. As many sockets as workers were opened for an address, or one; but there may
                be more or fewer workers now.
        """
        own: list[socket.socket] = []
        by_address: dict[object, list[socket.socket]] = {}
        for sock in self._sockets:
            by_address.setdefault(sock.getsockname(), []).append(sock)
        for found in by_address.values():
            if len(found) >= workers:
                self._own += found[self._index % workers :: workers]
            own += found[self._index % workers :: workers] or [found[self._index % len(found)]]
        return own, [sock for sock in self._sockets if sock not in own]

    def sole_sockets(self, environ: Mapping[str, str]) -> Sequence[socket.socket]:
        """Return those that no other process accepts from, now that it has been told to stop, nor ever will."""
        is_sole = os.path.exists(f"{environ[SHARED_DIR]}/{STOPPING}")  # noqa: PTH110 - see `named_file`
        return self._own if is_sole else ()

    def tell_ready(self, workers: int) -> None:
        """Say that this worker serves, and how many its configuration asks for."""
        with contextlib.suppress(BrokenPipeError):  # the supervisor has ended; the lifeline tells of that
            os.write(self._ready, b"%d\n" % workers)
        os.close(self._ready)


def become_supervisor(settings: Settings, environ: Mapping[str, str]) -> NoReturn:
    """Listen, and turn this process into the supervisor of `settings.workers` workers.

    Args:
        settings: The configuration.
        environ: The environment of the workers.

    Raises:
        OSError: An address cannot be listened on, or the supervisor cannot be started.
        ConfigError: The process was started with sockets that are not for listening.
    """
    sockets = inherited_sockets(os.environ)
    is_activated = bool(sockets)
    files: list[str] = []
    for address in () if is_activated else settings.listen:
        with listening_on(address):
            found, file = _open(address, settings.workers)
        sockets += found
        files += file
    plan = Plan(
        _command(),
        sockets=[sock.detach() for sock in sockets],
        lifeline=os.pipe(),
        signals=signal_pipe(),
        shared=make_shared_directory(environ),
        files=files,
        exclusive=not is_activated,
        level=settings.log_level,
    )
    plan.execute(_inheritable(environ))


def _open(address: Address | UnixAddress, workers: int) -> tuple[list[socket.socket], list[str]]:
    """Listen on an address, with one socket for all workers or one for each (`SO_REUSEPORT`).

    The kernel deals connections out to the latter by a hash. Of one for all, the quickest takes most. Measured on
    two cores with other work on them, the busiest worker's part of a fair share, as the median of five runs:

    | connections | 2 workers: each | all | 4 workers: each | all |
    | --- | --- | --- | --- | --- |
    | 2,000 short ones, 16 at a time | 1.01 | 1.04 | 1.08 | 1.65 |
    | 8 long ones, at once | 1.25 | 2.00 | 2.00 | 2.00 |
    | 64 long ones, at once | 1.06 | 1.16 | 1.31 | 2.62 |
    | 400 long ones, at once | 1.04 | 1.17 | 1.10 | 1.74 |

    To accept fewer in one turn of the loop (8, or 1) did not bring the second column down to the first. A socket whose
    worker is busy, or is not there, is looked after by the others: see `Listener`.
    """
    if isinstance(address, UnixAddress):
        sock, file = listen_on(address, BACKLOG)
        return [sock], [file.mark]
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    for name, family in {name: family for family, _, _, _, name in found}.items():
        # With SO_REUSEPORT a gateway that listens there already would not be noticed. This one does not listen: whoever
        # came to it would be reset.
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(name)
            chosen = probe.getsockname()
        sockets += [
            socket.create_server(chosen, family=family, backlog=BACKLOG, reuse_port=True) for _ in range(workers)
        ]
    return sockets, []


def _command() -> list[str]:
    """Return what started this process, interpreter options included."""
    return [sys.executable, *sys.orig_argv[1:]]


def _inheritable(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in _OURS}


class Successor:
    """The same program, started anew, that is to take over from this process.

    When it serves and this process has nothing left to do, `take_place` turns this process into its supervisor: so
    whoever has started this process sees it go on.

    Args:
        sockets: Descriptors of the listening sockets; they are closed with the successor.
        exclusive: This process has opened them.
        environ: The environment that this process was started with.
        settings: This process's.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(
        self, sockets: Sequence[int], environ: Mapping[str, str], settings: Settings, *, exclusive: bool
    ) -> None:
        self._environ = _inheritable(environ)
        self._looking: asyncio.TimerHandle | None = None
        self._plan = plan = Plan(
            _command(),
            sockets=sockets,
            lifeline=os.pipe(),
            signals=signal_pipe(),
            shared=make_shared_directory(environ),
            exclusive=exclusive,
            level=settings.log_level,
        )
        try:
            self._pid, self._ready = spawn_worker(plan, 0, self._environ)
        except OSError:
            self._give_up()
            raise

    async def serves(self) -> None:
        """Wait until it does.

        Raises:
            OSError: It has ended instead, or does not serve in time; it is no more.
        """
        loop = asyncio.get_running_loop()
        heard = asyncio.Event()
        loop.add_reader(self._ready, heard.set)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await heard.wait()
        except BaseException as error:
            self._end()
            if isinstance(error, TimeoutError):
                raise OSError(f"it does not serve after {START_TIMEOUT_S:g} s") from None
            raise
        finally:
            loop.remove_reader(self._ready)
        said = os.read(self._ready, 64)
        if not said.strip().isdigit():
            raise OSError(f"it ended before it served ({self._end()})")
        self._plan.wanted = int(said)

    def keep_alive(self) -> None:
        """Start it again if it ends, until `stop` or `take_place`: it is the only one that serves."""
        if self._pid and os.waitpid(self._pid, os.WNOHANG)[0]:
            _log.error("the new program has ended while the old one finishes: it is started again")
            os.close(self._ready)
            self._pid = 0
        if not self._pid:
            try:
                self._pid, self._ready = spawn_worker(self._plan, 0, self._environ)
            except OSError as error:
                _log.error("the new program cannot be started again: %s", error)
        self._looking = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self.keep_alive)

    def stop(self, number: signal.Signals) -> None:
        """Send it a signal to end, and listen no more in its place."""
        if self._looking is not None:
            self._looking.cancel()
        self._plan.stop_listening()
        if self._pid:  # it has not been waited for, so its number is still its own
            os.kill(self._pid, number)

    async def hear_signals(self) -> None:
        """Have signals wait for the supervisor from now on; return when those that came before have been handled."""
        signal.set_wakeup_fd(self._plan.signals[1])
        for _ in range(TURNS):
            await asyncio.sleep(0)

    def take_place(self, files: Sequence[str], stops: int) -> NoReturn:
        """Turn this process into the successor's supervisor.

        Args:
            files: Of the listening sockets, see `Plan`.
            stops: How many signals to stop have come.

        Raises:
            OSError: That cannot be done.
        """
        self._plan.files, self._plan.stops, self._plan.serving = list(files), stops, [self._pid]
        if self._pid:
            os.close(self._ready)
        self._plan.execute(self._environ)

    def _end(self) -> str:
        """End it, and forget it; return how it ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        _, status = os.waitpid(self._pid, 0)
        os.close(self._ready)
        self._give_up()
        code = os.waitstatus_to_exitcode(status)
        return f"exit status {code}" if code >= 0 else f"killed by signal {-code}"

    def _give_up(self) -> None:
        """Let go of all that was made for it."""
        for descriptor in (*self._plan.lifeline, *self._plan.signals, *self._plan.sockets):
            os.close(descriptor)
        remove_shared_directory(self._plan.shared)
