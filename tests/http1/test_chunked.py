"""The chunked coding: what is read does not depend on how it is cut, and is what a plain decoder reads."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from gateway.errors import BadRequest, GatewayError, UpstreamProtocolError
from gateway.http1 import chunked, gate
from gateway.http1.chunked import MAX_CHUNK_LINE_BYTES, MAX_TRAILER_BYTES, ChunkedBody
from tests.http1.heads import MANY
from tests.kit.wire import Incomplete, read_chunks

MALFORMED = "malformed"


def walk(data: bytes, cuts: list[int] | None = None, *, decode: bool = False) -> tuple[bytes, bytes, bool] | str:
    """Feed in pieces; return what was passed on, what lies behind, and whether the end was seen."""
    body = ChunkedBody(BadRequest, decode=decode)
    forwarded, rest = b"", b""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts or [])})
    for start, end in pairwise(edges):
        if body.done:
            rest += data[start:end]
            continue
        try:
            forward, behind = body.feed(data[start:end])
        except BadRequest:
            return MALFORMED
        assert type(forward) is bytes
        assert behind == b"" or body.done
        forwarded += forward
        rest += behind
    if decode:
        assert body.seen_bytes == len(forwarded)  # content is what MAX_BODY counts
    return forwarded, rest, body.done


def by_byte(data: bytes, *, decode: bool = False) -> tuple[bytes, bytes, bool] | str:
    return walk(data, list(range(len(data))), decode=decode)


# --- well-formed bodies ----------------------------------------------------------------------------------------------

EXTENSIONS = st.sampled_from([b"", b"", b";a", b";a=b", b' ; a = "b;\\"c" ;d', b';x="\xc3\xa9"', b"\t;a"])
CHUNKS = st.lists(
    st.tuples(st.binary(min_size=1, max_size=20), EXTENSIONS, st.sampled_from([b"%x", b"%X", b"0%x", b"0000%X"])),
    max_size=5,
)
KEPT = st.sampled_from([b"X-Sum: 1", b"x-b:", b"X-C:  padded ", b"Server-Timing: db;dur=1"])
REMOVED = st.sampled_from(
    [
        b"Content-Length: 5",
        b"transfer-encoding: chunked",
        b"Host: x",
        b"Authorization: Bearer x",
        b"X-Api-Key: x",
        b"Set-Cookie: a=b",
        b"Content-Type: text/plain",
        b"Connection: close",
        b"Trailer: x",
    ]
)
TRAILERS = st.lists(st.one_of(KEPT, REMOVED), max_size=4, unique=True)
RESTS = st.sampled_from([b"", b"GET / HTTP/1.1\r\n", b"\r\n", b"0\r\n\r\n"])
CUTS = st.lists(st.integers(0, 300), max_size=4)


@MANY
@given(CHUNKS, EXTENSIONS, TRAILERS, RESTS, CUTS)
def test_a_body_is_read_alike_however_it_is_cut(
    chunks: list[tuple[bytes, bytes, bytes]], last: bytes, trailers: list[bytes], rest: bytes, cuts: list[int]
) -> None:
    sent = plain = content = b""
    for data, extension, spelling in chunks:
        size = spelling % len(data)
        sent += size + extension + b"\r\n" + data + b"\r\n"
        plain += size + b"\r\n" + data + b"\r\n"
        content += data
    sent += b"0" + last + b"\r\n"
    plain += b"0\r\n"
    for line in trailers:
        sent += line + b"\r\n"
        if line.startswith((b"X-Sum", b"x-b", b"X-C", b"Server")):
            plain += line + b"\r\n"
    sent += b"\r\n"
    plain += b"\r\n"
    expected = (plain, rest, True)
    assert walk(sent + rest) == expected
    assert walk(sent + rest, cuts) == expected
    assert by_byte(sent + rest) == expected
    assert read_chunks(plain)[0] == content
    decoded = (content, rest, True)
    assert walk(sent + rest, cuts, decode=True) == decoded
    assert by_byte(sent + rest, decode=True) == decoded


# --- anything at all -------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        b"0",
        b"1",
        b"3",
        b"a",
        b"\r\n",
        b"\r\n",
        b"\r",
        b"\n",
        b"abc",
        b";",
        b"x",
        b"=",
        b'"',
        b" ",
        b"\t",
        b":",
        b"\x00",
        b"-",
        b"+",
        b"_",
        b"0x",
        b"\xff",
    ]
)
_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[ \t]*TOKEN(?:[ \t]*=[ \t]*(?:TOKEN|QUOTED))?)*\r\n".replace(
        b"TOKEN", rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
    ).replace(b"QUOTED", rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"')
)


def reference(data: bytes) -> tuple[bytes, bytes] | None:
    """Decode as RFC 9112 §7.1 has it; None if that is not possible, yet or ever."""
    content = b""
    while True:
        line = _LINE.match(data)
        if line is None:
            return None
        size = int(line[1], 16)
        data = data[line.end() :]
        if size == 0:
            break
        if data[size : size + 2] != b"\r\n":
            return None
        content += data[:size]
        data = data[size + 2 :]
    while not data.startswith(b"\r\n"):
        field = re.match(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t \x21-\x7e\x80-\xff]*\r\n", data)
        if field is None:
            return None
        data = data[field.end() :]
    return content, data[2:]


@MANY
@given(st.lists(PIECES, max_size=14).map(b"".join), CUTS)
def test_what_is_taken_is_what_the_grammar_has_and_cuts_make_no_difference(data: bytes, cuts: list[int]) -> None:
    whole = walk(data, decode=True)
    expected = reference(data)
    event("malformed" if whole == MALFORMED else "whole" if whole[2] else "unfinished")
    if isinstance(whole, tuple) and whole[2]:
        assert expected == whole[:2]
    else:
        assert expected is None
    for again in (walk(data, cuts, decode=True), by_byte(data, decode=True)):
        if MALFORMED in (whole, again):
            assert whole == again
        else:
            assert again == whole
    forwarded = walk(data, cuts)
    if isinstance(whole, tuple):
        assert isinstance(forwarded, tuple)
        assert forwarded[1:] == whole[1:]
        if whole[2]:
            assert read_chunks(forwarded[0])[0] == whole[0]
        elif forwarded[0]:
            with pytest.raises(Incomplete):
                read_chunks(forwarded[0])
    else:
        assert forwarded == MALFORMED


BAD = {
    "no size": b"\r\nhi\r\n",
    "no hexadecimal": b"g\r\n",
    "a sign": b"+2\r\nhi\r\n",
    "a minus": b"-1\r\n",
    "a prefix": b"0x2\r\nhi\r\n",
    "an underscore": b"1_0\r\n",
    "space before the size": b" 2\r\nhi\r\n",
    "space behind the size": b"2 \r\nhi\r\n",
    "a bare LF behind the size": b"2\nhi\r\n",
    "a bare CR behind the size": b"2\rhi\r\n",
    "a bare LF behind the data": b"2\r\nhi\n0\r\n\r\n",
    "a bare CR behind the data": b"2\r\nhi\r0\r\n\r\n",
    "data too long": b"2\r\nhix\r\n0\r\n\r\n",
    "data too short": b"3\r\nhi\r\n0\r\n\r\n",
    "a huge size": b"f" * 17 + b"\r\n",
    "a size that overflows": b"ffffffffffffffff\r\n",
    "a bare LF in an extension": b"2;a\nb\r\nhi\r\n",
    "a bare CR in an extension": b"2;a\rb\r\nhi\r\n",
    "a NUL in an extension": b"2;a=\x00\r\nhi\r\n",
    "an unfinished quote": b'2;a="b\r\nhi\r\n',
    "an extension without a name": b"2;=b\r\nhi\r\n",
    "an extension without anything": b"2;\r\nhi\r\n",
    "a trailer without a colon": b"0\r\nabc\r\n\r\n",
    "a trailer with a space before its colon": b"0\r\na : b\r\n\r\n",
    "a folded trailer": b"0\r\na: b\r\n c\r\n\r\n",
    "a bare LF in a trailer": b"0\r\na: b\nc: d\r\n\r\n",
    "a bare CR in a trailer": b"0\r\na: b\rc: d\r\n\r\n",
    "a NUL in a trailer": b"0\r\na: \x00\r\n\r\n",
    "a bare LF for the end": b"0\r\n\n",
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("decode", [True, False])
def test_malformed_framing_is_refused_however_it_is_cut(case: str, *, decode: bool) -> None:
    assert walk(BAD[case], decode=decode) == MALFORMED
    assert by_byte(BAD[case], decode=decode) == MALFORMED


def test_the_error_is_of_the_class_asked_for() -> None:
    with pytest.raises(UpstreamProtocolError):
        ChunkedBody(UpstreamProtocolError).feed(b"x")
    with pytest.raises(UpstreamProtocolError):
        ChunkedBody(UpstreamProtocolError).feed(b"0\r\nbad trailer\r\n\r\n")


@pytest.mark.parametrize("head", [b"2;a=", b"0;a="])
def test_a_chunk_line_has_a_bound(head: bytes) -> None:
    longest = head + b"x" * (MAX_CHUNK_LINE_BYTES - len(head) - 2) + b"\r\n"
    for feed in (walk, by_byte):
        assert feed(longest) != MALFORMED
        assert feed(head + b"x" * MAX_CHUNK_LINE_BYTES) == MALFORMED
        assert feed(head + b"x" * MAX_CHUNK_LINE_BYTES + b"\r\n") == MALFORMED


def test_trailers_have_a_bound() -> None:
    line = b"X: " + b"x" * 500 + b"\r\n"
    few = b"0\r\n" + line * 10 + b"\r\n"
    assert walk(few) == (few, b"", True)
    body = ChunkedBody(BadRequest)
    body.feed(b"0\r\n")
    for _ in range(MAX_TRAILER_BYTES // len(line)):
        assert body.feed(line) == (b"", b"")
    with pytest.raises(GatewayError):
        body.feed(line * 2)


def test_what_is_held_back_is_a_line_and_never_content() -> None:
    body = ChunkedBody(BadRequest)
    assert body.feed(b"5") == (b"", b"")
    assert body.feed(b"\r\nhel") == (b"5\r\nhel", b"")
    assert body.feed(b"lo") == (b"lo", b"")
    assert body.feed(b"\r") == (b"", b"")
    assert body.feed(b"\n0\r\n") in {(b"\r\n0\r\n", b""), (b"\r\n", b"")}


def test_plain_framing_goes_on_as_the_object_it_came_as() -> None:
    data = b"5\r\nhello\r\n"
    forward, _ = ChunkedBody(BadRequest).feed(data)
    assert forward is data


def test_many_tiny_chunks_cost_time_in_proportion() -> None:
    chunk = b"1\r\nx\r\n"
    body = ChunkedBody(BadRequest)
    assert body.feed(chunk * 50_000)[0] == chunk * 50_000
    body = ChunkedBody(BadRequest, decode=True)
    assert body.feed(chunk * 50_000)[0] == b"x" * 50_000


# --- work ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 7])
@pytest.mark.parametrize("line", [b"x" * 60 + b"\r\n", b"\r\n"])
def test_each_byte_of_the_trailers_is_looked_at_once(monkeypatch: pytest.MonkeyPatch, line: bytes, step: int) -> None:
    looked_at = 0

    def counting(piece: bytes) -> None:
        nonlocal looked_at
        looked_at += len(piece)
        gate.check_bytes(piece)

    monkeypatch.setattr(chunked, "check_bytes", counting)
    lines = b"".join(b"A%03d:" % number + line for number in range(90))
    trailers = lines + b"\r\n"
    data = b"0\r\n" + trailers
    body = ChunkedBody(BadRequest)
    forwarded = b"".join(body.feed(data[at : at + step])[0] for at in range(0, len(data), step))
    assert body.done
    assert forwarded == data
    # A CR may be looked at again, together with what follows it.
    assert len(lines) - 2 <= looked_at <= len(trailers) + 2 * lines.count(b"\r")


@pytest.mark.parametrize("wrong", [b"\rx", b"\n", b"\x00", b"\r\r\n", b"x\r\n\rx"])
@pytest.mark.parametrize("before", [b"", b"A: b\r\n", b"A: b\r\nC: "])
def test_a_wrong_byte_in_the_trailers_is_seen_wherever_it_is_cut(before: bytes, wrong: bytes) -> None:
    sent = b"0\r\n" + before + wrong
    assert walk(sent) == by_byte(sent) == MALFORMED
    for cut in range(len(sent)):
        assert walk(sent, [cut]) == MALFORMED
