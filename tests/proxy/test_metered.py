"""Requests that cost something: what is sent, what the client sees, and what is settled, in every way they can end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gateway.budgets.budget import NANO
from gateway.budgets.spending import Mark
from gateway.metering.costs import CostTable, FixedPrice
from gateway.proxy.metered import MAX_METHOD

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.budgets.spending import Entry
    from tests.kit.playbook import Playbook, Upstream

CENT = NANO // 100
FIXED = CostTable(fixed=(FixedPrice(b"*", b"/*", {"USD": CENT}),))


@pytest.fixture
def make(make_play: Callable[..., Playbook]) -> Callable[..., Playbook]:
    def make(cost: CostTable = FIXED, budget: str | None = "1 USD/hour", **config: Any) -> Playbook:
        return make_play(cost=cost, budget=budget, **config)

    return make


@pytest.fixture
def play(make: Callable[..., Playbook]) -> Playbook:
    return make()


def ledger(play: Playbook) -> list[Entry]:
    return play.loop.run_until_complete(play.store.ledger.entries(0))


def still_open(play: Playbook) -> list[Entry]:
    return play.loop.run_until_complete(play.store.ledger.open())


def costs(play: Playbook) -> list[tuple[int, Mark]]:
    """What was settled, and that nothing is left open."""
    assert still_open(play) == []
    return [(entry.cost.get("USD", 0), entry.mark) for entry in ledger(play)]


def test_a_request_of_a_fixed_price_is_settled_with_it(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/maps?key=private"))
    play.upstream.request()
    (open_,) = still_open(play)
    assert (open_.reserved, open_.at_us) == ({"USD": CENT}, 0)
    play.upstream.answers(b"a map", b"200 OK", b"X-Request-Id: up-1")
    answer = play.client.answer()
    (entry,) = ledger(play)
    assert answer.value(b"x-gateway-request") == entry.id.encode()
    assert (entry.cost, entry.mark, entry.status, entry.upstream_id) == ({"USD": CENT}, Mark.EXACT, 200, "up-1")
    assert (entry.method, entry.path, entry.target) == ("GET", "/maps", "api")
    assert costs(play) == [(CENT, Mark.EXACT)]


def test_the_ledger_remembers_no_more_of_a_method_than_of_a_path(play: Playbook) -> None:
    play.client.sends(play.request(b"M" * 16_000, b"/api/x"))
    assert play.upstream.request().start.startswith(b"M" * 16_000)
    play.upstream.answers()
    assert play.client.answer().status == 200
    (entry,) = ledger(play)
    assert (entry.method, entry.path) == ("M" * MAX_METHOD, "/x")


def test_no_more_is_sent_than_the_budget_has_money_for(make: Callable[..., Playbook]) -> None:
    play = make(budget="0.02 USD/hour")
    for _ in range(2):
        play.client.sends(play.request(b"GET", b"/api/x"))
        play.upstream.request()
        play.upstream.answers()
        assert play.client.answer().status == 200
    play.client.sends(play.request(b"GET", b"/api/x"))
    refusal = play.client.answer()
    assert (refusal.status, refusal.value(b"x-gateway-error")) == (429, b"budget_exceeded")
    assert refusal.value(b"x-should-retry") == b"false"
    assert refusal.value(b"ratelimit-policy") == b'"minute";q=60;w=60'
    assert (refusal.value(b"ratelimit") or b"").startswith(b'"1h-USD";r=0;t=3')
    assert (refusal.value(b"x-ratelimit-limit"), refusal.value(b"x-ratelimit-remaining")) == (b"0.02", b"0")
    error = json.loads(refusal.body)
    assert error["error"]["type"] == "insufficient_quota"
    assert (error["used"], error["limit"]) == (0.02, 0.02)
    play.upstream.got_nothing()
    assert costs(play) == [(CENT, Mark.EXACT)] * 2
    assert play.used() == 2, "who is refused by a budget is charged no request"


def test_those_in_flight_are_held_against_the_budget(make: Callable[..., Playbook]) -> None:
    play = make(budget="0.02 USD/hour")
    clients = [play.connect() for _ in range(3)]
    for client in clients:
        client.sends(play.request(b"GET", b"/api/x"))
    assert clients[2].answer().value(b"x-gateway-error") == b"budget_exceeded"
    assert len(play.upstreams) == 2
    for upstream in play.upstreams:
        upstream.request()
        upstream.answers()
    assert [client.answer().status for client in clients[:2]] == [200, 200]


def test_an_error_of_the_upstream_costs_nothing(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    play.upstream.answers(b"no", b"500 Oops")
    assert play.client.answer().status == 500
    assert costs(play) == [(0, Mark.EXACT)]


def test_what_cannot_be_sent_costs_nothing_and_leaves_no_entry(play: Playbook) -> None:
    play.dial_error = OSError("refused")
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.problem(502, "upstream_unreachable")
    assert costs(play) == []
    assert play.used() == 0


def test_who_leaves_before_it_is_admitted_pays_nothing(play: Playbook) -> None:
    play.store.holds = True
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.resets()
    play.store.decide()
    assert costs(play) == []
    assert play.upstreams == []


def test_who_leaves_while_it_is_connected_pays_nothing(play: Playbook) -> None:
    play.dial_waits = True
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.resets()
    assert costs(play) == []


@pytest.mark.parametrize("how", ["leaves", "is lost", "times out", "is none"])
def test_what_was_sent_and_not_answered_is_estimated_at_its_price(play: Playbook, how: str) -> None:
    play.client.sends(play.request(b"POST", b"/api/x", body=b"{}"))
    play.upstream.request()
    if how == "leaves":
        play.client.resets()
        assert play.upstream.state == "aborted"
    elif how == "is lost":
        play.upstream.resets()
        play.client.problem(502, "upstream_unreachable")
    elif how == "is none":
        play.upstream.sends(b"nonsense\r\n\r\n")
        play.client.problem(502, "upstream_protocol")
    else:
        play.pass_time(21)
        play.client.problem(504, "upstream_timeout")
    assert costs(play) == [(CENT, Mark.ESTIMATED)]


def test_an_answer_in_pieces_goes_on_as_it_came(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nab", b"cd", b"ef")
    assert play.client.answer().body == b"abcdef"
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    play.upstream.dribbles(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nHost: h\r\nT: 1\r\n\r\n"
    )
    answer = play.client.answer()
    assert (answer.body, answer.trailers) == (b"abcde", [(b"T", b"1")])
    assert play.dials == 1
    assert costs(play) == [(CENT, Mark.EXACT)] * 2


def test_an_answer_to_a_1_0_client_has_no_chunks(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x", version=b"1.0"))
    play.upstream.request()
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    assert play.client.answer().body == b"abc"
    assert costs(play) == [(CENT, Mark.EXACT)]


def test_an_answer_that_ends_with_its_connection(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    play.upstream.sends(b"HTTP/1.1 200 OK\r\n\r\nabc", b"def")
    play.upstream.ends()
    assert play.client.answer().body == b"abcdef"
    assert costs(play) == [(CENT, Mark.EXACT)]


def test_a_cut_answer_looks_cut(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    play.upstream.resets()
    assert play.client.state == "aborted"
    assert b"0\r\n\r\n" not in play.client.unread.split(b"\r\n\r\n", 1)[1]
    assert len(costs(play)) == 1


def test_head_has_no_body_and_the_next_answer_is_right(play: Playbook) -> None:
    play.client.sends(play.request(b"HEAD", b"/api/x"))
    play.upstream.request()
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    assert play.client.answer(b"HEAD").value(b"content-length") == b"5"
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    play.upstream.answers(b"x")
    assert play.client.answer().body == b"x"


def test_a_switch_of_protocols_is_refused(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x", b"Connection: Upgrade", b"Upgrade: websocket"))
    play.client.problem(501, "not_implemented")
    assert (play.upstreams, costs(play)) == ([], [])


def test_a_store_that_is_lost_lets_nothing_through(play: Playbook) -> None:
    play.store.holds = True
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.store.lose()
    play.client.problem(503, "store_unavailable")
    assert (play.upstreams, costs(play)) == ([], [])


@pytest.mark.parametrize("price", [CENT, 0])
def test_what_has_been_read_on_a_stale_connection_may_be_billed_and_is_not_sent_again(
    make: Callable[..., Playbook], price: int
) -> None:
    play = make(CostTable(fixed=(FixedPrice(b"*", b"/*", {"USD": price}),)))
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    play.upstream.answers()
    play.client.answer()
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    play.upstream.ends()
    if price:
        play.client.problem(502, "upstream_unreachable")
        assert play.dials == 1
        assert costs(play) == [(CENT, Mark.EXACT), (CENT, Mark.ESTIMATED)]
        return
    play.upstream.request()  # what is free may well be
    play.upstream.answers()
    assert (play.client.answer().status, play.dials) == (200, 2)


def stale_upstream(play: Playbook) -> Upstream:
    """Have a connection used, and return the upstream's end of it, which reads no more."""
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    play.upstream.answers()
    play.client.answer()
    play.upstream.stops_reading()
    return play.upstream


def test_what_has_not_is_sent_and_paid_once(play: Playbook) -> None:
    stale = stale_upstream(play)
    play.client.sends(play.request(b"GET", b"/api/x"))
    stale.ends()
    stale.got_nothing()
    play.upstream.request()
    play.upstream.answers()
    assert (play.client.answer().status, play.dials) == (200, 2)
    assert costs(play) == [(CENT, Mark.EXACT)] * 2


def test_an_upload_of_which_only_the_end_has_not_left_may_be_billed(play: Playbook) -> None:
    head, _, body = play.request(b"POST", b"/api/x", body=b"x" * 3000).partition(b"\r\n\r\n")
    play.client.sends(head + b"\r\n\r\n" + body[:1])
    assert play.upstream.head().start.startswith(b"POST")
    play.upstream.stops_reading()
    play.client.sends(body[1:2000])
    play.upstream.ends()
    play.client.problem(502, "upstream_unreachable")
    assert costs(play) == [(CENT, Mark.ESTIMATED)]


def test_an_answer_is_read_on_when_its_client_has_left(make: Callable[..., Playbook]) -> None:
    play = make(on_disconnect="drain:10s")
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
    play.client.resets()
    assert play.upstream.state == "open"
    assert len(still_open(play)) == 1
    play.upstream.sends(b"def")
    assert costs(play) == [(CENT, Mark.EXACT)]
    assert play.upstream.state != "open"


def test_but_not_for_ever(make: Callable[..., Playbook]) -> None:
    play = make(on_disconnect="drain:10s")
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    play.client.resets()
    play.pass_time(9)
    assert play.upstream.state == "open"
    play.pass_time(2)
    assert play.upstream.state == "aborted"
    assert costs(play) == [(CENT, Mark.ESTIMATED)]


def test_what_no_byte_of_which_has_left_costs_nothing_though_its_connection_was_there(play: Playbook) -> None:
    """An API that restarts: the kept connections end under requests, and it takes no new ones yet."""
    stale = stale_upstream(play)
    play.dial_error = ConnectionRefusedError()
    play.client.sends(play.request(b"GET", b"/api/x"))
    stale.ends()
    stale.got_nothing()
    play.client.problem(502, "upstream_unreachable")
    assert costs(play) == [(CENT, Mark.EXACT)]
