"""The gateway as a program: a process on uvloop, with its log on stderr and its signals handled.

With several workers it is each of them, and what turns into their supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
from typing import TYPE_CHECKING, Final

from gateway.activation import inherited_sockets
from gateway.errors import ConfigError
from gateway.names import Loop
from gateway.server import Gateway
from gateway.supervising import SHARED_DIR, Place, Successor, become_supervisor
from gateway.supervisor.plan import remove_shared_directory
from gateway.supervisor.stderr import LogStream

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from gateway.config import Config, Settings
    from gateway.watching import FileWatch

GC_THRESHOLDS: Final = (50_000, 20, 50)
"""Requests leave almost no cycles behind; the default of 700 allocations would scan for them all the time."""

NOTICE_S: Final = 1.0
"""From SIGTERM to the end of listening, at least: a load balancer that asks `/readyz` once a second hears of it."""

_log = logging.getLogger("gateway")


def serve(config: Config, reread: Callable[[], Config], environ: Mapping[str, str], warning: str = "") -> int:
    """Run the gateway until SIGTERM or SIGINT, then drain it. SIGHUP, and a change of its files, reload it.

    SIGUSR2 has the same program, started anew, take its place.

    Args:
        config: What it does.
        reread: Makes the configuration anew, from where this one came.
        environ: The environment that this process was started with.
        warning: What the log is to warn of, once however many workers there are; "": nothing.

    Returns:
        0: everything in flight ended within `DRAIN_TIMEOUT`, or had to be cut off then.

    Raises:
        ConfigError: It was started with sockets that are not for listening.
        GatewayError, OSError: It could not start.
    """
    logging.basicConfig(
        level=config.settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=LogStream(),
    )
    # A core dump would hold the real key.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _allow_all_descriptors()
    place = Place.found(os.environ)
    if place is None and warning:
        _log.warning(warning)
    if place is None and config.settings.workers > 1:
        become_supervisor(config.settings, environ)
    others: list[socket.socket] = []
    is_activated = False
    if place is not None:
        sockets, others = place.sockets(config.settings.workers)
    elif sockets := inherited_sockets(os.environ):
        is_activated = True
        _log.info("listening on %d sockets that this process was started with, not on GATEWAY_LISTEN", len(sockets))
    gateway = Gateway(config, sockets=sockets, others=others, shared_dir=_shared_dir())
    life = _Life(gateway, config.settings, place, environ, is_activated=is_activated)
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(_serve(gateway, life, _Reloading(gateway, config, reread)))
    return 0


def _shared_dir() -> Path | None:
    shared = os.environ.get(SHARED_DIR)
    if not shared:
        return None
    from pathlib import Path  # see `serving.named_file`

    return Path(shared)


def _allow_all_descriptors() -> None:
    """Raise the soft limit: it is kept low for programs that use select(2), which this one does not."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS takes less than the "unlimited" that it tells of.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Reloading:
    """Gives a running gateway the configuration as it is now; one that is no good leaves the old one standing.

    Args:
        gateway: That gateway.
        config: What it runs with.
        reread: Makes the configuration anew.
    """

    def __init__(self, gateway: Gateway, config: Config, reread: Callable[[], Config]) -> None:
        self._gateway = gateway
        self._reread = reread
        self._config = config
        self._watch: FileWatch | None = None
        self._is_due = self._is_over = False

    def begin(self) -> None:
        """Watch the files, now that the gateway runs; and reload if somebody has asked for it already."""
        self._watch = self._gateway.watch_files(self._config.files, self)
        if self._is_due:
            self()

    def __call__(self) -> None:
        """Reload now, or as soon as the gateway runs."""
        if self._is_over:
            return
        if self._watch is None:
            self._is_due = True
            return
        self._watch.look()
        try:
            config = self._reread()
            left = self._gateway.reload(config)
        except (ConfigError, OSError, ValueError) as error:
            _log.error("not reloaded, the configuration stays as it was: %s", error)
            self._gateway.reload_certificates()
            return
        self._watch.watch(config.files)
        _log.info("reloaded")
        for name in left:
            _log.warning("%s has changed, and takes a restart: it stays as it was", name)

    def end(self) -> None:
        """Reload no more: the gateway is stopping."""
        self._is_over = True


class _Life:
    """From the first signal that ends the process to its end, in the order that clients notice least.

    Args:
        gateway: What it is about.
        settings: Its configuration.
        place: What this process was given by its supervisor; None if it has none.
        environ: The environment that the process was started with.
        is_activated: Whoever started it has opened the listening sockets, and keeps them.

    Attributes:
        ending: Set when the process is to end.
    """

    def __init__(
        self,
        gateway: Gateway,
        settings: Settings,
        place: Place | None,
        environ: Mapping[str, str],
        *,
        is_activated: bool,
    ) -> None:
        self._gateway = gateway
        self._settings = settings
        self._place = place
        self._environ = environ
        self._is_activated = is_activated
        self.ending = asyncio.Event()
        self._at_once = asyncio.Event()
        self._is_relieved = self._is_orphaned = False
        self._stops = 0
        self._starting: asyncio.Task[None] | None = None
        self._successor: Successor | None = None
        self._files: list[str] = []

    def listen(self) -> None:
        """Handle signals from now on."""
        loop = asyncio.get_running_loop()
        # A service manager may tell each process of a group, and the supervisor tells its workers once more: to them a
        # second SIGTERM says nothing new. Ctrl-C goes to the whole group as well.
        loop.add_signal_handler(signal.SIGTERM, self._stop if self._place is None else self.ending.set)
        if self._place is None:
            loop.add_signal_handler(signal.SIGINT, self._stop)
            loop.add_signal_handler(signal.SIGUSR2, self._start_successor)
        else:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            loop.add_signal_handler(signal.SIGUSR2, self._relieve)
            loop.add_reader(self._place.lifeline, self._on_supervisor_gone, self._place.lifeline)
        loop.add_signal_handler(signal.SIGQUIT, self._end)

    async def starts(self) -> bool:
        """Start the gateway; return whether it runs, or was told to end before it did.

        Raises:
            GatewayError, OSError: It could not start.
        """
        loop = asyncio.get_running_loop()
        starting, ending = loop.create_task(self._gateway.start()), loop.create_task(self.ending.wait())
        await asyncio.wait((starting, ending), return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait((starting,))
            return False
        await starting
        return True

    def on_serving(self) -> None:
        """Tell whoever waits for it."""
        if self._place is not None:
            self._place.tell_ready(self._settings.workers)

    async def drain(self) -> None:
        """Let what is in flight end, unless a signal says that there is no time for it."""
        if self._starting is not None and self._successor is None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        loop = asyncio.get_running_loop()
        self._own_sockets()
        # Who signals each process of a group, as systemd does, may have told this one before its supervisor.
        owning = loop.call_later(NOTICE_S / 2, self._own_sockets)
        notice_s = 0.0 if self._is_relieved else NOTICE_S
        handed_over = self._is_relieved and not self._is_orphaned
        draining = loop.create_task(self._gateway.drain(notice_s=notice_s, handed_over=handed_over))
        hurrying = loop.create_task(self._at_once.wait())
        await asyncio.wait((draining, hurrying), return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        owning.cancel()
        if not draining.done():
            draining.cancel()
            _log.warning("told to stop at once: what was in flight is cut off")
        elif not draining.result():
            _log.warning("some exchanges did not end within DRAIN_TIMEOUT and were cut off")

    def _own_sockets(self) -> None:
        if self._place is not None and (sole := self._place.sole_sockets(self._environ)):
            self._gateway.own_sockets(sole)

    async def leave(self) -> None:
        """Turn this process into the supervisor of its successor, if it has one; or clean up for one that is gone."""
        if self._is_orphaned:
            with contextlib.suppress(OSError):  # another worker is quicker, or still has something there
                remove_shared_directory(self._environ[SHARED_DIR])
        if self._successor is not None:
            # While the loop runs: when it ends, it gives up its handlers, and signals would end the process.
            await self._successor.hear_signals()
            self._successor.take_place(self._files, self._stops)

    def _stop(self) -> None:
        self._stops += 1
        if self._stops > 1:
            self._at_once.set()
        if self._successor is not None:
            self._successor.stop(signal.SIGTERM if self._stops == 1 else signal.SIGQUIT)
        self.ending.set()

    def _end(self) -> None:
        self._at_once.set()
        self.ending.set()

    def _relieve(self) -> None:
        """Another process accepts from the same sockets: there is nobody to give notice to."""
        self._is_relieved = True
        self.ending.set()

    def _on_supervisor_gone(self, lifeline: int) -> None:
        asyncio.get_running_loop().remove_reader(lifeline)
        _log.error("the supervisor has ended: so does this worker")
        self._is_orphaned = True
        self._relieve()

    def _start_successor(self) -> None:
        if self.ending.is_set() or (self._starting is not None and not self._starting.done()):
            _log.warning("SIGUSR2: the gateway is being replaced already, or stopping")
            return
        if self._settings.state_file is not None:
            _log.error("SIGUSR2: not replaced: STATE_FILE has one writer at a time. Stop this program, then start it.")
            return
        _log.info("SIGUSR2: starting the new program beside the old one")
        self._starting = asyncio.get_running_loop().create_task(self._succeed())

    async def _succeed(self) -> None:
        try:
            sockets = self._gateway.share_sockets()
            successor = Successor(sockets, self._environ, self._settings, exclusive=not self._is_activated)
            await successor.serves()
        except (OSError, RuntimeError) as error:
            _log.error("not replaced, the old program goes on: %s", error)
            return
        self._successor = successor
        successor.keep_alive()
        self._files = self._gateway.leave_files()
        self._relieve()


async def _serve(gateway: Gateway, life: _Life, reloading: _Reloading) -> None:
    life.listen()
    # From the start: else it would end the program.
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloading)
    if await life.starts():
        try:
            reloading.begin()
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            life.on_serving()
            await life.ending.wait()
            reloading.end()
            _log.info("stopping: finishing what is in flight")
            await life.drain()
        finally:
            await gateway.close()
    await life.leave()
