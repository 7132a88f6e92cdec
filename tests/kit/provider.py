"""A provider of language models that really bills: each request's tokens are counted, and its invoice has the truth.

`async with Provider() as provider` in a test, or `python -m tests.kit.provider --port 0`, which prints its address, and
writes its invoice as CSV when SIGTERM ends it. How a request is answered says its field `X-Mock` (`Wishes`); what is
generated is billed, whoever has left: `GET /invoice` has the sum so far, `GET /invoice.csv` the rows.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import itertools
import json
import re
import secrets
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, cast

import uvloop

from tests.kit.billing import Invoice, Prices, Row, own_prices
from tests.kit.provider_jobs import Job, Memory, NoSuchModel, Unreadable, Wishes, wished
from tests.kit.provider_others import shape_of
from tests.kit.provider_shapes import Shape, named, openai_error

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

_YIELD_EVERY: Final = 8
"""Words without a delay between two looks at whether the client is still there."""
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_MOCK: Final = re.compile(rb"\r\nx-mock: *([^\r]*)", re.IGNORECASE)
_GZIP: Final = re.compile(rb"\r\naccept-encoding:[^\r]*\bgzip\b", re.IGNORECASE)
_EXPECT: Final = re.compile(rb"\r\nexpect: *100-continue", re.IGNORECASE)
_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream; charset=utf-8"
_CHUNK_LINE: Final = re.compile(rb"([0-9a-fA-F]+)[^\r\n]*\r\n")


class Provider:
    """A provider that listens on 127.0.0.1.

    Args:
        prices: What its models cost; None: as in `genai-prices`.
        wishes: What holds where a request does not wish otherwise.
        port: 0: any.

    Attributes:
        invoice: What was billed.
        heads: The heads of the requests, as they came, if `keep_heads`.
        bodies: Likewise their contents.
    """

    def __init__(
        self, prices: Prices | None = None, wishes: Wishes | None = None, port: int = 0, *, keep_heads: bool = True
    ) -> None:
        self.prices = prices or Prices()
        self.wishes = wishes or Wishes()
        self.invoice = Invoice(self.prices)
        self.memory = Memory()
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.keep_heads = keep_heads
        self.connections: set[_Connection] = set()
        self.billed = asyncio.Event()
        """Set with each row, for a test to clear and wait for."""
        self._port = port
        self._nonce = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self._port, backlog=4096)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        tasks = [connection.task for connection in self.connections if connection.task is not None]
        for connection in tuple(self.connections):
            connection.end()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """Its address, without a path."""
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def next_id(self) -> str:
        """Return an id for a request."""
        return f"req_{self._nonce}{next(self._numbers):08x}"

    def bill(self, job: Job, began_us: int, made: int, outcome: str = "whole") -> None:
        """Bill what was generated."""
        tokens = job.made(made)
        row = Row(job.id, began_us, time.time_ns() // 1000, job.told, job.user, tokens, outcome)
        self.invoice.rows.append(row)
        self.billed.set()

    async def rows(self, count: int) -> list[Row]:
        """Wait until so many requests are billed; return them."""
        while len(self.invoice.rows) < count:
            self.billed.clear()
            await asyncio.wait_for(self.billed.wait(), 20.0)
        return self.invoice.rows


class _Connection(asyncio.Protocol):
    """One connection: its requests, one after the other."""

    def __init__(self, provider: Provider) -> None:
        self.task: asyncio.Task[None] | None = None
        self._provider = provider
        self._received = b""
        self._continued = False
        self._lag_s = 0.0
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._provider.connections.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._provider.connections.discard(self)
        # Nobody reads on, so nothing has to wait for that.
        self._writable.set()
        if self.task is not None:
            asyncio.get_running_loop().call_later(self._lag_s, self.task.cancel)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def end(self) -> None:
        """End it, whatever it does."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._next()

    def _next(self) -> None:
        while self.task is None and not self._transport.is_closing():
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._received[:end]
            if not self._continued and _EXPECT.search(head):
                self._continued = True
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if _CHUNKED.search(head):
                read = _unchunked(self._received, end + 4)
                if read is None:
                    return
                content, whole = read
            else:
                length = _LENGTH.search(head)
                whole = end + 4 + (int(length[1]) if length else 0)
                if len(self._received) < whole:
                    return
                content = self._received[end + 4 : whole]
            self._received, self._continued = self._received[whole:], False
            self._answer(head, content)

    def _answer(self, head: bytes, content: bytes) -> None:
        provider = self._provider
        if provider.keep_heads:
            provider.heads.append(head)
            provider.bodies.append(content)
        path = head.split(b" ", 2)[1].decode("latin-1")
        if head.startswith(b"GET "):
            self._get(path)
            return
        job_id, shape = provider.next_id(), shape_of(path.partition("?")[0])
        if shape is None:
            self._send_json(404, openai_error(404, f"Unknown request URL: {path}"))
            return
        fields = ((shape.id_field, job_id),) if shape.id_field else ()
        try:
            said = _MOCK.search(head)
            wishes = provider.wishes if said is None else wished(provider.wishes, said[1].decode("latin-1"))
            if wishes.status:
                self._send_json(wishes.status, shape.error(wishes.status, "as wished"), fields)
                return
            job = shape.read(job_id, path, _object(content), wishes, provider.memory)
            if not provider.prices.knows(job.told):
                raise NoSuchModel(f"The model `{job.told}` does not exist")
        except Unreadable as error:
            self._send_json(error.status, shape.error(error.status, str(error)), fields)
            return
        began_us = time.time_ns() // 1000
        compressed = wishes.gzip and _GZIP.search(head) is not None
        self._lag_s = wishes.lag_ms / 1e3 if job.stream else 0.0
        if job.stream:
            self._start(self._stream(job, shape, began_us, compressed=compressed))
        elif wishes.head_ms or wishes.delay_ms:
            self._start(self._later(job, shape, began_us, compressed=compressed))
        else:
            self._whole(job, shape, began_us, compressed=compressed)

    def _get(self, path: str) -> None:
        invoice = self._provider.invoice
        if path.endswith("/models"):
            self._send_json(200, {"object": "list", "data": []})
        elif path == "/invoice.csv":
            self._send(200, invoice.csv().encode(), "text/csv")
        elif path == "/invoice":
            self._send_json(200, {"requests": len(invoice.rows), "usd": str(invoice.total)})
        else:
            self._send_json(404, openai_error(404, f"Unknown request URL: {path}"))

    # ---- whole answers

    def _whole(self, job: Job, shape: Shape, began_us: int, *, compressed: bool) -> None:
        self._provider.bill(job, began_us, job.total, "whole" if job.wishes.break_at < 0 else "broken")
        fields = [(shape.id_field, job.id)] if shape.id_field else []
        content = json.dumps(shape.whole(job), indent=2).encode()
        if compressed:
            content = gzip.compress(content, 1)
            fields.append(("content-encoding", "gzip"))
        if job.wishes.chunked:
            half = len(content) // 2
            content = b"".join(map(_chunk, (content[:half], content[half:], b"")))
            fields.append(("transfer-encoding", "chunked"))
        if job.wishes.break_at >= 0:
            self._send(200, content, _JSON, fields, cut=len(content) // 2)
            self._transport.close()
        else:
            self._send(200, content, _JSON, fields)

    async def _later(self, job: Job, shape: Shape, began_us: int, *, compressed: bool) -> None:
        began_s, delay_s = time.monotonic(), job.wishes.delay_ms / 1e3
        try:
            await asyncio.sleep(job.wishes.head_ms / 1e3 + delay_s * job.total)
        except asyncio.CancelledError:
            # Without a delay for each token all of it was made at once, and only its head was slow.
            made = job.total if not delay_s else min(job.total, int((time.monotonic() - began_s) / delay_s) + 1)
            self._provider.bill(job, began_us, made, "left")
            raise
        self._whole(job, shape, began_us, compressed=compressed)

    # ---- streams

    async def _stream(self, job: Job, shape: Shape, began_us: int, *, compressed: bool) -> None:
        made, outcome = 0, "left"
        wishes, coder = job.wishes, zlib.compressobj(1, wbits=31) if compressed else None
        try:
            if wishes.head_ms:
                await asyncio.sleep(wishes.head_ms / 1e3)
            self._stream_head(job, shape, compressed=compressed)
            self._events(shape.opening(job), coder)
            for made in range(1, job.total + 1):
                if wishes.delay_ms:
                    await asyncio.sleep(wishes.delay_ms / 1e3)
                elif made % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
                await self._writable.wait()
                shown = made - job.hidden
                if shown > 0:
                    self._events((shape.word(job, shown - 1),), coder)
                if 0 <= wishes.break_at <= shown or 0 <= wishes.fail_at <= shown:
                    break
            if not self._transport.is_closing():
                outcome = "broken" if wishes.break_at >= 0 else "failed" if wishes.fail_at >= 0 else "whole"
        finally:
            self._provider.bill(job, began_us, made, outcome)
        if outcome == "broken" or self._transport.is_closing():
            self._transport.close()
            return
        closing = (_failure(shape),) if outcome == "failed" else shape.closing(job)
        self._events(closing, coder)
        if coder is not None:
            self._transport.write(_chunk(coder.flush()))
        self._transport.write(_chunk(b""))

    def _stream_head(self, job: Job, shape: Shape, *, compressed: bool) -> None:
        fields = [("transfer-encoding", "chunked"), ("cache-control", "no-cache")]
        if shape.id_field:
            fields.append((shape.id_field, job.id))
        if compressed:
            fields.append(("content-encoding", "gzip"))
        self._send(200, b"", _JSON if job.as_array else _EVENTS, fields)

    def _events(self, events: Iterable[bytes], coder: Any) -> None:
        for event in events:
            if self._transport.is_closing():
                return
            written = event if coder is None else coder.compress(event) + coder.flush(zlib.Z_SYNC_FLUSH)
            self._transport.write(_chunk(written))

    def _start(self, answering: Coroutine[object, object, None]) -> None:
        self.task = asyncio.get_running_loop().create_task(answering)
        self.task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
        if not self._transport.is_closing():
            self._next()

    # ---- bytes

    def _send_json(self, status: int, content: object, fields: Iterable[tuple[str, str]] = ()) -> None:
        self._send(status, json.dumps(content).encode(), _JSON, fields)

    def _send(
        self, status: int, content: bytes, kind: str, fields: Iterable[tuple[str, str]] = (), cut: int | None = None
    ) -> None:
        lines = [f"HTTP/1.1 {status} Said", f"content-type: {kind}", *(f"{name}: {value}" for name, value in fields)]
        if not any(name == "transfer-encoding" for name, _ in fields):
            lines.append(f"content-length: {len(content)}")
        self._transport.write("\r\n".join((*lines, "", "")).encode("latin-1") + content[:cut])


def _object(content: bytes) -> dict[str, Any]:
    try:
        read = json.loads(content)
    except ValueError as error:
        raise Unreadable("We could not parse the JSON body of your request.") from error
    if not isinstance(read, dict):
        raise Unreadable("The body of your request is not a JSON object.")
    return read


def _failure(shape: Shape) -> bytes:
    event = {"type": "error", **shape.error(500, "as wished")}
    return named(event)


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def _unchunked(received: bytes, start: int) -> tuple[bytes, int] | None:
    """Return the content of a chunked body and where it ends; None: not all of it is there."""
    content = b""
    while (line := _CHUNK_LINE.match(received, start)) is not None:
        size = int(line[1], 16)
        after = line.end() + size
        if len(received) < after + 2:
            return None
        if not size:
            return content, after + 2
        content, start = content + received[line.end() : after], after + 2
    return None


def main(words: list[str] | None = None) -> None:
    """Run it until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--csv", type=Path, help="where to write the invoice at the end")
    parser.add_argument("--prices", type=Path, help="a gateway's configuration, for its tables prices.MODEL")
    options = parser.parse_args(words)
    uvloop.run(_serve(options))


async def _serve(options: argparse.Namespace) -> None:
    prices = Prices(dict(own_prices(options.prices)) if options.prices else None)
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    async with Provider(prices, port=options.port, keep_heads=False) as provider:
        sys.stdout.write(f"listening on {provider.url}\n")
        sys.stdout.flush()
        with contextlib.suppress(asyncio.CancelledError):
            await ending.wait()
    if options.csv is not None:
        provider.invoice.dump(options.csv)


if __name__ == "__main__":
    main()
