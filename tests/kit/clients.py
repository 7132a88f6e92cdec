"""The HTTP clients that Python programs have, unchanged, behind one face: a test says once what each must do."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import aiohttp
import httpx
import requests
import urllib3
from requests.adapters import HTTPAdapter

from tests.kit.upstream import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
    from types import SimpleNamespace


@dataclass
class Reply:
    """What the client made of an answer."""

    status: int
    fields: dict[str, str]
    """Names in lower case."""
    content: bytes
    """Decoded."""


class PythonClient(Protocol):
    """One client, for one gateway and one token.

    Attributes:
        broken: What it raises when an answer is cut short.
        asks_for_gzip: Whether it does so by itself.
    """

    broken: type[Exception]
    asks_for_gzip: bool

    async def ask(
        self,
        method: str,
        path: str,
        content: bytes | list[bytes] = b"",
        fields: Mapping[str, str] | None = None,
        *,
        follow: bool = False,
    ) -> Reply:
        """Send a request and read its answer whole.

        Args:
            method: Its method.
            path: Behind the gateway's address.
            content: A list is sent piece by piece, as content whose length is not known.
            fields: Besides the token's.
            follow: Follow redirects.
        """
        ...

    def stream(self, path: str) -> AsyncGenerator[bytes]:
        """Yield the content of an answer as it comes; `aclosing` it ends the connection."""
        ...

    def connections(self) -> int:
        """How many connections it has made."""
        ...

    async def close(self) -> None: ...


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _fields(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


async def _in_thread(pieces: Iterator[bytes]) -> AsyncGenerator[bytes]:
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece


class HttpxSync:
    broken: type[Exception] = httpx.TransportError
    asks_for_gzip = True

    def __init__(self, url: str, token: str) -> None:
        self._client = httpx.Client(base_url=url, headers=_bearer(token), trust_env=False, timeout=TIMEOUT_S)
        self._connections = 0

    async def ask(
        self,
        method: str,
        path: str,
        content: bytes | list[bytes] = b"",
        fields: Mapping[str, str] | None = None,
        *,
        follow: bool = False,
    ) -> Reply:
        sent = content if isinstance(content, bytes) else iter(content)

        def ask() -> Reply:
            answer = self._client.request(
                method,
                path,
                content=sent,
                headers=fields,
                follow_redirects=follow,
                extensions={"trace": self._trace},
            )
            return Reply(answer.status_code, _fields(answer.headers), answer.content)

        return await asyncio.to_thread(ask)

    async def stream(self, path: str) -> AsyncGenerator[bytes]:
        asked = self._client.build_request("GET", path)
        answer = await asyncio.to_thread(lambda: self._client.send(asked, stream=True))
        try:
            async for piece in _in_thread(answer.iter_bytes()):
                yield piece
        finally:
            answer.close()

    def _trace(self, event: str, _info: object) -> None:
        self._connections += event == "connection.connect_tcp.complete"

    def connections(self) -> int:
        return self._connections

    async def close(self) -> None:
        self._client.close()


class HttpxAsync:
    broken: type[Exception] = httpx.TransportError
    asks_for_gzip = True

    def __init__(self, url: str, token: str) -> None:
        self._client = httpx.AsyncClient(base_url=url, headers=_bearer(token), trust_env=False, timeout=TIMEOUT_S)
        self._connections = 0

    async def ask(
        self,
        method: str,
        path: str,
        content: bytes | list[bytes] = b"",
        fields: Mapping[str, str] | None = None,
        *,
        follow: bool = False,
    ) -> Reply:
        sent = content if isinstance(content, bytes) else _each(content)
        answer = await self._client.request(
            method, path, content=sent, headers=fields, follow_redirects=follow, extensions={"trace": self._trace}
        )
        return Reply(answer.status_code, _fields(answer.headers), answer.content)

    async def stream(self, path: str) -> AsyncGenerator[bytes]:
        async with self._client.stream("GET", path) as answer:
            async for piece in answer.aiter_bytes():
                yield piece

    async def _trace(self, event: str, _info: object) -> None:
        self._connections += event == "connection.connect_tcp.complete"

    def connections(self) -> int:
        return self._connections

    async def close(self) -> None:
        await self._client.aclose()


async def _each(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


class Aiohttp:
    broken: type[Exception] = aiohttp.ClientError
    asks_for_gzip = True

    def __init__(self, url: str, token: str) -> None:
        self._connections = 0
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(self._count)
        self._url = url
        self._session = aiohttp.ClientSession(
            headers=_bearer(token), trace_configs=[trace], timeout=aiohttp.ClientTimeout(TIMEOUT_S)
        )

    async def _count(self, _session: aiohttp.ClientSession, _context: SimpleNamespace, _params: object) -> None:
        self._connections += 1

    async def ask(
        self,
        method: str,
        path: str,
        content: bytes | list[bytes] = b"",
        fields: Mapping[str, str] | None = None,
        *,
        follow: bool = False,
    ) -> Reply:
        # Not as bytes: it warns of many in one piece.
        whole = io.BytesIO(content) if content and isinstance(content, bytes) else None
        sent = whole if isinstance(content, bytes) else _each(content)
        async with self._session.request(
            method, self._url + path, data=sent, headers=fields, allow_redirects=follow
        ) as answer:
            return Reply(answer.status, _fields(answer.headers), await answer.read())

    async def stream(self, path: str) -> AsyncGenerator[bytes]:
        async with self._session.get(self._url + path) as answer:
            async for piece in answer.content.iter_any():
                yield piece

    def connections(self) -> int:
        return self._connections

    async def close(self) -> None:
        await self._session.close()


class Requests:
    broken: type[Exception] = requests.RequestException
    asks_for_gzip = True

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers.update(_bearer(token))

    async def ask(
        self,
        method: str,
        path: str,
        content: bytes | list[bytes] = b"",
        fields: Mapping[str, str] | None = None,
        *,
        follow: bool = False,
    ) -> Reply:
        sent = content if isinstance(content, bytes) else iter(content)

        def ask() -> Reply:
            answer = self._session.request(
                method, self._url + path, data=sent, headers=fields, allow_redirects=follow, timeout=TIMEOUT_S
            )
            return Reply(answer.status_code, _fields(answer.headers), answer.content)

        return await asyncio.to_thread(ask)

    async def stream(self, path: str) -> AsyncGenerator[bytes]:
        answer = await asyncio.to_thread(lambda: self._session.get(self._url + path, stream=True, timeout=TIMEOUT_S))
        try:
            async for piece in _in_thread(answer.iter_content(65_536)):
                yield piece
        finally:
            answer.close()

    def connections(self) -> int:
        adapter = self._session.get_adapter(self._url)
        assert isinstance(adapter, HTTPAdapter)
        return _made(adapter.poolmanager)

    async def close(self) -> None:
        self._session.close()


def _made(manager: urllib3.PoolManager) -> int:
    return sum(manager.pools[key].num_connections for key in manager.pools.keys())  # noqa: SIM118 - not iterable itself


class Urllib3:
    broken: type[Exception] = urllib3.exceptions.HTTPError
    asks_for_gzip = False

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._bearer = _bearer(token)
        retries = urllib3.Retry(connect=0, read=0, status=0, other=0, redirect=3)
        self._pool = urllib3.PoolManager(retries=retries, timeout=TIMEOUT_S)

    async def ask(
        self,
        method: str,
        path: str,
        content: bytes | list[bytes] = b"",
        fields: Mapping[str, str] | None = None,
        *,
        follow: bool = False,
    ) -> Reply:
        sent = (content or None) if isinstance(content, bytes) else iter(content)
        fields = {**self._bearer, **(fields or {})}

        def ask() -> Reply:
            answer = self._pool.request(method, self._url + path, body=sent, headers=fields, redirect=follow)
            return Reply(answer.status, _fields(answer.headers), answer.data)

        return await asyncio.to_thread(ask)

    async def stream(self, path: str) -> AsyncGenerator[bytes]:
        answer = await asyncio.to_thread(
            lambda: self._pool.request("GET", self._url + path, headers=self._bearer, preload_content=False)
        )
        try:
            async for piece in _in_thread(answer.stream()):
                yield piece
        finally:
            answer.close()

    def connections(self) -> int:
        return _made(self._pool)

    async def close(self) -> None:
        self._pool.clear()


CLIENTS: dict[str, Callable[[str, str], PythonClient]] = {
    "httpx": HttpxSync,
    "httpx async": HttpxAsync,
    "aiohttp": Aiohttp,
    "requests": Requests,
    "urllib3": Urllib3,
}
"""Each is made for the gateway's address and a token, and is to be closed."""
