"""The whole gateway over real sockets, and the client that the tests drive it with: one that speaks bytes."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.kit.printed import printed
from tests.kit.upstream import PIECE_BYTES, TIMEOUT_S, pattern, reset, soon

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

KEY = "sk-7Vx2Wb9Lm4Rz"
"""The real key of the tests' API."""

AGAIN_S = 0.01
"""Between two requests of who waits to be served again: as fast as it goes would be ten thousand of them."""

CUT_SHORT = (asyncio.IncompleteReadError, ConnectionError)
"""What a client gets of an answer that did not end as its framing said."""


@dataclass
class Answer:
    """One answer as it came; `content` without chunk framing."""

    status: int
    fields: list[tuple[str, str]]
    content: bytes = b""
    interim: list[int] = field(default_factory=list)
    """The 1xx answers before it."""

    def __getitem__(self, name: str) -> str:
        (value,) = [value for other, value in self.fields if other == name.lower()]
        return value

    def __contains__(self, name: str) -> bool:
        return any(other == name.lower() for other, _ in self.fields)


def request(
    path: str,
    token: str | None = None,
    *fields: str,
    method: str = "GET",
    body: bytes = b"",
    version: str = "1.1",
) -> bytes:
    """Return a request's bytes; a body gets its Content-Length."""
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost", *fields]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + body


class Client:
    """A connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.interim: list[int] = []

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def ask(self, data: bytes) -> Answer:
        """Send a request and read its whole answer."""
        self.writer.write(data)
        return await self.answer(head_only=data.startswith(b"HEAD "))

    async def line(self) -> bytes:
        """Read one line, without its end."""
        async with asyncio.timeout(TIMEOUT_S):  # not `soon`: a task for each line takes longer than the line
            line = await self.reader.readline()
        if not line.endswith(b"\n"):
            raise asyncio.IncompleteReadError(line, None)
        return line.rstrip(b"\r\n")

    async def head(self) -> Answer:
        """Read the next head, be it interim or final."""
        version, status, *_ = (await self.line()).split(b" ", 2)
        assert version == b"HTTP/1.1"
        answer = Answer(int(status), [])
        while line := await self.line():
            name, _, value = line.decode().partition(": ")
            answer.fields.append((name.lower(), value))
        return answer

    async def final_head(self) -> Answer:
        """Read the next head that is not interim; it lists those that were."""
        interim = []
        while (answer := await self.head()).status < 200:
            interim.append(answer.status)
        answer.interim = interim
        return answer

    async def answer(self, *, head_only: bool = False) -> Answer:
        """Read one whole answer.

        Raises:
            CUT_SHORT: It ended before its framing said so.
        """
        answer = await self.final_head()
        if head_only or answer.status in {204, 304}:
            return answer
        if "transfer-encoding" in answer:
            while piece := await self.chunk():
                answer.content += piece
        elif "content-length" in answer:
            answer.content = await soon(self.reader.readexactly(int(answer["content-length"])))
        else:
            answer.content = await soon(self.reader.read())
        is_error = "x-gateway-error" in answer
        printed.note_answer(answer.status, answer.fields, answer.content, is_error=is_error)
        return answer

    async def chunk(self) -> bytes:
        """Read one chunk; b"" is the last, and the end of the body."""
        size = int(await self.line(), 16)
        content: bytes = (await soon(self.reader.readexactly(size + 2)))[:-2]
        return content

    async def at_end(self) -> bool:
        """Read what is left; tell whether it was nothing but the end."""
        return not await soon(self.reader.read())

    def reset(self) -> None:
        reset(self.writer)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await soon(self.writer.wait_closed())


@contextlib.asynccontextmanager
async def connected(url: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[Client]:
    """Connect to a gateway, until the block ends.

    Args:
        url: As the gateway spells it: `http://host:port`, `https://host:port` or `unix:/path`.
        tls: For `https`.
    """
    address = urlsplit(url)
    if address.scheme == "unix":
        opening = asyncio.open_unix_connection(address.path)
    else:
        opening = asyncio.open_connection(address.hostname, address.port, ssl=tls)
    client = Client(*await soon(opening))
    try:
        yield client
    finally:
        await client.close()


async def fetch(url: str, data: bytes, tls: ssl.SSLContext | None = None) -> Answer:
    """Send one request on a connection of its own and read its answer."""
    async with connected(url, tls) as client:
        return await client.ask(data)


class PatternCheck:
    """Holds bytes that come in pieces against the pattern: every one of them is compared."""

    def __init__(self) -> None:
        self.size = 0

    def feed(self, piece: bytes) -> None:
        for start in range(0, len(piece), PIECE_BYTES):
            part = piece[start : start + PIECE_BYTES]
            assert part == pattern(self.size, len(part)), f"the bytes behind {self.size} are not those that were sent"
            self.size += len(part)
