"""Server-sent events of the gateway's own: one a second, until the client leaves or the gateway stops."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import TYPE_CHECKING, Final

from gateway.errors import ConcurrencyLimited, StoreUnavailable, TokenError

if TYPE_CHECKING:
    from gateway.http1.message import RequestHead
    from gateway.proxy.client import ClientConnection
    from gateway.proxy.clock import Clock
    from gateway.usage import Stream, Told

EVERY_S: Final = 1.0
MAX_STREAMS: Final = 64
"""At once, of admins, and as many of tokens' holders, who so cannot keep an admin from looking. Each asks the store
once a second."""
MAX_STREAMS_OF_ONE: Final = 8
"""Of one token and all that were made from it: so that none keeps the others from looking."""
_RETRY_AFTER_US: Final = 10_000_000

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nX-Accel-Buffering: no\r\n"
)
"""The last field keeps an nginx in front of the gateway from holding events back."""


class EventStreams:
    """The streams that are open, and their end."""

    __slots__ = ("_ending", "_open")

    def __init__(self) -> None:
        self._open: Counter[str | None] = Counter()  # by token, not one that was made from it; None: admins'
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Let all of them end now, in good order; and those that are still to come, when they have told once."""
        self._ending.set()

    def renew(self) -> None:
        """Let all of them end now: whoever asks again is told what holds by now, if that is still their right."""
        self._ending.set()
        self._ending = asyncio.Event()

    async def send(
        self, stream: Stream, client: ClientConnection, head: RequestHead, clock: Clock, idle_s: float
    ) -> None:
        """Send events until there is a reason to stop; the client connection has to be closed behind them.

        Args:
            stream: Makes them.
            client: Takes them. Where it is slow, it misses some: each tells all there is.
            head: Its request's.
            clock: The process's coarse time.
            idle_s: How long a client may take nothing.

        Raises:
            GatewayError: The refusal to send; nothing was sent yet.
        """
        whose = stream.token_id and stream.token_id.partition(".")[0]
        ending = self._ending
        self._check(whose)
        self._open[whose] += 1
        try:
            first = await stream.make()
            is_chunked = head.minor == 1
            framing = b"Transfer-Encoding: chunked\r\n" if is_chunked else b""
            client.write(_HEAD + framing + b"Connection: close\r\nDate: %b\r\n\r\n" % clock.date().encode())
            client.write(_event(first, is_chunked=is_chunked))
            while not await _is_set_within(ending, EVERY_S):
                if not client.writable:
                    continue
                client.deadline_s = clock.soon_s + idle_s
                try:
                    client.write(_event(await stream.make(), is_chunked=is_chunked))
                except StoreUnavailable:
                    continue  # it will be back
                except TokenError:
                    break
            if is_chunked:
                client.write(b"0\r\n\r\n")
        finally:
            self._open[whose] -= 1
            if not self._open[whose]:
                del self._open[whose]

    def _check(self, whose: str | None) -> None:
        """Refuse a stream where there are as many as there may be."""
        own = self._open[whose]
        most = MAX_STREAMS if whose is None else MAX_STREAMS_OF_ONE
        if own >= most or (whose is not None and self._open.total() - self._open[None] >= MAX_STREAMS):
            error = ConcurrencyLimited("streams", most, 0, _RETRY_AFTER_US)
            quota = f'"streams";q={most};qu="concurrent-requests"'
            error.limit_fields = [("RateLimit-Policy", quota), ("RateLimit", '"streams";r=0;t=10')]
            raise error


async def _is_set_within(ending: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await ending.wait()
    except TimeoutError:
        return False
    return True


def _event(told: Told, *, is_chunked: bool) -> bytes:
    event = b"event: usage\ndata: " + json.dumps(told, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event) if is_chunked else event
