"""The strict gate: what it refuses on the raw bytes, and what it must not."""

from __future__ import annotations

import pytest

from gateway.errors import BadRequest, FieldsTooLarge, GatewayError, HttpVersionUnsupported, TargetTooLong
from gateway.http1.gate import check_answer, check_request
from gateway.http1.message import MAX_FIELDS, MAX_LINE_BYTES

LINE = b"GET / HTTP/1.1"

GOOD_REQUESTS = [
    LINE,
    b"GET / HTTP/1.0",
    b"M-SEARCH /x?y HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"CONNECT a.test:443 HTTP/1.1",
    b"CONNECT [::1]:443 HTTP/1.1",
    b"GET http://a.test HTTP/1.1",
    b"GET HTTPS://a.test:80/x?y HTTP/1.1",
    b"GET http://a.test?x HTTP/1.1",
    b'GET /{}|\\^`"<>%zz HTTP/1.1',
    LINE + b"\r\nA:b\r\nC: \t d \t\r\nE:\r\nF: \xc3\xa9\xff",
    LINE + b"\r\n!#$%&'*+-.^_`|~09azAZ: x",
    LINE + b"\r\nContent-Length: 000000000000000001",
    b"GET /" + b"x" * (MAX_LINE_BYTES - len(b"GET / HTTP/1.1")) + b" HTTP/1.1",
    LINE + b"\r\nA: b" * MAX_FIELDS,
]


@pytest.mark.parametrize("block", GOOD_REQUESTS, ids=lambda block: repr(block[:40]))
def test_a_request_that_is_let_through(block: bytes) -> None:
    check_request(block)


BAD_REQUESTS: list[tuple[bytes, type[GatewayError]]] = [
    (b"", BadRequest),
    (b"GET", BadRequest),
    (b"GET /", BadRequest),
    (b"GET  / HTTP/1.1", BadRequest),
    (b" GET / HTTP/1.1", BadRequest),
    (b"GET / HTTP/1.1 ", BadRequest),
    (b"GET\t/\tHTTP/1.1", BadRequest),
    (b"GET / x HTTP/1.1", BadRequest),
    (b"G(T / HTTP/1.1", BadRequest),
    (b"G\xc3\x89T / HTTP/1.1", BadRequest),
    (b"GET /#x HTTP/1.1", BadRequest),
    (b"GET /\xc3\xa9 HTTP/1.1", BadRequest),
    (b"GET /\x7f HTTP/1.1", BadRequest),
    (b"GET x HTTP/1.1", BadRequest),
    (b"GET * HTTP/1.1", BadRequest),
    (b"GET a.test:443 HTTP/1.1", BadRequest),
    (b"GET ftp://a.test/ HTTP/1.1", BadRequest),
    (b"GET http:/// HTTP/1.1", BadRequest),
    (b"GET http://:80/ HTTP/1.1", BadRequest),
    (b"GET http://u@a.test/ HTTP/1.1", BadRequest),
    (b"GET http://a.test:b/ HTTP/1.1", BadRequest),
    (b"GET http://[::1::2]/ HTTP/1.1", BadRequest),
    (b"CONNECT / HTTP/1.1", BadRequest),
    (b"CONNECT a.test HTTP/1.1", BadRequest),
    (b"GET / HTTP/11", BadRequest),
    (b"GET / HTTP/1.", BadRequest),
    (b"GET / HTTP/1.10", BadRequest),
    (b"GET / HTTP/ 1.1", BadRequest),
    (b"GET / HTTPS/1.1", BadRequest),
    (b"GET / http/1.1", BadRequest),
    (b"GET / HTTP/1,1", BadRequest),
    (b"GET / HTTP/0.9", HttpVersionUnsupported),
    (b"GET / HTTP/1.2", HttpVersionUnsupported),
    (b"GET / HTTP/2.0", HttpVersionUnsupported),
    (LINE + b"\r\n", BadRequest),
    (LINE + b"\nA: b", BadRequest),
    (LINE + b"\rA: b", BadRequest),
    (LINE + b"\r\nA: b\nC: d", BadRequest),
    (LINE + b"\r\nA: b\rC: d", BadRequest),
    (LINE + b"\r\nA: b\r", BadRequest),
    (LINE + b"\r\n\nA: b", BadRequest),
    (LINE + b"\r\nA: b\r\n c", BadRequest),
    (LINE + b"\r\nA: b\r\n\tc", BadRequest),
    (LINE + b"\r\n A: b", BadRequest),
    (LINE + b"\r\nA : b", BadRequest),
    (LINE + b"\r\nA\t: b", BadRequest),
    (LINE + b"\r\nA", BadRequest),
    (LINE + b"\r\n: b", BadRequest),
    (LINE + b"\r\nA\xa0: b", BadRequest),
    (LINE + b"\r\n\xe2\x84\xaa: b", BadRequest),
    (LINE + b"\r\nA B: c", BadRequest),
    (LINE + b'\r\n"A": c', BadRequest),
    (LINE + b"\r\nA: \x00", BadRequest),
    (LINE + b"\r\nA: \x0b", BadRequest),
    (LINE + b"\r\nA: \x7f", BadRequest),
    (LINE + b"\r\nContent-Length: 1\r\ncontent-length: 1", BadRequest),
    (LINE + b"\r\nContent-Length: 1, 1", BadRequest),
    (LINE + b"\r\nContent-Length: +1", BadRequest),
    (LINE + b"\r\nContent-Length: -1", BadRequest),
    (LINE + b"\r\nContent-Length: 1_0", BadRequest),
    (LINE + b"\r\nContent-Length: 0x1", BadRequest),
    (LINE + b"\r\nContent-Length: 1 1", BadRequest),
    (LINE + b"\r\nContent-Length: \xd9\xa1", BadRequest),
    (LINE + b"\r\nContent-Length:", BadRequest),
    (LINE + b"\r\nContent-Length: " + b"1" * 19, BadRequest),
    (b"GET /" + b"x" * MAX_LINE_BYTES + b" HTTP/1.1", TargetTooLong),
    (LINE + b"\r\nA: " + b"x" * MAX_LINE_BYTES, FieldsTooLarge),
    (LINE + b"\r\nA: b" * (MAX_FIELDS + 1), FieldsTooLarge),
]


@pytest.mark.parametrize(("block", "error"), BAD_REQUESTS, ids=lambda value: repr(value)[:40])
def test_a_request_that_is_refused(block: bytes, error: type[GatewayError]) -> None:
    with pytest.raises(error):
        check_request(block)


@pytest.mark.parametrize(
    "block",
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 ",
        b"HTTP/1.1 404 Not\tFound \xc3\xa9",
        b"HTTP/1.1 200 OK\r\nA:b\r\nSet-Cookie: a\r\nSet-Cookie: b",
    ],
)
def test_an_answer_that_is_let_through(block: bytes) -> None:
    check_answer(block)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"HTTP/2 200 OK",
        b"HTTP/1.2 200 OK",
        b"http/1.1 200 OK",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 +20 OK",
        b"HTTP/1.1 200OK",
        b" HTTP/1.1 200 OK",
        b"HTTP/1.1 200 O\x00K",
        b"HTTP/1.1 200 OK\nA: b",
        b"HTTP/1.1 200 OK\r\nA: b\nC: d",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c",
        b"HTTP/1.1 200 OK\r\nA : b",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1",
        b"HTTP/1.1 200 OK" + b"\r\nA: b" * (MAX_FIELDS + 1),
    ],
)
def test_an_answer_that_is_refused(block: bytes) -> None:
    with pytest.raises(GatewayError):
        check_answer(block)
