"""Limits for an ASGI application: a refused request gets the answer that the gateway would give."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from gateway.errors import GatewayError
from gateway.http1.writer import error_fields, problem

if TYPE_CHECKING:
    from gateway.library import Admission

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_TRY_AGAIN_LATER: Final = 1013
"""A WebSocket close code (IANA's registry), for servers that cannot send a whole answer instead."""


class LimitMiddleware:
    """Asks for a place before the application sees a request or a WebSocket, and adds how the limits stand.

    Args:
        app: The application.
        admission: The limits; whoever made it starts it, in the application's lifespan as a rule.
        subject: Says whose request a scope is; None: not limited.
    """

    def __init__(self, app: App, *, admission: Admission, subject: Callable[[Scope], str | None]) -> None:
        self._app = app
        self._admission = admission
        self._subject = subject

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        subject = self._subject(scope) if scope["type"] in {"http", "websocket"} else None
        if subject is None:
            await self._app(scope, receive, send)
            return
        try:
            grant = await self._admission.admit(subject)
        except GatewayError as error:
            await _refuse(error, scope, receive, send)
            return
        fields = _lower(grant.limit_fields)

        async def send_with_limits(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.accept"}:
                message = {**message, "headers": [*message.get("headers", ()), *fields]}
            await send(message)

        async with grant:
            await self._app(scope, receive, send_with_limits)


async def _refuse(error: GatewayError, scope: Scope, receive: Receive, send: Send) -> None:
    content = problem(error)
    told = error_fields(error, jitter=random.random())  # noqa: S311 - no secret
    fields = [*told, ("Content-Length", str(len(content))), *error.limit_fields]
    kind = "http.response"
    if scope["type"] == "websocket":
        await receive()  # the client's `websocket.connect`, which comes before any answer to it
        kind = "websocket.http.response"
        if kind not in (scope.get("extensions") or ()):
            await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER, "reason": error.title})
            return
    await send({"type": f"{kind}.start", "status": error.status, "headers": _lower(fields)})
    body = b"" if scope.get("method") == "HEAD" else content
    await send({"type": f"{kind}.body", "body": body})


def _lower(fields: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """ASGI wants names in lower case."""
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields]
