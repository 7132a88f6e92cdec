"""Answers that are one JSON text: short, long, compressed and hostile."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.budgets.spending import Mark
from gateway.metering.readers import KEPT_BYTES
from tests.metering.recorded import ALL_ANSWERS, ASKS, CHAT, CHAT_COST, CHAT_USAGE, JSON, cost_of, feed, gemini, quote

CHAT_PATH = "/v1/chat/completions"


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ALL_ANSWERS)
def test_an_answer_costs_what_its_usage_says(name: str, indent: int | None) -> None:
    path, body, answer, expected = ALL_ANSWERS[name]
    quoted = quote(path, body)
    cost = cost_of(quoted, json.dumps(answer, indent=indent).encode(), JSON)
    assert (cost.cost, cost.mark, cost.model) == (expected, Mark.EXACT, "m")
    assert cost.upstream_id == {"chat": "chatcmpl-1", "responses": "resp_1", "messages": "msg_1"}.get(
        name, cost.upstream_id
    )


@pytest.mark.parametrize("name", ALL_ANSWERS)
@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=5))
@settings(max_examples=5, deadline=None)
def test_a_long_answer_is_scanned_wherever_it_is_split(name: str, sizes: list[int]) -> None:
    path, body, _, expected = ALL_ANSWERS[name]
    answer: Any = ALL_ANSWERS[name][2]
    padding = ['\\ and " and {[ "usage":{"prompt_tokens":9} ' * 40, {"usage": {"prompt_tokens": 9}}, 1.5] * 40
    longer = [{"pad": padding}, *answer] if isinstance(answer, list) else {"pad": padding, **answer}
    text = json.dumps(longer).encode()
    assert len(text) > KEPT_BYTES
    meter = quote(path, body).meter(50, 200, [JSON])
    at = 0
    pieces: list[bytes] = []
    while at < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[at : at + size])
        at += size
    assert feed(meter, *pieces) == text
    assert meter.result(whole=True, elapsed_ms=1).cost == expected


LIST_PATH = "/v1beta/models/m:streamGenerateContent"
PADS = pytest.mark.parametrize("pad", [0, KEPT_BYTES], ids=["short", "long"])


def list_of(pad: int, *more: bytes) -> bytes:
    elements = [{**gemini("x" * pad, 1)}, gemini("lo", 4, 3)]
    return b"[" + b",\r\n".join((*(json.dumps(one).encode() for one in elements), *more))


@PADS
def test_a_list_that_is_left_has_cost_more_than_it_says_so_far(pad: int) -> None:
    quoted = quote(LIST_PATH, {"contents": [], "generationConfig": {"maxOutputTokens": 1000}})
    left = cost_of(quoted, list_of(pad), JSON, whole=False)
    failed = cost_of(quoted, list_of(pad, b'{"error": {"code": 503}}]'), JSON)
    for early in (left, failed):
        assert (early.mark, early.cost["tokens"] >= 1000) == (Mark.ESTIMATED, True)
    whole = cost_of(quoted, list_of(pad, b"%b]" % json.dumps(gemini("", 4, 3)).encode()), JSON)
    assert (whole.cost, whole.mark) == (CHAT_COST, Mark.EXACT)


@PADS
@pytest.mark.parametrize("behind", [b"", b",", b",\r\n", b"\n"])
def test_a_list_is_ended_early_by_an_element_of_its_kind(pad: int, behind: bytes) -> None:
    meter = quote(LIST_PATH, {"contents": []}).meter(50, 200, [JSON])
    said = list_of(pad) + behind
    feed(meter, said[:90], said[90 : len(said) - len(behind)], behind)
    *elements, last = json.loads(said + (meter.cut_event() or b""))
    assert (len(elements), last["error"]["code"], last["error"]["status"]) == (2, 429, "RESOURCE_EXHAUSTED")


@PADS
@pytest.mark.parametrize(
    "rest", [b',{"candidates": [', b',{"a": "', b',{"a": "}"', b"]", b",[", b" " * 40], ids=lambda rest: rest.decode()
)
def test_it_is_not_ended_inside_of_an_element_or_behind_its_end(pad: int, rest: bytes) -> None:
    meter = quote(LIST_PATH, {"contents": []}).meter(50, 200, [JSON])
    feed(meter, list_of(pad), rest)
    assert not meter.cut_event()


@PADS
def test_the_end_of_an_element_is_waited_for_but_not_for_long(pad: int) -> None:
    meter = quote(LIST_PATH, {"contents": []}).meter(50, 200, [JSON])
    feed(meter, list_of(pad), b',{"a": "')
    assert meter.cut_event() is None
    meter.feed(b"x" * (KEPT_BYTES - 1))
    assert meter.cut_event() is None
    meter.feed(b"x")
    assert meter.cut_event() == b""


@PADS
def test_no_other_json_is_ended_early(pad: int) -> None:
    meter = quote(CHAT_PATH, ASKS).meter(50, 200, [JSON])
    feed(meter, b'{"pad": "%b", "choices": [{"index": 0}' % (b"x" * pad))
    assert meter.cut_event() == b""


def test_every_split_of_the_usage_is_found() -> None:
    text = json.dumps({"pad": "x" * KEPT_BYTES, **CHAT}, indent=1).encode()
    for at in range(text.rindex(b'"choices"'), len(text)):
        meter = quote(CHAT_PATH, ASKS).meter(50, 200, [JSON])
        feed(meter, text[:at], text[at : at + 1], text[at + 1 :])
        assert meter.result(whole=True, elapsed_ms=1).cost == CHAT_COST, text[at - 20 : at]


@pytest.mark.parametrize(
    "usage",
    [
        {**CHAT_USAGE, "prompt_tokens": -1},
        {**CHAT_USAGE, "completion_tokens": 7.5},
        {**CHAT_USAGE, "completion_tokens": "7"},
        {**CHAT_USAGE, "prompt_tokens": True},
        {**CHAT_USAGE, "prompt_tokens": 10**30},
        {**CHAT_USAGE, "total_tokens": 2**40 + 1},
        {**CHAT_USAGE, "prompt_tokens_details": {"cached_tokens": 101}},
        {**CHAT_USAGE, "prompt_tokens_details": [1]},
        {},
        None,
        [],
        7,
    ],
)
def test_a_usage_that_cannot_be_costs_what_was_reserved(usage: object) -> None:
    quoted = quote(CHAT_PATH, ASKS)
    for pad in ("", "x" * KEPT_BYTES):
        cost = cost_of(quoted, json.dumps({**CHAT, "pad": pad, "usage": usage}).encode(), JSON)
        assert cost.mark is Mark.ESTIMATED
        assert cost.cost == {unit: quoted.fixed[unit] + quoted.each[unit] * 50 for unit in ("USD", "tokens")}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<html>",
        b"[" * 100_000,
        b'{"usage":' * 20_000,
        b'{"usage":{"prompt_tokens":' + b"9" * 5000 + b"}}",
        b'{"usage":{"prompt_tokens":1e400,"completion_tokens":NaN}}',
        b'{"usage":{"prompt_tokens":1,"completion_tokens":2',
        b'{"usage":{"prompt_tokens":1,"pad":"' + b"x" * 100_000 + b'"}}',
        b'\xff\xfe{"usage":{}}',
        b'"usage":{"prompt_tokens":1,"completion_tokens":1}}}}]]]]' * 2000,
        b'{"choices":[{"usage":{"prompt_tokens":1,"completion_tokens":1}}]}',
    ],
)
def test_hostile_answers_cost_what_was_reserved(text: bytes) -> None:
    quoted = quote(CHAT_PATH, ASKS)
    cost = cost_of(quoted, text, JSON)
    assert cost.mark is Mark.ESTIMATED
    assert cost.cost["tokens"] == quoted.fixed["tokens"] + 50


def test_of_two_usages_the_last_counts() -> None:
    text = b'{"usage":{"prompt_tokens":1,"completion_tokens":1},"usage":%b}' % json.dumps(CHAT_USAGE).encode()
    assert cost_of(quote(CHAT_PATH, ASKS), text, JSON).cost == CHAT_COST
    assert (
        cost_of(quote(CHAT_PATH, ASKS), text[:1] + b'"pad":"%b",' % (b"x" * KEPT_BYTES) + text[1:], JSON).cost
        == CHAT_COST
    )


def test_a_usage_in_a_string_is_none() -> None:
    answer = {
        **CHAT,
        "choices": [{"message": {"content": '","usage":{"prompt_tokens":1,"completion_tokens":1},"x":"'}}],
    }
    assert cost_of(quote(CHAT_PATH, ASKS), json.dumps(answer).encode(), JSON).cost == CHAT_COST
    answer = {"usage": CHAT_USAGE, "zzz": {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}, "a": '\\"usage":{'}
    assert cost_of(quote(CHAT_PATH, ASKS), json.dumps(answer).encode(), JSON).cost == CHAT_COST


_SAID = st.sampled_from([json.dumps(CHAT_USAGE), '{"prompt_tokens":1,"completion_tokens":1}', '{"speed":"fast"}', "7"])
_VALUE = st.recursive(
    st.one_of(_SAID, st.sampled_from(['"usage"', '"\\\\\\",\\"usage\\":{"', '"}"', "[]", "null", "{"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2).map(lambda values: f"[{','.join(values)}]"),
        inner.map(lambda value: f'{{"usage": {value}}}'),
    ),
    max_leaves=4,
)
_NAME = st.sampled_from(['"usage"', '"us\\u0061ge"', '"choices"', '"model"', '"id"', '"service_tier"', '"\\"usage"'])


@given(members=st.lists(st.tuples(_NAME, st.one_of(_SAID, _VALUE)), max_size=5), at=st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_the_last_usage_of_all_counts_however_the_answer_comes(members: list[tuple[str, str]], at: int) -> None:
    text = f"{{{' ,'.join(f'{name} :{value}' for name, value in members)}}}".encode()
    quoted, head = quote(CHAT_PATH, ASKS), [b"HTTP/1.1 200 OK", JSON, b"x-request-id: r1"]
    whole, pieces = quoted.meter(50, 200, head, content=text), quoted.meter(50, 200, head)
    assert feed(whole, text) == feed(pieces, text[:at], text[at:]) == text
    cost = whole.result(whole=True, elapsed_ms=1)
    assert cost == pieces.result(whole=True, elapsed_ms=1)
    try:
        usage = json.loads(text).get("usage")
    except ValueError:
        return
    says = isinstance(usage, dict) and "prompt_tokens" in usage
    said = usage["prompt_tokens"] + usage["completion_tokens"] if says else quoted.fixed["tokens"] + 50
    assert cost.cost["tokens"] == said


def test_reasoning_that_is_left_out_of_the_output_is_counted_by_the_sum() -> None:
    """As x.ai and Gemini's OpenAI API do."""
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 137}
    assert cost_of(quote(CHAT_PATH, ASKS), json.dumps({"usage": usage}).encode(), JSON).cost["tokens"] == 137


@pytest.mark.parametrize("status", [400, 429, 500, 301])
def test_errors_cost_nothing(status: int) -> None:
    cost = quote(CHAT_PATH, ASKS).meter(50, status, [JSON, b"request-id: r1"]).result(whole=True, elapsed_ms=1)
    assert (cost.cost, cost.mark, cost.upstream_id) == ({}, Mark.EXACT, "r1")


def test_an_answer_that_is_cut_costs_what_was_reserved_unless_it_has_said() -> None:
    quoted, text = quote(CHAT_PATH, ASKS), json.dumps(CHAT).encode()
    assert cost_of(quoted, text[:100], JSON, whole=False).cost["tokens"] == quoted.fixed["tokens"] + 50


# --- compressed ---------------------------------------------------------------------------------------------------


def test_gzip_is_read_beside_and_passed_on() -> None:
    coded = gzip.compress(json.dumps(CHAT).encode())
    meter = quote(CHAT_PATH, ASKS).meter(50, 200, [JSON, b"Content-Encoding: GZIP"])
    assert feed(meter, *[coded[at : at + 1] for at in range(len(coded))]) == coded
    assert meter.result(whole=True, elapsed_ms=1).cost == CHAT_COST


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"deflate", b"gzip, gzip"])
def test_what_nobody_was_asked_for_is_not_read(coding: bytes) -> None:
    quoted = quote(CHAT_PATH, ASKS)
    cost = cost_of(quoted, json.dumps(CHAT).encode(), JSON, lines=(b"Content-Encoding: " + coding,))
    assert (cost.mark, cost.cost["tokens"]) == (Mark.ESTIMATED, quoted.fixed["tokens"] + 50)


def test_broken_gzip_costs_what_was_reserved() -> None:
    quoted = quote(CHAT_PATH, ASKS)
    cost = cost_of(quoted, b"\x1f\x8bnonsense" * 20, JSON, lines=(b"Content-Encoding: gzip",))
    assert (cost.mark, cost.cost["tokens"]) == (Mark.ESTIMATED, quoted.fixed["tokens"] + 50)


def test_a_bomb_is_given_up_and_memory_stays_flat() -> None:
    coder = zlib.compressobj(9, wbits=31)
    bomb = b"".join(coder.compress(b'{"pad":"' + b"x" * (1 << 20)) for _ in range(64)) + coder.flush()
    meter = quote(CHAT_PATH, ASKS).meter(50, 200, [JSON, b"Content-Encoding: gzip"])
    tracemalloc.start()
    assert feed(meter, bomb) == bomb
    assert tracemalloc.get_traced_memory()[1] < 3 * 1024 * 1024
    tracemalloc.stop()
    assert meter.result(whole=True, elapsed_ms=1).mark is Mark.ESTIMATED


def test_a_long_answer_leaves_memory_flat() -> None:
    piece = b"[" + b"0.0123456789," * 5000 + b"0],"
    meter = quote("/v1/embeddings", {"model": "m", "input": "hi"}).meter(0, 200, [JSON])
    meter.feed(b'{"data":[')
    tracemalloc.start()
    for _ in range(160):  # 10 MB
        meter.feed(piece)
    assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    tracemalloc.stop()
    meter.feed(b'0],"usage":{"prompt_tokens":5,"total_tokens":5}}')
    assert meter.result(whole=True, elapsed_ms=1).cost == {"USD": 5 * 10**6, "tokens": 5}


def test_a_long_gemini_answer_with_a_picture() -> None:
    answer = gemini("x" * KEPT_BYTES, 4, 3)
    cost = cost_of(quote("/v1beta/models/m:generateContent", {"contents": []}), json.dumps(answer).encode(), JSON)
    assert cost.cost == CHAT_COST
