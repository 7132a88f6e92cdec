"""What requests cost, as who pays sees it: in `/usage`, `/admin/usage`, at `/usage/requests/ID` and in the log."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from gateway.budgets.budget import NANO
from gateway.metering.costs import CostTable, FixedPrice

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Playbook
    from tests.kit.wire import Message

ODD = NANO // 100 + 1
"""A price that no binary fraction is equal to."""
PRICE = "0.010000001"
FIXED = CostTable(fixed=(FixedPrice(b"*", b"/*", {"USD": ODD, "credits": 3 * NANO}),))


@pytest.fixture
def make(make_play: Callable[..., Playbook]) -> Callable[..., Playbook]:
    def make(budget: str | None = "1 USD/hour", **config: Any) -> Playbook:
        return make_play(cost=FIXED, budget=budget, **config)

    return make


@pytest.fixture
def play(make: Callable[..., Playbook]) -> Playbook:
    return make()


def asks(play: Playbook, target: bytes, token: bytes | None = None) -> Message:
    client = play.connect()
    bearer = b"" if token == b"" else b"Authorization: Bearer " + (token or play.token) + b"\r\n"
    client.sends(b"GET " + target + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n" + bearer + b"\r\n")
    return client.answer()


def told(play: Playbook, target: bytes, token: bytes | None = None) -> dict[str, Any]:
    answer = asks(play, target, token)
    assert (answer.status, answer.value(b"cache-control")) == (200, b"no-store")
    members: dict[str, Any] = json.loads(answer.body)
    return members


def everywhere(play: Playbook) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The budgets and the cost that the token is told, and that the overview says the same."""
    own, overview = told(play, b"/usage"), told(play, b"/admin/usage", b"")
    (token,) = overview["tokens"]
    assert token["cost"] == overview["totals"]["cost"] == overview["targets"]["api"]["cost"] == own["cost"]
    for budget, same in zip(own["budgets"], token["budgets"], strict=True):
        assert budget | {"reset": 0} == same | {"reset": 0}
    return own["budgets"], own["cost"]


def passes(play: Playbook, *lines: bytes) -> bytes:
    """Let a request pass, and return its id."""
    play.client.sends(play.request(b"GET", b"/api/maps?key=private", *lines))
    play.upstream.request()
    play.upstream.answers(b"a map", b"200 OK", b"X-Request-Id: up-1")
    id_ = play.client.answer().value(b"x-gateway-request")
    assert id_ is not None
    return id_


def child_of(play: Playbook, token: bytes, **wishes: Any) -> bytes:
    parent = play.admission.authenticate(token, time.time())
    return play.admission.issue_child(parent, time.time(), **wishes)[0].encode()


# --- budgets ---------------------------------------------------------------------------------------------------------


def test_a_budget_is_told_to_the_last_digit(make: Callable[..., Playbook]) -> None:
    play = make("1 USD/hour,100 credits/90s")
    unused = told(play, b"/usage")
    assert unused["cost"] == {}
    assert unused["budgets"][0] == {
        "name": "1h-USD",
        "unit": "USD",
        "window": "1h",
        "shared": False,
        "limit": "1",
        "spent": "0",
        "held": "0",
        "remaining": "1",
        "reset": 0.0,
    }
    passes(play)
    (dollars, credits_), cost = everywhere(play)
    assert cost == {"USD": PRICE, "credits": "3"}
    assert (dollars["spent"], dollars["held"], dollars["remaining"]) == (PRICE, "0", "0.989999999")
    assert 3600 <= dollars["reset"] <= 3661
    assert (credits_["name"], credits_["spent"], credits_["limit"]) == ("90s-credits", "3", "100")


def test_what_is_under_way_is_held(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    (budget,), cost = everywhere(play)
    assert (budget["spent"], budget["held"], budget["remaining"], cost) == ("0", PRICE, "0.989999999", {})
    play.upstream.answers()
    (budget,), cost = everywhere(play)
    assert (budget["spent"], budget["held"], cost["USD"]) == (PRICE, "0", PRICE)


def test_a_child_sees_its_parents_budgets_and_what_the_parent_spent_of_them(play: Playbook) -> None:
    passes(play)
    child = child_of(play, play.token, budgets=["0.5 USD/hour"])
    own = told(play, b"/usage", child)
    assert [(one["name"], one["spent"]) for one in own["budgets"]] == [("1h-USD", "0"), ("parent-1h-USD", PRICE)]
    assert own["cost"] == {}


def test_without_a_cost_there_is_nothing_to_tell(make_play: Callable[..., Playbook]) -> None:
    play = make_play()
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers()
    play.client.answer()
    assert everywhere(play) == ([], {})


def test_nothing_sent_and_an_error_of_the_apis_add_nothing(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers(b"no", b"500 Oops")
    play.client.answer()
    play.upstream.ends()
    play.dial_error = OSError("refused")
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.problem(502, "upstream_unreachable")
    (budget,), cost = everywhere(play)
    assert (budget["spent"], budget["held"], cost) == ("0", "0", {})


def test_an_answer_that_is_read_on_behind_its_client_is_counted_when_it_is_over(make: Callable[..., Playbook]) -> None:
    play = make(on_disconnect="drain:10s")
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
    play.client.resets()
    assert everywhere(play)[1] == {}
    told(play, b"/usage")  # by now nothing of the token's is in flight
    play.upstream.sends(b"cd")
    assert everywhere(play)[1]["USD"] == PRICE


# --- one request -----------------------------------------------------------------------------------------------------


def of(play: Playbook, id_: bytes, token: bytes | None = None) -> dict[str, Any]:
    return told(play, b"/usage/requests/" + id_, token)


def test_a_request_is_told_with_what_it_cost(play: Playbook) -> None:
    id_ = passes(play)
    entry = of(play, id_)
    assert entry["began"] <= entry["at"]
    assert entry | {"began": 0, "at": 0} == {
        "request": id_.decode(),
        "began": 0,
        "at": 0,
        "token": play.admission.authenticate(play.token, time.time()).id,
        "target": "api",
        "model": "",
        "method": "GET",
        "path": "/maps",
        "status": 200,
        "mark": "exact",
        "cost": {"USD": PRICE, "credits": "3"},
        "reserved": {"USD": PRICE, "credits": "3"},
        "units": {},
        "upstream_request": "up-1",
    }


def test_one_that_is_under_way_says_so(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    (open_,) = play.loop.run_until_complete(play.store.ledger.open())
    entry = of(play, open_.id.encode())
    assert (entry["mark"], entry["at"], entry["cost"], entry["reserved"]["USD"]) == ("open", None, {}, PRICE)


def test_a_parent_sees_its_childrens_requests_and_nobody_else_does(play: Playbook) -> None:
    child, other = child_of(play, play.token), play.admission.issue(time.time())[0].encode()
    sibling, parent, play.token = child_of(play, play.token), play.token, child
    id_ = passes(play)
    assert of(play, id_, child) == of(play, id_, parent)
    for token in (sibling, other):
        answer = asks(play, b"/usage/requests/" + id_, token)
        assert (answer.status, answer.value(b"x-gateway-error")) == (404, b"not_found")
        assert id_ not in answer.body


@pytest.mark.parametrize("id_", [b"5f0c3a9e12d4-1", b"", b"%2e%2e", b"a/b", b"*", b"x" * 101])
def test_one_that_nobody_knows(play: Playbook, id_: bytes) -> None:
    passes(play)
    answer = asks(play, b"/usage/requests/" + id_)
    assert (answer.status, answer.value(b"x-gateway-error")) == (404, b"not_found")


def test_a_token_that_was_revoked_is_told_nothing(play: Playbook) -> None:
    id_ = passes(play)
    token_id = play.admission.authenticate(play.token, time.time()).id
    play.loop.run_until_complete(play.store.revoke(token_id, 60))  # by another instance
    answer = asks(play, b"/usage/requests/" + id_)
    assert (answer.status, answer.value(b"x-gateway-error")) == (401, b"token_revoked")


def test_who_has_no_token_is_told_nothing(play: Playbook) -> None:
    id_ = passes(play)
    assert asks(play, b"/usage/requests/" + id_, b"").status == 401
    assert asks(play, b"/usage/requests/" + id_, b"gw_" + b"x" * 40).status == 401


# --- the access log --------------------------------------------------------------------------------------------------


def logged(play: Playbook) -> list[dict[str, Any]]:
    play.pass_time(0.25)
    return [json.loads(line) for line in play.logged.read()]


def test_a_line_of_the_log_has_what_its_request_cost(make: Callable[..., Playbook]) -> None:
    play = make(access_log="json")
    # So that heads begin alike, and the log remembers what it says of such.
    ids = [passes(play, b"X-Number: %d" % number).decode() for number in range(9)]
    lines = logged(play)
    assert [line["request"] for line in lines] == ids
    assert [line["cost"] for line in lines] == [{"USD": PRICE, "credits": "3"}] * 9
    assert [(line["path"], line["status"], line["error"]) for line in lines] == [("/api/maps", 200, None)] * 9
    assert list(lines[0])[-2:] == ["request", "cost"]


def test_a_line_of_one_that_went_wrong_has_it_too_and_one_that_was_not_sent_has_none(
    make: Callable[..., Playbook],
) -> None:
    play = make("0.02 USD/hour", access_log="json")
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers(b"no", b"500 Oops")
    play.client.answer()
    play.client.sends(play.request(b"POST", b"/api/x", body=b"{}"))
    play.upstream.request()
    play.upstream.resets()
    play.client.problem(502, "upstream_unreachable")
    play.client.sends(play.request(b"GET", b"/api/x"))
    assert play.client.answer().status == 429
    failed, lost, refused = logged(play)
    assert (failed["status"], failed["cost"]) == (500, {})
    assert (lost["status"], lost["cost"]) == (502, {"USD": PRICE, "credits": "3"})
    assert of(play, lost["request"].encode())["mark"] == "estimated"
    assert "request" not in refused
    assert "cost" not in refused


def test_a_line_of_one_that_is_read_on_says_where_to_look(make: Callable[..., Playbook]) -> None:
    play = make(access_log="json", on_disconnect="drain:10s")
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
    play.client.resets()
    (line,) = logged(play)
    assert (line["error"], line["cost"]) == ("client_gone", None)
    play.upstream.sends(b"cd")
    assert of(play, line["request"].encode())["cost"]["USD"] == PRICE


def test_the_common_log_has_no_money_in_it(make: Callable[..., Playbook]) -> None:
    play = make(access_log="common")
    passes(play)
    play.pass_time(0.25)
    (line,) = play.logged.read()
    assert line.endswith('"GET /api/maps HTTP/1.1" 200 5')
