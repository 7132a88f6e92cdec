"""Streams: what is forwarded, and what is read out of it, wherever it is split."""

from __future__ import annotations

import gzip
import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.budgets.spending import Mark
from gateway.metering.llm import SLACK_TOKENS
from gateway.metering.readers import KEPT_BYTES
from tests.metering.recorded import (
    ALL_STREAMS,
    CHAT_COST,
    CHAT_LAST,
    CHAT_STREAM,
    CHAT_USAGE,
    EVENTS,
    GEMINI_PATH,
    MESSAGES_STREAM,
    RESPONSES_STREAM,
    STREAMS,
    chunk,
    cost_of,
    feed,
    gemini,
    quote,
    sse,
)


def cut_at(text: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("name", ALL_STREAMS)
def test_a_stream_costs_what_its_usage_says(name: str) -> None:
    path, body, answer, expected = ALL_STREAMS[name]
    first = answer.index(b"\n\n") + 2
    for pieces in ([answer], [answer[:first], answer[first:]], re.findall(rb"(?s).+?\n\n", answer)):
        meter = quote(path, body).meter(50, 200, [EVENTS, b"X-Request-ID: req_1"])
        feed(meter, *pieces)
        cost = meter.result(whole=True, elapsed_ms=1)
        assert (cost.cost, cost.mark, cost.model, cost.upstream_id) == (expected, Mark.EXACT, "m", "req_1")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ALL_STREAMS)
@given(places=st.lists(st.integers(0, 1 << 16), max_size=12), size=st.sampled_from([0, 1, 3]))
@settings(max_examples=15, deadline=None)
def test_any_split_forwards_and_finds_the_same(name: str, end: str, places: list[int], size: int) -> None:
    path, body, answer, expected = ALL_STREAMS[name]
    answer = answer.replace(b"\n", end.encode())
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)] if size else cut_at(answer, places)
    meter = quote(path, body).meter(50, 200, [EVENTS])
    told = answer.replace(sse(CHAT_LAST, end=end), b"") if name == "chat" else answer
    assert feed(meter, *pieces) == told
    assert meter.result(whole=True, elapsed_ms=1).cost == expected


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_is_taken_out_is_an_event_to_the_byte_wherever_the_stream_is_split(end: str) -> None:
    path, body, answer, _ = ALL_STREAMS["chat"]
    answer = answer.replace(b"\n", end.encode())
    told = sse(CHAT_LAST, end=end)
    assert answer.count(told) == 1
    left = answer.replace(told, b"")
    for place in range(len(answer)):
        assert feed(quote(path, body).meter(50, 200, [EVENTS]), answer[:place], answer[place:]) == left


@pytest.mark.parametrize("name", ALL_STREAMS)
@given(places=st.lists(st.integers(0, 1 << 16), max_size=6), length=st.integers(0, 1 << 16))
@settings(max_examples=15, deadline=None)
def test_any_split_of_a_cut_stream_estimates_the_same(name: str, places: list[int], length: int) -> None:
    path, body, answer, _ = ALL_STREAMS[name]
    answer = answer[: length % (len(answer) + 1)]
    results = []
    events = re.findall(rb"(?s).+?(?:\n\n|\Z)", answer)
    for pieces in ([answer], cut_at(answer, places), events, [*events[:1], b"".join(events[1:])]):
        meter = quote(path, body).meter(50, 200, [EVENTS])
        if pieces != [answer]:
            meter.running(1)  # whether that is asked for makes no difference
        forwarded = feed(meter, *pieces)
        results.append((forwarded, meter.result(whole=False, elapsed_ms=1)))
    assert results == results[:1] * 4


def test_whole_events_are_the_same_object() -> None:
    meter = quote("/chat/completions", STREAMS).meter(50, 200, [EVENTS])
    event = sse(chunk(content="Hello"))
    assert meter.feed(event) is event


def test_the_clients_own_question_keeps_the_answer() -> None:
    body = {**STREAMS, "stream_options": {"include_usage": True}}
    quoted = quote("/chat/completions", body)
    meter = quoted.meter(50, 200, [EVENTS])
    assert json.loads(quoted.body(50) or b"") == body
    assert feed(meter, sse(*CHAT_STREAM)) == sse(*CHAT_STREAM)


def test_a_usage_beside_the_last_words_stays() -> None:
    """Mistral and vLLM say it with the last choice."""
    last = {**chunk(content="!"), "usage": CHAT_USAGE}
    last["choices"][0]["finish_reason"] = "stop"
    meter = quote("/chat/completions", STREAMS).meter(50, 200, [EVENTS])
    assert feed(meter, sse(last, "[DONE]")) == sse(last, "[DONE]")
    assert meter.result(whole=False, elapsed_ms=1).cost == CHAT_COST


def test_azures_first_event_without_a_choice_stays() -> None:
    first = {**chunk(), "choices": [], "prompt_filter_results": [{"content_filter_results": {"hate": {}}}]}
    meter = quote("/chat/completions", STREAMS).meter(50, 200, [EVENTS])
    assert feed(meter, sse(first, *CHAT_STREAM)) == sse(first, *CHAT_STREAM[:-1])


def test_an_event_that_is_longer_than_what_is_kept() -> None:
    long = "x" * KEPT_BYTES
    events = [dict(event) for event in RESPONSES_STREAM]
    response: Any = events[-1]["response"]
    events[-1]["response"] = {**response, "output": [{"type": "message", "content": [{"text": long}]}]}
    answer = sse(*events)
    for size in (len(answer), 4096, 1000):
        meter = quote("/responses", {"model": "m", "input": "hi", "stream": True}).meter(50, 200, [EVENTS])
        pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
        assert feed(meter, *pieces) == answer
        assert meter.result(whole=True, elapsed_ms=1).cost == CHAT_COST


def test_what_is_held_back_is_bounded() -> None:
    meter = quote("/chat/completions", STREAMS).meter(50, 200, [EVENTS])
    sent = forwarded = 0
    for _ in range(100):
        sent += 4096
        forwarded += len(meter.feed(b"x" * 4096))
        assert sent - forwarded <= KEPT_BYTES


# --- streams that end early ---------------------------------------------------------------------------------------


def test_a_cut_stream_costs_its_request_and_what_passed() -> None:
    quoted = quote("/chat/completions", {**STREAMS, "max_tokens": 1000})
    cost = cost_of(quoted, sse(*CHAT_STREAM[:3]), EVENTS, whole=False)
    output = len("Hello") + len(' \\"wor\\\\ld\\"') + SLACK_TOKENS
    assert cost.mark is Mark.ESTIMATED
    assert cost.cost == {unit: quoted.fixed[unit] + quoted.each[unit] * output for unit in ("USD", "tokens")}


def test_it_never_costs_more_than_was_reserved() -> None:
    quoted = quote("/chat/completions", {**STREAMS, "max_tokens": 20})
    cost = cost_of(quoted, sse(*CHAT_STREAM[:3]), EVENTS, whole=False)
    assert cost.cost == {unit: quoted.fixed[unit] + quoted.each[unit] * 20 for unit in ("USD", "tokens")}


@pytest.mark.parametrize(
    "body",
    [{**STREAMS, "model": "o3"}, {**STREAMS, "reasoning_effort": "high"}, {**STREAMS, "thinking": {"type": "x"}}],
)
def test_where_thinking_does_not_show_all_of_it_counts(body: dict[str, Any]) -> None:
    quoted = quote("/chat/completions", {**body, "max_tokens": 1000})
    cost = cost_of(quoted, sse(chunk(content="Hello")), EVENTS, whole=False)
    assert cost.cost["tokens"] == quoted.fixed["tokens"] + 1000


def test_before_the_first_word_all_of_it_counts() -> None:
    quoted = quote("/chat/completions", {**STREAMS, "max_tokens": 1000})
    assert cost_of(quoted, sse(chunk(content="")), EVENTS, whole=False).cost["tokens"] == quoted.fixed["tokens"] + 1000
    assert quoted.unanswered(1000, 5).cost["tokens"] == quoted.fixed["tokens"] + 1000


def test_what_a_message_said_of_its_input_is_exact() -> None:
    quoted = quote("/v1/messages", {**STREAMS, "max_tokens": 1000})
    cost = cost_of(quoted, sse(*MESSAGES_STREAM[:4]), EVENTS, whole=False)
    output = 1 + len("Hello") + SLACK_TOKENS
    assert cost.cost == {"USD": (10 + 3 + 30 + 25) * 10**6 + output * 3 * 10**6, "tokens": 60 + output}
    assert (cost.mark, cost.upstream_id) == (Mark.ESTIMATED, "msg_1")


@pytest.mark.parametrize(("logprobs", "counts"), [([], False), ([{"token": "Hel"}], True)])
def test_events_of_responses_count_by_their_text_alone(logprobs: list[Any], *, counts: bool) -> None:
    event = {"type": "response.output_text.delta", "sequence_number": 1, "delta": "Hel", "logprobs": logprobs}
    quoted = quote("/responses", {"model": "m", "stream": True, "max_output_tokens": 1000})
    cost = cost_of(quoted, sse(event), EVENTS, whole=False)
    output = (len(sse(event).strip()) if counts else len("Hel")) + SLACK_TOKENS
    assert cost.cost["tokens"] == quoted.fixed["tokens"] + output


def perplexity(word: str, said: str) -> dict[str, Any]:
    """Each event says what was said before, beside what is new."""
    choice = {"index": 0, "message": {"role": "assistant", "content": said}, "delta": {"content": word}}
    return {**chunk(), "choices": [choice]}


@pytest.mark.parametrize(
    "events",
    [
        [chunk(content="Hel"), chunk(reasoning="lo", content=" you")],
        [chunk(content={"text": "Hel"}), chunk(content=[{"type": "text", "text": "lo you"}])],
        [perplexity("Hel", "Hel"), perplexity("lo", "Hello" * 9), perplexity(" you", "Hello you" * 9)],
        [{"name": "l", **chunk(content=text)} for text in ("He", "o ", "yo")],
        [{"content": text, **chunk()} for text in ("choices", "no")],
    ],
)
def test_all_text_counts_once(events: list[dict[str, Any]]) -> None:
    quoted, spelled = quote("/chat/completions", {**STREAMS, "max_tokens": 5000}), [sse(event) for event in events]
    for pieces in (spelled, [b"".join(spelled)]):
        meter = quoted.meter(5000, 200, [EVENTS])
        assert feed(meter, *pieces) == b"".join(spelled)
        tokens = meter.result(whole=False, elapsed_ms=1).cost["tokens"]
        assert tokens == quoted.fixed["tokens"] + len("Hello you") + SLACK_TOKENS


def test_a_gemini_stream_that_is_cut_costs_what_it_said_and_some() -> None:
    quoted = quote(GEMINI_PATH, {"contents": [], "generationConfig": {"maxOutputTokens": 1000}})
    answer = sse(gemini("Hel", 5, 20)) + b'data: {"usageMetadata": {"promptTok'
    cost = cost_of(quoted, answer, EVENTS, whole=False)
    assert cost.cost["tokens"] == 100 + 25 + len("Hel") + SLACK_TOKENS


def test_a_whole_stream_without_usage_costs_all_that_was_reserved() -> None:
    quoted = quote("/chat/completions", STREAMS)
    cost = cost_of(quoted, sse(*CHAT_STREAM[:3], "[DONE]"), EVENTS)
    assert (cost.cost["tokens"], cost.mark) == (quoted.fixed["tokens"] + 50, Mark.ESTIMATED)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/chat/completions", {"error": {"message": "The server had an error", "type": "server_error"}}),
        ("/v1/messages", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
    ],
)
def test_an_error_in_the_stream_ends_it_early(path: str, error: dict[str, Any]) -> None:
    first = MESSAGES_STREAM[:4] if path == "/v1/messages" else CHAT_STREAM[:2]
    quoted = quote(path, {**STREAMS, "max_tokens": 1000})
    ended = cost_of(quoted, sse(*first, error), EVENTS)
    assert ended == cost_of(quoted, sse(*first), EVENTS, whole=False)
    assert ended.mark is Mark.ESTIMATED


def test_a_failed_response_costs_what_it_says() -> None:
    failed: dict[str, Any] = {**RESPONSES_STREAM[-1], "type": "response.failed"}
    failed["response"] = {**failed["response"], "status": "failed", "error": {"code": "server_error"}}
    cost = cost_of(quote("/responses", {"model": "m", "stream": True}), sse(*RESPONSES_STREAM[:2], failed), EVENTS)
    assert (cost.cost, cost.mark) == (CHAT_COST, Mark.EXACT)


def test_what_is_running_grows_with_the_text() -> None:
    quoted = quote("/chat/completions", STREAMS | {"max_tokens": None})
    meter = quoted.meter(quoted.most, 200, [EVENTS])
    meter.feed(sse(chunk(content="Hello")))
    first = meter.running(1)["tokens"]
    meter.feed(sse(chunk(content="x" * 5000)))
    assert meter.running(2)["tokens"] == first + 5000  # no limit was sent: the stream may pass its reservation


@pytest.mark.parametrize("name", ALL_STREAMS)
def test_a_stream_is_ended_by_an_event_of_its_kind(name: str) -> None:
    path, body, answer, _ = ALL_STREAMS[name]
    meter = quote(path, body).meter(50, 200, [EVENTS])
    held = answer.index(b"\n\n") + 9
    assert meter.feed(answer[:held]) == answer[: held - 7]  # half of an event is not passed on
    ending = meter.cut_event() or b""
    assert ending.endswith(b"\n\n")
    data = json.loads(ending.partition(b"data: ")[2].partition(b"\n\n")[0])
    match name:
        case "chat":
            assert data["error"]["type"] == "insufficient_quota"
            assert ending.endswith(b"data: [DONE]\n\n")
        case "responses":
            assert (data["type"], data["code"], data["sequence_number"]) == ("error", "budget_exceeded", 1)
        case "messages":
            assert (data["type"], data["error"]["type"]) == ("error", "rate_limit_error")
        case "gemini":
            assert data["error"]["code"] == 429


# --- compressed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL_STREAMS)
@given(places=st.lists(st.integers(0, 1 << 16), max_size=8))
@settings(max_examples=5, deadline=None)
def test_gzip_is_passed_on_as_it_is(name: str, places: list[int]) -> None:
    path, body, answer, expected = ALL_STREAMS[name]
    coded = gzip.compress(answer[:50]) + gzip.compress(answer[50:])
    meter = quote(path, body).meter(50, 200, [EVENTS, b"content-encoding: gzip"])
    assert feed(meter, *cut_at(coded, places)) == coded
    assert meter.result(whole=True, elapsed_ms=1).cost == expected
    assert meter.cut_event() == b""
