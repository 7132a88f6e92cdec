"""Kept connections that the upstream ends under their next request: real sockets, both loops, counted at the upstream.

`tests/proxy/test_stale_pool.py` has every byte; here the kernels say what became of those that had left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self

import pytest
import trustme

from gateway import Config, Gateway
from tests.e2e import CUT_SHORT, Answer, Client, connected, request
from tests.kit import upstream as scripted
from tests.kit.upstream import PIECE_BYTES, answering, broken_off, pattern, soon
from tests.kit.wire import Incomplete, Message, read_body, read_head

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

End = Literal["close", "shutdown", "reset"]
"""`close` is a FIN, or a reset where bytes lie unread; `shutdown` is a FIN in any case, and the socket is read on."""

ENDS: Final[list[End]] = ["close", "shutdown", "reset"]
HOW = pytest.mark.parametrize("how", ENDS)
IDEMPOTENT = {"GET", "HEAD", "PUT", "DELETE"}
OLD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
NEW = b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\nagain"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
QUOTA = 100_000


class Ending(NamedTuple):
    """What the upstream makes of a request on a connection that it has used before."""

    how: End
    read: int | None = None
    """So many bytes of it; None: all."""
    sent: bytes = b""
    """Of an answer."""


class Seen(NamedTuple):
    """What became of a request on a connection that ended under it."""

    client: str
    """`new` answer, `old` answer, `502`, or `cut`."""
    dials: int
    """How many connections were made for it."""
    runs: int
    """How often it came whole to the upstream's socket, as far as that was read."""


class Upstream:
    """Answers every request; but the next one on a used connection, once `ending` is set, as that says.

    Attributes:
        ran: The request-targets of the requests that came whole, in their order.
        got: What came of the request that an `Ending` was for: before the end, and after a `shutdown` behind it.
        over: Set when that is known.
        connections: How many there have been.
        kept: Those that wait for a request, and who serves them.
    """

    def __init__(self) -> None:
        self.ending: Ending | None = None
        self.ran: list[bytes] = []
        self.got = b""
        self.over = asyncio.Event()
        self.connections = 0
        self.kept: dict[socket.socket, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._begin(self._accept())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()
        assert not [end for end in ends if isinstance(end, Exception)], ends

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    def _begin(self, serving: Coroutine[object, object, None]) -> None:
        self._tasks.add(asyncio.get_running_loop().create_task(serving))

    async def _accept(self) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            self.connections += 1
            self._begin(self._serve(sock))

    async def _serve(self, sock: socket.socket) -> None:
        used = False
        with sock, contextlib.suppress(ConnectionError):
            while True:
                serving = asyncio.current_task()
                assert serving is not None
                self.kept[sock] = serving
                try:
                    await readable(sock)
                finally:
                    del self.kept[sock]
                if used and self.ending is not None:
                    ending, self.ending = self.ending, None
                    await self._end(sock, ending)
                    return
                data = b""
                while (message := whole(data)) is None:
                    more = await asyncio.get_running_loop().sock_recv(sock, 65_536)
                    if not more:
                        return
                    data += more
                self._count(message)
                content = b"" if message.start.startswith(b"HEAD ") else b"again"
                await asyncio.get_running_loop().sock_sendall(sock, NEW.removesuffix(b"again") + content)
                used = True

    def _count(self, message: Message) -> None:
        self.ran.append(message.start.split(b" ")[1])

    async def _end(self, sock: socket.socket, ending: Ending) -> None:
        loop = asyncio.get_running_loop()
        got = b""
        try:
            while len(got) != ending.read and whole(got) is None:
                more = await loop.sock_recv(sock, 65_536 if ending.read is None else ending.read - len(got))
                assert more, "the gateway was to wait"
                got += more
            await loop.sock_sendall(sock, ending.sent)
            if ending.how == "shutdown":
                sock.shutdown(socket.SHUT_WR)
                while more := await loop.sock_recv(sock, 65_536):
                    got += more
            elif ending.how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        finally:
            sock.close()
            self.got = got
            if message := whole(got):
                self._count(message)
            self.over.set()


async def readable(sock: socket.socket) -> None:
    """Wait until there is something to read, and read nothing."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(sock, came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(sock)


def whole(data: bytes) -> Message | None:
    """Read a request, if all of it is there."""
    try:
        message, data = read_head(data)
        read_body(message, data, until_close=None)
    except Incomplete:
        return None
    return message


class Bench:
    """A gateway before such an upstream, a client that keeps its connection, and a count of what was asked.

    Args:
        upstream: The one.
        gateway: The other.
    """

    def __init__(self, upstream: Upstream, gateway: Gateway) -> None:
        self.upstream = upstream
        self.gateway = gateway
        self.token = gateway.issue_token()
        self.asked = 0
        self._kept = contextlib.AsyncExitStack()
        self._client: Client | None = None

    async def hang_up(self) -> None:
        """Close the client's connection."""
        self._client = None
        await self._kept.aclose()

    async def fetch(self, data: bytes) -> Answer:
        """Ask on the connection that the last answer came on, unless that has ended with it."""
        self.asked += 1
        if self._client is None:
            self._client = await self._kept.enter_async_context(connected(self.gateway.url))
        try:
            return await self._client.ask(data)
        except CUT_SHORT:
            await self.hang_up()
            raise

    async def warm(self) -> None:
        """Leave one used connection in the pool."""
        answer = await self.fetch(request("/api/warm", self.token))
        assert answer.content == b"again"

    async def ask(self, method: str, ending: Ending, body: bytes = b"") -> Seen:
        """Ask for `/api/x` on a used connection that ends so."""
        await self.warm()
        upstream = self.upstream
        upstream.ran.clear()
        upstream.over.clear()
        upstream.ending = ending
        before = upstream.connections
        try:
            answer = await self.fetch(request("/api/x", self.token, method=method, body=body))
        except CUT_SHORT:
            client = "cut"
        else:
            client = {200: "old", 201: "new", 502: "502"}[answer.status]
            contents = {"old": b"hello", "new": b"again", "502": answer.content}
            assert answer.content == (b"" if method == "HEAD" else contents[client])
            assert self.charged(answer["ratelimit"]) == self.asked
        await soon(upstream.over.wait())
        return Seen(client, upstream.connections - before, len(upstream.ran))

    async def one_charge_each(self) -> None:
        answer = await self.fetch(request("/api/warm", self.token))
        assert self.charged(answer["ratelimit"]) == self.asked

    @staticmethod
    def charged(ratelimit: str) -> int:
        return QUOTA - int(ratelimit.partition(";r=")[2].partition(";")[0])


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        yield running


@pytest.fixture
async def bench(upstream: Upstream) -> AsyncIterator[Bench]:
    # Idle for longer than a test waits: no connection ends for its age.
    config = Config(target_api_url=upstream.url, target_api_key="sk", rate_limit=f"{QUOTA}/hour", upstream_idle="1h")
    async with Gateway(config) as gateway:
        made = Bench(upstream, gateway)
        yield made
        await made.hang_up()


# --- it ends while it reads the request ------------------------------------------------------------------------------


async def as_sent(bench: Bench, method: str, body: bytes) -> bytes:
    """What the upstream gets when it reads all."""
    await bench.ask(method, Ending("reset"), body)
    return bench.upstream.got


@HOW
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "POST", "PATCH"])
async def test_whatever_was_read_of_it_only_an_idempotent_request_is_sent_again(
    bench: Bench, method: str, how: End
) -> None:
    body = b"abcdefg" if method in {"PUT", "POST", "PATCH"} else b""
    size = len(await as_sent(bench, method, body))
    seen: dict[int, Seen] = {}
    right: dict[int, Seen] = {}
    for read in range(size + 1):
        seen[read] = await bench.ask(method, Ending(how, read), body)
        # A shutdown socket is read on, and all of it had come.
        runs = int(read == size or how == "shutdown")
        right[read] = Seen("new", dials=1, runs=runs + 1) if method in IDEMPOTENT else Seen("502", dials=0, runs=runs)
    assert seen == right
    await bench.one_charge_each()


@HOW
async def test_an_upload_that_was_not_all_there_is_not_sent_again(bench: Bench, how: End) -> None:
    size = 3 * 1024 * 1024
    for method in ("PUT", "POST"):
        for read in (0, 1, 200, 70_000, 1_000_000):
            await bench.warm()
            bench.upstream.over.clear()
            bench.upstream.ending = Ending(how, read)
            before = bench.upstream.connections
            bench.asked += 1
            fields = (f"Content-Length: {size}",)
            async with connected(bench.gateway.url) as client:
                client.write(request("/api/x", bench.token, *fields, method=method))
                answer = asyncio.create_task(client.answer())
                with contextlib.suppress(ConnectionError):
                    # Less the last piece: else all of it might have left before the end was seen.
                    for start in range(0, size - PIECE_BYTES, PIECE_BYTES):
                        client.write(pattern(start, PIECE_BYTES))
                        await soon(client.writer.drain())
                # Where the client's own machine threw the answer away with the connection, there is none.
                with contextlib.suppress(ConnectionError):
                    assert (await answer).status == 502
            await soon(bench.upstream.over.wait())
            assert bench.upstream.connections == before
            assert bench.upstream.ran.count(b"/v1/x") == 0
    await bench.one_charge_each()


# --- it ends while it answers ----------------------------------------------------------------------------------------


@HOW
@pytest.mark.parametrize("old", [OLD, CHUNKED], ids=["length", "chunked"])
@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
async def test_an_answer_cut_at_any_byte_never_looks_whole(bench: Bench, method: str, old: bytes, how: End) -> None:
    seen: dict[int, Seen] = {}
    right: dict[int, Seen] = {}
    for sent in range(len(old) + 1):
        seen[sent] = await bench.ask(method, Ending(how, sent=old[:sent]), b"{}")
        if not sent and method in IDEMPOTENT:
            right[sent] = Seen("new", dials=1, runs=2)
        elif sent < old.index(b"\r\n\r\n") + 4:
            right[sent] = Seen("502", dials=0, runs=1)
        else:
            right[sent] = Seen("cut" if sent < len(old) else "old", dials=0, runs=1)
    assert seen == right
    await bench.one_charge_each()


# --- it ends as the request comes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["end", "request", "request, when it has idled"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_end_that_crosses_a_request_never_makes_it_run_twice(bench: Bench, method: str, first: str) -> None:
    upstream = bench.upstream
    assert bench.gateway._context is not None
    clock = bench.gateway._context.clock
    clock.stop()  # the test's own
    right = (201, 1)
    if first == "request":  # it was on its way when the end came, and the loop had looked a moment ago
        right = (201, 2) if method == "GET" else (502, 1)
    for number in range(30):
        await bench.warm()
        if first == "request, when it has idled":
            clock.sweep()
        ((sock, serving),) = upstream.kept.items()
        asked = request(f"/api/{number}", bench.token, method=method, body=b"{}")
        async with connected(bench.gateway.url) as client:
            assert (await client.ask(request("/healthz"))).status == 200
            descriptor = client.writer.get_extra_info("socket").fileno()
            # Straight to the kernel: both are there when the gateway's loop looks next.
            if first == "end":
                sock.shutdown(socket.SHUT_WR)
                os.write(descriptor, asked)
            else:
                os.write(descriptor, asked)
                sock.shutdown(socket.SHUT_WR)
            bench.asked += 1
            answer = await client.answer()
        await soon(asyncio.wait([serving]))
        assert bench.charged(answer["ratelimit"]) == bench.asked
        assert (answer.status, upstream.ran.count(b"/v1/%d" % number)) == right


# --- under TLS -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close_notify", "FIN", "RST"])
async def test_a_kept_tls_connection_that_ends_under_a_request(how: str, tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(tls)

    async def ending(call: scripted.Call) -> None:
        if [received.connection for received in api.requests].count(call.received.connection) == 1:
            await answering()(call)
            return
        await broken_off(b"", by_reset=how == "RST")(call)
        if how == "FIN":
            call.writer.transport.abort()

    async with scripted.Upstream(tls, "localhost") as api:
        api.paths = {b"/v1/x": ending}
        config = Config(target_api_url=api.url, target_ca_file=str(tmp_path / "ca.pem"), rate_limit="9/hour")
        async with Gateway(config) as gateway, connected(gateway.url) as client:
            token = gateway.issue_token()
            for method, status in (("GET", 200), ("POST", 502), ("PUT", 200)):
                assert (await client.ask(request("/api/warm", token))).status == 200
                answer = await client.ask(request("/api/x", token, method=method, body=b"{}"))
                assert answer.status == status
        assert answer["ratelimit"].startswith('"hour";r=3;')
        came = [(received.start_line.partition(b" HTTP")[0], received.connection) for received in api.requests]
    assert came == [
        *((b"GET /v1/warm", 1), (b"GET /v1/x", 1), (b"GET /v1/x", 2)),
        *((b"GET /v1/warm", 2), (b"POST /v1/x", 2)),
        *((b"GET /v1/warm", 3), (b"PUT /v1/x", 3), (b"PUT /v1/x", 4)),
    ]
