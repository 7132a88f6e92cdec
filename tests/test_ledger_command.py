"""`GET /admin/ledger`, and `gateway ledger` on top of it: all of it is told, whatever somebody wrote into it."""

from __future__ import annotations

import csv
import http.client
import io
import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from gateway.budgets.spending import Mark
from gateway.budgets.told import read_told, spelled_us, told
from gateway.cli import main
from gateway.ledger.table import COLUMNS
from gateway.ledger_pages import PAGE
from tests.kit.ledger import HOUR_US, FakeLedger, entry, reserved, serving_ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.budgets.spending import Entry

NOW_US = time.time_ns() // 1000
KEY = "an-admin-key-of-32-characters-ok"


class Served:
    """A gateway with a ledger, and what the command says of it."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.ledger = FakeLedger()
        self.url = ""
        self._capsys = capsys

    def run(self, *arguments: str, code: int = 0) -> str:
        assert main([*arguments, "--url", self.url]) == code
        out, err = self._capsys.readouterr()
        assert bool(err) is bool(code)
        return out or err

    def ask(self, target: str, method: str = "GET", key: str = KEY) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=20)
        connection.request(method, target, headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        members: dict[str, Any] = json.loads(answer.read())
        connection.close()
        return answer.status, members


@pytest.fixture(scope="module")
def served_once() -> Iterator[tuple[FakeLedger, str]]:
    ledger = FakeLedger()
    with serving_ledger(ledger, KEY) as url:
        yield ledger, url


@pytest.fixture
def served(
    served_once: tuple[FakeLedger, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Served:
    one = Served(capsys)
    one.ledger, one.url = served_once
    one.ledger.settled, one.ledger.reserved, one.ledger.asked = [], [], 0
    monkeypatch.setenv("ADMIN_KEY", KEY)
    return one


def recent(id_: str, ago_us: int = HOUR_US, **others: Any) -> Entry:
    return entry(id_, NOW_US - ago_us, **others)


def under_way(id_: str, **others: Any) -> Entry:
    return reserved(id_, NOW_US - HOUR_US, **others)


# --- the endpoint ----------------------------------------------------------------------------------------------------


def test_entries_and_reservations_are_told_as_they_are(served: Served) -> None:
    settled = recent("a-1", cost={"USD": 12_345, "tokens": 46}, reserved={"USD": 20_000_000, "tokens": 900})
    held = under_way("b-2")
    served.ledger.settled, served.ledger.reserved = [settled], [held]
    status, members = served.ask("/admin/ledger?since=24h")
    assert status == 200
    assert served.ask(members["next"]) == (200, {"entries": [], "open": [], "next": None})
    assert (read_told(members["entries"][0]), read_told(members["open"][0])) == (settled, held._replace(cost={}))
    assert members["entries"][0]["cost"] == {"USD": "0.000012345", "tokens": "46"}
    assert (members["open"][0]["mark"], members["open"][0]["at"]) == ("open", None)


def test_pages_follow_one_another_and_miss_nothing(served: Served) -> None:
    served.ledger.settled = [recent(f"r-{number}", HOUR_US - number // 3) for number in range(2 * PAGE + 7)]
    target: str | None = "/admin/ledger?since=24h"
    found, pages = [], 0
    while target is not None:
        _, members = served.ask(target)
        assert len(members["entries"]) <= PAGE + 2
        found += [one["request"] for one in members["entries"]]
        target, pages = members["next"], pages + 1
    assert found == [one.id for one in served.ledger.settled]
    assert pages == 4


def test_a_token_is_told_apart_with_those_made_from_it(served: Served) -> None:
    served.ledger.settled = [recent(name, token=name) for name in ("a", "a.b", "ab", "c")]
    served.ledger.reserved = [under_way(one.id, token=one.token) for one in served.ledger.settled]
    _, members = served.ask("/admin/ledger?token=a")
    assert [[one["token"] for one in members[kind]] for kind in ("entries", "open")] == [["a", "a.b"]] * 2


def test_one_of_the_two_kinds_alone(served: Served) -> None:
    served.ledger.settled, served.ledger.reserved = [recent("a")], [under_way("b")]
    for which, kinds in (("only", [0, 1]), ("no", [1, 0])):
        _, members = served.ask(f"/admin/ledger?open={which}")
        assert [len(members["entries"]), len(members["open"])] == kinds
    assert served.ledger.asked == 1


@pytest.mark.parametrize("query", ["since=never", "since=2026", "open=yes", "since=1h&since=2h", "x=1", "since", "&"])
def test_a_query_that_is_none_is_refused(served: Served, query: str) -> None:
    status, members = served.ask(f"/admin/ledger?{query}")
    assert (status, members["error"]["code"]) == (400, "bad_request")


def test_releasing_says_what_it_was(served: Served) -> None:
    held, assumed = under_way("b-2"), recent("c-3", mark=Mark.ASSUMED)
    served.ledger.settled, served.ledger.reserved = [recent("a-1"), assumed], [held]
    assert served.ask("/admin/ledger/b-2", "DELETE") == (200, told(held))
    assert served.ask("/admin/ledger/c-3", "DELETE") == (200, told(assumed))
    for request in ("a-1", "b-2", "none", "%62-2", ""):
        assert served.ask(f"/admin/ledger/{request}", "DELETE")[1]["error"]["code"] == "not_found"
    assert [one.mark for one in served.ledger.settled] == [Mark.EXACT, Mark.RELEASED, Mark.RELEASED]


def test_both_are_for_admins(served: Served) -> None:
    served.ledger.reserved = [under_way("b-2")]
    for target, method in (("/admin/ledger", "GET"), ("/admin/ledger/b-2", "DELETE")):
        assert served.ask(target, method, "another-key-of-32-characters-long")[0] == 403
        assert served.ask(target, "POST")[0] == 405
    assert served.ledger.reserved


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_table_with_what_it_was_in_all(served: Served) -> None:
    served.ledger.settled = [
        recent("a-1"),
        recent("a-2", mark=Mark.ESTIMATED, cost={"USD": 5_000_000, "tokens": 7}, path="/embeddings"),
    ]
    served.ledger.reserved = [under_way("b-1")]
    lines = served.run("ledger").splitlines()
    at = spelled_us(NOW_US - HOUR_US)[:19] + "Z"
    assert [line.split() for line in lines[:4]] == [
        ["settled", "request", "token", "target", "model", "cost", "mark", "status", "what"],
        [at, "a-1", "agent", "api", "gpt-5", "0.01", "USD", "exact", "200", "POST", "/chat/completions"],
        [at, "a-2", "agent", "api", "gpt-5", "0.005", "USD,", "7", "tokens", "estimated", "200", "POST", "/embeddings"],
        ["open", "b-1", "agent", "api", "gpt-5", "0.02", "USD", "held", "open", "-", "POST", "/chat/completions"],
    ]
    assert lines[4:] == [
        "2 settled: 0.015 USD, 7 tokens",
        "  1 exact: 0.01 USD",
        "  1 estimated: 0.005 USD, 7 tokens",
        "1 open: 0.02 USD held",
    ]


def test_an_empty_ledger_says_so(served: Served) -> None:
    assert served.run("ledger") == "0 settled: nothing\n"


def test_only_what_is_open(served: Served) -> None:
    served.ledger.settled, served.ledger.reserved = [recent("a")], [under_way("b")]
    printed = served.run("ledger", "--open")
    assert " b " in printed
    assert " a " not in printed


def test_since_and_until(served: Served) -> None:
    served.ledger.settled = [recent(str(hours), hours * HOUR_US) for hours in range(30, 0, -1)]
    members = json.loads(served.run("ledger", "--json", "--since", "5h", "--until", "2h"))
    assert [one["request"] for one in members["entries"]] == ["4", "3", "2"]
    since = spelled_us(NOW_US - 2 * HOUR_US)
    members = json.loads(served.run("ledger", "--json", "--since", since))
    assert [one["request"] for one in members["entries"]] == ["2", "1"]


def test_a_cost_that_was_mended_later_counts_once(served: Served) -> None:
    served.ledger.settled = [
        recent("a", 3_000_000, mark=Mark.ASSUMED, cost={"USD": 20_000_000}),
        recent("a", 1_000_000),
    ]
    assert served.run("ledger").splitlines()[-1] == "1 settled: 0.01 USD"


def test_what_was_settled_between_two_looks_counts_once(served: Served) -> None:
    served.ledger.settled, served.ledger.reserved = [recent("a")], [under_way("a"), under_way("b")]
    told_of = json.loads(served.run("ledger", "--json"))
    assert [[one["request"] for one in told_of[kind]] for kind in ("entries", "open")] == [["a"], ["b"]]


def test_csv_has_a_fixed_head_and_nothing_that_a_spreadsheet_would_run(served: Served) -> None:
    served.ledger.settled = [
        recent("a-1", model='=HYPERLINK("http://h";"x")', path="/x,\r\n\x1b[2J", token="-t", target="@SUM(1)"),
        recent("a-2", cost={"USD": 1, "tokens": 46}, upstream_id="+1", model="\uff1d1", path="/a;=1+1;b"),
    ]
    served.ledger.reserved = [under_way("b-1")]
    printed = served.run("ledger", "--csv")
    assert set(printed) - set("\r\n\uff1d") <= set(map(chr, range(32, 127)))
    head, *rows = list(csv.reader(io.StringIO(printed, newline=""), strict=True))
    assert tuple(head) == COLUMNS
    first, second, opened = (dict(zip(head, row, strict=True)) for row in rows)
    assert first["model"] == '\'=HYPERLINK("http://h";"x")'
    assert (first["path"], first["token"], first["target"]) == ("/x,???[2J", "'-t", "'@SUM(1)")
    assert (second["cost_usd"], second["cost"]) == ("0.000000001", "0.000000001 USD, 46 tokens")
    assert (second["model"], second["path"]) == ("'\uff1d1", "/a;'=1+1;b")
    assert (second["upstream_request"], second["input"], second["output"]) == ("'+1", "12", "34")
    assert (opened["mark"], opened["at"], opened["cost_usd"], opened["reserved_usd"]) == ("open", "", "", "0.02")


def test_a_terminal_obeys_nothing_of_it(served: Served) -> None:
    served.ledger.settled = [recent("a-1", model="\x1b]0;owned\x07", path="/" + "x" * 500, upstream_id="\u202e")]
    printed = served.run("ledger")
    assert all(line.isprintable() and len(line) < 250 for line in printed.splitlines())


def test_many_pages_are_one_answer(served: Served) -> None:
    served.ledger.settled = [recent(f"r-{number}", HOUR_US - number) for number in range(2 * PAGE + 1)]
    rows = served.run("ledger", "--csv").splitlines()
    assert len(rows) == 2 * PAGE + 2


def test_releasing_by_hand(served: Served) -> None:
    served.ledger.reserved = [under_way("b-1")]
    assert served.run("ledger", "release", "b-1") == "released b-1: 0.02 USD of token agent\n"
    assert served.run("ledger", "release", "b-1", code=1) == (
        "gateway: no reservation of request 'b-1' is open, or was assumed\n"
    )


def test_what_is_said_before_release_counts_too(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    served.ledger.reserved = [under_way("b-1")]
    assert main(["ledger", "--url", served.url, "release", "b-1"]) == 0
    assert capsys.readouterr().out.startswith("released b-1")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--since", "yesterday"], "--since: 'yesterday' is neither how long ago nor when"),
        (["--since", "1h", "--until", "2h"], "--until: is not after --since"),
    ],
)
def test_options_that_nothing_can_be_done_with(served: Served, arguments: list[str], says: str) -> None:
    assert says in served.run("ledger", *arguments, code=2)


def test_without_the_key_it_says_what_is_missing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADMIN_KEY")
    assert "ADMIN_KEY" in served.run("ledger", code=1)
