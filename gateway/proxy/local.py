"""A request to the gateway itself: its body is gathered, an endpoint answers it. Off the hot path."""

from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING, Final

from gateway.errors import (
    BadRequest,
    BodyTooLarge,
    GatewayError,
    NotAllowed,
    NotImplementedHere,
    RequestTimeout,
)
from gateway.http1 import framing
from gateway.http1.message import CHUNKED, CONTINUE
from gateway.proxy import own
from gateway.usage import Stream

if TYPE_CHECKING:
    import asyncio

    from gateway.http1.message import RequestHead
    from gateway.proxy.client import ClientConnection
    from gateway.proxy.context import ProxyContext

MAX_BODY_BYTES: Final = 4096

_log = logging.getLogger("gateway")


class LocalExchange:
    """A request that an endpoint answers. The client connection treats it as it does an `Exchange`.

    Args:
        context: What all exchanges share.
        client: The connection that the request came on.
    """

    __slots__ = (
        "_began_s",
        "_body",
        "_client",
        "_context",
        "_head",
        "_ids",
        "_over",
        "_task",
        "_walker",
        "request_done",
    )

    def __init__(self, context: ProxyContext, client: ClientConnection) -> None:
        self._context = context
        self._client = client
        self._over = False
        self._task: asyncio.Task[None] | None = None
        self._body = b""
        self.request_done = False

    def start(self, head: RequestHead, data: bytes) -> bytes:
        """Take a request's head and what came behind it; return what belongs to the next one. `begin` has to follow.

        Raises:
            BadRequest: The body's framing is broken.
        """
        self._began_s = perf_counter()
        self._head = head
        self._walker = framing.body(head.length, BadRequest)
        if head.length == CHUNKED:  # no endpoint takes it, so nobody need know where it ends
            return b""
        return self._take(data)

    def _take(self, data: bytes) -> bytes:
        content, rest = self._walker.feed(data)
        self._body += content
        self.request_done = self._walker.done
        return rest

    def begin(self) -> None:
        """Refuse what no endpoint takes, else answer as soon as the body is there."""
        head, context = self._head, self._context
        self._client.deadline_s = context.clock.soon_s + context.settings.header_timeout_s
        if head.method == b"CONNECT":
            self._refuse(
                NotImplementedHere(
                    "No tunnels here: use this gateway as the API's base URL, or write that with http: for a proxy."
                )
            )
        elif not head.target.startswith((b"/", b"*")):
            self._refuse(NotAllowed("This URL lies under no target of this gateway."))
        elif head.length == CHUNKED or head.length > MAX_BODY_BYTES:
            self._refuse(BodyTooLarge(f"Endpoints take at most {MAX_BODY_BYTES} bytes, with a Content-Length."))
        elif not self._answer_whole() and head.expects_continue:
            self._client.write(CONTINUE)

    def on_client_bytes(self, data: bytes) -> bytes:
        """Take what came on the client connection; return what belongs to the next request."""
        if self.request_done:
            return data
        rest = self._take(data)
        self._answer_whole()
        return rest

    @property
    def missing_bytes(self) -> int:
        """Short bodies are never held back, so nobody need find out whether the rest will come."""
        return 0

    def on_client_ended(self) -> bool:
        """An answer of the gateway's own is written in one piece: nobody can leave in the middle of it."""
        return False

    @property
    def takes_interim(self) -> bool:
        """Endpoints answer soon enough: nobody need find out whether the client is still there."""
        return False

    def on_client_full(self) -> None:
        """An answer of the gateway's own is written in one piece."""

    def on_client_ready(self) -> None:
        """An answer of the gateway's own is written in one piece."""

    def on_client_lost(self) -> None:
        """The client hung up."""
        self._over = True
        if self._task is not None:
            self._task.cancel()

    def on_deadline(self) -> None:
        """The body did not come in time; or events are not taken."""
        if self.request_done:
            self._client.abort()
        else:
            self._refuse(RequestTimeout("The request body did not come in time."))

    def _answer_whole(self) -> bool:
        if self.request_done:
            self._task = self._context.loop.create_task(self._ask_endpoint())
        return self.request_done

    async def _ask_endpoint(self) -> None:
        head, client, context = self._head, self._client, self._context
        try:
            answer = await context.endpoint(head, self._body, client.peer)
            if isinstance(answer, Stream):
                await context.streams.send(answer, client, head, context.clock, context.settings.idle_timeout_s)
                self._over = True
                own.log(client, context, head, 200, own_s=perf_counter() - self._began_s)
                client.on_exchange_done(keep_alive=False)
                return
        except GatewayError as error:
            self._refuse(error)
            return
        except Exception:  # noqa: BLE001 - a defect: nobody awaits this task, and the client would wait for ever
            _log.exception("an endpoint failed")
            self._refuse(GatewayError("Something went wrong in the gateway."))
            return
        if not self._over:
            self._over = True
            own_s = perf_counter() - self._began_s
            own.log(client, context, head, answer[0], own_s=own_s, received=len(self._body), sent=len(answer[2]))
            own.send(client, context, answer, head, keep_alive=head.keep_alive)

    def _refuse(self, error: GatewayError) -> None:
        if not self._over:
            self._over = True
            keep_alive = self._head.keep_alive and self.request_done
            limit_lines = "".join(f"\r\n{name}: {value}" for name, value in error.limit_fields).encode()
            own.refuse(self._client, self._context, error, self._head, keep_alive=keep_alive, limit_lines=limit_lines)
