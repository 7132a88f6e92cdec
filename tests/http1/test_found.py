"""What `tools/fuzz.py` has found: readings that depended on how the bytes were cut, or on what came before."""

from __future__ import annotations

import pytest

from gateway.errors import BadRequest, FieldsTooLarge
from gateway.http1.chunked import MAX_TRAILER_BYTES, ChunkedBody
from gateway.http1.message import MAX_HEAD_BYTES, MAX_LINE_BYTES
from gateway.http1.parser import AnswerParser, RequestParser
from gateway.http1.partial import PartialHead


@pytest.mark.parametrize(
    ("fed", "least"),
    [
        (b"", 5),
        (b"0", 4),
        (b"5;a=b", 4),
        (b"0\r", 3),
        (b"0\r\n", 2),
        (b"0\r\n\r", 1),
        (b"0\r\n\r\n", 0),
        (b"5\r\n", 12),
        (b"5\r\nhel", 9),
        (b"5\r\nhello", 7),
        (b"5\r\nhello\r", 6),
        (b"5\r\nhello\r\n", 5),
        (b"0\r\nX", 4),
        (b"0\r\nX: 1\r", 3),
        (b"0\r\nX: 1\r\n", 2),
        (b"0\r\nX: 1\r\n\r", 1),
    ],
)
def test_no_more_of_a_chunked_body_is_missing_than_must_come(fed: bytes, least: int) -> None:
    """Else a client that has sent all of it, and ended its side, is taken for one that has gone."""
    whole, bytewise = ChunkedBody(BadRequest), ChunkedBody(BadRequest)
    whole.feed(fed)
    for at in range(len(fed)):
        bytewise.feed(fed[at : at + 1])
    assert (whole.least_left, bytewise.least_left) == (least, least)


def cut(data: bytes, step: int) -> list[bytes]:
    return [data[at : at + step] for at in range(0, len(data), step)]


def walk(data: bytes, step: int) -> tuple[bytes, bool]:
    body = ChunkedBody(BadRequest)
    return b"".join(body.feed(piece)[0] for piece in cut(data, step)), body.done


def gather(data: bytes, step: int) -> bytes | None:
    partial = PartialHead()
    return [partial.feed(piece) for piece in cut(data, step)][-1]


@pytest.mark.parametrize("more", [0, 1])
def test_the_longest_trailers_are_taken_or_not_however_they_are_cut(more: int) -> None:
    lines = b"A: %b\r\nB: %b" % (b"a" * 4000, b"b" * (MAX_TRAILER_BYTES + more - 4008))
    assert len(lines) == MAX_TRAILER_BYTES + more
    data = b"0\r\n" + lines + b"\r\n\r\n"
    for step in (1, 2, 3, len(data)):
        if more:
            with pytest.raises(BadRequest, match="longer than"):
                walk(data, step)
        else:
            assert walk(data, step) == (data, True)


@pytest.mark.parametrize("more", [0, 1])
def test_the_longest_head_is_taken_or_not_however_it_is_cut(more: int) -> None:
    start = b"GET / HTTP/1.1\r\nHost: h\r\nA: %b\r\nB: " % (b"a" * (MAX_LINE_BYTES - 3))
    head = start + b"b" * (MAX_HEAD_BYTES + more - len(start))
    data = head + b"\r\n\r\n"
    for step in (1, 2, 3, 1000):
        if more:
            with pytest.raises(FieldsTooLarge):
                gather(data, step)
        else:
            assert gather(data, step) == data


@pytest.mark.parametrize("parser", [RequestParser(), AnswerParser()])
def test_a_value_without_a_space_before_it_is_spelled_with_one_whatever_was_seen(
    parser: RequestParser | AnswerParser,
) -> None:
    start = b"GET / HTTP/1.1\r\nHost: h" if isinstance(parser, RequestParser) else b"HTTP/1.1 200 OK\r\nA: b"
    for value in (b" a", b"", b" b", b""):
        parser.parse(start + b"\r\nX-Id:" + value)
    assert parser.parse(start + b"\r\nX-Id:2").lines.endswith(b"X-Id: 2")
