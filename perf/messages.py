"""Requests and answers as they come in the comparison with the peers: no two of them are the same.

The shapes are wrk's with `unique.lua` (an SDK's POST) and nginx's with `upstream.nginx.conf`. A message's number is
in all that differs; numbers are long enough that all messages have one length.
"""

from __future__ import annotations

import re
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple

from perf.bench import CheckError

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET_URL: Final = "http://api.test:9/v1"
KEY: Final = "sk-proj-0123456789abcdef0123456789abcdef"
HEAD_END: Final = b"\r\n\r\n"

_REQUEST: Final = (
    b"POST /api/chat/completions HTTP/1.1\r\n"
    b"Host: 127.0.0.1:3000\r\n"
    b"Content-Type: application/json\r\n"
    b"Authorization: Bearer %s\r\n"
    b"User-Agent: OpenAI/Python 1.50.0\r\n"
    b"X-Stainless-Lang: python\r\n"
    b"X-Stainless-OS: Linux\r\n"
    b"X-Stainless-Arch: x64\r\n"
    b"X-Stainless-Runtime: CPython\r\n"
    b"Accept: application/json\r\n"
    b"Accept-Encoding: gzip, deflate, br\r\n"
    b"X-Request-Id: req-%d\r\n"
    b"traceparent: 00-%032x-0000000000000001-01\r\n"
    b"Content-Length: %d\r\n\r\n%s"
)
# The same as wrk sends it, whose order is Lua's: what differs comes first, and the token and the length behind that.
_REQUEST_OF_WRK: Final = (
    b"POST /api/chat/completions HTTP/1.1\r\n"
    b"X-Stainless-Runtime: CPython\r\n"
    b"Accept: application/json\r\n"
    b"Accept-Encoding: gzip, deflate, br\r\n"
    b"X-Request-Id: req-%d\r\n"
    b"Content-Type: application/json\r\n"
    b"traceparent: 00-%032x-0000000000000001-01\r\n"
    b"Authorization: Bearer %s\r\n"
    b"User-Agent: OpenAI/Python 1.50.0\r\n"
    b"Content-Length: %d\r\n"
    b"X-Stainless-Lang: python\r\n"
    b"Host: 127.0.0.1:3000\r\n"
    b"X-Stainless-OS: Linux\r\n"
    b"X-Stainless-Arch: x64\r\n\r\n%s"
)
_REQUEST_BODY: Final = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi %d"}]}'
_ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\n"
    b"Server: nginx/1.22.1\r\n"
    b"Date: Mon, 23 Nov 2026 22:47:05 GMT\r\n"
    b"Content-Type: application/json\r\n"
    b"Content-Length: %d\r\n"
    b"Connection: keep-alive\r\n"
    b"x-request-id: %032x\r\n"
    b"openai-organization: org-x\r\n"
    b"openai-processing-ms: %d.771\r\n"
    b"x-ratelimit-limit-requests: 3500\r\n"
    b"x-ratelimit-remaining-requests: %d\r\n"
    b"cf-ray: %032x\r\n\r\n%s"
)
_ANSWER_BODY: Final = (
    b'{"id":"chatcmpl-%d","object":"chat.completion","created":1677652288,"model":"gpt-4o-mini","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"Hello there, how may I assist you today?"},"logprobs":null,'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21}}'
)
_FIRST_NUMBER: Final = 1_000_000
# An odd number near 2^128 divided by the golden ratio: its multiples look like random ids, and none comes twice.
_SPREAD: Final = 0x9E3779B97F4A7C15F39CC0605CEDC835
_IDS: Final = re.compile(rb"(?i)\r\n(?:x-request-id|traceparent): [^\r]*")
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: ([0-9]+)\r\n")


class Message(NamedTuple):
    """A message as far as a gateway may not change it: the order of field lines does not matter."""

    start: bytes
    fields: frozenset[bytes]
    body: bytes


def numbers() -> Iterator[int]:
    """Count messages."""
    return count(_FIRST_NUMBER)


def request(number: int, token: bytes) -> bytes:
    """Return a client's request."""
    body = _REQUEST_BODY % number
    return _REQUEST % (token, number, number * _SPREAD % 2**128, len(body), body)


def request_of_wrk(number: int, token: bytes) -> bytes:
    """Return the same with its fields in the order of the load generator's that the peers are compared with."""
    body = _REQUEST_BODY % number
    return _REQUEST_OF_WRK % (number, number * _SPREAD % 2**128, token, len(body), body)


def request_head(number: int, token: bytes) -> bytes:
    """Return a request's head as parsers take it: without the empty line."""
    return request(number, token).partition(HEAD_END)[0]


def without_ids(head: bytes) -> bytes:
    """Return a request's head, or all of the request, without what names it and its trace: few clients send these."""
    return _IDS.sub(b"", head)


def sent_upstream(number: int) -> Message:
    """Return what the upstream has to get of a request: its own host and key, all else as it was."""
    client = request(number, KEY.encode()).replace(b"/api/", b"/v1/", 1).replace(b"127.0.0.1:3000", b"api.test:9", 1)
    (message,) = split(client)
    return message


def answer(number: int) -> bytes:
    """Return an upstream's answer."""
    body, spread = _ANSWER_BODY % number, number * _SPREAD % 2**128
    return _ANSWER % (len(body), spread, number, number, spread, body)


def answer_head(number: int) -> bytes:
    """Return an answer's head as parsers take it: without the empty line."""
    return answer(number).partition(HEAD_END)[0]


def sent_to_client(number: int) -> Message:
    """Return what the client has to get of an answer, besides what the gateway adds."""
    (message,) = split(answer(number).replace(b"Connection: keep-alive\r\n", b"", 1))
    return message


def split(stream: bytes) -> list[Message]:
    """Cut a stream of messages that all have a `Content-Length`, or none and no body.

    Raises:
        CheckError: The last head is not whole.
    """
    messages, at = [], 0
    while at < len(stream):
        end = stream.find(HEAD_END, at)
        if end < 0:
            raise CheckError(f"what was sent ends within a head: {stream[at:]!r}")
        start, *fields = stream[at:end].split(b"\r\n")
        length = _LENGTH.search(stream, at, end + 2)
        at = end + len(HEAD_END) + (int(length[1]) if length else 0)
        messages.append(Message(start, frozenset(fields), stream[end + len(HEAD_END) : at]))
    return messages


def chunked(number: int, chunks: int, content: bytes) -> list[bytes]:
    """Return a chunked body in its chunks, the last one and the end among them; no two bodies are the same."""
    content = b"%d %s" % (number, content)
    return [b"%x\r\n%s\r\n" % (len(content), content)] * chunks + [b"0\r\n\r\n"]
