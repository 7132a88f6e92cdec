"""What `tools/fuzz.py` makes inputs of: seeds, words, and ways in which bytes go astray."""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Final

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.http1.heads import ANSWERS, MUTATED_ANSWERS, MUTATED_REQUESTS, ODD, REQUESTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from random import Random

MAX_INPUT_BYTES: Final = 2048
SEEDS: Final = 200  # of each kind

_CRLF: Final = b"\r\n"
_HEAD_END: Final = b"\r\n\r\n"
_FIELDS: Final = (
    b"Host: a.test",
    b"Host: [::1]:80",
    b"Content-Length: 5",
    b"Content-Length: 05",
    b"Content-Length: +5",
    b"Content-Length: 5, 5",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding:\tchunked",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: x-hop, Keep-Alive",
    b"Connection: upgrade",
    b"Connection: content-length, host",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version: 13",
    b"X-Hop: 1",
    b"X-Own: 2",
    b"X-Id: abc",
    b"Keep-Alive: timeout=5",
    b"TE: trailers",
    b"Trailer: X-Sum",
    b"Proxy-Authorization: Basic YTpi",
    b"Authorization: Bearer abc",
    b"Authorization: Basic YTpi",
    b"X-Api-Key: abc",
    b"Api-Key: def",
    b"X-Goog-Api-Key: ghi",
    b"Expect: 100-continue",
    b"Set-Cookie: a=b",
    b"Date: Thu, 01 Jan 1970 00:00:00 GMT",
    b"X-Folded: a\r\n b",
    b"X-Long: " + b"a" * 300,
)
WORDS: Final[dict[str, tuple[bytes, ...]]] = {
    "heads": (
        *_FIELDS,
        b"GET / HTTP/1.1",
        b"POST /api/x?y=z HTTP/1.1",
        b"HEAD /api/%2e%2e/x HTTP/1.0",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT a.test:443 HTTP/1.1",
        b"GET http://a.test/api HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"/../",
        b"/..;a/",
        b"%2f",
        b"%5C",
        b"\\",
        b"HTTP/1.1",
        b"HTTP/1.0",
        b" HTTP/1.1\r\n",
    ),
    "answers": (
        *_FIELDS,
        b"HTTP/1.1 200 OK",
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 204 No Content",
        b"HTTP/1.1 304 Not Modified",
        b"HTTP/1.1 100 Continue",
        b"HTTP/1.1 101 Switching Protocols",
        b"HTTP/1.1 103 Early Hints",
        b"HTTP/1.1 599 ",
        b"HTTP/2.0 200",
    ),
    "chunks": (
        *(line + _CRLF for line in _FIELDS if not line.startswith(b"X-Long")),
        b"0\r\n\r\n",
        b"0\r\n",
        b"5\r\nhello\r\n",
        b"1;a=b\r\nx\r\n",
        b"1 ; a\r\nx\r\n",
        b'2;a="\\"b";c\r\nhi\r\n',
        b"00000000000000001\r\nx\r\n",
        b"ffffffffffffffff\r\n",
        b"4000000000000000\r\n",
        b"0x1\r\n",
        b"-1\r\n",
        b"\r\n\r\n",
        b";",
        b'"',
        b"\\",
        b"X-Sum: 1\r\n",
        b"0" * 16,
    ),
}

_CHUNK_SEEDS: Final = (
    b"0\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\n\r\nGET / HTTP/1.1\r\n",
    b'3 ; a = "b;\\"c" ;d\r\nabc\r\n0;x\r\nX-Sum: 1\r\nContent-Length: 5\r\n\r\n',
    b"a\r\n0123456789\r\nA\r\n0123456789\r\n000\r\nServer-Timing: db;dur=1\r\n\r\nrest",
    b"10\r\n0123456789abcdef\r\n0\r\nTransfer-Encoding: chunked\r\nx-b:\r\n\r\n0\r\n\r\n",
)


def _samples(strategy: st.SearchStrategy[bytes], count: int) -> list[bytes]:
    """Draw the same values each time."""
    drawn: list[bytes] = []

    @settings(
        max_examples=count,
        database=None,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(value: bytes) -> None:
        drawn.append(value)

    collect()
    return drawn


@functools.cache
def _drawn(target: str) -> tuple[bytes, ...]:
    if target == "chunks":
        return _CHUNK_SEEDS
    whole, mutated = (REQUESTS, MUTATED_REQUESTS) if target == "heads" else (ANSWERS, MUTATED_ANSWERS)
    heads = _samples(whole, SEEDS)
    # The same head again, with another value in it, is what the parsers' memories are for.
    again = [_HEAD_END.join((head, head, head)) for head in heads[::10]]
    return (*heads, *_samples(mutated, SEEDS), *again)


def seeds(target: str, folders: Sequence[Path] = ()) -> list[bytes]:
    """List inputs to begin with.

    Args:
        target: One of `WORDS`.
        folders: Where more are: files as they are, but lists of `{"raw": TEXT}` in JSON files are taken apart.
    """
    found = list(_drawn(target))
    for folder in folders:
        for path in sorted(folder.iterdir()):
            found += _from_file(path, target)
    return [seed[:MAX_INPUT_BYTES] for seed in found]


def _from_file(path: Path, target: str) -> list[bytes]:
    if path.suffix != ".json":
        return [path.read_bytes()] if path.is_file() and path.stat().st_size <= MAX_INPUT_BYTES else []
    raws = [str(case["raw"]).encode("latin-1") for case in json.loads(path.read_text(encoding="utf-8"))]
    if target == "chunks":
        raws = [raw.partition(_HEAD_END)[2] for raw in raws if b"hunked" in raw]
    return [raw for raw in raws if 0 < len(raw) <= MAX_INPUT_BYTES]


def mutate(random: Random, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    """Change an input in one to four ways.

    Args:
        random: Decides which.
        data: What to change.
        other: Another input, to take lines from.
        words: What is put in.
    """
    for _ in range(random.choice((1, 1, 2, 3, 4))):
        data = random.choice(_WAYS)(random, data, other, words)
    return data[:MAX_INPUT_BYTES]


def _put_word(random: Random, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    del other
    at = random.randrange(len(data) + 1)
    return data[:at] + random.choice(words) + data[at:]


def _put_line(random: Random, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    lines = data.split(_CRLF)
    lines.insert(random.randrange(len(lines) + 1), random.choice((*words, *other.split(_CRLF)[:8])))
    return _CRLF.join(lines)


def _change_line(random: Random, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    lines = data.split(_CRLF)
    at = random.randrange(len(lines))
    line, odd = lines[at], random.choice(ODD)
    match random.randrange(7):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, line)
        case 2:
            lines[at] = line + odd
        case 3:
            lines[at] = line.replace(b":", b":" + odd, 1)
        case 4:
            lines[at] = line.replace(b":", odd + b":", 1)
        case 5:
            lines[at] = line.swapcase()
        case _:
            lines[at] = random.choice((*words, *other.split(_CRLF)[:8]))
    return _CRLF.join(lines)


def _change_byte(random: Random, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    del other, words
    at = random.randrange(len(data) + 1)
    new = random.choice((*ODD, b"", bytes((random.randrange(256),)), bytes((random.randrange(33, 127),))))
    return data[:at] + new + data[at + random.randrange(2) :]


def _cut(random: Random, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    del other, words
    start = random.randrange(len(data) + 1)
    return data[:start] + data[start + random.choice((1, 2, 3, 8, 40)) :]


def _again(random: Random, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    """Put a head behind itself, or behind another, with one value changed: that is what memories are tried with."""
    del words
    heads = data.split(_HEAD_END)
    head = random.choice((*heads, other.partition(_HEAD_END)[0]))
    values = list(re.finditer(rb": *([^\r\n]*)", head))
    if values:
        start, end = random.choice(values).span(1)
        new = random.choice((b"%d" % random.randrange(10**6), head[start:end] + b"x", b"a" * random.randrange(420)))
        head = head[:start] + new + head[end:]
    heads.insert(random.randrange(len(heads) + 1), head)
    return _HEAD_END.join(heads)


def _change_number(random: Random, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    del other, words
    numbers = list(re.finditer(rb"[0-9A-Fa-f]+", data))
    if not numbers:
        return data
    start, end = random.choice(numbers).span()
    value = min(int(data[start:end], 16), 1 << 70)
    new = random.choice((b"%x" % (value + 1), b"%x" % max(value - 1, 0), b"0" + data[start:end], b"%X" % (value * 16)))
    return data[:start] + new + data[end:]


def _splice(random: Random, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    del words
    return data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]


_WAYS: Final = (
    _put_word,
    _put_line,
    _put_line,
    _change_line,
    _change_line,
    _change_byte,
    _change_byte,
    _cut,
    _again,
    _again,
    _change_number,
    _splice,
)
