"""The parsers, case by case."""

from __future__ import annotations

import pytest

from gateway.errors import TWO_TOKENS, GatewayError, UpstreamProtocolError
from gateway.http1.message import MAX_FIELDS, MAX_LINE_BYTES, RequestHead
from gateway.http1.parser import AnswerParser, RequestParser

TAKES_TRAILERS = b"\r\nTE: trailers\r\nConnection: TE"


def request(*lines: bytes, start: bytes = b"GET /x HTTP/1.1") -> RequestHead:
    return RequestParser().parse(b"\r\n".join((start, b"Host: h", *lines)))


def test_a_request_is_read() -> None:
    head = request(b"Accept: */*", b"Content-Length: 5", b"Cookie: a", b"cookie: b", start=b"POST /x?y HTTP/1.1")
    assert (head.method, head.target, head.minor, head.length) == (b"POST", b"/x?y", 1, 5)
    assert head.lines == b"\r\nAccept: */*\r\nContent-Length: 5\r\nCookie: a\r\ncookie: b"
    assert head.keep_alive
    assert head.bearer is None


@pytest.mark.parametrize(
    ("start", "lines", "expected"),
    [
        (b"HTTP/1.1", [], True),
        (b"HTTP/1.1", [b"Connection: close"], False),
        (b"HTTP/1.1", [b"Connection: Close"], False),
        (b"HTTP/1.1", [b"Connection: foo", b"Connection: close"], False),
        (b"HTTP/1.1", [b"Connection: keep-alive, close"], False),
        (b"HTTP/1.0", [], False),
        (b"HTTP/1.0", [b"Connection: Keep-Alive"], True),
        (b"HTTP/1.0", [b"Connection: keep-alive, close"], False),
    ],
)
def test_whether_the_connection_is_kept(start: bytes, lines: list[bytes], *, expected: bool) -> None:
    assert request(*lines, start=b"GET / " + start).keep_alive is expected


def test_a_legal_spelling_that_is_not_canonical_is_read_by_h11() -> None:
    head = request(b"A:b", b"C:   d  ", b"Content-Length:007 ", b"E:")
    assert head.lines == b"\r\nA: b\r\nC: d\r\nContent-Length: 7\r\nE:"
    assert head.length == 7


def test_memory_of_lines_is_bounded_and_forgets_nothing_that_matters() -> None:
    parser = RequestParser()
    for number in range(5000):
        head = parser.parse(
            b"GET / HTTP/1.1\r\nHost: h%d\r\nX-Id: %d\r\nX-%d: 1\r\nContent-Length: %d" % ((number,) * 4)
        )
        assert head.lines == b"\r\nX-Id: %d\r\nX-%d: 1\r\nContent-Length: %d" % (number, number, number)
        assert head.length == number
    for bad in (b"X-Id : 1", b"X-Id: \x00", b"X-Id: 1\n", b"Content-Length: -1", b"X-Id", b"X-Id: a\rb"):
        with pytest.raises(GatewayError):
            parser.parse(b"GET / HTTP/1.1\r\nHost: h\r\n" + bad)


def test_a_name_whose_values_keep_changing_is_still_checked() -> None:
    parser = RequestParser()
    for number in range(500):
        parser.parse(b"GET / HTTP/1.1\r\nHost: h\r\nX-Id: %d" % number)
    assert parser.parse(b"GET / HTTP/1.1\r\nHost: h\r\nX-Id:  padded ").lines == b"\r\nX-Id: padded"
    assert parser.parse(b"GET / HTTP/1.1\r\nHost: h\r\nX-Id:").lines == b"\r\nX-Id:"
    assert parser.parse(b"GET / HTTP/1.1\r\nHost: h\r\nx-id: a b").lines == b"\r\nx-id: a b"
    for value in (b"\x00", b"\x7f", b"a\rb", b"a\nb", b"a" * MAX_LINE_BYTES):
        with pytest.raises(GatewayError):
            parser.parse(b"GET / HTTP/1.1\r\nHost: h\r\nX-Id: " + value)


def test_each_of_many_like_requests_is_read_for_itself() -> None:
    parser = RequestParser()
    for number in range(1000):
        tail = b"X-Id: %d\r\nContent-Length: %d\r\nAuthorization: Bearer t%d" % (number, number % 7, number)
        head = parser.parse(b"POST /%d HTTP/1.1\r\nHost: h\r\nA: %%d %%b\r\n" % number + tail)
        assert (head.target, head.bearer, head.length) == (b"/%d" % number, b"t%d" % number, number % 7)
        assert head.lines.split(b"\r\n")[1:] == [
            b"A: %d %b",
            b"X-Id: %d" % number,
            b"Content-Length: %d" % (number % 7),
        ]
        for bad in (b"\r\nContent-Length: 1", b"\r\nTransfer-Encoding: chunked", b"\nX: y", b"\r\nHost: i", b"\x00"):
            with pytest.raises(GatewayError):
                parser.parse(b"POST / HTTP/1.1\r\nHost: h\r\nA: %d %b\r\n" + tail + bad)


def test_as_many_fields_as_there_may_be() -> None:
    assert request(*[b"A: b"] * (MAX_FIELDS - 1)).lines.count(b"\r\nA: b") == MAX_FIELDS - 1
    with pytest.raises(GatewayError):
        request(*[b"A: b"] * MAX_FIELDS)
    with pytest.raises(UpstreamProtocolError):
        AnswerParser().parse(b"\r\n".join((b"HTTP/1.1 200 OK", *[b"A: b"] * (MAX_FIELDS + 1))))


@pytest.mark.parametrize(
    ("lines", "passed_on"),
    [
        ([b"TE: trailers"], True),
        ([b"Connection: close, TE", b"TE: trailers"], True),
        ([b"te: deflate;q=0.5,TRAILERS"], True),
        ([b"TE: gzip", b"TE: trailers"], True),
        ([b"TE: trailers", b"TE: trailers"], True),
        ([b"TE:trailers"], True),
        ([b"TE: gzip"], False),
        ([b"TE:"], False),
        ([b"TE: trailers;q=0"], False),
        ([b"Connection: TE"], False),
    ],
)
def test_of_te_only_the_trailers_go_on_and_once(lines: list[bytes], *, passed_on: bool) -> None:
    parser = RequestParser()
    for number in range(4):  # a shape that was seen before is read as the first was
        head = parser.parse(b"\r\n".join((b"GET /x HTTP/1.1", b"Host: h", *lines, b"X-Id: %d" % number)))
        assert head.lines == b"\r\nX-Id: %d" % number + (TAKES_TRAILERS if passed_on else b"")


def test_a_1_0_client_takes_no_trailers() -> None:
    assert request(b"TE: trailers", start=b"GET /x HTTP/1.0").lines == b""


@pytest.mark.parametrize(
    ("lines", "passed_on"),
    [
        ([b"Transfer-Encoding: chunked", b"trailer: X-Sum, X-B"], True),
        ([b"trailer: X-Sum, X-B", b"Transfer-Encoding: chunked"], True),
        ([b"trailer: X-Sum, X-B", b"Transfer-Encoding: chunked", b"Connection: Trailer"], False),
        ([b"trailer: X-Sum, X-B", b"Content-Length: 5"], False),
        ([b"trailer: X-Sum, X-B"], False),
    ],
)
def test_trailers_are_announced_where_they_can_follow(lines: list[bytes], *, passed_on: bool) -> None:
    requests, answers = RequestParser(), AnswerParser()
    for number in range(4):
        block = b"\r\n".join((*lines, b"X-Id: %d" % number))
        heads = (
            requests.parse(b"POST /x HTTP/1.1\r\nHost: h\r\n" + block),
            answers.parse(b"HTTP/1.1 200 OK\r\n" + block),
        )
        for head in heads:
            assert (b"\r\ntrailer: X-Sum, X-B" in head.lines) is passed_on
            assert head.lines.endswith(b"\r\nX-Id: %d" % number)


@pytest.mark.parametrize(
    ("line", "status"), [(b"HTTP/1.0 404 Not Found", 404), (b"HTTP/1.1 200", 200), (b"HTTP/1.1 200 ", 200)]
)
def test_an_answer_is_told_on_as_1_1(line: bytes, status: int) -> None:
    head = AnswerParser().parse(line + b"\r\nContent-Length: 3")
    assert (head.status, head.length) == (status, 3)
    assert head.start.startswith(b"HTTP/1.1 %d " % status)
    assert head.keep_alive is (b"1.1" in line)


def test_a_known_request_line_with_a_byte_more_is_another() -> None:
    parser = RequestParser()
    parser.parse(b"GET /x HTTP/1.0\r\nHost: h")
    with pytest.raises(GatewayError):
        parser.parse(b"GET /x HTTP/1.0x")
    with pytest.raises(GatewayError):
        parser.parse(b"GET /x HTTP/1.0 \r\nHost: h")


def test_of_two_tokens_none_counts_however_often_they_are_seen() -> None:
    parser = RequestParser()
    start = b"GET / HTTP/1.1\r\nHost: h\r\n"
    for number in range(600):
        for names in ((b"X-Api-Key: ", b"Authorization: Bearer "), (b"Api-Key: ", b"X-Goog-Api-Key: ")):
            first, second = names
            same = first + b"t%d\r\n" % number + second + b"t%d" % number
            assert parser.parse(start + same).bearer == b"t%d" % number
            assert parser.parse(start + same + b"x").bearer == TWO_TOKENS


# --- upgrades --------------------------------------------------------------------------------------------------------


WISH = (b"Upgrade: WebSocket, h2c", b"Connection: keep-alive, Upgrade")


def test_a_wish_to_upgrade_is_read_and_written_anew() -> None:
    head = request(*WISH, b"A: b", b"upgrade: foo/2")
    assert head.lines == b"\r\nA: b\r\nConnection: Upgrade\r\nUpgrade: WebSocket, foo/2"
    assert head.upgrade == {b"websocket", b"foo/2"}


@pytest.mark.parametrize(
    ("start", "lines"),
    [
        (b"GET / HTTP/1.0", WISH),
        (b"GET / HTTP/1.1", WISH[:1]),
        (b"GET / HTTP/1.1", (WISH[0], b"Connection: close")),
        (b"GET / HTTP/1.1", (b"Upgrade: h2c", WISH[1])),
        (b"POST / HTTP/1.1", (*WISH, b"Content-Length: 1")),
        (b"POST / HTTP/1.1", (*WISH, b"Transfer-Encoding: chunked")),
    ],
)
def test_a_wish_that_does_not_count_leaves_nothing(start: bytes, lines: tuple[bytes, ...]) -> None:
    head = request(*lines, start=start)
    assert b"pgrade" not in head.lines
    assert head.upgrade == frozenset()


def test_no_memory_of_other_requests_makes_a_wish_count_or_not() -> None:
    parser = RequestParser()
    for number in range(600):
        block = b"GET / HTTP/1.1\r\nHost: h\r\nX-Id: %d\r\n" % number
        assert parser.parse(block + b"Connection: keep-alive\r\nUpgrade: websocket").upgrade == frozenset()
        assert parser.parse(block + b"Connection: Upgrade\r\nUpgrade: websocket").upgrade == {b"websocket"}


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: upgrade"


@pytest.mark.parametrize("odd", [b"", b"\r\nA:b"])
def test_a_switch_says_to_what(odd: bytes) -> None:
    head = AnswerParser().parse(SWITCH + odd + b"\r\nUpgrade: foo")
    assert head.upgrade == {b"websocket", b"foo"}
    assert head.lines.endswith(b"\r\nConnection: Upgrade\r\nUpgrade: WebSocket, foo")


@pytest.mark.parametrize("odd", [b"", b"\r\nA:b"])
@pytest.mark.parametrize(
    ("was", "is_now"),
    [
        (b"101 Switching Protocols", b"200 OK"),
        (b"101 Switching Protocols", b"100 Continue"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"Connection: upgrade", b"Connection: keep-alive"),
        (b"Connection: upgrade", b"A: b"),
        (b"Upgrade: WebSocket", b"A: b"),
    ],
)
def test_an_answer_that_does_not_say_so_switches_to_nothing(was: bytes, is_now: bytes, odd: bytes) -> None:
    head = AnswerParser().parse(SWITCH.replace(was, is_now) + odd)
    assert head.upgrade == frozenset()
    assert b"Upgrade" not in head.lines
