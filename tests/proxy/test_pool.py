"""Connections to the upstream: which one is used, how long they are kept, and when a request is sent twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Playbook, Upstream

FIN = "FIN"
RST = "RST"
POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"


def exchange(play: Playbook) -> None:
    """One request, answered, on the connection that was made last."""
    play.client.sends(play.request(b"GET", b"/api/warm"))
    play.upstream.request()
    play.upstream.answers()
    assert play.client.answer().status == 200


def three_at_once(play: Playbook) -> list[Upstream]:
    """Leave three connections, the third of them given back last."""
    clients = [play.client, play.connect(), play.connect()]
    for client in clients:
        client.sends(play.request(b"GET", b"/api/x"))
    for upstream, client in zip(play.upstreams, clients, strict=True):
        upstream.request()
        upstream.answers()
        assert client.answer().status == 200
    return list(play.upstreams)


def hang_up(upstream: Upstream, how: str) -> None:
    if how == FIN:
        upstream.ends()
    else:
        upstream.resets()


# --- which one, and for how long -------------------------------------------------------------------------------------


def test_the_connection_used_last_is_used_next(play: Playbook) -> None:
    first, second, third = three_at_once(play)
    for _ in range(2):
        play.client.sends(play.request(b"GET", b"/api/y"))
        assert third.request().start == b"GET /v1/y HTTP/1.1"
        third.answers()
        play.client.answer()
    play.client.sends(play.request(b"GET", b"/api/z"))
    other = play.connect()
    other.sends(play.request(b"GET", b"/api/zz"))
    assert third.request().start == b"GET /v1/z HTTP/1.1"
    assert second.request().start == b"GET /v1/zz HTTP/1.1"
    first.got_nothing()
    assert play.dials == 3


def test_the_number_kept_is_bounded(make_play: Callable[..., Playbook]) -> None:
    play = make_play(upstream_pool=2)
    states = [upstream.state for upstream in three_at_once(play)]
    assert sorted(states) == ["aborted", "open", "open"]
    assert play.client.state == "open"


def test_one_that_idles_too_long_is_closed(make_play: Callable[..., Playbook]) -> None:
    play = make_play(upstream_idle="10s")
    first, second, third = three_at_once(play)
    play.pass_time(8)
    play.client.sends(play.request(b"GET", b"/api/y"))
    third.answers()
    play.client.answer()
    play.pass_time(3)
    assert [upstream.state for upstream in (first, second, third)] == ["aborted", "aborted", "open"]
    play.pass_time(8)
    assert third.state == "aborted"


def test_one_that_is_never_idle_ends_behind_an_answer_when_it_is_old(make_play: Callable[..., Playbook]) -> None:
    play = make_play(upstream_idle="600s", keepalive_timeout="600s")
    exchange(play)
    play.pass_time(299)
    exchange(play)
    assert (play.dials, play.upstream.state) == (1, "open")
    play.pass_time(1)
    exchange(play)
    assert (play.dials, play.upstream.state, play.client.state) == (1, "aborted", "open")
    exchange(play)
    assert (play.dials, play.upstream.state) == (2, "open")


def test_those_that_were_made_together_do_not_end_together(make_play: Callable[..., Playbook]) -> None:
    play = make_play(upstream_idle="600s", keepalive_timeout="600s")
    upstreams = three_at_once(play)
    play.pass_time(298)
    for client in (play.client, play.connect(), play.connect()):
        client.sends(play.request(b"GET", b"/api/y"))
    for upstream in upstreams:
        upstream.answers()
    assert [upstream.state for upstream in upstreams] == ["open", "open", "aborted"]


def test_one_in_use_is_not_idle(make_play: Callable[..., Playbook]) -> None:
    play = make_play(upstream_idle="1s")
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.pass_time(10)
    play.upstream.answers()
    assert play.client.answer().body == b"hi"


@pytest.mark.parametrize("what", [FIN, RST, POISON, b"H", b"\r\n"])
def test_an_idle_connection_that_stirs_is_never_used_again(play: Playbook, what: str | bytes) -> None:
    exchange(play)
    first = play.upstream
    if isinstance(what, bytes):
        first.sends(what)
    else:
        hang_up(first, what)
    assert first.state in {"aborted", "closed"} or first.transport.lost
    play.client.got_nothing()
    exchange(play)
    assert play.dials == 2
    first.got_nothing()


def test_no_connection_serves_two_at_a_time(play: Playbook) -> None:
    exchange(play)
    other = play.connect()
    play.client.sends(play.request(b"GET", b"/api/1"))
    other.sends(play.request(b"GET", b"/api/2"))
    first, second = play.upstreams
    assert first.request().start == b"GET /v1/1 HTTP/1.1"
    assert second.request().start == b"GET /v1/2 HTTP/1.1"
    second.answers(b"two")
    first.answers(b"one")
    assert (play.client.answer().body, other.answer().body) == (b"one", b"two")


# --- stale connections -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [FIN, RST])
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"])
def test_an_idempotent_request_on_a_stale_connection_is_sent_again_and_charged_once(
    play: Playbook, method: bytes, how: str
) -> None:
    exchange(play)
    request = play.request(method, b"/api/x", body=b"body" if method == b"PUT" else b"")
    play.client.sends(request)
    stale = play.upstream
    first = stale.request()
    hang_up(stale, how)
    assert play.dials == 2
    assert play.upstream.request() == first
    play.upstream.answers(b"" if method == b"HEAD" else b"hi")
    assert play.client.answer(method).status == 200
    assert play.used() == 2  # the first exchange, and this one


@pytest.mark.parametrize("how", [FIN, RST])
@pytest.mark.parametrize("method", [b"POST", b"PATCH", b"get", b"LOCK"])
def test_any_other_request_is_not_sent_again(play: Playbook, method: bytes, how: str) -> None:
    exchange(play)
    play.client.sends(play.request(method, b"/api/x", body=b"body"))
    play.upstream.request()
    hang_up(play.upstream, how)
    play.client.problem(502, "upstream_unreachable")
    assert play.dials == 1
    assert play.client.state == "open"


@pytest.mark.parametrize("how", [FIN, RST])
def test_a_post_of_which_nothing_left_is_sent_again(play: Playbook, how: str) -> None:
    exchange(play)
    stale = play.upstream
    stale.stops_reading()
    play.client.sends(play.request(b"POST", b"/api/x", body=b"body"))
    hang_up(stale, how)
    stale.got_nothing()
    if how == FIN:
        assert play.dials == 2
        assert play.upstream.request().body == b"body"
        play.upstream.answers()
        assert play.client.answer().status == 200
    else:
        # After a reset the transport has dropped its buffer, and cannot say what had left.
        assert play.dials == 1 or play.upstream.request().body == b"body"
    assert play.used() == 2


def test_a_request_is_never_sent_three_times(play: Playbook) -> None:
    exchange(play)
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.ends()
    assert play.dials == 2
    play.upstream.request()
    play.upstream.ends()
    play.client.problem(502, "upstream_unreachable")
    assert play.dials == 2


def test_what_is_sent_again_goes_on_a_new_connection_even_where_others_idle(play: Playbook) -> None:
    three_at_once(play)
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstreams[2].request()
    play.upstreams[2].ends()
    assert play.dials == 4
    assert play.upstreams[3].request().start == b"GET /v1/x HTTP/1.1"
    play.upstreams[0].got_nothing()
    play.upstreams[1].got_nothing()


@pytest.mark.parametrize("some", [b"H", b"HTTP/1.1 200 OK\r\nContent-Length", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_after_a_byte_of_an_answer_nothing_is_sent_again(play: Playbook, some: bytes) -> None:
    exchange(play)
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.sends(some)
    play.upstream.resets()
    if some.endswith(b"\r\n\r\n"):
        assert play.client.head().status == 100
    play.client.problem(502, "upstream_unreachable")
    assert play.dials == 1


def test_a_body_that_was_not_all_there_is_not_sent_again(play: Playbook) -> None:
    exchange(play)
    play.client.sends(play.request(b"PUT", b"/api/x", b"Content-Length: 9") + b"half")
    play.upstream.ends()
    assert play.client.problem(502, "upstream_unreachable").value(b"connection") == b"close"
    assert play.dials == 1


def test_a_body_that_came_in_two_pieces_is_sent_again_whole_or_not_at_all(play: Playbook) -> None:
    exchange(play)
    play.client.sends(play.request(b"PUT", b"/api/x", b"Content-Length: 8") + b"half", b"half")
    play.upstream.ends()
    if play.dials == 2:
        assert play.upstream.request().body == b"halfhalf"
    else:
        play.client.problem(502, "upstream_unreachable")


def test_a_client_that_leaves_while_its_request_is_sent_again(play: Playbook) -> None:
    exchange(play)
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.dial_waits = True
    play.upstream.ends()
    assert play.dials == 2
    play.client.resets()
    assert len(play.upstreams) == 1
    assert play.used() == 2


def test_what_cannot_be_sent_again_is_a_502(play: Playbook) -> None:
    exchange(play)
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.dial_error = ConnectionRefusedError(111, "Connection refused")
    play.upstream.ends()
    play.client.problem(502, "upstream_unreachable")
    assert play.client.state == "open"


def test_an_answer_relayed_to_a_slow_client_does_not_leave_its_connection_deaf(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.stops_reading()
    play.upstream.answers(b"x" * 200_000)
    first = play.upstream
    other = play.connect()
    other.sends(play.request(b"GET", b"/api/y"))
    first.request()
    first.answers(b"mine")
    assert other.answer().body == b"mine"
    play.client.reads_on()
    assert len(play.client.answer().body) == 200_000
    first.ends()
    assert first.transport.lost


def test_an_answer_that_ends_its_connection_takes_it_from_no_other(play: Playbook) -> None:
    def get(answer: bytes) -> None:
        play.client.sends(play.request(b"GET", b"/api/x"))
        play.upstream.request()
        play.upstream.sends(answer)
        play.client.answer()

    # A 204 with a length is not trusted with another request; heads like it are, where the length is true.
    for number in range(3):
        get(b"HTTP/1.1 204 No Content\r\nX-Id: %d\r\nContent-Length: 2\r\n\r\n" % number)
    dials = play.dials
    for number in range(10):
        get(b"HTTP/1.1 200 OK\r\nX-Id: %d\r\nContent-Length: 2\r\n\r\nhi" % number)
    assert play.dials == dials + 1
