"""`gateway simulate`: what other limits and budgets would have refused of what is in the ledger."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.budgets.budget import NANO
from gateway.budgets.grammar import parse_budgets
from gateway.budgets.replay import Replayed, replay
from gateway.budgets.spending import Entry, Mark
from gateway.cli import main
from gateway.limits import parse_limits
from tests.kit.ledger import FakeLedger, entry, serving_ledger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MINUTE_US = 60_000_000
SECOND_US = 1_000_000
START_US = 1_764_190_000 * SECOND_US  # 2025-11-26T20:46:40Z
MANY = settings(max_examples=60, deadline=None)


def asked(id_: object, at_s: float, usd: float = 1, *, took_s: float = 0.5, **others: Any) -> Entry:
    """Return a request that began so many seconds after the start, and cost so many USD, as was reserved for it."""
    began_us = START_US + int(at_s * SECOND_US)
    amount = {"USD": int(usd * NANO)}
    known = {"began_us": began_us, "reserved": amount, "cost": amount, **others}
    return entry(str(id_), began_us + int(took_s * SECOND_US), **known)


def tried(entries: Sequence[Entry], budget: str = "", limit: str = "", zone: str = "UTC") -> Replayed:
    budgets = parse_budgets(budget, zone=zone) if budget else ()
    return replay(entries, parse_limits(limit) if limit else (), budgets)


def refused(replayed: Replayed) -> list[str]:
    assert replayed.total.refused == len(replayed.refused)
    return sorted(replayed.refused)


# --- the replay ------------------------------------------------------------------------------------------------------


def test_a_budget_refuses_what_it_has_no_room_for() -> None:
    found = tried([asked(number, number) for number in range(5)], "3 USD/hour")
    assert refused(found) == ["3", "4"]
    total = found.total
    assert (total.requests, total.cost["USD"], total.saved["USD"]) == (5, 5 * NANO, 2 * NANO)
    assert total.first_us == START_US + 3 * SECOND_US
    assert dict(total.by) == {"1h-USD": 2}


def test_what_is_under_way_is_reserved() -> None:
    slow = asked("slow", 0, took_s=10, reserved={"USD": 3 * NANO})
    assert refused(tried([slow, asked("meanwhile", 5), asked("after", 11)], "3 USD/hour")) == ["meanwhile"]


def test_what_is_settled_at_the_very_time_makes_room() -> None:
    first = asked("first", 0, 1, took_s=1, reserved={"USD": 2 * NANO})
    assert refused(tried([first, asked("next", 1, 1)], "2 USD/hour")) == []


def test_what_is_refused_is_charged_nowhere() -> None:
    requests = [asked("a", 0, 2), asked("too much", 1, 5), asked("b", 2, 1), asked("c", 3, 1)]
    found = tried(requests, "3 USD/hour", "3/minute")
    assert refused(found) == ["c", "too much"]


def test_a_limit_refuses_and_comes_free_again() -> None:
    found = tried([asked(number, number * 25) for number in range(6)], limit="2/minute")
    assert refused(found) == ["2", "5"]
    assert dict(found.total.by) == {"minute": 2}


def test_a_shadow_is_tried_as_if_it_were_none() -> None:
    assert refused(tried([asked(number, number) for number in range(3)], limit="2/minute;shadow")) == ["2"]


def test_each_token_has_its_own_and_children_count_for_their_parent() -> None:
    names = ["a", "a.b", "a.b.c", "d", "a"]
    found = tried([asked(number, number, token=name) for number, name in enumerate(names)], "2 USD/hour")
    assert refused(found) == ["2", "4"]
    assert {name: (fate.requests, fate.refused) for name, fate in found.tokens.items()} == {
        "a": (2, 1),
        "a.b": (1, 0),
        "a.b.c": (1, 1),
        "d": (1, 0),
    }
    assert list(found.tokens)[:2] == ["a", "a.b.c"]


def test_days_are_the_zones() -> None:
    requests = [asked("before", 0), asked("after", 4 * 3600)]
    assert refused(tried(requests, "1 USD/day")) == []
    assert refused(tried(requests, "1 USD/day", zone="America/Los_Angeles")) == ["after"]
    month = [asked("november", 0), asked("december", 5 * 86_400), asked("too late", 5 * 86_400 + 1)]
    assert refused(tried(month, "1 USD/month")) == ["too late"]


def test_every_day_begins_anew() -> None:
    week = [asked(f"{day}-{hour}", day * 86_400 + hour * 3600) for day in range(7) for hour in (0, 2)]
    assert refused(tried(week, "1 USD/day")) == [f"{day}-2" for day in range(7)]


def test_only_its_unit_counts() -> None:
    both = {"USD": NANO, "tokens": 50}
    requests = [asked(number, number, cost=both, reserved=both) for number in range(3)]
    assert refused(tried(requests, "100 tokens/hour")) == ["2"]
    assert refused(tried(requests, "1 credits/hour")) == []


def test_one_that_could_never_pass() -> None:
    assert dict(tried([asked("a", 0, 5)], "4 USD/day,100 USD/week").total.by) == {"day-USD": 1}


def test_what_took_no_time_at_all_is_charged() -> None:
    requests = [asked(number, 0, took_s=0, reserved={"USD": 2 * NANO}) for number in range(3)]
    assert refused(tried(requests, "3 USD/hour")) == ["2"]


def test_what_was_released_saves_nothing_but_was_reserved() -> None:
    requests = [asked("a", 0, 2, took_s=10, cost={}, mark=Mark.RELEASED), asked("b", 5), asked("c", 11)]
    found = tried(requests, "2 USD/hour")
    assert (refused(found), found.total.saved["USD"]) == (["b"], NANO)


requests = st.lists(
    st.tuples(
        st.integers(0, 600_000),  # milliseconds after the start
        st.integers(0, 90_000),  # for how long
        st.integers(0, 10**9),  # atoms reserved
        st.integers(0, 100),  # per cent of it that it cost
        st.sampled_from(["a", "a.b", "c"]),
    ),
    max_size=40,
)


def made(drawn: list[tuple[int, int, int, int, str]]) -> list[Entry]:
    return [
        asked(
            number,
            began_ms / 1000,
            took_s=took_ms / 1000,
            reserved={"USD": atoms},
            cost={"USD": atoms * share // 100},
            token=token,
        )
        for number, (began_ms, took_ms, atoms, share, token) in enumerate(drawn)
    ]


RULES = [("2 USD/60s", ""), ("3 USD/5m,5 USD/day", "7/minute"), ("", "4/30s,9/minute;bucket"), ("1 USD/day", "")]


@pytest.mark.parametrize(("budget", "limit"), RULES)
@given(drawn=requests)
@MANY
def test_the_limits_that_were_in_force_refuse_nobody(
    budget: str, limit: str, drawn: list[tuple[int, int, int, int, str]]
) -> None:
    entries = made(drawn)
    gone = tried(entries, budget, limit).refused
    passed = [one for one in entries if one.id not in gone]
    again = tried(passed, budget, limit)
    assert (again.refused, again.total.requests) == (frozenset(), len(passed))


@given(drawn=requests)
@MANY
def test_half_of_what_was_spent_is_never_exceeded_in_any_window(drawn: list[tuple[int, int, int, int, str]]) -> None:
    entries = [one._replace(token="a") for one in made(drawn)]
    half = max(sum(one.cost["USD"] for one in entries) // 2, 1)
    budget = f"{half / NANO:.9f} USD/60s"
    found = tried(entries, budget)
    passed = sorted((one for one in entries if one.id not in found.refused), key=lambda one: one.at_us)
    for last in passed:
        window = [one for one in passed if last.at_us - MINUTE_US < one.at_us <= last.at_us]
        assert sum(one.cost["USD"] for one in window) <= half
    whole = tried(entries, f"{half / NANO:.9f} USD/day")
    assert sum(one.cost["USD"] for one in entries if one.id not in whole.refused) <= half
    assert found.total.saved["USD"] == sum(one.cost["USD"] for one in entries if one.id in found.refused)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    mine = [asked(f"m-{number}", number, 0.25, token="mine") for number in range(4)]
    yours = [asked(f"y-{number}", number + 60, 0.75, token="yours") for number in range(4)]
    with serving_ledger(FakeLedger([*mine, *yours])) as url:
        yield url


def run(url: str, *arguments: str, code: int = 0) -> None:
    assert main(["simulate", "--url", url, "--since", "2025-11-26T20:00:00Z", *arguments]) == code


def test_what_it_says(served: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(served, "--budget", "2 USD/day", "--limit", "3/minute", "--until", "2025-11-26T21:00:00Z")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "2 USD/day, 3/minute for each token, 2025-11-26T20:00:00Z to 2025-11-26T21:00:00Z",
        "8 requests of 2 tokens cost 4 USD",
        "3 would have been refused, the first at 2025-11-26T20:46:43Z: saved 1.75 USD, left 2.25 USD",
    ]
    assert [line.split() for line in lines[4:7]] == [
        ["token", "requests", "refused", "first", "by", "saved", "of"],
        ["yours", "4", "2", "2025-11-26T20:47:42Z", "day-USD", "2", "1.5", "USD", "3", "USD"],
        ["mine", "4", "1", "2025-11-26T20:46:43Z", "minute", "1", "0.25", "USD", "1", "USD"],
    ]
    assert "What a refused client would have done next is not known" in lines[-2]


def test_json_has_every_token(served: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(served, "--budget", "2 USD/day", "--timezone", "Europe/Berlin", "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["budgets"], told["limits"], told["timezone"]) == ("2 USD/day", "", "Europe/Berlin")
    assert (told["requests"], told["refused"], told["saved"], told["cost"]) == (8, 2, {"USD": "1.5"}, {"USD": "4"})
    assert [(one["token"], one["refused"], one["first_refused"]) for one in told["tokens"]] == [
        ("yours", 2, "2025-11-26T20:47:42.000000Z"),
        ("mine", 0, None),
    ]
    assert told["tokens"][0]["refused_by"] == {"day-USD": 2}
    assert "not known" in " ".join(told["notes"])


def test_one_token_alone(served: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(served, "--limit", "1/minute", "--token", "mine")
    assert "4 requests of 1 token cost" in capsys.readouterr().out


def test_nobody_refused_is_said(served: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(served, "--budget", "100 USD/day", "--budget", "1000 tokens/minute")
    assert "\nnone would have been refused\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "has nothing to try"),
        (["--budget", "2/day"], "--budget: "),
        (["--limit", "many"], "--limit: "),
        (["--budget", "2 USD/day", "--timezone", "Mars/Olympus"], "--timezone: "),
        (["--budget", "2 USD/day", "--timezone", "../../etc/passwd"], "--timezone: "),
    ],
)
def test_what_cannot_be_tried_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("http://127.0.0.1:1", *arguments, code=2)
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
