"""The rule for one budget: no window is billed more than it, whenever in its time a request is billed."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.budgets.book import NEVER_US, RETRY_US, Assumed, Book, BudgetStanding, Room
from gateway.budgets.budget import Budget
from gateway.budgets.spending import LEASE_US, Ask

S = 1_000_000
T = int(datetime(2026, 10, 24, 21, 30, tzinfo=UTC).timestamp()) * S
"""Half an hour before a day of 25 hours begins in Berlin; and when a segment of a minute begins."""
MINUTE = Budget(unit="USD", amount=100, window_us=60 * S)
DAY = Budget(unit="USD", amount=100, calendar="day", zone="Europe/Berlin")
DAY_ENDS = int(datetime(2026, 10, 24, 22, tzinfo=UTC).timestamp()) * S


def starts(budget: Budget, now_us: int) -> tuple[int, ...]:
    return budget.starts(now_us // S)


def at(book: Book, now_us: int, budget: Budget = MINUTE) -> Book:
    return book.at(budget, now_us, starts(budget, now_us))


def room(book: Book, ask: Ask, now_us: int, budget: Budget = MINUTE) -> Room:
    return at(book, now_us, budget).room(budget, ask, now_us, starts(budget, now_us))


def spend(book: Book, id_: str, atoms: int, now_us: int, budget: Budget = MINUTE) -> Book:
    book = at(book, now_us, budget).reserved(id_, atoms, now_us + LEASE_US)
    return book.settled(budget, id_, atoms, now_us, starts(budget, now_us))


def stands(book: Book, now_us: int, budget: Budget = MINUTE) -> BudgetStanding:
    return at(book, now_us, budget).standing(budget, now_us, starts(budget, now_us))


def dollars(atoms: int) -> Ask:
    return Ask("r", {"USD": atoms})


# --- what there is room for -------------------------------------------------------------------------------------------


def test_the_whole_budget_may_be_reserved_and_not_an_atom_more() -> None:
    assert room(Book(), dollars(100), T) == Room(0)
    assert room(Book(), dollars(101), T) == Room(-1, NEVER_US)
    assert room(Book().reserved("a", 60, T + LEASE_US), dollars(40), T) == Room(0)
    assert room(Book().reserved("a", 60, T + LEASE_US), dollars(41), T) == Room(-1, RETRY_US)


def test_what_costs_nothing_of_its_unit_passes_even_when_nothing_is_left() -> None:
    book = spend(Book(), "a", 100, T)
    assert room(book, Ask("r", {"tokens": 10**9}), T) == Room(0)
    assert room(book, Ask("r", {}, {"tokens": 5}, most=7, least=7), T) == Room(7)
    assert room(book, Ask("r", {}, {"USD": 5}, most=7), T) == Room(0)


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (Ask("r", {"USD": 10}, {"USD": 3}, most=100, least=1), Room(16)),
        (Ask("r", {"USD": 10}, {"USD": 3}, most=16, least=16), Room(16)),
        (Ask("r", {"USD": 10}, {"USD": 3}, most=9), Room(9)),
        (Ask("r", {"USD": 10}, {"USD": 3}, most=100, least=17), Room(-1, RETRY_US)),
        (Ask("r", {"USD": 10}, {"USD": 3}, most=100, least=31), Room(-1, NEVER_US)),
        (Ask("r", {"USD": 61}, {"USD": 3}, most=100), Room(-1, RETRY_US)),
    ],
)
def test_as_many_output_tokens_are_granted_as_there_is_money_for(ask: Ask, expected: Room) -> None:
    assert room(Book().reserved("a", 40, T + LEASE_US), ask, T) == expected


def test_a_refusal_waits_for_as_many_segments_as_it_takes() -> None:
    book = spend(spend(spend(Book(), "a", 20, T), "b", 30, T + 10 * S), "c", 50, T + 20 * S)
    now_us = T + 30 * S
    assert room(book, dollars(20), now_us) == Room(-1, 31 * S)
    assert room(book, dollars(21), now_us) == Room(-1, 41 * S)
    assert room(book, dollars(50), now_us) == Room(-1, 41 * S)
    assert room(book, dollars(51), now_us) == Room(-1, 51 * S)
    assert room(book, dollars(20), T + 61 * S - 1) == Room(-1, RETRY_US)
    assert room(book, dollars(20), T + 61 * S) == Room(0)


def test_a_calendars_budget_is_there_again_when_the_next_window_begins() -> None:
    book = spend(Book(), "a", 100, T, DAY)
    assert room(book, dollars(1), T + S, DAY) == Room(-1, DAY_ENDS - T - S)
    assert room(book, dollars(100), DAY_ENDS - 1, DAY) == Room(-1, RETRY_US)
    assert room(book, dollars(100), DAY_ENDS, DAY) == Room(0)
    later = spend(book, "b", 100, DAY_ENDS, DAY)
    assert room(later, dollars(1), DAY_ENDS, DAY) == Room(-1, 25 * 3600 * S)


def test_a_lowered_budget_waits_until_enough_has_left() -> None:
    book = spend(spend(Book(), "a", 50, T), "b", 50, T + 10 * S)
    lower = Budget(unit="USD", amount=40, window_us=60 * S)
    assert room(book, dollars(1), T + 20 * S, lower) == Room(-1, 51 * S)


# --- from a reservation to its end ------------------------------------------------------------------------------------


def test_what_is_reserved_counts_in_every_window_until_it_is_settled() -> None:
    book = Book().reserved("a", 100, 1 << 62)
    for now_us in (T, T + 90 * S, T + 3600 * S, DAY_ENDS):
        assert room(book, dollars(1), now_us) == Room(-1, RETRY_US)
        assert room(book, dollars(1), now_us, DAY) == Room(-1, RETRY_US)
    book = at(book, DAY_ENDS, DAY).settled(DAY, "a", 30, DAY_ENDS, starts(DAY, DAY_ENDS))
    assert stands(book, DAY_ENDS, DAY) == (30, 0, 25 * 3600 * S)


def test_it_is_settled_once() -> None:
    book = Book().reserved("a", 100, T + LEASE_US).settled(MINUTE, "a", 30, T, ())
    assert stands(book, T) == (30, 0, 61 * S)
    assert book.settled(MINUTE, "a", 30, T, ()) == book
    assert book.settled(MINUTE, "never reserved", 30, T, ()) == book
    assert Book().reserved("a", 0, T + LEASE_US) == Book()


def test_it_may_cost_more_than_was_reserved_and_is_counted_in_full() -> None:
    book = Book().reserved("a", 10, T + LEASE_US).settled(MINUTE, "a", 130, T, ())
    assert stands(book, T).spent == 130
    assert room(book, dollars(1), T) == Room(-1, 61 * S)


def test_one_that_nobody_renews_is_assumed_when_its_lease_ends_and_leaves_with_its_window() -> None:
    book = Book().reserved("a", 60, T + LEASE_US)
    assert stands(book, T + LEASE_US - 1) == (0, 60, 0)
    assert stands(book, T + LEASE_US) == (60, 0, 61 * S)
    late = T + LEASE_US + 40 * S  # whenever somebody looks, it was then that it ended
    assert at(book, late).assumed == {"a": Assumed(60, (T + LEASE_US) // S)}
    assert stands(book, late) == (60, 0, 21 * S)
    assert at(book, late + 21 * S) == Book()
    day = at(book.reserved("b", 5, DAY_ENDS - S), DAY_ENDS + S, DAY)
    assert day == Book()


def test_a_late_settlement_stands_in_place_of_the_assumption_and_a_release_takes_it_away() -> None:
    book = at(Book().reserved("a", 60, T + LEASE_US), T + 50 * S)
    assert stands(book.settled(MINUTE, "a", 7, T + 50 * S, ()), T + 50 * S) == (7, 0, 61 * S)
    assert book.settled(MINUTE, "a", 0, T + 50 * S, ()) == Book()


def test_one_that_ended_is_there_again_when_it_is_renewed_and_one_of_a_store_that_lost_its_data() -> None:
    book = at(Book().reserved("a", 60, T + LEASE_US), T + 50 * S)
    assert stands(book.renewed("a", 60, T + 80 * S), T + 50 * S) == (0, 60, 0)
    assert stands(Book().renewed("a", 60, T + 80 * S), T + 50 * S) == (0, 60, 0)
    assert stands(Book().reserved("a", 60, T + S).renewed("a", 75, T + 80 * S), T + 50 * S) == (0, 75, 0)


def test_what_a_process_leaves_is_assumed_when_the_next_one_begins() -> None:
    book = spend(Book(), "a", 20, T).reserved("b", 30, 1 << 62).reserved("c", 40, 1 << 62)
    left = at(book, T + 50 * S).abandoned(MINUTE, T + 50 * S, ())
    assert stands(left, T + 50 * S) == (90, 0, 11 * S)
    assert stands(left, T + 61 * S) == (70, 0, 50 * S)
    assert stands(left.settled(MINUTE, "b", 0, T + 61 * S, ()), T + 61 * S) == (40, 0, 50 * S)


def test_a_clock_that_steps_back_brings_no_money() -> None:
    book = spend(spend(Book(), "a", 60, T), "b", 40, T + 20 * S)
    for back_us in (S, 20 * S, 3600 * S):
        now_us = T + 20 * S - back_us
        assert room(book, dollars(1), now_us).granted == -1
        assert stands(book, now_us).spent == 100
    # What is settled then counts in the newest segment, and leaves with it.
    early = at(spend(Book(), "a", 60, T), T - 50 * S).reserved("b", 40, T)
    early = early.settled(MINUTE, "b", 40, T - 50 * S, ())
    assert early.spent == ((T // S, 100),)
    assert at(spend(Book(), "a", 60, DAY_ENDS, DAY), T, DAY).spent == ((DAY_ENDS // S, 60),)


# --- the claim --------------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "reserve", "settle", "settle", "renew"]),
        st.integers(0, 60),  # how much, or which
        st.floats(0, 1),  # of what was reserved, what it costs
        st.floats(0, 1),  # when of its time it is billed
        st.sampled_from([0, 1, S - 1, S, 3 * S, 17 * S, 45 * S, 600 * S, 3600 * S]),
    ),
    min_size=5,
    max_size=60,
)


def billed(budget: Budget, steps: list[tuple[str, int, float, float, int]]) -> list[tuple[int, int]]:
    """Return what a provider bills, when: at some time between when a request left and when it was settled."""
    book, now_us, bills = Book(), T, list[tuple[int, int]]()
    open_: dict[str, tuple[int, int, int, float, float]] = {}

    def bill(id_: str, until_us: int) -> int:
        atoms, began_us, _, share, when = open_.pop(id_)
        cost = int(atoms * share)
        bills.append((began_us + int((until_us - began_us) * when), cost))
        return cost

    for number, (step, amount, share, when, pause_us) in enumerate(steps):
        now_us += pause_us
        book = at(book, now_us, budget)
        for id_, (_, _, ends_us, _, _) in tuple(open_.items()):
            if ends_us <= now_us:  # whoever held it is gone
                bill(id_, ends_us)
        known = list(open_)
        if step == "reserve":
            if room(book, dollars(amount), now_us, budget).granted >= 0:
                book = book.reserved(f"r-{number}", amount, now_us + LEASE_US)
                open_[f"r-{number}"] = (amount, now_us, now_us + LEASE_US, share, when)
        elif known and step == "settle":
            id_ = known[amount % len(known)]
            book = book.settled(budget, id_, bill(id_, now_us), now_us, starts(budget, now_us))
        elif step == "renew":
            for id_, (atoms, began_us, _, share_, when_) in tuple(open_.items()):
                book = book.renewed(id_, atoms, now_us + LEASE_US) if atoms else book
                open_[id_] = (atoms, began_us, now_us + LEASE_US, share_, when_)
    return bills


@settings(deadline=None, max_examples=150)
@given(steps=STEPS)
def test_no_interval_as_long_as_a_sliding_window_is_billed_more(
    steps: list[tuple[str, int, float, float, int]],
) -> None:
    bills = billed(MINUTE, steps)
    for begin_us, _ in bills:
        assert sum(cost for at_us, cost in bills if begin_us <= at_us < begin_us + 60 * S) <= 100


@settings(deadline=None, max_examples=150)
@given(steps=STEPS)
def test_no_day_is_billed_more(steps: list[tuple[str, int, float, float, int]]) -> None:
    days: Counter[str] = Counter()
    for at_us, cost in billed(DAY, steps):
        days[str(datetime.fromtimestamp(at_us / S, ZoneInfo("Europe/Berlin")).date())] += cost
    assert all(total <= 100 for total in days.values())
