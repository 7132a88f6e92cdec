"""WebSockets from end to end: a real client and a real server, and the gateway between them that neither sees."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from gateway import Config, Gateway
from tests.e2e import KEY, PatternCheck, connected, request
from tests.e2e.test_clients import curl
from tests.kit.tls import deaf_server, server_side
from tests.kit.upstream import PIECE_BYTES, Call, Upstream, answering, hang, head, pattern, soon
from tests.kit.upstream import reset as reset_writer

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    import trustme

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
MEGABYTE = 1024 * 1024
QUIET_TURNS = 500
"""Turns of the loop without a byte taken, after which all buffers on the way are full."""
WISH = ("Connection: Upgrade", "Upgrade: bytes")
SWITCH = head("101 Switching Protocols", "Connection: Upgrade", "Upgrade: bytes")


class Backend:
    """A WebSocket server, and what became of each connection to it.

    Attributes:
        serve_one: What it does with a connection; an echo if the test sets nothing else.
        requests: The handshakes that came.
        sessions: The connections that were accepted.
        codes: What each that ended was closed with, in the order in which they ended.
    """

    def __init__(self) -> None:
        self.serve_one: Callable[[ServerConnection], Awaitable[None]] = echo
        self.requests: list[Any] = []
        self.sessions: asyncio.Queue[ServerConnection] = asyncio.Queue()
        self.codes: asyncio.Queue[int | None] = asyncio.Queue()
        self.url = ""

    def see(self, _: ServerConnection, asked: Any) -> None:
        self.requests.append(asked)

    async def __call__(self, session: ServerConnection) -> None:
        self.sessions.put_nowait(session)
        with contextlib.suppress(ConnectionClosed):
            await self.serve_one(session)
        await session.wait_closed()
        self.codes.put_nowait(session.close_code)


async def echo(session: ServerConnection) -> None:
    async for message in session:
        await session.send(message)


async def listen(session: ServerConnection) -> None:
    async for _ in session:
        pass


@contextlib.asynccontextmanager
async def serving(backend: Backend, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    async with serve(backend, "127.0.0.1", 0, ssl=tls, process_request=backend.see, max_size=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        backend.url = f"http://127.0.0.1:{port}/v1" if tls is None else f"https://localhost:{port}/v1"
        yield server


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    running = Backend()
    async with serving(running):
        yield running


@pytest.fixture
async def gateway(backend: Backend) -> AsyncIterator[Gateway]:
    async with Gateway(Config(target_api_url=backend.url, target_api_key=KEY)) as running:
        yield running


def connection(gateway: Gateway, token: str | None = None, **options: Any) -> connect:
    """Connect to the gateway with a token, one of its own if none is given."""
    token = gateway.issue_token() if token is None else token
    url = gateway.url.replace("http:", "ws:") + "/api/live?a=b"
    bearer = {"Authorization": f"Bearer {token}"}
    return connect(url, additional_headers=bearer, proxy=None, max_size=None, **options)


def kill(session: ClientConnection | ServerConnection, how: str) -> None:
    """End a connection below the protocol, as the end of a process does, or its machine's."""
    if how == "RST":
        sock: socket.socket = session.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    session.transport.abort()


# --- messages --------------------------------------------------------------------------------------------------------


async def test_the_handshake_reaches_the_server_with_the_key_in_place_of_the_token(
    backend: Backend, gateway: Gateway
) -> None:
    token = gateway.issue_token()
    async with connection(gateway, token, subprotocols=["chat"]) as client:
        assert client.response is not None
        assert client.response.headers["RateLimit"].startswith('"minute";r=59;')
        assert client.response.headers["Server-Timing"].startswith("gateway;dur=")
    (asked,) = backend.requests
    assert asked.path == "/v1/live?a=b"
    assert asked.headers["Authorization"] == f"Bearer {KEY}"
    assert asked.headers["Sec-WebSocket-Protocol"] == "chat"
    assert token not in str(asked.headers)


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_messages_come_back_as_they_were_sent(
    backend: Backend, gateway: Gateway, compression: str | None
) -> None:
    messages: list[str | bytes] = [
        "",
        "hello",
        "ü\N{SNOWMAN}" * 1000,
        b"",
        b"\x00",
        os.urandom(125),
        os.urandom(126),
        os.urandom(65_536),
    ]
    async with connection(gateway, compression=compression) as client:
        for message in (*messages, os.urandom(MEGABYTE), b"x" * MEGABYTE):
            await client.send(message)
            assert await soon(client.recv()) == message
    assert len(backend.requests) == 1


async def test_many_messages_cross_each_other(backend: Backend, gateway: Gateway) -> None:
    """Both sides send all they have before either has read it all: neither direction waits for the other."""
    up = [random.Random(number).randbytes(number * 37 % 9000) for number in range(1000)]
    down = [random.Random(-number).randbytes(number * 41 % 9000) for number in range(1000)]
    got: list[str | bytes] = []

    async def send_all(session: ClientConnection | ServerConnection, messages: list[bytes]) -> None:
        for message in messages:
            await session.send(message)

    async def serve_one(session: ServerConnection) -> None:
        sending = asyncio.create_task(send_all(session, down))
        got.extend([await session.recv() for _ in up])
        await sending
        await session.wait_closed()

    backend.serve_one = serve_one
    async with connection(gateway) as client:
        sending = asyncio.create_task(send_all(client, up))
        assert [await soon(client.recv()) for _ in down] == down
        await soon(sending)
        await soon(client.close())
    await soon(backend.codes.get())
    assert got == up


async def test_pings_and_pongs_pass(backend: Backend, gateway: Gateway) -> None:
    async with connection(gateway) as client:
        session = await soon(backend.sessions.get())
        for side in (client, session):
            pong = await side.ping(b"are you there?")
            assert await soon(pong) >= 0


async def test_a_session_is_counted_once_and_one_too_many_is_refused(backend: Backend) -> None:
    config = Config(target_api_url=backend.url, target_api_key=KEY, rate_limit="1/hour")
    async with Gateway(config) as gateway:
        token = gateway.issue_token()
        async with connection(gateway, token) as client:
            for _ in range(10):
                await client.send("x")
                assert await soon(client.recv()) == "x"
            with pytest.raises(InvalidStatus) as refused:
                async with connection(gateway, token):
                    pass
            assert refused.value.response.status_code == 429
            assert refused.value.response.headers["X-Gateway-Error"] == "rate_limited"
            await client.send("still here")
            assert await soon(client.recv()) == "still here"
    assert len(backend.requests) == 1


async def test_a_session_without_a_token_is_refused(backend: Backend, gateway: Gateway) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connection(gateway, "no-token"):
            pass
    assert refused.value.response.status_code == 401
    assert backend.requests == []


async def test_a_handshake_that_the_server_declines_is_an_answer_like_any_other(gateway: Gateway) -> None:
    token = gateway.issue_token()
    async with connected(gateway.url) as client:
        answer = await client.ask(request("/api/live", token))  # no WebSocket: the server asks for an upgrade
        assert answer.status == 426
        wish = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 12")
        answer = await client.ask(request("/api/live", token, *wish))
        assert answer.status in {400, 426}
        assert (await client.ask(request("/healthz"))).status == 200


# --- ends ------------------------------------------------------------------------------------------------------------


async def test_the_client_closes_and_the_server_sees_its_code(backend: Backend, gateway: Gateway) -> None:
    async with connection(gateway) as client:
        await soon(client.close(4001, "enough"))
        assert client.close_code == 4001
    session = await soon(backend.sessions.get())
    assert await soon(backend.codes.get()) == 4001
    assert session.close_reason == "enough"


async def test_the_server_closes_and_the_client_sees_its_code(backend: Backend, gateway: Gateway) -> None:
    async def serve_one(session: ServerConnection) -> None:
        await session.send("last")
        await session.close(4002, "no more")

    backend.serve_one = serve_one
    async with connection(gateway) as client:
        assert await soon(client.recv()) == "last"
        with pytest.raises(ConnectionClosedError):
            await soon(client.recv())
        assert (client.close_code, client.close_reason) == (4002, "no more")
        await soon(client.wait_closed())
    assert await soon(backend.codes.get()) == 4002


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_a_killed_client_ends_its_servers_session(backend: Backend, gateway: Gateway, how: str) -> None:
    backend.serve_one = listen
    async with connection(gateway) as client:
        await client.send("x")
        await soon(backend.sessions.get())
        kill(client, how)
        assert await soon(backend.codes.get()) == 1006


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_a_killed_server_ends_its_clients_session(backend: Backend, gateway: Gateway, how: str) -> None:
    async with connection(gateway) as client:
        kill(await soon(backend.sessions.get()), how)
        with pytest.raises(ConnectionClosedError) as lost:
            await soon(client.recv())
        assert lost.value.rcvd is None
        assert client.close_code == 1006


async def test_a_stop_waits_for_the_sessions_that_there_are(backend: Backend) -> None:
    config = Config(target_api_url=backend.url, drain_timeout="1h")
    async with Gateway(config) as gateway, connection(gateway) as client:
        drained = asyncio.create_task(gateway.drain())
        for _ in range(3):
            await client.send("still here")
            assert await soon(client.recv()) == "still here"
        assert not drained.done()
        await soon(client.close(4001))
        assert await soon(drained)
    assert await soon(backend.codes.get()) == 4001


async def test_a_session_that_outlives_the_time_of_a_stop_is_cut(backend: Backend) -> None:
    backend.serve_one = listen
    config = Config(target_api_url=backend.url, drain_timeout="1s")
    async with Gateway(config) as gateway, connection(gateway) as client:
        assert not await soon(gateway.drain())
        await gateway.close()
        with pytest.raises(ConnectionClosedError):
            await soon(client.recv())
        assert await soon(backend.codes.get()) == client.close_code == 1006


# --- over TLS --------------------------------------------------------------------------------------------------------


@pytest.fixture
def secure() -> Backend:
    """Return a backend that `over_tls` starts."""
    return Backend()


@pytest.fixture
async def over_tls(secure: Backend, ca: trustme.CA, ca_file: str) -> AsyncIterator[Gateway]:
    async with serving(secure, server_side(ca, "localhost")):
        config = Config(target_api_url=secure.url, target_api_key=KEY, target_ca_file=ca_file)
        async with Gateway(config) as running:
            yield running


async def test_a_session_over_tls(secure: Backend, over_tls: Gateway) -> None:
    async with connection(over_tls) as client:
        for message in ("hello", os.urandom(MEGABYTE)):
            await client.send(message)
            assert await soon(client.recv()) == message
        await soon(client.close(4001))
    assert await soon(secure.codes.get()) == 4001


async def test_a_server_over_tls_closes_and_the_client_sees_its_code(secure: Backend, over_tls: Gateway) -> None:
    async def serve_one(session: ServerConnection) -> None:
        await session.close(4002)

    secure.serve_one = serve_one
    async with connection(over_tls) as client:
        with pytest.raises(ConnectionClosedError):
            await soon(client.recv())
        assert client.close_code == 4002
    assert await soon(secure.codes.get()) == 4002


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_a_killed_client_ends_a_session_over_tls(secure: Backend, over_tls: Gateway, how: str) -> None:
    secure.serve_one = listen
    async with connection(over_tls) as client:
        await soon(secure.sessions.get())
        kill(client, how)
        assert await soon(secure.codes.get()) == 1006


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_a_killed_server_over_tls_ends_its_clients_session(secure: Backend, over_tls: Gateway, how: str) -> None:
    async with connection(over_tls) as client:
        kill(await soon(secure.sessions.get()), how)
        with pytest.raises(ConnectionClosedError):
            await soon(client.recv())
        assert client.close_code == 1006


async def test_what_a_client_sends_before_its_end_reaches_an_upstream_over_tls(ca: trustme.CA, ca_file: str) -> None:
    got = b""

    async def collect(call: Call) -> None:
        nonlocal got
        call.write(SWITCH)
        while piece := await call.reader.read(PIECE_BYTES):
            got += piece
        call.keep_alive = False

    async with Upstream(server_side(ca, "localhost"), "localhost") as upstream:
        upstream.default = collect
        config = Config(target_api_url=upstream.url, target_ca_file=ca_file)
        async with Gateway(config) as gateway, connected(gateway.url) as client:
            client.write(request("/api/x", gateway.issue_token(), *WISH))
            assert (await client.head()).status == 101
            client.write(pattern(0, PIECE_BYTES))
            client.writer.write_eof()
            await soon(upstream.connections[0].ended.wait())
            with pytest.raises(ConnectionResetError):  # what the upstream may have sent behind it is not known
                await soon(client.reader.read())
    assert got == pattern(0, PIECE_BYTES)


async def test_an_upstream_that_does_not_answer_the_end_of_tls_is_left(ca: trustme.CA, ca_file: str) -> None:
    """It goes on sending, as one does that generates: that is paid for, and read by nobody."""
    async with deaf_server(ca, SWITCH) as deaf:
        config = Config(target_api_url=deaf.url, target_ca_file=ca_file)
        async with Gateway(config) as gateway, connected(gateway.url) as client:
            client.write(request("/api/x", gateway.issue_token(), *WISH))
            assert (await client.head()).status == 101
            client.writer.write_eof()
            await soon(deaf.left.wait())


# --- any other protocol ----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def gateway_to(upstream: Upstream) -> AsyncIterator[Gateway]:
    async with Gateway(Config(target_api_url=upstream.url, target_api_key=KEY)) as running:
        yield running


async def switch_and_echo(call: Call) -> None:
    """Echo until the client ends its side, and end this one then."""
    call.write(SWITCH)
    while piece := await call.reader.read(PIECE_BYTES):
        await call.send(piece)
    call.keep_alive = False


async def test_bytes_come_through_whole_to_the_end_of_both_sides(upstream: Upstream) -> None:
    upstream.default = switch_and_echo
    size = 24 * MEGABYTE + 1
    async with gateway_to(upstream) as gateway, connected(gateway.url) as client:

        async def send_all() -> None:
            for start in range(0, size, PIECE_BYTES):
                client.write(pattern(start, min(PIECE_BYTES, size - start)))
                await soon(client.writer.drain())
            client.writer.write_eof()

        client.write(request("/api/x", gateway.issue_token(), *WISH))
        assert (await client.head()).status == 101
        sending = asyncio.create_task(send_all())
        check = PatternCheck()
        while piece := await soon(client.reader.read(PIECE_BYTES)):
            check.feed(piece)
        await sending
        assert check.size == size
        await soon(upstream.connections[0].closed.wait())


async def is_held_up(writer: asyncio.StreamWriter) -> bool:
    """Let the loop turn until what was written has gone, or nothing moves any more."""
    draining = asyncio.ensure_future(writer.drain())
    for _ in range(QUIET_TURNS):
        await asyncio.sleep(0)
        if draining.done():
            break
    held_up = not draining.done()
    draining.cancel()
    return held_up


@pytest.mark.parametrize("slow", ["client", "upstream"])
async def test_a_side_that_does_not_read_holds_the_other_up(upstream: Upstream, slow: str) -> None:
    """What a sender gets rid of, while nobody reads, is what the buffers on the way hold: it does not grow."""
    calls: asyncio.Queue[Call] = asyncio.Queue()
    done = asyncio.Event()

    async def hold(call: Call) -> None:
        call.write(SWITCH)
        calls.put_nowait(call)
        await soon(done.wait())
        call.reset()

    upstream.default = hold
    async with gateway_to(upstream) as gateway, connected(gateway.url) as client:
        client.write(request("/api/x", gateway.issue_token(), *WISH))
        assert (await client.head()).status == 101
        call = await soon(calls.get())
        writer, reader = (call.writer, client.reader) if slow == "client" else (client.writer, call.reader)
        sent_bytes = 0
        while not await is_held_up(writer):
            writer.write(pattern(sent_bytes, PIECE_BYTES))
            sent_bytes += PIECE_BYTES
            assert sent_bytes < 64 * MEGABYTE
        check = PatternCheck()
        while check.size < sent_bytes:
            check.feed(await soon(reader.read(PIECE_BYTES)))
        done.set()


@pytest.mark.parametrize("who", ["client", "upstream"])
async def test_a_reset_on_one_side_is_a_reset_on_the_other(upstream: Upstream, who: str) -> None:
    broken = asyncio.Event()

    async def breaking(call: Call) -> None:
        call.write(SWITCH)
        await soon(call.reader.readexactly(2))
        if who == "upstream":
            call.reset()
            return
        try:
            await soon(call.reader.read())
        except ConnectionResetError:
            broken.set()

    upstream.default = breaking
    async with gateway_to(upstream) as gateway, connected(gateway.url) as client:
        client.write(request("/api/x", gateway.issue_token(), *WISH))
        assert (await client.head()).status == 101
        client.write(b"go")
        if who == "upstream":
            with pytest.raises(ConnectionResetError):
                await soon(client.reader.read())
        else:
            await client.writer.drain()
            reset_writer(client.writer)
            await soon(upstream.connections[0].ended.wait())
    assert broken.is_set() is (who == "client")


async def test_a_wish_for_http2_is_answered_in_http1(upstream: Upstream) -> None:
    upstream.default = answering(b"hello")
    async with gateway_to(upstream) as gateway:
        bearer = ("--header", f"Authorization: Bearer {gateway.issue_token()}")
        code, out, err = await curl("--http2", "--include", *bearer, f"{gateway.url}/api/x", f"{gateway.url}/api/y")
    assert (code, err) == (0, b"")
    assert out.count(b"HTTP/1.1 200 OK\r\n") == out.count(b"hello") == 2
    for received in upstream.requests:
        names = {name for name, _ in received.fields}
        assert not {b"upgrade", b"connection", b"http2-settings"} & names


async def test_a_client_that_leaves_before_the_switch_is_missed_at_once(upstream: Upstream) -> None:
    upstream.default = hang
    async with gateway_to(upstream) as gateway, connected(gateway.url) as client:
        client.write(request("/api/x", gateway.issue_token(), *WISH))
        await upstream.requested()
        await client.close()
        await soon(upstream.connections[0].ended.wait())
