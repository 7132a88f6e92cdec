"""What clients can do, in any order: whatever they send, however it is cut, whenever they leave.

Bounded, and the same each time. To look further, with other sequences each time:

    MACHINE_EXAMPLES=20000 python -m pytest tests/proxy/test_machine_client.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.kit.machine import ANY_SIZE, SIZES, Machine, World, machine_settings

if TYPE_CHECKING:
    from tests.kit.machine_parts import ScriptedClient

WHICH = st.integers(0, 2)
BODIES = st.sampled_from([0, 0, 0, 1, 20, 300, 3000, 70_000, 400_000])
CHUNK_SIZES = st.sampled_from([0, 0, 7, 900, 30_000])
METHODS = st.sampled_from([b"GET", b"GET", b"HEAD", b"POST", b"POST", b"PUT", b"DELETE"])
ANSWERS = st.sampled_from(["length", "chunked", "until close", "empty"])
RESTS = st.sampled_from([0.0, 0.0, 0.0, 80.0])  # at the longest, twice as long as anybody waits
ENDS = ["ends", "resets"]
WRONG = st.sampled_from(
    ["stranger", "climber", "two hosts", "two lengths", "no http", "old version", "folded", "bad chunk", "local"]
)


class Clients(Machine):
    def __init__(self) -> None:
        super().__init__(World())

    def ask(self, which: int, method: bytes, size: int, chunk_bytes: int, version: bytes, *lines: bytes) -> None:
        chunk_bytes = chunk_bytes if version == b"1.1" else 0
        self.world.ask(self.client(which), method, *lines, size=size, chunk_bytes=chunk_bytes, version=version)

    @rule(which=WHICH, method=METHODS, size=BODIES, chunk_bytes=CHUNK_SIZES)
    def asks(self, which: int, method: bytes, size: int, chunk_bytes: int) -> None:
        self.ask(which, method, size, chunk_bytes, b"1.1")
        self.world.flush(self.client(which), ANY_SIZE)

    @rule(
        which=WHICH,
        method=METHODS,
        size=BODIES,
        chunk_bytes=CHUNK_SIZES,
        version=st.sampled_from([b"1.1", b"1.0"]),
        line=st.sampled_from([b"X-A: b", b"Connection: close", b"Connection: keep-alive", b"Expect: 100-continue"]),
        wrong=st.one_of(st.none(), st.none(), st.none(), WRONG),
    )
    def spells_one_more(
        self, which: int, method: bytes, size: int, chunk_bytes: int, version: bytes, line: bytes, wrong: str | None
    ) -> None:
        if wrong is not None:
            self.world.ask_wrongly(self.client(which), wrong)
        else:
            self.ask(which, method, size, chunk_bytes, version, line)

    @rule(which=WHICH, size=SIZES)
    @precondition(lambda self: any(client.out for client in self.world.clients))
    def sends(self, which: int, size: int) -> None:
        self.world.flush(self.client(which), size)

    @rule(which=WHICH, size=st.integers(1, 40))
    @precondition(lambda self: any(client.out for client in self.world.clients))
    def dribbles(self, which: int, size: int) -> None:
        for _ in range(size):
            self.world.flush(self.client(which), 1)

    @rule(which=WHICH, how=st.sampled_from(ENDS), first=st.sampled_from([0, 100, ANY_SIZE]))
    def leaves(self, which: int, how: str, first: int) -> None:
        client = self.client(which)
        self.world.flush(client, first)
        self.go(client, how)

    def go(self, client: ScriptedClient, how: str) -> None:
        if how == "resets":
            self.world.reset_client(client)
        elif client.may_send:
            self.world.end_client(client)

    @rule(which=WHICH, waits_for=st.sampled_from(["verdict", "connection", "answer"]), how=st.sampled_from(ENDS))
    def leaves_while_it_waits(self, which: int, waits_for: str, how: str) -> None:
        play = self.world.play
        play.store.holds, play.dial_waits = waits_for == "verdict", waits_for == "connection"
        self.ask(which, b"POST", 30, 0, b"1.1")
        client = self.client(which)
        self.world.flush(client, ANY_SIZE)
        self.world.observe()
        self.go(client, how)

    @rule(which=WHICH, kind=ANSWERS, size=st.sampled_from([3000, 400_000]), taken=SIZES, seconds=RESTS)
    def rests_while_it_is_answered(self, which: int, kind: str, size: int, taken: int, seconds: float) -> None:
        client = self.client(which)
        self.world.read(client, "not")
        self.ask(which, b"GET", 0, 0, b"1.1")
        self.world.flush(client, ANY_SIZE)
        self.world.observe()
        self.is_answered(kind, size, ANY_SIZE)
        self.world.read(client, taken)
        self.world.pass_time(seconds)

    @rule(which=WHICH, how=st.one_of(st.sampled_from(["not", "on"]), SIZES))
    def reads(self, which: int, how: str | int) -> None:
        self.world.read(self.world.clients[which % len(self.world.clients)], how)

    @rule(kind=ANSWERS, size=BODIES, sent=SIZES)
    @precondition(lambda self: any(upstream.asks or upstream.out for upstream in self.world.upstreams))
    def is_answered(self, kind: str, size: int, sent: int) -> None:
        for upstream in self.world.upstreams:
            if upstream.asks is not None and upstream.may_send:
                self.world.answer(upstream, kind, size=size)
                self.world.flush_upstream(upstream, sent)
                return

    @rule(size=BODIES)
    @precondition(lambda self: any(upstream.asks or upstream.out for upstream in self.world.upstreams))
    def all_are_answered(self, size: int) -> None:
        for upstream in self.world.upstreams:
            if upstream.asks is not None and upstream.may_send:
                self.world.answer(upstream, "length", size=size)
            self.world.flush_upstream(upstream, ANY_SIZE)

    @rule(what=st.sampled_from(["verdicts", "connections", "uploads"]), waits=st.booleans())
    def must_wait(self, what: str, *, waits: bool) -> None:
        play = self.world.play
        if not waits:
            play.dial_waits = play.dial_slow = False
            self.world.release()
        elif what == "verdicts":
            play.store.holds = True
        elif what == "connections":
            play.dial_waits = True
        else:
            play.dial_slow = True

    @rule(which=WHICH, reads=st.booleans())
    def is_taken(self, which: int, *, reads: bool) -> None:
        if self.world.upstreams:
            self.world.let_read(self.world.upstreams[-1 - which % len(self.world.upstreams)], reads=reads)


TestClients = Clients.TestCase
TestClients.settings = machine_settings(75)
