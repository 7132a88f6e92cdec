"""What all connections of one gateway share, and what all exchanges with one of its targets do."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.proxy.events import EventStreams
from gateway.proxy.paces import Paces
from gateway.proxy.spending import Spending

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from gateway.access_log import AccessLog
    from gateway.admission import Admission
    from gateway.config import Settings
    from gateway.http1.message import RequestHead
    from gateway.http1.parser import RequestParser
    from gateway.metrics import Metrics
    from gateway.proxy.client import ClientConnection
    from gateway.proxy.clock import Clock
    from gateway.proxy.exchange import Exchange
    from gateway.proxy.keys import KeyRing
    from gateway.proxy.peer import Peer
    from gateway.proxy.pool import UpstreamPool
    from gateway.proxy.routes import Routes
    from gateway.proxy.target import TargetRoute
    from gateway.tally import TargetUsage
    from gateway.usage import Stream

    Answer = tuple[int, list[tuple[str, str]], bytes]
    """Status, fields and content of an answer of the gateway's own."""

    Endpoint = Callable[[RequestHead, bytes, Peer], Awaitable[Answer | Stream]]
    """Answers a request to the gateway itself, given its head, its body and whose it is.

    Raises a GatewayError to refuse.
    """


@dataclass(slots=True)
class ProxyContext:
    """The parts that the server has built; connections and exchanges use them and own none."""

    loop: asyncio.AbstractEventLoop
    settings: Settings
    clock: Clock
    parser: RequestParser
    admission: Admission
    routes: Routes
    endpoint: Endpoint
    metrics: Metrics
    random: Callable[[], float] = random.random
    """What spreads the waits of those who are refused: a number from 0 to 1."""
    connections: set[ClientConnection] = field(default_factory=set)
    draining: bool = False
    """Each answer says that its connection closes, and idle ones end soon."""
    stopping: bool = False
    """Likewise, and nobody else goes on in its place."""
    closed: bool = False
    """No connection is taken any more."""
    access_log: AccessLog | None = None
    """None: nobody wants a line for each request."""
    streams: EventStreams = field(default_factory=EventStreams)
    spending: Spending = field(default_factory=Spending)
    paces: Paces = field(default_factory=Paces)
    on_client_gone: Callable[[], None] = lambda: None
    """Called when any connection has ended."""


@dataclass(slots=True)
class Destination:
    """One target with one of its keys: what an exchange with it uses, from its begin to its end.

    Args:
        shared: What all connections share.
        settings: The configuration, with the target's own timeouts.
        clock, metrics: As in `shared`.
        admission: Checks the limits of tokens, and the target's own.
        route: Writes request heads for this target and key.
        pool: The connections to the target, whichever the key.
        keys: Who says, when a request is sent, with which of several keys; None: with this one.
        metered: Makes an exchange that knows what requests cost, or that reads them for a guard; None: neither.

    Attributes:
        usage: Counts the target's requests, whichever the key.
        log: As in `shared`.
        writes_late: A request's head is written when it is sent: not before is all of it known.
    """

    shared: ProxyContext
    settings: Settings
    clock: Clock
    metrics: Metrics
    admission: Admission
    route: TargetRoute
    pool: UpstreamPool
    keys: KeyRing | None = None
    metered: Callable[[Destination, ClientConnection], Exchange] | None = None
    usage: TargetUsage = field(init=False)
    log: AccessLog | None = field(init=False)
    writes_late: bool = field(init=False)

    def __post_init__(self) -> None:
        self.usage = self.metrics.target(self.route.name)
        self.log = self.shared.access_log
        self.writes_late = self.keys is not None or self.metered is not None
