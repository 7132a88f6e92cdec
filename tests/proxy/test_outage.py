"""A target that cannot be connected to: what its clients are told, what they are charged, and how it comes back."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from gateway.proxy.health import FAILURES, MOST_WAIT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Client, Playbook

REFUSED = ConnectionRefusedError(111, "Connection refused")


@pytest.fixture
def play(make_play: Callable[..., Playbook]) -> Playbook:
    return make_play(keepalive_timeout="1h")


def ask(play: Playbook, client: Client | None = None, method: bytes = b"POST") -> Client:
    """Send a request; return who waits for its answer."""
    client = client or play.client
    client.sends(play.request(method, b"/api/x", body=b"body"))
    return client


def go_out(play: Playbook, error: OSError = REFUSED) -> None:
    """Let the target fail until no more is tried."""
    play.dial_error = error
    for _ in range(FAILURES):
        ask(play).problem(502, "upstream_unreachable")
    assert play.dials == FAILURES


def told_s(client: Client) -> int:
    """Read a refusal; return how long its client is to wait."""
    wait_s = client.problem(503, "upstream_unreachable").value(b"retry-after")
    assert wait_s is not None
    return int(wait_s)


def test_five_failures_in_a_row_and_nothing_more_is_tried(play: Playbook) -> None:
    go_out(play)
    for _ in range(100):
        assert told_s(ask(play)) == 1
    assert play.dials == FAILURES
    assert play.client.state == "open"


def test_what_is_refused_is_neither_checked_nor_charged(play: Playbook) -> None:
    go_out(play)
    play.store.holds = True  # whatever waited for a verdict would now wait for ever
    refunds = play.store.refunds
    for _ in range(100):
        told_s(ask(play))
    assert play.store.refunds == refunds
    play.store.holds = False
    assert play.used() == 0
    # For those who look at usage, that is the API's failure and no refusal.
    assert (play.metrics.passed, play.metrics.refused, play.metrics.failed) == (0, 0, FAILURES + 100)


def test_who_has_no_good_token_hears_nothing_of_it(play: Playbook) -> None:
    go_out(play)
    play.client.sends(b"GET /api/x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer gw_made_up\r\n\r\n")
    play.client.problem(401, "token_invalid")
    play.client.sends(b"GET /api/x HTTP/1.1\r\nHost: x\r\n\r\n")
    play.client.problem(401, "token_missing")


def test_one_request_tries_again_and_opens_the_way_for_all(play: Playbook) -> None:
    go_out(play)
    play.pass_time(1)
    play.dial_error, play.dial_waits = None, True
    first = ask(play)
    others = [ask(play, play.connect()) for _ in range(5)]
    assert [told_s(other) for other in others] == [1] * 5
    assert play.dials == FAILURES + 1
    play.dial_waits = False
    play.dial_now()
    assert play.upstream.request().body == b"body"
    ask(play, others[0])  # before the first has its answer: that it was connected is enough
    assert [upstream.request().body for upstream in play.upstreams[1:]] == [b"body"]
    for upstream, client in zip(play.upstreams, (first, others[0]), strict=True):
        upstream.answers()
        assert client.answer().status == 200
    assert play.used() == 2


def test_one_that_tries_in_vain_is_told_so_and_puts_the_next_off(play: Playbook) -> None:
    go_out(play)
    waits_s = []
    for number in range(8):
        waits_s.append(told_s(ask(play)))
        play.pass_time(waits_s[-1])
        ask(play).problem(502, "upstream_unreachable")  # who obeyed `Retry-After` is the one that may try
        assert play.dials == FAILURES + number + 1
    assert waits_s == [1, 2, 4, 8, 16, 30, 30, MOST_WAIT_S]
    assert play.used() == 0


def test_the_wait_that_is_told_is_what_is_left_of_it(play: Playbook) -> None:
    go_out(play)
    for wait_s in (1, 2, 4):
        play.pass_time(wait_s)
        ask(play).problem(502, "upstream_unreachable")
    for left_s in (8, 7, 6):
        assert told_s(ask(play)) == left_s
        play.pass_time(1)
    play.pass_time(4.75)
    assert told_s(ask(play)) == 1


def test_a_client_that_leaves_while_it_tries_makes_way_for_the_next(play: Playbook) -> None:
    go_out(play)
    play.pass_time(1)
    play.dial_error, play.dial_waits = None, True
    ask(play, play.connect()).resets()
    play.dial_waits = False
    ask(play)
    assert play.upstream.request().body == b"body"
    play.upstream.answers()
    assert play.client.answer().status == 200
    assert play.dials == FAILURES + 2
    assert play.used() == 1


def test_clients_with_less_patience_than_connect_timeout_find_out_as_well(
    play: Playbook, caplog: pytest.LogCaptureFixture
) -> None:
    play.dial_waits = True
    for waited_s, found_out in ((0.75, False), (2, True)):
        for _ in range(FAILURES):
            client = ask(play, play.connect())
            play.pass_time(waited_s)
            client.resets()
        assert ("is out" in caplog.text) == found_out
    assert "no answer within 2.0 s, when its request was given up. Does a firewall drop" in caplog.text
    assert told_s(ask(play)) == 1
    assert play.dials == 2 * FAILURES
    assert play.used() == 0


def test_those_who_pass_the_first_look_together_do_not_try_together(play: Playbook) -> None:
    """A verdict takes time: many may begin while one may be tried, and all but one of them come too late."""
    go_out(play)
    play.pass_time(1)
    play.store.holds, play.dial_error = True, None
    clients = [ask(play, play.connect()) for _ in range(3)]
    play.dial_waits = True
    for _ in clients:
        play.store.decide()
    play.store.holds = False
    assert play.dials == FAILURES + 1
    assert [told_s(client) for client in clients[1:]] == [1, 1]
    play.dial_now()
    play.upstream.request()
    play.upstream.answers()
    assert clients[0].answer().status == 200
    assert play.used() == 1


def test_a_connection_that_is_there_is_used_even_so(play: Playbook) -> None:
    ask(play)
    play.upstream.request()
    play.dial_error = REFUSED
    others = [play.connect() for _ in range(FAILURES)]
    for other in others:
        ask(play, other).problem(502, "upstream_unreachable")
    assert told_s(ask(play, others[0])) == 1
    play.upstream.answers()
    assert play.client.answer().status == 200
    ask(play)
    assert play.upstream.request().body == b"body"
    play.upstream.answers()
    assert play.client.answer().status == 200
    assert play.dials == 1 + FAILURES


@pytest.mark.parametrize(("method", "status"), [(b"GET", 503), (b"POST", 502)])
def test_what_would_be_sent_again_finds_no_connection_either(play: Playbook, method: bytes, status: int) -> None:
    ask(play, method=b"GET")
    play.upstream.request()
    play.upstream.answers()
    play.client.answer()
    ask(play, method=method)
    play.upstream.request()
    play.dial_error = REFUSED
    other = play.connect()
    for _ in range(FAILURES):
        ask(play, other).problem(502, "upstream_unreachable")
    play.upstream.ends()
    play.client.problem(status, "upstream_unreachable")
    assert play.dials == 1 + FAILURES
    assert play.used() == 2  # it was sent, once


def test_connections_that_are_not_accepted_in_time_count_as_well(make_play: Callable[..., Playbook]) -> None:
    play = make_play(connect_timeout="2s")
    play.dial_waits = True
    clients = [ask(play, play.connect()) for _ in range(FAILURES)]
    play.pass_time(2)
    for client in clients:
        client.problem(504, "upstream_timeout")
    assert told_s(ask(play)) == 1
    assert play.dials == FAILURES


def test_a_lack_of_descriptors_is_no_fault_of_the_targets(play: Playbook) -> None:
    play.dial_error = OSError(24, "Too many open files")
    for _ in range(3 * FAILURES):
        ask(play).problem(502, "upstream_unreachable")
    assert play.dials == 3 * FAILURES


def test_failures_with_a_success_between_them_do_not_add_up(play: Playbook) -> None:
    for _ in range(3):
        play.dial_error = REFUSED
        for _ in range(FAILURES - 1):
            ask(play).problem(502, "upstream_unreachable")
        play.dial_error = None
        play.client.sends(play.request(b"GET", b"/api/x", b"Connection: keep-alive"))
        play.upstream.request()
        play.upstream.answers(b"hi", b"200 OK", b"Connection: close")
        assert play.client.answer().status == 200


def test_an_upstream_that_ends_connections_without_an_answer_can_be_connected_to(play: Playbook) -> None:
    for _ in range(3 * FAILURES):
        ask(play)
        play.upstream.request()
        play.upstream.ends()
        play.client.problem(502, "upstream_unreachable")
    assert play.dials == 3 * FAILURES


def test_a_refused_upload_is_not_waited_for(play: Playbook) -> None:
    go_out(play)
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: 1000000") + b"the first of it")
    refusal = play.client.problem(503, "upstream_unreachable")
    assert refusal.value(b"connection") == b"close"
    assert play.client.is_ended


def test_the_log_says_once_that_it_is_out_and_once_that_it_is_back(
    play: Playbook, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    go_out(play)
    first, out = (record.getMessage() for record in caplog.records)
    assert first == "cannot connect to target api (test): [Errno 111] Connection refused (1 since the last such line)"
    assert out == (
        "target api (test) is out: 5 attempts in a row to connect failed, the last with: [Errno 111] Connection "
        "refused. Does it run, and is this its address? Its requests get 503; one at a time tries again, after 1 s "
        "and then less often, but every 30 s"
    )
    caplog.clear()
    for _ in range(5):
        told_s(ask(play))
        play.pass_time(MOST_WAIT_S)
        ask(play).problem(502, "upstream_unreachable")
    assert caplog.records == []
    play.pass_time(MOST_WAIT_S)
    play.dial_error = None
    ask(play)
    play.upstream.answers()
    assert play.client.answer().status == 200
    (back,) = caplog.records
    assert (back.levelname, back.getMessage()) == (
        "INFO",
        "target api (test) can be connected to again: its requests pass",
    )
