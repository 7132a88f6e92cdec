"""A connection's next request is taken by the exchange of the last one, which then has nothing of it left."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gateway.proxy.exchange import Exchange
from tests.proxy.test_metered import FIXED
from tests.proxy.test_metered_llm import COST, chat, chunk

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Playbook

POST = (b"POST", b"/api/x")
# Of the connection, of this very request, or set before it is looked at in every exchange.
OF_ITS_OWN = {"client", "head", "lap_began_s", "own_s", "tally", "opening", "_start"}


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Exchange, dict[str, Any]]]:
    """The exchanges that have begun, and what each had then."""
    seen: list[tuple[Exchange, dict[str, Any]]] = []
    begin = Exchange.begin

    def watched(exchange: Exchange) -> None:
        names = {name for kind in type(exchange).__mro__ for name in getattr(kind, "__slots__", ())} - OF_ITS_OWN
        kept = {name: getattr(exchange, name) for name in names}
        seen.append((exchange, kept))
        begin(exchange)

    monkeypatch.setattr(Exchange, "begin", watched)
    return seen


def has_answer(play: Playbook) -> None:
    play.upstream.answers(b"whole", b"201 Created")
    assert play.client.answer().body == b"whole"


def has_chunks(play: Playbook) -> None:
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"0\r\n\r\n")
    assert play.client.answer().body == b"abc"


def has_no_body(play: Playbook) -> None:
    play.upstream.sends(b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n")
    assert play.client.answer().status == 304


def has_interims(play: Playbook) -> None:
    play.upstream.sends(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
    has_answer(play)


@pytest.mark.parametrize("answered", [has_answer, has_chunks, has_no_body, has_interims])
@pytest.mark.parametrize(
    "config",
    [
        {"access_log": "off"},
        {"access_log": "json"},
        {"cost": FIXED, "budget": "1 USD/hour"},
        {"cost": FIXED, "budget": "1 USD/hour", "access_log": "json"},
        {"cost": FIXED, "loop_guard": "5/minute", "concurrency_limit": 9},
    ],
)
def test_nothing_of_a_request_is_left_for_the_next(
    make_play: Callable[..., Playbook],
    begun: list[tuple[Exchange, dict[str, Any]]],
    answered: Callable[[Playbook], None],
    config: dict[str, Any],
) -> None:
    play = make_play(**config)
    for client in (play.client, play.client, play.connect()):
        client.sends(play.request(*POST, body=b'{"n":1}'))
        play.upstream.request()
        if client is play.client and len(begun) == 1:
            answered(play)
            continue
        play.upstream.answers()
        client.answer()
    (first, _), (second, left), (other, fresh) = begun
    assert first is second is not other
    assert left == fresh


def test_what_ended_badly_takes_no_other_request(play: Playbook, begun: list[tuple[Exchange, dict[str, Any]]]) -> None:
    play.client.sends(play.request(*POST, body=b"1"))
    play.upstream.request()
    play.upstream.sends(b"nonsense\r\n\r\n")
    play.client.problem(502, "upstream_protocol")
    play.client.sends(play.request(*POST, body=b"2"))
    assert play.upstream.request().body == b"2"
    has_answer(play)
    (first, _), (second, _) = begun
    assert first is not second


def test_requests_of_one_connection_are_told_apart_when_their_heads_begin_alike(
    make_play: Callable[..., Playbook],
) -> None:
    play = make_play(rate_limit="10000/minute")
    for number in range(600):
        name, body = b"X-Request-Id: id-%d" % number, b"%d" % 10 ** (number % 5)
        play.client.sends(play.request(*POST, name, body=body))
        sent = play.upstream.request()
        assert (sent.value(b"x-request-id"), sent.body) == (b"id-%d" % number, body)
        play.upstream.answers(b"%d" % number)
        assert play.client.answer().body == b"%d" % number


def test_pipelined_requests_of_one_connection_go_up_as_they_came(make_play: Callable[..., Playbook]) -> None:
    play = make_play(access_log="json", rate_limit="10000/minute")
    requests = [play.request(*POST, b"X-Request-Id: id-%d" % number, body=b"%d" % number) for number in range(600)]
    for at in range(0, 600, 20):
        play.client.sends(b"".join(requests[at : at + 20]))
        for number in range(at, at + 20):
            sent = play.upstream.request()
            assert (sent.value(b"x-request-id"), sent.body) == (b"id-%d" % number, b"%d" % number)
            play.upstream.answers(b"%d" % (number * 3))
            assert play.client.answer().body == b"%d" % (number * 3)
    play.pass_time(1)
    told = [(line["id"], line["bytes_in"], line["bytes_out"]) for line in map(json.loads, play.logged.read())]
    assert told == [(f"id-{number}", len(str(number)), len(str(number * 3))) for number in range(600)]


def test_nothing_of_a_request_is_left_that_was_read_in_pieces_before_it_was_sent(
    make_play: Callable[..., Playbook], begun: list[tuple[Exchange, dict[str, Any]]]
) -> None:
    play = make_play(cost=COST, budget="1 USD/hour", loop_guard="5/minute", concurrency_limit=9)
    post, body = (b"POST", b"/api/chat/completions"), chat()
    play.client.sends(play.request(*post, b"Expect: 100-continue\r\nTransfer-Encoding: chunked"))
    play.client.sends(chunk(body), b"0\r\n\r\n")
    for number, client in enumerate((play.client, play.client, play.connect())):
        if number:
            client.sends(play.request(*post, body=body))
        assert play.upstream.request().body == body
        play.upstream.answers()
        assert client.answer().body == b"hi"
    (first, _), (second, left), (other, fresh) = begun
    assert first is second is not other
    assert left == fresh
