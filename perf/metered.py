"""Cases of what metering adds: to a whole answer, and to each event of a stream."""

from __future__ import annotations

import json
from itertools import count, islice
from typing import TYPE_CHECKING, Final

from gateway.budgets.spending import Mark
from gateway.metering.costs import CostTable
from gateway.metering.pricing import pricing_of
from gateway.metering.rates import rates_of
from perf.bench import ROUND, SLOW_ROUND, Bench, each, expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.metering import Cost, Meter, Pricing

_NOW_S: Final = 1_800_000_000.0
_MODEL: Final = "gpt-4o-mini"
_PATH: Final = b"/chat/completions"
_GEMINI_PATH: Final = b"/models/gpt-4o-mini:streamGenerateContent?alt=sse"
_SAID: Final = "The quick brown fox jumps over the lazy dog. " * 12
_LINES: Final = (
    b"HTTP/1.1 200 OK",
    b"Date: Thu, 26 Nov 2026 22:00:00 GMT",
    b"access-control-expose-headers: X-Request-ID",
    b"openai-organization: user-abcdefgh",
    b"openai-processing-ms: 412",
    b"openai-version: 2020-10-01",
    b"x-ratelimit-limit-requests: 10000",
    b"x-ratelimit-remaining-requests: 9999",
    b"x-request-id: req_0123456789abcdef0123456789abcdef",
    b"strict-transport-security: max-age=31536000; includeSubDomains; preload",
    b"CF-RAY: 8f0f0f0f0f0f0f0f-FRA",
)


def meter_json() -> Bench:
    """Set up: requests of 0.6 kB and answers of 1.1 kB, without streaming."""
    pricing, numbers = _pricing(), count()

    def fresh() -> list[tuple[bytes, bytes]]:
        return [(_request(number, stream=False), _answer(number)) for number in islice(numbers, SLOW_ROUND)]

    def exchange(messages: tuple[bytes, bytes]) -> Cost:
        request, answer = messages
        quote = pricing.quote(b"POST", _PATH, (), request, _NOW_S)
        quote.body(quote.most)
        meter = quote.meter(quote.most, 200, (*_LINES, b"Content-Type: application/json"))
        meter.feed(answer)
        meter.finish()
        return meter.result(whole=True, elapsed_ms=412)

    def check() -> None:
        cost = exchange(fresh()[0])
        expect("the cost", cost.cost, {"USD": 140 * 150 + 120 * 600, "tokens": 260})
        expect("how sure it is", cost.mark, Mark.EXACT)

    return each(fresh, exchange, check)


def meter_event() -> Bench:
    """Set up: events of 0.3 kB of a chat completions stream, each read by itself."""
    last = b'data: {"choices":[],"usage":{"prompt_tokens":140,"completion_tokens":1,"total_tokens":141}}\n\n'
    return _events(_PATH, _request(0, stream=True), _event, (last, b""))


def meter_event_messages() -> Bench:
    """Set up: events of 0.1 kB of a stream of Anthropic's messages, likewise."""
    start = b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":140}}}\n\n'
    last = b'event: message_delta\ndata: {"type":"message_delta","delta":{},"usage":{"output_tokens":1}}\n\n'
    return _events(b"/messages", _request(0, stream=True), _messages_event, (start, start), (last, last))


def meter_event_responses() -> Bench:
    """Set up: events of 0.3 kB of a stream of OpenAI's responses, likewise."""
    request = json.dumps({"model": _MODEL, "input": _SAID, "max_output_tokens": 256, "stream": True}).encode()
    last = (
        b'event: response.completed\ndata: {"type":"response.completed","response":{"output":[],"usage":'
        b'{"input_tokens":140,"output_tokens":1,"total_tokens":141}}}\n\n'
    )
    return _events(b"/responses", request, _responses_event, (last, last))


def meter_event_gemini() -> Bench:
    """Set up: events of 0.4 kB of a Gemini stream, likewise: each says the usage."""
    return _events(_GEMINI_PATH, _gemini_request(), _gemini_event, (_GEMINI_LAST, _GEMINI_LAST))


def meter_event_running() -> Bench:
    """Set up: the same, and behind each it is asked what has been spent, as `BUDGET_CUT=on` does."""
    return _events(_GEMINI_PATH, _gemini_request(), _gemini_event, (_GEMINI_LAST, _GEMINI_LAST), is_asked=True)


def _events(
    path: bytes, request: bytes, event: Callable[[int], bytes], *ends: tuple[bytes, bytes], is_asked: bool = False
) -> Bench:
    """Set up: events of a stream.

    Args:
        path: Of the request that is answered by it.
        request: Its body.
        event: Makes one.
        ends: What says the usage, of 140 tokens that were read and one that was written, and what of that goes on.
        is_asked: Whether it is asked behind each what has been spent.
    """
    meters: list[Meter] = []

    def fresh() -> list[bytes]:
        quote = _pricing().quote(b"POST", path, (), request, _NOW_S)
        meters[:] = [quote.meter(quote.most, 200, (*_LINES, b"Content-Type: text/event-stream"))]
        return [event(number) for number in range(ROUND)]

    def feed(event: bytes) -> bytes:
        return meters[0].feed(event)

    def feed_and_ask(event: bytes) -> bytes:
        meter = meters[0]
        fed = meter.feed(event)
        meter.running(412)
        return fed

    def check() -> None:
        event = fresh()[0]
        expect("whether it is passed on as it is", feed(event) is event, True)
        for end, passed in ends:
            expect("what is passed on of an event that says the usage", feed(end), passed)
        expect("the cost", meters[0].result(whole=True, elapsed_ms=412).cost, {"USD": 140 * 150 + 600, "tokens": 141})

    return each(fresh, feed_and_ask if is_asked else feed, check)


def _pricing() -> Pricing:
    prices = {_MODEL: rates_of({"input": 0.15, "cached_input": 0.075, "output": 0.6})}
    return pricing_of(CostTable(llm=True, prices=prices), "https://api.openai.com/v1", clamp=False)


def _request(number: int, *, stream: bool) -> bytes:
    messages = [{"role": "system", "content": _SAID}, {"role": "user", "content": f"What does fox {number} do?"}]
    body = {"model": _MODEL, "messages": messages, "temperature": 0.7, "max_tokens": 256}
    return json.dumps(body | {"stream": True} if stream else body).encode()


def _answer(number: int) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": _SAID, "refusal": None}, "finish_reason": "stop"}
    prompt = {"cached_tokens": 0, "audio_tokens": 0}
    completion = {"reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0}
    usage = {"prompt_tokens": 140, "completion_tokens": 120, "total_tokens": 260}
    usage |= {"prompt_tokens_details": prompt, "completion_tokens_details": completion}  # type: ignore[dict-item]
    answer = {"id": f"chatcmpl-{number}", "object": "chat.completion", "created": 1_800_000_000, "model": _MODEL}
    return json.dumps(answer | {"choices": [choice], "usage": usage, "service_tier": "default"}).encode()


def _event(number: int) -> bytes:
    return (
        b'data: {"id":"chatcmpl-AbCdEfGhIjKlMnOpQrStUv","object":"chat.completion.chunk","created":1800000000,'
        b'"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":"fp_0123456789",'
        b'"choices":[{"index":0,"delta":{"content":" word %d"},"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
        % number
    )


def _messages_event(number: int) -> bytes:
    return (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",'
        b'"text":" word %d"}}\n\n' % number
    )


def _responses_event(number: int) -> bytes:
    return (
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":%d,'
        b'"item_id":"msg_0123456789abcdef0123456789abcdef0123456789abcdef","output_index":0,"content_index":0,'
        b'"delta":" word %d","logprobs":[],"obfuscation":"abcdefgh"}\n\n' % (number, number)
    )


def _gemini_request() -> bytes:
    contents = [{"role": "user", "parts": [{"text": _SAID}]}]
    return json.dumps({"contents": contents, "generationConfig": {"maxOutputTokens": 256}}).encode()


def _gemini_event(number: int) -> bytes:
    return (
        b'data: {"candidates": [{"content": {"parts": [{"text": " The quick brown fox %d jumps over the lazy dog, and '
        b'over the next one."}],"role": "model"},"index": 0}],"usageMetadata": {"promptTokenCount": 140,'
        b'"candidatesTokenCount": %d,"totalTokenCount": %d,"promptTokensDetails": [{"modality": "TEXT",'
        b'"tokenCount": 140}],"thoughtsTokenCount": 34},"modelVersion": "gemini-2.5-flash",'
        b'"responseId": "AbCdEfGhIjKlMnOpQrStUv"}\r\n\r\n' % (number, number, number + 174)
    )


_GEMINI_LAST: Final = (
    b'data: {"candidates": [{"content": {"parts": [{"text": "."}]},"finishReason": "STOP"}],"usageMetadata": '
    b'{"promptTokenCount": 140,"candidatesTokenCount": 1,"totalTokenCount": 141}}\r\n\r\n'
)
