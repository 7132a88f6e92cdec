"""Templates are a memory, not a judge: a parser that has seen other heads reads a head as a fresh one does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.http1 import template
from gateway.http1.message import CRLF
from gateway.http1.parser import AnswerParser, RequestParser
from tests.http1.edited import ANSWER, REQUEST, edits, read_answer, read_request

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "HEADS_A_TEMPLATE", 0)


@settings(max_examples=125, deadline=None)
@example([CRLF.join(REQUEST).replace(b"17", b"17 "), CRLF.join(REQUEST).replace(b"gw_a.b", b"gw_a.b ")])
@given(st.lists(edits(REQUEST), min_size=2, max_size=12))
def test_requests_are_read_as_by_a_fresh_parser(blocks: list[bytes]) -> None:
    warm = RequestParser()
    for block in (CRLF.join(REQUEST), CRLF.join(REQUEST).replace(b"17", b"18"), *blocks, *blocks):
        assert read_request(warm, block) == read_request(RequestParser(), block)


@settings(max_examples=125, deadline=None)
@example([CRLF.join(ANSWER).replace(b"4df46", b"4df46 "), CRLF.join(ANSWER).replace(b"307", b"0307")])
@given(st.lists(edits(ANSWER), min_size=2, max_size=12))
def test_answers_are_read_as_by_a_fresh_parser(blocks: list[bytes]) -> None:
    warm = AnswerParser()
    for block in (CRLF.join(ANSWER), CRLF.join(ANSWER).replace(b"4df46", b"4df47"), *blocks, *blocks):
        assert read_answer(warm, block) == read_answer(AnswerParser(), block)


def with_value(lines: tuple[bytes, ...], name: bytes, value: bytes) -> bytes:
    return re.sub(rb"(?m)^" + name + rb": [^\r]*", lambda _: name + b": " + value, CRLF.join(lines))


def count_full_readings(
    monkeypatch: pytest.MonkeyPatch, parser: type[RequestParser | AnswerParser]
) -> Callable[[], int]:
    readings = 0
    read = parser._read

    def counted(*arguments: object) -> object:
        nonlocal readings
        readings += 1
        return read(*arguments)  # type: ignore[arg-type]  # whatever it takes

    monkeypatch.setattr(parser, "_read", counted)
    return lambda: readings


def test_the_third_request_of_a_kind_is_not_read_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    full_readings = count_full_readings(monkeypatch, RequestParser)
    parser = RequestParser()
    for number in range(10):
        block = with_value(REQUEST, b"X-Request-Id", b"id %d" % number).replace(b"gw_a.b", b"gw_%d.b" % number)
        head = parser.parse(block.replace(b"Length: 5", b"Length: %d" % number))
        assert head.bearer == b"gw_%d.b" % number
        assert head.length == number
        assert head.lines == (
            b"\r\nAccept: */*\r\nX-Request-Id: id %d\r\nContent-Length: %d\r\nX-Discount: 5%%" % (number, number)
        )
    assert full_readings() == 2


def test_the_third_answer_of_a_kind_is_not_read_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    full_readings = count_full_readings(monkeypatch, AnswerParser)
    parser = AnswerParser()
    for number in range(10):
        head = parser.parse(with_value(ANSWER, b"x-request-id", b"%d" % number))
        assert head.lines.count(b"\r\nx-request-id: %d\r\n" % number) == 1
        assert b"Connection" not in head.lines
    assert full_readings() == 2


def test_templates_are_not_made_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "HEADS_A_TEMPLATE", 256)
    made = 0
    make = template.Template.__init__

    def counted(*arguments: Any) -> None:
        nonlocal made
        made += 1
        make(*arguments)

    monkeypatch.setattr(template.Template, "__init__", counted)
    parser = RequestParser()
    for number in range(2000):
        # Each pair of heads has a shape of its own: the worst that a client can do.
        parser.parse(b"GET / HTTP/1.1\r\nHost: h\r\nX-%d: %d" % (number // 2, number))
    assert made <= 2000 / 256 + 1
