"""The forms that cases have, and the ways in which they are sent."""

from __future__ import annotations

import random
import re
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

Fields = tuple[tuple[bytes, bytes], ...]

TOKEN: Final = b"{token}"
"""Stands for a token that counts, so that nothing but what the case is about can be refused."""

H: Final = b"Host: gateway.test\r\n"
A: Final = b"Authorization: Bearer " + TOKEN + b"\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
START: Final = b"GET /api/x HTTP/1.1"
SMUGGLED: Final = b"GET /api/smuggled HTTP/1.1\r\n" + H + A + b"\r\n"
POISON: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled"

MODES: Final = ("whole", "bytes", "lines", "random")
_EDGE_BYTES: Final = 1000
_PIECE_BYTES: Final = 512


def get(fields: bytes = b"", start: bytes = START, host: bytes = H) -> bytes:
    """Spell a request without a body; `fields` is raw, with its line ends."""
    return start + b"\r\n" + host + A + fields + b"\r\n"


def post(fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    """Spell a request with a body; nothing says how long it is but `fields`."""
    return get(fields, b"POST /api/x HTTP/" + version) + body


@dataclass(frozen=True)
class Refused:
    """Requests that are refused for the same reason, in the same way.

    Attributes:
        name: The group's, in BEHAVIOUR.md and in the tests' ids.
        clause: What the refusal rests on.
        cases: Raw bytes.
        status: Of the gateway's answer.
        before: How many good requests stand before the bad one.
        late: The head is good and may have gone upstream before the body turns bad.
        closes: The client's connection ends with the answer.
    """

    name: str
    clause: str
    cases: Mapping[str, bytes]
    status: int = 400
    before: int = 0
    late: bool = False
    closes: bool = True


@dataclass(frozen=True)
class Taken:
    """A request, and what must reach the upstream of it.

    Attributes:
        raw: As sent.
        start: The request line upstream.
        fields: The others than `Host`, `Authorization` and those that frame the body, in their order.
        body: Its content.
        trailers: Those that are passed on.
        behind: What is pipelined behind it.
    """

    raw: bytes
    start: bytes = b"GET /v1/x HTTP/1.1"
    fields: Fields = ()
    body: bytes = b""
    trailers: Fields = ()
    behind: tuple[Taken, ...] = ()

    @property
    def method(self) -> bytes:
        return self.start.split(b" ")[0]


@dataclass(frozen=True)
class BadAnswers:
    """Answers of which nothing may be taken for a whole answer, for the same reason.

    Attributes:
        name, clause, cases: As in `Refused`.
        late: The head is good and may have gone to the client before the body turns bad.
        ends: The upstream ends the connection behind the bytes.
        code: Of the gateway's answer.
    """

    name: str
    clause: str
    cases: Mapping[str, bytes]
    late: bool = False
    ends: bool = False
    code: str = "upstream_protocol"


@dataclass(frozen=True)
class TakenAnswer:
    """An answer, and what must reach the client of it.

    Attributes:
        raw: As the upstream sends it.
        start: The status line to the client.
        fields: Those that the upstream sent and that are passed on, but those that frame the body.
        body: Its content.
        trailers: Those that are passed on.
        interims: The status lines of the interim answers before it.
        method: The request's.
        ends: The upstream ends the connection behind it.
        extra: Comes behind its end, and nobody may get it.
        kept: Whether the upstream connection is used again.
    """

    raw: bytes
    start: bytes = b"HTTP/1.1 200 OK"
    fields: Fields = ()
    body: bytes = b""
    trailers: Fields = ()
    interims: tuple[bytes, ...] = ()
    method: bytes = b"GET"
    ends: bool = False
    extra: bytes = b""
    kept: bool = True


def pieces(data: bytes, mode: str, seed: str) -> list[bytes]:
    """Cut bytes as one of `MODES` has them sent; the middle of very many is not sent byte by byte.

    Args:
        data: All of it.
        mode: Of `MODES`.
        seed: Makes the random cuts the same each time.
    """
    if mode == "whole":
        return [data]
    if mode == "lines":
        return re.findall(rb"[^\n]*\n|[^\n]+", data)
    edges = {0, len(data)}
    if mode == "bytes":
        edges.update(range(min(len(data), _EDGE_BYTES)), range(max(len(data) - _EDGE_BYTES, 0), len(data)))
        edges.update(range(0, len(data), _PIECE_BYTES))
    else:
        at, dice = 0, random.Random(zlib.crc32(seed.encode()))
        while (at := at + dice.randint(1, 24 if len(data) < _EDGE_BYTES * 2 else _PIECE_BYTES)) < len(data):
            edges.add(at)
    cuts = sorted(edges)
    return [data[start:end] for start, end in pairwise(cuts)]
