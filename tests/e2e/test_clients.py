"""The clients that people have, unchanged but for a base URL and a key: curl and the official SDK."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
from typing import TYPE_CHECKING

import pytest

from gateway import Config, Gateway
from tests.e2e import KEY, fetch, request
from tests.kit.programs import program, run
from tests.kit.sdks import openai
from tests.kit.upstream import (
    Call,
    Handler,
    Upstream,
    answering,
    asked_first,
    chunk,
    echo,
    head,
    in_chunks,
    soon,
    until_close,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both clients obey the environment, which is not part of these tests."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
async def gateway(upstream: Upstream) -> AsyncIterator[Gateway]:
    async with Gateway(Config(target_api_url=upstream.url, target_api_key=KEY, rate_limit="100/hour")) as running:
        yield running


# --- curl ----------------------------------------------------------------------------------------------------------


async def curl(*arguments: str, given: bytes = b"") -> tuple[int, bytes, bytes]:
    """Run curl; return its exit code and what it wrote on stdout and stderr."""
    return await run(program("curl"), "--silent", "--show-error", "--max-time", "15", *arguments, given=given)


def bearer(gateway: Gateway) -> tuple[str, str]:
    return ("--header", f"Authorization: Bearer {gateway.issue_token()}")


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1"])
@pytest.mark.parametrize("handler", [answering(b"hello"), in_chunks(b"hel", b"lo"), until_close(b"hello")])
async def test_curl_gets(upstream: Upstream, gateway: Gateway, handler: Handler, version: str) -> None:
    upstream.default = handler
    code, out, err = await curl(version, "--include", *bearer(gateway), f"{gateway.url}/api/x?q=%20")
    assert (code, err) == (0, b"")
    answer_head, _, content = out.partition(b"\r\n\r\n")
    assert answer_head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert content == b"hello"
    assert upstream.requests[0].start_line == b"GET /v1/x?q=%20 HTTP/1.1"
    assert upstream.requests[0].field(b"authorization") == f"Bearer {KEY}".encode()


async def test_curl_uses_its_connection_again(upstream: Upstream, gateway: Gateway) -> None:
    urls = [f"{gateway.url}/api/{number}" for number in range(5)]
    code, out, _ = await curl("--write-out", " %{num_connects}\n", *bearer(gateway), *urls)
    assert (code, out.splitlines()) == (0, [b"ok 1", *[b"ok 0"] * 4])
    assert (len(upstream.requests), len(upstream.connections)) == (5, 1)


async def test_curl_posts(upstream: Upstream, gateway: Gateway) -> None:
    upstream.default = echo
    code, out, _ = await curl("--data", '{"a": 1}', *bearer(gateway), f"{gateway.url}/api/x")
    assert (code, out) == (0, b'{"a": 1}')
    assert upstream.requests[0].raw_body == b'{"a": 1}'


async def test_curl_asks_for_the_head_only(upstream: Upstream, gateway: Gateway) -> None:
    upstream.default = answering(b"12345")
    code, out, _ = await curl("--head", *bearer(gateway), f"{gateway.url}/api/x", f"{gateway.url}/api/y")
    assert code == 0
    assert out.count(b"HTTP/1.1 200 OK\r\n") == out.count(b"Content-Length: 5\r\n") == 2
    assert [received.start_line[:4] for received in upstream.requests] == [b"HEAD", b"HEAD"]


async def test_curl_uploads_what_has_no_length(upstream: Upstream, gateway: Gateway) -> None:
    upstream.default = echo
    content = os.urandom(300_000)
    code, out, _ = await curl("--upload-file", "-", *bearer(gateway), f"{gateway.url}/api/x", given=content)
    assert (code, out) == (0, content)
    (received,) = upstream.requests
    assert received.field(b"transfer-encoding") == b"chunked"
    assert received.field(b"content-length") is None


@pytest.mark.parametrize("willing", [True, False], ids=["100", "417"])
async def test_curl_expects_100_continue(upstream: Upstream, gateway: Gateway, willing: bool) -> None:  # noqa: FBT001
    content = b"x" * 100_000

    upstream.default = asked_first(willing=willing)
    # Its own patience is over long after `--max-time`: only the upstream's 100 lets the body go.
    patient = ("--expect100-timeout", "3600", "--header", "Expect: 100-continue")
    code, out, _ = await curl(
        *patient,
        "--write-out",
        "%{http_code}",
        "--data-binary",
        "@-",
        *bearer(gateway),
        f"{gateway.url}/api/x",
        given=content,
    )
    received = upstream.requests[0]
    assert received.field(b"expect") == b"100-continue"
    if willing:
        assert (code, out, received.raw_body) == (0, content + b"200", content)
    else:
        # curl tries once more without Expect, as RFC 9110 §10.1.1 asks for.
        assert (code, out[-3:]) == (0, b"417")
        assert received.raw_body == b""


async def test_curl_fails_on_a_cut_answer(upstream: Upstream, gateway: Gateway) -> None:
    async def cut(call: Call) -> None:
        await call.send(head("200 OK", "Transfer-Encoding: chunked") + chunk(b"half"))
        call.keep_alive = False

    upstream.default = cut
    code, _, err = await curl(*bearer(gateway), f"{gateway.url}/api/x")
    assert code in {18, 56}, err  # partial file, failure in receiving


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_curl_offers_http_2_and_is_answered_in_1_1(upstream: Upstream, gateway: Gateway, method: str) -> None:
    upstream.default = echo if method == "POST" else answering(b"hello")
    content = ("--data", "hello") if method == "POST" else ()
    urls = [f"{gateway.url}/api/{number}" for number in range(2)]
    code, out, _ = await curl(
        *("--http2", "--write-out", " %{http_version} %{num_connects}\n", *content), *bearer(gateway), *urls
    )
    assert (code, out) == (0, b"hello 1.1 1\nhello 1.1 0\n")
    for received in upstream.requests:
        # Both were for the gateway alone (RFC 9110 §7.8).
        assert received.field(b"upgrade") is None
        assert received.field(b"http2-settings") is None


async def test_curl_that_takes_http_2_for_granted_is_refused(upstream: Upstream, gateway: Gateway) -> None:
    code, out, _ = await curl("--http2-prior-knowledge", *bearer(gateway), f"{gateway.url}/api/x")
    assert (code != 0, out) == (True, b"")
    assert upstream.connections == []


async def test_curl_at_once_on_many_connections(upstream: Upstream, gateway: Gateway) -> None:
    urls = [f"{gateway.url}/api/{number}" for number in range(40)]
    code, out, err = await curl("--parallel", "--parallel-immediate", "--no-progress-meter", *bearer(gateway), *urls)
    assert (code, out, err) == (0, b"ok" * 40, b"")
    assert {received.start_line for received in upstream.requests} == {
        f"GET /v1/{number} HTTP/1.1".encode() for number in range(40)
    }
    assert len(upstream.requests) == 40


async def test_curl_decodes_and_follows(upstream: Upstream, gateway: Gateway) -> None:
    upstream.paths = {b"/v1/old": answering(b"", "308 Permanent Redirect", "Location: new")}
    upstream.default = answering(gzip.compress(b"hello"), "200 OK", "Content-Encoding: gzip")
    code, out, _ = await curl("--compressed", "--location", "--json", "{}", *bearer(gateway), f"{gateway.url}/api/old")
    assert (code, out) == (0, b"hello")
    assert [(received.start_line, received.raw_body) for received in upstream.requests] == [
        (b"POST /v1/old HTTP/1.1", b"{}"),
        (b"POST /v1/new HTTP/1.1", b"{}"),
    ]


async def test_curl_sends_a_form_with_a_file(upstream: Upstream, gateway: Gateway, tmp_path: Path) -> None:
    upstream.default = echo
    content = os.urandom(300_000)
    (tmp_path / "file").write_bytes(content)
    code, out, _ = await curl("--form", f"file=@{tmp_path}/file", *bearer(gateway), f"{gateway.url}/api/x")
    (received,) = upstream.requests
    boundary = (received.field(b"content-type") or b"").removeprefix(b"multipart/form-data; boundary=")
    assert (code, out) == (0, received.raw_body)
    assert received.raw_body.startswith(b"--" + boundary)
    assert content in received.raw_body


async def test_curl_hears_trailers(upstream: Upstream, gateway: Gateway) -> None:
    async def with_trailers(call: Call) -> None:
        call.write(head("200 OK", "Trailer: X-Sum", "Transfer-Encoding: chunked"))
        call.write(chunk(b"hello") + b"0\r\nX-Sum: 5\r\n\r\n")

    upstream.default = with_trailers
    code, out, err = await curl("--dump-header", "/dev/stderr", *bearer(gateway), f"{gateway.url}/api/x")
    assert (code, out) == (0, b"hello")
    assert err.endswith(b"\r\n\r\nX-Sum: 5\r\n")


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_curl_hears_of_a_refusal_in_the_middle_of_its_upload(upstream: Upstream, framing: str) -> None:
    content = os.urandom(20_000_000)
    source = ("--data-binary", "@-") if framing == "length" else ("--request", "POST", "--upload-file", "-")
    async with Gateway(Config(target_api_url=upstream.url, max_body=1_000_000)) as gateway:
        code, out, err = await curl(
            *("--write-out", " %{http_code}", "--header", "Expect:", *source),
            *(*bearer(gateway), f"{gateway.url}/api/x"),
            given=content,
        )
    assert (code, out[-4:]) == (0, b" 413"), err
    assert json.loads(out[:-4])["error"]["code"] == "body_too_large"


async def test_curl_registers_and_uses_what_it_got(upstream: Upstream, gateway: Gateway) -> None:
    code, out, _ = await curl("--request", "POST", f"{gateway.url}/register")
    assert code == 0
    token = json.loads(out)["token"]
    code, out, _ = await curl("--user", f"{token}:", f"{gateway.url}/api/x")
    assert (code, out) == (0, b"ok")
    assert upstream.requests[0].field(b"authorization") == f"Bearer {KEY}".encode()


# --- the OpenAI SDK ------------------------------------------------------------------------------------------------

WORDS = ["Rate", " limits", " hold", "."]
QUESTION = {"model": "mock-1", "messages": [{"role": "user", "content": "Do they?"}]}


async def chat_completions(call: Call) -> None:
    """Answer as the API does, one event for each word where a stream is asked for."""
    asked = json.loads(await call.content())
    assert asked["messages"] == QUESTION["messages"]
    common = {"id": "chatcmpl-1", "created": 1, "model": asked["model"]}
    if not asked.get("stream"):
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "".join(WORDS)}}
        completion = {**common, "object": "chat.completion", "choices": [choice]}
        await answering(json.dumps(completion).encode(), "200 OK", "Content-Type: application/json")(call)
        return
    call.write(head("200 OK", "Content-Type: text/event-stream; charset=utf-8", "Transfer-Encoding: chunked"))
    for word in WORDS:
        choice = {"index": 0, "finish_reason": None, "delta": {"content": word}}
        event = {**common, "object": "chat.completion.chunk", "choices": [choice]}
        await call.send(chunk(b"data: %b\n\n" % json.dumps(event).encode()))
    call.write(chunk(b"data: [DONE]\n\n") + chunk(b""))


async def test_the_async_sdk(upstream: Upstream, gateway: Gateway) -> None:
    upstream.paths = {b"/v1/chat/completions": chat_completions}
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/api", api_key=gateway.issue_token()) as client:
        completion = await client.chat.completions.create(**QUESTION)  # type: ignore[call-overload]
        assert completion.choices[0].message.content == "".join(WORDS)
        stream = await client.chat.completions.create(stream=True, **QUESTION)  # type: ignore[call-overload]
        assert [event.choices[0].delta.content async for event in stream] == WORDS
    assert [received.field(b"authorization") for received in upstream.requests] == [f"Bearer {KEY}".encode()] * 2
    assert len(upstream.connections) == 1


async def test_the_sync_sdk(upstream: Upstream, gateway: Gateway) -> None:
    upstream.paths = {b"/v1/chat/completions": chat_completions}
    token = gateway.issue_token()

    def talk() -> tuple[str, list[str]]:
        with openai.OpenAI(base_url=f"{gateway.url}/api", api_key=token) as client:
            completion = client.chat.completions.create(**QUESTION)  # type: ignore[call-overload]
            with client.chat.completions.create(stream=True, **QUESTION) as stream:  # type: ignore[call-overload]
                return completion.choices[0].message.content, [event.choices[0].delta.content for event in stream]

    assert await soon(asyncio.to_thread(talk)) == ("".join(WORDS), WORDS)
    assert [received.field(b"authorization") for received in upstream.requests] == [f"Bearer {KEY}".encode()] * 2


async def test_the_sdk_closing_a_stream_early_ends_it_upstream(upstream: Upstream, gateway: Gateway) -> None:
    async def endless(call: Call) -> None:
        await call.content()
        call.write(head("200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked"))
        choice = {"index": 0, "finish_reason": None, "delta": {"content": "and so on "}}
        event = {"id": "1", "created": 1, "model": "mock-1", "object": "chat.completion.chunk", "choices": [choice]}
        while True:
            await call.send(chunk(b"data: %b\n\n" % json.dumps(event).encode()))

    upstream.default = endless
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/api", api_key=gateway.issue_token()) as client:
        stream = await client.chat.completions.create(stream=True, **QUESTION)  # type: ignore[call-overload]
        async for event in stream:
            assert event.choices[0].delta.content == "and so on "
            break
        await stream.close()
        await soon(upstream.connections[0].ended.wait())


async def test_a_refusal_is_the_sdks_own_error_with_the_message(upstream: Upstream, gateway: Gateway) -> None:
    upstream.paths = {b"/v1/chat/completions": chat_completions}
    token = gateway.issue_token(limits=["1/hour"])
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/api", api_key=token) as client:
        await client.chat.completions.create(**QUESTION)  # type: ignore[call-overload]
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(**QUESTION)  # type: ignore[call-overload]
    assert "The limit 'hour' allows 1 requests" in str(caught.value)
    assert (caught.value.code, caught.value.type) == ("rate_limited", "rate_limit_error")
    # The SDK obeys this one: it did not ask again.
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(upstream.requests) == 1


async def test_a_bad_token_is_the_sdks_own_error(upstream: Upstream, gateway: Gateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/api", api_key="made-up") as client:
        with pytest.raises(openai.AuthenticationError, match="token") as caught:
            await client.chat.completions.create(**QUESTION)  # type: ignore[call-overload]
    assert caught.value.code == "token_invalid"
    assert upstream.connections == []


async def test_an_unreachable_upstream_is_the_sdks_own_error(upstream: Upstream, gateway: Gateway) -> None:
    async def closing(call: Call) -> None:
        call.keep_alive = False

    upstream.default = closing
    client = openai.AsyncOpenAI(base_url=f"{gateway.url}/api", api_key=gateway.issue_token(), max_retries=0)
    async with client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(**QUESTION)  # type: ignore[call-overload]
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_unreachable")


NO_MODELS = b'{"object": "list", "data": []}'


async def test_the_sdk_comes_back_when_an_upstream_that_is_out_is_tried_again() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0])
        writer.write(head("200 OK", "Content-Type: application/json", f"Content-Length: {len(NO_MODELS)}") + NO_MODELS)
        writer.close()

    asked: list[bytes] = []
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        config = Config(target_api_url=f"http://127.0.0.1:{reserved.getsockname()[1]}/v1")
        async with Gateway(config) as gateway:
            client = openai.AsyncOpenAI(base_url=f"{gateway.url}/api", api_key=gateway.issue_token(), max_retries=0)
            async with client:
                for status in [502] * 5 + [503]:
                    with pytest.raises(openai.InternalServerError) as caught:
                        await client.models.list()
                    assert (caught.value.status_code, caught.value.code) == (status, "upstream_unreachable")
                assert caught.value.response.headers["retry-after"] == "1"
                reserved.listen()
                async with await asyncio.start_server(answer, sock=reserved.dup()):
                    assert (await client.with_options(max_retries=1).models.list()).data == []
    assert asked == [b"GET /v1/models HTTP/1.1"]


# --- other APIs' ways ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["x-api-key", "api-key", "X-Goog-Api-Key"])
async def test_a_token_in_another_apis_field(upstream: Upstream, field: str) -> None:
    config = Config(target_api_url=upstream.url, target_api_key=KEY, target_api_auth=f"header:{field}")
    async with Gateway(config) as gateway:
        token = gateway.issue_token()
        post = request(
            "/api/messages", None, f"{field}: {token}", "anthropic-version: 2023-06-01", method="POST", body=b"{}"
        )
        assert (await fetch(gateway.url, post)).status == 200
    (received,) = upstream.requests
    assert received.field(field.lower().encode()) == KEY.encode()
    assert received.field(b"authorization") is None
    assert received.field(b"anthropic-version") == b"2023-06-01"
    assert token.encode() not in received.head


async def test_a_key_that_goes_into_the_query(upstream: Upstream) -> None:
    config = Config(target_api_url=upstream.url, target_api_key=KEY, target_api_auth="query:key")
    async with Gateway(config) as gateway:
        for path in ("/api/x", "/api/x?alt=sse"):
            assert (await fetch(gateway.url, request(path, gateway.issue_token()))).status == 200
    lines = [received.start_line for received in upstream.requests]
    assert lines == [f"GET /v1/x{query}key={KEY} HTTP/1.1".encode() for query in ("?", "?alt=sse&")]
