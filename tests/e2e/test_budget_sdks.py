"""The official SDKs under budgets: what they see, what the provider billed, and what the ledger holds of it."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from gateway import Config, Gateway
from gateway.budgets.spending import Entry, Mark
from tests.e2e import KEY
from tests.kit.billing import Price, Prices
from tests.kit.held import held
from tests.kit.provider import Provider
from tests.kit.provider_jobs import Wishes
from tests.kit.sdks import anthropic, openai
from tests.kit.upstream import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import httpx

GPT, CLAUDE, GEMINI, LEGACY = "gpt-4o-mini", "claude-haiku-4-5", "gemini-2.5-flash", "gpt-3.5-turbo-instruct"
HELLO: Any = [{"role": "user", "content": "Hello?"}]
CHAT: Any = {"model": GPT, "messages": HELLO, "max_tokens": 50}
MESSAGE: Any = {"model": CLAUDE, "messages": HELLO, "max_tokens": 50}
ADMIN = "an-admin-key-of-32-characters-xx"
PLENTY = "5 USD/minute, 1000000 tokens/minute"


CODED = pytest.mark.parametrize("provider", [True, False], ids=["gzip", "plain"], indirect=True)


@pytest.fixture
async def provider(request: pytest.FixtureRequest) -> AsyncIterator[Provider]:
    # The SDKs accept gzip, and so a metered answer comes compressed where the API likes to.
    async with Provider(wishes=Wishes(gzip=getattr(request, "param", True), output=7)) as running:
        yield running


@pytest.fixture
async def plain() -> AsyncIterator[Provider]:
    async with Provider(wishes=Wishes(output=7)) as running:
        yield running


def config(provider: Provider, **settings: Any) -> Config:
    return Config(
        **{
            "target_api_url": provider.url,
            "target_api_key": KEY,
            "target_cost": "llm",
            "rate_limit": "10000/minute",
            "admin_key": ADMIN,
            **settings,
        }
    )


class Budgeted:
    """A gateway, and the SDKs with a token of it."""

    def __init__(self, gateway: Gateway, provider: Provider, budget: str) -> None:
        self.gateway = gateway
        self.provider = provider
        self.token = gateway.issue_token(budgets=budget.split(", "))
        self.asked: list[httpx.Request] = []

    def gpt(self, **options: Any) -> openai.AsyncOpenAI:
        client = openai.DefaultAsyncHttpxClient(event_hooks={"request": [self._note]})
        return openai.AsyncOpenAI(
            base_url=f"{self.gateway.url}/api/v1",
            api_key=self.token,
            http_client=client,
            **{"timeout": TIMEOUT_S, **options},
        )

    def claude(self, **options: Any) -> anthropic.AsyncAnthropic:
        client = anthropic.DefaultAsyncHttpxClient(event_hooks={"request": [self._note]})
        return anthropic.AsyncAnthropic(
            base_url=f"{self.gateway.url}/api",
            api_key=self.token,
            http_client=client,
            **{"timeout": TIMEOUT_S, **options},
        )

    async def _note(self, request: httpx.Request) -> None:
        self.asked.append(request)

    async def agrees(self, count: int = 1) -> list[Entry]:
        """Wait until so many requests are settled; all of them are exact, and as the provider billed them."""
        entries = await held(self.gateway.url, ADMIN, count)
        rows = {row.id: row for row in self.provider.invoice.rows}
        assert {entry.upstream_id for entry in entries} == rows.keys()
        for entry in entries:
            row = rows[entry.upstream_id]
            told = row.tokens.input + row.tokens.output
            assert (entry.mark, entry.model) == (Mark.EXACT, row.model)
            assert entry.cost == {"USD": self.provider.invoice.nano(row), "tokens": told}
            assert entry.cost["USD"] <= entry.reserved["USD"]
            assert (entry.units["output"], entry.status) == (row.tokens.output, 200)
        return entries

    async def covers(self, *, sure: Mark = Mark.ESTIMATED) -> Entry:
        """Wait until one request is settled: not exactly, but for no less than was billed, and than was reserved."""
        (entry,) = await held(self.gateway.url, ADMIN, 1)
        (row,) = await self.provider.rows(1)
        assert entry.mark is sure
        assert self.provider.invoice.nano(row) <= entry.cost["USD"] <= entry.reserved["USD"]
        return entry


@pytest.fixture
async def budgeted(provider: Provider) -> AsyncIterator[Budgeted]:
    async with Gateway(config(provider)) as gateway:
        yield Budgeted(gateway, provider, PLENTY)


@pytest.fixture
async def plainly(plain: Provider) -> AsyncIterator[Budgeted]:
    async with Gateway(config(plain)) as gateway:
        yield Budgeted(gateway, plain, PLENTY)


def wish(**wishes: object) -> dict[str, str]:
    return {"X-Mock": ",".join(f"{name}={value}" for name, value in wishes.items())}


def words(text: str | None) -> int:
    return len((text or "").split())


# ---- what is whole is exact


@CODED
async def test_chat(budgeted: Budgeted) -> None:
    async with budgeted.gpt() as client:
        answer = await client.chat.completions.create(**CHAT, n=2, extra_headers=wish(output=9, reasoning=4))
    assert [words(choice.message.content) for choice in answer.choices] == [7, 7]
    (entry,) = await budgeted.agrees()
    assert entry.units["output"] == 18


async def test_a_chat_stream_has_no_chunk_that_nobody_asked_for(budgeted: Budgeted) -> None:
    async with budgeted.gpt() as client:
        stream = await client.chat.completions.create(**CHAT, stream=True)
        chunks = [chunk async for chunk in stream]
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices).split() == [
        *("the", "loop", "asks", "again", "what", "it", "costs")
    ]
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"
    await budgeted.agrees()


async def test_the_usage_of_a_stream_that_asked_for_it_is_there_once(budgeted: Budgeted) -> None:
    async with budgeted.gpt() as client:
        stream = await client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
        told = [chunk.usage async for chunk in stream if chunk.usage is not None]
    assert [usage.completion_tokens for usage in told] == [7]
    await budgeted.agrees()


async def test_a_stream_is_byte_for_byte_what_the_provider_says(plainly: Budgeted) -> None:
    content = {**CHAT, "stream": True}
    said = []
    async with aiohttp.ClientSession() as session:
        for base in (plainly.provider.url, f"{plainly.gateway.url}/api"):
            fields = {"Authorization": f"Bearer {plainly.token}"}
            async with session.post(f"{base}/v1/chat/completions", json=content, headers=fields) as answer:
                said.append(await answer.read())
    direct, through = said
    first, second = (row.id.encode() for row in plainly.provider.invoice.rows)
    # An API tells of usage to come in each chunk: `null` is nothing that a client would stumble over.
    assert through.replace(second, first).replace(b',"usage":null', b"") == direct


async def test_legacy_completions(budgeted: Budgeted) -> None:
    async with budgeted.gpt() as client:
        whole = await client.completions.create(model=LEGACY, prompt=["one", "two"], max_tokens=5)
        stream = await client.completions.create(model=LEGACY, prompt="x", stream=True)
        chunks = [chunk async for chunk in stream]
    assert [words(choice.text) for choice in whole.choices] == [5, 5]
    assert words("".join(chunk.choices[0].text for chunk in chunks)) == 7
    assert all(chunk.usage is None for chunk in chunks)
    await budgeted.agrees(2)


@CODED
async def test_responses(budgeted: Budgeted) -> None:
    async with budgeted.gpt() as client:
        whole = await client.responses.create(
            model=GPT, input="Hello?", max_output_tokens=20, extra_headers=wish(output=9, reasoning=3)
        )
        async with client.responses.stream(model=GPT, input="Hello?", max_output_tokens=20) as stream:
            events = [event.type async for event in stream]
            last = await stream.get_final_response()
    assert (words(whole.output_text), words(last.output_text)) == (6, 7)
    assert events.count("response.output_text.delta") == 7
    await budgeted.agrees(2)


async def test_embeddings() -> None:
    own = {"embed": Price(Decimal("0.02"), Decimal("0.02"), Decimal(0))}
    async with Provider(Prices(own)) as provider:
        prices = {"embed": {"input": 0.02, "output": 0}}
        async with Gateway(config(provider, prices=prices)) as gateway:
            budgeted = Budgeted(gateway, provider, PLENTY)
            async with budgeted.gpt() as client:
                answer = await client.embeddings.create(model="embed", input=["one", "two"])
            assert [len(one.embedding) for one in answer.data] == [3, 3]
            (entry,) = await budgeted.agrees()
            assert entry.units["output"] == 0


@CODED
async def test_messages(budgeted: Budgeted) -> None:
    async with budgeted.claude() as client:
        whole = await client.messages.create(**MESSAGE, extra_headers=wish(output=99))
        async with client.messages.stream(**MESSAGE) as stream:
            texts = [text async for text in stream.text_stream]
            final = await stream.get_final_message()
    assert (whole.stop_reason, whole.usage.output_tokens) == ("max_tokens", 50)
    assert (len(texts), final.usage.output_tokens) == (7, 7)
    await budgeted.agrees(2)


@pytest.mark.parametrize("ttl", ["5m", "1h"])
async def test_a_prompt_in_anthropics_cache(budgeted: Budgeted, ttl: str) -> None:
    system: Any = [{"type": "text", "text": "Be brief. " * 99, "cache_control": {"type": "ephemeral", "ttl": ttl}}]
    async with budgeted.claude() as client:
        first = await client.messages.create(**MESSAGE, system=system)
        async with client.messages.stream(**MESSAGE, system=system) as stream:
            second = await stream.get_final_message()
    assert first.usage.cache_creation_input_tokens == second.usage.cache_read_input_tokens
    written, read = await budgeted.agrees(2)
    assert written.cost["USD"] > read.cost["USD"]


async def test_a_prompt_in_openais_cache(budgeted: Budgeted) -> None:
    long: Any = [{"role": "user", "content": "Say it again. " * 1000}]
    async with budgeted.gpt() as client:
        for _ in range(2):
            await client.chat.completions.create(model=GPT, messages=long, max_tokens=5)
    first, second = await budgeted.agrees(2)
    assert first.cost["USD"] > second.cost["USD"]


@pytest.mark.parametrize("way", ["generateContent", "streamGenerateContent?alt=sse", "streamGenerateContent"])
async def test_gemini(budgeted: Budgeted, way: str) -> None:
    content = {
        "contents": [{"role": "user", "parts": [{"text": "Hello?"}]}],
        "generationConfig": {"maxOutputTokens": 20},
    }
    url = f"{budgeted.gateway.url}/api/v1beta/models/{GEMINI}:{way}"
    fields = {"x-goog-api-key": budgeted.token, "Accept-Encoding": "gzip", **wish(reasoning=3)}
    async with aiohttp.ClientSession() as session, session.post(url, json=content, headers=fields) as answer:
        said = await answer.text()
    assert said.count("totalTokenCount") == (1 if way == "generateContent" else 5)
    (entry,) = await budgeted.agrees()
    assert entry.units["output"] == 7


async def test_the_sync_sdks(budgeted: Budgeted) -> None:
    def ask() -> tuple[str | None, int, str, int]:
        options: Any = {"api_key": budgeted.token}
        with openai.OpenAI(base_url=f"{budgeted.gateway.url}/api/v1", **options) as client:
            said = client.chat.completions.create(**CHAT).choices[0].message.content
            chunks = list(client.chat.completions.create(**CHAT, stream=True))
        with anthropic.Anthropic(base_url=f"{budgeted.gateway.url}/api", **options) as other:
            message: Any = other.messages.create(**MESSAGE)
            with other.messages.stream(**MESSAGE) as stream:
                texts = list(stream.text_stream)
        return said, len(chunks), message.content[0].text, len(texts)

    said, chunks, text, texts = await asyncio.wait_for(asyncio.to_thread(ask), 20)
    # One to begin with, one to end with, and none with usage.
    assert (words(said), chunks, words(text), texts) == (7, 9, 7, 7)
    await budgeted.agrees(4)


async def test_an_error_of_the_api_costs_nothing(plainly: Budgeted) -> None:
    async with plainly.gpt(max_retries=0) as client:
        with pytest.raises(openai.InternalServerError, match="as wished"):
            await client.chat.completions.create(**CHAT, extra_headers=wish(status=500))
    (entry,) = await held(plainly.gateway.url, ADMIN, 1)
    assert (entry.mark, entry.status, sum(entry.cost.values())) == (Mark.EXACT, 500, 0)
    assert plainly.provider.invoice.rows == []


# ---- what is not whole costs no less than is billed


@pytest.mark.parametrize("stream", [True, False], ids=["events", "JSON"])
async def test_missing_usage(budgeted: Budgeted, *, stream: bool) -> None:
    async with budgeted.gpt() as client:
        answer: Any = await client.chat.completions.create(
            **CHAT, stream=stream, extra_headers=wish(usage=0, reasoning=5)
        )
        if stream:
            _ = [chunk async for chunk in answer]
    await budgeted.covers()


async def test_a_stream_that_breaks(budgeted: Budgeted) -> None:
    async with budgeted.gpt(max_retries=0) as client:
        stream = await client.chat.completions.create(
            **CHAT, stream=True, extra_headers=wish(output=20, break_at=5, reasoning=9)
        )
        with pytest.raises(openai.APIError):
            _ = [chunk async for chunk in stream]
    await budgeted.covers()


async def test_json_that_breaks(plainly: Budgeted) -> None:
    async with plainly.gpt(max_retries=0) as client:
        with pytest.raises(openai.APIConnectionError):
            await client.chat.completions.create(**CHAT, extra_headers=wish(break_at=0))
    await plainly.covers()


async def test_a_stream_that_fails_says_so(budgeted: Budgeted) -> None:
    async with budgeted.claude(max_retries=0) as client:
        with pytest.raises(anthropic.APIStatusError):
            async with client.messages.stream(**MESSAGE, extra_headers=wish(fail_at=4)) as stream:
                _ = [text async for text in stream.text_stream]
    await budgeted.covers()


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
async def test_a_stream_that_is_left(budgeted: Budgeted, sdk: str) -> None:
    # More than any buffer on the way holds: it is not made to its end before anybody notices.
    long = wish(output=100_000, reasoning=3)
    if sdk == "openai":
        async with budgeted.gpt() as client:
            stream = await client.chat.completions.create(
                model=GPT, messages=HELLO, max_tokens=100_000, stream=True, extra_headers=long
            )
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
            await stream.close()
    else:
        async with budgeted.claude() as other:
            options: Any = {**MESSAGE, "max_tokens": 100_000}
            async with other.messages.stream(**options, extra_headers=long) as texts:
                async for _ in texts.text_stream:
                    break
    await budgeted.covers()
    assert budgeted.provider.invoice.rows[0].outcome == "left"


async def test_an_answer_that_nobody_waited_for(plainly: Budgeted) -> None:
    async with plainly.gpt(max_retries=0, timeout=0.1) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(**CHAT, extra_headers=wish(head_ms=60_000, output=20))
    await plainly.covers()


async def test_a_provider_that_notices_late_that_a_stream_is_left(plainly: Budgeted) -> None:
    # Near to a thousand tokens a second, for a fifth of a second.
    late = wish(output=2000, delay_ms=1, lag_ms=200)
    async with plainly.gpt() as client:
        stream = await client.chat.completions.create(
            model=GPT, messages=HELLO, max_tokens=2000, stream=True, extra_headers=late
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
    await plainly.covers()


async def test_a_stream_that_is_left_is_read_on_for_its_price(plain: Provider) -> None:
    async with Gateway(config(plain, on_disconnect="drain:20s")) as gateway:
        budgeted = Budgeted(gateway, plain, PLENTY)
        async with budgeted.gpt() as client:
            stream = await client.chat.completions.create(
                **CHAT, stream=True, extra_headers=wish(output=40, delay_ms=5)
            )
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
            await stream.close()
        (entry,) = await budgeted.agrees()
        assert entry.units["output"] == 40


# ---- refusals


async def spend(client: openai.AsyncOpenAI) -> None:
    while True:
        await client.chat.completions.create(**CHAT)


async def talk(client: anthropic.AsyncAnthropic) -> None:
    while True:
        await client.messages.create(**MESSAGE)


async def test_a_spent_budget_is_the_sdks_own_error_and_nobody_asks_again(plain: Provider) -> None:
    async with Gateway(config(plain)) as gateway:
        budgeted = Budgeted(gateway, plain, "0.0001 USD/6h")
        async with budgeted.gpt() as client:
            with pytest.raises(openai.RateLimitError) as caught:
                await spend(client)
        assert (caught.value.code, caught.value.type) == ("budget_exceeded", "insufficient_quota")
        assert caught.value.response.headers["x-should-retry"] == "false"
        told = caught.value.response.json()
        assert (told["limit"], told["unit"]) == (0.0001, "USD")
        assert 0 < told["used"] <= 0.0001
        # Each was asked for once, and the last never reached the API.
        assert len(budgeted.asked) == len(plain.heads) + 1 > 2
        assert plain.invoice.total <= 0.0001
        await budgeted.agrees(len(plain.heads))


async def test_a_spent_budget_is_anthropics_own_error(plain: Provider) -> None:
    async with Gateway(config(plain)) as gateway:
        budgeted = Budgeted(gateway, plain, "0.001 USD/6h")
        async with budgeted.claude() as client:
            with pytest.raises(anthropic.RateLimitError) as caught:
                await talk(client)
        told: Any = caught.value.body
        assert (told["type"], told["error"]["code"]) == ("error", "budget_exceeded")
        assert len(budgeted.asked) == len(plain.heads) + 1 > 2
        await budgeted.agrees(len(plain.heads))


async def test_a_request_that_could_cost_more_than_the_whole_budget(plain: Provider) -> None:
    async with Gateway(config(plain)) as gateway:
        budgeted = Budgeted(gateway, plain, "0.00001 USD/6h")
        async with budgeted.gpt() as client:
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(**CHAT)
        assert caught.value.code == "budget_exceeded"
        assert (len(budgeted.asked), plain.heads) == (1, [])


async def test_a_model_without_a_price_is_never_free(plain: Provider) -> None:
    async with Gateway(config(plain)) as gateway:
        budgeted = Budgeted(gateway, plain, PLENTY)
        async with budgeted.gpt() as client:
            with pytest.raises(openai.PermissionDeniedError) as caught:
                await client.chat.completions.create(model="made-up", messages=HELLO)
        assert caught.value.code == "price_unknown"
        assert plain.heads == []


async def test_a_hundred_at_once_cost_no_more_than_the_budget(plain: Provider) -> None:
    async with Gateway(config(plain)) as gateway:
        budgeted = Budgeted(gateway, plain, "0.001 USD/6h")

        async def ask(client: openai.AsyncOpenAI) -> bool:
            try:
                await client.chat.completions.create(**CHAT, extra_headers=wish(output=50, head_ms=20))
            except openai.RateLimitError:
                return False
            return True

        async with budgeted.gpt(max_retries=0) as client:
            passed = await asyncio.gather(*(ask(client) for _ in range(100)))
        assert 0 < sum(passed) < 100
        assert sum(passed) == len(plain.heads)
        assert plain.invoice.total <= 0.001
        await budgeted.agrees(sum(passed))


# ---- streams that cost more than was reserved


async def test_a_chat_that_runs_into_its_budget_is_ended(plain: Provider) -> None:
    async with Gateway(config(plain, budget_cut="on")) as gateway:
        budgeted = Budgeted(gateway, plain, "0.003 USD/6h")
        async with budgeted.gpt() as client:
            # It sets no limit, and says more than such requests are reserved for.
            stream = await client.chat.completions.create(
                model=GPT, messages=HELLO, stream=True, extra_headers=wish(output=20_000)
            )
            with pytest.raises(openai.APIError, match="budget of this token is spent") as caught:
                _ = [chunk async for chunk in stream]
        (entry,) = await held(gateway.url, ADMIN, 1)
    assert (caught.value.code, caught.value.type) == ("budget_exceeded", "insufficient_quota")
    assert plain.invoice.nano(plain.invoice.rows[0]) <= entry.cost["USD"] <= 3_000_000
    assert plain.invoice.rows[0].tokens.output < 20_000


async def test_a_response_that_runs_into_its_budget_is_ended(plain: Provider) -> None:
    async with Gateway(config(plain, budget_cut="on")) as gateway:
        budgeted = Budgeted(gateway, plain, "0.003 USD/6h")
        async with budgeted.gpt() as client:
            stream = await client.responses.create(
                model=GPT, input="Hello?", stream=True, extra_headers=wish(output=20_000)
            )
            *events, last = [event async for event in stream]
        (entry,) = await held(gateway.url, ADMIN, 1)
    assert last.type == "error"
    assert (last.code, last.sequence_number) == ("budget_exceeded", len(events))
    # By the bytes of their text, of which no token has more than six.
    said = sum(event.type == "response.output_text.delta" for event in events)
    assert 4096 / 6 < said < 20_000
    assert plain.invoice.nano(plain.invoice.rows[0]) <= entry.cost["USD"] <= 3_000_000


async def asks_chat(budgeted: Budgeted, **limit: Any) -> None:
    async with budgeted.gpt() as client:
        await client.chat.completions.create(model=GPT, messages=HELLO, **limit)


async def asks_responses(budgeted: Budgeted, **limit: Any) -> None:
    async with budgeted.gpt() as client:
        await client.responses.create(model=GPT, input="Hello?", **limit)


async def asks_messages(budgeted: Budgeted, **limit: Any) -> None:
    async with budgeted.claude() as client:
        await client.messages.create(model=CLAUDE, messages=HELLO, **limit)


@pytest.mark.parametrize(
    ("asks", "name"),
    [
        (asks_chat, ""),
        (asks_chat, "max_tokens"),
        (asks_chat, "max_completion_tokens"),
        (asks_responses, ""),
        (asks_responses, "max_output_tokens"),
        (asks_messages, "max_tokens"),
    ],
)
async def test_what_there_is_no_money_for_is_not_asked_for(
    plain: Provider, asks: Callable[..., Awaitable[None]], name: str
) -> None:
    plain.wishes = Wishes(output=10_000)
    async with Gateway(config(plain, budget_clamp="on")) as gateway:
        budgeted = Budgeted(gateway, plain, "0.001 USD/6h")
        await asks(budgeted, **({name: 9000} if name else {}))
        (entry,) = await budgeted.agrees()
    (sent,) = map(json.loads, plain.bodies)
    names = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    (limit,) = [sent[one] for one in (names if not name else (name,)) if one in sent]
    # All of it is used, to less than the price of one more token.
    assert entry.units["output"] == limit < 9000
    assert 990_000 < entry.reserved["USD"] <= 1_000_000
    assert entry.cost["USD"] <= 1_000_000
