"""The API of a soak, a process of its own: `python -m tools.soak_upstream PORT LEDGER`.

Requests say in their target what is to be answered, so that both ends know each byte (see `Wish`). What comes is noted
in the ledger, a line at a time: it survives a `kill -9`, as a file's bytes do.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args
from urllib.parse import parse_qsl, urlencode, urlsplit

import uvloop

if TYPE_CHECKING:
    from collections.abc import Iterator

Framing = Literal["length", "chunked", "events", "cut", "dropped"]
BAD_FRAMINGS: Final = {"cut", "dropped"}
"""A length is announced and half of it sent; or the request is read and the connection reset."""

KEY: Final = "sk-of-the-soak"
"""What the gateway has to send in place of a client's token."""
BEGUN, WHOLE, SPOILT, OTHER_KEY = "begun", "whole", "spoilt", "other-key"
"""What the ledger says of a request: its head came, then its body as it should be, or not; or with another key."""

PROBE: Final = "probe"
"""The name of requests that only ask whether all is well again: of them there may be many."""

_BLOCK_BYTES: Final = 65_521
"""A prime: no buffer's size divides it, so that a lost or doubled piece shows."""
_PIECE_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class Wish:
    """What a request's target says.

    Args:
        name: Of the request: no other one has it.
        status: Of the answer.
        size: Bytes of the answer's content.
        upload: Bytes of the request's content.
        framing: Of the answer. `events` are `size` server-sent events; see also `BAD_FRAMINGS`.
        pause_ms: Before the answer's head, and between two events.
    """

    name: str
    status: int = 200
    size: int = 100
    upload: int = 0
    framing: Framing = "length"
    pause_ms: int = 0

    @property
    def target(self) -> str:
        """The path and query that `read` reads."""
        return f"/soak?{urlencode(asdict(self))}"

    @classmethod
    def read(cls, target: str) -> Wish:
        """Read a request-target; raises KeyError or ValueError if it is none of a soak's."""
        told = dict(parse_qsl(urlsplit(target).query, strict_parsing=True))
        numbers = {field: int(told[field]) for field in ("status", "size", "upload", "pause_ms")}
        framing = told["framing"]
        if framing not in get_args(Framing):
            raise ValueError(framing)
        return cls(name=told["name"], framing=framing, **numbers)  # type: ignore[arg-type]

    def answer(self) -> bytes:
        """Return the answer's content."""
        return b"".join(self.events()) if self.framing == "events" else content(self.name, self.size)

    def events(self) -> Iterator[bytes]:
        """Yield the events of a stream."""
        for number in range(self.size):
            yield b"data: %d of %b\n\n" % (number, self.name.encode())
        yield b"data: [DONE]\n\n"


def content(name: str, size: int) -> bytes:
    """Return the bytes that belong to a request: no other one's begin like them."""
    block = hashlib.shake_128(name.encode()).digest(min(size, _BLOCK_BYTES))
    return (block * (size // _BLOCK_BYTES + 1))[:size]


def digest(data: bytes) -> str:
    """Return what the trailer of a chunked message says of its content."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def chunked(data: bytes, chance: random.Random) -> Iterator[bytes]:
    """Yield a chunked body, cut anywhere, with a digest in its trailer section."""
    at = 0
    while at < len(data):
        piece = data[at : at + chance.choice((1, 100, 4096, 65536))]
        at += len(piece)
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\nX-Soak-Digest: %b\r\n\r\n" % digest(data).encode()


async def read_chunked(reader: asyncio.StreamReader) -> bytes:
    """Read a chunked body and check it against its trailer.

    Raises:
        EOFError: It is cut short.
        ValueError: It is not what its trailer says, or there is none.
    """
    pieces = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        pieces.append(await reader.readexactly(size))
        if await reader.readexactly(2) != b"\r\n":
            raise ValueError("a chunk does not end where it says")
    trailers = []
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        trailers.append(line.decode("latin-1").strip().lower())
    data = b"".join(pieces)
    if trailers != [f"x-soak-digest: {digest(data)}"]:
        raise ValueError("the content is not what the trailer says")
    return data


class _Ledger:
    """Where requests are noted, each line with one write."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, what: str, method: str, name: str) -> None:
        os.write(self._file, f"{what} {method} {name}\n".encode())


async def _serve_connection(ledger: _Ledger, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    chance = random.Random()
    try:
        with contextlib.suppress(ConnectionError, EOFError, asyncio.CancelledError):
            while await _answer(ledger, chance, reader, writer):
                pass
    finally:
        writer.transport.abort()


async def _answer(
    ledger: _Ledger, chance: random.Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
    wish = Wish.read(target)
    ledger.note(BEGUN, method, wish.name)
    if fields.get("authorization") != f"Bearer {KEY}":
        ledger.note(OTHER_KEY, method, wish.name)
    try:
        if "transfer-encoding" in fields:
            uploaded = await read_chunked(reader)
        else:
            uploaded = await reader.readexactly(int(fields.get("content-length", "0")))
        is_right = uploaded == content(wish.name, wish.upload)
    except ValueError:
        is_right = False
    ledger.note(WHOLE if is_right else SPOILT, method, wish.name)
    if wish.framing != "dropped":
        await _send(wish, chance, writer)
    return wish.framing not in BAD_FRAMINGS


async def _send(wish: Wish, chance: random.Random, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(wish.pause_ms / 1000)
    data = wish.answer()
    is_long = wish.framing in {"length", "cut"}
    framing = f"Content-Length: {len(data)}" if is_long else "Transfer-Encoding: chunked\r\nTrailer: X-Soak-Digest"
    kind = "text/event-stream" if wish.framing == "events" else "application/octet-stream"
    await _write(writer, f"HTTP/1.1 {wish.status} So\r\nContent-Type: {kind}\r\n{framing}\r\n\r\n".encode())
    match wish.framing:
        case "events":
            for event in wish.events():
                await _write(writer, b"%x\r\n%b\r\n" % (len(event), event))
                await asyncio.sleep(wish.pause_ms / 1000)
            await _write(writer, b"0\r\nX-Soak-Digest: %b\r\n\r\n" % digest(data).encode())
        case "chunked":
            for piece in chunked(data, chance):
                await _write(writer, piece)
        case _:
            end = len(data) // 2 if wish.framing == "cut" else len(data)
            for at in range(0, end, _PIECE_BYTES):
                await _write(writer, data[at : min(at + _PIECE_BYTES, end)])


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if writer.is_closing():  # uvloop raises where asyncio says nothing
        raise ConnectionResetError
    writer.write(data)
    await writer.drain()


async def _serve(port: int, ledger: Path) -> None:
    serve = functools.partial(_serve_connection, _Ledger(ledger))
    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), Path(sys.argv[2])))
