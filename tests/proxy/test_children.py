"""`POST /tokens`: a token made from another one allows no more, lasts no longer, counts for it and ends with it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from gateway.scope import Scope
from tests.proxy.test_endpoints import ask, minted
from tests.proxy.test_limits import passes, usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Playbook


def child_of(play: Playbook, token: bytes, **wishes: Any) -> tuple[bytes, dict[str, Any]]:
    """Make a token from a token; return it and what was answered."""
    ask(play.client, b"POST", b"/tokens", b"X-Api-Key: " + token, body=json.dumps(wishes).encode() if wishes else b"")
    members = minted(play.client.answer())
    return members["token"].encode(), members


def id_of(play: Playbook, token: bytes) -> str:
    return play.admission.authenticate(token, time.time()).id


def used_by(play: Playbook, token: bytes) -> dict[str, int]:
    before, play.token = play.token, token
    limits = {limit["name"]: limit["used"] for limit in usage(play)["limits"]}
    play.token = before
    return limits


def test_what_a_child_uses_counts_for_its_parent_and_not_the_other_way(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="5/minute", global_rate_limit="100/hour")
    parent = play.token
    play.token, _ = child_of(play, parent, limits=["2/minute"])
    limits = passes(play)
    expected = b'"minute";q=2;w=60, "parent-minute";q=5;w=60, "global-hour";q=100;w=3600'
    assert (limits[b"ratelimit-policy"], limits[b"ratelimit"]) == (expected, b'"minute";r=1;t=61')
    assert used_by(play, parent) == {"minute": 1, "global-hour": 1}
    child, play.token = play.token, parent
    passes(play)
    assert used_by(play, child) == {"minute": 1, "parent-minute": 2, "global-hour": 2}


def test_its_own_limit_ends_it_and_so_does_its_parents(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="3/minute")
    parent = play.token
    first, second = (child_of(play, parent, limits=["2/minute"])[0] for _ in range(2))
    play.token = first
    passes(play)
    passes(play)
    play.client.sends(play.request(b"GET", b"/api/x"))
    assert b"'minute'" in play.client.problem(429, "rate_limited").body
    play.token = second
    passes(play)
    play.client.sends(play.request(b"GET", b"/api/x"))
    assert b"'parent-minute'" in play.client.problem(429, "rate_limited").body
    assert used_by(play, second) == {"minute": 1, "parent-minute": 3}  # what was refused is counted nowhere
    play.upstream.got_nothing()


def test_a_family_shares_its_places_in_flight(make_play: Callable[..., Playbook]) -> None:
    play = make_play(concurrency_limit=1)
    parent = play.token
    play.token, _ = child_of(play, parent)
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    for token, limit in ((parent, b"'concurrency'"), (child_of_other(play, parent), b"'parent-concurrency'")):
        play.token = token
        other = play.connect()
        other.sends(play.request(b"GET", b"/api/x"))
        assert limit in other.problem(429, "concurrency_limited").body


def child_of_other(play: Playbook, token: bytes) -> bytes:
    """Make a token while the first connection is busy."""
    subject = play.admission.authenticate(token, time.time())
    return play.admission.issue_child(subject, time.time())[0].encode()


def test_it_allows_no_more_than_its_parent(play: Playbook) -> None:
    parent = play.admission.issue(time.time(), scope=Scope(paths=["/chat"], methods=["GET", "POST"]))[0].encode()
    play.token, _ = child_of(play, parent, paths=["/chat/x"])
    for target, status in ((b"/api/chat/x/y", 200), (b"/api/chat/y", 403), (b"/api/chat", 403)):
        play.client.sends(play.request(b"GET", target))
        if status == 200:
            play.upstream.answers()
        assert play.client.answer().status == status
    play.client.sends(play.request(b"DELETE", b"/api/chat/x"))
    play.client.problem(403, "not_allowed")


@pytest.mark.parametrize(
    "wishes",
    [
        {"paths": ["/chatx"]},
        {"paths": ["/"]},
        {"methods": ["GET", "DELETE"]},
        {"targets": ["other"]},
        {"ttl": "2h"},
        {"limits": ["many"]},
        {"limits": []},
        {"budgets": ["many"]},
        {"budgets": []},
        {"budgets": ["1 USD/day", "2 USD/day"]},
        {"budgets": "1 USD/day"},
        {"above_budgets": []},
        {"limits": [f"1/{seconds}s" for seconds in range(1, 17)]},
        {"name": 1},
        {"name": "\ud800"},
        {"above": []},
        {"id": "x"},
    ],
)
def test_what_its_parent_has_not_it_cannot_have(make_play: Callable[..., Playbook], wishes: dict[str, Any]) -> None:
    play = make_play(rate_limit=",".join(f"1/{seconds}s" for seconds in range(1, 17)),
                     global_rate_limit=",".join(f"1/{seconds}s" for seconds in range(1, 17)),
                     concurrency_limit=1, global_concurrency_limit=1)  # fmt: skip
    now_s = time.time()
    scope = Scope(["api"], ["GET"], ["/chat"])
    root = play.admission.issue(now_s, scope=scope, ttl_s=3600)[0].encode()
    parent = child_of(play, root, limits=["1/40s"])[0]
    ask(play.client, b"POST", b"/tokens", b"X-Api-Key: " + parent, body=json.dumps(wishes).encode())
    play.client.problem(400, "bad_request")


def test_its_budgets_come_on_top_of_its_parents(make_play: Callable[..., Playbook]) -> None:
    play = make_play(budget="5 USD/hour", global_budget="90 USD/hour")
    child, _ = child_of(play, play.token, budgets=["1 USD/hour", "200 tokens/minute"])
    grandchild, _ = child_of(play, child)
    labels = [
        [budget.label for budget in play.admission.authenticate(token, time.time()).budgets]
        for token in (play.token, child, grandchild)
    ]
    assert labels == [
        ["1h-USD", "global-1h-USD"],
        ["1h-USD", "1m-tokens", "parent-1h-USD", "global-1h-USD"],
        ["parent-1h-USD", "parent-1m-tokens", "parent2-1h-USD", "global-1h-USD"],
    ]


def test_it_lasts_no_longer(play: Playbook) -> None:
    parent, claims = play.admission.issue(time.time(), ttl_s=3600)
    ends = [child_of(play, parent.encode(), **wishes)[1]["expires_at"] for wishes in ({}, {"ttl": 0}, {"ttl": "1m"})]
    assert claims.expires_at_s is not None
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(claims.expires_at_s))
    assert (ends[:2], ends[2] < moment) == ([moment, moment], True)
    endless = play.admission.issue(time.time(), ttl_s=0)[0].encode()
    assert child_of(play, endless, ttl=0)[1]["expires_at"] is None


def test_the_fourth_generation_is_the_last(play: Playbook) -> None:
    token = play.token
    for generation in range(2, 5):
        token, members = child_of(play, token, limits=[f"{generation}/hour"])
        assert members["id"].count(".") == generation - 1
    play.token = token
    assert passes(play)[b"ratelimit-policy"] == (
        b'"hour";q=4;w=3600, "parent-hour";q=3;w=3600, "parent2-hour";q=2;w=3600, "parent3-minute";q=60;w=60'
    )
    ask(play.client, b"POST", b"/tokens", b"X-Api-Key: " + token)
    assert b"4 generations" in play.client.problem(400, "bad_request").body


@pytest.mark.parametrize("ended", [0, 1, 2])
def test_who_is_revoked_ends_with_all_that_was_made_from_it(play: Playbook, ended: int) -> None:
    tokens = [play.token]
    for _ in range(2):
        tokens.append(child_of(play, tokens[-1])[0])
    ids = [id_of(play, token) for token in tokens]
    play.loop.run_until_complete(play.store.revoke(ids[ended], 3600))  # as another instance does
    for number, token in enumerate(tokens):
        play.token = token
        if number < ended:
            passes(play)
        else:
            play.client.sends(play.request(b"GET", b"/api/x"))
            play.client.problem(401, "token_revoked")
            ask(play.client, b"POST", b"/tokens", b"X-Api-Key: " + token)
            play.client.problem(401, "token_revoked")
    assert play.dials == (1 if ended else 0)
    ask(play.client, b"GET", b"/admin/tokens")
    listed = {one["id"]: one for one in json.loads(play.client.answer().body)["tokens"]}
    assert [listed[one]["revoked"] for one in ids] == [number >= ended for number in range(3)]
    assert [listed[one]["parent"] for one in ids] == [None, *ids[:2]]


@pytest.mark.parametrize("ended", [0, 1])
def test_nothing_is_made_from_what_another_instance_has_revoked(play: Playbook, ended: int) -> None:
    tokens = [play.token, child_of(play, play.token)[0]]
    play.loop.run_until_complete(play.store.revoke(id_of(play, tokens[ended]), 3600))
    ask(play.client, b"POST", b"/tokens", b"X-Api-Key: " + tokens[1])  # the first that is heard of it here
    play.client.problem(401, "token_revoked")


@pytest.mark.parametrize("is_known", [True, False])
def test_that_a_parent_is_revoked_is_remembered_while_the_store_is_lost(play: Playbook, *, is_known: bool) -> None:
    parent, play.token = play.token, child_of(play, play.token)[0]
    passes(play)
    play.token, child = parent, play.token
    play.loop.run_until_complete(play.admission.revoke(id_of(play, play.token), None, now_s=time.time()))
    play.store.holds = True
    if not is_known:
        play.admission._subjects.clear()
    play.token = child
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.problem(401, "token_revoked")


def test_it_takes_a_token(play: Playbook) -> None:
    ask(play.client, b"POST", b"/tokens")
    play.client.problem(401, "token_missing")
    ask(play.client, b"POST", b"/tokens", b"X-Api-Key: gw_x.y")
    play.client.problem(401, "token_invalid")
    ask(play.client, b"GET", b"/tokens", b"X-Api-Key: " + play.token)
    assert play.client.problem(405, "method_not_allowed").value(b"allow") == b"POST"
    for target in (b"/tokens?", b"/tokens/", b"//tokens"):
        ask(play.client, b"POST", target, b"X-Api-Key: " + play.token)
        play.client.problem(404, "not_found")
