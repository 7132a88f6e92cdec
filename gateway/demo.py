"""`gateway demo`: a mock API, a gateway with `RATE_LIMIT=5` in front of it, and eight requests."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
from typing import cast
from urllib.parse import urlsplit

from gateway.config import Config
from gateway.server import Gateway

REQUESTS, LIMIT = 8, 5
TIMEOUT_S = 10.0
"""For any one answer: nothing here takes more than milliseconds, and a demo must not hang."""

_SHOWN = ("RateLimit", "Retry-After")
_QUESTION = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "Hello?"}]})
_COMPLETION = json.dumps(
    {
        "id": "chatcmpl-demo",
        "object": "chat.completion",
        "model": "mock",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello."}},
        ],
        "usage": {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4},
    }
).encode()
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_COMPLETION),
    _COMPLETION,
)
_LENGTH = re.compile(rb"^content-length: *([0-9]+)", re.IGNORECASE | re.MULTILINE)


def run_demo() -> int:
    """Run the demo and print its eight lines and their sum.

    Returns:
        0 if five requests passed and three were refused, else 1.
    """
    return asyncio.run(_demo())


async def _demo() -> int:
    loop = asyncio.get_running_loop()
    async with await loop.create_server(_MockApi, "127.0.0.1", 0) as api:
        port = api.sockets[0].getsockname()[1]
        config = Config(target_api_url=f"http://127.0.0.1:{port}/v1", target_api_key="demo-key", rate_limit=LIMIT)
        async with Gateway(config) as gateway:
            print(f"mock API on port {port}, gateway on {gateway.url}, RATE_LIMIT={LIMIT}")
            statuses = await asyncio.to_thread(_send_requests, gateway.url)
    passed, refused = statuses.count(200), statuses.count(429)
    print(f"{passed} passed, {refused} refused")
    return 0 if (passed, refused) == (LIMIT, REQUESTS - LIMIT) else 1


class _MockApi(asyncio.Protocol):
    """Answers every request on its connection with the same chat completion."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, rest = self._received.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            body_size = int(length[1]) if length else 0
            if len(rest) < body_size:
                break
            self._received = rest[body_size:]
            self._transport.write(_ANSWER)


def _send_requests(url: str) -> list[int]:
    """Register for a token and send the requests, one after the other, as any client would."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)
    try:
        connection.request("POST", "/register")
        token = json.load(connection.getresponse())["token"]
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return [_send(connection, headers, number) for number in range(1, REQUESTS + 1)]
    finally:
        connection.close()


def _send(connection: http.client.HTTPConnection, headers: dict[str, str], number: int) -> int:
    connection.request("POST", "/api/chat/completions", body=_QUESTION, headers=headers)
    response = connection.getresponse()
    response.read()
    limits = [f"{name}: {value}" for name in _SHOWN if (value := response.headers.get(name))]
    print(f"request {number}  {response.status}  {'  '.join(limits)}")
    return response.status
