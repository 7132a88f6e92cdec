"""Openings are a memory, not a judge: a head read by one is what a fresh parser reads in the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.http1 import layout, template
from gateway.http1 import opening as opening_module
from gateway.http1.message import CRLF, HEAD_END, MAX_LINE_BYTES
from gateway.http1.parser import AnswerParser, RequestParser
from tests.http1.edited import ANSWER, REQUEST, answer_seen, edits, read_answer, read_request, request_seen

if TYPE_CHECKING:
    import re

    from gateway.http1.message import AnswerHead, RequestHead
    from gateway.http1.opening import Opening

REQUEST_BLOCK = CRLF.join(REQUEST)
ANSWER_BLOCK = CRLF.join(ANSWER)
TOKEN_LINE = b"\r\nAuthorization: Bearer gw_a.b"
TOKEN_LAST = REQUEST_BLOCK.replace(TOKEN_LINE, b"") + TOKEN_LINE
# Lines behind the first changing value that are not passed on, that say how the message ends, and none at all; a token.
REQUESTS = (
    REQUEST_BLOCK,
    REQUEST_BLOCK.replace(b"X-Discount", b"Keep-Alive"),
    REQUEST_BLOCK.replace(b"Accept: */*", b"Connection: close"),
    REQUEST_BLOCK.replace(b"\r\nX-Request-Id: 17\r\nContent-Length: 5", b""),
    TOKEN_LAST,
)
ANSWERS = (ANSWER_BLOCK, ANSWER_BLOCK.replace(b"\r\nx-request-id: 4df46", b""))


@pytest.fixture(autouse=True)
def made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "HEADS_A_TEMPLATE", 0)


def changed(block: bytes, number: int) -> bytes:
    return block.replace(b": 17", b": %d" % number).replace(b"4df46", b"%d" % number)


def learn_request(parser: RequestParser, block: bytes) -> Opening[RequestHead]:
    for number in range(4):
        head = parser.parse(changed(block, number))
    assert head.opening is not None
    return head.opening


def learn_answer(parser: AnswerParser, block: bytes) -> Opening[AnswerHead]:
    for number in range(4):
        head = parser.parse(changed(block, number))
    assert head.opening is not None
    return head.opening


@settings(max_examples=200, deadline=None)
@example(REQUEST_BLOCK, REQUEST_BLOCK + b" ", b"")
@example(REQUEST_BLOCK, REQUEST_BLOCK.replace(b"Length: 5", b"Length: 05"), b"")
@example(REQUEST_BLOCK, REQUEST_BLOCK.replace(b"Length: 5", b"Length: x"), b"")
@example(REQUEST_BLOCK, REQUEST_BLOCK.replace(b"Id: 17", b"Id: 1\x00"), b"")
@example(REQUEST_BLOCK, REQUEST_BLOCK.replace(b"Id: 17", b"Id: 1 "), b"")
@example(REQUEST_BLOCK, REQUEST_BLOCK.replace(b"Id: 17", b"Id: \r\n"), b"")
@given(st.sampled_from(REQUESTS), st.sampled_from(REQUESTS).flatmap(lambda b: edits(tuple(b.split(CRLF)))), st.binary())
def test_a_request_is_read_as_by_a_fresh_parser(known: bytes, block: bytes, behind: bytes) -> None:
    data = block + HEAD_END + behind
    opening = learn_request(RequestParser(), known)
    for _ in range(2):  # by its pattern, and where it has the layout of the one before
        found = opening.read(data)
        if found is not None:
            head, end = found
            assert end == data.index(HEAD_END) + len(HEAD_END)
            assert request_seen(head) == read_request(RequestParser(), data[: end - len(HEAD_END)])
        assert opening.read(known + HEAD_END) is not None


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ANSWERS), st.sampled_from(ANSWERS).flatmap(lambda b: edits(tuple(b.split(CRLF)))), st.binary())
def test_an_answer_is_read_as_by_a_fresh_parser(known: bytes, block: bytes, behind: bytes) -> None:
    data = block + HEAD_END + behind
    opening = learn_answer(AnswerParser(), known)
    for _ in range(2):  # by its pattern, and where it has the layout of the one before
        found = opening.read(data)
        if found is not None:
            head, end = found
            assert end == data.index(HEAD_END) + len(HEAD_END)
            assert answer_seen(head) == read_answer(AnswerParser(), data[: end - len(HEAD_END)])
        assert opening.read(known + HEAD_END) is not None


ODD = (b"\x00", b"\t", b"\n", b"\r", b" ", b"+", b"0", b":", b"_", b"a", b"\x7f", b"\xff")


@pytest.mark.parametrize(
    ("known", "of_request"), [*((known, True) for known in REQUESTS), *((known, False) for known in ANSWERS)]
)
def test_a_head_of_the_same_layout_is_read_as_by_a_fresh_parser(known: bytes, of_request: bool) -> None:  # noqa: FBT001
    opening: Opening[Any] = learn_request(RequestParser(), known) if of_request else learn_answer(AnswerParser(), known)
    for at in range(len(known)):
        for byte in ODD:
            assert opening.read(known + HEAD_END) is not None
            block = known[:at] + byte + known[at + 1 :]
            found = opening.read(block + HEAD_END + b"{}")
            if found is None:
                continue
            head, end = found
            if of_request:
                assert request_seen(head) == read_request(RequestParser(), block)
            else:
                assert answer_seen(head) == read_answer(AnswerParser(), block)
            assert end == len(block + HEAD_END)


def test_heads_of_a_layout_that_was_seen_are_read_without_the_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    make = layout.layout_of

    def counted(*arguments: Any) -> layout.Layout:
        nonlocal made
        made += 1
        return make(*arguments)

    monkeypatch.setattr(opening_module, "layout_of", counted)
    opening = learn_request(RequestParser(), REQUEST_BLOCK)
    matches = 0
    match_ending = opening.ending.match

    def match(data: bytes, at: int) -> re.Match[bytes] | None:
        nonlocal matches
        matches += 1
        return match_ending(data, at)

    opening.ending = opening.ending._replace(match=match)
    alone = opening.alone()
    for number in range(10, 30):
        for one in (opening, alone):
            assert one.read(changed(REQUEST_BLOCK, number) + HEAD_END + b"%d" % number) is not None
    assert (made, matches) == (1, 1)
    for number in range(1, 300):  # a layout of each size, and more than are kept
        block = changed(REQUEST_BLOCK, 10**number) + HEAD_END
        for _ in range(2):
            assert opening.read(block) is not None
    assert len(opening._layouts) <= opening_module.MAX_LAYOUTS
    assert made <= 2 + 2 * 300 / opening_module.HEADS_A_LAYOUT


def test_a_head_that_takes_much_memory_is_read_and_its_layout_is_not_kept() -> None:
    opening = learn_request(RequestParser(), REQUEST_BLOCK)
    longer = REQUEST_BLOCK.replace(b": 17", b": " + b"7" * opening_module.MAX_LAYOUT_BYTES)
    assert opening.read(longer + HEAD_END) is not None
    assert not opening._layouts
    assert opening.read(REQUEST_BLOCK + HEAD_END) is not None
    assert len(opening._layouts) == 1


@pytest.mark.parametrize("known", REQUESTS)
def test_the_next_request_of_a_connection_is_read_by_its_opening(known: bytes) -> None:
    block = changed(known, 99).replace(b"Length: 5", b"Length: 7")
    found = learn_request(RequestParser(), known).read(block + HEAD_END + b"{}")
    assert found is not None
    head, end = found
    assert request_seen(head) == read_request(RequestParser(), block)
    assert end == len(block) + len(HEAD_END)


@pytest.mark.parametrize("known", ANSWERS)
def test_the_next_answer_of_a_connection_is_read_by_its_opening(known: bytes) -> None:
    block = changed(known, 99).replace(b"Length: 307", b"Length: 7")
    found = learn_answer(AnswerParser(), known).read(block + HEAD_END + b"{}")
    assert found is not None
    assert answer_seen(found[0]) == read_answer(AnswerParser(), block)


@pytest.mark.parametrize("known", [REQUEST_BLOCK, TOKEN_LAST])
def test_another_token_is_never_read_as_the_one_before(known: bytes) -> None:
    opening = learn_request(RequestParser(), known)
    assert opening.read(known + HEAD_END) is not None
    for other in (b"gw_a.c", b"gw_a.bb", b"gw_a.", b"Gw_a.b", b"", b"gw_a.b, x", b"gw_a.b ", b"gw_a.b\nX: y"):
        assert opening.read(known.replace(b"gw_a.b", other) + HEAD_END) is None


def test_tokens_behind_what_changes_have_openings_of_their_own() -> None:
    parser = RequestParser()
    blocks = [TOKEN_LAST.replace(b"gw_a.b", token) for token in (b"gw_a.b", b"gw_c.d")]
    openings = [learn_request(parser, block) for block in blocks]
    for one, own, other in zip(openings, blocks, reversed(blocks), strict=True):
        found = one.read(own + HEAD_END)
        assert found is not None
        assert found[0].bearer == own[-6:]
        assert one.read(other + HEAD_END) is None


@pytest.mark.parametrize("size", range(len(REQUEST_BLOCK + HEAD_END)))
def test_a_head_that_is_not_whole_is_not_read(size: int) -> None:
    assert learn_request(RequestParser(), REQUEST_BLOCK).read((REQUEST_BLOCK + HEAD_END)[:size]) is None


def test_a_value_longer_than_a_line_may_be_is_not_read() -> None:
    block = REQUEST_BLOCK.replace(b": 17", b": " + b"1" * MAX_LINE_BYTES)
    assert learn_request(RequestParser(), REQUEST_BLOCK).read(block + HEAD_END) is None


def test_connections_of_one_token_share_an_opening_and_those_of_many_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(template, "MAX_OPENINGS", 8)
    parser = RequestParser()
    assert learn_request(parser, REQUEST_BLOCK) is learn_request(parser, REQUEST_BLOCK)
    for number in range(100):
        parser.parse(REQUEST_BLOCK.replace(b"gw_a.b", b"gw_%d.b" % number))
    assert len(parser._templates._openings) <= 8


def test_an_opening_longer_than_is_remembered_is_not_made() -> None:
    block = REQUEST_BLOCK.replace(b"*/*", b"a" * opening_module.MAX_OPENING_BYTES)
    parser = RequestParser()
    for number in range(5):
        head = parser.parse(changed(block, number))
    assert head.opening is None


def test_what_begins_so_only_once_gets_no_opening() -> None:
    parser = RequestParser()
    learn_request(parser, REQUEST_BLOCK)
    for number in range(5):
        assert parser.parse(REQUEST_BLOCK.replace(b"/chat", b"/chat/%d" % number)).opening is None


def test_a_head_is_written_over_only_for_those_who_have_done_with_it() -> None:
    opening = learn_request(RequestParser(), REQUEST_BLOCK)
    data = [changed(REQUEST_BLOCK, number) + HEAD_END for number in (98, 99)]
    alone, other = opening.alone(), opening.alone()
    (first, _), (second, _), (third, _) = (
        found for one, read in zip((*data, data[1]), (alone.read, alone.read, other.read), strict=True)
        if (found := read(one)) is not None
    )  # fmt: skip
    assert first is second is not third
    assert request_seen(first) == request_seen(third) == read_request(RequestParser(), changed(REQUEST_BLOCK, 99))
