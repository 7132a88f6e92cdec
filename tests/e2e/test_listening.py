"""The listener by itself, on both loops: how many it lets in, and that waiting for room costs nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import resource
import socket
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import pytest

from gateway.config import Address, UnixAddress
from gateway.listening import ACCEPTS_A_TURN, Descriptors, Listener
from gateway.proxy.clock import Clock
from tests.kit.process import until
from tests.kit.upstream import soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path


class Greeter(asyncio.Protocol):
    """Says a word to each client, and hears of its end."""

    def __init__(self, lost: Callable[[Greeter], None]) -> None:
        self._lost = lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(b"hello")

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._lost(self)


class Looked(Descriptors):
    """Counts how often somebody was about to be accepted."""

    looks = 0

    def room(self, clients: int) -> int:
        self.looks += 1
        return super().room(clients)


class Door:
    """A listener with a limit, and the clients behind it."""

    def __init__(self, limit: int) -> None:
        self.clients: set[Greeter] = set()
        self.upstreams: set[int] = set()
        self.clock = Clock(asyncio.get_running_loop())
        self.descriptors = Looked(limit, self.upstreams)
        self.listener = Listener(self.clock, self._make, self.descriptors)

    @property
    def address(self) -> Address:
        return addresses(self.listener)[0]

    def _make(self) -> Greeter:
        client = Greeter(self._lose)
        self.clients.add(client)
        return client

    def _lose(self, client: Greeter) -> None:
        self.clients.discard(client)
        self.listener.on_client_gone()


def addresses(listener: Listener) -> list[Address]:
    parts = map(urlsplit, listener.urls)
    return [Address(str(part.hostname), part.port or 0) for part in parts]


@contextlib.asynccontextmanager
async def door(limit: int, *, ticking: bool = False) -> AsyncIterator[Door]:
    made = Door(limit)
    await made.listener.bind(Address("127.0.0.1", 0))
    made.listener.start()
    if ticking:
        made.clock.start()
    try:
        yield made
    finally:
        made.clock.stop()
        await made.listener.close()
        for client in tuple(made.clients):
            client.transport.abort()
        await turns(2)
        assert made.listener.clients == len(made.clients) == 0


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    yield opened
    for sock in opened:
        sock.close()


def connect(sockets: list[socket.socket], address: tuple[str, int], count: int) -> None:
    """Connect without a turn of the loop: the kernel does it."""
    for _ in range(count):
        sockets.append(socket.create_connection(address))
        sockets[-1].setblocking(False)


async def greeted(sock: socket.socket) -> bytes:
    data: bytes = await soon(asyncio.get_running_loop().sock_recv(sock, 100))
    return data


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# --- how many ---------------------------------------------------------------------------------------------------------


def most_clients(limit: int, upstreams_each: int) -> int:
    """Count the clients that are let in, one after the other."""
    clients = 0
    upstreams: list[None] = []
    descriptors = Descriptors(limit, upstreams)
    while descriptors.room(clients + 1) >= 0:
        clients += 1
        upstreams += [None] * upstreams_each
    return clients


@pytest.mark.parametrize("limit", [48, 64, 100, 256, 1024, 4096, 20_000, 65_536])
def test_clients_and_their_upstreams_stay_below_the_limit(limit: int) -> None:
    spare = limit - 2 * most_clients(limit, upstreams_each=1)
    assert 14 <= spare <= max(65, limit // 15)


@pytest.mark.parametrize("limit", [48, 64, 100, 256, 1024, 4096])
def test_those_who_were_let_in_idle_find_an_upstream_when_they_all_ask_at_once(limit: int) -> None:
    assert 2 * most_clients(limit, upstreams_each=0) <= limit - 14


@pytest.mark.parametrize(("limit", "idle"), [(1024, 450), (20_000, 16_000), (65_536, 50_000)])
def test_most_of_a_large_limit_may_be_idle_clients(limit: int, idle: int) -> None:
    assert most_clients(limit, upstreams_each=0) >= idle


@pytest.mark.parametrize("limit", [16, 40, 1024, 2**31])
def test_a_pause_ends_at_the_latest_when_all_have_gone(limit: int) -> None:
    descriptors = Descriptors(limit, [])
    assert descriptors.room(1) >= descriptors.enough


# --- pausing ----------------------------------------------------------------------------------------------------------


async def test_no_more_are_let_in_than_there_is_room_for_however_many_come(
    sockets: list[socket.socket],
) -> None:
    async with door(256) as opened:
        room = most_clients(256, upstreams_each=0)
        connect(sockets, opened.address, 3 * room)
        await greeted(sockets[room - 1])
        await turns(10)
        assert len(opened.clients) == room
        for sock in sockets[:room]:
            sock.close()
        # A place that comes free is taken; those who wait are greeted in their order.
        assert await greeted(sockets[room]) == b"hello"
        assert await greeted(sockets[2 * room - 1]) == b"hello"
        assert len(opened.clients) <= room


async def test_others_get_their_turn_while_many_come(sockets: list[socket.socket]) -> None:
    async with door(4096) as opened:
        connect(sockets, opened.address, 3 * ACCEPTS_A_TURN)
        counts = [0]
        async with asyncio.timeout(20):
            while counts[-1] < len(sockets):
                await asyncio.sleep(0)
                counts.append(len(opened.clients))
        assert max(after - before for before, after in itertools.pairwise(counts)) <= ACCEPTS_A_TURN


async def test_an_upstream_that_ends_makes_room_at_the_next_tick(sockets: list[socket.socket]) -> None:
    async with door(64, ticking=True) as opened:
        opened.upstreams |= set(range(64))
        connect(sockets, opened.address, 1)
        await turns(20)
        assert not opened.clients
        opened.upstreams.clear()
        assert await greeted(sockets[0]) == b"hello"


@pytest.mark.parametrize("why", ["full", "EMFILE"])
async def test_nothing_is_done_while_there_is_no_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sockets: list[socket.socket], why: str
) -> None:
    calls: list[str] = []
    accept = Listener._accept

    def counted(self: Listener, listening: socket.socket) -> None:
        calls.append(why)
        accept(self, listening)

    monkeypatch.setattr(Listener, "_accept", counted)
    caplog.set_level("INFO", "gateway")
    async with door(100 if why == "full" else 10_000, ticking=True) as opened:
        filled = most_clients(100, upstreams_each=0) if why == "full" else 2
        connect(sockets, opened.address, filled)
        await greeted(sockets[-1])
        waiting = [socket.socket() for _ in range(20)]
        sockets += waiting
        with all_taken() if why == "EMFILE" else contextlib.nullcontext():
            for sock in waiting:
                sock.connect(opened.address)
            await until(lambda: bool(caplog.records))
            calls.clear()
            began_s = opened.clock.now_s
            rounds = 0
            async with asyncio.timeout(20):
                while opened.clock.now_s < began_s + 1:
                    await asyncio.sleep(0)
                    rounds += 1
            # Once at each tick at most, in the hundreds of turns that the loop had meanwhile.
            assert rounds > 100
            assert len(calls) <= (0 if why == "full" else 6)
            assert len(opened.clients) == filled
        for sock in sockets[:filled]:
            sock.close()
        for sock in waiting:
            sock.setblocking(False)
            assert await greeted(sock) == b"hello"
        await until(lambda: len(caplog.records) == 2)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    said = "that 100 descriptors allow" if why == "full" else "Too many open files"
    assert said in caplog.records[0].getMessage()


@contextlib.contextmanager
def all_taken() -> Iterator[None]:
    """Let this process have no descriptor left."""
    gc.collect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208 - only counted
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- the ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_closing_hands_over_whoever_was_just_accepted(sockets: list[socket.socket], count: int) -> None:
    async with door(1024) as opened:
        connect(sockets, opened.address, 3)
        await turns(count)
        await opened.listener.close()
        accepted = len(opened.clients)
        ends: list[Any] = await asyncio.gather(*map(greeted, sockets), return_exceptions=True)
    assert ends.count(b"hello") == accepted
    assert all(end == b"hello" or isinstance(end, ConnectionError) for end in ends)


async def test_who_waits_when_listening_ends_is_taken_however_many(sockets: list[socket.socket]) -> None:
    async with door(1024) as opened:
        connect(sockets, opened.address, 3 * ACCEPTS_A_TURN)
        opened.listener.end()
        assert [await greeted(sock) for sock in sockets] == [b"hello"] * len(sockets)


async def test_who_comes_as_listening_ends_is_not_let_in_and_who_is_halfway_in_is_taken(
    sockets: list[socket.socket],
) -> None:
    async with door(100) as opened:
        with socket.socket(fileno=opened.listener.shared()[0]) as listening:
            # To the kernel, who says nothing is only halfway in, as if his handshake's last segment were under way.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
            connect(sockets, opened.address, 1)
            opened.listener.turn_away()
            sockets.append(socket.socket())
            sockets[1].setblocking(False)
            sockets[1].connect_ex(opened.address)
            sockets[0].send(b"!")
            opened.listener.end()
            assert await greeted(sockets[0]) == b"hello"
            with pytest.raises(OSError, match="not connected"):
                sockets[1].getpeername()


async def test_a_unix_socket_that_lets_in_nobody_any_more_takes_no_turns_of_the_loop(
    sockets: list[socket.socket], tmp_path: Path
) -> None:
    async with door(100) as opened:
        await opened.listener.bind(UnixAddress(str(tmp_path / "s")))
        opened.listener.start()
        sockets.append(socket.socket(socket.AF_UNIX))
        sockets[0].connect(str(tmp_path / "s"))
        sockets[0].setblocking(False)
        opened.listener.turn_away()
        assert await greeted(sockets[0]) == b"hello"
        looks = opened.descriptors.looks
        await turns(5)
        assert opened.descriptors.looks == looks


async def test_listening_ends_for_one_of_several_processes_alone(sockets: list[socket.socket]) -> None:
    async with door(100) as opened:
        with socket.create_server(("127.0.0.1", 0)) as common:
            opened.listener.adopt(common.dup())
            opened.listener.start()
            connect(sockets, common.getsockname(), 1)
            opened.listener.end(handed_over=True)
            connect(sockets, common.getsockname(), 1)
            assert opened.listener.accepted == 0
            for _ in sockets:
                common.accept()[0].close()


async def test_who_owns_the_sockets_that_were_given_takes_all_who_wait_and_leaves_the_others(
    sockets: list[socket.socket],
) -> None:
    async with door(1024) as opened:
        listener, given, other = opened.listener, *(socket.create_server(("127.0.0.1", 0)) for _ in range(2))
        with given.dup() as also_given, other.dup() as also_other:
            listener.adopt(given)
            listener.adopt(other, is_own=False)
            listener.start()
            connect(sockets, other.getsockname(), 2 * ACCEPTS_A_TURN)
            listener.own([given])
            connect(sockets, also_given.getsockname(), 2 * ACCEPTS_A_TURN)
            listener.end()
            assert [await greeted(sock) for sock in sockets] == [b"hello"] * len(sockets)
            for left, is_let_in in ((also_given, False), (also_other, True)):
                sockets.append(socket.socket())
                sockets[-1].setblocking(False)
                sockets[-1].connect_ex(left.getsockname())
                assert (sockets[-1].connect_ex(left.getsockname()) == 0) == is_let_in


async def test_who_waits_for_another_process_is_taken_when_that_does_not_come(
    sockets: list[socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    async with door(20) as opened:
        listener, address = opened.listener, ("127.0.0.1", 0)
        other = socket.create_server(address)
        listener.adopt(other, is_own=False)
        listener.start()
        for _ in range(3):
            waiting = len(sockets)
            connect(sockets, other.getsockname(), 1)
            await turns(5)
            assert listener.clients == waiting
            opened.clock.sweep()
            assert await greeted(sockets[-1]) == b"hello"
        assert caplog.messages == []
        # Not even so are there ever more than there is room for.
        connect(sockets, other.getsockname(), 20)
        opened.clock.sweep()
        opened.clock.sweep()
        assert 3 < listener.clients < 20
        assert "new connections have to wait" in caplog.text


async def test_who_has_left_before_being_accepted_is_none(sockets: list[socket.socket]) -> None:
    async with door(1024) as opened:
        for _ in range(5):
            with socket.create_connection(opened.address) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connect(sockets, opened.address, 1)
        assert await greeted(sockets[0]) == b"hello"
        await until(lambda: len(opened.clients) == 1)


async def test_a_name_is_listened_on_at_all_its_addresses(sockets: list[socket.socket]) -> None:
    async with door(1024) as opened:
        await opened.listener.bind(Address("localhost", 0))
        opened.listener.start()
        for address in addresses(opened.listener):
            connect(sockets, address, 1)
            assert await greeted(sockets[-1]) == b"hello"
        with pytest.raises(OSError, match=str(opened.address[1])):
            await opened.listener.bind(opened.address)
        with pytest.raises(OSError, match=r"listen on 192\.0\.2\.1:0 \(GATEWAY_LISTEN\): .*; this machine has no such"):
            await opened.listener.bind(Address("192.0.2.1", 0))
        with pytest.raises(OSError, match=r"listen on unix:/dev/null/x \(GATEWAY_LISTEN\): Not a directory"):
            await opened.listener.bind(UnixAddress("/dev/null/x"))
