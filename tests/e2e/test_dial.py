"""An upstream connection that is given up while it is made: nothing stays, and nobody else's descriptor suffers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from gateway import Config, Gateway
from gateway.certificates import ReloadedTls, client_context
from gateway.http1.parser import AnswerParser
from gateway.proxy.clock import Clock
from gateway.proxy.dial import Dialer
from gateway.proxy.upstream import UpstreamConnection
from tests.e2e import connected, request
from tests.kit.tls import server_side
from tests.kit.upstream import Upstream, reset, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import trustme

TURNS = 40
"""More turns of the loop than a TLS handshake over loopback takes."""


class Silent:
    """Accepts connections and says nothing on them: whoever expects TLS waits."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._accepted: asyncio.Queue[socket.socket] = asyncio.Queue()
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        accepted, _ = self._listener.accept()
        accepted.setblocking(False)
        self._accepted.put_nowait(accepted)

    @property
    def is_reached(self) -> bool:
        """Whether a connection has come that nobody has taken yet."""
        return not self._accepted.empty()

    async def connection(self) -> socket.socket:
        """Return the next connection, in the turn of the loop behind the one in which it comes."""
        return await soon(self._accepted.get())

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        while not self._accepted.empty():
            self._accepted.get_nowait().close()


@pytest.fixture
async def silent() -> AsyncIterator[Silent]:
    server = Silent()
    yield server
    server.close()


async def end_of(sock: socket.socket) -> None:
    """Read until the other side has ended the connection, one way or another."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):
        while await soon(loop.sock_recv(sock, 65536)):
            pass
    sock.close()


async def nobody_else_suffers() -> None:
    """Open sockets of somebody else's, which get the descriptors that have come free, and use them."""
    loop = asyncio.get_running_loop()
    opened = [socket.socketpair() for _ in range(3)]
    for one, other in opened:
        one.setblocking(False)
        for _ in range(3):
            await asyncio.sleep(0)
        other.send(b"x")
        assert await soon(loop.sock_recv(one, 1)) == b"x"
    for sock in (sock for pair in opened for sock in pair):
        sock.close()


async def give_up(dial: asyncio.Task[None]) -> None:
    dial.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await soon(dial)


def dialler(url: str, ca_file: str | None = None) -> Dialer:
    tls = ReloadedTls("", [], lambda: client_context(ca_file, None, None), Clock(asyncio.get_running_loop()))
    return Dialer(Config(target_api_url=url).settings.target, tls)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, 5, 6, 20])
async def test_a_handshake_that_is_given_up_leaves_no_descriptor_behind(
    silent: Silent, mishaps: list[object], turns: int
) -> None:
    loop = asyncio.get_running_loop()
    connection = UpstreamConnection(AnswerParser(), lambda _: None)
    dial = loop.create_task(dialler(silent.url)(connection))
    accepted = await silent.connection()
    for _ in range(turns):
        await asyncio.sleep(0)
    await give_up(dial)
    await nobody_else_suffers()
    await end_of(accepted)
    assert mishaps == []


async def test_a_connection_that_is_given_up_at_any_turn_ends(
    ca: trustme.CA, ca_file: str, mishaps: list[object]
) -> None:
    async with Upstream(server_side(ca, "localhost"), "localhost") as upstream:
        dial_to = dialler(upstream.url, ca_file)
        for turns in range(TURNS):
            ended: asyncio.Queue[UpstreamConnection] = asyncio.Queue()
            connection = UpstreamConnection(AnswerParser(), ended.put_nowait)
            dial = asyncio.get_running_loop().create_task(dial_to(connection))
            for _ in range(turns):
                await asyncio.sleep(0)
            await give_up(dial)
            await nobody_else_suffers()
            if dial.cancelled():
                for _ in range(TURNS):  # it may just have been made, and then it has to end
                    await asyncio.sleep(0)
            if connection.transport is not None:
                if not dial.cancelled():
                    connection.close()
                await soon(ended.get())
        for accepted in upstream.connections:
            await soon(accepted.ended.wait())
    assert mishaps == []


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_while_tls_is_set_up_ends_that(
    silent: Silent, mishaps: list[object], how: str
) -> None:
    async with Gateway(Config(target_api_url=silent.url)) as gateway, connected(gateway.url) as client:
        client.write(request("/api/x", gateway.issue_token()))
        accepted = await silent.connection()
        if how == "reset":
            client.reset()
        else:
            await client.close()
        await end_of(accepted)
    assert mishaps == []


async def test_tls_that_is_not_set_up_in_time_is_a_504_and_ends(silent: Silent, mishaps: list[object]) -> None:
    config = Config(target_api_url=silent.url, connect_timeout="100ms")
    async with Gateway(config) as gateway, connected(gateway.url) as client:
        # Whoever gets no processor for 100 ms has no time left to connect. Five in a row, and it would be a 503.
        while not silent.is_reached:
            assert (await client.ask(request("/api/x", gateway.issue_token()))).status == 504
        await end_of(await silent.connection())
    assert mishaps == []


async def test_the_log_says_why_there_is_no_connection_even_if_the_upstream_did_not(
    silent: Silent, mishaps: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    async with Gateway(Config(target_api_url=silent.url)) as gateway, connected(gateway.url) as client:
        client.write(request("/api/x", gateway.issue_token()))
        accepted = await silent.connection()
        await asyncio.get_running_loop().sock_recv(accepted, 65536)
        accepted.close()
        assert (await client.answer()).status == 502
    assert f"cannot connect to target api ({silent.url}): it ended the connection as it was made" in caplog.text
    assert mishaps == []


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 20])
async def test_a_gateway_that_stops_while_tls_is_set_up_leaves_nothing(
    silent: Silent, mishaps: list[object], turns: int
) -> None:
    before = asyncio.all_tasks()
    async with Gateway(Config(target_api_url=silent.url)) as gateway, connected(gateway.url) as client:
        client.write(request("/api/x", gateway.issue_token()))
        accepted = await silent.connection()
        for _ in range(turns):
            await asyncio.sleep(0)
        await gateway.close()
        assert asyncio.all_tasks() == before
        await end_of(accepted)
    assert mishaps == []


@pytest.mark.parametrize("how", ["end", "reset"])
@pytest.mark.parametrize("tls", [True, False])
async def test_a_connection_that_ends_as_it_is_made_is_a_502_at_once(
    ca: trustme.CA, ca_file: str, mishaps: list[object], how: str, *, tls: bool
) -> None:
    turns = iter(range(12))

    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        for _ in range(next(turns)):
            await asyncio.sleep(0)
        if how == "reset":
            reset(writer)
        else:
            writer.close()

    context = server_side(ca, "localhost") if tls else None
    async with await asyncio.start_server(leave, "127.0.0.1", 0, ssl=context) as server:
        host = f"localhost:{server.sockets[0].getsockname()[1]}"
        config = Config(target_api_url=f"https://{host}" if tls else f"http://{host}", target_ca_file=ca_file)
        for _ in range(12):  # one gateway would give up such an upstream
            async with Gateway(config) as gateway, connected(gateway.url) as client:
                answer = await client.ask(request("/api/x", gateway.issue_token(), method="POST", body=b"{}"))
                assert (answer.status, answer["x-gateway-error"]) == (502, "upstream_unreachable")
    assert mishaps == []
