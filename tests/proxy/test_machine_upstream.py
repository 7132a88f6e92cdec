"""What upstreams can do, in any order: whatever they answer, however it is cut, whenever they leave.

Bounded, and the same each time. To look further, with other sequences each time:

    MACHINE_EXAMPLES=20000 python -m pytest tests/proxy/test_machine_upstream.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from tests.kit.machine import ANY_SIZE, SIZES, Machine, World, machine_settings

if TYPE_CHECKING:
    from tests.kit.machine_parts import ScriptedUpstream

WHICH = st.integers(0, 2)
METHODS = st.sampled_from([b"GET", b"GET", b"HEAD", b"POST", b"POST", b"PUT"])
BODIES = st.sampled_from([0, 1, 20, 300, 3000, 70_000, 400_000])
GOOD = st.sampled_from(["length", "chunked", "until close", "empty", "unchanged", "old"])
ENDS = st.sampled_from(["ends", "resets"])
BAD = st.sampled_from(["two lengths", "bad chunk", "cut", "extra", "switch"])


class Upstreams(Machine):
    def __init__(self) -> None:
        super().__init__(World(upstream_pool=2))

    @initialize(clients=st.integers(0, 2))
    def connections_are_kept(self, clients: int) -> None:
        for _ in range(clients):
            self.is_asked(2, b"GET", 0, b"1.1", ANY_SIZE)
        self.world.observe()
        for upstream in self.world.upstreams:
            self.world.answer(upstream, "length", size=3)
            self.world.flush_upstream(upstream, ANY_SIZE)

    def upstream(self, which: int) -> ScriptedUpstream | None:
        """One of those that are still there: the newest first."""
        there = [upstream for upstream in self.world.upstreams if upstream.may_send]
        return there[-1 - which % len(there)] if there else None

    @property
    def is_awaited(self) -> bool:
        return self.asked(0) is not None

    def asked(self, which: int) -> ScriptedUpstream | None:
        """One of those that are asked for an answer."""
        asked = [upstream for upstream in self.world.upstreams if upstream.may_send and upstream.asks is not None]
        return asked[which % len(asked)] if asked else None

    @rule(
        which=WHICH,
        method=METHODS,
        size=st.sampled_from([0, 0, 30, 100_000]),
        version=st.sampled_from([b"1.1", b"1.1", b"1.0"]),
        sent=st.sampled_from([ANY_SIZE, ANY_SIZE, ANY_SIZE, 200, 60_000]),
    )
    def is_asked(self, which: int, method: bytes, size: int, version: bytes, sent: int) -> None:
        client = self.client(which)
        self.world.ask(client, method, b"Connection: keep-alive", size=size, chunk_bytes=0, version=version)
        self.world.flush(client, sent)

    @rule(method=METHODS, how=st.sampled_from(["ends", "resets", "babbles"]), size=SIZES, heard=st.booleans())
    def is_asked_in_vain(self, method: bytes, how: str, size: int, *, heard: bool) -> None:
        """A kept connection turns out to be gone just as it is used, or a little later."""
        self.is_asked(0, method, 30, b"1.1", size)
        self.world.observe()
        upstream = self.asked(0)
        if upstream is None:
            return
        if heard:
            self.world.answer(upstream, "length", size=3)
            self.world.flush_upstream(upstream, 7)
        self.go(upstream, how)

    @rule()
    @precondition(lambda self: any(client.out for client in self.world.clients))
    def requests_go_on(self) -> None:
        for client in self.world.clients:
            self.world.flush(client, ANY_SIZE)

    @rule(which=WHICH, kind=GOOD, size=BODIES, interims=st.sampled_from([0, 1, 3]), sent=SIZES)
    @precondition(lambda self: self.is_awaited)
    def answers(self, which: int, kind: str, size: int, interims: int, sent: int) -> None:
        upstream = self.asked(which)
        if upstream is not None:
            self.world.answer(upstream, kind, size=size, interims=interims)
            self.world.flush_upstream(upstream, sent)

    @rule(which=WHICH, size=BODIES, closes=st.booleans(), kind=st.sampled_from(["length", "chunked", "extra"]))
    @precondition(lambda self: self.is_awaited)
    def answers_at_once(self, which: int, size: int, kind: str, *, closes: bool) -> None:
        upstream = self.asked(which)
        if upstream is not None:
            self.world.answer(upstream, kind, size=size, closes=closes)
            self.world.flush_upstream(upstream, ANY_SIZE)

    @rule(which=WHICH, kind=BAD, size=BODIES, sent=SIZES)
    @precondition(lambda self: self.is_awaited)
    def answers_badly(self, which: int, kind: str, size: int, sent: int) -> None:
        upstream = self.asked(which)
        if upstream is not None:
            self.world.answer(upstream, kind, size=size)
            self.world.flush_upstream(upstream, sent)

    @rule(which=WHICH, kind=GOOD, size=BODIES, sent=st.sampled_from([0, 0, 1, 15, 40, 100, 5000]), how=ENDS)
    @precondition(lambda self: self.is_awaited)
    def fails_in_its_answer(self, which: int, kind: str, size: int, sent: int, how: str) -> None:
        upstream = self.asked(which)
        if upstream is not None:
            self.world.answer(upstream, kind, size=size)
            self.world.flush_upstream(upstream, sent)
            self.world.observe()  # the connection may be used again by now
            self.go(upstream, how)

    @rule(which=WHICH, size=SIZES)
    @precondition(lambda self: any(upstream.out for upstream in self.world.upstreams))
    def sends(self, which: int, size: int) -> None:
        upstream = self.upstream(which)
        if upstream is not None:
            self.world.flush_upstream(upstream, size)

    @rule(which=WHICH, size=st.integers(1, 60))
    @precondition(lambda self: any(upstream.out for upstream in self.world.upstreams))
    def dribbles(self, which: int, size: int) -> None:
        upstream = self.upstream(which)
        if upstream is not None:
            for _ in range(size):
                self.world.flush_upstream(upstream, 1)

    @rule()
    @precondition(lambda self: any(upstream.out for upstream in self.world.upstreams))
    def all_send(self) -> None:
        for upstream in self.world.upstreams:
            self.world.flush_upstream(upstream, ANY_SIZE)

    @rule(which=WHICH, how=st.one_of(ENDS, st.just("babbles")))
    def misbehaves(self, which: int, how: str) -> None:
        upstream = self.upstream(which)
        if upstream is not None:
            self.go(upstream, how)

    def go(self, upstream: ScriptedUpstream, how: str) -> None:
        if how == "ends":
            self.world.end_upstream(upstream)
        elif how == "resets":
            self.world.reset_upstream(upstream)
        else:
            self.world.babble(upstream)

    @rule(which=WHICH, reads=st.booleans())
    def reads(self, which: int, *, reads: bool) -> None:
        upstream = self.upstream(which)
        if upstream is not None:
            self.world.let_read(upstream, reads=reads)

    @rule(how=st.sampled_from(["", "", "waits", "slow", "ends at once", "fails"]))
    def is_connected_to(self, how: str) -> None:
        play = self.world.play
        play.dial_waits = how == "waits"
        play.dial_slow = how == "slow"
        play.dial_ends_at_once = how == "ends at once"
        play.dial_error = ConnectionRefusedError(111, "Connection refused") if how == "fails" else None
        if how in {"ends at once", "fails"}:
            self.world.may_refuse |= {502, 503}  # and once it has failed often enough, nothing is tried
        if how != "waits":
            self.world.release()

    @rule(which=WHICH, how=st.one_of(st.sampled_from(["not", "on", "on"]), SIZES))
    def a_client_reads(self, which: int, how: str | int) -> None:
        self.world.read(self.world.clients[which % len(self.world.clients)], how)


TestUpstreams = Upstreams.TestCase
TestUpstreams.settings = machine_settings(90)
