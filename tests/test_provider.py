"""The provider that bills, asked by the real SDKs without a gateway between: what it says, and what it invoices."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import json
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.kit.billing import IMAGE_TOKENS, Price, Prices, Tokens, count_text, own_prices
from tests.kit.provider import Provider
from tests.kit.sdks import anthropic, openai
from tests.kit.upstream import soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

GPT, CLAUDE, GEMINI = "gpt-4o-mini", "claude-haiku-4-5", "gemini-2.5-flash"
HELLO: Any = [{"role": "user", "content": "Hello?"}]


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with Provider() as running:
        yield running


@pytest.fixture
async def gpt(provider: Provider) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{provider.url}/v1", api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
async def claude(provider: Provider) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=provider.url, api_key="k", max_retries=0) as client:
        yield client


def wish(**wishes: object) -> dict[str, str]:
    return {"X-Mock": ",".join(f"{name}={value}" for name, value in wishes.items())}


async def gemini(
    provider: Provider, way: str, content: dict[str, Any], **wishes: object
) -> tuple[bytes, aiohttp.ClientResponse]:
    url = f"{provider.url}/v1beta/models/{GEMINI}:{way}"
    async with aiohttp.ClientSession() as session, session.post(url, json=content, headers=wish(**wishes)) as answer:
        return await answer.read(), answer


def asking(text: str = "Hello?", **options: object) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": text}]}], "generationConfig": options}


# ---- what it says is what it bills


async def test_a_chat_is_billed_as_it_says(provider: Provider, gpt: openai.AsyncOpenAI) -> None:
    answer = await gpt.chat.completions.create(
        model=GPT, messages=HELLO, n=2, user="u", extra_headers=wish(output=5, reasoning=4)
    )
    (row,) = provider.invoice.rows
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (row.tokens.input, 10)
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == row.tokens.reasoning == 4
    assert [len((choice.message.content or "").split()) for choice in answer.choices] == [3, 3]
    assert (row.id, row.user, row.outcome) == (answer._request_id, "u", "whole")
    # 15 and 60 cents a million.
    assert provider.invoice.total == (row.tokens.input * Decimal("0.15") + 10 * Decimal("0.60")) / 1_000_000


async def test_the_same_prompt_is_the_same_answer_and_a_limit_cuts_it(
    provider: Provider, gpt: openai.AsyncOpenAI
) -> None:
    first = await gpt.chat.completions.create(model=GPT, messages=HELLO)
    again = await gpt.chat.completions.create(model=GPT, messages=HELLO)
    short = await gpt.chat.completions.create(model=GPT, messages=HELLO, max_completion_tokens=3)
    other = await gpt.chat.completions.create(model=GPT, messages=HELLO, extra_headers=wish(seed=7))
    said = first.choices[0].message.content or ""
    assert (again.choices[0].message.content, first.choices[0].finish_reason) == (said, "stop")
    assert short.choices[0].message.content == "".join(word + " " for word in said.split()[:3])
    assert short.choices[0].finish_reason == "length"
    assert [row.tokens.output for row in provider.invoice.rows][:3] == [len(said.split())] * 2 + [3]
    assert other.usage != first.usage


@pytest.mark.parametrize("asked", [True, False], ids=["usage asked for", "not asked for"])
async def test_a_chat_stream_tells_usage_only_if_asked(
    provider: Provider, gpt: openai.AsyncOpenAI, *, asked: bool
) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if asked else {}
    stream = await gpt.chat.completions.create(
        model=GPT, messages=HELLO, stream=True, extra_headers=wish(output=4), **options
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    (row,) = provider.invoice.rows
    assert (len(text.split()), row.tokens.output, row.outcome) == (4, 4, "whole")
    told = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert [(one.prompt_tokens, one.completion_tokens) for one in told] == [(row.tokens.input, 4)] * asked
    assert [len(chunk.choices) for chunk in chunks].count(0) == asked


async def test_legacy_completions(provider: Provider, gpt: openai.AsyncOpenAI) -> None:
    model = "gpt-3.5-turbo-instruct"
    whole = await gpt.completions.create(model=model, prompt=["one", "two"], extra_headers=wish(output=99))
    stream = await gpt.completions.create(
        model=model, prompt="x", max_tokens=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    first, second = provider.invoice.rows
    # Without a limit it is sixteen, for each prompt.
    assert first.tokens.output == 32
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 32
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.completion_tokens, second.tokens.output) == (2, 2)


async def test_responses(provider: Provider, gpt: openai.AsyncOpenAI) -> None:
    whole = await gpt.responses.create(model=GPT, input="Hello?", extra_headers=wish(output=6, reasoning=2))
    assert whole.usage is not None
    assert (whole.usage.output_tokens, whole.usage.output_tokens_details.reasoning_tokens) == (6, 2)
    assert (whole.status, len(whole.output_text.split())) == ("completed", 4)
    async with gpt.responses.stream(
        model=GPT, input="Hello?", max_output_tokens=3, previous_response_id=whole.id, extra_headers=wish(output=9)
    ) as stream:
        *_, last = [event async for event in stream]
    assert last.type == "response.incomplete"
    assert last.response.usage is not None
    first, second = provider.invoice.rows
    # What it continues is read again, all of it.
    told = last.response.usage
    assert (told.input_tokens, told.output_tokens) == (second.tokens.input, 3)
    assert second.tokens.input == 2 * first.tokens.input + 6


async def test_embeddings(provider: Provider, gpt: openai.AsyncOpenAI) -> None:
    provider.invoice = type(provider.invoice)(Prices({"embed": Price(Decimal("0.02"), Decimal(0), Decimal(0))}))
    provider.prices = Prices({"embed": Price(Decimal("0.02"), Decimal(0), Decimal(0))})
    answer = await gpt.embeddings.create(model="embed", input=["one", "two"])
    assert [len(one.embedding) for one in answer.data] == [3, 3]
    (row,) = provider.invoice.rows
    assert (answer.usage.prompt_tokens, row.tokens.output) == (row.tokens.input, 0)
    assert provider.invoice.nano(row) == row.tokens.input * 20


async def test_messages_and_their_stream(provider: Provider, claude: anthropic.AsyncAnthropic) -> None:
    question: Any = {"model": CLAUDE, "max_tokens": 5, "messages": HELLO}
    whole = await claude.messages.create(**question, metadata={"user_id": "u"}, extra_headers=wish(output=9))
    async with claude.messages.stream(**question, extra_headers=wish(output=3)) as stream:
        texts = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    first, second = provider.invoice.rows
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (first.tokens.input, 5)
    assert (whole.stop_reason, whole._request_id, first.user) == ("max_tokens", first.id, "u")
    assert (len(texts), final.usage.output_tokens, final.stop_reason) == (3, second.tokens.output, "end_turn")


@pytest.mark.parametrize(("ttl", "price"), [("5m", "1.25"), ("1h", "2")])
async def test_a_prompt_is_written_into_the_cache_and_read(
    provider: Provider, claude: anthropic.AsyncAnthropic, ttl: str, price: str
) -> None:
    system: Any = [{"type": "text", "text": "Be brief. " * 99, "cache_control": {"type": "ephemeral", "ttl": ttl}}]
    question: Any = {"model": CLAUDE, "max_tokens": 5, "messages": HELLO, "system": system}
    first, second = [(await claude.messages.create(**question)).usage for _ in range(2)]
    written, read = first.cache_creation_input_tokens, second.cache_read_input_tokens
    assert written is not None
    assert written == read > 200
    assert (first.cache_read_input_tokens, second.cache_creation_input_tokens) == (0, 0)
    assert first.input_tokens == second.input_tokens
    assert first.cache_creation is not None
    told = (first.cache_creation.ephemeral_5m_input_tokens, first.cache_creation.ephemeral_1h_input_tokens)
    assert told == ((written, 0) if ttl == "5m" else (0, written))
    rest = first.input_tokens * 1000 + first.output_tokens * 5000
    one, two = map(provider.invoice.nano, provider.invoice.rows)
    assert (one, two) == (rest + int(written * 1000 * Decimal(price)), rest + written * 100)


async def test_a_long_prompt_is_cached_without_asking(provider: Provider, gpt: openai.AsyncOpenAI) -> None:
    long: Any = [{"role": "user", "content": "Say it again. " * 1000}]
    told = [(await gpt.chat.completions.create(model=GPT, messages=long)).usage for _ in range(2)]
    cached = [one.prompt_tokens_details.cached_tokens for one in told if one and one.prompt_tokens_details]
    assert cached[0] == 0
    assert cached[1] == provider.invoice.rows[1].tokens.cached > 1024


async def test_gemini_whole_as_events_and_as_an_array(provider: Provider) -> None:
    wishes = {"output": 6, "reasoning": 2}
    whole, answer = await gemini(provider, "generateContent", asking(), **wishes)
    usage = json.loads(whole)["usageMetadata"]
    assert (usage["candidatesTokenCount"], usage["thoughtsTokenCount"]) == (4, 2)
    assert (json.loads(whole)["responseId"], "x-request-id" in answer.headers) == (provider.invoice.rows[0].id, False)
    events, _ = await gemini(provider, "streamGenerateContent?alt=sse", asking(), **wishes)
    told = [json.loads(event.removeprefix(b"data: ")) for event in events.split(b"\r\n\r\n") if event]
    array, _ = await gemini(provider, "streamGenerateContent", asking(maxOutputTokens=5), **wishes)
    assert told[-1]["usageMetadata"] == usage
    assert json.loads(array)[-1]["usageMetadata"]["totalTokenCount"] == usage["promptTokenCount"] + 5
    assert json.loads(array)[-1]["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert [row.tokens.output for row in provider.invoice.rows] == [6, 6, 5]


# ---- what goes wrong


async def test_a_stream_that_is_left_is_billed_as_far_as_it_came(provider: Provider, gpt: openai.AsyncOpenAI) -> None:
    stream = await gpt.chat.completions.create(
        model=GPT, messages=HELLO, stream=True, extra_headers=wish(output=1_000_000)
    )
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    (row,) = await provider.rows(1)
    assert row.outcome == "left"
    assert 1 <= row.tokens.output < 1_000_000


async def test_a_stream_goes_on_until_it_is_noticed_that_it_is_left(
    provider: Provider, gpt: openai.AsyncOpenAI
) -> None:
    stream = await gpt.chat.completions.create(
        model=GPT, messages=HELLO, stream=True, extra_headers=wish(output=40, delay_ms=2, lag_ms=60_000)
    )
    await anext(aiter(stream))
    await stream.close()
    (row,) = await provider.rows(1)
    assert (row.outcome, row.tokens.output) == ("left", 40)


async def test_an_answer_that_is_left_while_it_is_made(provider: Provider, gpt: openai.AsyncOpenAI) -> None:
    for wishes, billed in (({"head_ms": 60_000, "output": 9}, {9}), ({"delay_ms": 6000, "output": 9}, {1})):
        with pytest.raises(openai.APITimeoutError):
            await gpt.chat.completions.create(model=GPT, messages=HELLO, timeout=0.05, extra_headers=wish(**wishes))
        row = (await provider.rows(len(provider.invoice.rows) + 1))[-1]
        assert (row.outcome, row.tokens.output in billed) == ("left", True)


async def test_a_broken_stream_is_billed_as_far_as_it_came(
    provider: Provider, gpt: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic
) -> None:
    stream = await gpt.chat.completions.create(
        model=GPT, messages=HELLO, stream=True, extra_headers=wish(output=9, break_at=3, reasoning=2)
    )
    with pytest.raises(openai.APIConnectionError):
        _ = [chunk async for chunk in stream]
    with pytest.raises(anthropic.APIStatusError):
        async with claude.messages.stream(
            model=CLAUDE, max_tokens=9, messages=HELLO, extra_headers=wish(output=9, fail_at=4)
        ) as failing:
            _ = [text async for text in failing.text_stream]
    told = [(row.outcome, row.tokens.output) for row in provider.invoice.rows]
    assert told == [("broken", 5), ("failed", 4)]


async def test_json_that_breaks_is_billed_whole(provider: Provider, gpt: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APIConnectionError):
        await gpt.chat.completions.create(model=GPT, messages=HELLO, extra_headers=wish(output=9, break_at=0))
    assert [(row.outcome, row.tokens.output) for row in provider.invoice.rows] == [("broken", 9)]


async def test_missing_usage_is_billed_all_the_same(provider: Provider, gpt: openai.AsyncOpenAI) -> None:
    answer = await gpt.chat.completions.create(model=GPT, messages=HELLO, extra_headers=wish(usage="off", output=2))
    assert answer.usage is None
    assert provider.invoice.rows[0].tokens.output == 2


async def test_errors_are_the_sdks_own_and_are_not_billed(
    provider: Provider, gpt: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic
) -> None:
    with pytest.raises(openai.RateLimitError):
        await gpt.chat.completions.create(model=GPT, messages=HELLO, extra_headers=wish(status=429))
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await gpt.chat.completions.create(model="made-up", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        await gpt.chat.completions.create(model=GPT, messages=HELLO, max_tokens=0)
    with pytest.raises(anthropic.InternalServerError):
        await claude.messages.create(model=CLAUDE, max_tokens=1, messages=HELLO, extra_headers=wish(status=529))
    assert provider.invoice.rows == []


# ---- how it is sent


@pytest.mark.parametrize("stream", [True, False], ids=["events", "JSON"])
async def test_it_compresses_only_where_that_is_accepted(provider: Provider, *, stream: bool) -> None:
    question = {"model": GPT, "messages": HELLO, "stream": stream}
    plain = {}
    for coding in ("gzip", "identity"):
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            fields = {"Accept-Encoding": coding, **wish(gzip=1, chunked=1)}
            async with session.post(f"{provider.url}/v1/chat/completions", json=question, headers=fields) as answer:
                content = await answer.read()
                assert answer.headers.get("content-encoding") == ("gzip" if coding == "gzip" else None)
                plain[coding] = gzip.decompress(content) if coding == "gzip" else content
    assert plain["gzip"].replace(b"0001", b"0002") == plain["identity"]


async def test_a_body_in_chunks_and_in_pieces_is_read(provider: Provider) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in json.dumps({"model": GPT, "messages": HELLO}).split(" "):
            yield piece.encode()

    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{provider.url}/v1/chat/completions", data=pieces(), expect100=True) as answer,
    ):
        assert answer.status == 200


# ---- what it counts


def test_no_text_has_more_tokens_than_bytes() -> None:
    for text in ("", "a", "Hello?", "ü", "\U0001f600" * 3):
        for seed in range(50):
            assert count_text(text, seed) <= count_text(text, seed, dense=True) == len(text.encode())


async def test_an_image_elsewhere_has_tokens_that_no_byte_shows(provider: Provider, gpt: openai.AsyncOpenAI) -> None:
    parts: Any = [{"type": "image_url", "image_url": {"url": "https://i.test/1.png"}}]
    await gpt.chat.completions.create(model=GPT, messages=[{"role": "user", "content": parts}])
    assert provider.invoice.rows[0].tokens.input > IMAGE_TOKENS


def test_a_cost_is_rounded_up_once() -> None:
    prices = Prices({"m": Price(Decimal("0.0125"), Decimal("0.0001"), Decimal("0.0125"))})
    # 12.5 nano-USD each: two of them are 25, not 26.
    assert prices.nano("m", Tokens(1, output=1)) == 25
    assert prices.nano("m", Tokens(1)) == 13
    assert prices.nano("m", Tokens(1, cached=1)) == 1
    with pytest.raises(LookupError):
        prices.nano("made-up", Tokens(1))


async def test_as_a_process_it_leaves_its_invoice(tmp_path: Path) -> None:
    conf, bill = tmp_path / "gateway.toml", tmp_path / "invoice.csv"
    conf.write_text('[prices."m"]\ninput = 1.5\ncached_input = 0.1\noutput = 2\n', encoding="utf-8")
    assert dict(own_prices(conf)) == {"m": Price(Decimal("1.5"), Decimal("0.1"), Decimal(2))}
    command = [sys.executable, "-m", "tests.kit.provider", "--port", "0", "--csv", str(bill), "--prices", str(conf)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        url = (await soon(process.stdout.readline())).decode().split()[-1]
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k") as client:
            await client.chat.completions.create(model="m", messages=HELLO, extra_headers=wish(output=7, user="u"))
        async with aiohttp.ClientSession() as session, session.get(f"{url}/invoice") as answer:
            told = await answer.json()
        process.terminate()
        assert await soon(process.wait()) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    (row,) = csv.DictReader(io.StringIO(bill.read_text(encoding="utf-8")))
    assert (row["model"], row["user"], row["output_tokens"]) == ("m", "u", "7")
    cost = (int(row["input_tokens"]) * Decimal("1.5") + 14) / 1_000_000
    assert (Decimal(row["cost_usd"]), Decimal(told["usd"]), told["requests"]) == (cost, cost, 1)
