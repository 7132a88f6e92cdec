"""`/admin/tokens`: what was issued is listed, and what is ended there is refused at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.kit.playbook import Playbook
from tests.proxy.test_endpoints import ADMIN, ADMIN_KEY, ELSEWHERE, PAGES, ask, minted

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Client


@pytest.fixture
def guarded(make_play: Callable[..., Playbook]) -> Playbook:
    return make_play(admin_key=ADMIN_KEY.decode())


def listed(client: Client, *lines: bytes) -> dict[str, dict[str, Any]]:
    ask(client, b"GET", b"/admin/tokens", *lines)
    answer = client.answer()
    assert answer.status == 200, answer
    return {one["id"]: one for one in json.loads(answer.body)["tokens"]}


def test_what_was_issued_is_listed_and_never_the_token_itself(guarded: Playbook) -> None:
    ask(guarded.client, b"POST", b"/register", ADMIN, body=b'{"name": "worker", "ttl": "1h"}')
    made = minted(guarded.client.answer())
    one = listed(guarded.client, ADMIN)[made["id"]]
    assert (one["name"], one["expires_at"], one["revoked"]) == ("worker", made["expires_at"], False)
    assert made["token"] not in json.dumps(one)


def test_what_another_issued_is_listed_once_it_was_used(play: Playbook) -> None:
    other = Playbook()  # signs with the same secret, and counts elsewhere
    play.token, token_id = other.token, other.admission.authenticate(other.token, 0.0 + other.context.clock.wall_s).id
    other.close()
    assert token_id not in listed(play.client)
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers()
    assert play.client.answer().status == 200
    assert token_id in listed(play.client)


def test_tokens_that_one_is_made_into_push_no_issued_one_off_the_list(
    guarded: Playbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.stores.lines.MAX_LINES", 8)
    ask(guarded.client, b"POST", b"/register", ADMIN, body=b'{"ttl": "1h"}')
    issued = minted(guarded.client.answer())["id"]
    for _ in range(20):
        ask(guarded.client, b"POST", b"/tokens", b"X-Api-Key: " + guarded.token)
        child = minted(guarded.client.answer())["id"]
    known = listed(guarded.client, ADMIN)
    assert {issued, child} <= known.keys()
    assert len(known) <= 2 + 8


def test_a_token_that_is_ended_is_refused_at_once_and_shown_as_revoked(guarded: Playbook) -> None:
    token_id = guarded.admission.authenticate(guarded.token, guarded.context.clock.wall_s).id
    ask(guarded.client, b"DELETE", b"/admin/tokens/" + token_id.encode(), ADMIN)
    answer = guarded.client.answer()
    assert (answer.status, json.loads(answer.body)) == (200, {"id": token_id, "revoked": True})
    guarded.client.sends(guarded.request(b"GET", b"/api/x"))
    guarded.client.problem(401, "token_revoked")
    assert guarded.dials == 0
    asked = guarded.store.asked
    for target in (b"/api/x", b"/usage", b"/api/x"):  # nor is the store kept busy by who goes on
        guarded.client.sends(guarded.request(b"GET", target))
        guarded.client.problem(401, "token_revoked")
    assert guarded.store.asked == asked
    assert listed(guarded.client, ADMIN)[token_id]["revoked"] is True


REQUESTS = [(b"GET", b"/admin/tokens"), (b"DELETE", b"/admin/tokens/abc")]


@pytest.mark.parametrize(("method", "target"), REQUESTS)
def test_with_an_admin_key_everybody_needs_it(guarded: Playbook, method: bytes, target: bytes) -> None:
    for peer in (("127.0.0.1", 1), ELSEWHERE):
        client = guarded.connect(peer)
        for line in (b"X: no key", ADMIN + b"x", b"Authorization: Bearer " + guarded.token):
            ask(client, method, target, line)
            client.problem(403, "not_allowed")
        ask(client, method, target, ADMIN)
        assert client.answer().status == 200


@pytest.mark.parametrize(("method", "target"), REQUESTS)
def test_without_one_it_is_for_programs_on_this_machine(play: Playbook, method: bytes, target: bytes) -> None:
    client = play.connect(ELSEWHERE)
    ask(client, method, target)
    client.problem(403, "not_allowed")
    for line in PAGES:
        ask(play.client, method, target, line)
        play.client.problem(403, "not_allowed")
    ask(play.client, method, target)
    assert play.client.answer().status == 200


@pytest.mark.parametrize("spelled", [b"", b"global", b"a%20b", b"a/b", b"\x7b", b"a;b"])
def test_what_is_no_id_ends_nothing(guarded: Playbook, spelled: bytes) -> None:
    ask(guarded.client, b"DELETE", b"/admin/tokens/" + spelled, ADMIN)
    guarded.client.problem(404, "not_found")


def test_other_methods_are_told_which_there_are(guarded: Playbook) -> None:
    ask(guarded.client, b"POST", b"/admin/tokens", ADMIN)
    assert guarded.client.problem(405, "method_not_allowed").value(b"allow") == b"GET, HEAD"
    ask(guarded.client, b"GET", b"/admin/tokens/abc", ADMIN)
    assert guarded.client.problem(405, "method_not_allowed").value(b"allow") == b"DELETE"
