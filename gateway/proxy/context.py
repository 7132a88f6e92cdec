"""What all connections of one gateway share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.admission import Admission
    from gateway.config import Settings
    from gateway.http1.message import RequestHead
    from gateway.http1.parser import RequestParser
    from gateway.proxy.client import ClientConnection
    from gateway.proxy.clock import Clock
    from gateway.proxy.pool import UpstreamPool
    from gateway.proxy.target import TargetRoute

    LocalAnswer = tuple[int, list[tuple[str, str]], bytes]
    """Status, fields and content of an answer of the gateway's own."""

    Endpoint = Callable[[RequestHead, bytes, bool], Awaitable[LocalAnswer]]
    """Answers a request to the gateway itself, given its head, its body and whether its peer is local.

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
    route: TargetRoute
    pool: UpstreamPool
    endpoint: Endpoint
    connections: set[ClientConnection] = field(default_factory=set)
    tally: Tally = field(default_factory=Tally)
    draining: bool = False
    emptied: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last connection has ended."""
    on_client_gone: Callable[[], None] = lambda: None
    """Called when any connection has ended."""
