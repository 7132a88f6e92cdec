"""The fake transport does what asyncio's and uvloop's do, as far as the gateway can tell."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from tests.kit.transport import FakeTransport
from tests.kit.wire import Incomplete, Message, read_body, read_chunks, read_head

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

BIG = b"x" * 16_000_000  # more than two sockets' buffers hold
PATIENCE_S = 10


class Recorder(asyncio.Protocol):
    """Writes down what its transport says."""

    def __init__(self, *, keeps_open: bool = False) -> None:
        self.events: list[str] = []
        self.data = b""
        self._keeps_open = keeps_open
        self._changed = asyncio.Event()

    def _note(self, event: str) -> None:
        self.events.append(event)
        self._changed.set()

    def data_received(self, data: bytes) -> None:
        self.data += data
        self._note("data")

    def eof_received(self) -> bool:
        self._note("eof")
        return self._keeps_open

    def connection_lost(self, exc: Exception | None) -> None:
        self._note(f"lost: {type(exc).__name__}")

    def pause_writing(self) -> None:
        self._note("full")

    def resume_writing(self) -> None:
        self._note("ready")

    async def has(self, *events: str) -> None:
        """Wait until exactly these have happened."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.events) < len(events):
                self._changed.clear()
                await self._changed.wait()
        await turns()
        assert self.events == list(events)


async def turns() -> None:
    """Let the loop do what is due."""
    for _ in range(5):
        await asyncio.sleep(0)


class Real:
    """A socket's transport, and the socket at the other end."""

    def __init__(self, protocol: Recorder) -> None:
        self.protocol = protocol
        self.transport: asyncio.Transport
        self._peer: socket.socket

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = socket.create_connection(server.getsockname())
            self._peer, _ = server.accept()
        near.setblocking(False)
        self._peer.setblocking(False)
        self.transport, _ = await loop.create_connection(lambda: self.protocol, sock=near)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._peer, data)

    def end(self) -> None:
        self._peer.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self._peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._peer.close()

    def stop_reading(self) -> None:
        """A peer that does not call `receive` does not read."""

    async def receive(self, size: int) -> bytes:
        """Receive so much, or up to the end."""
        parts: list[bytes] = []
        while size > 0:
            part = await asyncio.get_running_loop().sock_recv(self._peer, size)
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    async def close(self) -> None:
        if not self.transport.is_closing():  # asyncio's fails if aborted after its end
            self.transport.abort()
        self._peer.close()
        await turns()


class Fake:
    """A fake transport, and its peer."""

    def __init__(self, protocol: Recorder) -> None:
        self.protocol = protocol
        self.transport = FakeTransport(asyncio.get_running_loop(), protocol)

    async def open(self) -> None:
        self.protocol.connection_made(self.transport)

    async def send(self, data: bytes) -> None:
        self.transport.peer_sends(data)

    def end(self) -> None:
        self.transport.peer_ends()

    def reset(self) -> None:
        self.transport.peer_resets()

    def stop_reading(self) -> None:
        self.transport.peer_stops_reading()

    async def receive(self, size: int) -> bytes:
        self.transport.peer_reads_on()
        data = self.transport.take()
        assert len(data) <= size
        return data

    async def close(self) -> None:
        self.transport.abort()
        await turns()


Pair = Real | Fake


@pytest.fixture(params=["fake", "asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a scenario against one of the three."""

    def run_it(scenario: Callable[[Pair], Coroutine[Any, Any, None]], *, keeps_open: bool = False) -> None:
        async def main() -> None:
            protocol = Recorder(keeps_open=keeps_open)
            pair: Pair = Fake(protocol) if request.param == "fake" else Real(protocol)
            await pair.open()
            try:
                await scenario(pair)
            finally:
                await pair.close()

        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())

    return run_it


@pytest.mark.parametrize("how", ["close", "abort"])
def test_an_end_is_told_once_and_not_before_the_next_turn(run: Callable[..., None], how: str) -> None:
    async def scenario(pair: Pair) -> None:
        transport = pair.transport
        assert not transport.is_closing()
        getattr(transport, how)()
        assert transport.is_closing()
        assert not transport.is_reading()
        assert pair.protocol.events == []
        transport.write(b"too late, and no error")
        transport.resume_reading()
        await pair.protocol.has("lost: NoneType")
        transport.close()
        transport.abort()
        transport.pause_reading()
        await pair.protocol.has("lost: NoneType")
        assert not transport.is_reading()

    run(scenario)


def test_a_paused_transport_delivers_when_it_reads_again(run: Callable[..., None]) -> None:
    async def scenario(pair: Pair) -> None:
        transport = pair.transport
        transport.pause_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        await pair.send(b"early")
        await turns()
        assert pair.protocol.events == []
        transport.resume_reading()
        assert transport.is_reading()
        assert pair.protocol.events == []  # never before the caller returns
        await pair.protocol.has("data")
        assert pair.protocol.data == b"early"

    run(scenario)


def test_what_is_written_arrives(run: Callable[..., None]) -> None:
    async def scenario(pair: Pair) -> None:
        pair.transport.write(b"one,")
        pair.transport.write(b"two")
        assert await pair.receive(7) == b"one,two"
        assert pair.transport.get_write_buffer_size() == 0

    run(scenario)


def test_an_end_of_stream_closes(run: Callable[..., None]) -> None:
    async def scenario(pair: Pair) -> None:
        pair.end()
        await pair.protocol.has("eof", "lost: NoneType")
        assert pair.transport.is_closing()

    run(scenario)


def test_an_end_of_stream_waits_behind_what_was_sent_before_it(run: Callable[..., None]) -> None:
    async def scenario(pair: Pair) -> None:
        pair.transport.pause_reading()
        await pair.send(b"last words")
        pair.end()
        pair.transport.resume_reading()
        await pair.protocol.has("data", "eof", "lost: NoneType")

    run(scenario)


def test_a_half_closed_connection_is_written_to_and_says_so_again_when_told_to_read(run: Callable[..., None]) -> None:
    async def scenario(pair: Pair) -> None:
        pair.end()
        await pair.protocol.has("eof")
        assert not pair.transport.is_closing()
        pair.transport.pause_reading()
        pair.transport.resume_reading()
        await pair.protocol.has("eof", "eof")
        pair.transport.write(b"answer")
        assert await pair.receive(6) == b"answer"

    run(scenario, keeps_open=True)


def test_after_write_eof_nothing_more_is_written_but_much_is_read(run: Callable[..., None]) -> None:
    async def scenario(pair: Pair) -> None:
        assert pair.transport.can_write_eof()
        pair.transport.write_eof()
        pair.transport.write_eof()
        with pytest.raises(RuntimeError):
            pair.transport.write(b"more")
        assert not pair.transport.is_closing()
        assert pair.transport.is_reading()
        await pair.send(b"still")
        await pair.protocol.has("data")
        pair.transport.close()
        await pair.protocol.has("data", "lost: NoneType")

    run(scenario)


def test_a_full_buffer_is_told_once_and_again_when_it_has_emptied(run: Callable[..., None]) -> None:
    async def scenario(pair: Pair) -> None:
        pair.stop_reading()
        pair.transport.write(BIG)
        assert pair.protocol.events == ["full"]
        pair.transport.write(b"y")
        assert pair.protocol.events == ["full"]
        assert pair.transport.get_write_buffer_size() > 0
        pair.transport.close()
        assert pair.transport.is_closing()
        await turns()
        assert pair.protocol.events == ["full"]  # close waits for what was written
        assert await pair.receive(len(BIG) + 1) == BIG + b"y"
        await pair.protocol.has("full", "ready", "lost: NoneType")

    run(scenario)


def test_abort_waits_for_nobody(run: Callable[..., None]) -> None:
    async def scenario(pair: Pair) -> None:
        pair.stop_reading()
        pair.transport.write(BIG)
        pair.transport.abort()
        await pair.protocol.has("full", "lost: NoneType")

    run(scenario)


def test_a_reset_is_told_with_its_reason(run: Callable[..., None]) -> None:
    async def scenario(pair: Pair) -> None:
        pair.reset()
        await pair.protocol.has("lost: ConnectionResetError")
        assert pair.transport.is_closing()

    run(scenario)


def test_what_is_written_between_a_failure_and_its_being_told_is_dropped(run: Callable[..., None]) -> None:
    async def scenario(pair: Pair) -> None:
        pair.reset()
        for _ in range(100_000):
            if pair.transport.is_closing():
                break
            await asyncio.sleep(0)
        assert pair.protocol.events == []
        pair.transport.write(b"too late, and no error")
        await pair.protocol.has("lost: ConnectionResetError")

    run(scenario)


async def test_the_fake_is_as_strict_as_uvloop_about_writing_to_a_lost_connection() -> None:
    pair = Fake(Recorder())
    pair.reset()
    await pair.protocol.has("lost: ConnectionResetError")
    with pytest.raises(RuntimeError):
        pair.transport.write(b"x")


async def test_the_fake_takes_nothing_but_bytes() -> None:
    pair = Fake(Recorder())
    with pytest.raises(AssertionError):
        pair.transport.write(memoryview(b"x"))
    await pair.close()


@pytest.mark.parametrize(
    "bad",
    [
        b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\rC: d\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n",
    ],
)
def test_the_reader_of_the_tests_is_strict(bad: bytes) -> None:
    with pytest.raises(AssertionError):
        read_head(bad)


def test_the_reader_of_the_tests_reads() -> None:
    head, rest = read_head(
        b"HTTP/1.1 200 OK\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nT: u\r\n\r\nnext"
    )
    assert (head.status, head.value(b"a"), head.names) == (200, b"b", [b"A", b"Transfer-Encoding"])
    assert read_body(head, rest, until_close=False) == b"next"
    assert (head.body, head.trailers) == (b"hi", [(b"T", b"u")])
    for size in range(len(rest) - len(b"next")):
        with pytest.raises(Incomplete):
            read_chunks(rest[:size])
    until_close = Message(b"HTTP/1.1 200 OK", [])
    assert read_body(until_close, b"all", until_close=True) == b""
    assert until_close.body == b"all"
