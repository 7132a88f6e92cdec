"""A world of clients and upstreams that remembers what each has said, and checks what the gateway makes of it.

The machines in `tests/proxy/test_machine_*.py` decide what happens; `World.observe` looks after each step at every
byte that the gateway has written, and at what it holds (referee.py).

Each request has a number, in its target and all through its body (`<q7>`); each answer has one too (`<a3>`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.kit.machine_parts import (
    PIECE_BYTES,
    Asked,
    Given,
    Glued,
    ScriptedClient,
    ScriptedUpstream,
    chunked_body,
    filled,
    pieces,
)
from tests.kit.playbook import Playbook
from tests.kit.referee import Referee

SHORTEST_TIMEOUT_S: Final = 4.5
"""Connecting takes five at most; deadlines are early by no more than this."""
ANY_SIZE: Final = 1 << 30
SIZES: Final = st.sampled_from([1, 2, 9, 60, 400, 5000, 50_000, ANY_SIZE])


def machine_settings(examples: int) -> settings:
    """Bounded and always the same; with `MACHINE_EXAMPLES`, so many, longer and others each time."""
    many = os.environ.get("MACHINE_EXAMPLES")
    return settings(
        max_examples=int(many) if many else examples,
        stateful_step_count=60 if many else 30,
        derandomize=not many,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class World:
    """A gateway, its clients and its upstreams.

    Attributes:
        may_refuse: The statuses that there is a reason for by now.
    """

    def __init__(self, **config: Any) -> None:
        self.play = Playbook(**{"rate_limit": "1000000/day", "upstream_idle": "10s", **config})
        self.clients: list[ScriptedClient] = [ScriptedClient(self.play.client)]
        self.upstreams: list[ScriptedUpstream] = []
        self.all_asked: list[Asked] = []
        self.all_given: list[Given] = []
        self.may_refuse: set[int] = set()
        self._passed_s = 0.0
        self._referee = Referee(self)

    # --- what the clients do -------------------------------------------------------------------------------------

    def connect(self) -> None:
        self.clients.append(ScriptedClient(self.play.connect()))

    def ask(
        self, client: ScriptedClient, method: bytes, *lines: bytes, size: int, chunk_bytes: int, version: bytes
    ) -> None:
        """Spell a request; `flush` sends it."""
        number = len(self.all_asked)
        asked = Asked(number, method, int(version[-1:]), filled(b"<q%d>" % number, size))
        fields = [*lines]
        body = asked.content
        if size and chunk_bytes:
            fields.append(b"Transfer-Encoding: chunked")
            body = chunked_body(asked.content, chunk_bytes)
        request = self.play.request(method, b"/api/%d" % number, *fields, body=body, version=version)
        self._append(client, asked, request, len(request) - len(body))

    def ask_wrongly(self, client: ScriptedClient, kind: str) -> None:
        """Spell a request that the gateway does not let through, or not whole."""
        play, number = self.play, len(self.all_asked)
        target, chunked = b"/api/%d" % number, b"Transfer-Encoding: chunked"
        status, request, body = {
            "stranger": (401, b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % target, b""),
            "climber": (400, play.request(b"GET", b"/api/../%d" % number), b""),
            "two hosts": (400, play.request(b"GET", target, b"Host: other"), b""),
            "two lengths": (400, play.request(b"POST", target, b"Content-Length: 5", chunked), b"0\r\n\r\n"),
            "no http": (400, b"\x16\x03\x01<q%d>\r\n\r\n" % number, b""),
            "old version": (505, b"GET %b HTTP/2.0\r\nHost: h\r\n\r\n" % target, b""),
            "folded": (400, play.request(b"GET", target, b"X-A: b\r\n c"), b""),
            "bad chunk": (400, play.request(b"POST", target, chunked), b"4\r\n<q%d\r\nxx\r\n" % (number % 10)),
            "local": (0, b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", b""),
        }[kind]
        method = request.partition(b" ")[0]
        asked = Asked(number, method, refused=status, begins=kind == "bad chunk", local=kind == "local")
        self._append(client, asked, request + body, len(request))

    def _append(self, client: ScriptedClient, asked: Asked, request: bytes, head_bytes: int) -> None:
        asked.head_end = client.said_bytes + len(client.out) + head_bytes
        asked.end = client.said_bytes + len(client.out) + len(request)
        self.all_asked.append(asked)
        client.asked.append(asked)
        client.out += request

    def flush(self, client: ScriptedClient, size: int) -> None:
        """Send so many bytes of what is spelled."""
        data, client.out = client.out[:size], client.out[size:]
        for piece in pieces(data):
            if not client.may_send:
                return
            client.said_bytes += len(piece)
            client.peer.sends(piece)

    def end_client(self, client: ScriptedClient) -> None:
        client.ended = True
        client.peer.ends()

    def reset_client(self, client: ScriptedClient) -> None:
        client.reset = True
        client.peer.resets()

    def read(self, client: ScriptedClient, how: str | int) -> None:
        """Let a client read `on`, `not`, or so many bytes of what waits for it."""
        if client.peer.transport.lost:
            return
        if isinstance(how, int) and how < client.peer.transport.get_write_buffer_size():
            client.peer.reads(how)
            return
        if how != "not":  # who takes all that waits takes the connection's end too
            client.peer.reads_on()
        if how != "on":
            client.peer.stops_reading()

    # --- what the upstreams do -----------------------------------------------------------------------------------

    def answer(
        self, upstream: ScriptedUpstream, kind: str, *, size: int, interims: int = 0, closes: bool = False
    ) -> None:
        """Spell an answer to the request that waits; `flush_upstream` sends it."""
        seen = upstream.asks
        assert seen is not None
        number = len(self.all_given)
        size = min(size, 3000) if kind == "extra" else size  # which is one piece
        status = {"empty": 204, "unchanged": 304, "switch": 101}.get(kind, 200)
        bodiless = seen.asked.method == b"HEAD" or status != 200
        content = filled(b"<a%d>" % number, size)
        fields = [b"HTTP/1.%d %d %d" % (kind != "old", status, number), b"X-Answer: %d" % number]
        if closes:
            fields.append(b"Connection: close")
        body: list[bytes | None] = [content] if size else []
        if kind in {"chunked", "bad chunk"}:
            fields.append(b"Transfer-Encoding: chunked")
            body = [chunked_body(content, 9 if size < 1000 else 20_000)]
        elif kind != "until close" and status == 200:
            fields.append(b"Content-Length: %d" % size)
        match kind:
            case "until close":
                body.append(None)
            case "two lengths":
                fields.append(b"Content-Length: %d" % (size + 1))
            case "bad chunk":
                body = [b"3\r\n<a%d" % (number % 10), b"\r\nzz\r\n"]
            case "cut":
                fields[-1] = b"Content-Length: %d" % (size + 1)
                body.append(None)
            case "extra":
                body = [Glued((b"" if bodiless else content) + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")]
        if bodiless and kind != "extra":
            body = []
        broken = kind in {"two lengths", "switch"} or (kind in {"bad chunk", "cut"} and not bodiless)
        keeps = not (closes or broken or kind in {"old", "extra"} or None in body)
        seen.given = given = Given(number, seen.asked, status, b"" if bodiless else content, keeps, broken)
        given.until_close = None in body and kind != "cut"
        self.all_given.append(given)
        for interim in range(interims):
            upstream.out.append(b"HTTP/1.1 103 Early Hints\r\nLink: <a%d>;%d\r\n\r\n" % (number, interim))
        head = b"\r\n".join((*fields, b"", b""))
        if body and isinstance(body[0], Glued):
            upstream.out += [Glued(head + body[0]), given]
        else:
            upstream.out += [head, *body, given]

    def flush_upstream(self, upstream: ScriptedUpstream, size: int) -> None:
        """Send so many bytes of what is spelled."""
        while upstream.out and (size > 0 or not isinstance(upstream.out[0], bytes)):
            step = upstream.out.pop(0)
            if isinstance(step, Given):
                step.sent = True
                upstream.dirty = upstream.dirty or not step.keeps
            elif step is None:
                self.end_upstream(upstream)
                return
            else:
                most = len(step) if isinstance(step, Glued) else min(size, PIECE_BYTES)
                piece = step[:most]
                if len(piece) < len(step):
                    upstream.out.insert(0, step[most:])
                size -= len(piece)
                self._upstream_sends(upstream, piece)

    def _upstream_sends(self, upstream: ScriptedUpstream, piece: bytes) -> None:
        if not upstream.may_send:
            return
        if upstream.requests:
            seen = upstream.requests[-1]
            seen.answer_bytes += len(piece)
            if seen.given is not None and seen.given.broken:
                self.may_refuse.add(502)
        upstream.peer.sends(piece)

    def babble(self, upstream: ScriptedUpstream) -> None:
        """Send an answer that nobody asked for, or something else than an answer."""
        if upstream.out or not upstream.reads or not upstream.is_heard:  # what is asked meanwhile, nobody could tell
            return
        upstream.dirty = True
        if upstream.asks is None:
            self._upstream_sends(upstream, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
        else:
            self.may_refuse.add(502)
            self._upstream_sends(upstream, b"220 mail.test ESMTP\r\n\r\n")

    def let_read(self, upstream: ScriptedUpstream, *, reads: bool) -> None:
        """Let an upstream read on, or stop reading."""
        upstream.reads = reads
        if reads:
            upstream.peer.reads_on()
        else:
            upstream.may_miss = True
            upstream.peer.stops_reading()

    def end_upstream(self, upstream: ScriptedUpstream) -> None:
        if not upstream.may_send:
            return
        given = upstream.requests[-1].given if upstream.requests else None
        if given is not None and given.until_close and not given.sent:
            left = sum(len(part) for part in upstream.out if isinstance(part, bytes))
            # Once its head is out, nobody can tell that more was to come.
            if left <= len(given.content):
                given.content = given.content[: len(given.content) - left]
                given.sent = True
        self._may_be_gone(upstream, is_heard=upstream.is_heard)
        upstream.peer.ends()

    def reset_upstream(self, upstream: ScriptedUpstream) -> None:
        if not upstream.peer.transport.lost:
            self._may_be_gone(upstream, is_heard=True)
            upstream.peer.resets()

    def _may_be_gone(self, upstream: ScriptedUpstream, *, is_heard: bool) -> None:
        upstream.ended = True
        upstream.dirty = upstream.dirty or is_heard
        upstream.out.clear()
        seen = upstream.requests[-1] if upstream.requests else None
        if not upstream.reads or not is_heard or (seen is not None and (seen.given is None or not seen.given.sent)):
            self.may_refuse.add(502)

    # --- what passes ---------------------------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        self._passed_s += seconds
        if self._passed_s > SHORTEST_TIMEOUT_S:
            self.may_refuse |= {408, 504, 503}  # the last, once connecting has taken too long often enough
        self.play.pass_time(seconds)

    def observe(self) -> None:
        """Look at all that the gateway has written since, and at what it holds."""
        for peer in self.play.upstreams[len(self.upstreams) :]:
            self.upstreams.append(ScriptedUpstream(peer))
            self.upstreams[-1].reads = not self.play.dial_slow
            self.upstreams[-1].may_miss = self.play.dial_slow or self.play.dial_ends_at_once
        self._referee.look()

    # --- the end -------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Let everybody behave, and see that nobody is left without an answer and nothing is left behind."""
        try:
            self._behave()
            for client in self.clients:
                self._referee.check_answered(client)
            sent = {seen.asked.number for upstream in self.upstreams for seen in upstream.requests}
            # Of a place that was taken, at most one connection knows, which may have ended before it was read.
            missed = sum(upstream.may_miss for upstream in self.upstreams)
            assert len(sent) <= self.play.used() <= len(sent) + missed, "a place was lost, or given away"
        finally:
            self.play.close()

    def _behave(self) -> None:
        play = self.play
        play.dial_error = None
        play.dial_waits = play.dial_slow = play.dial_ends_at_once = False
        for _ in range(3 + 2 * len(self.all_asked)):
            self.release()
            for client in self.clients:
                self.read(client, "on")
            for upstream in self.upstreams:
                if upstream.may_send:
                    self.let_read(upstream, reads=True)
            for client in self.clients:
                self.flush(client, ANY_SIZE)
            self.observe()
            for upstream in self.upstreams:
                if upstream.asks is not None and upstream.asks.whole and upstream.may_send:
                    self.answer(upstream, "length", size=9)
                self.flush_upstream(upstream, ANY_SIZE)
            self.pass_time(0.25)
            self.observe()

    def release(self) -> None:
        """Let all that waits for a verdict or a connection go on."""
        play = self.play
        play.store.holds = False
        while play.store._asked:
            play.store.decide()
        while play._dialling:
            play.dial_now()

    def abandon(self) -> None:
        """End without a look: something else has failed."""
        with contextlib.suppress(Exception):
            self.play.close()


class Machine(RuleBasedStateMachine):
    """What happens in every world, whoever acts in it."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def client(self, which: int) -> ScriptedClient:
        """One of those that are still there."""
        there = [client for client in self.world.clients if client.may_send]
        if which >= len(there):
            self.world.connect()
            there.append(self.world.clients[-1])
        return there[which % len(there)]

    @rule(seconds=st.sampled_from([0.1, 0.3, 1.0, 6.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @invariant()
    def all_is_well(self) -> None:
        self.world.observe()

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:
            self.world.finish()
        else:
            self.world.abandon()
