"""A small API in a thread, for programs that are run as processes: it answers what SDKs read, and keeps what it got.

It speaks OpenAI's `/chat/completions` and `/models` and Anthropic's `/messages`, with events where a stream is asked
for. At any other path it answers with a message of Anthropic's.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import Message

WORDS = ("Hel", "lo.")
"""The answer, as a stream brings it."""

CHAT = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "mock",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello."}}],
}
MODELS = {"object": "list", "data": [{"id": "mock", "object": "model", "created": 1, "owned_by": "nobody"}]}
MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "mock",
    "content": [{"type": "text", "text": "Hello."}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


def chat_events() -> Iterator[bytes]:
    """Yield the events of OpenAI's streams."""
    common = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "mock"}
    for word in WORDS:
        choice = {"index": 0, "finish_reason": None, "delta": {"content": word}}
        yield b"data: %b\n\n" % json.dumps({**common, "choices": [choice]}).encode()
    yield b"data: [DONE]\n\n"


def message_events() -> Iterator[bytes]:
    """Yield the events of Anthropic's streams."""

    def event(kind: str, **more: object) -> bytes:
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), json.dumps({"type": kind, **more}).encode())

    yield event("message_start", message={**MESSAGE, "content": [], "stop_reason": None})
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for word in WORDS:
        yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
    yield event("content_block_stop", index=0)
    yield event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2})
    yield event("message_stop")


class Got(NamedTuple):
    """A request: method and path, and its fields."""

    line: str
    fields: Message


class Api:
    """Where it is, and what it got. `/…/cut` ends within its answer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.got: list[Got] = []


@contextlib.contextmanager
def running_api() -> Iterator[Api]:
    """Run one until the block ends."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            api.got.append(Got(f"{self.command} {self.path}", self.headers))
            chats = self.path.endswith("/chat/completions")
            if content and json.loads(content).get("stream"):
                self.stream(chat_events() if chats else message_events())
                return
            answer = json.dumps(CHAT if chats else MODELS if self.path.endswith("/models") else MESSAGE).encode()
            cut = self.path.endswith("/cut")
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer) + cut))
            self.end_headers()
            self.wfile.write(answer)
            self.close_connection = cut

        def stream(self, events: Iterator[bytes]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for event in (*events, b""):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))

        do_POST = do_GET  # noqa: N815 (the base class's name)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        api = Api(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield api
        finally:
            server.shutdown()
            thread.join()
