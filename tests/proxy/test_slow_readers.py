"""IDLE_TIMEOUT is for those that take nothing at all: who reads slowly but steadily is waited for, however long."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.proxy.clock import TICK_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Playbook

IDLE_S = 30
LATE_S = 2 * TICK_S + 0.01
PIECE = b"x" * 10_000
TOTAL = len(PIECE) * 100
SIP = 500  # bytes: in a minute, less than would let a transport be written to again


def small_piece_answer(play: Playbook) -> None:
    """Leave an answer whose client has stopped to read, with both pipes full."""
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    play.client.stops_reading()
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % TOTAL, *[PIECE] * 100)
    assert play.upstream.transport.untaken_bytes > 0


def stuck_upload(play: Playbook) -> None:
    """Leave an upload whose upstream has stopped to read, with both pipes full."""
    play.dial_slow = True
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: %d" % TOTAL), *[PIECE] * 100)
    assert play.client.transport.untaken_bytes > 0


@pytest.mark.parametrize("every_s", [1, 10, 29])
def test_a_client_that_reads_a_little_at_a_time_is_not_cut(play: Playbook, every_s: int) -> None:
    small_piece_answer(play)
    for _ in range(290 // every_s):
        play.pass_time(every_s)
        play.client.reads(SIP)
        assert play.client.state == play.upstream.state == "open"
    # Nothing is lost on the way.
    play.client.reads_on()
    assert play.client.answer().body == PIECE * 100
    assert play.client.state == play.upstream.state == "open"


@pytest.mark.parametrize("every_s", [1, 10, 29])
def test_an_upstream_that_reads_a_little_at_a_time_is_not_given_up(play: Playbook, every_s: int) -> None:
    stuck_upload(play)
    for _ in range(300 // every_s):
        play.pass_time(every_s)
        play.upstream.reads(SIP)
        play.client.got_nothing()
        assert play.client.state == play.upstream.state == "open"
    play.upstream.reads_on()
    assert play.upstream.request().body == PIECE * 100
    play.upstream.answers()
    assert play.client.answer().status == 200


def test_an_upstream_that_reads_slowly_has_its_time_to_answer_behind_that(play: Playbook) -> None:
    play.dial_slow = True
    play.client.sends(play.request(b"POST", b"/api/x", body=b"x" * 100_000))
    for _ in range(10):
        play.pass_time(15)
        play.upstream.reads(SIP)
    play.upstream.reads_on()
    assert len(play.upstream.request().body) == 100_000
    play.pass_time(19)
    play.client.got_nothing()
    play.upstream.answers()
    assert play.client.answer().status == 200


@pytest.mark.parametrize("sips", [0, 1, 7])
def test_a_client_that_has_stopped_to_read_is_reset(play: Playbook, sips: int) -> None:
    small_piece_answer(play)
    for _ in range(sips):
        play.pass_time(10)
        play.client.reads(SIP)
    play.pass_time(IDLE_S - 0.5)
    assert play.client.state == play.upstream.state == "open"
    # Found out where the clock looks next; it need not look sooner than once in IDLE_TIMEOUT.
    play.pass_time(IDLE_S + LATE_S + 0.5)
    assert play.client.state == play.upstream.state == "aborted"
    assert play.client.transport.lost


@pytest.mark.parametrize("sips", [0, 1, 7])
def test_an_upstream_that_has_stopped_to_read_is_a_504(play: Playbook, sips: int) -> None:
    stuck_upload(play)
    for _ in range(sips):
        play.pass_time(10)
        play.upstream.reads(SIP)
    play.pass_time(IDLE_S - 0.5)
    play.client.got_nothing()
    assert play.upstream.state == "open"
    play.pass_time(IDLE_S + LATE_S + 0.5)
    refusal = play.client.problem(504, "upstream_timeout")
    assert refusal.value(b"connection") == b"close"
    assert play.upstream.state == "aborted"
    assert play.client.is_ended


def test_a_client_that_reads_on_and_stops_again_has_its_time_anew(play: Playbook) -> None:
    small_piece_answer(play)
    play.pass_time(20)
    play.client.reads(60_000)  # enough for more to be written
    play.pass_time(IDLE_S - 0.5)
    assert play.client.state == "open"
    play.pass_time(IDLE_S + LATE_S + 0.5)
    assert play.client.state == "aborted"


def test_a_slow_client_does_not_excuse_an_upstream_that_stalls(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    play.client.stops_reading()
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % TOTAL + PIECE)  # far from full
    play.client.reads_on()
    play.pass_time(IDLE_S + LATE_S)
    assert play.client.state == play.upstream.state == "aborted"


@pytest.mark.parametrize("line", [b"Connection: close", b"X-Kept: alive"])
def test_an_answer_that_has_all_left_the_upstream_is_waited_for_alike(
    make_play: Callable[..., Playbook], line: bytes
) -> None:
    play = make_play(keepalive_timeout="15s")
    play.client.sends(play.request(b"GET", b"/api/x", line))
    play.client.stops_reading()
    play.upstream.answers(b"x" * 60_000)
    for _ in range(30):
        play.pass_time(10)
        play.client.reads(SIP)
        assert not play.client.transport.lost
    play.client.reads_on()
    assert play.client.answer().body == b"x" * 60_000
