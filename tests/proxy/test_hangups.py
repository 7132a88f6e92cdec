"""Either side hangs up, in every phase: the other side learns it at once, and nothing is kept that cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Client, Playbook, Upstream

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
FIN = "FIN"
RST = "RST"


def hang_up(peer: Client | Upstream, how: str) -> None:
    if how == FIN:
        peer.ends()
    else:
        peer.resets()


# --- the client ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [FIN, RST])
@pytest.mark.parametrize("sent", [b"", b"GET /api/x HT", b"GET /api/x HTTP/1.1\r\nHost: h\r\n"])
def test_a_client_leaves_before_its_head_is_whole(play: Playbook, sent: bytes, how: str) -> None:
    if sent:
        play.client.sends(sent)
    hang_up(play.client, how)
    play.client.got_nothing()
    assert play.client.transport.lost
    assert (play.dials, play.used()) == (0, 0)


def test_a_client_leaves_before_its_verdict_and_gets_its_place_back(play: Playbook) -> None:
    play.store.holds = True
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.resets()
    play.store.decide()
    assert (play.dials, play.store.refunds, play.used()) == (0, 1, 0)


def test_a_client_that_left_and_is_refused_gets_nothing_back(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="1/minute")
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers()
    other = play.connect()
    play.store.holds = True
    other.sends(play.request(b"GET", b"/api/x"))
    other.resets()
    play.store.decide()
    assert (play.store.refunds, play.used()) == (0, 1)


def test_a_client_leaves_before_its_verdict_is_lost(play: Playbook) -> None:
    play.store.holds = True
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.resets()
    play.store.lose()
    play.client.got_nothing()
    assert (play.dials, play.used()) == (0, 0)


@pytest.mark.parametrize("how", [FIN, RST])
def test_a_client_leaves_in_its_body_before_the_verdict(play: Playbook, how: str) -> None:
    play.store.holds = True
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: 9") + b"some")
    hang_up(play.client, how)
    assert play.client.transport.lost
    play.store.decide()
    assert (play.dials, play.used()) == (0, 0)


def test_a_client_leaves_while_the_upstream_is_connected_to(play: Playbook) -> None:
    play.dial_waits = True
    play.client.sends(play.request(b"GET", b"/api/x"))
    assert play.dials == 1
    play.client.resets()
    assert play.upstreams == []
    play.dial_waits = False
    other = play.connect()
    other.sends(play.request(b"GET", b"/api/y"))
    assert play.upstream.request().start == b"GET /v1/y HTTP/1.1"


def test_a_client_leaves_while_the_answer_is_awaited(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.resets()
    assert play.upstream.state == "aborted"
    assert play.used() == 1  # it was sent


@pytest.mark.parametrize("how", [FIN, RST])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_client_leaves_in_its_body(play: Playbook, how: str, *, chunked: bool) -> None:
    line, piece = (b"Transfer-Encoding: chunked", b"4\r\nsome\r\n") if chunked else (b"Content-Length: 9", b"some")
    play.client.sends(play.request(b"POST", b"/api/x", line), piece)
    play.upstream.head()
    play.upstream.got(piece)
    hang_up(play.client, how)
    assert play.upstream.state == "aborted"
    play.upstream.got_nothing()  # no end that would make it look whole
    assert play.client.transport.lost


@pytest.mark.parametrize(
    "answer",
    [CHUNKED + b"2\r\nhi\r\n", b"HTTP/1.1 200 OK\r\n\r\nhi", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi"],
)
def test_a_client_leaves_in_the_answer(play: Playbook, answer: bytes) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.sends(answer)
    play.client.resets()
    assert play.upstream.state == "aborted"


def test_a_client_leaves_with_requests_waiting_in_the_pipe(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/1") + play.request(b"GET", b"/api/2"))
    play.upstream.request()
    play.client.resets()
    assert play.upstream.state == "aborted"
    play.upstream.got_nothing()
    assert (play.dials, play.used()) == (1, 1)


@pytest.mark.parametrize("how", [FIN, RST])
def test_a_client_leaves_between_requests(play: Playbook, how: str) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers()
    play.client.answer()
    hang_up(play.client, how)
    assert play.client.transport.lost
    assert play.upstream.state == "open"  # it is as good as before


def test_a_client_leaves_an_endpoint(play: Playbook) -> None:
    play.client.sends(b"POST /register HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n{")
    play.client.ends()
    assert play.client.transport.lost
    play.client.got_nothing()


# --- half-closed, or gone? -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits_for", ["verdict", "connection", "answer"])
def test_a_client_that_only_ended_its_side_gets_its_answer(play: Playbook, waits_for: str) -> None:
    play.store.holds = waits_for == "verdict"
    play.dial_waits = waits_for == "connection"
    play.client.sends(play.request(b"POST", b"/api/x", body=b"body"))
    play.client.ends()
    assert play.client.state == "open"
    if waits_for == "verdict":
        play.store.decide()
    elif waits_for == "connection":
        play.dial_now()
    assert play.upstream.request().body == b"body"
    play.pass_time(5)
    play.upstream.answers()
    answer = play.client.answer()
    assert answer.body == b"hi"
    assert [interim.start for interim in answer.interims] in ([], [b"HTTP/1.1 100 Continue"])
    assert play.client.state == "closed"
    assert play.upstream.state == "open"


def test_all_that_a_half_closed_client_had_sent_is_answered(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/1") + play.request(b"GET", b"/api/2"))
    play.client.ends()
    for number in (1, 2):
        assert play.upstream.request().start == b"GET /v1/%d HTTP/1.1" % number
        play.upstream.answers()
        assert play.client.answer().status == 200
    assert play.client.state == "closed"


PARTS = {
    "a part of a head": b"GET /api/2 HTTP/1.1\r\nHost: h\r\n",
    "a part of a request line": b"GE",
    "an empty line": b"\r\n",
    "a part of a body": b"POST /api/2 HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nhalf",
    "a part of a chunked body": b"POST /api/2 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nha",
    "a part of a body for an endpoint": b"POST /register HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n{",
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("count", [1, 2])
def test_what_a_half_closed_client_has_sent_a_part_of_is_not_waited_for(play: Playbook, part: str, count: int) -> None:
    """It can never be whole (RFC 9112 §8): the connection ends behind the answers, and nothing of it goes upstream."""
    token = b"Host: h\r\nAuthorization: Bearer " + play.token
    whole = b"".join(play.request(b"GET", b"/api/1") for _ in range(count))
    play.client.sends(whole + PARTS[part].replace(b"Host: h", token))
    play.client.ends()
    for _ in range(count):
        assert play.client.state == "open"
        play.upstream.request()
        play.upstream.answers()
        assert play.client.answer().status == 200
    assert play.client.state == "closed"
    play.client.got_nothing()
    play.upstream.got_nothing()
    assert (play.dials, play.used(), play.upstream.state) == (1, count, "open")


def test_a_half_closed_client_hears_of_a_part_that_is_no_request(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/1") + b"GET /api/2 HTTP/1.1\r\n Host: h\r\n")
    play.client.ends()
    play.upstream.answers()
    assert play.client.answer().status == 200
    assert play.client.problem(400, "bad_request").value(b"connection") == b"close"
    assert play.client.is_ended


def test_a_client_that_ends_its_side_in_the_answer_has_hung_up(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.sends(CHUNKED)
    play.client.head()
    play.client.ends()
    play.pass_time(0.5)
    assert play.client.transport.lost
    assert play.upstream.state == "aborted"


def test_a_client_that_ends_its_side_just_as_the_answer_ends_gets_all_of_it(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.sends(CHUNKED)
    play.client.head()
    play.client.ends()
    play.upstream.sends(b"2\r\nhi\r\n0\r\n\r\n")
    play.client.got(b"2\r\nhi\r\n0\r\n\r\n")
    assert play.client.state == "closed"
    assert play.upstream.state == "open"


def test_a_half_closed_client_is_asked_only_once_whether_it_is_there(play: Playbook) -> None:
    play.store.holds = True
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.ends()
    play.store.decide()
    play.pass_time(5)
    play.client.got(b"HTTP/1.1 100 Continue\r\n\r\n")


def test_a_half_closed_client_is_asked_only_once_whatever_its_upstream_does(play: Playbook) -> None:
    play.dial_waits = True
    play.client.sends(play.request(b"POST", b"/api/x", body=b"x" * 65_500))
    play.client.ends()
    play.pass_time(1)
    play.dial_slow = True
    play.dial_now()
    play.upstream.reads_on()
    assert len(play.upstream.request().body) == 65_500
    play.pass_time(1)
    play.client.got(b"HTTP/1.1 100 Continue\r\n\r\n")
    play.upstream.answers()
    assert play.client.answer().body == b"hi"


def test_a_half_closed_1_0_client_is_asked_nothing(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x", version=b"1.0"))
    play.client.ends()
    play.pass_time(5)
    play.client.got_nothing()
    play.upstream.answers()
    assert play.client.answer().body == b"hi"


def test_a_client_that_closed_is_found_out_and_its_upstream_freed(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.ends()
    play.client.transport.socket.error = 104  # its machine answers the interim with a reset
    play.pass_time(0.5)
    assert play.client.state == "aborted"
    assert play.upstream.state == "aborted"


def test_a_client_that_closed_in_the_answer_is_found_out(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.sends(CHUNKED + b"2\r\nhi\r\n")
    play.client.ends()
    play.client.transport.socket.error = 32
    play.pass_time(0.5)
    assert play.upstream.state == "aborted"


def test_a_half_closed_client_with_half_a_request_is_gone(play: Playbook) -> None:
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: 9") + b"half")
    play.client.ends()
    assert play.client.transport.lost
    assert play.upstream.state == "aborted"


# --- the upstream ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [FIN, RST])
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 103 Hints\r\n\r\n"])
def test_an_upstream_that_leaves_without_an_answer_is_a_502(play: Playbook, sent: bytes, how: str) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    if sent:
        play.upstream.sends(sent)
    hang_up(play.upstream, how)
    if sent.endswith(b"\r\n\r\n"):
        assert play.client.head().status == 103
    refusal = play.client.problem(502, "upstream_unreachable")
    assert refusal.value(b"ratelimit") == b'"minute";r=59;t=61'
    assert play.client.state == "open"
    assert (play.dials, play.used()) == (1, 1)  # a new connection's failure is not tried again


@pytest.mark.parametrize("how", [FIN, RST])
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        CHUNKED + b"4\r\nhalf\r\n",
        CHUNKED + b"9\r\nhalf",
        CHUNKED + b"4\r\nhalf\r\n0\r\n",
        CHUNKED + b"4\r\nhalf\r\n0\r\nT: u\r\n",
    ],
)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_cut_answer_never_looks_whole(play: Playbook, answer: bytes, how: str, version: bytes) -> None:
    play.client.sends(play.request(b"GET", b"/api/x", version=version))
    play.upstream.sends(answer)
    hang_up(play.upstream, how)
    assert play.client.state == "aborted"
    assert play.client.transport.socket.options, "an orderly FIN would end an HTTP/1.0 body"
    play.client.head()
    assert not play.client.unread.endswith(b"0\r\n\r\n")
    assert play.used() == 1


def test_an_until_close_answer_that_ends_in_a_reset_is_cut(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.sends(b"HTTP/1.1 200 OK\r\n\r\nhalf")
    play.upstream.resets()
    assert play.client.state == "aborted"


@pytest.mark.parametrize("how", [FIN, RST])
def test_an_upstream_that_leaves_in_the_request_body(play: Playbook, how: str) -> None:
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: 9") + b"half")
    hang_up(play.upstream, how)
    refusal = play.client.problem(502, "upstream_unreachable")
    assert refusal.value(b"connection") == b"close"
    assert play.client.state == "half-closed"
    play.client.sends(b"rest!" + play.request(b"GET", b"/api/y"))
    play.client.got_nothing()
    assert play.dials == 1


def test_an_upstream_that_cannot_be_connected_to_is_a_502(play: Playbook, caplog: pytest.LogCaptureFixture) -> None:
    play.dial_error = ConnectionRefusedError(111, "Connection refused")
    play.client.sends(play.request(b"POST", b"/api/x", body=b"body"))
    refusal = play.client.problem(502, "upstream_unreachable")
    assert refusal.value(b"connection") == b"keep-alive"
    assert b"refused" not in refusal.body  # whoever asks need not know
    assert "Connection refused" in caplog.text  # whoever runs it must
    assert play.used() == 0  # nothing was sent
    play.dial_error = None
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers()
    assert play.client.answer().status == 200


def test_a_connection_that_ends_as_it_is_made_is_a_502(play: Playbook) -> None:
    play.dial_ends_at_once = True
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.problem(502, "upstream_unreachable")
    assert play.client.state == "open"


# --- answers that come early -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
def test_an_answer_in_the_middle_of_an_upload(play: Playbook, line: bytes) -> None:
    piece = b"4\r\nsome\r\n" if b"chunked" in line else b"some"
    play.client.sends(play.request(b"POST", b"/api/x", line), piece)
    play.upstream.head()
    play.upstream.got(piece)
    play.upstream.answers(b"too much", b"413 Content Too Large")
    answer = play.client.answer()
    assert (answer.status, answer.body, answer.value(b"connection")) == (413, b"too much", b"close")
    assert play.upstream.state == "aborted"
    # The client may still be writing: it must read its answer before the connection goes.
    assert play.client.state == "half-closed"
    play.client.sends(piece, piece)
    play.upstream.got_nothing()
    play.client.ends()
    assert play.client.state == "closed"


def test_an_answer_that_streams_while_the_upload_goes_on(play: Playbook) -> None:
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: 8") + b"some")
    play.upstream.head()
    play.upstream.got(b"some")
    play.upstream.sends(CHUNKED + b"2\r\nhi\r\n")
    assert play.client.head().value(b"connection") == b"close"
    play.client.got(b"2\r\nhi\r\n")
    play.client.sends(b"more")
    play.upstream.got(b"more")
    play.upstream.sends(b"0\r\n\r\n")
    play.client.got(b"0\r\n\r\n")
    assert play.client.is_ended


def test_a_malformed_chunk_of_a_request_ends_the_upstream_too(play: Playbook) -> None:
    play.client.sends(
        play.request(b"POST", b"/api/x", b"Transfer-Encoding: chunked"), b"4\r\nsome\r\n", b"nonsense\r\n"
    )
    play.client.problem(400, "bad_request")
    assert play.upstream.state == "aborted"
    assert play.upstream.unread.endswith(b"some\r\n")
    assert play.client.is_ended


def test_a_malformed_chunk_behind_a_begun_answer_cuts_it(play: Playbook) -> None:
    play.client.sends(play.request(b"POST", b"/api/x", b"Transfer-Encoding: chunked"), b"4\r\nsome\r\n")
    play.upstream.sends(CHUNKED + b"2\r\nhi\r\n")
    play.client.sends(b"nonsense\r\n")
    assert play.client.state == play.upstream.state == "aborted"


def test_a_whole_request_with_chunks_for_an_endpoint_is_answered_to_a_half_closed_client(play: Playbook) -> None:
    chunked = b"POST /register HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    play.client.sends(play.request(b"GET", b"/api/1") + chunked)
    play.client.ends()
    play.upstream.answers()
    assert play.client.answer().status == 200
    assert play.client.answer().status in range(400, 500)
    assert play.client.state == "closed"


def test_a_client_that_ends_within_one_answer_waits_for_the_next(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/1") + play.request(b"GET", b"/api/2"))
    play.upstream.request()
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
    play.client.ends()
    play.upstream.sends(b"cd")
    assert play.client.answer().body == b"abcd"
    play.upstream.request()
    play.pass_time(1)
    play.upstream.answers()
    assert play.client.answer().body == b"hi"
    assert play.client.state == "closed"
    assert play.upstream.state == "open"
