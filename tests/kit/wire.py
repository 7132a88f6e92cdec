"""Messages as a strict reader sees them: what the tests know of HTTP/1.1, sharing nothing with the gateway."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*((?:[\x21-\x7e\x80-\xff](?:[\t \x21-\x7e\x80-\xff]*)?)?)")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]+)\r\n")


@dataclass
class Message:
    """One message; names of fields as they were spelled."""

    start: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    interims: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])

    def values(self, name: bytes) -> list[bytes]:
        """All values of a field."""
        return [value for known, value in self.fields if known.lower() == name.lower()]

    def value(self, name: bytes) -> bytes | None:
        """The value of a field that may be there once at most."""
        values = self.values(name)
        assert len(values) <= 1, f"{name!r} is there {len(values)} times"
        return values[0] if values else None

    @property
    def names(self) -> list[bytes]:
        return [name for name, _ in self.fields]


class Incomplete(Exception):
    """The bytes end before the message does."""


def read_head(data: bytes) -> tuple[Message, bytes]:
    """Read a head; return it and what lies behind.

    Raises:
        Incomplete: There is no whole head.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        raise Incomplete(data[:200])
    start, *lines = head.split(b"\r\n")
    assert b"\r" not in head.replace(b"\r\n", b""), f"a bare CR in {head!r}"
    assert b"\n" not in head.replace(b"\r\n", b""), f"a bare LF in {head!r}"
    return Message(start, [_read_field(line) for line in lines]), rest


def read_body(message: Message, data: bytes, *, until_close: bool | None) -> bytes:
    """Read the body that a head announces; return what lies behind.

    Args:
        message: Gets the body, and the trailers.
        data: Behind the head.
        until_close: Whether the connection has ended, for a body that ends with it. None: without framing there
            is no body.

    Raises:
        Incomplete: There is no whole body.
    """
    length, coding = message.value(b"content-length"), message.value(b"transfer-encoding")
    assert length is None or coding is None, "Content-Length and Transfer-Encoding together"
    if coding is not None:
        assert coding == b"chunked"
        message.body, message.trailers, rest = read_chunks(data)
        return rest
    if length is not None:
        assert re.fullmatch(b"[0-9]+", length)
        size = int(length)
        if len(data) < size:
            raise Incomplete(data)
        message.body = data[:size]
        return data[size:]
    if until_close is None:
        return data
    if not until_close:
        raise Incomplete(data)
    message.body = data
    return b""


def read_chunks(data: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], bytes]:
    """Decode a chunked body without extensions; return its content, its trailers and what lies behind.

    Raises:
        Incomplete: The last chunk, or the trailers, have not all come.
    """
    content = b""
    while True:
        line = _CHUNK_LINE.match(data)
        if line is None:
            assert b"\r\n" not in data, f"not a chunk line: {data[:100]!r}"
            raise Incomplete(data)
        size = int(line[1], 16)
        data = data[line.end() :]
        if size == 0:
            break
        if len(data) < size + 2:
            raise Incomplete(data)
        assert data[size : size + 2] == b"\r\n"
        content += data[:size]
        data = data[size + 2 :]
    if data.startswith(b"\r\n"):
        return content, [], data[2:]
    section, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        raise Incomplete(data)
    return content, [_read_field(line) for line in section.split(b"\r\n")], rest


def _read_field(line: bytes) -> tuple[bytes, bytes]:
    match = _FIELD.fullmatch(line)
    assert match is not None, f"not a field line: {line!r}"
    return match[1], match[2]
