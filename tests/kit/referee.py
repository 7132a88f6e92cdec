"""Looks, after each step of a world (machine.py), at every byte that the gateway has written, and at what it holds."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Final

from tests.kit.machine_parts import Asked, ScriptedClient, ScriptedUpstream, Seen
from tests.kit.playbook import KEY
from tests.kit.wire import Incomplete, Message, read_body, read_head

if TYPE_CHECKING:
    from tests.kit.machine import World

MOST_HELD_BYTES: Final = 256 * 1024
"""For one client: what a pipeline, a relay and a transport take before they rest, and a piece more for each."""
IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"))
# What connections share; an exchange's own bytes are found by going everywhere else.
_SHARED: Final = frozenset(("ProxyContext", "UpstreamPool", "Clock", "AnswerParser", "RequestParser", "Subject"))


class Referee:
    """Holds the gateway to what it promises.

    Args:
        world: What happens.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def look(self) -> None:
        """Read what has been written since the last look, and judge it."""
        for upstream in self._world.upstreams:
            _take(upstream)
            self._read_requests(upstream)
        for client in self._world.clients:
            _take(client)
            self._read_answers(client)
            self._check_end(client)
        self._check_held()

    def _read_requests(self, upstream: ScriptedUpstream) -> None:
        while upstream.unread:
            seen = upstream.requests[-1] if upstream.requests else None
            if seen is None or seen.whole:
                try:
                    message, upstream.unread = read_head(upstream.unread)
                except Incomplete:
                    return
                seen = self._see(upstream, message)
            try:
                upstream.unread = read_body(seen.message, upstream.unread, until_close=None)
            except Incomplete:
                _only(upstream.unread, rb"<q(\d+)>", seen.asked.number)
                return
            seen.whole = True
            assert not seen.asked.refused, f"a broken request came to an end: {seen.message}"
            assert seen.message.body == seen.asked.content, f"another body: {seen.message}"

    def _see(self, upstream: ScriptedUpstream, message: Message) -> Seen:
        """A request's head has come: may it be here?"""
        method, target, version = message.start.split(b" ")
        match = re.fullmatch(rb"/v1/(\d+)", target)
        assert match is not None
        assert version == b"HTTP/1.1"
        asked = self._world.all_asked[int(match[1])]
        assert method == asked.method
        assert message.value(b"authorization") == b"Bearer " + KEY.encode()
        assert not asked.local
        assert asked.begins or not asked.refused, f"a refused request reached the upstream: {message}"
        (client,) = (client for client in self._world.clients if asked in client.asked)
        assert client.said_bytes >= asked.head_end
        for before in client.asked[: client.asked.index(asked)]:
            for seen in before.seen:
                over = seen.given is not None and (seen.given.sent or seen.given.broken)
                assert over or seen.at.peer.transport.is_closing(), f"{before.number} is still under way"
        if upstream.requests:
            last = upstream.requests[-1]
            assert last.given is not None
            assert last.given.sent, "an upstream connection was used again before its answer had ended"
            assert not upstream.dirty, "an upstream connection was used again that is not clean"
        seen = Seen(asked, message, upstream, first=not upstream.requests)
        if asked.seen:
            (failed,) = asked.seen
            assert asked.method in IDEMPOTENT, f"{asked.method!r} was sent twice"
            assert not failed.first, "a request was sent again after a new connection had failed"
            assert failed.answer_bytes == 0, "a request was sent again that an answer had begun to"
            assert failed.at.peer.transport.is_closing()
        asked.seen.append(seen)
        upstream.requests.append(seen)
        return seen

    def _read_answers(self, client: ScriptedClient) -> None:
        while client.unread or client.answer is not None:
            if client.answer is None:
                try:
                    message, client.unread = read_head(client.unread)
                except Incomplete:
                    return
                if message.status < 200:
                    self._check_interim(client, message)
                    continue
                client.answer = message
            message, asked = client.answer, client.next_asked
            # What a head asks for, nobody can tell before it has come.
            head_only = asked is not None and asked.method == b"HEAD" and asked.head_end <= client.said_bytes
            if message.status == 408 and client.unread.startswith(b"{"):  # it had not come in time
                head_only = False
            if not head_only and message.status not in {204, 304}:
                gone = client.has_heard_all
                try:
                    client.unread = read_body(message, client.unread, until_close=gone)
                except Incomplete:
                    number = message.value(b"x-answer")
                    if number is not None:
                        _only(client.unread, rb"<a(\d+)>", int(number))
                    return
            self._check_answer(client, asked, message)
            client.answer = None
            client.answers.append(message)

    def _check_interim(self, client: ScriptedClient, message: Message) -> None:
        asked = client.next_asked
        assert asked is not None
        assert asked.minor == 1, "an interim answer for an HTTP/1.0 client"
        if message.status == 100:
            assert client.ended, "nobody has to be asked whether it is there"
            return
        given = asked.seen[-1].given
        assert given is not None
        assert (message.value(b"link") or b"").startswith(b"<a%d>" % given.number), "another's interim answer"

    def _check_answer(self, client: ScriptedClient, asked: Asked | None, message: Message) -> None:
        """A whole answer has come: may it be this one?"""
        if message.value(b"x-gateway-error") is not None:
            assert asked is not None
            reasons = {asked.refused, *self._world.may_refuse}
            assert message.status in reasons, f"refused without a reason: {message}"
            return
        assert asked is not None, f"nobody asked for {message}"
        if asked.local:
            assert (message.status, message.value(b"x-answer")) == (200, None)
            return
        given = self._world.all_given[int(message.value(b"x-answer") or b"-1")]
        assert given.asked is asked, f"an answer to {given.asked.number} for {asked.number}"
        assert message.status == given.status
        assert not given.broken, f"a broken answer looks whole: {message.start!r}"
        assert message.body == given.content, f"another body: {message.start!r}"

    def _check_end(self, client: ScriptedClient) -> None:
        """What ends in good order has ended behind a whole answer; what is cut ends in a reset."""
        transport = client.peer.transport
        if client.reset:
            return
        if transport.aborted:
            cut = client.answer is not None or client.unread
            assert not cut or transport.socket.options, "a cut answer was ended without a reset"
        elif client.has_heard_all:
            assert client.answer is None, f"cut short: {client.answer}"
            assert client.unread == b"", "cut short"

    def _check_held(self) -> None:
        for client in self._world.clients:
            transport = client.peer.transport
            held = _held_bytes(transport.get_protocol()) + transport.get_write_buffer_size()
            assert held <= MOST_HELD_BYTES, f"{held} bytes are held for one client"
        for upstream in self._world.upstreams:
            size = upstream.peer.transport.get_write_buffer_size()
            assert size <= MOST_HELD_BYTES, f"{size} bytes are held for one upstream"

    def check_answered(self, client: ScriptedClient) -> None:
        transport = client.peer.transport
        if client.next_asked is None or client.ended or client.reset or transport.aborted:
            return
        assert transport.is_closing() or client.peer.state == "half-closed", f"{client.next_asked} was never answered"
        last = client.answers[-1] if client.answers else None
        assert last is None or last.value(b"connection") == b"close" or self._world.may_refuse & {408, 504}, last


def _take(peer: ScriptedClient | ScriptedUpstream) -> None:
    peer.unread += peer.peer.transport.take()


def _only(data: bytes, pattern: bytes, number: int) -> None:
    """Nothing of another message may be in part of a body."""
    others = {int(found) for found in re.findall(pattern, data)} - {number}
    assert not others, f"bytes of {others} in {number}"


def _held_bytes(thing: object) -> int:
    """Sum up the bytes objects that a connection, or the exchange on it, holds, each once."""
    known: set[int] = set()
    held = 0
    todo = [thing]
    while todo:
        one = todo.pop()
        if id(one) in known:
            continue
        known.add(id(one))
        if isinstance(one, bytes | bytearray):
            held += len(one)
        elif isinstance(one, list | tuple):
            todo += one
        else:
            todo += [getattr(one, name, None) for name in _attributes(type(one))]  # type: ignore[arg-type]
    return held


@functools.cache
def _attributes(kind: type) -> tuple[str, ...]:
    """Return the names of what the objects of one of the gateway's classes hold; none of what many of them share."""
    if not kind.__module__.startswith("gateway.") or kind.__name__ in _SHARED:
        return ()
    return tuple(name for base in kind.__mro__ for name in getattr(base, "__slots__", ()))
