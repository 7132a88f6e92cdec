"""The embedded store's accounts against the books that they stand for, about the edges of segments and windows."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.budgets.book import Book
from gateway.budgets.budget import Budget
from gateway.budgets.spending import Ask
from gateway.stores.accounts import Account

S = 1_000_000
HOUR = 3600 * S
T = int(datetime(2026, 10, 24, 21, 59, tzinfo=UTC).timestamp()) * S
BUDGETS = (
    Budget(unit="USD", amount=100, window_us=60 * S),
    Budget(unit="USD", amount=100, calendar="day", zone="Europe/Berlin"),
    Budget(unit="USD", amount=100, calendar="month"),
)
NAMES = st.sampled_from("abcd")
STEPS = st.lists(
    st.one_of(
        *[st.tuples(st.just("pass"), st.sampled_from([1, S - 1, S, 29 * S, 59 * S, 60 * S, 61 * S, HOUR, 25 * HOUR]))]
        * 2,
        st.tuples(st.just("pass"), st.sampled_from([-1, -S, -60 * S, -61 * S, -HOUR, -25 * HOUR])),
        *[st.tuples(st.just("reserve"), st.tuples(NAMES, st.integers(1, 50)))] * 2,
        *[st.tuples(st.just("settle"), st.tuples(NAMES, st.integers(0, 60)))] * 2,
        st.tuples(st.just("abandon"), st.just(0)),
    ),
    min_size=5,
    max_size=40,
)


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda one: one.window_name)
@settings(deadline=None, max_examples=200)
@given(steps=STEPS)
def test_an_account_is_its_book(budget: Budget, steps: list[tuple[str, int | tuple[str, int]]]) -> None:
    account, book, now_us = Account("a:budget", budget), Book(), T
    account.advance(now_us)
    for step, what in steps:
        if isinstance(what, int):
            if step == "pass":
                now_us += what
            starts = budget.starts(now_us // S)
            book = book.at(budget, now_us, starts)
            account.advance(now_us)
            if step == "abandon":
                book = book.abandoned(budget, now_us, starts)
                for id_ in tuple(account.held):
                    account.abandon(id_)
        else:
            id_, atoms = what
            starts = budget.starts(now_us // S)
            if step == "reserve":
                if id_ not in book.assumed:
                    book = book.reserved(id_, atoms, 1 << 62)
                    account.reserve(id_, atoms)
            else:
                book = book.settled(budget, id_, atoms, now_us, starts)
                if (segments := account.settling(id_, atoms, now_us)) is not None:
                    account.settle(id_, segments)
                book = book.at(budget, now_us, starts)
                account.advance(now_us)
        assert tuple(account.spent.items()) == book.spent
        assert account.held == {id_: one.atoms for id_, one in book.held.items()}
        assert account.assumed == book.assumed
        assert account.standing(now_us) == book.standing(budget, now_us, starts)
        for dollars in (0, 1, 30, 70, 100, 101):
            ask = Ask("r", {"USD": dollars}, {"USD": 7}, most=9, least=dollars % 3)
            assert account.room(budget, ask, now_us) == book.room(budget, ask, now_us, starts)
        # Only what counts nothing may be forgotten.
        assert account.is_idle(now_us) is (not book.spent and not book.held)
