"""Two heads as apps and APIs send them, and what may become of them on a hostile way."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from gateway.errors import GatewayError
from gateway.http1.message import CRLF

if TYPE_CHECKING:
    from gateway.http1.message import AnswerHead, RequestHead
    from gateway.http1.parser import AnswerParser, RequestParser

REQUEST = (
    b"POST /api/v1/chat HTTP/1.1",
    b"Host: gw.test",
    b"Authorization: Bearer gw_a.b",
    b"Accept: */*",
    b"X-Request-Id: 17",
    b"Content-Length: 5",
    b"X-Discount: 5%",
)
ANSWER = (
    b"HTTP/1.1 200 OK",
    b"Date: Mon, 23 Nov 2026 10:00:00 GMT",
    b"Connection: keep-alive",
    b"x-request-id: 4df46",
    b"Content-Length: 307",
    b"X-Discount: 5%",
)

# What an edit puts into a line: plain values, and all that has ever split two parsers.
PIECES = (
    *(
        b"",
        b"a",
        b"7",
        b"0",
        b"-1",
        b"+1",
        b" ",
        b"\t",
        b"\r",
        b"\n",
        b"\x00",
        b"\x7f",
        b"\xff",
        b"%",
        b"%b",
        b",",
        b":",
    ),
    *(b";", b"close", b"chunked", b"\r\n", b"\r\nX: y", b"\r\nContent-Length: 5", b"\r\nTransfer-Encoding: chunked"),
    *(b"\r\nHost: h", b"\r\n ", b" HTTP/1.0"),
)


def request_seen(head: RequestHead) -> tuple[object, ...]:
    start = (head.method, head.target, head.minor, head.bearer)
    return *start, head.lines, head.length, head.keep_alive, head.expects_continue


def answer_seen(head: AnswerHead) -> tuple[object, ...]:
    return head.status, head.start, head.lines, head.length, head.keep_alive, head.dated


def read_request(parser: RequestParser, block: bytes) -> object:
    try:
        return request_seen(parser.parse(block))
    except GatewayError as error:
        return type(error)


def read_answer(parser: AnswerParser, block: bytes) -> object:
    try:
        return answer_seen(parser.parse(block))
    except GatewayError as error:
        return type(error)


def edits(lines: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """Heads that are this one but for some bytes put in, taken out, or put in another's place."""
    block = CRLF.join(lines)
    seams = [match.start() for match in re.finditer(rb"\r\n|(?<=: )|\Z", block)]
    positions = st.one_of(st.integers(0, len(block)), st.sampled_from(seams))
    edit = st.tuples(positions, st.sampled_from((0, 0, 0, 1, 2, 3)), st.sampled_from(PIECES))

    def apply(made: list[tuple[int, int, bytes]]) -> bytes:
        edited = block
        for position, taken, put in made:
            edited = edited[:position] + put + edited[position + taken :]
        return edited

    return st.lists(edit, max_size=3).map(apply)
