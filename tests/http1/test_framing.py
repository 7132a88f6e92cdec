"""Where a body ends, and that no byte of it or behind it is lost, however it is cut."""

from __future__ import annotations

import pytest

from gateway.errors import BadRequest
from gateway.http1.framing import LengthBody, UntilCloseBody, answer_length, body
from gateway.http1.message import CHUNKED, NO_BODY, UNTIL_CLOSE
from gateway.http1.parser import AnswerParser


@pytest.mark.parametrize("length", [0, 1, 5, 10])
@pytest.mark.parametrize("step", [1, 2, 3, 100])
def test_a_length_is_counted_down(length: int, step: int) -> None:
    data = b"0123456789abc"
    walker = LengthBody(length)
    assert walker.done is (length == 0)
    passed, rest = b"", b""
    for at in range(0, len(data), step):
        piece = data[at : at + step]
        if walker.done:
            rest += piece
            continue
        forward, behind = walker.feed(piece)
        assert behind == b"" or walker.done
        passed += forward
        rest += behind
    assert (passed, rest, walker.done) == (data[:length], data[length:], True)
    assert walker.seen_bytes == length


def test_bytes_go_on_as_the_object_they_came_as() -> None:
    data = b"x" * 1000
    assert LengthBody(1000).feed(data)[0] is data
    assert LengthBody(5000).feed(data)[0] is data
    assert UntilCloseBody().feed(data)[0] is data


def test_until_close_is_never_done() -> None:
    walker = UntilCloseBody()
    assert walker.feed(b"abc") == (b"abc", b"")
    assert (walker.done, walker.seen_bytes) == (False, 3)


def test_a_walker_for_each_framing() -> None:
    assert body(0, BadRequest).done
    assert body(3, BadRequest).feed(b"abcd") == (b"abc", b"d")
    assert body(UNTIL_CLOSE, BadRequest).feed(b"abcd") == (b"abcd", b"")
    assert body(CHUNKED, BadRequest).feed(b"1\r\na\r\n0\r\n\r\nb") == (b"1\r\na\r\n0\r\n\r\n", b"b")
    assert body(CHUNKED, BadRequest, decode=True).feed(b"1\r\na\r\n0\r\n\r\nb") == (b"a", b"b")


FIELDS = {
    b"Content-Length: 7": 7,
    b"Content-Length: 0": 0,
    b"Transfer-Encoding: chunked": CHUNKED,
    b"Transfer-Encoding: CHUNKED": CHUNKED,
    b"X: y": UNTIL_CLOSE,
}


@pytest.mark.parametrize("line", FIELDS)
@pytest.mark.parametrize(
    ("method", "status", "bodiless"),
    [
        (b"GET", 200, False),
        (b"POST", 404, False),
        (b"GET", 205, False),
        (b"head", 200, False),
        (b"HEAD", 200, True),
        (b"HEAD", 404, True),
        (b"GET", 204, True),
        (b"GET", 304, True),
        (b"GET", 100, True),
        (b"GET", 199, True),
    ],
)
def test_the_length_of_an_answer(method: bytes, status: int, line: bytes, *, bodiless: bool) -> None:
    head = AnswerParser().parse(b"HTTP/1.1 %d X\r\n" % status + line)
    assert answer_length(method, head) == (NO_BODY if bodiless else FIELDS[line])
