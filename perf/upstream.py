"""A mock upstream of our own: events that say when they were sent; also plain answers where there is no nginx.

`python -m perf.upstream PORT` runs until SIGTERM. What it answers, with and without /api before the path:

- `/events?count=N&interval_ms=M`: a stream of N server-sent events, each with the monotonic clock in nanoseconds;
- `/big`: as many bytes as `BIG_BYTES`;
- `/count`: how many requests it has had before this one, in JSON;
- `/refuse`: 503, for tests of what a load generator makes of it;
- anything else: a chat completion, its head different each time, as those of real APIs are.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import sys
import time
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

BIG_BYTES: Final = 200_000_000
ANSWER: Final = (
    '{"id":"chatcmpl-123","object":"chat.completion","created":1677652288,"model":"gpt-4o-mini","choices":[{"index":0,'
    '"message":{"role":"assistant","content":"Hello there, how may I assist you today?"},"logprobs":null,'
    '"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21}}'
)

_PIECE: Final = bytes(1 << 18)
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nServer: mock\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"Connection: keep-alive\r\nx-request-id: %032x\r\nopenai-organization: org-x\r\nopenai-processing-ms: %d\r\n"
    b"x-ratelimit-limit-requests: 3500\r\nx-ratelimit-remaining-requests: %d\r\ncf-ray: %032x\r\n\r\n%b"
)
_BIG: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % BIG_BYTES
# nginx keeps events back unless the upstream asks it not to.
_EVENTS: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nX-Accel-Buffering: no\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_REFUSAL: Final = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class _Upstream(asyncio.Protocol):
    """One connection.

    Args:
        asked: Counts the requests of all connections.
    """

    def __init__(self, asked: Iterator[int]) -> None:
        self._asked = asked
        self._received = b""
        self._count = 0
        self._pieces: Generator[bytes, None, None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _: Exception | None) -> None:
        self._pieces = None
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end]
            length = _LENGTH.search(head)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._received) < whole:
                return
            self._received = self._received[whole:]
            self._answer(head.split(b" ", 2)[1].decode("latin-1"))

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._write_pieces()

    def _answer(self, target: str) -> None:
        path, query = urlsplit(target)[2:4]
        before = next(self._asked)
        match path.removeprefix("/api"):
            case "/events":
                wishes = parse_qs(query)
                sending = self._send_events(int(wishes["count"][0]), float(wishes["interval_ms"][0]) / 1e3)
                self._task = asyncio.get_running_loop().create_task(sending)
            case "/big":
                self._pieces = _big()
                self._write_pieces()
            case "/count":
                self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%d" % (len(str(before)), before))
            case "/refuse":
                self._transport.write(_REFUSAL)
            case _:
                self._count += 1
                now = time.monotonic_ns()
                fields = (len(ANSWER), now, now // 1_000_000 % 1000, self._count, now, ANSWER.encode())
                self._transport.write(_HEAD % fields)

    def _write_pieces(self) -> None:
        while not self._is_paused and self._pieces is not None:
            piece = next(self._pieces, None)
            if piece is None:
                self._pieces = None
            else:
                self._transport.write(piece)

    async def _send_events(self, count: int, interval_s: float) -> None:
        self._transport.write(_EVENTS)
        for number in range(count):
            await asyncio.sleep(interval_s)
            event = b'data: %d {"index":%d,"delta":{"content":"token "}}\n\n' % (time.monotonic_ns(), number)
            self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self._transport.write(b"0\r\n\r\n")


def _big() -> Generator[bytes, None, None]:
    yield _BIG
    left = BIG_BYTES
    while left > 0:
        yield _PIECE if left >= len(_PIECE) else _PIECE[:left]
        left -= len(_PIECE)


async def _serve(port: int) -> None:
    asked = itertools.count()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Upstream(asked), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    # Its constants are for scripts that have to say what is not installed.
    import uvloop

    uvloop.run(_serve(int(sys.argv[1])))
