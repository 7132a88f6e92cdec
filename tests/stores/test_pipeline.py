"""The connection alone, over a transport in memory: order, batching, losses, and nobody with another's reply."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Any

import hiredis
import pytest

from gateway.stores.address import RedisAddress
from gateway.stores.pipeline import RETIRED_S, Connection, dial
from tests.kit.script import ScriptLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Transport(asyncio.Transport):
    """Remembers what was written; ends when told."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.aborted = False
        self.socket: socket.socket | None = None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.socket if name == "socket" else default

    def is_closing(self) -> bool:
        return self.aborted

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


class Notes:
    """A recipient that notes what it is told, by context; `told` is set at each note."""

    def __init__(self) -> None:
        self.notes: list[tuple[object, object]] = []
        self.told = asyncio.Event()

    def on_reply(self, context: Any, reply: object) -> None:
        self._note(context, reply)

    def on_loss(self, connection: Connection, context: Any, reason: str) -> None:
        self._note(context, reason)

    def on_late_reply(self, connection: Connection, reply: object) -> None:
        self._note("late", reply)

    def _note(self, context: object, what: object) -> None:
        self.notes.append((context, what))
        self.told.set()


class Bench:
    """A connection with its transport, and what its owner heard."""

    def __init__(self, timeout_s: float = 10.0) -> None:
        self.ends: list[str] = []
        self.transport = Transport()
        self.connection = Connection(timeout_s, lambda _, reason: self.ends.append(reason))
        self.connection.connection_made(self.transport)
        self.notes = Notes()

    async def send(self, *contexts: object) -> None:
        for context in contexts:
            self.connection.send(b"<%s>" % str(context).encode(), self.notes, context)
        await asyncio.sleep(0)


async def test_what_one_tick_sends_leaves_in_one_write() -> None:
    bench = Bench()
    await bench.send("a", "b", "c")
    await bench.send("d")
    assert bench.transport.written == [b"<a><b><c>", b"<d>"]
    bench.connection.end("done")


async def test_what_comes_alone_leaves_at_once_as_long_as_nothing_comes_together() -> None:
    bench = Bench()
    connection, notes, written = bench.connection, bench.notes, bench.transport.written
    await bench.send("a")
    connection.data_received(b":1\r\n")
    connection.send(b"<b>", notes, "b")
    assert written == [b"<a>", b"<b>"]
    await bench.send("c", "d")  # behind what is in flight
    assert written[2:] == [b"<c><d>"]
    connection.data_received(b":2\r\n:3\r\n:4\r\n")
    connection.send(b"<e>", notes, "e")  # nothing is in flight, but the last ones came together
    assert written[3:] == []
    await bench.send("f")
    assert written[3:] == [b"<e><f>"]
    connection.data_received(b":5\r\n:6\r\n")
    assert notes.notes == list(zip("abcdef", range(1, 7), strict=True))
    connection.end("done")


async def test_replies_go_to_those_who_asked_in_order_even_byte_by_byte() -> None:
    bench = Bench()
    await bench.send("a", "b", "c")
    for byte in b"*2\r\n:1\r\n:2\r\n-ERR no\r\n$2\r\nhi\r\n":
        bench.connection.data_received(bytes([byte]))
    (a, first), (b, second), (c, third) = bench.notes.notes
    assert (a, first, b, c, third) == ("a", [1, 2], "b", "c", b"hi")
    assert isinstance(second, hiredis.ReplyError)
    bench.connection.end("done")


async def test_a_connection_lost_within_a_reply_loses_all_in_flight_once() -> None:
    bench = Bench()
    await bench.send("a", "b", "c")
    bench.connection.data_received(b":1\r\n*2\r\n:1\r\n")
    bench.connection.connection_lost(ConnectionResetError())
    bench.connection.connection_lost(None)
    reason = "The connection to Redis was lost."
    assert bench.notes.notes == [("a", 1), ("b", reason), ("c", reason)]
    assert bench.ends == [reason]


@pytest.mark.parametrize(
    ("data", "reason"), [(b"HTTP/1.1 400\r\n", "not the Redis protocol"), (b":1\r\n:2\r\n:3\r\n", "nobody asked")]
)
async def test_after_nonsense_the_connection_is_not_trusted_any_more(data: bytes, reason: str) -> None:
    bench = Bench()
    await bench.send("a", "b")
    bench.connection.data_received(data)
    assert [context for context, _ in bench.notes.notes] == ["a", "b"]
    assert reason in bench.ends[0]
    assert bench.transport.aborted


async def test_what_is_sent_on_an_ended_connection_is_lost_not_forgotten() -> None:
    bench = Bench()
    bench.connection.end("gone")
    await bench.send("a")
    assert bench.notes.notes == [("a", "gone")]
    assert bench.transport.written == []


async def test_the_owner_hears_of_the_end_before_those_in_flight() -> None:
    bench = Bench()
    await bench.send("a")
    heard: list[int] = []
    bench.notes.on_loss = lambda *_: heard.append(len(bench.ends))  # type: ignore[method-assign]
    bench.connection.end("gone")
    assert heard == [1]


async def test_an_abandoned_command_gets_its_late_reply_and_nobody_elses() -> None:
    bench = Bench(timeout_s=0.01)
    await bench.send("a", "b")
    await bench.notes.told.wait()
    assert bench.notes.notes == [(name, "Redis did not answer within 10 ms.") for name in ("a", "b")]
    bench.notes.notes.clear()
    bench.connection.send(b"<c>", bench.notes, "c")
    bench.connection.data_received(b":1\r\n:2\r\n:3\r\n")
    assert bench.notes.notes == [("late", 1), ("late", 2), ("c", 3)]
    bench.connection.end("done")


async def test_each_command_is_watched_from_its_own_tick() -> None:
    bench = Bench(timeout_s=0.02)
    await bench.send("a")
    await bench.send("b")
    while len(bench.notes.notes) < 2:
        bench.notes.told.clear()
        await bench.notes.told.wait()
    assert [context for context, _ in bench.notes.notes] == ["a", "b"]
    bench.connection.end("done")


def test_who_asks_again_when_a_reply_is_lost_is_watched_by_one_timer(standing: Callable[[float], Standing]) -> None:
    busy = standing(0.1)
    bench, loop = busy.bench, busy.loop
    note, told = bench.notes.on_loss, []

    def ask_again(connection: Connection, context: Any, reason: str) -> None:
        note(connection, context, reason)
        told.append(len(bench.notes.notes))
        if connection.end_reason is None:
            connection.send(b"<a>", bench.notes, context)
        assert len(bench.notes.notes) == told[-1]

    bench.notes.on_loss = ask_again  # type: ignore[method-assign]
    loop.act(bench.connection.send, b"<a>", bench.notes, "a")
    for count in range(1, 6):
        loop.take_long(0.1)
        loop.settle()
        assert told == list(range(1, count + 1))
        timers = [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
        assert len(timers) == 1
    bench.connection.data_received(b":0\r\n" * 6)
    assert [said for _, said in bench.notes.notes[-6:]] == [0] * 6


async def test_a_late_timer_reads_replies_before_it_judges() -> None:
    bench = Bench(timeout_s=0.01)
    await bench.send("a")
    # As a loop does that stood still: the timer comes first, the reply that lay in the socket after it.
    overdue_s = asyncio.get_running_loop().time() - 1
    bench.connection._abandon_overdue(overdue_s)
    bench.connection.data_received(b":1\r\n")
    assert bench.notes.notes == [("a", 1)]
    bench.connection.end("done")


class Standing:
    """A bench on a loop each of whose turns takes long, as where a lot is computed."""

    def __init__(self, turn_s: float) -> None:
        self.loop = ScriptLoop()
        self._turn_s = turn_s
        self.loop.act(self._open)

    def turns(self, count: int) -> None:
        """Let so many turns pass."""
        self.loop.act(self._take_turn, count)

    def _open(self) -> None:
        self.bench = Bench(timeout_s=0.1)

    def _take_turn(self, left: int) -> None:
        self.loop.take_long(self._turn_s)
        if left > 1:
            self.loop.call_soon(self._take_turn, left - 1)


@pytest.fixture
def standing() -> Iterator[Callable[[float], Standing]]:
    made: list[Standing] = []

    def make(turn_s: float) -> Standing:
        made.append(Standing(turn_s))
        return made[-1]

    yield make
    for one in made:
        one.loop.act(one.bench.connection.end, "done")
        one.loop.close()


@pytest.mark.parametrize("turn_s", [0.005, 0.015, 0.025, 0.03, 0.05, 0.2])
def test_a_loop_that_is_always_late_still_judges(standing: Callable[[float], Standing], turn_s: float) -> None:
    busy = standing(turn_s)
    bench, loop = busy.bench, busy.loop
    began_s = loop.time()
    loop.act(bench.connection.send, b"<a>", bench.notes, "a")
    while loop.time() + turn_s < began_s + 0.1:
        busy.turns(1)
    assert bench.notes.notes == []
    busy.turns(8)
    assert bench.notes.notes == [("a", "Redis did not answer within 100 ms.")]


def test_a_loop_that_stands_still_again_and_again_puts_off_its_judgement_each_time(
    standing: Callable[[float], Standing],
) -> None:
    busy = standing(0.03)
    bench, loop = busy.bench, busy.loop
    for context in ("a", "b", "c"):
        loop.act(bench.connection.send, b"<%s>" % context.encode(), bench.notes, context)
        # The timer comes first, the reply that lay in the socket after it.
        loop.take_long(0.5)
        loop.settle()
        assert bench.notes.notes == []
        loop.act(bench.connection.data_received, b":1\r\n")
        assert bench.notes.notes.pop() == (context, 1)
        busy.turns(8)
    assert bench.notes.notes == []


async def test_a_retired_connection_ends_with_its_last_reply() -> None:
    bench = Bench()
    await bench.send("a", "b")
    bench.connection.retire()
    bench.connection.data_received(b":1\r\n")
    assert bench.connection.end_reason is None
    bench.connection.data_received(b":2\r\n")
    assert bench.transport.aborted
    assert bench.notes.notes == [("a", 1), ("b", 2)]


async def test_a_retired_connection_with_nothing_in_flight_ends_at_once() -> None:
    bench = Bench()
    bench.connection.retire()
    assert bench.transport.aborted


def test_what_was_sent_again_elsewhere_does_not_arrive_late(standing: Callable[[float], Standing]) -> None:
    busy = standing(0.1)
    bench, loop = busy.bench, busy.loop
    loop.act(bench.connection.send, b"<a>", bench.notes, "a")
    loop.act(bench.connection.retire)
    loop.take_long(RETIRED_S - 0.1)
    loop.act(bench.connection.retire)  # the one after it was replaced as well
    with socket.socket() as sock:
        bench.transport.socket = sock
        assert bench.ends == []
        loop.take_long(0.2)
        loop.settle()
        assert bench.transport.aborted
        # What the kernel still has goes nowhere.
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("ii", 1, 0)


async def test_an_address_keeps_its_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, hosts = asyncio.get_running_loop(), []
    place = ("fe80::1", 6379, 0, socket.if_nametoindex("lo"))

    async def look_up(*_: object, **__: object) -> object:
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", place)]

    async def connect(_make: object, host: str, *_: object, **__: object) -> tuple[None, None]:
        hosts.append(host)
        return None, None

    monkeypatch.setattr(loop, "getaddrinfo", look_up)
    monkeypatch.setattr(loop, "create_connection", connect)
    await dial(RedisAddress("redis"), 1.0, lambda *_: None)
    assert hosts == ["fe80::1%lo"]


async def test_a_full_buffer_is_seen() -> None:
    bench = Bench()
    bench.connection.pause_writing()
    assert congested(bench)
    bench.connection.resume_writing()
    assert not congested(bench)
    bench.connection.end("done")


def congested(bench: Bench) -> bool:
    """Return what the owner sees; a function, because mypy takes an attribute for constant."""
    return bench.connection.congested
