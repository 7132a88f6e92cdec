"""Stopping: what is idle closes now, what is under way ends in good order, nothing new begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.proxy.client import REQUESTS_A_TURN

if TYPE_CHECKING:
    from tests.kit.playbook import Playbook


def drain(play: Playbook) -> None:
    """Do what the gateway does when it is told to stop."""
    play.context.draining = True
    for connection in tuple(play.context.connections):
        play.loop.act(connection.drain)


def test_an_idle_connection_closes(play: Playbook) -> None:
    drain(play)
    assert play.client.state == "closed"
    play.client.got_nothing()


def test_a_connection_between_requests_closes(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers()
    play.client.answer()
    drain(play)
    assert play.client.state == "closed"
    play.client.got_nothing()


def test_a_request_under_way_gets_its_answer_and_then_the_connection_closes(play: Playbook) -> None:
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: 4") + b"bo")
    drain(play)
    assert play.client.state == "open"
    play.client.sends(b"dy")
    assert play.upstream.request().body == b"body"
    play.upstream.answers()
    answer = play.client.answer()
    assert (answer.body, answer.value(b"connection")) == (b"hi", b"close")
    assert play.client.state == "closed"
    assert not play.context.connections


def test_a_stream_under_way_goes_on_to_its_end(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    play.client.head()
    drain(play)
    play.upstream.sends(b"0\r\n\r\n")
    play.client.got(b"2\r\nhi\r\n0\r\n\r\n")
    assert play.client.is_ended


def test_a_request_that_waits_for_its_verdict_still_gets_it(play: Playbook) -> None:
    play.store.holds = True
    play.client.sends(play.request(b"GET", b"/api/x"))
    drain(play)
    play.store.decide()
    play.upstream.answers()
    assert play.client.answer().value(b"connection") == b"close"
    assert play.client.state == "closed"


def test_half_a_head_is_refused_in_so_many_words(play: Playbook) -> None:
    play.client.sends(b"GET /api/x HTTP/1.1\r\nHost: h\r\n")
    drain(play)
    refusal = play.client.problem(503, "draining")
    assert refusal.value(b"retry-after") == b"1"
    assert refusal.value(b"connection") == b"close"
    assert play.client.is_ended
    assert play.dials == 0


def test_no_request_begins_behind_the_one_under_way(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/1") + play.request(b"GET", b"/api/2"))
    drain(play)
    play.upstream.request()
    play.upstream.answers()
    assert play.client.answer().value(b"connection") == b"close"
    play.client.got_nothing()
    play.upstream.got_nothing()
    assert play.client.is_ended
    assert play.used() == 1


def test_readiness_ends_and_says_why(play: Playbook) -> None:
    play.client.sends(b"GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n")
    assert play.client.answer().status == 200
    other = play.connect()
    play.context.draining = True
    play.client.sends(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    answer = play.client.answer()
    assert (answer.status, answer.value(b"connection")) == (200, b"close")
    other.sends(b"GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n")
    refusal = other.problem(503, "draining")
    assert refusal.value(b"retry-after") == b"1"
    assert other.is_ended


def test_a_connection_that_was_accepted_before_the_listener_closed_gets_nothing_begun(play: Playbook) -> None:
    drain(play)
    play.loop.settle()
    late = play.connect()
    late.sends(play.request(b"GET", b"/api/x"))
    assert late.state == "aborted"
    assert late.transport.lost
    late.got_nothing()
    assert not play.context.connections
    assert (play.dials, play.used()) == (0, 0)


def test_a_late_connection_does_not_say_that_the_last_has_ended(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    drain(play)
    late = play.connect()
    play.loop.settle()
    assert late.transport.lost
    assert not play.context.emptied.is_set()
    assert len(play.context.connections) == 1
    play.upstream.answers()
    assert play.client.answer().body == b"hi"
    play.loop.settle()
    assert not play.context.connections


def test_who_waits_for_his_turn_with_half_a_head_is_refused_in_so_many_words(play: Playbook) -> None:
    stranger = b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n"

    def send_and_stop() -> None:
        play.client.transport.peer_sends(stranger * REQUESTS_A_TURN + b"GET /api/x HTTP/1.1\r\nHo")
        play.context.draining = True
        for connection in tuple(play.context.connections):
            connection.drain()

    play.loop.act(send_and_stop)
    for _ in range(REQUESTS_A_TURN):
        assert play.client.answer().status == 401
    play.client.problem(503, "draining")
    assert play.client.is_ended
