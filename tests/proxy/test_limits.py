"""Several limits, places in flight, shadows and revocation, as a client and the upstream see them."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from gateway.errors import StoreUnavailable, TokenRevoked
from gateway.metrics import MAX_TOKENS, Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Client, Playbook

GET = (b"GET", b"/api/x")
SWITCH = (b"Connection: Upgrade", b"Upgrade: websocket")


def passes(play: Playbook, client: Client | None = None) -> dict[bytes, bytes | None]:
    """Let a request through, and return its limit fields."""
    (client or play.client).sends(play.request(*GET))
    play.upstream.request()
    play.upstream.answers()
    answer = (client or play.client).answer()
    assert answer.status == 200
    return {name: answer.value(name) for name in (b"ratelimit", b"ratelimit-policy")}


def usage(play: Playbook) -> dict[str, Any]:
    client = play.connect()
    client.sends(play.request(b"GET", b"/usage"))
    answer = client.answer()
    assert (answer.status, answer.value(b"cache-control")) == (200, b"no-store")
    members: dict[str, Any] = json.loads(answer.body)
    return members


def used(play: Playbook) -> dict[str, int]:
    return {limit["name"]: limit["used"] for limit in usage(play)["limits"]}


# --- places in flight ------------------------------------------------------------------------------------------------


def test_one_too_many_in_flight_is_a_429_and_sent_nowhere(make_play: Callable[..., Playbook]) -> None:
    play = make_play(concurrency_limit=1)
    play.client.sends(play.request(*GET))
    play.upstream.request()
    other = play.connect()
    other.sends(play.request(*GET))
    refusal = other.problem(429, "concurrency_limited")
    assert refusal.value(b"ratelimit") == b'"concurrency";r=0;t=1'
    assert refusal.value(b"ratelimit-policy") == b'"minute";q=60;w=60, "concurrency";q=1;qu="concurrent-requests"'
    assert (refusal.value(b"retry-after"), refusal.value(b"retry-after-ms")) == (b"1", b"1000")
    assert (refusal.value(b"x-ratelimit-limit"), refusal.value(b"x-should-retry")) == (b"1", None)
    assert b"'concurrency' allows 1 requests in flight" in refusal.body
    assert play.dials == 1
    play.upstream.answers()
    assert play.client.answer().value(b"ratelimit") == b'"minute";r=59;t=61'
    assert passes(play, other)[b"ratelimit"] == b'"minute";r=58;t=61'
    assert used(play) == {"minute": 2, "concurrency": 0}


def answered(play: Playbook) -> None:
    play.upstream.answers()


def answered_and_closed(play: Playbook) -> None:
    play.upstream.sends(b"HTTP/1.1 200 OK\r\n\r\nhi")
    play.upstream.ends()


def hung_up(play: Playbook) -> None:
    play.client.resets()


def hung_up_mid_answer(play: Playbook) -> None:
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi")
    play.client.resets()


def cut_mid_answer(play: Playbook) -> None:
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi")
    play.upstream.resets()


def lost(play: Playbook) -> None:
    play.upstream.resets()


def no_http(play: Playbook) -> None:
    play.upstream.sends(b"SMTP ready\r\n\r\n")


def timed_out(play: Playbook) -> None:
    play.pass_time(21)


ENDS = [answered, answered_and_closed, hung_up, hung_up_mid_answer, cut_mid_answer, lost, no_http, timed_out]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_a_place_comes_back_once_however_the_exchange_ends(
    make_play: Callable[..., Playbook], end: Callable[[Playbook], None]
) -> None:
    play = make_play(concurrency_limit=2, global_concurrency_limit=3)
    play.client.sends(play.request(*GET))
    play.upstream.request()
    assert used(play) == {"minute": 1, "concurrency": 1, "global-concurrency": 1}
    end(play)
    assert used(play) == {"minute": 1, "concurrency": 0, "global-concurrency": 0}
    assert (play.store.releases, play.store.refunds) == (1, 0)
    play.pass_time(20)
    assert play.store.releases == 1


def test_what_was_never_sent_gives_back_its_place_and_its_charge(make_play: Callable[..., Playbook]) -> None:
    play = make_play(concurrency_limit=1)
    play.dial_error = ConnectionRefusedError()
    play.client.sends(play.request(*GET))
    play.client.problem(502, "upstream_unreachable")
    assert used(play) == {"minute": 0, "concurrency": 0}
    assert (play.store.releases, play.store.refunds) == (0, 1)


def test_a_client_that_leaves_before_its_verdict_gives_back_both(make_play: Callable[..., Playbook]) -> None:
    play = make_play(concurrency_limit=1)
    play.store.holds = True
    play.client.sends(play.request(*GET))
    play.client.resets()
    play.store.decide()
    play.store.holds = False
    assert used(play) == {"minute": 0, "concurrency": 0}


def test_a_defect_in_the_middle_gives_the_place_back(
    make_play: Callable[..., Playbook], monkeypatch: pytest.MonkeyPatch
) -> None:
    play = make_play(concurrency_limit=1)
    play.client.sends(play.request(*GET))
    play.upstream.request()

    def fail(_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(play.pool, "give_back", fail, raising=True)
    with pytest.raises(RuntimeError, match="a defect"):
        play.upstream.answers()
    play.loop.failures.clear()
    play.client.resets()
    assert used(play)["concurrency"] == 0
    assert play.store.releases == 1


@pytest.mark.parametrize("who", ["client", "upstream", "client-resets", "upstream-resets", "nobody"])
def test_a_session_holds_its_place_until_it_ends(make_play: Callable[..., Playbook], who: str) -> None:
    play = make_play(concurrency_limit=1)
    play.client.sends(play.request(*GET, *SWITCH))
    play.upstream.request()
    play.upstream.sends(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert play.client.head().status == 101
    play.pass_time(10)
    assert used(play)["concurrency"] == 1
    if who == "nobody":
        play.pass_time(31)
    elif who.endswith("resets"):
        (play.client if who.startswith("client") else play.upstream).resets()
    elif who == "client":
        play.client.ends()
        play.upstream.ends()
    else:
        play.upstream.ends()
        play.client.ends()
    play.pass_time(3)
    assert used(play)["concurrency"] == 0
    assert play.store.releases == 1


def test_pipelined_requests_take_one_place_after_the_other(make_play: Callable[..., Playbook]) -> None:
    play = make_play(concurrency_limit=1)
    play.client.sends(play.request(*GET) * 3)
    for _ in range(3):
        play.upstream.request()
        play.upstream.answers()
        assert play.client.answer().status == 200
    assert play.store.releases == 3


# --- several limits --------------------------------------------------------------------------------------------------


def test_the_limit_nearest_its_end_is_told_and_the_one_that_refused(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="2/second;bucket,60/minute,3/day", global_rate_limit="1000/hour")
    policies = b'"second";q=2;w=1;bucket, "minute";q=60;w=60, "day";q=3;w=86400, "global-hour";q=1000;w=3600'
    assert passes(play) == {b"ratelimit": b'"second";r=1;t=1', b"ratelimit-policy": policies}
    play.pass_time(1)
    assert passes(play)[b"ratelimit"] == b'"second";r=1;t=1'
    play.pass_time(1)
    fields = passes(play)
    assert (fields[b"ratelimit"] or b"").startswith(b'"day";r=0;t=8')
    play.client.sends(play.request(*GET))
    refusal = play.client.problem(429, "rate_limited")
    assert (refusal.value(b"ratelimit") or b"").startswith(b'"day";r=0;t=8')
    assert b"'day' allows 3 requests in 86400 seconds" in refusal.body
    assert (refusal.value(b"x-ratelimit-limit"), refusal.value(b"x-should-retry")) == (b"3", b"false")
    assert used(play) == {"second": 1, "minute": 3, "day": 3, "global-hour": 3}


def test_a_tokens_own_limits_leave_the_common_ones_in_force(make_play: Callable[..., Playbook]) -> None:
    play = make_play(concurrency_limit=5, global_rate_limit="1000/hour")
    play.token = play.admission.issue(time.time(), limits=["7/second;bucket"])[0].encode()
    assert used(play) == {"second": 0, "concurrency": 0, "global-hour": 0}


def test_waits_are_spread(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="1/30s")
    passes(play)
    told = []
    for play.jitter in (0.0, 0.5, 1.0):
        play.client.sends(play.request(*GET))
        refusal = play.client.problem(429, "rate_limited")
        assert refusal.value(b"ratelimit") == b'"30s";r=0;t=31'
        told.append((refusal.value(b"retry-after"), refusal.value(b"retry-after-ms")))
    assert told == [(b"31", b"30500"), (b"32", b"31263"), (b"33", b"32025")]


# --- shadow ----------------------------------------------------------------------------------------------------------


def test_a_shadow_reports_and_never_refuses(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="60/minute,1/hour;shadow", concurrency_limit="1;shadow")
    policies = b'"minute";q=60;w=60, "hour";q=1;w=3600;shadow, "concurrency";q=1;qu="concurrent-requests";shadow'
    assert passes(play)[b"ratelimit-policy"] == policies
    for _ in range(2):
        assert (passes(play)[b"ratelimit"] or b"").startswith(b'"hour";r=0;t=3')
    assert used(play) == {"minute": 3, "hour": 1, "concurrency": 0}
    assert usage(play)["shadowed"] == {"hour": 2}
    play.client.sends(play.request(*GET))
    other = play.connect()
    play.upstream.request()
    other.sends(play.request(*GET))
    play.upstream.request()
    assert usage(play)["shadowed"] == {"hour": 4, "concurrency": 1}
    assert usage(play)["denied"]["total"] == 0


def test_in_shadow_mode_no_limit_refuses(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="1/minute", global_rate_limit="1/hour", concurrency_limit=1, rate_limit_mode="shadow")
    assert passes(play)[b"ratelimit"] == b'"minute";r=0;t=61;shadow'
    for _ in range(3):
        passes(play)
    play.token = play.admission.issue(time.time(), limits=["1/day"])[0].encode()
    for _ in range(3):
        passes(play)
    assert usage(play)["shadowed"] == {"day": 2, "global-hour": 3}


# --- revocation ------------------------------------------------------------------------------------------------------


def revoke(play: Playbook, until_s: float | None = None) -> None:
    subject = play.admission.authenticate(play.token, time.time())
    play.loop.run_until_complete(play.admission.revoke(subject.id, until_s, now_s=time.time()))


def test_a_revoked_token_is_a_401_at_once_and_sent_nowhere(play: Playbook) -> None:
    passes(play)
    revoke(play)
    for target in (b"/api/x", b"/usage"):
        play.client.sends(play.request(b"GET", target))
        refusal = play.client.problem(401, "token_revoked")
        assert b'error="invalid_token"' in (refusal.value(b"www-authenticate") or b"")
        assert refusal.values(b"ratelimit") == []
    play.upstream.got_nothing()
    play.token = play.admission.issue(time.time())[0].encode()
    passes(play)


@pytest.mark.parametrize("target", [b"/api/x", b"/usage"])
def test_revoked_by_another_instance_it_stays_revoked_when_the_store_is_lost(play: Playbook, target: bytes) -> None:
    token_id = play.admission.authenticate(play.token, time.time()).id
    play.loop.run_until_complete(play.store.revoke(token_id, 3600))
    play.client.sends(play.request(b"GET", target))
    play.client.problem(401, "token_revoked")
    # From now on it is known here: the store is not asked any more.
    play.store.holds = True
    play.client.sends(play.request(*GET))
    play.client.problem(401, "token_revoked")
    # Nor is it forgotten with the verified tokens.
    play.admission._subjects.clear()
    play.client.sends(play.request(*GET))
    play.client.problem(401, "token_revoked")
    assert play.dials == 0


def test_an_exchange_under_way_ends_in_its_own_time(play: Playbook) -> None:
    play.client.sends(play.request(*GET))
    play.upstream.request()
    revoke(play)
    play.upstream.answers()
    assert play.client.answer().status == 200


def test_a_revocation_that_the_store_did_not_take_holds_here_and_says_so(
    play: Playbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: object, __: object) -> None:
        raise StoreUnavailable

    monkeypatch.setattr(play.store, "revoke", fail)
    with pytest.raises(StoreUnavailable):
        revoke(play)
    with pytest.raises(TokenRevoked):
        play.admission.authenticate(play.token, time.time())


def test_only_ids_can_be_revoked(play: Playbook) -> None:
    for text in ("", "global", "a}b", play.token.decode()):
        with pytest.raises(ValueError, match="subject"):
            asyncio.run(play.admission.revoke(text, None, now_s=0))


# --- usage -----------------------------------------------------------------------------------------------------------


def test_usage_tells_limits_and_charges_nothing(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="2/minute", concurrency_limit=5)
    token, claims = play.admission.issue(time.time(), name="nightly")
    play.token = token.encode()
    passes(play)
    play.pass_time(1)
    first, second = usage(play), usage(play)
    assert {**first, "at": None} == {**second, "at": None}
    assert first.pop("expires_at").endswith("Z")
    wanted = {
        "id": claims.id,
        "name": "nightly",
        "limits": [
            {
                "name": "minute",
                "kind": "window",
                "shared": False,
                "shadow": False,
                "limit": 2,
                "window": 60,
                "used": 1,
                "remaining": 1,
                "reset": 60.0,
            },
            {
                "name": "concurrency",
                "kind": "concurrency",
                "shared": False,
                "shadow": False,
                "limit": 5,
                "window": None,
                "used": 0,
                "remaining": 5,
                "reset": None,
            },
        ],
        "requests": 1,
        "passed": 1,
        "refused": {},
        "in_flight": 0,
        "denied": {"total": 0, "retries": 0, "by_reason": {}},
        "loops": [],
        "spend_guard": None,
        "shadowed": {},
    }
    assert {name: first[name] for name in wanted} == wanted


def test_usage_shows_a_retry_storm_as_one(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="1/minute")
    passes(play)
    for count in (b"0", b"1", b"2"):
        play.client.sends(play.request(*GET, b"X-Stainless-Retry-Count: " + count))
        play.client.problem(429, "rate_limited")
    play.client.sends(play.request(*GET))
    play.client.problem(429, "rate_limited")
    play.store.holds = True
    play.client.sends(play.request(*GET))
    play.store.lose()
    play.client.problem(503, "store_unavailable")
    play.store.holds = False
    assert usage(play)["denied"] == {"total": 5, "retries": 2, "by_reason": {"minute": 4, "store_unavailable": 1}}


def test_usage_is_for_who_has_a_token(play: Playbook) -> None:
    play.client.sends(b"GET /usage HTTP/1.1\r\nHost: h\r\n\r\n")
    play.client.problem(401, "token_missing")
    play.client.sends(play.request(b"POST", b"/usage"))
    assert play.client.problem(405, "method_not_allowed").value(b"allow") == b"GET, HEAD"


def test_denials_are_kept_for_a_bounded_number_of_tokens() -> None:
    metrics = Metrics()
    for number in range(MAX_TOKENS + 5):
        metrics.on_denied(f"token-{number}", StoreUnavailable(), is_retry=False)
    assert len(metrics._denials) == MAX_TOKENS
    assert metrics.of("token-0").reasons.total() == 0
    assert metrics.of(f"token-{MAX_TOKENS}").reasons.total() == 1
