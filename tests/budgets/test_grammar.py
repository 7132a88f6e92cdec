"""Budgets as users write them: what each text means, what is refused with which words, and the way back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.budgets.budget import MAX_ATOMS, NANO, Budget
from gateway.budgets.grammar import MAX_BUDGETS, all_written, parse_amount, parse_budgets, written


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("5 USD/day", Budget(unit="USD", amount=5 * NANO, calendar="day")),
        ("100 USD/month", Budget(unit="USD", amount=100 * NANO, calendar="month")),
        ("7 USD/week", Budget(unit="USD", amount=7 * NANO, calendar="week")),
        ("0.50 USD/day", Budget(unit="USD", amount=NANO // 2, calendar="day")),
        ("0.000000001 USD/hour", Budget(unit="USD", amount=1, window_us=3_600_000_000)),
        ("200000 tokens/minute", Budget(unit="tokens", amount=200_000, window_us=60_000_000)),
        ("9 bytes/second", Budget(unit="bytes", amount=9, window_us=1_000_000)),
        ("1000 credits/24h", Budget(unit="credits", amount=1000 * NANO, window_us=86_400_000_000)),
        ("1.5 map-tiles2 / 5m", Budget(unit="map-tiles2", amount=1_500_000_000, window_us=300_000_000)),
        (" 5  USD/90s ", Budget(unit="USD", amount=5 * NANO, window_us=90_000_000)),
    ],
)
def test_what_a_text_means(text: str, budget: Budget) -> None:
    assert parse_budgets(text) == (budget,)


def test_several_for_all_tokens_in_a_time_zone() -> None:
    day, minute = parse_budgets("5 USD/day, 100 tokens/minute", shared=True, zone="Europe/Berlin")
    assert (day.label, day.zone, day.shared) == ("global-day-USD", "Europe/Berlin", True)
    # Of a window that slides, no zone says anything: it is the same budget wherever the gateway is.
    assert (minute.label, minute.zone, minute.shared) == ("global-1m-tokens", "UTC", True)


def test_a_budget_of_the_same_window_in_another_unit_is_another() -> None:
    assert len(parse_budgets("5 USD/day,5 tokens/day,5 USD/24h")) == 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "a budget is missing"),
        ("5 USD/day,", "a budget is missing"),
        ("5 USD", "'5 USD' has no window behind a '/'"),
        ("5/day", "'5' has no unit: USD, tokens, bytes, or a name of your own"),
        ("5USD/day", "'5USD' has no unit"),
        ("$5/day", "'$5' is not a number, a space and a unit: of money it is like 5 USD"),
        ("USD 5/day", "'5' is not a unit: USD, tokens"),
        ("1,000 USD/day", "a number has no comma in it: it is 1000, not 1,000"),
        ("1_000 USD/day", "'1_000' is not a number, whole or decimal"),
        ("1'000 USD/day", "is not a number, whole or decimal"),
        ("-5 USD/day", "'-5' is not a number"),
        ("+5 USD/day", "'+5' is not a number"),
        ("1e3 USD/day", "'1e3' is not a number"),
        (".5 USD/day", "'.5' is not a number"),
        ("5. USD/day", "'5.' is not a number"),
        ("\u0665 USD/day", "is not a number"),
        ("5.0000000001 USD/day", "'5.0000000001' has more than 9 decimal places"),
        ("0.5 tokens/day", "'0.5' is not a whole number, and tokens have no parts"),
        ("1.0 bytes/day", "'1.0' is not a whole number, and bytes have no parts"),
        ("0 USD/day", "a budget is more than nothing"),
        ("9999999999 USD/day", "'9999999999' is too much"),
        ("9007199254740992 tokens/day", "is too much"),
        ("5 EUR/day", "'EUR' is not a unit: prices are in USD, and so is money"),
        ("5 usd/day", "'usd' is not a unit: prices are in USD"),
        ("5 dollars/day", "'dollars' is not a unit: prices are in USD"),
        ("5 token/day", "'token' is spelled tokens"),
        ("5 Credits/day", "'Credits' is not a unit: USD, tokens, bytes, or a name of a-z, 0-9 and '-'"),
        ("5 a b/day", "'a b' is not a unit"),
        ("5 -a/day", "'-a' is not a unit"),
        ("5 " + "a" * 33 + "/day", "is not a unit"),
        ("5 USD/year", "'year' is no window (day, week or month; second, minute, hour or like 60s, 5m, 24h)"),
        ("5 USD/1d", "'1d' is no window"),
        ("5 USD/", "'' is no window"),
        ("5 USD/0s", "a window is longer than 0s"),
        ("5 USD/745h", "31 days at most"),
        ("5 USD/day,6 USD/day", "two budgets have the same window and unit, 'day-USD'"),
        ("5 USD/minute,6 USD/60s", "two budgets have the same window and unit, '1m-USD'"),
        (",".join(f"1 u{number}/day" for number in range(MAX_BUDGETS + 1)), "there are 9 budgets, more than 8"),
    ],
)
def test_what_is_refused_with_which_words(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=r"; e\.g\. 5 USD") as caught:
        parse_budgets(text)
    assert problem in str(caught.value)
    assert str(caught.value).endswith("; e.g. 5 USD/day or 200000 tokens/minute,100 USD/month")


def test_amounts_without_a_window_may_be_nothing() -> None:
    assert parse_amount("0.005 USD") == ("USD", 5_000_000)
    assert parse_amount("0 credits") == ("credits", 0)
    assert parse_amount("12 tokens") == ("tokens", 12)


def test_the_way_back() -> None:
    texts = ["5 USD/day", "0.5 USD/week", "200000 tokens/1m", "1000 credits/24h", "1 bytes/90s"]
    assert [written(budget) for budget in parse_budgets(",".join(texts))] == texts
    assert all_written(parse_budgets("5 USD/day,7 tokens/minute")) == "5 USD/day, 7 tokens/1m"


@settings(max_examples=50)
@given(
    unit=st.sampled_from(["USD", "tokens", "credits"]),
    amount=st.integers(1, MAX_ATOMS - 1),
    window=st.sampled_from(["day", "month"]) | st.integers(1, 31 * 86_400),
)
def test_every_budget_is_read_as_it_is_written(unit: str, amount: int, window: str | int) -> None:
    if isinstance(window, int):
        budget = Budget(unit=unit, amount=amount, window_us=window * 1_000_000)
    else:
        budget = Budget(unit=unit, amount=amount, calendar="day" if window == "day" else "month")
    assert parse_budgets(written(budget)) == (budget,)
