"""`LOOP_GUARD`: the same request too often is refused, opens again one at a time, and is shown; all else passes."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from gateway.budgets.budget import NANO
from gateway.budgets.spending import Mark
from gateway.metering import MAX_READ_BYTES
from gateway.metering.costs import CostTable, FixedPrice
from gateway.proxy.repeats import mark_of, shown
from tests.kit.playbook import KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Playbook
    from tests.kit.wire import Message

CENT = NANO // 100
FIXED = CostTable(fixed=(FixedPrice(b"*", b"/*", {"USD": CENT}),))
PROMPT = b'{"model":"gpt-5-mini","messages":[{"role":"user","content":"Is it done yet?"}]}'
COSTS = [None, FIXED, CostTable(llm=True, fixed=FIXED.fixed)]
NAMES = ["unmetered", "fixed", "read"]


@pytest.fixture
def make(make_play: Callable[..., Playbook]) -> Callable[..., Playbook]:
    def make(guard: str = "3/minute", **config: Any) -> Playbook:
        quiet = {"upstream_idle": "100s", "keepalive_timeout": "100s"}
        return make_play(**{"loop_guard": guard, "rate_limit": "100/minute", **quiet, **config})

    return make


@pytest.fixture
def play(make: Callable[..., Playbook]) -> Playbook:
    return make()


def sends(play: Playbook, body: bytes = PROMPT, target: bytes = b"/api/chat/completions") -> Message:
    """Send a request, and answer it if it comes through."""
    play.client.sends(play.request(b"POST", target, body=body))
    if play.client.has_head():
        return play.client.answer()
    request = play.upstream.request()
    assert request.body == body, "what was read is sent as it was"
    play.upstream.answers(b"not yet")
    return play.client.answer()


def usage(play: Playbook) -> dict[str, Any]:
    play.client.sends(play.request(b"GET", b"/usage"))
    told: dict[str, Any] = json.loads(play.client.answer().body)
    return told


@pytest.mark.parametrize("cost", COSTS, ids=NAMES)
def test_the_same_request_too_often_is_refused_and_opens_again_one_at_a_time(
    make: Callable[..., Playbook], cost: CostTable | None
) -> None:
    play = make(cost=cost)
    assert [sends(play).status for _ in range(3)] == [200] * 3
    for _ in range(3):
        assert sends(play).status == 429
    play.upstream.got_nothing()
    assert play.used() == 3, "what is refused is charged nowhere"
    play.pass_time(20)
    assert [sends(play).status for _ in range(3)] == [200, 429, 429]
    play.pass_time(10)
    assert sends(play).status == 429
    play.pass_time(10)
    assert [sends(play).status for _ in range(2)] == [200, 429]
    play.pass_time(61)
    assert [sends(play).status for _ in range(4)] == [200, 200, 200, 429]
    assert play.dials == 1


def test_the_refusal_says_what_repeats_how_often_and_what_is_next(play: Playbook) -> None:
    for _ in range(3):
        sends(play, target=b"/api/chat/completions?v=1")
    play.client.sends(play.request(b"POST", b"/api/chat/completions?v=1", body=PROMPT))
    refusal = play.client.problem(429, "loop_detected")
    assert json.loads(refusal.body)["detail"] == (
        "The same request, POST /chat/completions, was sent more often than 3 times in 60 seconds; one at a time is "
        "let through again, the next in 20.0 seconds."
    )
    assert refusal.value(b"x-should-retry") == b"false"
    assert refusal.value(b"retry-after") == b"20"
    assert refusal.value(b"ratelimit-policy") == b'"minute";q=100;w=60'
    assert refusal.value(b"ratelimit") == b'"loop";r=0;t=20'
    limits = [refusal.value(b"x-ratelimit-" + name) for name in (b"limit", b"remaining", b"reset")]
    assert limits == [b"3", b"0", b"20"]


@pytest.mark.parametrize("cost", COSTS, ids=NAMES)
def test_limits_are_told_as_ever(make: Callable[..., Playbook], cost: CostTable | None) -> None:
    play = make(cost=cost)
    assert sends(play).value(b"ratelimit") == b'"minute";r=99;t=61'
    assert sends(play).value(b"ratelimit") == b'"minute";r=98;t=61'


def test_what_differs_in_anything_is_another_request(play: Playbook) -> None:
    others = [
        (PROMPT + b" ", b"/api/chat/completions"),
        (PROMPT, b"/api/chat/completions?again"),
        (PROMPT, b"/api/completions"),
    ]
    for _ in range(3):
        sends(play)
    for body, target in others:
        assert sends(play, body, target).status == 200
    assert sends(play).status == 429
    play.client.sends(play.request(b"PUT", b"/api/chat/completions", body=PROMPT))
    play.upstream.request()
    play.upstream.answers()
    assert play.client.answer().status == 200
    mine, play.token = play.token, play.admission.issue(play.context.clock.wall_s)[0].encode()
    assert sends(play).status == 200
    play.token = mine
    assert sends(play).status == 429
    assert mark_of("a", b"POST", b"/x", b"y") != mark_of("b", b"POST", b"/x", b"y")


def test_a_body_in_pieces_or_in_chunks_is_the_same_request(play: Playbook) -> None:
    sends(play)
    whole = play.request(b"POST", b"/api/chat/completions", body=PROMPT)
    play.client.sends(whole[:-20])
    assert play.dials == 1
    play.upstream.got_nothing()
    play.client.sends(whole[-20:-5], whole[-5:])
    assert play.upstream.request().body == PROMPT
    play.upstream.answers()
    play.client.answer()
    chunks = b"%x\r\n%b\r\n5\r\n%b\r\n0\r\n\r\n" % (len(PROMPT) - 5, PROMPT[:-5], PROMPT[-5:])
    for status in (200, 429):
        play.client.sends(play.request(b"POST", b"/api/chat/completions", b"Transfer-Encoding: chunked"), chunks)
        if status == 200:
            request = play.upstream.request()
            assert (request.body, request.value(b"transfer-encoding")) == (PROMPT, b"chunked")
            play.upstream.answers()
        assert play.client.answer().status == status


@pytest.mark.parametrize("cost", COSTS, ids=NAMES)
def test_a_body_that_is_large_is_read_all_the_same(make: Callable[..., Playbook], cost: CostTable | None) -> None:
    play = make("1/minute", cost=cost)
    body = b"x" * (MAX_READ_BYTES - 1)
    whole = play.request(b"POST", b"/api/x", body=body)
    for _ in range(2):
        play.client.sends(*(whole[at : at + 100_000] for at in range(0, len(whole), 100_000)))
        if play.client.has_head():
            play.client.problem(429, "loop_detected")
            return
        assert play.upstream.request().body == body
        play.upstream.answers()
        assert play.client.answer().status == 200
    pytest.fail("it was not refused")


def test_who_waits_for_100_gets_it_once(play: Playbook) -> None:
    expects = (b"Expect: 100-continue", b"Content-Length: 5", b"X-Other: 1")
    play.client.sends(play.request(b"POST", b"/api/x", *expects))
    play.client.got(b"HTTP/1.1 100 Continue\r\n\r\n")
    play.client.sends(b"hello")
    request = play.upstream.request()
    assert (request.body, request.values(b"expect"), request.value(b"x-other")) == (b"hello", [], b"1")
    play.upstream.answers()
    assert play.client.answer().status == 200


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_long_body_goes_on_as_it_comes_and_is_not_guarded(make: Callable[..., Playbook], framing: str) -> None:
    play = make("1/minute")
    size, framed = MAX_READ_BYTES + 1, framing == "length"
    length = b"Content-Length: %d" % size if framed else b"Transfer-Encoding: chunked"
    for _ in range(2):
        body = b"x" * size if framed else b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size)
        play.client.sends(play.request(b"POST", b"/api/x", length), body)
        assert play.upstream.request().body == b"x" * size
        play.upstream.answers()
        assert play.client.answer().status == 200


def test_a_body_that_stalls_is_refused_and_counts_nothing(play: Playbook) -> None:
    play.client.sends(play.request(b"POST", b"/api/x", body=b"0123456789")[:-5])
    play.pass_time(20)
    play.client.sends(b"5")
    play.pass_time(20)
    assert play.client.state == "open", "each byte buys time"
    play.pass_time(11)
    play.client.problem(408, "request_timeout")
    assert play.upstreams == []


def test_who_hangs_up_in_the_middle_of_a_body_leaves_nothing(play: Playbook) -> None:
    play.client.sends(play.request(b"POST", b"/api/x", body=b"0123456789")[:-5])
    play.client.resets()
    assert play.upstreams == []
    play.client = play.connect()
    assert play.used() == 0


def test_a_switch_of_protocols_still_passes_and_counts(make: Callable[..., Playbook]) -> None:
    play = make("1/minute")
    offer = play.request(b"GET", b"/api/live", b"Connection: Upgrade", b"Upgrade: websocket")
    play.client.sends(offer)
    play.upstream.request()
    play.upstream.sends(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi")
    assert play.client.head().status == 101
    play.client.sends(b"hello")
    play.upstream.got(b"hello")
    play.client.resets()
    play.client = play.connect()
    play.client.sends(offer)
    play.client.problem(429, "loop_detected")


def test_answers_of_what_costs_nothing_are_untouched(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x", b"Accept-Encoding: br"))
    assert play.upstream.request().value(b"accept-encoding") == b"br"
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: 1\r\n\r\n")
    answer = play.client.answer()
    assert (answer.body, answer.values(b"x-gateway-request")) == (b"abc", [])
    assert play.loop.run_until_complete(play.store.ledger.entries(0)) == []


def test_neither_its_money_nor_its_limit_is_taken_where_the_loop_refuses(make: Callable[..., Playbook]) -> None:
    play = make("2/minute", cost=FIXED, budget="1 USD/hour", concurrency_limit="1")
    for _ in range(4):
        sends(play)
    entries = play.loop.run_until_complete(play.store.ledger.entries(0))
    assert [(entry.cost, entry.mark) for entry in entries] == [({"USD": CENT}, Mark.EXACT)] * 2
    assert play.loop.run_until_complete(play.store.ledger.open()) == []
    assert play.used() == 2


def test_nor_is_the_loop_charged_where_the_limit_refuses(make: Callable[..., Playbook]) -> None:
    play = make("3/minute", cost=FIXED, rate_limit="1/second")
    assert sends(play).status == 200
    for _ in range(9):
        assert sends(play).value(b"x-gateway-error") == b"rate_limited"
    for status in (200, 200, 429):
        play.pass_time(1.25)
        assert sends(play).status == status


def test_what_could_not_be_sent_is_given_back(play: Playbook) -> None:
    play.dial_error = OSError("refused")
    for _ in range(4):
        play.client.sends(play.request(b"POST", b"/api/x", body=PROMPT))
        play.client.problem(502, "upstream_unreachable")
    play.dial_error = None
    assert sends(play, target=b"/api/x").status == 200


def test_the_loop_is_shown_in_usage_and_once_in_the_log_without_a_secret(
    play: Playbook, caplog: pytest.LogCaptureFixture
) -> None:
    body = b'{"key": "canary-1","prompt":"\x1b[2J\xff' + KEY.encode() + b'","more":"' + b"word " * 100 + b'"}'
    with caplog.at_level(logging.WARNING, "gateway.guards"):
        for _ in range(5):
            sends(play, body, b"/api/chat?api_key=canary-2")
    (loop,) = usage(play)["loops"]
    assert (loop["target"], loop["request"], loop["refused"]) == ("api", "POST /chat", 2)
    assert loop["body"].startswith('{"key": "***","prompt":"\\x1b[2J\\xff***","more":"word word')
    assert len(loop["body"]) == 120
    (line,) = caplog.messages
    assert "POST /chat at the target api, more than 3 times in 60 s (LOOP_GUARD): " + loop["body"] in line
    assert "canary" not in line
    assert usage(play)["denied"]["by_reason"] == {"loop_detected": 2}


def test_another_loop_after_a_quiet_while_is_logged_anew(play: Playbook, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "gateway.guards"):
        for _ in range(5):
            sends(play)
        assert len(caplog.messages) == 1
        loops = play.metrics.of(usage(play)["id"]).loops
        (loop,) = loops.values()
        loop.last_s -= 100
        sends(play)
    assert len(caplog.messages) == 2
    assert [one.refused for one in loops.values()] == [1]


def test_what_is_remembered_of_a_token_is_bounded(make: Callable[..., Playbook]) -> None:
    play = make("1/minute", rate_limit="10000/minute")
    for number in range(8):
        for _ in range(2):
            sends(play, b"%d" % number)
    assert [loop["body"] for loop in usage(play)["loops"]] == ["3", "4", "5", "6", "7"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"plain text, no more", "plain text, no more"),
        (b"Bearer abc.def-1", "Bearer ***"),
        (b"x=sk-proj-Ab3dEf5h end", "x=*** end"),
        (b'{"password": "hunter2", "a": 1}', '{"password": "***", "a": 1}'),
        (b"user=me&client_secret=s3 &b=1", "user=me&client_secret=*** &b=1"),
        (b"/bot123456:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw/send", "/bot123456:***/send"),
        (b"tab\tnewline\n\x80", "tab\\x09newline\\x0a\\x80"),
        (b'{"model":"claude-sonnet-4-5-20250929"}', '{"model":"claude-sonnet-4-5-20250929"}'),
        (b"/v1/chat/completions/c0ffee", "/v1/chat/completions/c0ffee"),
        (b"id 123e4567-e89b-12d3-a456-426614174000", "id ***"),
        (b"k Zm9vYmFyMT/IzNDU2Nzg5+MTIzNDU2", "k ***"),
        (b"chat-gpt-like-words-without-any-number-in-them", "chat-gpt-like-words-without-any-number-in-them"),
    ],
)
def test_what_looks_like_a_secret_is_masked(content: bytes, expected: str) -> None:
    assert shown(content, 120) == expected


def test_a_secret_at_the_end_of_what_is_shown_is_not_cut_into_view() -> None:
    assert "sk" not in shown(b"x " * 58 + b"sk-abcdef0123456789", 120)


def test_off_means_off(make_play: Callable[..., Playbook]) -> None:
    play = make_play()
    assert [sends(play).status for _ in range(30)] == [200] * 30
    assert usage(play)["loops"] == []


def test_children_count_apart(play: Playbook) -> None:
    parent = play.admission.authenticate(play.token, play.context.clock.wall_s)
    child, _ = play.admission.issue_child(parent, play.context.clock.wall_s)
    assert [sends(play).status for _ in range(4)] == [200, 200, 200, 429]
    play.token = child.encode()
    assert sends(play).status == 200


@pytest.mark.parametrize("cost", COSTS, ids=NAMES)
def test_the_bytes_of_a_refused_body_in_chunks_are_counted(
    make: Callable[..., Playbook], cost: CostTable | None
) -> None:
    play = make("1/minute", cost=cost)
    sends(play, b"hello")
    play.client.sends(play.request(b"POST", b"/api/chat/completions", b"Transfer-Encoding: chunked"))
    play.client.sends(b"5\r\nhello\r\n0\r\n\r\n")
    play.client.problem(429, "loop_detected")
    assert usage(play)["bytes_in"] == 10
