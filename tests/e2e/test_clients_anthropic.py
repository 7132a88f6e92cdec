"""The Anthropic SDK, unchanged but for a base URL and a key: its own field for the key, its events, its errors."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from gateway import Config, Gateway
from tests.kit.sdks import anthropic
from tests.kit.upstream import Call, Upstream, answering, chunk, head, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEY: Final = "sk-ant-the-real-key"
WORDS: Final = ["Rate", " limits", " hold", "."]
QUESTION: Final[dict[str, Any]] = {
    "model": "mock-1",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Do they?"}],
}
MESSAGE: Final[dict[str, Any]] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "mock-1",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 1},
}


async def messages(call: Call) -> None:
    """Answer as the API does, one event for each word where a stream is asked for."""
    asked = json.loads(await call.content())
    assert asked["messages"] == QUESTION["messages"]
    if not asked.get("stream"):
        whole = {**MESSAGE, "content": [{"type": "text", "text": "".join(WORDS)}], "stop_reason": "end_turn"}
        await answering(json.dumps(whole).encode(), "200 OK", "Content-Type: application/json")(call)
        return
    call.write(head("200 OK", "Content-Type: text/event-stream; charset=utf-8", "Transfer-Encoding: chunked"))
    await say(call, "message_start", message=MESSAGE)
    await say(call, "content_block_start", index=0, content_block={"type": "text", "text": ""})
    for word in WORDS:
        await say(call, "content_block_delta", index=0, delta={"type": "text_delta", "text": word})
    await say(call, "content_block_stop", index=0)
    ended = {"stop_reason": "end_turn", "stop_sequence": None}
    await say(call, "message_delta", delta=ended, usage={"output_tokens": 4})
    await say(call, "message_stop")
    call.write(chunk(b""))


async def say(call: Call, kind: str, **event: object) -> None:
    data = json.dumps({"type": kind, **event}).encode()
    await call.send(chunk(b"event: %b\ndata: %b\n\n" % (kind.encode(), data)))


async def endless(call: Call) -> None:
    await call.content()
    call.write(head("200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked"))
    await say(call, "message_start", message=MESSAGE)
    await say(call, "content_block_start", index=0, content_block={"type": "text", "text": ""})
    while True:
        await say(call, "content_block_delta", index=0, delta={"type": "text_delta", "text": "and so on "})


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        running.paths = {b"/v1/messages": messages}
        yield running


@pytest.fixture
async def gateway(upstream: Upstream) -> AsyncIterator[Gateway]:
    # The SDK puts /v1/ before its paths itself.
    target = upstream.url.removesuffix("/v1")
    config = Config(target_api_url=target, target_api_key=KEY, target_api_auth="header:x-api-key", rate_limit="99/hour")
    async with Gateway(config) as running:
        yield running


def client_of(gateway: Gateway, token: str, **options: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=f"{gateway.url}/api", api_key=token, **options)


def came_with_the_key(upstream: Upstream, token: str) -> bool:
    return all(
        received.field(b"x-api-key") == KEY.encode()
        and received.field(b"authorization") is None
        and received.field(b"anthropic-version") is not None
        and token.encode() not in received.head
        for received in upstream.requests
    )


async def test_the_async_sdk(upstream: Upstream, gateway: Gateway) -> None:
    token = gateway.issue_token()
    async with client_of(gateway, token) as client:
        message = await client.messages.create(**QUESTION)
        assert message.content[0].text == "".join(WORDS)
        async with client.messages.stream(**QUESTION) as stream:
            assert [text async for text in stream.text_stream] == WORDS
            assert (await stream.get_final_message()).usage.output_tokens == 4
    assert [received.start_line for received in upstream.requests] == [b"POST /v1/messages HTTP/1.1"] * 2
    assert came_with_the_key(upstream, token)
    assert len(upstream.connections) == 1


async def test_the_sync_sdk(upstream: Upstream, gateway: Gateway) -> None:
    token = gateway.issue_token()

    def talk() -> tuple[str, list[str]]:
        with anthropic.Anthropic(base_url=f"{gateway.url}/api", api_key=token) as client:
            message = client.messages.create(**QUESTION)
            with client.messages.stream(**QUESTION) as stream:
                return message.content[0].text, list(stream.text_stream)

    assert await soon(asyncio.to_thread(talk)) == ("".join(WORDS), WORDS)
    assert came_with_the_key(upstream, token)


async def test_a_token_in_the_other_field(upstream: Upstream, gateway: Gateway) -> None:
    token = gateway.issue_token()
    # `auth_token` goes into Authorization: Bearer; the key still goes up where the API wants it.
    async with anthropic.AsyncAnthropic(base_url=f"{gateway.url}/api", auth_token=token) as client:
        assert (await client.messages.create(**QUESTION)).stop_reason == "end_turn"
    assert came_with_the_key(upstream, token)


async def test_leaving_a_stream_ends_it_upstream(upstream: Upstream, gateway: Gateway) -> None:
    upstream.paths = {b"/v1/messages": endless}
    async with client_of(gateway, gateway.issue_token()) as client:
        async with client.messages.stream(**QUESTION) as stream:
            async for text in stream.text_stream:
                assert text == "and so on "
                break
        await soon(upstream.connections[0].ended.wait())


async def test_a_refusal_is_the_sdks_own_error_and_is_not_repeated(upstream: Upstream, gateway: Gateway) -> None:
    async with client_of(gateway, gateway.issue_token(limits=["1/hour"])) as client:
        await client.messages.create(**QUESTION)
        with pytest.raises(anthropic.RateLimitError) as caught:
            await client.messages.create(**QUESTION)
    assert "The limit 'hour' allows 1 requests" in str(caught.value)
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(upstream.requests) == 1


async def test_a_bad_token_is_the_sdks_own_error(upstream: Upstream, gateway: Gateway) -> None:
    async with client_of(gateway, "made-up") as client:
        with pytest.raises(anthropic.AuthenticationError, match="token"):
            await client.messages.create(**QUESTION)
    assert upstream.connections == []


async def test_a_lost_upstream_is_the_sdks_own_error(upstream: Upstream, gateway: Gateway) -> None:
    async def closing(call: Call) -> None:
        call.keep_alive = False

    upstream.paths = {b"/v1/messages": closing}
    async with client_of(gateway, gateway.issue_token(), max_retries=0) as client:
        with pytest.raises(anthropic.InternalServerError) as caught:
            await client.messages.create(**QUESTION)
    assert caught.value.status_code == 502
    assert caught.value.response.headers["x-gateway-error"] == "upstream_unreachable"


async def test_a_stream_cut_short_is_an_error(upstream: Upstream, gateway: Gateway) -> None:
    async def cut(call: Call) -> None:
        await call.content()
        call.write(head("200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked"))
        await say(call, "message_start", message=MESSAGE)
        await say(call, "content_block_start", index=0, content_block={"type": "text", "text": ""})
        await say(call, "content_block_delta", index=0, delta={"type": "text_delta", "text": "half"})
        call.keep_alive = False

    upstream.paths = {b"/v1/messages": cut}
    texts = []

    async def talk() -> None:
        client = client_of(gateway, gateway.issue_token(), max_retries=0)
        async with client, client.messages.stream(**QUESTION) as stream:
            async for text in stream.text_stream:
                texts.append(text)  # noqa: PERF401 - what came before the error counts

    # Of which type it is depends on the HTTP client below it.
    (ended,) = await asyncio.gather(talk(), return_exceptions=True)
    assert (isinstance(ended, Exception), texts) == (True, ["half"])
