"""The gateway as a program: one process on uvloop, with its log on stderr and its signals handled."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
from typing import TYPE_CHECKING, Final

import uvloop

from gateway.activation import inherited_sockets
from gateway.server import Gateway

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from gateway.config import Config

GC_THRESHOLDS: Final = (50_000, 20, 50)
"""Requests leave almost no cycles behind; the default of 700 allocations would scan for them all the time."""

_log = logging.getLogger("gateway")


def serve(config: Config) -> int:
    """Run the gateway until SIGTERM or SIGINT, then drain it.

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
        return runner.run(_serve(config, sockets))


def _allow_all_descriptors() -> None:
    """Raise the soft limit: it is kept low for programs that use select(2), which this one does not."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS takes less than the "unlimited" that it tells of.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(config: Config, sockets: Sequence[socket.socket]) -> int:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with Gateway(config, sockets=sockets) as gateway:
        if gateway.has_certificates:
            loop.add_signal_handler(signal.SIGHUP, gateway.reload_certificates)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        await stopping.wait()
        _log.info("stopping: finishing what is in flight")
        if not await gateway.drain():
            _log.warning("some exchanges did not end within DRAIN_TIMEOUT and were cut off")
    return 0
