"""Before anything goes upstream: who asks, whether there is a place, and what becomes of a body meanwhile."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from gateway.proxy.relay import MAX_HELD_BYTES
from tests.kit.playbook import unmeasured

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Playbook

HOST = b"Host: gateway.test"


def post(*lines: bytes, body: bytes = b"") -> bytes:
    """Spell a POST with no token but what the lines bring."""
    return b"\r\n".join((b"POST /api/x HTTP/1.1", HOST, *lines, b"Content-Length: %d" % len(body), b"", body))


# --- who asks --------------------------------------------------------------------------------------------------------


def test_without_a_token_there_is_a_401_that_says_where_to_get_one(play: Playbook) -> None:
    play.client.sends(b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n")
    refusal = play.client.problem(401, "token_missing")
    assert refusal.value(b"www-authenticate") == b'Bearer realm="gateway"'
    assert b"authentication_error" in refusal.body
    assert b"/register" in refusal.body
    assert refusal.values(b"ratelimit") == []
    assert play.client.state == "open"
    assert play.dials == 0


@pytest.mark.parametrize(
    "line",
    [
        b"Authorization: Bearer gw_made.up",
        b"Authorization: Bearer gw_" + b"a" * 60 + b"." + b"b" * 43,
        b"Authorization: Bearer sk-somebody-elses",
        b"Authorization: Basic Z3dfbWFkZS51cDo=",
        b"X-Api-Key: \xff\xfe",
        b"X-Api-Key: " + b"x" * 4000,
    ],
)
def test_a_token_from_elsewhere_is_refused_and_gets_no_counter(play: Playbook, line: bytes) -> None:
    play.client.sends(b"GET /api/x HTTP/1.1\r\nHost: h\r\n" + line + b"\r\n\r\n")
    refusal = play.client.problem(401, "token_invalid")
    assert (refusal.value(b"www-authenticate") or b"").startswith(b'Bearer realm="gateway", error="invalid_token"')
    assert play.client.state == "open"
    assert (play.dials, play.used()) == (0, 0)


@pytest.mark.parametrize(
    "line", [b"Authorization: Bearer", b"Authorization: Digest abc", b"Authorization: Basic !", b"X-Api-Key:"]
)
def test_a_field_without_a_token_in_it_is_as_good_as_none(play: Playbook, line: bytes) -> None:
    play.client.sends(b"GET /api/x HTTP/1.1\r\nHost: h\r\n" + line + b"\r\n\r\n")
    play.client.problem(401, "token_missing")
    assert play.dials == 0


def test_every_changed_byte_of_a_token_is_refused(play: Playbook) -> None:
    for at in range(len(play.token)):
        forged = play.token[:at] + (b"A" if play.token[at : at + 1] != b"A" else b"B") + play.token[at + 1 :]
        play.client.sends(b"GET /api/x HTTP/1.1\r\nHost: h\r\nX-Api-Key: " + forged + b"\r\n\r\n")
        play.client.problem(401, "token_invalid")
    assert (play.dials, play.used()) == (0, 0)


def test_an_expired_token_is_refused(play: Playbook) -> None:
    token, _ = play.admission.issue(time.time() - 1000, ttl_s=999)
    play.client.sends(b"GET /api/x HTTP/1.1\r\nHost: h\r\nX-Api-Key: " + token.encode() + b"\r\n\r\n")
    refusal = play.client.problem(401, "token_expired")
    assert b'error="invalid_token"' in (refusal.value(b"www-authenticate") or b"")
    assert play.dials == 0


# --- whether there is a place ----------------------------------------------------------------------------------------


def test_over_the_limit_there_is_a_429_that_says_when_to_come_back(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="2/minute,100/day")
    for remaining in (1, 0):
        play.client.sends(play.request(b"GET", b"/api/x"))
        play.upstream.request()
        play.upstream.answers()
        answer = play.client.answer()
        assert answer.value(b"ratelimit-policy") == b'"minute";q=2;w=60, "day";q=100;w=86400'
        assert answer.value(b"ratelimit") == b'"minute";r=%d;t=61' % remaining
    play.client.sends(play.request(b"GET", b"/api/x"))
    refusal = play.client.problem(429, "rate_limited")
    assert refusal.value(b"ratelimit") == b'"minute";r=0;t=61'
    assert refusal.value(b"ratelimit-policy") == b'"minute";q=2;w=60, "day";q=100;w=86400'
    assert refusal.value(b"retry-after") == b"61"
    assert refusal.value(b"retry-after-ms") == b"61000"
    assert refusal.value(b"x-ratelimit-limit") == b"2"
    assert refusal.value(b"x-ratelimit-remaining") == b"0"
    assert refusal.value(b"x-ratelimit-reset") == b"61"
    assert refusal.value(b"x-should-retry") == b"false"  # over 60 s
    assert b"rate_limit_error" in refusal.body
    play.upstream.got_nothing()
    assert play.client.state == "open"
    play.pass_time(2)
    play.client.sends(play.request(b"GET", b"/api/x"))
    refusal = play.client.problem(429, "rate_limited")
    assert refusal.value(b"retry-after") == b"59"
    assert refusal.value(b"x-should-retry") is None
    play.pass_time(8)
    other = play.connect()
    play.pass_time(51)
    other = play.connect()
    other.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    play.upstream.answers()
    assert other.answer().value(b"ratelimit") == b'"minute";r=1;t=61'


def test_the_wait_is_rounded_up(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="1/second")
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers()
    play.client.answer()
    play.pass_time(0.25)
    play.client.sends(play.request(b"GET", b"/api/x"))
    refusal = play.client.problem(429, "rate_limited")
    assert refusal.value(b"retry-after") == b"1"
    assert 750 <= int(refusal.value(b"retry-after-ms") or 0) <= 767
    assert refusal.value(b"x-should-retry") is None


def test_a_global_limit_is_counted_for_all_tokens_together(make_play: Callable[..., Playbook]) -> None:
    play = make_play(global_rate_limit="1/minute")
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers()
    assert play.client.answer().value(b"ratelimit") == b'"global-minute";r=0;t=61'
    play.token = play.admission.issue(time.time())[0].encode()
    play.client.sends(play.request(b"GET", b"/api/x"))
    assert play.client.problem(429, "rate_limited").value(b"ratelimit") == b'"global-minute";r=0;t=61'


def test_a_lost_verdict_is_a_503_to_come_back_to(play: Playbook) -> None:
    play.store.holds = True
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.got_nothing()
    play.store.lose()
    refusal = play.client.problem(503, "store_unavailable")
    assert refusal.value(b"retry-after") == b"1"
    assert refusal.values(b"ratelimit") == []
    assert play.client.state == "open"
    assert play.dials == 0
    play.store.holds = False
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers()
    assert play.client.answer().status == 200


def test_nothing_goes_upstream_before_the_verdict(play: Playbook) -> None:
    play.store.holds = True
    play.client.sends(play.request(b"GET", b"/api/x"))
    assert play.dials == 0
    play.store.decide()
    assert play.upstream.request().start == b"GET /v1/x HTTP/1.1"


# --- the body meanwhile ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits_for", ["verdict", "connection"])
def test_a_body_that_comes_early_is_held_and_goes_on_in_order(play: Playbook, waits_for: str) -> None:
    play.store.holds = waits_for == "verdict"
    play.dial_waits = waits_for == "connection"
    pieces = [bytes([65 + number]) * 1000 for number in range(20)]
    request = play.request(b"POST", b"/api/x", b"Content-Length: 20000")
    play.client.sends(request + pieces[0], *pieces[1:10])
    assert play.upstreams == []
    if waits_for == "verdict":
        play.store.decide()
    else:
        play.dial_now()
    head = play.upstream.head()
    assert head.value(b"content-length") == b"20000"
    play.upstream.got(b"".join(pieces[:10]))
    for piece in pieces[10:]:
        play.client.sends(piece)
        play.upstream.got(piece)
    play.upstream.answers()
    assert play.client.answer().status == 200
    assert play.client.state == "open"


@pytest.mark.parametrize("waits_for", ["verdict", "connection"])
def test_what_is_held_is_bounded(play: Playbook, waits_for: str) -> None:
    play.store.holds = waits_for == "verdict"
    play.dial_waits = waits_for == "connection"
    piece = b"x" * 10_000
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: 1000000"), *[piece] * 100)
    taken = 1_000_000 - play.client.transport.untaken_bytes
    assert MAX_HELD_BYTES < taken <= MAX_HELD_BYTES + len(piece)
    if waits_for == "verdict":
        play.store.decide()
    else:
        play.dial_now()
    play.upstream.head()
    play.upstream.got(piece * 100)
    play.upstream.answers()
    assert play.client.answer().status == 200


def test_a_request_pipelined_behind_a_body_waits_for_its_turn(play: Playbook) -> None:
    play.store.holds = True
    play.client.sends(play.request(b"POST", b"/api/1", body=b"one") + play.request(b"POST", b"/api/2", body=b"two"))
    play.store.decide()
    assert play.upstream.request().body == b"one"
    play.upstream.answers()
    play.client.answer()
    play.upstream.got_nothing()
    play.store.decide()
    assert play.upstream.request().body == b"two"


REFUSALS = ["rate limited", "no token", "store lost"]


def refuse(play: Playbook, why: str, body_sent: bytes, length: int) -> None:
    """Begin a POST that is refused."""
    key = b"X-Api-Key: " + play.token
    if why == "rate limited":
        while play.used() < 1:
            play.client.sends(play.request(b"GET", b"/api/x"))
            play.upstream.request()
            play.upstream.answers()
            play.client.answer()
    lines = [b"POST /api/x HTTP/1.1", HOST, b"Content-Length: %d" % length]
    if why != "no token":
        lines.append(key)
    play.store.holds = why == "store lost"
    play.client.sends(b"\r\n".join((*lines, b"", body_sent)))
    if why == "store lost":
        play.store.lose()


@pytest.mark.parametrize("why", REFUSALS)
def test_a_refusal_of_a_whole_request_keeps_the_connection(make_play: Callable[..., Playbook], why: str) -> None:
    play = make_play(rate_limit="1/minute")
    refuse(play, why, b"body", 4)
    assert play.client.answer().value(b"connection") == b"keep-alive"
    play.client.sends(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    assert play.client.answer().status == 200


@pytest.mark.parametrize(("count", "connection"), [(500, b"keep-alive"), (50_000, b"close")])
def test_many_chunks_are_not_walked_for_anybody(play: Playbook, count: int, connection: bytes) -> None:
    """Where a long one ends is not found out: the connection closes, and nothing behind it is read as a request."""
    body = b"1\r\nx\r\n" * count + b"0\r\n\r\n"
    lines = (b"POST /api/x HTTP/1.1", HOST, b"X-Api-Key: made-up", b"Transfer-Encoding: chunked", b"", body)
    play.client.sends(b"\r\n".join(lines) + b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    assert play.client.problem(401, "token_invalid").value(b"connection") == connection
    if connection == b"close":
        assert play.client.state == "half-closed"
    else:
        assert play.client.answer().status == 200
    play.client.got_nothing()
    assert (play.dials, play.used()) == (0, 0)


def test_many_chunks_of_who_may_ask_are_passed_on(play: Playbook) -> None:
    body = b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n"
    play.client.sends(play.request(b"POST", b"/api/x", b"Transfer-Encoding: chunked", body=body))
    assert play.upstream.request().body == b"x" * 50_000


@pytest.mark.parametrize("why", REFUSALS)
def test_a_refusal_with_its_body_still_to_come_lets_the_client_read_it(
    make_play: Callable[..., Playbook], why: str
) -> None:
    play = make_play(rate_limit="1/minute")
    refuse(play, why, b"bo", 4)
    answer = play.client.answer()
    assert answer.status in {401, 429, 503}
    assert answer.value(b"connection") == b"close"
    # Closing with the body unread would reset the connection, and the answer with it.
    assert play.client.state == "half-closed"
    play.client.sends(b"dy" + play.request(b"GET", b"/api/smuggled"))
    play.client.got_nothing()
    assert play.client.state == "half-closed"
    play.client.ends()
    assert play.client.state == "closed"
    assert all(upstream.unread == b"" for upstream in play.upstreams)


def test_a_browsers_preflight_has_no_token_and_is_sent_nowhere(play: Playbook) -> None:
    asks = [b"Origin: https://page.test", b"Access-Control-Request-Method: POST"]
    play.client.sends(b"\r\n".join((b"OPTIONS /api/x HTTP/1.1", HOST, *asks, b"", b"")))
    refusal = play.client.problem(401, "token_missing")
    assert not any(name.lower().startswith(b"access-control") for name in refusal.names)
    assert (play.dials, play.used()) == (0, 0)


@pytest.mark.parametrize("why", ["no token", "too long", "rate limited"])
def test_a_lingering_client_has_a_bound_in_bytes(make_play: Callable[..., Playbook], why: str) -> None:
    """Many clients read their answer when they have sent all, and fail where they cannot."""
    play = make_play(rate_limit="1/minute", max_body="10" if why == "too long" else None)
    refuse(play, why, b"", 100_000_000)
    play.client.answer()
    for _ in range(3):
        assert play.client.state == "half-closed"
        play.client.sends(bytes((64 << 20) // 3 + 1))
    assert play.client.state == "closed"


@pytest.mark.parametrize(("why", "is_bounded"), [("no token", True), ("rate limited", False)])
def test_a_lingering_client_has_a_bound_in_time(
    make_play: Callable[..., Playbook],
    why: str,
    is_bounded: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Who is known and sends on may be on a slow line; nobody else holds the connection for long."""
    play = make_play(rate_limit="1/minute")
    refuse(play, why, b"", 100_000_000)
    play.client.answer()
    for _ in range(29):
        assert play.client.state == "half-closed"
        play.client.sends(b"x")
        play.pass_time(1)
    play.client.sends(b"x")
    play.pass_time(1.5)
    assert (play.client.state == "closed") is is_bounded
    play.pass_time(1)
    assert play.client.state == "closed"


def test_a_client_that_waits_for_100_is_refused_without_it(play: Playbook) -> None:
    play.client.sends(post(b"Expect: 100-continue")[:-4].replace(b"Length: 0", b"Length: 5") + b"\r\n\r\n")
    answer = play.client.problem(401, "token_missing")
    assert answer.interims == []
    assert answer.value(b"connection") == b"close"


# --- MAX_BODY --------------------------------------------------------------------------------------------------------


def test_a_length_over_max_body_is_refused_before_anything(make_play: Callable[..., Playbook]) -> None:
    play = make_play(max_body="10")
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: 11"))
    refusal = play.client.problem(413, "body_too_large")
    assert refusal.value(b"connection") == b"close"
    assert play.client.is_ended
    assert (play.dials, play.used()) == (0, 0)
    second = play.connect()
    second.sends(play.request(b"POST", b"/api/x", body=b"x" * 10))
    assert play.upstream.request().body == b"x" * 10


def test_a_chunked_body_over_max_body_is_cut_where_it_is_too_long(make_play: Callable[..., Playbook]) -> None:
    play = make_play(max_body="20")
    play.client.sends(play.request(b"POST", b"/api/x", b"Transfer-Encoding: chunked"), b"8\r\n12345678\r\n")
    play.client.sends(b"8\r\n12345678\r\n")
    assert play.upstream.state == "open"
    play.client.sends(b"8\r\n12345678\r\n")
    assert play.client.problem(413, "body_too_large").value(b"connection") == b"close"
    assert play.upstream.state == "aborted"
    assert not play.upstream.unread.endswith(b"0\r\n\r\n")
    assert play.client.is_ended


def test_max_body_counts_content_and_not_its_framing(make_play: Callable[..., Playbook]) -> None:
    play = make_play(max_body="20")
    body = b"1;ext=1\r\nx\r\n" * 20 + b"0\r\nX-Trailer: 1\r\n\r\n"
    play.client.sends(play.request(b"POST", b"/api/x", b"Transfer-Encoding: chunked", body=body))
    assert play.upstream.request().body == b"x" * 20
    play.upstream.answers()
    assert play.client.answer().status == 200


def test_a_chunked_body_over_max_body_that_came_with_its_head_never_goes_upstream(
    make_play: Callable[..., Playbook],
) -> None:
    play = make_play(max_body="20")
    body = b"1e\r\n" + b"x" * 30 + b"\r\n0\r\n\r\n"
    play.client.sends(play.request(b"POST", b"/api/x", b"Transfer-Encoding: chunked", body=body))
    play.client.problem(413, "body_too_large")
    assert all(upstream.unread == b"" for upstream in play.upstreams)


# --- the whole of it, as bytes ---------------------------------------------------------------------------------------


def test_a_429_in_full(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="1/30s")
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers()
    play.client.answer()
    play.client.sends(play.request(b"HEAD", b"/api/x"))
    head, _, body = unmeasured(play.client.unread).partition(b"\r\n\r\n")
    start, *lines = head.split(b"\r\n")
    assert start == b"HTTP/1.1 429 Too Many Requests"
    assert body == b""  # HEAD
    lengths = [line for line in lines if line.startswith(b"Content-Length: ")]
    assert len(lengths) == 1
    assert sorted(line for line in lines if line not in lengths) == sorted(
        [
            b"Content-Type: application/problem+json",
            b"X-Gateway-Error: rate_limited",
            b"Cache-Control: no-store",
            b"Retry-After: 31",
            b"retry-after-ms: 30500",
            b"X-RateLimit-Limit: 1",
            b"X-RateLimit-Remaining: 0",
            b"X-RateLimit-Reset: 31",
            b'RateLimit-Policy: "30s";q=1;w=30',
            b'RateLimit: "30s";r=0;t=31',
            b"Date: NOW",
            b"Connection: keep-alive",
        ]
    )
