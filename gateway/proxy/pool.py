"""Connections kept for the next request: the most recently used first, the stale ones never."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
import ssl
from typing import TYPE_CHECKING, Final, Protocol

from gateway.errors import GatewayError, UpstreamShut, UpstreamTimeout, UpstreamUnreachable
from gateway.proxy.clock import TICK_S
from gateway.proxy.health import FAILURES, FIRST_WAIT_S, MOST_WAIT_S, Health
from gateway.proxy.sockets import has_come
from gateway.proxy.upstream import UpstreamConnection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.config import Settings
    from gateway.http1.parser import AnswerParser
    from gateway.proxy.clock import Clock

    Dial = Callable[[UpstreamConnection], Awaitable[None]]

QUIET_S: Final = 1.0
MOST_AGE_S: Final = 300.0
"""One that is never idle would follow no change of DNS. So each ends behind an answer when it is that old. Some
names live for a minute; but TLS is set up again then, and a request waits for that."""
SPREAD_S: Final = 60
"""Up to so much earlier: those that were made together, as a burst came, would all set up TLS again together."""
LATE_S: Final = 1.0
"""An attempt that has no answer by then has lost its first packet (RFC 6298 §2.1), so it counts as failed, though
its client waits no longer. Else a target that answers nobody would never be out where clients have less patience
than `CONNECT_TIMEOUT`: each would wait, and no log would say for what."""
_NO_DESCRIPTOR: Final = frozenset({errno.EMFILE, errno.ENFILE})

_log = logging.getLogger("gateway.upstream")


class Connector(Protocol):
    """Who waits for a new connection. Exactly one of the two is called, later."""

    def on_connected(self, connection: UpstreamConnection) -> None:
        """Here it is; it is the caller's until `UpstreamPool.give_back` or `UpstreamConnection.close`."""
        ...

    def on_connect_failed(self, error: GatewayError) -> None:
        """There is none to be had."""
        ...


class UpstreamPool:
    """The connections to one target. Also the clock's `Watched`, to end those that idle too long.

    Args:
        dial: Connects a protocol to the upstream; raises OSError, an SSLError among them.
        settings: Timeouts and sizes.
        parser: The process's answer parser.
        clock: The process's coarse time.
        name: What the log calls the target.

    Attributes:
        health: Whether the target can be connected to, as far as its requests have found out.
    """

    def __init__(self, dial: Dial, settings: Settings, parser: AnswerParser, clock: Clock, name: str) -> None:
        self.health = Health()
        self._name = name
        self._dial = dial
        self._parser = parser
        self._clock = clock
        self._timeout_s = settings.connect_timeout_s
        self._idle_s = settings.upstream_idle_s
        self._most_idle = settings.upstream_pool
        self._idle: list[UpstreamConnection] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._open: set[UpstreamConnection] = set()
        self._failures = 0
        self._quiet_until_s = 0.0
        self.deadline_s = 0.0

    def __len__(self) -> int:
        """Count the connections, idle or not, and the attempts at one."""
        return len(self._open) + len(self._connecting)

    def take(self) -> UpstreamConnection | None:
        """Lend the connection that was used last, if one is idle."""
        while self._idle:
            connection = self._idle.pop()
            if connection.transport.is_closing():
                continue
            # It may have ended, and the loop not have read that yet. A busy one is not asked about each time.
            if connection.idle_since_s != self._clock.now_s and has_come(connection.transport):
                connection.close()
                continue
            connection.reused = True
            return connection
        return None

    def check(self) -> None:
        """Raise UpstreamShut if a request that is begun now would be refused a connection."""
        left_s = self.health.left_s(_now_s())
        if left_s and not self._idle:
            raise UpstreamShut(math.ceil(left_s))

    def connect(self, waiter: Connector) -> asyncio.Task[None]:
        """Make a new connection and hand it to `waiter`; cancel the task when it is no longer wanted."""
        task = asyncio.get_running_loop().create_task(self._connect(waiter))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return task

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep a connection whose last answer was whole and that the upstream would use again."""
        now_s, idle = self._clock.now_s, self._idle
        # One that has not sent all of its last request would hold up the next.
        if connection.transport.get_write_buffer_size():
            connection.close()
            return
        connection.reader = None
        if now_s >= connection.old_at_s or len(idle) >= self._most_idle:
            connection.close()  # without a reader: in good order
            return
        connection.idle_since_s = now_s
        idle.append(connection)

    def on_deadline(self) -> None:
        """End the connections that have idled for `UPSTREAM_IDLE`; the oldest stand first."""
        now_s = self._clock.now_s
        while self._idle and self._idle[0].idle_since_s + self._idle_s < now_s:
            self._idle.pop(0).close()
        self.deadline_s = now_s + TICK_S

    def retire(self) -> None:
        """Keep no connection from now on: those that idle end at once, those that are lent as they come back."""
        self._most_idle = 0
        for connection in tuple(self._idle):
            connection.close()

    def close(self) -> None:
        """End every connection, idle or not, and every attempt at one."""
        for task in tuple(self._connecting):
            task.cancel()
        for connection in tuple(self._open):
            connection.close()

    async def closed(self) -> None:
        """Wait until the attempts that `close` ended are over."""
        if self._connecting:
            await asyncio.wait(self._connecting)

    def _forget(self, connection: UpstreamConnection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _warn(self, failure: OSError, mend: str = "") -> None:
        """Log once a second at most: an outage has a failure for every request."""
        self._failures += 1
        if self._clock.now_s >= self._quiet_until_s:
            _log.warning(
                "cannot connect to target %s: %s%s (%d since the last such line)",
                *(self._name, _reason(failure), mend, self._failures),
            )
            self._quiet_until_s = self._clock.now_s + QUIET_S
            self._failures = 0

    async def _connect(self, waiter: Connector) -> None:
        health = self.health
        left_s = health.left_s(_now_s()) if health.is_open else 0.0
        if left_s:  # others were quicker, or it has opened since the request began
            waiter.on_connect_failed(UpstreamShut(math.ceil(left_s)))
            return
        connection = UpstreamConnection(self._parser, self._forget)
        began_s = _now_s()
        health.begin(connection)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._dial(connection)
            connection.old_at_s = self._clock.now_s + MOST_AGE_S - len(self._open) % SPREAD_S
            self._open.add(connection)
            if health.on_success():
                _log.info("target %s can be connected to again: its requests pass", self._name)
            waiter.on_connected(connection)
        except asyncio.CancelledError:
            waited_s = _now_s() - began_s
            if waited_s >= LATE_S:
                gave_up = f"no answer within {waited_s:.1f} s, when its request was given up"
                self._explain(connection, TimeoutError(errno.ETIMEDOUT, gave_up))
            raise
        except OSError as failure:
            # It refers to what has caught it, which refers to it: garbage that keeps the whole exchange.
            failure.__traceback__ = None
            waiter.on_connect_failed(self._explain(connection, failure))
        except Exception:  # noqa: BLE001 - a defect: nobody awaits this task, and the client would wait for ever
            _log.exception("a request could not be sent")
            connection.close()
            waiter.on_connect_failed(GatewayError("Something went wrong in the gateway."))
        finally:
            health.end(connection)

    def _explain(self, connection: UpstreamConnection, failure: OSError) -> GatewayError:
        if failure.errno in _NO_DESCRIPTOR:  # no fault of the target's
            self._warn(failure, "; raise the limit of open files (ulimit -n)")
            return UpstreamUnreachable("The gateway has as many connections as it may have. Nothing was sent.")
        was_open = self.health.is_open
        if self.health.on_failure(connection, _now_s()):
            _log.warning(
                "target %s is out: %d attempts in a row to connect failed, the last with: %s. %s Its requests get 503; "
                "one at a time tries again, after %.0f s and then less often, but every %.0f s",
                *(self._name, FAILURES, _reason(failure), _mend(failure), FIRST_WAIT_S, MOST_WAIT_S),
            )
        elif not was_open:
            self._warn(failure)
        if isinstance(failure, TimeoutError):
            return UpstreamTimeout("The upstream did not accept a connection in time.")
        if isinstance(failure, ssl.SSLError):
            return UpstreamUnreachable("The upstream's TLS certificate or handshake was not acceptable.")
        return UpstreamUnreachable("No connection to the upstream could be made.")


def _now_s() -> float:
    """Return the loop's time, which is exact where the clock's is coarse: `Retry-After` has to be kept."""
    return asyncio.get_running_loop().time()


def _reason(failure: OSError) -> str:
    if isinstance(failure, TimeoutError) and failure.errno is None:
        return "no answer within CONNECT_TIMEOUT"
    # What ends a TLS handshake may have no words of its own.
    return str(failure) or "it ended the connection as it was made"


def _mend(failure: OSError) -> str:
    if isinstance(failure, TimeoutError):
        return "Does a firewall drop what is sent there, or is the machine overloaded?"
    if isinstance(failure, ssl.SSLError):
        return "Does it speak TLS there, with a certificate that the system's roots, or TARGET_CA_FILE, vouch for?"
    if isinstance(failure, socket.gaierror):
        return "Is the name of the host right, and does DNS answer here?"
    return "Does it run, and is this its address?"
