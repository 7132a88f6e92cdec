"""A small API in a thread, for programs that are run as processes: it answers what SDKs read, and keeps what it got."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import Message

CHAT = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "mock",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello."}}],
}
MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "mock",
    "content": [{"type": "text", "text": "Hello."}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


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
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            api.got.append(Got(f"{self.command} {self.path}", self.headers))
            content = json.dumps(CHAT if self.path.endswith("/chat/completions") else MESSAGE).encode()
            cut = self.path.endswith("/cut")
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content) + cut))
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = cut

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
