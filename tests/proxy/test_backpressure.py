"""The slower side sets the pace, in both directions, and memory stays bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.kit.playbook import Playbook

PIECE = bytes(range(250)) * 40  # 10 kB
PIECES = 100
TOTAL = len(PIECE) * PIECES
BOUND = 200_000  # a high-water mark, and a piece or two


def framed(piece: bytes) -> bytes:
    return b"%x\r\n" % len(piece) + piece + b"\r\n"


FRAMINGS = ["length", "chunked", "until close"]


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_slow_client_slows_the_upstream_down(play: Playbook, framing: str) -> None:
    head, piece, end = {
        "length": (b"Content-Length: %d\r\n" % TOTAL, PIECE, b""),
        "chunked": (b"Transfer-Encoding: chunked\r\n", framed(PIECE), b"0\r\n\r\n"),
        "until close": (b"", PIECE, b""),
    }[framing]
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.stops_reading()
    upstream = play.upstream
    upstream.sends(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n", *[piece] * PIECES)
    if end:
        upstream.sends(end)
    assert play.client.transport.get_write_buffer_size() < BOUND
    assert upstream.transport.untaken_bytes > TOTAL - BOUND
    play.client.reads_on()
    play.client.head()
    play.client.got(piece * PIECES + end)
    assert upstream.transport.untaken_bytes == 0
    if framing == "until close":
        upstream.ends()
        assert play.client.state == "closed"
    else:
        assert play.client.state == upstream.state == "open"


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_slow_upstream_slows_the_client_down(play: Playbook, framing: str) -> None:
    line, piece, end = {
        "length": (b"Content-Length: %d" % TOTAL, PIECE, b""),
        "chunked": (b"Transfer-Encoding: chunked", framed(PIECE), b"0\r\n\r\n"),
    }[framing]
    play.client.sends(play.request(b"POST", b"/api/x", line))
    upstream = play.upstream
    upstream.stops_reading()
    play.client.sends(*[piece] * PIECES)
    if end:
        play.client.sends(end)
    assert upstream.transport.get_write_buffer_size() < BOUND
    assert play.client.transport.untaken_bytes > TOTAL - BOUND
    upstream.reads_on()
    upstream.head()
    upstream.got(piece * PIECES + end)
    assert play.client.transport.untaken_bytes == 0
    upstream.answers()
    assert play.client.answer().status == 200
    assert play.client.state == upstream.state == "open"


def test_a_slow_client_does_not_slow_its_own_upload(play: Playbook) -> None:
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: %d" % TOTAL))
    play.client.stops_reading()
    play.upstream.head()
    play.client.sends(*[PIECE] * PIECES)
    play.upstream.got(PIECE * PIECES)


def test_a_pipelined_request_waits_until_the_client_has_read(play: Playbook) -> None:
    play.client.stops_reading()
    play.client.sends(play.request(b"GET", b"/api/1") + play.request(b"GET", b"/api/2"))
    upstream = play.upstream
    upstream.request()
    upstream.answers(b"x" * 100_000)
    upstream.got_nothing()
    play.pass_time(1)
    play.client.reads_on()
    assert len(play.client.answer().body) == 100_000
    assert upstream.request().start == b"GET /v1/2 HTTP/1.1"
    upstream.answers()
    assert play.client.answer().body == b"hi"
    assert play.client.state == "open"
    play.client.sends(play.request(b"GET", b"/api/3"))
    assert upstream.request().start == b"GET /v1/3 HTTP/1.1"


def test_a_pipeline_of_a_client_that_never_reads_is_bounded(play: Playbook) -> None:
    play.client.stops_reading()
    for _ in range(50):
        play.client.sends(play.request(b"GET", b"/api/x"))
        if play.upstreams and play.upstream.has_head():
            play.upstream.request()
            play.upstream.answers(b"x" * 50_000)
    assert play.client.transport.get_write_buffer_size() < 500_000


def test_a_pipeline_of_local_answers_to_a_client_that_never_reads_is_bounded(play: Playbook) -> None:
    play.client.stops_reading()
    for _ in range(50):
        play.client.sends(b"GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n" * 40)
    assert play.client.transport.get_write_buffer_size() < 500_000


def test_an_upstream_that_was_slow_is_read_from_again(play: Playbook) -> None:
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: 200000"))
    play.upstream.stops_reading()
    play.client.sends(b"x" * 200_000)
    play.upstream.reads_on()
    play.upstream.request()
    play.upstream.answers()
    play.client.answer()
    # The client is read from again too.
    play.client.sends(play.request(b"GET", b"/api/y"))
    assert play.upstream.request().start == b"GET /v1/y HTTP/1.1"


def test_a_client_that_leaves_a_full_pipe_takes_its_upstream_along(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.stops_reading()
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % TOTAL, *[PIECE] * PIECES)
    play.client.resets()
    assert play.upstream.state == "aborted"


def test_an_upstream_that_leaves_a_full_pipe_cuts_the_answer(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.stops_reading()
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % TOTAL, *[PIECE] * 50)
    play.upstream.resets()
    assert play.client.state == "aborted"


def test_an_early_answer_to_an_upload_that_is_stuck(play: Playbook) -> None:
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: %d" % TOTAL))
    play.upstream.stops_reading()
    play.client.sends(*[PIECE] * 50)
    assert play.client.transport.untaken_bytes > 0
    play.upstream.answers(b"no", b"413 Content Too Large")
    assert play.client.answer().status == 413
    assert play.client.state == "half-closed"
    assert play.client.transport.untaken_bytes == 0  # read, and thrown away, so that the answer is not reset
    assert play.upstream.state == "aborted"
