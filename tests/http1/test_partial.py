"""A head in pieces: whole in the end however it is cut, and refused early only if it would be refused whole."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from gateway.errors import FieldsTooLarge, GatewayError, TargetTooLong
from gateway.http1.message import MAX_HEAD_BYTES, MAX_LINE_BYTES
from gateway.http1.parser import RequestParser
from gateway.http1.partial import PartialHead
from tests.http1.heads import MANY, MUTATED_REQUESTS, REQUESTS

END = b"\r\n\r\n"
CUTS = st.lists(st.integers(0, 400), max_size=5)


def gather(data: bytes, cuts: list[int]) -> bytes | GatewayError | None:
    """Feed in pieces until there is a head, an error, or nothing more."""
    partial = PartialHead()
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        try:
            whole = partial.feed(data[start:end])
        except GatewayError as error:
            return error
        if whole is not None:
            return whole + data[end:]
    return None


@MANY
@given(REQUESTS, st.sampled_from([b"", b"\r\n", b"\r\n\r\n"]), CUTS)
def test_a_head_is_whole_however_it_is_cut(block: bytes, empty: bytes, cuts: list[int]) -> None:
    try:
        RequestParser().parse(block)
    except GatewayError:
        event("refused whole")
        return
    data = block + END + b"body"
    assert gather(empty + data, cuts) == data
    assert gather(empty + data, list(range(len(empty + data)))) == data


@MANY
@given(MUTATED_REQUESTS, CUTS)
def test_nothing_is_refused_early_that_would_be_taken_whole(block: bytes, cuts: list[int]) -> None:
    data = block + END
    while data.startswith(b"\r\n"):
        data = data[2:]
    head = data.partition(END)[0]
    try:
        RequestParser().parse(head)
    except GatewayError:
        event("refused whole")
        return
    event("taken whole")
    assert gather(block + END, cuts) == data
    assert gather(block + END, list(range(len(block + END)))) == data


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\nHost: h",
        b"GET / HTTP/1.1\r\nA: b\rc",
        b"GET / HTTP/1.1\r\nA: \x00",
        b"\x16\x03\x01",
        b"GET / HTTP/9.9\r\nA",
        b"GET /\r\nA",
        b"\x80\xae\xfe",
        b"{GET}",
        b"\n",
        b"\r\r",
        b"GET / HTTP/1.1\r\nA : b\r\nB",
    ],
)
def test_what_can_no_longer_become_a_head_is_not_waited_for(data: bytes) -> None:
    assert isinstance(gather(data, []), GatewayError)
    assert isinstance(gather(data, list(range(len(data)))), GatewayError)


def test_a_head_without_end_has_a_bound() -> None:
    partial = PartialHead()
    partial.feed(b"GET / HTTP/1.1\r\n")
    line = b"A: " + b"x" * 997 + b"\r\n"
    for _ in range(MAX_HEAD_BYTES // len(line)):
        assert partial.feed(line) is None
    with pytest.raises(FieldsTooLarge):
        partial.feed(line)


def test_a_request_line_as_long_as_may_be_waits_for_its_end() -> None:
    partial = PartialHead()
    line = b"GET /" + b"x" * (MAX_LINE_BYTES - 14) + b" HTTP/1.1"
    assert partial.feed(line) is None
    assert partial.feed(b"\r") is None
    assert partial.feed(b"\nHost: h\r\n\r\n") == line + b"\r\nHost: h\r\n\r\n"


@pytest.mark.parametrize("end", [b"", b" HTTP/1.1\r\nHost: h\r\n\r\n"])
def test_of_a_head_that_is_far_too_long_the_request_line_is_judged_first(end: bytes) -> None:
    with pytest.raises(TargetTooLong):
        PartialHead().feed(b"GET /" + b"x" * 2 * MAX_HEAD_BYTES + end)


def test_a_request_line_without_end_has_a_bound() -> None:
    partial = PartialHead()
    assert partial.feed(b"GET /" + b"x" * (MAX_LINE_BYTES - 5)) is None
    with pytest.raises(TargetTooLong):
        partial.feed(b"x")
