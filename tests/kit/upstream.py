"""A scripted upstream on real sockets: it records what it was sent and answers each path as the test says.

A `Handler` gets a `Call`, which is one request, and writes bytes; the functions at the end make the usual ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self, TypeVar

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Coroutine

TIMEOUT_S = 20.0
"""For any one wait of a test: a failsafe, long enough for a machine that does ten other things."""

PATTERN = random.Random(1).randbytes(65_521)
"""What generated bodies repeat. A prime length: no buffer size divides it, so a lost or doubled piece shows."""

PIECE_BYTES = 256 * 1024
_BLOCK = PATTERN * (PIECE_BYTES // len(PATTERN) + 2)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_T = TypeVar("_T")

Framing = Literal["length", "chunked", "close"]


async def soon(awaited: Awaitable[_T]) -> _T:
    """Wait for something that is due, but not for ever."""
    return await asyncio.wait_for(awaited, TIMEOUT_S)


def pattern(start: int, size: int) -> bytes:
    """Return `size` bytes, at most `PIECE_BYTES`, of the endless pattern."""
    offset = start % len(PATTERN)
    return _BLOCK[offset : offset + size]


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with a reset, as a killed machine's kernel would."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()


@dataclass
class Received:
    """One request as it came."""

    head: bytes
    """Without the empty line that ends it."""
    connection: int
    """Which connection it came on, counted from 1."""
    raw_body: bytes = b""
    """Chunk framing included."""

    @property
    def start_line(self) -> bytes:
        return self.head.partition(b"\r\n")[0]

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """Names in lower case, and values, in their order."""
        lines = (line.partition(b": ") for line in self.head.split(b"\r\n")[1:])
        return [(name.lower(), value) for name, _, value in lines]

    def field(self, name: bytes) -> bytes | None:
        """Return the value of the only field of a name, or None."""
        values = [value for other, value in self.fields if other == name]
        assert len(values) < 2
        return values[0] if values else None


class Call:
    """One request, to be answered by writing bytes.

    Args:
        received: Its record.
        reader: The connection's.
        writer: Likewise.
    """

    def __init__(self, received: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.received = received
        self.reader = reader
        self.writer = writer
        coding = received.field(b"transfer-encoding")
        assert coding in {None, b"chunked"}
        self._left = int(received.field(b"content-length") or b"0")
        self._chunked = coding is not None
        self.body_read = not self._left and not self._chunked
        self.keep_alive = True

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the content of the body as it comes, and record none of it."""
        while self._left:
            piece = await self.reader.read(min(self._left, PIECE_BYTES))
            if not piece:
                raise ConnectionResetError
            self._left -= len(piece)
            yield piece
        while self._chunked:
            size = int((await self.reader.readline()).partition(b";")[0], 16)
            while size:
                piece = await self.reader.read(min(size, PIECE_BYTES))
                if not piece:
                    raise ConnectionResetError
                size -= len(piece)
                yield piece
                if not size:
                    await self.reader.readexactly(2)
                    size = int((await self.reader.readline()).partition(b";")[0], 16)
            while (await self.reader.readline()).strip():
                pass
            self._chunked = False
        self.body_read = True

    async def content(self) -> bytes:
        """Read, record and return the whole body; b"" if it has been read already."""
        if self.body_read:
            return b""
        raw = self.received.raw_body = await self._raw_body()
        self._left, self._chunked, self.body_read = 0, False, True
        if self.received.field(b"transfer-encoding") is None:
            return raw
        content = b""
        while True:
            size, _, raw = raw.partition(b"\r\n")
            if not int(size, 16):
                return content
            content += raw[: int(size, 16)]
            raw = raw[int(size, 16) + 2 :]

    async def _raw_body(self) -> bytes:
        if not self._chunked:
            return await self.reader.readexactly(self._left)
        raw = b""
        while True:
            line = await self.reader.readline()
            raw += line
            size = int(line, 16)
            if not size:
                break
            raw += await self.reader.readexactly(size + 2)
        while (line := await self.reader.readline()).strip():
            raw += line
        return raw + line

    def write(self, data: bytes) -> None:
        # uvloop raises where asyncio says nothing: on a connection that the gateway has reset.
        if not self.writer.is_closing():
            self.writer.write(data)

    async def send(self, data: bytes) -> None:
        """Write, and wait as long as the gateway reads slower than this."""
        self.writer.write(data)
        await self.writer.drain()
        # That a write has found the connection broken is told in the loop's next turn, which need not come by itself.
        await asyncio.sleep(0)

    async def until_gone(self) -> None:
        """Wait until the gateway ends the connection, in whichever way."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(PIECE_BYTES):
                pass
        self.keep_alive = False

    async def unless_gone(self, awaited: Coroutine[object, object, _T]) -> _T:
        """Wait for something; raises ConnectionResetError if the gateway ends the connection meanwhile."""
        wanted, gone = asyncio.ensure_future(awaited), asyncio.ensure_future(self.until_gone())
        try:
            await asyncio.wait((wanted, gone), return_when=asyncio.FIRST_COMPLETED)
            if not wanted.done():
                raise ConnectionResetError
            return wanted.result()
        finally:
            wanted.cancel()
            gone.cancel()
            await asyncio.gather(wanted, gone, return_exceptions=True)

    def reset(self) -> None:
        reset(self.writer)
        self.keep_alive = False


Handler = Callable[[Call], Awaitable[None]]


@dataclass
class Connection:
    """One connection that the gateway made."""

    number: int
    sni: str | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the gateway has ended it, or the upstream has."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the upstream has given up its socket, too."""


class Upstream:
    """`async with Upstream() as upstream`: listens on a free port of 127.0.0.1.

    Args:
        tls: Server side of TLS, or None. The server name that clients asked for is recorded.
        host: The name that `url` has.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.requests: list[Received] = []
        self.connections: list[Connection] = []
        self.paths: dict[bytes, Handler] = {}
        self.default: Handler = answering()
        self.heard = asyncio.Event()
        """Set with each request's head, for a test to clear and wait for."""
        self._tls = tls
        self._host = host
        self._tasks: set[asyncio.Task[None]] = set()
        self._sni: str | None = None
        if tls is not None:
            tls.sni_callback = self._on_sni

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://{self._host}:{self.port}/v1"

    async def requested(self, count: int = 1) -> Received:
        """Wait until so many requests' heads have come; return the last."""
        while len(self.requests) < count:
            self.heard.clear()
            await soon(self.heard.wait())
        return self.requests[count - 1]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        failures = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        for failure in failures:
            if isinstance(failure, Exception):
                raise failure

    def _on_sni(self, _socket: object, name: str | None, _context: object) -> None:
        self._sni = name

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(len(self.connections) + 1, self._sni)
        self.connections.append(connection)
        task = asyncio.get_running_loop().create_task(self._serve(connection, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        # One that failed is kept: `__aexit__` has to tell.
        if task.cancelled() or task.exception() is None:
            self._tasks.discard(task)

    async def _serve(self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._answer(connection, reader, writer):
                    pass
                writer.close()
        finally:
            connection.ended.set()
            # After a close in good order, which may still have to send; a cancelled one has no time.
            with contextlib.suppress(OSError):
                try:
                    await writer.wait_closed() if writer.is_closing() else writer.transport.abort()
                except asyncio.CancelledError:
                    writer.transport.abort()
            connection.closed.set()

    async def _answer(self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        received = Received(head[:-4], connection.number)
        self.requests.append(received)
        self.heard.set()
        call = Call(received, reader, writer)
        path = received.start_line.split(b" ")[1].partition(b"?")[0]
        await self.paths.get(path, self.default)(call)
        await writer.drain()
        return call.keep_alive and call.body_read


def head(status: str = "200 OK", *fields: str) -> bytes:
    """Return an answer's head."""
    return "\r\n".join((f"HTTP/1.1 {status}", *fields, "", "")).encode()


def chunk(content: bytes) -> bytes:
    """Return one chunk; without content, the last one and no trailers."""
    return b"%x\r\n%b\r\n" % (len(content), content)


def answering(content: bytes = b"ok", status: str = "200 OK", *fields: str) -> Handler:
    """Answer with content of a known length."""

    async def handler(call: Call) -> None:
        await call.content()
        length = f"Content-Length: {len(content)}"
        call.write(head(status, length, *fields))
        if not call.received.head.startswith(b"HEAD "):
            call.write(content)

    return handler


def in_chunks(*contents: bytes) -> Handler:
    """Answer in these chunks."""

    async def handler(call: Call) -> None:
        await call.content()
        call.write(head("200 OK", "Transfer-Encoding: chunked"))
        for content in (*contents, b""):
            await call.send(chunk(content))

    return handler


def until_close(content: bytes) -> Handler:
    """Answer with content that ends when the connection does."""

    async def handler(call: Call) -> None:
        await call.content()
        call.write(head("200 OK", "Connection: close") + content)
        call.keep_alive = False

    return handler


def events(queue: asyncio.Queue[bytes]) -> Handler:
    """Answer with server-sent events, each when the test puts it in the queue; b"" ends them."""

    async def handler(call: Call) -> None:
        await call.content()
        call.write(head("200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked"))
        while event := await call.unless_gone(queue.get()):
            call.write(chunk(b"data: %b\n\n" % event))
        call.write(chunk(b""))

    return handler


def generated(size: int, framing: Framing = "length") -> Handler:
    """Answer with so many bytes of the pattern, made as they go."""
    fields = {
        "length": f"Content-Length: {size}",
        "chunked": "Transfer-Encoding: chunked",
        "close": "Connection: close",
    }

    async def handler(call: Call) -> None:
        await call.content()
        await call.send(head("200 OK", fields[framing]))
        for start in range(0, size, PIECE_BYTES):
            piece = pattern(start, min(PIECE_BYTES, size - start))
            await call.send(chunk(piece) if framing == "chunked" else piece)
        if framing == "chunked":
            call.write(chunk(b""))
        call.keep_alive = framing != "close"

    return handler


async def echo(call: Call) -> None:
    """Answer with the request's content."""
    content = await call.content()
    call.write(head("200 OK", f"Content-Length: {len(content)}") + content)


def asked_first(*, willing: bool) -> Handler:
    """Let a client that asks with `Expect` send its content, and echo it; or refuse it before it comes."""

    async def handler(call: Call) -> None:
        if willing:
            call.write(head("100 Continue"))
            await echo(call)
        else:
            await call.send(head("417 Expectation Failed", "Content-Length: 2") + b"no")
            await call.until_gone()

    return handler


async def hang(call: Call) -> None:
    """Read the request and never answer, until the gateway ends the connection."""
    await call.content()
    await call.until_gone()


def broken_off(sent: bytes, *, by_reset: bool = False) -> Handler:
    """Send these bytes and end the connection, whatever they promised."""

    async def handler(call: Call) -> None:
        await call.content()
        await call.send(sent)
        if by_reset:
            call.reset()
        call.keep_alive = False

    return handler
