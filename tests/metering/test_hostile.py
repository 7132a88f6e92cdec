"""Requests that are made to look cheaper than they are."""

from __future__ import annotations

import contextlib
import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from gateway.budgets.budget import MAX_ATOMS
from gateway.budgets.spending import Mark
from gateway.errors import PriceUnknown
from gateway.metering.costs import CostTable, FixedPrice
from gateway.metering.fields import asked
from gateway.metering.pricing import pricing_of
from gateway.metering.rates import Rates
from gateway.metering.requests import read
from gateway.metering.shapes import MAX_TIER_CHARACTERS, Shape
from tests.metering.recorded import (
    ASKS,
    CHAT,
    CHAT_COST,
    EVENTS,
    JSON,
    MESSAGE,
    MESSAGES_STREAM,
    NOW_S,
    RESPONSE,
    STREAMS,
    chunk,
    cost_of,
    feed,
    pricing,
    quote,
    sse,
)

if TYPE_CHECKING:
    from gateway.metering import Quote

FLEX_S = 1_796_000_000.0
"""When `genai-prices` knows prices by tier."""
CHAT_PATH = "/v1/chat/completions"
GEMINI_PATH = "/v1beta/models/m:generateContent"


# --- what is read is what others read ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Model", "MODEL", "MAX_TOKENS", "\u017ftream", "max_to\u212aens"])
def test_names_that_some_servers_read_in_any_case_are_not_read_past(name: str) -> None:
    """Go's encoding/json takes `MODEL` for `model`, and U+212A for a k."""
    with pytest.raises(PriceUnknown, match="JSON cannot be read"):
        quote(CHAT_PATH, {**ASKS, name: "o3"})


def test_names_of_other_members_may_be_in_any_case() -> None:
    assert quote(CHAT_PATH, {**ASKS, "X-Mine": 1}).model == "m"


def test_two_settings_of_geminis_are_not_one() -> None:
    both = {"generationConfig": {"maxOutputTokens": 9}, "generation_config": {"maxOutputTokens": 60_000}}
    with pytest.raises(PriceUnknown, match="JSON cannot be read"):
        quote(GEMINI_PATH, both)


def test_both_spellings_of_geminis_limit_are_lowered() -> None:
    quoted = quote(GEMINI_PATH, {"generationConfig": {"maxOutputTokens": 90, "max_output_tokens": 50}}, clamp=True)
    assert json.loads(quoted.body(20) or b"") == {"generationConfig": {"maxOutputTokens": 20, "max_output_tokens": 20}}


def test_a_member_that_is_there_twice_below_the_top_is_an_error_like_any_other() -> None:
    body = json.dumps(STREAMS)[:-1] + ', "stream_options": {"include_usage": true, "include_usage": false}}'
    with pytest.raises(PriceUnknown, match="JSON cannot be read"):
        quote(CHAT_PATH, body.encode())


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Encoding: identity", b"Content-Encoding: deflate"),
        (b"content-encoding: identity\r\nA: b\r\ncontent-encoding: br",),
        (b"Content-Type: application/json; charset=utf-7",),
        (b'Content-Type: application/json; CHARSET = "IBM037"',),
    ],
)
def test_a_body_that_others_decode_otherwise_is_not_read(lines: tuple[bytes, ...]) -> None:
    with pytest.raises(PriceUnknown, match="compressed"):
        pricing().quote(b"POST", CHAT_PATH.encode(), lines, json.dumps(ASKS).encode(), NOW_S)


@pytest.mark.parametrize("kind", [b"application/json", b"application/json; charset=UTF-8", b'a/b;charset="utf-8"'])
def test_a_body_in_utf_8_is_read(kind: bytes) -> None:
    lines = (b"Content-Type: " + kind, b"Content-Encoding: identity")
    assert pricing().quote(b"POST", CHAT_PATH.encode(), lines, json.dumps(ASKS).encode(), NOW_S).model == "m"


@pytest.mark.parametrize("line", [b"Content-Encoding: a", b"Content-Type: x; charset=a"])
def test_to_find_that_out_takes_no_time_that_grows_with_the_square_of_a_value(line: bytes) -> None:
    """A field of 16 kB took two seconds, in which nobody else had an answer; one of this length would take minutes."""

    def give_up(_number: int, _frame: object) -> None:
        raise AssertionError("it takes seconds")

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, 3)  # of the process's own time, however busy the machine is
    try:
        test_a_body_that_others_decode_otherwise_is_not_read((line + b" " * 200_000 + b"b",))
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


# --- paths and methods ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/openai/deployments/m/../../../v1/chat/completions",
        "/v1/chat/completions/../messages",
        "/v1//chat/completions",
        "/v1/chat/completions%3F/moderations",
        "/v1/chat/completions;/moderations",
        "/v1/chat/completions%23/messages/count_tokens",
    ],
)
def test_a_path_that_some_read_otherwise_has_no_price(path: str) -> None:
    """With dot segments the model's name is taken from a part of the path that is none for the API."""
    with pytest.raises(PriceUnknown):
        quote(path, {**ASKS, "model": "o3"})


@pytest.mark.parametrize(
    "line",
    [
        b"X-Method-Override: POST",
        b"X-HTTP-Method: POST",
        b"X_HTTP_METHOD_OVERRIDE: POST",
        b"X-Original-URL: /v1/chat/completions",
        b"X-Rewrite-URL: /v1/chat/completions",
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [(b"GET", b"/v1/models"), (b"POST", b"/v1/moderations"), (b"POST", b"/v1/embeddings")]
)
def test_what_a_field_may_turn_into_another_request_is_not_priced(line: bytes, method: bytes, path: bytes) -> None:
    with pytest.raises(PriceUnknown):
        pricing().quote(method, path, (b"", line), json.dumps(ASKS).encode(), NOW_S)


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("fields=candidates,usageMetadata.promptTokenCount", b"A: b"),
        ("alt=sse&%24f%69elds=*", b"A: b"),
        (f"a={'b' * 2000}&fields=*", b"A: b"),
        ("alt=sse", b"x-goog-fieldMask: candidates"),
    ],
)
def test_what_an_answer_cost_cannot_be_left_out_of_it(query: str, line: bytes) -> None:
    """Google's APIs let the client choose members of the answer: those that count output would be missing."""
    path, usual = f"{GEMINI_PATH}?{query}".encode(), f"{GEMINI_PATH}?alt=sse&x=fields".encode()
    _, kept, _ = asked(b"\r\nA: b", b"\r\nA: b")
    assert pricing().quote(b"POST", usual, (kept,), b"{}", NOW_S).model == "m"
    is_usual, _, _ = asked(b"\r\n" + line, b"\r\n" + line)
    asks = path, () if is_usual else (line,), b"{}", NOW_S
    with pytest.raises(PriceUnknown, match="`fields` and X-Goog-FieldMask"):
        pricing().quote(b"POST", *asks)
    lenient = pricing(unknown_price="warn").quote(b"POST", *asks)
    said = json.dumps({"usageMetadata": {"promptTokenCount": 100, "totalTokenCount": 107}}).encode()
    assert cost_of(lenient, said, JSON).cost["tokens"] == 107


MAPS = CostTable(
    fixed=(
        FixedPrice(b"GET", b"/geocode", {"USD": 5}),
        FixedPrice(b"GET", b"/r%61ster/*", {"USD": 4}),
        FixedPrice(b"*", b"/*", {"USD": 1}),
    )
)


@pytest.mark.parametrize(
    ("path", "price"),
    [
        (b"/geocode", 5),
        (b"/geoc%6fde", 5),
        (b"/geoc%256Fde?x=1", 5),
        (b"/GeoCode", 5),
        (b"/geocode/", 5),
        (b"/raster/1", 4),
        (b"/R%41ster/1", 4),
        (b"/raster/", 4),
        (b"/other", 1),
        (b"", 1),
        (b"/", 1),
    ],
)
def test_a_price_is_not_dodged_by_another_spelling_of_the_path(path: bytes, price: int) -> None:
    quoted = pricing_of(MAPS, "https://maps.example", clamp=False).quote(b"GET", path, (), None, NOW_S)
    assert quoted.fixed == {"USD": price}


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (b"/x", b"X-HTTP-Method-Override: GET"),
        (b"/x", b"X-Original-URL: /geocode"),
        (b"/x/geocode", b"SCRIPT_NAME: /x"),
        (b"/geocode?_method=GET", b"A: b"),
    ],
)
def test_nor_by_a_field_or_a_query_that_names_another(path: bytes, line: bytes) -> None:
    with pytest.raises(PriceUnknown):
        pricing_of(MAPS, "https://maps.example", clamp=False).quote(b"POST", path, (b"", line), None, NOW_S)


@pytest.mark.parametrize("path", [b"/a//b", b"/projects/group%2Fname", b"/a/../b"])
def test_where_all_requests_cost_the_same_their_paths_do_not_matter(path: bytes) -> None:
    flat = CostTable(fixed=(FixedPrice(b"*", b"/*", {"USD": 7}),))
    lines = (b"", b"X-HTTP-Method-Override: PATCH")
    assert pricing_of(flat, "https://x.example", clamp=False).quote(b"GET", path, lines, None, 0).fixed == {"USD": 7}


# --- what cannot be read costs what the answer says -----------------------------------------------------------------


def test_a_request_that_is_not_read_is_held_in_tokens_as_well() -> None:
    """Else a budget of tokens would not see it: what nothing is held of is not counted."""
    assert quote(CHAT_PATH, None, reserve={"USD": 5}).fixed == {"USD": 5, "tokens": 1_000_000}
    assert quote(CHAT_PATH, None, reserve={"USD": 5, "tokens": 9}).fixed == {"USD": 5, "tokens": 9}


def test_nor_are_tokens_forgotten_where_the_length_does_not_bound_them() -> None:
    body = {"model": "m", "max_output_tokens": 10, "previous_response_id": "resp_1"}
    assert quote("/v1/responses", body, reserve={"USD": 5}).fixed["tokens"] == len(json.dumps(body)) + 1_000_000
    both = quote("/v1/responses", body, reserve={"USD": 5, "tokens": 9})
    assert both.fixed["tokens"] == len(json.dumps(body)) + 9


@pytest.mark.parametrize("body", [None, b"\xff", json.dumps(ASKS).encode("utf-16")])
def test_where_unknown_prices_are_allowed_the_answer_still_counts(body: bytes | None) -> None:
    """Else a megabyte of spaces would be a way to have any model for the default, or for nothing."""
    answer = json.dumps(CHAT | {"model": "m"}).encode()
    expected = cost_of(quote(CHAT_PATH, ASKS), answer, JSON).cost
    for table in ({"unknown_price": "default", "default": {"USD": 3}}, {"unknown_price": "warn"}):
        quoted = quote(CHAT_PATH, body, **table)
        assert quoted.fixed["USD"] > 0
        assert quoted.fixed["tokens"] > 0
        assert cost_of(quoted, answer, JSON).cost == expected


@pytest.mark.parametrize("body", [{"fallbacks": "default"}, {"models": ["m", "o3"]}, {"model": ""}])
def test_and_that_of_one_of_several_models_if_its_answer_names_it(body: dict[str, Any]) -> None:
    expected = cost_of(quote(CHAT_PATH, ASKS), json.dumps(CHAT | {"model": "m"}).encode(), JSON).cost
    tables: list[dict[str, Any]] = [{"unknown_price": "default", "default": {"USD": 3}}, {"unknown_price": "warn"}]
    for table in tables:
        quoted = quote(CHAT_PATH, {**ASKS, **body}, **table)
        assert cost_of(quoted, json.dumps(CHAT | {"model": "m"}).encode(), JSON).cost == expected
        unknown = cost_of(quoted, json.dumps(CHAT | {"model": "nobody's"}).encode(), JSON)
        assert unknown.cost["USD"] == table.get("default", {}).get("USD", 0)


def test_a_model_with_a_name_of_any_length_is_none() -> None:
    """Its name goes into every entry of the ledger."""
    with pytest.raises(PriceUnknown, match="names no model"):
        quote(CHAT_PATH, {**ASKS, "model": "m" * 300})
    assert len(quote(CHAT_PATH, {**ASKS, "model": "x" * 10_000}, unknown_price="warn").model) <= 256
    table = CostTable(llm=True, prices={"m*": Rates(1, 1)}, unknown_price="default", default={"USD": 8})
    assert (
        pricing_of(table, "", clamp=False)
        .quote(b"POST", CHAT_PATH.encode(), (), json.dumps({**ASKS, "model": "m" * 300}).encode(), 0)
        .fixed["USD"]
        == 8
    )


def test_a_tier_of_any_length_is_none_either() -> None:
    """It is remembered with the price that it has, or has not, of a thousand of them."""
    wanted = read(Shape.CHAT, json.dumps({**ASKS, "service_tier": "t" * 10_000, "speed": "s" * 10_000}).encode())
    assert wanted is not None
    assert (len(wanted.tier), len(wanted.speed)) == (MAX_TIER_CHARACTERS, MAX_TIER_CHARACTERS)


@pytest.mark.parametrize(
    ("path", "others"),
    [
        (CHAT_PATH, {"models": ["m", "o3"]}),
        ("/v1/messages", {"fallbacks": [{"model": "o3", "max_tokens": 64_000}]}),
        ("/v1/messages", {"fallbacks": "default"}),
    ],
)
def test_of_several_models_none_is_the_one(path: str, others: dict[str, Any]) -> None:
    """OpenRouter takes the next of `models` where the first is out, and bills that one; Anthropic where it declines."""
    with pytest.raises(PriceUnknown, match="names no model, or several"):
        quote(path, {**ASKS, **others})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": [{"role": "user", "content": "hi"}, {"id": "msg_1"}]}),
        ("/v1/responses", {"input": [{"id": "msg_1", "type": None}], "max_output_tokens": 9}),
        (CHAT_PATH, {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}),
        (CHAT_PATH, {"messages": [], "data_sources": [{"type": "text"}]}),
        (CHAT_PATH, {"messages": [], "search_parameters": {"mode": "on"}}),
    ],
)
def test_what_is_stored_or_found_may_be_more_than_its_name(path: str, body: dict[str, Any]) -> None:
    priced = pricing_of(CostTable(llm=True, prices={"*": Rates(1, 1)}), "", clamp=False)
    sent = json.dumps({"model": "gpt-audio", **body}).encode()
    assert priced.quote(b"POST", path.encode(), (), sent, NOW_S).fixed["tokens"] > 1_000_000
    plain = {"model": "m", "input": [{"role": "user", "content": "hi"}, {"type": "reasoning", "id": "r"}]}
    assert quote("/v1/responses", plain).fixed["tokens"] == len(json.dumps(plain))


def test_each_of_many_prompts_has_an_answer() -> None:
    """Lowered by too few, the limit would let all of them together write more than was granted."""
    quoted = quote("/v1/completions", {"model": "m", "prompt": ["hi"] * 4000, "max_tokens": 50}, clamp=True)
    assert quoted.most == 4000 * 50
    assert json.loads(quoted.body(4000 * 20) or b"")["max_tokens"] == 20
    most = quote("/v1/completions", {"model": "m", "prompt": ["hi"] * 40_000, "n": 100_000, "max_tokens": 10**7})
    assert all(0 < atoms < MAX_ATOMS for atoms in most.unanswered(most.most, 0).cost.values())


def test_what_hides_a_name_is_sent_as_it_was_read() -> None:
    """Of two members of one name, below the top, some read the first."""
    text = '{"model": "m", "m\\u0061x_tokens": 5, "messages": [{"content": "a", "content": "b"}]}'
    assert quote(CHAT_PATH, text.encode()).body(5) == b'{"model":"m","max_tokens":5,"messages":[{"content":"b"}]}'


@pytest.mark.parametrize(
    ("lines", "more", "is_long"),
    [
        ((), {}, False),
        ((b"x", b"anthropic-beta: other"), {}, False),
        ((b"x", b"a: b\r\nanthropic-beta: other,context-1m-2025-08-07"), {}, True),
        ((), {"anthropic_beta": ["context-1m-2025-08-07"]}, True),
    ],
)
def test_who_asks_for_more_than_its_context_is_reserved_more(
    lines: tuple[bytes, ...], more: dict[str, object], *, is_long: bool
) -> None:
    """Of Claude Sonnet 4.5, the context is 200,000 tokens, and a million for who asks for that."""
    document = [{"role": "user", "content": [{"type": "document"}]}]
    body = {**ASKS, **more, "model": "claude-sonnet-4-5", "messages": document}
    claude = pricing_of(CostTable(llm=True), "https://api.anthropic.com", clamp=False)
    quoted = claude.quote(b"POST", b"/v1/messages", lines, json.dumps(body).encode(), NOW_S)
    assert quoted.fixed["tokens"] > (1_000_000 if is_long else 200_000)
    assert (quoted.fixed["tokens"] > 1_000_000) is is_long


@pytest.mark.parametrize(
    ("form", "is_usual"),
    [
        (b"\r\nanthropic-beta: other\r\nx-request-id: %b", True),
        (b"\r\nanthropic-beta: context-1m-2025-08-07", False),
        (b"\r\nx-request-id: %b\r\nAnthropic-Beta: %b", False),
    ],
)
def test_what_asks_for_more_is_looked_at_in_each_request(form: bytes, *, is_usual: bool) -> None:
    value = b"context-1m-2025-08-07"
    assert asked(form.replace(b"%b", value), form)[0] is is_usual


@pytest.mark.parametrize(
    ("url", "model", "is_known"),
    [
        ("https://api.openai.com/v1", "gpt-4o-audio-preview", False),
        ("https://api.openai.com/v1", "gpt-audio", True),
        ("https://openrouter.ai/api/v1", "openai/gpt-audio", False),
        ("https://openrouter.ai/api/v1", "google/gemini-2.5-flash-image", False),
    ],
)
def test_sound_and_pictures_are_not_had_at_the_price_of_text(url: str, model: str, *, is_known: bool) -> None:
    """Of some models, the package knows only what their text costs: a tenth."""
    body = json.dumps({**ASKS, "model": model}).encode()
    with contextlib.nullcontext() if is_known else pytest.raises(PriceUnknown, match=model):
        pricing_of(CostTable(llm=True), url, clamp=False).quote(b"POST", CHAT_PATH.encode(), (), body, NOW_S)


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        ({"cost": 0.0123}, 12_300_000),
        ({"cost": 1e-10}, 1),
        ({"cost": 0}, 0),
        ({"cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}, 21_000_000),
        ({"cost": 0.001, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.001}}, 1_000_000),
        ({"cost": 0.001, "is_byok": True}, None),
        ({"cost": -1}, None),
        ({"cost": "free"}, None),
        ({"cost": {"request_cost": 0.005, "total_cost": 0.00502}}, 5_020_000),
        ({"cost": {"total_cost": None}}, None),
        ({"cost_in_usd_ticks": 377_560_001}, 37_756_001),
        ({"cost_in_usd_ticks": -1}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("host", ["https://openrouter.ai/api/v1", "https://api.x.ai/v1", "https://api.perplexity.ai"])
def test_of_some_the_answer_says_what_it_cost(host: str, usage: dict[str, Any], usd: int | None) -> None:
    """A model of OpenRouter's has many prices, and `provider` in the request chooses among them; the others search."""
    answer = json.dumps(CHAT | {"usage": CHAT["usage"] | usage}).encode()  # type: ignore[operator]
    for url, is_told in ((host, usd is not None), ("https://api.example/v1", False)):
        quoted = pricing(url).quote(b"POST", CHAT_PATH.encode(), (), json.dumps(ASKS).encode(), NOW_S)
        told = cost_of(quoted, answer, JSON)
        assert told.mark is Mark.EXACT
        assert told.cost == {"USD": usd if is_told else CHAT_COST["USD"], "tokens": CHAT_COST["tokens"]}
        searching = json.dumps({**ASKS, "web_search_options": {}}).encode()  # that is in the cost which the answer says
        searched = cost_of(pricing(url).quote(b"POST", CHAT_PATH.encode(), (), searching, NOW_S), answer, JSON)
        assert searched.cost["USD"] == told.cost["USD"] + (0 if is_told else 30_000_000)


def test_a_model_has_its_own_price_in_any_case() -> None:
    """Azure's deployments are found by any case of their names."""
    table = CostTable(llm=True, prices={"dear-*": Rates(8, 8), "*": Rates(1, 1), "Dear": Rates(9, 9)})
    for name, rate in (("Dear", 9), ("DEAR", 9), ("Dear-x", 8), ("other", 1)):
        found = pricing_of(table, "", clamp=False)._find(0.0, name, "", "")  # type: ignore[attr-defined]
        assert found.base.input == rate


# --- what goes on behind the answer's back ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "more"),
    [("/v1/responses", {"background": True}), (CHAT_PATH, {"n": 3}), ("/v1/completions", {"prompt": ["a", "b"]})],
)
def test_a_stream_that_is_left_costs_all_where_more_than_what_passed_may_be_made(path: str, more: Any) -> None:
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    quoted = quote(path, {"model": "m", "stream": True, limit: 5000, **more})
    delta = {"type": "response.output_text.delta", "delta": "Hi"}
    choices = {"choices": [{"index": 0, "text": "Hi", "delta": {"content": "Hi"}}]}
    left = cost_of(quoted, sse(delta if path == "/v1/responses" else choices), EVENTS, whole=False)
    assert left.cost["tokens"] == quoted.fixed["tokens"] + quoted.most


def test_where_one_of_several_answers_ends_the_others_go_on() -> None:
    """VLLM tells usage with each piece, if asked to: whoever leaves at the first end would pay for that one only."""
    last = {**chunk(content="Hi"), "usage": {"prompt_tokens": 9, "completion_tokens": 1}}
    last["choices"][0]["finish_reason"] = "stop"
    for choices, mark, most in ((5, Mark.ESTIMATED, 9 + 5 * 50), (1, Mark.EXACT, 10)):
        left = cost_of(quote(CHAT_PATH, {**STREAMS, "n": choices}), sse(last), EVENTS, whole=False)
        assert (left.mark, left.cost["tokens"]) == (mark, most)
    candidate = {"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}
    said = {"candidates": [candidate], "usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 10}}
    quoted = quote(GEMINI_PATH, {"generationConfig": {"candidateCount": 2, "maxOutputTokens": 50}})
    assert cost_of(quoted, sse(said), EVENTS, whole=False).mark is Mark.ESTIMATED


def test_a_response_in_the_background_is_held_to_cost_what_was_reserved() -> None:
    quoted = quote("/v1/responses", {"model": "m", "background": True, "max_output_tokens": 5000})
    queued = cost_of(quoted, json.dumps(RESPONSE | {"status": "queued", "usage": None}).encode(), JSON)
    assert (queued.cost["tokens"], queued.mark) == (quoted.fixed["tokens"] + 5000, Mark.ESTIMATED)


def test_a_discount_has_to_be_confirmed() -> None:
    """A server that does not know `flex` leaves it out of its answer, and bills the whole price."""
    table = CostTable(llm=True)
    body = json.dumps({**ASKS, "model": "gpt-5", "service_tier": "flex"}).encode()
    usual = json.dumps({**ASKS, "model": "gpt-5", "service_tier": "default"}).encode()
    quoted, plain = (
        pricing_of(table, "https://api.openai.com/v1", clamp=False).quote(b"POST", CHAT_PATH.encode(), (), one, FLEX_S)
        for one in (body, usual)
    )
    answer = {name: value for name, value in CHAT.items() if name != "service_tier"}
    whole = cost_of(plain, json.dumps(answer).encode(), JSON).cost["USD"]
    assert quoted.each == plain.each
    assert cost_of(quoted, json.dumps(answer).encode(), JSON).cost["USD"] == whole
    assert cost_of(quoted, json.dumps(answer | {"service_tier": "flex"}).encode(), JSON).cost["USD"] == whole / 2


def test_what_a_message_says_at_its_begin_is_not_what_it_cost() -> None:
    """Some servers that speak as Anthropic's tell no usage at the end, or none of the input at the begin."""
    quoted = quote("/v1/messages", {**STREAMS, "max_tokens": 5000})
    said = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x" * 1000}}
    end = ({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, {"type": "message_stop"})
    for asks, whole in ((10, True), (10, False), (0, False)):
        begin = {"type": "message_start", "message": {**MESSAGE, "usage": {"input_tokens": asks, "output_tokens": 1}}}
        told = cost_of(quoted, sse(begin, said, *end), EVENTS, whole=whole)
        assert told.mark is Mark.ESTIMATED
        assert told.cost["tokens"] >= (asks or quoted.fixed["tokens"]) + 1000


def test_a_picture_that_comes_with_its_usage_costs_what_that_says() -> None:
    part = {"inlineData": {"data": "A" * 200_000}}
    said: dict[str, Any] = {"candidates": [{"content": {"parts": [part]}, "finishReason": "STOP"}]}
    said |= {"usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 1295}}
    told = cost_of(quote(GEMINI_PATH, {"contents": []}), sse(said), EVENTS)
    assert (told.mark, told.cost["tokens"]) == (Mark.EXACT, 1295)


def test_a_deployment_that_is_left_costs_what_its_model_may_have_thought() -> None:
    """Its own name says nothing of that; what answers says which model it is."""
    quoted = quote("/openai/deployments/m/chat/completions", {**STREAMS, "max_tokens": 5000})
    left = cost_of(quoted, sse({**chunk(content="Hi"), "model": "o3-2025-04-16"}), EVENTS, whole=False)
    assert left.cost["tokens"] == quoted.fixed["tokens"] + 5000


@pytest.mark.parametrize(("status", "tokens"), [(504, 50), (524, 50), (500, None), (429, None)])
def test_who_has_not_waited_for_an_answer_may_have_to_pay_for_it(status: int, tokens: int | None) -> None:
    quoted = quote(CHAT_PATH, ASKS)
    told = quoted.meter(50, status, (b"", b"X-Request-Id: r")).result(whole=True, elapsed_ms=1)
    assert told.cost.get("tokens") == (None if tokens is None else quoted.fixed["tokens"] + tokens)
    assert (told.mark, told.upstream_id) == (Mark.EXACT if tokens is None else Mark.ESTIMATED, "r")


# --- and what must not cost too much ---------------------------------------------------------------------------------


def test_text_before_a_usage_that_says_nothing_is_not_forgotten() -> None:
    said = {"choices": [{"index": 0, "delta": {"content": "x" * 3000}}]}
    nothing = {"choices": [{"index": 0, "delta": {"content": "y"}}], "usage": {"prompt_tokens": -1}}
    quoted = quote(CHAT_PATH, {**STREAMS, "max_tokens": 9000})
    left = cost_of(quoted, sse(said, nothing), EVENTS, whole=False)
    assert left.cost["tokens"] >= quoted.fixed["tokens"] + 3000


def test_a_stream_that_is_nothing_but_an_error_costs_what_an_error_does() -> None:
    """Anthropic says that it is overloaded as the only event of an answer whose status is 200."""
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    for events, mark in (((error,), Mark.EXACT), ((*MESSAGES_STREAM[:2], error), Mark.ESTIMATED)):
        told = cost_of(quote("/v1/messages", STREAMS), sse(*events), EVENTS)
        assert (told.mark, told.cost["USD"] == 0) == (mark, mark is Mark.EXACT)
    for path in (CHAT_PATH, GEMINI_PATH):
        told = cost_of(quote(path, STREAMS), sse({"error": {"message": "Overloaded"}}), EVENTS)
        assert told.cost["tokens"] >= quote(path, STREAMS).fixed["tokens"]


def test_a_picture_of_a_message_is_a_picture() -> None:
    """Its source has a type of its own, and is no reason to hold the whole of a model's context."""
    for source, data_bytes in (({"type": "base64", "data": "AAAA"}, 4), ({"type": "url", "url": "https://x"}, 0)):
        for model, tokens in (("claude-m", 10_000), ("m", 50_000)):  # as gpt-4o-mini is had by this API of OpenRouter's
            body = {
                **ASKS,
                "model": model,
                "messages": [{"role": "user", "content": [{"type": "image", "source": source}]}],
            }
            assert quote("/v1/messages", body).fixed["tokens"] == len(json.dumps(body)) - data_bytes + tokens


@pytest.mark.parametrize("kind", [[], {}, {"a": []}, 1, None])
@pytest.mark.parametrize("name", ["type", "content", "image_url", "source"])
def test_what_is_none_beside_a_picture_is_text(name: str, kind: object) -> None:
    """A list for a `type` ended the client's connection in place of an answer."""
    picture = {"type": "image_url", "image_url": {"url": "https://x"}}
    body = {**ASKS, "messages": [{"role": "user", "content": [picture, {name: kind}]}]}
    assert quote(CHAT_PATH, body).fixed["tokens"] == len(json.dumps(body)) + 50_000


# --- prices that depend on more than the model ------------------------------------------------------------------------


def test_a_deployment_in_the_targets_own_url_names_the_model() -> None:
    """Azure does not read the one in the body."""
    url = "https://x.openai.azure.com/openai/deployments/o3"
    assert pricing(url).quote(b"POST", b"/chat/completions", (), json.dumps(ASKS).encode(), NOW_S).model == "o3"


@pytest.mark.parametrize("more", [{"service_tier": "priority"}, {"service_tier": "ultrafast"}, {"speed": "fast"}])
def test_a_tier_whose_price_nobody_has_said_is_refused(more: dict[str, str]) -> None:
    with pytest.raises(PriceUnknown, match="service tier or speed"):
        quote(CHAT_PATH, {**ASKS, **more})
    assert quote(CHAT_PATH, {**ASKS, **more}, unknown_price="warn").model == "m"


GEMINI = "https://generativelanguage.googleapis.com"
TTS, FLASH = "gemini-3.8-flash-tts", "gemini-2.5-flash"


@pytest.mark.parametrize("tier", ["priority", "PRIORITY", "SERVICE_TIER_PRIORITY"])
@pytest.mark.parametrize("name", ["serviceTier", "service_tier"])
def test_a_tier_of_geminis_is_paid_as_it_is_spelled_there(name: str, tier: str) -> None:
    """Google's SDK spells it in the first way, and was charged the usual price for what costs 1.8 times that."""

    def quoted(model: str, **more: object) -> Quote:
        body = {"contents": [], "generationConfig": {"maxOutputTokens": 100}, **more}
        pricing = pricing_of(CostTable(llm=True), GEMINI, clamp=True)
        path = f"/v1beta/models/{model}:generateContent"
        return pricing.quote(b"POST", path.encode(), (), json.dumps(body).encode(), FLEX_S)

    usage = {"promptTokenCount": 10, "candidatesTokenCount": 100, "totalTokenCount": 110}
    plain, dear = quoted(TTS), quoted(TTS, **{name: tier})
    paid = cost_of(plain, json.dumps({"usageMetadata": usage}).encode(), JSON).cost["USD"]
    assert dear.each["USD"] == plain.each["USD"] * 9 // 5
    for said in ({}, {"serviceTier": tier}):
        assert cost_of(dear, json.dumps({"usageMetadata": usage | said}).encode(), JSON).cost["USD"] == paid * 9 // 5
    less = json.dumps({"usageMetadata": usage | {"serviceTier": "standard"}}).encode()  # it was too busy
    assert cost_of(dear, less, JSON).cost["USD"] == paid
    field = (b"X-Gemini-Service-Tier: standard",)
    assert cost_of(dear, json.dumps({"usageMetadata": usage}).encode(), JSON, lines=field).cost["USD"] == paid
    with pytest.raises(PriceUnknown, match="service tier"):
        quoted(FLASH, **{name: tier})  # whose price at this tier is not in the package
    assert quoted(FLASH, **{name: "standard"}).each == quoted(FLASH).each
    with pytest.raises(PriceUnknown, match="service tier"):
        quoted(FLASH, serviceTier=3)  # an enum has a number, too
    with pytest.raises(PriceUnknown, match="JSON cannot be read"):
        quoted(TTS, serviceTier="standard", service_tier="priority")


@pytest.mark.parametrize(("value", "is_dear"), [("priority", True), (" flex", False), ("flexible", True)])
def test_nor_is_one_that_a_field_asks_for(value: str, *, is_dear: bool) -> None:
    line = f"X-Vertex-AI-LLM-Shared-Request-Type: {value}".encode()
    assert asked(b"\r\n" + line, b"\r\n" + line)[0] is not is_dear
    body = json.dumps({"contents": []}).encode()
    with pytest.raises(PriceUnknown, match="tier") if is_dear else contextlib.nullcontext():
        pricing().quote(b"POST", GEMINI_PATH.encode(), (line,), body, NOW_S)


@pytest.mark.parametrize("tier", ["auto", "default", "flex", "standard_only", None])
def test_one_that_costs_no_more_is_not(tier: str | None) -> None:
    assert quote(CHAT_PATH, {**ASKS, "service_tier": tier}).model == "m"


def test_where_a_model_runs_may_cost_more() -> None:
    body = {**ASKS, "inference_geo": "us"}
    usual, there = quote("/v1/messages", ASKS), quote("/v1/messages", body)
    assert there.each["USD"] == usual.each["USD"] * 11 // 10
    assert there.fixed["USD"] == len(json.dumps(body)) * 1_100_000
    answer = {"type": "message", "usage": {"input_tokens": 10, "output_tokens": 5}}
    cost = 10 * 1_000_000 + 5 * 3_000_000
    assert cost_of(there, json.dumps(answer).encode(), JSON).cost["USD"] == cost * 11 // 10
    answer["usage"] |= {"inference_geo": "us"}  # type: ignore[operator]
    assert cost_of(usual, json.dumps(answer).encode(), JSON).cost["USD"] == cost * 11 // 10
    answer["usage"] |= {"inference_geo": "global"}  # type: ignore[operator]
    assert cost_of(usual, json.dumps(answer).encode(), JSON).cost["USD"] == cost


def test_a_summary_that_a_message_took_is_paid() -> None:
    iterations = [
        {"type": "compaction", "input_tokens": 180, "output_tokens": 35},
        {"type": "message", "input_tokens": 23, "output_tokens": 10},
    ]
    usage: dict[str, Any] = {"input_tokens": 23, "output_tokens": 10, "iterations": iterations}
    quoted = quote("/v1/messages", ASKS)
    told = cost_of(quoted, json.dumps({"type": "message", "usage": usage}).encode(), JSON)
    assert (told.cost["tokens"], told.mark) == (180 + 35 + 23 + 10, Mark.EXACT)
    usage["iterations"] = [{"type": "advisor_message", "model": "o3", "input_tokens": 1, "output_tokens": 1}]
    told = cost_of(quoted, json.dumps({"type": "message", "usage": usage}).encode(), JSON)
    assert (told.cost["tokens"], told.mark) == (quoted.fixed["tokens"] + quoted.most, Mark.ESTIMATED)


# --- what tools cost -------------------------------------------------------------------------------------------------

SEARCHES = [{"type": "web_search_call", "id": f"ws_{number}"} for number in range(4)]


def test_searches_of_a_response_are_paid_by_their_number() -> None:
    """Of a small model they cost a hundred times what its tokens do."""
    body = {"model": "m", "max_output_tokens": 50, "tools": [{"type": "web_search"}]}
    answer = json.dumps(RESPONSE | {"output": SEARCHES}).encode()
    plain = cost_of(quote("/v1/responses", body), json.dumps(RESPONSE).encode(), JSON)
    told = cost_of(quote("/v1/responses", body), answer, JSON)
    assert (told.cost["USD"] - plain.cost["USD"], told.mark) == (40_000_000, Mark.ESTIMATED)
    preview = RESPONSE | {"output": SEARCHES, "tools": [{"type": "web_search_preview"}]}
    told = cost_of(quote("/v1/responses", body), json.dumps(preview).encode(), JSON)
    assert told.cost["USD"] - plain.cost["USD"] == 100_000_000


def test_in_a_stream_each_of_them_once() -> None:
    items: list[Any] = []
    for item in SEARCHES:
        items += [{"type": f"response.output_item.{what}", "item": item} for what in ("added", "done")]
    answer = sse(*items, {"type": "response.completed", "response": RESPONSE | {"output": SEARCHES}})
    body = {"model": "m", "max_output_tokens": 50, "tools": [{"type": "web_search"}], "stream": True}
    plain = cost_of(quote("/v1/responses", body), sse({"type": "response.completed", "response": RESPONSE}), EVENTS)
    for size in (1, 7, len(answer)):
        meter = quote("/v1/responses", body).meter(50, 200, (b"", EVENTS))
        feed(meter, *(answer[at : at + size] for at in range(0, len(answer), size)))
        told = meter.result(whole=True, elapsed_ms=1)
        assert told.cost["USD"] - plain.cost["USD"] == 40_000_000


@pytest.mark.parametrize(
    ("tool", "output", "usd"),
    [
        ({"type": "code_interpreter", "container": {"type": "auto"}}, ["code_interpreter_call"] * 5, 30_000_000),
        (
            {"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "64g"}},
            ["code_interpreter_call"],
            1_920_000_000,
        ),
        ({"type": "shell", "environment": {"type": "container_auto"}}, ["shell_call"] * 2, 30_000_000),
        ({"type": "shell", "environment": {"type": "local"}}, ["shell_call"] * 2, 0),
        ({"type": "x_search"}, ["x_search_call"] * 2, 10_000_000),
    ],
)
def test_a_container_is_paid_once_and_by_its_size(tool: dict[str, Any], output: list[str], usd: int) -> None:
    answer = RESPONSE | {"tools": [tool], "output": [{"type": one} for one in output]}
    plain = cost_of(quote("/v1/responses", {"model": "m", "max_output_tokens": 50}), json.dumps(answer).encode(), JSON)
    quoted = quote("/v1/responses", {"model": "m", "max_output_tokens": 50, "tools": [tool]})
    told = cost_of(quoted, json.dumps(answer).encode(), JSON)
    assert told.cost["USD"] - plain.cost["USD"] == usd
    assert quoted.fixed["USD"] - quoted.fixed["tokens"] * 2_000_000 >= usd


@pytest.mark.parametrize(("name", "spelled"), [("memory_limit", "memory\\u005flimit"), ("64g", "\\u00364g")])
def test_what_hides_its_size_is_reserved_for_all_the_same(name: str, spelled: str) -> None:
    tool = {"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "64g"}}
    body = json.dumps({"model": "m", "max_output_tokens": 50, "tools": [tool]})
    plain, hidden = quote("/v1/responses", body.encode()), quote("/v1/responses", body.replace(name, spelled).encode())
    assert hidden.fixed == plain.fixed
    assert json.loads(hidden.body(50) or b"") == json.loads(body)


@pytest.mark.parametrize(
    ("path", "body", "each"),
    [
        ("/v1/messages", {**ASKS, "messages": [{"role": "user", "content": "é"}]}, 1_000_000),
        ("/v1/responses", {"model": "m", "input": "é", "tools": [{"type": "web_search"}]}, 2_000_000),
    ],
)
def test_text_that_is_escaped_hides_nothing(path: str, body: dict[str, Any], each: int) -> None:
    """Python escapes all that is not ASCII; such a message was held to cost ten searches, and a cache for an hour."""
    escaped, plain = json.dumps(body), json.dumps(body, ensure_ascii=False)
    usd = [quote(path, text.encode()).fixed["USD"] for text in (escaped, plain)]
    assert usd[0] - usd[1] == (len(escaped) - len(plain.encode())) * each


def test_the_tools_of_a_stored_prompt_are_paid_as_well() -> None:
    body = {"model": "m", "max_output_tokens": 50, "prompt": {"id": "pmpt_1"}}
    plain = cost_of(quote("/v1/responses", body), json.dumps(RESPONSE).encode(), JSON)
    told = cost_of(quote("/v1/responses", body), json.dumps(RESPONSE | {"output": SEARCHES}).encode(), JSON)
    assert told.cost["USD"] - plain.cost["USD"] == 40_000_000


@pytest.mark.parametrize(("uses", "searches"), [({}, 10), ({"max_uses": 3}, 10), ({"max_uses": 25}, 25)])
def test_what_anthropics_searches_cost_is_reserved_for(uses: dict[str, int], searches: int) -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search", **uses}]
    fixed = quote("/v1/messages", {**ASKS, "tools": tools}).fixed
    assert fixed["USD"] - fixed["tokens"] * 1_000_000 == searches * 10_000_000
    assert quote("/v1/messages", {**ASKS, "tools": tools}, reserve={"USD": 5}).fixed["USD"] < 1_000_000_000_000


def test_what_is_found_is_paid_by_who_leaves_before_the_answer_says_so() -> None:
    """The begin of a message of Anthropic's says what the prompt took; only its end, what searches put into it."""
    streams = {**ASKS, "stream": True}
    searching = {**streams, "tools": [{"type": "web_search_20250305", "name": "web_search"}]}
    begun = {"type": "message_start", "message": {"usage": {"input_tokens": 2000, "output_tokens": 1}}}
    found = {"type": "content_block_start", "content_block": {"type": "web_search_tool_result", "content": []}}
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "So"}}
    use = {"web_search_requests": 3}
    end = {"type": "message_delta", "usage": {"input_tokens": 42_000, "output_tokens": 9, "server_tool_use": use}}
    quoted = quote("/v1/messages", searching)
    left = cost_of(quoted, sse(begun, found, text), EVENTS, whole=False)
    billed = cost_of(quoted, sse(begun, found, text, end), EVENTS)
    assert left.mark is Mark.ESTIMATED
    assert billed.cost["USD"] < left.cost["USD"] <= quoted.fixed["USD"] + quoted.each["USD"] * quoted.most
    file = {"role": "user", "content": [{"type": "document", "source": {"type": "url", "url": "https://x"}}]}
    for tools in ({}, {"tools": [{"name": "a", "input_schema": {}}, {"type": "bash_20250124"}], "messages": [file]}):
        plain = cost_of(quote("/v1/messages", {**streams, **tools}), sse(begun, text), EVENTS, whole=False)
        assert plain.cost["USD"] < 3_000_000_000  # where nothing is looked for, the prompt was all


def test_each_search_of_geminis_is_paid() -> None:
    """Gemini 3 and later pay for each; a stream tells of all so far in each event."""
    found = {"groundingMetadata": {"webSearchQueries": ["a", 'b"[]', "c,d", "e"]}}
    said = {"usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 9}}
    body: dict[str, Any] = {"tools": [{"google_search": {}}], "contents": []}
    plain = cost_of(quote(GEMINI_PATH, body), json.dumps(said).encode(), JSON).cost["USD"]
    whole = json.dumps(said | {"candidates": [found]}).encode()
    assert cost_of(quote(GEMINI_PATH, body), whole, JSON).cost["USD"] - plain == 4 * 14_000_000
    meter = quote(GEMINI_PATH, body).meter(50, 200, [EVENTS])
    answer = sse({**said, "candidates": [found]}, {**said, "candidates": [found]})
    feed(meter, *(answer[at : at + 1] for at in range(len(answer))))
    assert meter.result(whole=True, elapsed_ms=1).cost["USD"] - plain == 4 * 14_000_000
    fixed = quote(GEMINI_PATH, body).fixed
    assert fixed["USD"] - fixed["tokens"] * 2_000_000 == 10 * 14_000_000


def test_what_tools_take_is_reserved_for() -> None:
    """A picture costs ten times what the whole context of a small model does."""
    for tools, usd in (
        (["image_generation"], 250_000_000),
        (["web_search"], 100_000_000),
        (["web_search_preview", "code_interpreter"], 280_000_000),
        (["mcp"], 0),
    ):
        body = {"model": "m", "input": "hi", "tools": [{"type": one} for one in tools]}
        fixed = quote("/v1/responses", body).fixed
        assert fixed["USD"] - fixed["tokens"] * 2_000_000 == usd
    fixed = quote("/v1/responses", body, reserve={"USD": 5}).fixed
    assert fixed["USD"] == 5 + (fixed["tokens"] - 1_000_000) * 2_000_000
    fixed = quote(CHAT_PATH, {**ASKS, "web_search_options": {}}).fixed
    assert fixed["USD"] - fixed["tokens"] * 2_000_000 == 30_000_000


def test_a_chat_that_may_search_is_paid_for_it_and_geminis_if_it_has() -> None:
    plain = cost_of(quote(CHAT_PATH, ASKS), json.dumps(CHAT).encode(), JSON).cost["USD"]
    told = cost_of(quote(CHAT_PATH, {**ASKS, "web_search_options": {}}), json.dumps(CHAT).encode(), JSON)
    assert (told.cost["USD"] - plain, told.mark) == (30_000_000, Mark.ESTIMATED)
    table = CostTable(llm=True, prices={"gpt-4o-search-preview": Rates(1, 1)})
    body = json.dumps({**ASKS, "model": "gpt-4o-search-preview"}).encode()
    model = pricing_of(table, "", clamp=False).quote(b"POST", CHAT_PATH.encode(), (), body, NOW_S)
    assert cost_of(model, json.dumps(CHAT).encode(), JSON).cost["USD"] >= 30_000_000
    searching: dict[str, Any] = {"tools": [{"google_search": {}}], "contents": []}
    said: dict[str, Any] = {"usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 9}}
    found: dict[str, Any] = said | {"candidates": [{"groundingMetadata": {}}]}
    usd = [cost_of(quote(GEMINI_PATH, searching), json.dumps(one).encode(), JSON).cost["USD"] for one in (said, found)]
    assert usd[1] - usd[0] == 35_000_000
