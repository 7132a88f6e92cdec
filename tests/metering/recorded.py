"""Answers as the providers send them, and requests that get them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gateway.metering.costs import CostTable
from gateway.metering.pricing import pricing_of
from gateway.metering.rates import rates_of

if TYPE_CHECKING:
    from gateway.metering import Cost, Meter, Pricing, Quote

NOW_S = 1_790_000_000.0
EVENTS = b"Content-Type: text/event-stream; charset=utf-8"
JSON = b"content-type: application/json"

# Of one picodollar each, where none costs as much as another: what was counted can be read in the sum.
PRICES = {
    "m": rates_of({"input": 1000, "output": 3000, "cached_input": 100, "cache_write": 2000, "cache_write_1h": 5000}),
    "claude-m": rates_of({"input": 1000, "output": 3000}),
    "o3": rates_of({"input": 1000, "output": 3000}),
}


def pricing(url: str = "https://api.openai.com/v1", *, clamp: bool = False, **table: Any) -> Pricing:
    return pricing_of(CostTable(llm=True, prices=PRICES, **table), url, clamp=clamp)


def quote(path: str, body: object, *, method: bytes = b"POST", clamp: bool = False, **table: Any) -> Quote:
    sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    return pricing(clamp=clamp, **table).quote(method, path.encode(), (), sent, NOW_S)


def sse(*events: object, end: str = "\n") -> bytes:
    """Spell events; a text stands for itself, an object with a type gets that as its event's name."""
    spelled = []
    for event in events:
        if isinstance(event, str):
            spelled.append(f"data: {event}{end}{end}")
            continue
        name = event.get("type") if isinstance(event, dict) else None
        named = f"event: {name}{end}" if name else ""
        spelled.append(f"{named}data: {json.dumps(event, separators=(',', ':'))}{end}{end}")
    return "".join(spelled).encode()


def feed(meter: Meter, *pieces: bytes) -> bytes:
    """Return what is forwarded."""
    return b"".join([meter.feed(piece) for piece in pieces]) + meter.finish()


def cost_of(quoted: Quote, answer: bytes, kind: bytes, *, whole: bool = True, lines: tuple[bytes, ...] = ()) -> Cost:
    """Return what an answer cost, that comes as one piece: whether its meter knows that it is all or not."""
    head = (b"HTTP/1.1 200 OK", *lines, kind)
    meter = quoted.meter(quoted.most, 200, head)
    passed = feed(meter, answer)
    cost = meter.result(whole=whole, elapsed_ms=1000)
    if whole:
        knowing = quoted.meter(quoted.most, 200, head, content=answer)
        assert feed(knowing, answer) == passed
        assert knowing.result(whole=True, elapsed_ms=1000) == cost
    return cost


def chunk(**delta: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m-1", "choices": [choice], "usage": None}


CHAT_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 7,
    "total_tokens": 107,
    "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
CHAT_LAST = {**chunk(), "choices": [], "usage": CHAT_USAGE}
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "m-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": 'see "usage": {"prompt_tokens": 1}'}}],
    "usage": CHAT_USAGE,
    "service_tier": "default",
}
CHAT_COST = {"USD": 40 * 1_000_000 + 60 * 100_000 + 7 * 3_000_000, "tokens": 107}
CHAT_STREAM = (chunk(role="assistant", content=""), chunk(content="Hello"), chunk(content=' "wor\\ld"'), CHAT_LAST)

RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "error": None,
    "model": "m-1",
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}],
    "tools": [{"type": "function", "parameters": {"properties": {"usage": {"input_tokens": 1, "output_tokens": 1}}}}],
    "usage": {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 60},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 107,
    },
    "metadata": {"usage": "x"},
}
RESPONSES_STREAM = (
    {"type": "response.created", "sequence_number": 0, "response": {**RESPONSE, "output": [], "usage": None}},
    {"type": "response.output_text.delta", "sequence_number": 1, "delta": "Hel", "logprobs": []},
    {"type": "response.output_text.delta", "sequence_number": 2, "delta": "lo", "logprobs": []},
    {"type": "response.completed", "sequence_number": 3, "response": RESPONSE},
)

MESSAGES_USAGE = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 20,
    "cache_read_input_tokens": 30,
    "cache_creation": {"ephemeral_5m_input_tokens": 15, "ephemeral_1h_input_tokens": 5},
    "output_tokens": 1,
    "service_tier": "standard",
}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m-1", "content": []}
MESSAGES_STREAM = (
    {"type": "message_start", "message": {**MESSAGE, "usage": MESSAGES_USAGE}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
    {"type": "message_stop"},
)
MESSAGES_COST = {"USD": 10 * 10**6 + 30 * 10**5 + 15 * 2 * 10**6 + 5 * 5 * 10**6 + 7 * 3 * 10**6, "tokens": 67}


def gemini(text: str, output: int, thoughts: int = 0, **more: Any) -> dict[str, Any]:
    usage = {"promptTokenCount": 100, "candidatesTokenCount": output, "thoughtsTokenCount": thoughts}
    usage |= {"cachedContentTokenCount": 60, "totalTokenCount": 100 + output + thoughts}
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0, **more}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m-1", "responseId": "r1"}


GEMINI_STREAM = (gemini("Hel", 1), gemini("lo", 4, 3, finishReason="STOP"))
GEMINI_PATH = "/v1beta/models/m:streamGenerateContent?alt=sse"
ASKS = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}
STREAMS = {**ASKS, "stream": True}

ALL_STREAMS = {
    "chat": ("/v1/chat/completions", STREAMS, sse(*CHAT_STREAM, "[DONE]"), CHAT_COST),
    "responses": ("/v1/responses", {"model": "m", "input": "hi", "stream": True}, sse(*RESPONSES_STREAM), CHAT_COST),
    "messages": ("/v1/messages", STREAMS, sse(*MESSAGES_STREAM), MESSAGES_COST),
    "gemini": (GEMINI_PATH, {"contents": []}, sse(*GEMINI_STREAM), CHAT_COST),
}
ALL_ANSWERS = {
    "chat": ("/v1/chat/completions", ASKS, CHAT, CHAT_COST),
    "azure": ("/openai/deployments/m/chat/completions?api-version=1", {"messages": []}, CHAT, CHAT_COST),
    "gemini by OpenAI's API": ("/v1beta/openai/chat/completions", ASKS, CHAT, CHAT_COST),
    "completions": ("/v1/completions", {"model": "m", "prompt": "hi"}, CHAT, CHAT_COST),
    "responses": ("/v1/responses", {"model": "m", "input": "hi"}, RESPONSE, CHAT_COST),
    "messages": ("/v1/messages", ASKS, {**MESSAGE, "usage": {**MESSAGES_USAGE, "output_tokens": 7}}, MESSAGES_COST),
    "gemini": ("/v1beta/models/m:generateContent", {"contents": []}, gemini("Hello", 4, 3), CHAT_COST),
    "gemini's list": ("/v1beta/models/m:streamGenerateContent", {"contents": []}, list(GEMINI_STREAM), CHAT_COST),
    "embeddings": (
        "/v1/embeddings",
        {"model": "m", "input": "hi"},
        {"data": [{"embedding": [0.1, -0.2]}], "model": "m-1", "usage": {"prompt_tokens": 5, "total_tokens": 5}},
        {"USD": 5 * 10**6, "tokens": 5},
    ),
}
