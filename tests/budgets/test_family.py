"""Which budgets a token is under."""

from __future__ import annotations

import pytest

from gateway.budgets.family import Forgotten, GatewayBudgets
from gateway.budgets.grammar import parse_budgets, written

GATEWAYS = GatewayBudgets(
    parse_budgets("5 USD/day", zone="Europe/Berlin"),
    parse_budgets("100 USD/month", shared=True, zone="Europe/Berlin"),
    "Europe/Berlin",
)


def told(*generations: tuple[str, ...] | None) -> list[tuple[str, str]]:
    return [(budget.label, written(budget)) for budget in GATEWAYS.of(generations)]


def test_a_token_that_says_nothing_is_under_the_gateways() -> None:
    assert told(None) == [("day-USD", "5 USD/day"), ("global-month-USD", "100 USD/month")]


def test_its_own_stand_in_for_those_of_each_token_and_not_for_those_of_all() -> None:
    assert told(("1 USD/hour", "9 tokens/minute")) == [
        ("1h-USD", "1 USD/1h"),
        ("1m-tokens", "9 tokens/1m"),
        ("global-month-USD", "100 USD/month"),
    ]


def test_a_childs_come_on_top_of_its_parents() -> None:
    assert told(("1 USD/day",), None, ("2 USD/day",)) == [
        ("day-USD", "1 USD/day"),
        ("parent2-day-USD", "2 USD/day"),
        ("global-month-USD", "100 USD/month"),
    ]
    # The first of a family has the gateway's; those made from it only share it.
    assert told(None, ("1 USD/day",), None) == [
        ("parent-day-USD", "1 USD/day"),
        ("parent2-day-USD", "5 USD/day"),
        ("global-month-USD", "100 USD/month"),
    ]


def test_whose_they_are_and_in_which_zone() -> None:
    own, parents, shared = GATEWAYS.of((("1 USD/day",), None))
    assert [budget.owner("a.b") for budget in (own, parents, shared)] == ["a.b", "a", "global"]
    assert {budget.zone for budget in (own, parents, shared)} == {"Europe/Berlin"}


def test_where_budgets_are_forgotten_at_a_restart_none_is_for_a_day() -> None:
    gateways = GatewayBudgets(forgets=True)
    assert len(gateways.of((("1 USD/23h", "9 tokens/minute"),))) == 2
    for text in ("1 USD/day", "1 USD/24h", "1 USD/week", "1 USD/month"):
        with pytest.raises(Forgotten, match=r"^a budget of a day or longer, which takes a STATE_FILE or REDIS_URL"):
            gateways.of((None, (text,)))
        assert len(GATEWAYS.of(((text,),))) == 2


def test_a_text_that_is_no_budget_is_told_of() -> None:
    with pytest.raises(ValueError, match="a budget is missing"):
        GATEWAYS.of(((),))
