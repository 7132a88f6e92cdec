"""Stopping: what is under way ends in good order, what is idle soon, and answers say that the connection closes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.proxy.client import GRACE_S, REQUESTS_A_TURN
from gateway.proxy.clock import TICK_S
from gateway.proxy.lingering import LINGER_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Playbook


LATE_S = 2 * TICK_S + 0.01


def drain(play: Playbook) -> None:
    """Do what the gateway does when it is told to stop."""
    play.context.draining = True
    for connection in tuple(play.context.connections):
        play.loop.act(connection.drain)


@pytest.mark.parametrize("requests", [0, 1])
def test_an_idle_connection_closes_when_it_has_had_its_chance(play: Playbook, requests: int) -> None:
    for _ in range(requests):
        play.client.sends(play.request(b"GET", b"/api/x"))
        play.upstream.answers()
        play.client.answer()
    drain(play)
    play.pass_time(GRACE_S)
    assert play.client.state == "open"
    play.pass_time(LATE_S)
    assert play.client.state == "closed"
    play.client.got_nothing()


def test_a_request_that_was_on_its_way_is_answered_and_told_that_the_connection_closes(play: Playbook) -> None:
    drain(play)
    play.pass_time(GRACE_S)
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers()
    answer = play.client.answer()
    assert (answer.status, answer.value(b"connection")) == (200, b"close")
    assert play.client.state == "closed"
    assert play.used() == 1


def test_a_grace_is_no_longer_than_the_time_that_an_idle_connection_has_anyway(
    make_play: Callable[..., Playbook],
) -> None:
    play = make_play(keepalive_timeout="2s")
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers()
    play.client.answer()
    play.pass_time(1.5)
    drain(play)
    play.pass_time(0.5 + LATE_S)
    assert play.client.state == "closed"


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("is_before", [True, False])
def test_a_stranger_who_sends_on_behind_a_refusal_holds_up_no_stop(
    make_play: Callable[..., Playbook],
    is_before: bool,  # noqa: FBT001 - a parameter of the test
    is_known: bool,  # noqa: FBT001 - likewise
) -> None:
    play = make_play(rate_limit="1/minute")
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers()
    play.client.answer()
    if not is_known:
        play.token = b"nobodys"
    if not is_before:
        drain(play)
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: 1000000"))
    assert play.client.answer().status == (429 if is_known else 401)
    if is_before:
        drain(play)
    for _ in range(int(LINGER_S)):
        assert play.client.state == "half-closed"
        play.client.sends(b"x")
        play.pass_time(1)
    play.client.sends(b"x")
    play.pass_time(LATE_S)
    assert (play.client.state == "half-closed") is is_known


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
    # Its head, which was sent before, has promised that the connection stays.
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers()
    assert play.client.answer().value(b"connection") == b"close"
    assert play.client.is_ended


def test_a_connection_that_was_promised_to_stay_is_not_waited_for_long(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    play.client.head()
    drain(play)
    play.upstream.sends(b"0\r\n\r\n")
    play.pass_time(GRACE_S + LATE_S)
    play.client.got(b"2\r\nhi\r\n0\r\n\r\n")
    assert play.client.state == "closed"


def test_a_request_that_waits_for_its_verdict_still_gets_it(play: Playbook) -> None:
    play.store.holds = True
    play.client.sends(play.request(b"GET", b"/api/x"))
    drain(play)
    play.store.decide()
    play.upstream.answers()
    assert play.client.answer().value(b"connection") == b"close"
    assert play.client.state == "closed"


@pytest.mark.parametrize("is_before", [True, False])
def test_half_a_head_that_becomes_whole_is_answered(play: Playbook, is_before: bool) -> None:  # noqa: FBT001
    request = play.request(b"GET", b"/api/x")
    if is_before:
        play.client.sends(request[:20])
    drain(play)
    if not is_before:
        play.client.sends(request[:20])
    play.pass_time(GRACE_S)
    play.client.sends(request[20:])
    play.upstream.answers()
    answer = play.client.answer()
    assert (answer.status, answer.value(b"connection")) == (200, b"close")
    assert play.client.is_ended


@pytest.mark.parametrize("is_before", [True, False])
def test_half_a_head_is_refused_in_so_many_words(play: Playbook, is_before: bool) -> None:  # noqa: FBT001
    half = b"GET /api/x HTTP/1.1\r\nHost: h\r\n"
    if is_before:
        play.client.sends(half)
    drain(play)
    if not is_before:
        play.client.sends(half)
    play.pass_time(GRACE_S + LATE_S)
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


def test_a_connection_that_was_accepted_before_the_listener_closed_is_served(play: Playbook) -> None:
    drain(play)
    play.loop.settle()
    late = play.connect()
    late.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers()
    assert late.answer().value(b"connection") == b"close"
    assert late.is_ended
    silent = play.connect()
    play.pass_time(GRACE_S + LATE_S)
    assert silent.state == "closed"


def test_a_connection_that_comes_to_a_closed_gateway_gets_nothing_begun(play: Playbook) -> None:
    play.context.draining = play.context.closed = True
    late = play.connect()
    late.sends(play.request(b"GET", b"/api/x"))
    assert late.state == "aborted"
    assert late.transport.lost
    late.got_nothing()
    assert (play.dials, play.used()) == (0, 0)


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
    play.pass_time(GRACE_S + LATE_S)
    play.client.problem(503, "draining")
    assert play.client.is_ended
