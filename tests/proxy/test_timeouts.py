"""Every wait has an end: by the gateway's coarse clock, never early and at most two ticks late."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from gateway.proxy.clock import TICK_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Playbook

LATE_S = 2 * TICK_S + 0.01


def test_a_head_that_does_not_end_is_a_408(make_play: Callable[..., Playbook]) -> None:
    play = make_play(header_timeout="3s")
    request = play.request(b"GET", b"/api/x")
    play.client.sends(request[:20])
    # Single bytes buy no time: the timeout is for the whole head.
    for at in range(20, 25):
        play.pass_time(0.5)
        play.client.sends(request[at : at + 1])
    play.client.got_nothing()
    play.pass_time(0.5 + LATE_S)
    refusal = play.client.problem(408, "request_timeout")
    assert refusal.value(b"connection") == b"close"
    assert play.client.is_ended
    assert (play.dials, play.used()) == (0, 0)


def test_a_head_just_in_time_is_fine(make_play: Callable[..., Playbook]) -> None:
    play = make_play(header_timeout="3s")
    request = play.request(b"GET", b"/api/x")
    play.client.sends(request[:20])
    play.pass_time(3)
    play.client.sends(request[20:])
    play.upstream.answers()
    assert play.client.answer().status == 200


def test_a_second_head_has_its_own_time(make_play: Callable[..., Playbook]) -> None:
    play = make_play(header_timeout="3s", keepalive_timeout="15s")
    request = play.request(b"GET", b"/api/x")
    play.client.sends(request)
    play.upstream.answers()
    play.client.answer()
    play.pass_time(10)
    play.client.sends(request[:20])
    play.pass_time(2.9)
    play.client.got_nothing()
    play.pass_time(LATE_S + 0.1)
    play.client.problem(408, "request_timeout")


def test_a_head_pipelined_in_part_has_its_time_from_when_it_is_waited_for(make_play: Callable[..., Playbook]) -> None:
    play = make_play(header_timeout="3s", keepalive_timeout="15s")
    request = play.request(b"GET", b"/api/x")
    play.client.sends(request + request[:20])
    play.pass_time(10)
    play.upstream.answers()
    play.client.answer()
    play.pass_time(3 + LATE_S)
    play.client.problem(408, "request_timeout")


@pytest.mark.parametrize("before", ["nothing", "a request", "an empty line"])
def test_an_idle_client_is_closed_without_a_word(make_play: Callable[..., Playbook], before: str) -> None:
    play = make_play(keepalive_timeout="5s", header_timeout="5s")
    if before == "a request":
        play.client.sends(play.request(b"GET", b"/api/x"))
        play.upstream.answers()
        play.client.answer()
    elif before == "an empty line":
        play.client.sends(b"\r\n")
    play.pass_time(5)
    assert play.client.state == "open"
    play.pass_time(LATE_S)
    if before == "an empty line":  # whether that was the beginning of a request may be seen either way
        assert play.client.is_ended
    else:
        play.client.got_nothing()
        assert play.client.state == "closed"


def test_an_upstream_that_does_not_answer_is_a_504(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.pass_time(20)
    play.client.got_nothing()
    assert play.upstream.state == "open"
    play.pass_time(LATE_S)
    refusal = play.client.problem(504, "upstream_timeout")
    assert refusal.value(b"ratelimit") == b'"minute";r=59;t=61'
    assert refusal.value(b"connection") == b"keep-alive"
    assert play.upstream.state == "aborted"
    assert play.used() == 1


def test_the_upstreams_time_begins_when_it_has_the_whole_request(play: Playbook) -> None:
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: 4") + b"bo")
    play.pass_time(15)
    play.client.sends(b"dy")
    play.pass_time(19)
    play.client.got_nothing()
    play.upstream.request()
    play.upstream.answers()
    assert play.client.answer().status == 200


def test_an_interim_answer_is_not_the_answer(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.sends(b"HTTP/1.1 102 Processing\r\n\r\n")
    assert play.client.head().status == 102
    play.pass_time(20 + LATE_S)
    play.client.problem(504, "upstream_timeout")


def test_connecting_takes_5_s_at_most(play: Playbook) -> None:
    play.dial_waits = True
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.pass_time(4.9)
    play.client.got_nothing()
    play.pass_time(0.2)
    play.client.problem(504, "upstream_timeout")
    assert play.client.state == "open"
    assert (play.dials, play.used()) == (1, 0)  # nothing was sent, so nothing is counted


def test_an_answer_that_stalls_is_cut(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    play.pass_time(29)
    play.upstream.sends(b"2\r\nho\r\n")  # each byte buys time
    play.pass_time(30)
    assert play.client.state == "open"
    play.pass_time(LATE_S)
    assert play.client.state == play.upstream.state == "aborted"
    assert not play.client.unread.endswith(b"0\r\n\r\n")


def test_a_request_body_that_stalls_is_a_408(play: Playbook) -> None:
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: 9") + b"ha")
    play.pass_time(29)
    play.client.sends(b"lf")
    play.pass_time(30)
    play.client.got_nothing()
    play.pass_time(LATE_S)
    refusal = play.client.problem(408, "request_timeout")
    assert refusal.value(b"connection") == b"close"
    assert play.upstream.state == "aborted"
    assert play.client.is_ended


@pytest.mark.parametrize("waits_for", ["verdict", "connection"])
def test_a_body_that_stalls_while_something_else_is_awaited(play: Playbook, waits_for: str) -> None:
    play.store.holds = waits_for == "verdict"
    play.dial_waits = waits_for == "connection"
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: 9") + b"half")
    play.pass_time(4)
    if waits_for == "verdict":
        play.store.decide()
    else:
        play.dial_now()
    play.pass_time(29)
    play.client.got_nothing()
    play.pass_time(5)
    play.client.problem(408, "request_timeout")


def test_an_upstream_that_does_not_read_is_a_504_not_the_clients_fault(play: Playbook) -> None:
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: 1000000"))
    play.upstream.stops_reading()
    play.client.sends(*[b"x" * 10_000] * 100)
    play.pass_time(31 + LATE_S)
    play.client.problem(504, "upstream_timeout")
    assert play.upstream.state == "aborted"


def test_a_client_that_does_not_read_its_answer_is_cut(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.stops_reading()
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", *[b"x" * 10_000] * 50)
    assert play.upstream.transport.untaken_bytes > 300_000
    play.pass_time(31 + LATE_S)
    assert play.client.state == play.upstream.state == "aborted"


def test_a_client_that_reads_nothing_of_its_last_answer_is_cut_in_the_end(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x", b"Connection: close"))
    play.client.stops_reading()
    play.upstream.answers(b"x" * 100_000)
    assert play.client.state == "closed"
    assert not play.client.transport.lost
    play.pass_time(31 + LATE_S)
    assert play.client.transport.lost


def test_a_client_that_reads_nothing_of_a_kept_connection_is_let_go_in_the_end(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.stops_reading()
    play.upstream.answers(b"x" * 100_000)
    play.pass_time(15 + 30 + 2 * LATE_S)
    assert play.client.transport.lost


def test_time_spent_on_an_answer_is_not_idle_time(make_play: Callable[..., Playbook]) -> None:
    play = make_play(keepalive_timeout="2s", header_timeout="2s")
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.pass_time(10)
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
    play.pass_time(10)
    play.upstream.sends(b"slow")
    assert play.client.answer().body == b"slow"
    assert play.client.state == "open"


def test_a_verdict_that_waits_is_the_stores_business(make_play: Callable[..., Playbook]) -> None:
    play = make_play(keepalive_timeout="2s", header_timeout="2s")
    play.store.holds = True
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.store.decide()
    play.upstream.answers()
    assert play.client.answer().status == 200


def test_the_clock_keeps_the_time_of_day(play: Playbook) -> None:
    play.pass_time(1)
    assert abs(play.context.clock.wall_s - time.time()) < 60
    assert play.context.clock.now_s == play.loop.time()
