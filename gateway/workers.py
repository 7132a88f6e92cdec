"""The gateway as a program: one process on uvloop, with its log on stderr and its signals handled."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvloop

from gateway.activation import inherited_sockets
from gateway.errors import ConfigError
from gateway.server import Gateway

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from gateway.config import Config
    from gateway.watching import FileWatch

GC_THRESHOLDS: Final = (50_000, 20, 50)
"""Requests leave almost no cycles behind; the default of 700 allocations would scan for them all the time."""

SHARED_DIR: Final = "GATEWAY_SHARED_DIR"
"""Where a supervisor has its workers put their counts, for each other."""

_log = logging.getLogger("gateway")


def serve(config: Config, reread: Callable[[], Config]) -> int:
    """Run the gateway until SIGTERM or SIGINT, then drain it. SIGHUP, and a change of its files, reload it.

    Args:
        config: What it does.
        reread: Makes the configuration anew, from where this one came.

    Returns:
        0: everything in flight ended within `DRAIN_TIMEOUT`, or had to be cut off then.

    Raises:
        ConfigError: It was started with sockets that are not for listening.
        GatewayError, OSError: It could not start.
    """
    logging.basicConfig(
        level=config.settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # A core dump would hold the real key.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _allow_all_descriptors()
    sockets = inherited_sockets(os.environ)
    if sockets:
        _log.info("listening on %d sockets that this process was started with, not on GATEWAY_LISTEN", len(sockets))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config, sockets, reread))


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


async def _serve(config: Config, sockets: Sequence[socket.socket], reread: Callable[[], Config]) -> int:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    shared = os.environ.get(SHARED_DIR)
    gateway = Gateway(config, sockets=sockets, shared_dir=Path(shared) if shared else None)
    reloading = _Reloading(gateway, config, reread)
    loop.add_signal_handler(signal.SIGHUP, reloading)  # from the start: else it would end the program
    async with gateway:
        reloading.begin()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        await stopping.wait()
        reloading.end()
        _log.info("stopping: finishing what is in flight")
        if not await gateway.drain():
            _log.warning("some exchanges did not end within DRAIN_TIMEOUT and were cut off")
    return 0
