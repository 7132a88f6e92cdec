"""Registering is no way round a limit: whoever has no admin key gets 60 tries a minute for an address."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from gateway.proxy.peer import Peer, peer_of
from tests.proxy.test_endpoints import ADMIN, ADMIN_KEY, ELSEWHERE, PAGES, ask, minted

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Client, Playbook


def tries(client: Client, *lines: bytes) -> int:
    ask(client, b"POST", b"/register", *lines)
    return client.answer().status


def test_the_sixty_first_in_a_minute_is_a_429_that_says_when_to_come_back(play: Playbook) -> None:
    for _ in range(60):
        ask(play.client, b"POST", b"/register")
        minted(play.client.answer())
    ask(play.client, b"POST", b"/register")
    refusal = play.client.problem(429, "rate_limited")
    assert b"gw_" not in refusal.body
    assert refusal.value(b"ratelimit-policy") == b'"minute";q=60;w=60'
    assert refusal.value(b"ratelimit") == b'"minute";r=0;t=61'
    assert (refusal.value(b"retry-after"), refusal.value(b"x-ratelimit-limit")) == (b"61", b"60")
    assert tries(play.connect(("127.0.0.1", 1))) == 429  # another connection is no other address
    assert tries(play.connect("")) == 201
    play.pass_time(61)
    assert tries(play.connect()) == 201


@pytest.mark.parametrize("line", [ADMIN + b"x", b"X: none", PAGES[0]])
def test_failures_count_and_the_admin_is_not_counted(make_play: Callable[..., Playbook], line: bytes) -> None:
    play = make_play(admin_key=ADMIN_KEY.decode())
    client = play.connect(ELSEWHERE)
    assert [tries(client, line) for _ in range(61)] == [403] * 60 + [429]
    assert [tries(client, ADMIN) for _ in range(12)] == [201] * 12


def test_who_goes_on_after_that_keeps_no_store_busy_and_is_told_how_long_it_takes(play: Playbook) -> None:
    assert [tries(play.client) for _ in range(61)] == [201] * 60 + [429]
    play.pass_time(20)
    asked = play.store.asked
    for client in (play.connect(), play.connect()):
        ask(client, b"POST", b"/register")
        refusal = client.problem(429, "rate_limited")
        assert refusal.value(b"ratelimit") == b'"minute";r=0;t=41'
        assert refusal.value(b"retry-after") == b"41"
    assert play.store.asked == asked
    assert tries(play.connect("")) == 201
    play.pass_time(41)
    assert tries(play.connect()) == 201


def test_who_has_a_token_makes_as_many_of_it_and_no_more(make_play: Callable[..., Playbook]) -> None:
    play = make_play(admin_key=ADMIN_KEY.decode())
    child = play.token
    for number in range(60):
        key = b"X-Api-Key: " + (child if number % 2 else play.token)  # children count for the same address
        ask(play.client, b"POST", b"/tokens", key)
        made = minted(play.client.answer())["token"].encode()
        child = child if number else made
    for client in (play.client, play.connect(("127.0.0.1", 1))):
        ask(client, b"POST", b"/tokens", b"X-Api-Key: " + play.token)
        refusal = client.problem(429, "rate_limited")
        assert (refusal.value(b"retry-after"), refusal.value(b"x-ratelimit-limit")) == (b"61", b"60")
    ask(play.client, b"POST", b"/tokens", b"X-Api-Key: gw_x.y")  # what is no token is not even counted
    play.client.problem(401, "token_invalid")
    ask(play.connect(ELSEWHERE), b"POST", b"/tokens", b"X-Api-Key: " + play.token)
    ask(play.client, b"GET", b"/admin/tokens", ADMIN)
    assert len(json.loads(play.client.answer().body)["tokens"]) == 62
    assert tries(play.client, ADMIN) == 201
    assert play.used() == 0
    play.pass_time(61)
    later = play.connect()
    ask(later, b"POST", b"/tokens", b"X-Api-Key: " + play.token)
    minted(later.answer())


def test_nothing_that_a_client_says_makes_it_another(play: Playbook) -> None:
    statuses = [tries(play.client, b"X-Forwarded-For: 10.0.0.%d" % number) for number in range(61)]
    assert statuses == [403] * 60 + [429]


def test_an_address_that_somebody_has_revoked_gets_a_whole_answer(play: Playbook) -> None:
    """It is counted under a name, and any name can be revoked."""
    ask(play.client, b"DELETE", b"/admin/tokens/register-127-0-0-1")
    assert play.client.answer().status == 200
    ask(play.client, b"POST", b"/register")
    play.client.problem(401, "token_revoked")


def test_a_lost_store_is_a_503(play: Playbook) -> None:
    play.store.holds = True
    ask(play.client, b"POST", b"/register")
    play.store.lose()
    play.client.problem(503, "store_unavailable")


def test_who_leaves_while_the_store_decides_leaves_nothing_behind(play: Playbook) -> None:
    play.store.holds = True
    ask(play.client, b"POST", b"/register")
    play.client.resets()
    play.store.decide()


@pytest.mark.parametrize(
    ("peername", "peer"),
    [
        (("127.0.0.1", 1), Peer("127-0-0-1", True)),
        (("::ffff:127.0.0.1", 1, 0, 0), Peer("127-0-0-1", True)),
        (("203.0.113.7", 1), Peer("203-0-113-7", False)),
        (("::1", 1, 0, 0), Peer("0000-0000-0000-0000", True)),
        (("2001:db8:1:2:3::4", 1, 0, 0), Peer("2001-0db8-0001-0002", False)),
        (("2001:db8:1:2::5", 1, 0, 0), Peer("2001-0db8-0001-0002", False)),
        (("fe80::1%eth0", 1, 0, 2), Peer("fe80-0000-0000-0000", False)),
        ("", Peer("unix", True)),
        (b"\0name", Peer("unix", True)),
        (None, Peer("gone", False)),
    ],
)
def test_whose_address_it_is(peername: object, peer: Peer) -> None:
    assert peer_of(peername) == peer
