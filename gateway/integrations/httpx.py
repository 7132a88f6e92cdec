"""Limits for `httpx.AsyncClient`: what is refused is not sent, and gets the answer that the gateway would give.

So whatever obeys `Retry-After` waits here as it would for the gateway, the OpenAI SDK for example:

openai.AsyncOpenAI(http_client=httpx.AsyncClient(transport=LimitTransport(admission, "worker-7")))

(For type checkers this takes a cast: the SDK's hints name httpx2's client alone. An SDK that does not take httpx's at
all, as Anthropic's, can use a gateway.)
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import httpx

from gateway.errors import GatewayError
from gateway.http1.writer import error_fields, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gateway.library import Admission, Grant

_UNSENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
"""Nothing of the request had left by then, so its place is given back."""


class LimitTransport(httpx.AsyncBaseTransport):
    """Asks for a place before a request is sent; the place is settled when its answer is closed.

    Args:
        admission: The limits, started.
        subject: Whose requests these are, or a function that says so of each.
        transport: Sends them; None: one of httpx's own.
    """

    def __init__(
        self,
        admission: Admission,
        subject: str | Callable[[httpx.Request], str],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._admission = admission
        self._subject = subject
        self._transport = transport or httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See `httpx.AsyncBaseTransport`."""
        subject = self._subject if isinstance(self._subject, str) else self._subject(request)
        try:
            grant = await self._admission.admit(subject)
        except GatewayError as error:
            told = error_fields(error, jitter=random.random())  # noqa: S311 - no secret
            fields = [*told, *error.limit_fields]
            return httpx.Response(error.status, headers=fields, content=problem(error))
        try:
            response = await self._transport.handle_async_request(request)
        except BaseException as error:
            grant.settle(used=not isinstance(error, _UNSENT))
            raise
        response.headers = httpx.Headers([*response.headers.raw, *httpx.Headers(grant.limit_fields).raw])
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - an async transport's always is
        response.stream = _Settling(response.stream, grant)
        return response

    async def aclose(self) -> None:
        """See `httpx.AsyncBaseTransport`. The limits stay: others may use them."""
        await self._transport.aclose()


class _Settling(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, grant: Grant) -> None:
        self._stream = stream
        self._grant = grant

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            yield piece

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._grant.settle()
