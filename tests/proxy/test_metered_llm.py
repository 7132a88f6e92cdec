"""Requests to language models: bodies that are read and made to fit, streams that are metered, cut, or left."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

from gateway.budgets.budget import NANO
from gateway.budgets.spending import Mark
from gateway.metering import MAX_READ_BYTES
from gateway.metering.costs import CostTable
from gateway.metering.rates import Rates
from tests.proxy.test_metered import costs, ledger, still_open

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Playbook
    from tests.kit.wire import Message

CENT = NANO // 100
INPUT, OUTPUT = 1_000, 10_000  # nano-USD a token
COST = CostTable(
    llm=True, prices={"m": Rates(input=INPUT * 1000, output=OUTPUT * 1000)}, reserve={"USD": CENT}, max_output=100
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


@pytest.fixture
def make(make_play: Callable[..., Playbook]) -> Callable[..., Playbook]:
    def make(budget: str | None = "1 USD/hour", **config: Any) -> Playbook:
        return make_play(cost=COST, budget=budget, **config)

    return make


@pytest.fixture
def play(make: Callable[..., Playbook]) -> Playbook:
    return make()


def chat(**members: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **members}).encode()


def ask(play: Playbook, body: bytes, *lines: bytes) -> Message:
    """Send a chat request, and read it at the upstream."""
    play.client.sends(play.request(b"POST", b"/api/chat/completions", *lines, body=body))
    return play.upstream.request()


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def event(**members: Any) -> bytes:
    return b"data: " + json.dumps({"id": "chatcmpl-1", "object": "chat.completion.chunk", **members}).encode() + b"\n\n"


def text(content: str, **members: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": content}}], **members)


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def test_an_answer_costs_what_its_usage_says(play: Playbook) -> None:
    body = chat(max_tokens=50)
    request = ask(play, body)
    assert request.body == body
    (held,) = still_open(play)
    assert held.reserved == {"USD": len(body) * INPUT + 50 * OUTPUT, "tokens": len(body) + 50}
    answer = json.dumps({"id": "x", "model": "m", "choices": [], "usage": usage(9, 5)}).encode()
    play.upstream.answers(answer, b"200 OK", b"Content-Type: application/json")
    assert play.client.answer().body == answer
    assert costs(play) == [(9 * INPUT + 5 * OUTPUT, Mark.EXACT)]
    (entry,) = ledger(play)
    assert (entry.model, entry.cost["tokens"]) == ("m", 14)
    assert entry.reserved["USD"] == len(body) * INPUT + 50 * OUTPUT


def test_requests_that_came_together_on_one_connection_are_settled_each(make: Callable[..., Playbook]) -> None:
    play = make(concurrency_limit=1)  # each has the place that the one before gave back
    bodies = [chat(max_tokens=50), chat(max_tokens=20), chat(max_tokens=30)]
    play.client.sends(b"".join(play.request(b"POST", b"/api/chat/completions", body=body) for body in bodies))
    for number, body in enumerate(bodies, 1):
        assert play.upstream.request().body == body
        assert [held.reserved["tokens"] for held in still_open(play)] == [len(body) + int(body[-3:-1])]
        answer = json.dumps({"id": "x", "model": "m", "choices": [], "usage": usage(9, number)}).encode()
        play.upstream.answers(answer, b"200 OK", b"Content-Type: application/json")
        assert play.client.answer().body == answer
    assert costs(play) == [(9 * INPUT + number * OUTPUT, Mark.EXACT) for number in (1, 2, 3)]
    assert len({entry.id for entry in ledger(play)}) == 3


def test_a_chunked_request_is_read_and_sent_in_one_piece(play: Playbook) -> None:
    body = chat(max_tokens=50)
    pieces = chunk(body[:10]) + chunk(body[10:]) + END
    play.client.sends(play.request(b"POST", b"/api/chat/completions", b"Transfer-Encoding: chunked", body=pieces[:15]))
    assert play.upstreams == []
    play.client.dribbles(pieces[15:])
    request = play.upstream.request()
    assert request.body == body
    assert request.value(b"content-length") == b"%d" % len(body)
    assert request.values(b"transfer-encoding") == []


def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(play: Playbook) -> None:
    body = chat(max_tokens=50)
    request = play.request(b"POST", b"/api/chat/completions", b"Expect: 100-continue", body=body)
    play.client.sends(request[: -len(body)])
    play.client.got(b"HTTP/1.1 100 Continue\r\n\r\n")
    play.client.sends(body)
    sent = play.upstream.request()
    assert (sent.body, sent.values(b"expect")) == (body, [])
    play.upstream.answers()
    assert play.client.answer().status == 200
    # The next one is too long to be read first: it is the upstream that says whether it wants it.
    long = play.request(b"POST", b"/api/chat/completions", b"Expect: 100-continue", b"Content-Length: 2000000")
    play.client.sends(long)
    assert play.upstream.head().values(b"expect") == [b"100-continue"]


def test_a_body_that_does_not_come_is_not_waited_for_long(play: Playbook) -> None:
    request = play.request(b"POST", b"/api/chat/completions", body=chat())
    play.client.sends(request[:-5])
    play.pass_time(31)
    play.client.problem(408, "request_timeout")
    assert (play.upstreams, costs(play), play.used()) == ([], [], 0)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_long_body_is_not_held_and_reserves_what_the_target_says(play: Playbook, *, chunked: bool) -> None:
    body = chat(filler="x" * (MAX_READ_BYTES + 100_000))
    if chunked:
        sent = play.request(b"POST", b"/api/chat/completions", b"Transfer-Encoding: chunked", body=chunk(body) + END)
    else:
        sent = play.request(b"POST", b"/api/chat/completions", body=body)
    play.client.sends(*(sent[at : at + 50_000] for at in range(0, len(sent), 50_000)))
    assert play.upstream.request().body == body
    (held,) = still_open(play)
    assert held.reserved["USD"] >= CENT
    play.upstream.answers(json.dumps({"model": "m", "usage": usage(9, 5)}).encode())
    assert play.client.answer().status == 200
    assert costs(play)[0][0] == 9 * INPUT + 5 * OUTPUT


def test_an_unknown_model_is_refused(play: Playbook) -> None:
    play.client.sends(play.request(b"POST", b"/api/chat/completions", body=chat(model="nobody-knows-it")))
    refusal = play.client.answer()
    assert (refusal.status, refusal.value(b"x-gateway-error")) == (403, b"price_unknown")
    assert (play.upstreams, costs(play), play.used()) == ([], [], 0)


@pytest.mark.parametrize("closes", [True, False])
def test_what_lies_behind_a_refused_body_is_a_request_only_if_the_connection_goes_on(
    play: Playbook, *, closes: bool
) -> None:
    ask(play, chat(max_tokens=50))
    play.upstream.answers(b"{}")  # and its connection is there for the next one
    assert play.client.answer().status == 200
    used = play.used()
    lines = (b"Connection: close",) if closes else ()
    bad = play.request(b"POST", b"/api/chat/completions", *lines, body=chat(model="nobody-knows-it"))
    play.client.sends(bad[:-5], bad[-5:] + play.request(b"POST", b"/api/chat/completions", body=chat(max_tokens=50)))
    refusal = play.client.answer()
    assert (refusal.status, refusal.value(b"connection")) == (403, b"close" if closes else b"keep-alive")
    if closes:
        play.upstream.got_nothing()
        assert play.used() == used
        assert play.client.state == "half-closed"  # it can read its answer, though it has sent more than is read
    else:
        play.upstream.request()
        play.upstream.answers(json.dumps({"model": "m", "usage": usage(9, 5)}).encode())
        assert play.client.answer().status == 200


def test_an_answer_that_is_compressed_is_read_on_the_side(play: Playbook) -> None:
    request = ask(play, chat(max_tokens=50), b"Accept-Encoding: br, gzip")
    assert request.value(b"accept-encoding") == b"gzip, identity"
    answer = gzip.compress(json.dumps({"model": "m", "usage": usage(9, 5)}).encode())
    play.upstream.answers(answer, b"200 OK", b"Content-Encoding: gzip", b"Content-Type: application/json")
    assert play.client.answer().body == answer
    assert costs(play) == [(9 * INPUT + 5 * OUTPUT, Mark.EXACT)]


@pytest.mark.parametrize("fields", [(), (b"Accept-Encoding: identity",), (b"Accept-Encoding: br, gzip;q=0",)])
def test_a_client_that_takes_no_gzip_gets_none(play: Playbook, fields: tuple[bytes, ...]) -> None:
    for _ in range(3):  # its head is known from the second on
        request = ask(play, chat(max_tokens=50), *fields)
        assert request.value(b"accept-encoding") == b"identity"
        play.upstream.answers(json.dumps({"model": "m", "usage": usage(9, 5)}).encode())
        assert play.client.answer().status == 200


def test_a_stream_is_asked_for_its_usage_and_the_client_does_not_see_it(play: Playbook) -> None:
    request = ask(play, chat(max_tokens=50, stream=True))
    assert json.loads(request.body)["stream_options"] == {"include_usage": True}
    told = event(choices=[], usage=usage(9, 2))
    stream = text("a", usage=None) + text("b", usage=None) + told + b"data: [DONE]\n\n"
    play.upstream.sends(HEAD)
    for piece in (stream[at : at + 7] for at in range(0, len(stream), 7)):
        play.upstream.sends(chunk(piece))
    play.upstream.sends(END)
    answer = play.client.answer()
    assert b"prompt_tokens" not in answer.body
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert answer.body.count(b"data: ") == 3
    assert costs(play) == [(9 * INPUT + 2 * OUTPUT, Mark.EXACT)]


def test_a_client_that_asked_for_the_usage_gets_it(play: Playbook) -> None:
    body = chat(max_tokens=50, stream=True, stream_options={"include_usage": True})
    assert ask(play, body).body == body
    stream = text("a", usage=None) + event(choices=[], usage=usage(9, 1)) + b"data: [DONE]\n\n"
    play.upstream.sends(HEAD, chunk(stream), END)
    assert play.client.answer().body == stream
    assert costs(play) == [(9 * INPUT + OUTPUT, Mark.EXACT)]


def test_an_event_is_passed_on_as_soon_as_it_is_whole(play: Playbook) -> None:
    ask(play, chat(max_tokens=50, stream=True))
    play.upstream.sends(HEAD)
    play.client.head()
    play.upstream.sends(chunk(text("a")))
    play.client.got(chunk(text("a")))


def test_a_stream_that_its_client_leaves_is_estimated_from_what_passed(play: Playbook) -> None:
    body = chat(max_tokens=500, stream=True)
    ask(play, body)
    play.upstream.sends(HEAD, chunk(text("hello")))
    play.client.resets()
    assert play.upstream.state == "aborted"
    ((cost, mark),) = costs(play)
    assert mark is Mark.ESTIMATED
    (entry,) = ledger(play)
    assert 5 * OUTPUT < cost < entry.reserved["USD"]


def test_output_is_limited_to_what_there_is_money_for(make: Callable[..., Playbook]) -> None:
    play = make(budget="0.002 USD/hour", budget_clamp="on")
    body = chat(max_tokens=5000)
    request = ask(play, body)
    limit = json.loads(request.body)["max_tokens"]
    assert limit == (2_000_000 - len(body) * INPUT) // OUTPUT
    assert request.value(b"content-length") == b"%d" % len(request.body)
    play.upstream.answers(json.dumps({"model": "m", "usage": usage(9, limit)}).encode())
    assert play.client.answer().value(b"x-gateway-max-tokens") == b"%d" % limit
    assert costs(play) == [(9 * INPUT + limit * OUTPUT, Mark.EXACT)]


@pytest.mark.parametrize(("members", "limit"), [({}, 100), ({"n": 2}, 100), ({"n": 40, "max_tokens": 9000}, 4999)])
def test_the_client_is_told_what_each_answer_is_limited_to(
    make: Callable[..., Playbook], members: dict[str, int], limit: int
) -> None:
    play = make("2 USD/hour", budget_clamp="on")
    request = ask(play, chat(**members))
    assert json.loads(request.body)["max_tokens"] == limit
    play.upstream.answers(json.dumps({"model": "m", "usage": usage(9, 1)}).encode())
    assert play.client.answer().value(b"x-gateway-max-tokens") == b"%d" % limit


def test_who_is_not_limited_is_told_of_no_limit(make: Callable[..., Playbook]) -> None:
    play = make(budget_clamp="on")
    body = chat(max_tokens=50)
    assert ask(play, body).body == body
    play.upstream.answers(json.dumps({"model": "m", "usage": usage(9, 1)}).encode())
    assert play.client.answer().value(b"x-gateway-max-tokens") is None


def test_a_stream_that_costs_more_than_it_may_is_ended_as_its_provider_would(make: Callable[..., Playbook]) -> None:
    play = make(budget="0.002 USD/hour", budget_cut="on")
    ask(play, chat(stream=True))
    play.upstream.sends(HEAD)
    for _ in range(60):
        if play.upstream.state == "open":
            play.upstream.sends(chunk(text("ten bytes.")))
    assert play.upstream.state == "aborted"
    answer = play.client.answer()
    *_, error, done, empty = answer.body.split(b"\n\n")
    assert (done, empty) == (b"data: [DONE]", b"")
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"]
    ((cost, mark),) = costs(play)
    assert mark is Mark.ESTIMATED
    assert cost > 0


def test_a_list_that_costs_more_than_it_may_is_ended_behind_the_element_that_it_is_in(
    make: Callable[..., Playbook],
) -> None:
    play = make(budget="0.005 USD/hour", budget_cut="on")
    play.client.sends(play.request(b"POST", b"/api/models/m:streamGenerateContent", body=b'{"contents": []}'))
    play.upstream.request()
    play.upstream.sends(HEAD.replace(b"text/event-stream", b"application/json"), chunk(b"["))
    said = [
        {"usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": count}, "candidates": ["x" * 1000]}
        for count in (*[1] * 80, 900)
    ]
    for one in said:
        element = json.dumps(one).encode()
        play.upstream.sends(chunk(element[:100]))
        play.upstream.sends(chunk(element[100:] + b",\r\n"))
    assert play.upstream.state == "aborted"
    *elements, error = json.loads(play.client.answer().body)
    assert elements == said
    assert error["error"]["status"] == "RESOURCE_EXHAUSTED"
    ((_, mark),) = costs(play)
    assert mark is Mark.ESTIMATED


def test_a_stream_that_can_have_more_money_goes_on(make: Callable[..., Playbook]) -> None:
    play = make(budget="1 USD/hour", budget_cut="on")
    ask(play, chat(stream=True))
    play.upstream.sends(HEAD)
    for _ in range(60):
        play.upstream.sends(chunk(text("ten bytes.")))
    names = [one.id for one in still_open(play)]
    assert len(names) > 1
    assert len(set(names)) == len(names)
    play.upstream.sends(chunk(event(choices=[], usage=usage(9, 600)) + b"data: [DONE]\n\n"), END)
    assert play.client.answer().body.endswith(b"data: [DONE]\n\n")
    assert costs(play) == [(9 * INPUT + 600 * OUTPUT, Mark.EXACT)]


def test_a_stream_that_is_left_may_be_read_to_its_end(make: Callable[..., Playbook]) -> None:
    play = make(on_disconnect="drain:10s")
    ask(play, chat(max_tokens=100, stream=True))
    play.upstream.sends(HEAD, chunk(text("a")))
    play.client.resets()
    play.upstream.sends(chunk(text("b") + event(choices=[], usage=usage(9, 2)) + b"data: [DONE]\n\n"), END)
    assert costs(play) == [(9 * INPUT + 2 * OUTPUT, Mark.EXACT)]


def test_it_is_read_on_when_there_is_more_money_for_it_though_its_client_had_not_kept_up(
    make: Callable[..., Playbook],
) -> None:
    play = make(budget_cut="on", on_disconnect="drain:10s")
    ask(play, chat(stream=True))
    play.upstream.sends(HEAD)
    play.client.stops_reading()
    play.upstream.sends(*[chunk(b": " + b"x" * 20_000 + b"\n\n")] * 5)
    assert not play.upstream.transport.is_reading()
    play.client.resets()
    play.store.holds = True
    play.upstream.sends(chunk(text("x" * 5_000)))
    assert not play.upstream.transport.is_reading()
    play.store.decide()
    assert play.upstream.transport.is_reading()
    play.store.holds = False
    play.upstream.sends(chunk(event(choices=[], usage=usage(9, 600)) + b"data: [DONE]\n\n"), END)
    assert costs(play) == [(9 * INPUT + 600 * OUTPUT, Mark.EXACT)]


def test_a_request_that_cannot_be_made_to_fit_is_refused_and_costs_nothing(make: Callable[..., Playbook]) -> None:
    """Reading goes a little deeper than writing: at some of these depths it can be read, but not be written."""
    play = make(budget="0.0065 USD/hour", budget_clamp="on", rate_limit="10000")
    for depth in range(700, 1000):
        nested = b'{"a":' * depth + b"1" + b"}" * depth
        client = play.connect()
        body = b'{"model":"m","max_tokens":400,"x":' + nested + b"}"
        client.sends(play.request(b"POST", b"/api/chat/completions", body=body))
        if client.has_head():
            assert client.answer().status in {400, 403}
        else:
            play.upstream.request()
            play.upstream.answers(b"", b"500 No")
            client.answer()
    assert {cost for cost, _ in costs(play)} <= {0}
