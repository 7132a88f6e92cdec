"""Requests: what they can cost, and what is sent in their place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.budgets.spending import Mark
from gateway.errors import PriceUnknown
from gateway.metering.costs import CostTable, FixedPrice
from gateway.metering.pricing import pricing_of
from tests.metering.recorded import (
    ALL_ANSWERS,
    ASKS,
    CHAT,
    GEMINI_PATH,
    JSON,
    NOW_S,
    PRICES,
    STREAMS,
    cost_of,
    pricing,
    quote,
)

CHAT_PATH = "/v1/chat/completions"


def sent(quoted: Any, granted: int) -> Any:
    return json.loads(quoted.body(granted))


def test_what_needs_no_change_is_the_same_object() -> None:
    body = json.dumps(ASKS).encode()
    quoted = pricing().quote(b"POST", b"/v1/chat/completions", (), body, NOW_S)
    assert quoted.body(quoted.most) is body


def test_a_request_costs_its_bytes_and_its_limit_at_the_most() -> None:
    quoted = quote(CHAT_PATH, {**ASKS, "model": "o3"})
    size = len(json.dumps({**ASKS, "model": "o3"}))
    assert quoted.fixed == {"USD": size * 1_000_000, "tokens": size}
    assert quoted.each == {"USD": 3_000_000, "tokens": 1}
    assert (quoted.most, quoted.least, quoted.model) == (50, 50, "o3")


@pytest.mark.parametrize(
    ("path", "body", "most"),
    [
        (CHAT_PATH, {"max_completion_tokens": 70, "n": 3}, 210),
        (CHAT_PATH, {"max_tokens": 10, "max_completion_tokens": 70}, 70),
        (CHAT_PATH, {"max_tokens": "70"}, 70),
        (CHAT_PATH, {"max_tokens": 70.0}, 70),
        (CHAT_PATH, {}, 4096),
        (CHAT_PATH, {"max_tokens": -1}, 4096),
        (CHAT_PATH, {"max_tokens": 10**40}, 10_000_000),
        ("/v1/completions", {"max_tokens": 10, "n": 2, "best_of": 5}, 50),
        ("/v1/completions", {"max_tokens": 10, "prompt": ["a", "b", "c"]}, 30),
        ("/v1/completions", {"max_tokens": 10, "prompt": [1, 2, 3]}, 10),
        ("/v1/responses", {"max_output_tokens": 33}, 33),
        ("/v1/messages", {"max_tokens": 44}, 44),
        ("/v1beta/models/m:generateContent", {"generationConfig": {"maxOutputTokens": 9, "candidateCount": 2}}, 18),
        ("/v1beta/models/m:generateContent", {"generation_config": {"max_output_tokens": 9}}, 9),
        ("/v1/embeddings", {"input": "x"}, 0),
        ("/v1beta/models/m:embedContent", {"content": {}}, 0),
    ],
)
def test_the_output_is_bounded_by_what_limits_it(path: str, body: dict[str, Any], most: int) -> None:
    assert quote(path, {"model": "m", **body}).most == most


def test_the_reservation_of_a_request_with_tools_has_room_for_the_prompt_that_they_bring() -> None:
    body = {**ASKS, "tools": [{"type": "function", "function": {"name": "f"}}]}
    assert quote(CHAT_PATH, body).fixed["tokens"] == len(json.dumps(body)) + 1024


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"previous_response_id": "resp_1"}),
        ("/v1/responses", {"conversation": "conv_1"}),
        ("/v1/responses", {"prompt": {"id": "pmpt_1"}}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}),
        ("/v1/responses", {"tools": [{"type": "web_search"}]}),
        ("/v1/responses", {"input": [{"type": "item_reference", "id": "x"}]}),
        (CHAT_PATH, {"messages": [{"content": [{"type": "input_audio", "input_audio": {}}]}]}),
        (CHAT_PATH, {"web_search_options": {}}),
        ("/v1/messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        ("/v1/messages", {"messages": [{"content": [{"type": "document", "source": {"type": "url"}}]}]}),
        ("/v1/messages", {"mcp_servers": []}),
        ("/v1beta/models/m:generateContent", {"contents": [{"parts": [{"fileData": {"fileUri": "x"}}]}]}),
        ("/v1beta/models/m:generateContent", {"tools": [{"google_search": {}}]}),
    ],
)
def test_what_the_bytes_do_not_bound_is_reserved_for(path: str, body: dict[str, Any]) -> None:
    body = {"model": "m", "max_tokens": 10, **body}
    assert quote(path, body).fixed["tokens"] >= 1_000_000
    with_own = quote(path, body, reserve={"USD": 5, "tokens": 7})
    assert with_own.fixed["tokens"] in {len(json.dumps(body)) + 7, len(json.dumps(body)) + 7 + 1024}
    escaped = json.dumps(body).replace('"type"', '"typ\\u0065"').replace("google_s", "google\\u005fs").encode()
    assert quote(path, escaped).fixed["tokens"] >= 1_000_000


@pytest.mark.parametrize(
    ("name", "body", "mark"),
    [
        ("responses", {"tools": [{"type": "web_search"}]}, Mark.ESTIMATED),
        ("responses", {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, Mark.ESTIMATED),
        ("responses", {"previous_response_id": "resp_1"}, Mark.EXACT),
        ("gemini", {"tools": [{"googleSearch": {}}]}, Mark.ESTIMATED),
        ("messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, Mark.EXACT),
        ("messages", {"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}, Mark.ESTIMATED),
    ],
)
def test_what_is_billed_beside_tokens_makes_a_cost_an_estimate(name: str, body: dict[str, Any], mark: Mark) -> None:
    path, _, answer, cost = ALL_ANSWERS[name]
    told = cost_of(quote(path, {"model": "m", **body}), json.dumps(answer).encode(), JSON)
    assert (told.cost, told.mark) == (cost, mark)


def test_a_picture_may_be_fifty_thousand_tokens() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}
    body = {**ASKS, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, part, part]}]}
    assert quote(CHAT_PATH, body).fixed["tokens"] == len(json.dumps(body)) + 100_000


def test_text_that_speaks_of_such_things_is_text() -> None:
    body = {**ASKS, "messages": [{"role": "user", "content": '{"type": "input_file", "google_search": 1}'}]}
    assert quote(CHAT_PATH, body).fixed["tokens"] == len(json.dumps(body))


def test_a_prompt_that_is_cached_may_cost_more() -> None:
    control = {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}
    per = {
        "plain": quote("/v1/messages", ASKS),
        "cached": quote("/v1/messages", {**ASKS, "messages": [control]}),
        "hour": quote("/v1/messages", {**ASKS, "x": control, "cache_control": {"type": "ephemeral", "ttl": "1h"}}),
    }
    assert {name: one.fixed["USD"] // one.fixed["tokens"] for name, one in per.items()} == {
        "plain": 1_000_000,
        "cached": 2_000_000,
        "hour": 5_000_000,
    }


# --- changed on the way -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "granted", "changed"),
    [
        (CHAT_PATH, {"max_tokens": 50}, 20, {"max_tokens": 20}),
        (CHAT_PATH, {"max_completion_tokens": 50, "n": 2}, 41, {"max_completion_tokens": 20}),
        (CHAT_PATH, {}, 4096, {"max_completion_tokens": 4096}),
        (CHAT_PATH, {"max_tokens": None}, 30, {"max_completion_tokens": 30}),
        ("/v1/completions", {}, 30, {"max_tokens": 30}),
        ("/v1/responses", {}, 30, {"max_output_tokens": 30}),
        ("/v1/messages", {"max_tokens": 50}, 30, {"max_tokens": 30}),
        ("/v1beta/models/m:generateContent", {}, 30, {"generationConfig": {"maxOutputTokens": 30}}),
        (
            "/v1beta/models/m:generateContent",
            {"generationConfig": {"temperature": 1, "thinkingConfig": {"thinkingBudget": 5}}},
            30,
            {"generationConfig": {"temperature": 1, "thinkingConfig": {"thinkingBudget": 5}, "maxOutputTokens": 30}},
        ),
    ],
)
def test_clamping_limits_the_output(path: str, body: dict[str, Any], granted: int, changed: dict[str, Any]) -> None:
    body = {"model": "m", "messages": [{"content": "ü 😀 \\"}], **body}
    quoted = quote(path, body, clamp=True)
    assert quoted.least == min(quoted.most, 16 * body.get("n", 1))
    assert sent(quoted, granted) == {**body, **changed}


def test_without_clamping_the_request_stays() -> None:
    quoted = quote(CHAT_PATH, {"model": "m"})
    assert (quoted.most, quoted.least) == (4096, 4096)
    assert sent(quoted, 4096) == {"model": "m"}


def test_other_providers_know_only_max_tokens() -> None:
    quoted = pricing("http://127.0.0.1:8000/v1", clamp=True).quote(
        b"POST", b"/chat/completions", (), b'{"model":"m"}', 0
    )
    assert sent(quoted, 30) == {"model": "m", "max_tokens": 30}


def test_a_thinking_budget_has_room() -> None:
    quoted = quote("/v1/messages", {**ASKS, "max_tokens": 9000, "thinking": {"budget_tokens": 2048}}, clamp=True)
    assert quoted.least == 2049


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False, "x": {"y": 1}}])
def test_a_stream_is_asked_for_its_usage(options: dict[str, Any] | None) -> None:
    body = {**STREAMS} if options is None else {**STREAMS, "stream_options": options}
    asked = sent(quote(CHAT_PATH, body), 50)
    assert asked == {**body, "stream_options": {**(options or {}), "include_usage": True}}


def test_mistral_is_not_asked() -> None:
    body = json.dumps(STREAMS).encode()
    assert pricing("https://api.mistral.ai/v1").quote(b"POST", b"/chat/completions", (), body, 0).body(50) is body


def test_what_could_be_read_in_two_ways_is_sent_in_one() -> None:
    body = b'{"model":"m","max_tokens":5,"max_tokens":50,"messages":[]}'
    quoted = quote(CHAT_PATH, body)
    assert quoted.most == 50
    assert quoted.body(50) == b'{"model":"m","max_tokens":50,"messages":[]}'


def test_streams_are_not_compressed() -> None:
    assert quote(CHAT_PATH, STREAMS).accepts == b"identity"
    assert quote(CHAT_PATH, ASKS).accepts == b"gzip, identity"
    assert quote(GEMINI_PATH, {"contents": []}).accepts == b"identity"
    assert quote("/v1beta/models/m:generateContent", {"contents": []}).accepts == b"gzip, identity"


# --- without a price ----------------------------------------------------------------------------------------------


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(PriceUnknown, match=r"model 'no-such-model'.*\[prices.\"no-such-model\"\]"):
        quote(CHAT_PATH, {**ASKS, "model": "no-such-model"})
    with pytest.raises(PriceUnknown, match="names no model"):
        quote(CHAT_PATH, {"messages": []})
    with pytest.raises(PriceUnknown) as refused:
        quote(CHAT_PATH, {**ASKS, "model": "\x1b[31mred"})
    assert "\x1b" not in refused.value.detail


def test_an_unknown_model_may_cost_the_default() -> None:
    quoted = quote(CHAT_PATH, {**ASKS, "model": "no-such"}, unknown_price="default", default={"USD": 5000})
    assert quoted.fixed["USD"] == 5000
    assert quoted.each["USD"] == 0
    assert cost_of(quoted, json.dumps(CHAT).encode(), JSON).cost == {"USD": 5000, "tokens": 107}


def test_an_unknown_model_may_be_free_and_told() -> None:
    quoted = quote(CHAT_PATH, {**ASKS, "model": "no-such"}, unknown_price="warn")
    assert "no-such" in quoted.notice
    cost = cost_of(quoted, json.dumps(CHAT).encode(), JSON)
    assert (cost.cost, cost.mark) == ({"USD": 0, "tokens": 107}, Mark.EXACT)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"model":', b"\xff", b"[" * 100_000, b'{"n":' + b"9" * 5000 + b"}"])
def test_what_cannot_be_read_has_no_price(body: bytes) -> None:
    with pytest.raises(PriceUnknown, match="JSON cannot be read"):
        quote(CHAT_PATH, body)


def test_a_request_too_long_to_be_read_costs_the_reserve() -> None:
    with pytest.raises(PriceUnknown, match="1 MiB"):
        quote(CHAT_PATH, None)
    quoted = quote(CHAT_PATH, None, reserve={"USD": 10**9, "tokens": 10**6})
    assert (quoted.fixed, quoted.each, quoted.most, quoted.body(0)) == ({"USD": 10**9, "tokens": 10**6}, {}, 0, None)
    answer = json.dumps({**CHAT, "model": "m"}).encode()
    assert cost_of(quoted, answer, JSON).cost["tokens"] == 107
    assert cost_of(quoted, answer, JSON).model == "m"
    unknown = cost_of(quoted, json.dumps(CHAT | {"model": "no-such"}).encode(), JSON)
    assert (unknown.cost, unknown.mark) == (quoted.fixed, Mark.ESTIMATED)


def test_a_compressed_request_is_not_read() -> None:
    lines = (b"POST / HTTP/1.1\r\ncontent-encoding:gzip",)
    with pytest.raises(PriceUnknown):
        pricing().quote(b"POST", CHAT_PATH.encode(), lines, json.dumps(ASKS).encode(), NOW_S)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (b"GET", "/v1/models"),
        (b"DELETE", "/v1/files/f"),
        (b"GET", "/v1/responses/r"),
        (b"POST", "/v1/messages/count_tokens"),
    ],
)
def test_what_takes_no_money_is_free(method: bytes, path: str) -> None:
    quoted = quote(path, b"", method=method)
    assert quoted.fixed == {}
    assert quoted.meter(0, 200, [JSON]).result(whole=True, elapsed_ms=1).cost == {}


@pytest.mark.parametrize("lines", [(b"Upgrade: websocket",), (b"a: b\r\nX-HTTP-Method-Override: POST",)])
def test_what_may_be_more_than_it_seems_is_not_free(lines: tuple[bytes, ...]) -> None:
    with pytest.raises(PriceUnknown):
        pricing().quote(b"GET", b"/v1/realtime", lines, b"", NOW_S)


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/chat/completions/", "/v1/audio/speech", "/v1/batches"])
def test_other_paths_have_no_price(path: str) -> None:
    with pytest.raises(PriceUnknown):
        quote(path, ASKS)


def test_fixed_prices_go_first_but_not_for_a_path_that_is_another() -> None:
    fixed = (FixedPrice(b"POST", b"/v1/images*", {"USD": 7}), FixedPrice(b"*", b"/v1/files", {}))
    assert quote("/v1/images/generations?x=1", {}, fixed=fixed).fixed == {"USD": 7}
    assert quote("/v1/files", {}, fixed=fixed, method=b"PUT").fixed == {}
    with pytest.raises(PriceUnknown):
        quote("/v1/images/../chat/completions", ASKS, fixed=fixed)


@pytest.mark.parametrize(("url", "most"), [("https://api.openai.com/v1", 16), ("https://vllm.example/v1", 4096)])
def test_a_legacy_completion_without_a_limit_is_asked_for_no_more_than_its_api_makes(url: str, most: int) -> None:
    """With `BUDGET_CLAMP=on`, the limit that was put in made it 256 times as long."""
    body = b'{"model": "m", "prompt": "Hi"}'
    quoted = pricing(url, clamp=True).quote(b"POST", b"/completions", (), body, NOW_S)
    assert quoted.most == most
    assert json.loads(quoted.body(most) or b"")["max_tokens"] == most
    assert pricing(url).quote(b"POST", b"/completions", (), body, NOW_S).body(most) is body


@pytest.mark.parametrize(
    ("model", "name"), [("gpt-5-mini", "max_completion_tokens"), ("o3", "max_completion_tokens"), ("m", "max_tokens")]
)
def test_a_limit_is_put_in_by_the_name_that_the_model_takes_wherever_it_is_had(model: str, name: str) -> None:
    """OpenAI's newer ones answer 400 to the other name, by way of Azure's Foundry or of another gateway as well."""
    table = CostTable(llm=True, prices=PRICES | {"gpt-5-mini": PRICES["m"]})
    body = json.dumps({"model": model, "messages": []}).encode()
    quoted = pricing_of(table, "https://x.services.ai.azure.com/openai/v1", clamp=True)
    sent = quoted.quote(b"POST", b"/chat/completions", (), body, NOW_S).body(20)
    assert json.loads(sent or b"")[name] == 20


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("more", [{}, {"tools": []}])
def test_a_cache_that_is_only_to_be_filled_costs_no_output(more: dict[str, Any], *, clamp: bool) -> None:
    """`max_tokens` of 0 was lowered, with `BUDGET_CLAMP=on`, to 4096."""
    asks = {**ASKS, "model": "claude-m", **more}
    body = json.dumps({**asks, "max_tokens": 0}).encode()
    quoted = quote("/v1/messages", body, clamp=clamp)
    assert (quoted.most, quoted.least, quoted.each, quoted.body(0)) == (0, 0, {}, body)
    said = {"usage": {"input_tokens": 9, "cache_creation_input_tokens": 5, "output_tokens": 0}}
    told = cost_of(quoted, json.dumps(said).encode(), JSON)
    assert (told.cost["tokens"], told.mark) == (14, Mark.EXACT)
    assert quote("/v1/messages", {**asks, "max_tokens": None}, clamp=clamp).most == 4096
    for path, model in ((CHAT_PATH, "claude-m"), ("/v1/messages", "m")):  # some take that for no limit
        assert quote(path, {**asks, "model": model, "max_tokens": 0}, clamp=clamp).most == 4096


@pytest.mark.parametrize(
    ("path", "body", "more"),
    [
        ("/v1/messages", {"tools": [{"type": "bash_20250124", "name": "bash"}]}, 3 * 1024),
        ("/v1/messages", {"tools": [{"type": "text_editor_20250728"}, {"type": "memory_20250818"}]}, 5 * 1024),
        ("/v1/messages", {"tools": [{"type": "bash_20250124"}, {"type": "web_fetch_20250910"}]}, 3 * 1024 + 1_000_000),
        ("/v1/responses", {"tools": [{"type": "shell", "environment": {"type": "local"}}]}, 1024),
        ("/v1/responses", {"tools": [{"type": "apply_patch"}, {"type": "local_shell"}]}, 1024),
        ("/v1/responses", {"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]}, 1024 + 1_000_000),
        ("/v1/responses", {"input": [{"type": "local_shell_call", "action": {"type": "exec"}}]}, 0),
    ],
)
def test_tools_that_the_client_runs_bring_no_more_than_they_say(path: str, body: dict[str, Any], more: int) -> None:
    """For them, the model's whole context was held: dollars, for each request of an agent."""
    sent = {**ASKS, **body}
    assert quote(path, sent).fixed["tokens"] == len(json.dumps(sent)) + more


_DATA = "x" * 300_000
_URL = "data:image/png;base64," + _DATA


@pytest.mark.parametrize(
    ("path", "part", "is_picture"),
    [
        (CHAT_PATH, {"type": "image_url", "image_url": {"url": _URL}}, True),
        (CHAT_PATH, {"type": "image_url", "image_url": {"url": "https://x"}, "detail": _URL}, False),
        (CHAT_PATH, {"type": "image_url", "image_url": {"url": "data:application/pdf;base64," + _DATA}}, False),
        (CHAT_PATH, {"type": "text", "text": _URL, "image_url": {"url": _URL}}, False),
        ("/v1/responses", {"type": "input_image", "image_url": _URL}, True),
        ("/v1/messages", {"type": "image", "source": {"type": "base64", "data": _DATA}}, True),
        (
            "/v1/messages",
            {"type": "tool_result", "content": [{"type": "image", "source": {"type": "base64", "data": _DATA}}]},
            True,
        ),
        ("/v1/messages", {"type": "image", "source": {"type": "url", "data": _DATA}}, False),
    ],
)
def test_a_picture_is_not_paid_by_the_byte(path: str, part: dict[str, Any], *, is_picture: bool) -> None:
    """A screenshot of 300 kB was held to cost as much as a book; what only looks like one is text."""
    name = "input" if path == "/v1/responses" else "messages"
    body = {"model": "m", "max_tokens": 9, name: [{"role": "user", "content": [part]}]}
    tokens = quote(path, body).fixed["tokens"]
    assert (tokens < 60_000) == is_picture
    # An amount of one's own is for what the bytes do not bound.
    assert quote(path, body, reserve={"USD": 1}).fixed["USD"] >= 300_000 * 1_000_000
    twice = json.dumps(body)[:-1] + f', "tools": [{{"a": {json.dumps(part)}}}]}}'  # there, nobody reads a picture
    assert quote(path, twice.encode()).fixed["tokens"] >= 300_000
