"""The rule of `SPEND_GUARD`: what is usual, and what is many times that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.budgets.budget import NANO
from gateway.budgets.pace import FLOOR, MIN_REQUESTS, MOST_WAIT_US, SEGMENTS, SPANS, Level, Pace, SpendGuard

if TYPE_CHECKING:
    from collections.abc import Iterable

S = 1_000_000
MINUTE, HOUR, DAY = 60 * S, 3600 * S, 86_400 * S
CENT = NANO // 100
GUARD = SpendGuard(10, 5 * MINUTE)
T = 20_000 * DAY


def spent(pairs: Iterable[tuple[int, int]], guard: SpendGuard = GUARD) -> Pace:
    pace = Pace()
    for at_us, atoms in pairs:
        pace.spend(guard, atoms, at_us)
    return pace


def steady(hours: int = 24, each: int = CENT, every_us: int = MINUTE) -> list[tuple[int, int]]:
    """A cent a minute, five in a window, until now."""
    return [(T - at_us, each) for at_us in range(hours * HOUR, 0, -every_us)]


@pytest.mark.parametrize(
    ("times", "level"), [(9, Level.USUAL), (10, Level.WARN), (15, Level.SLOW), (19, Level.SLOW), (20, Level.STOP)]
)
def test_it_warns_then_slows_then_stops(times: int, level: Level) -> None:
    pace = spent(steady())
    for _ in range(times - 1):  # what it did in the window before counts once
        pace.spend(GUARD, 5 * CENT, T)
    pace.spend(GUARD, 2 * CENT, T)
    reading = pace.read(GUARD, T)
    assert reading.level is level
    assert reading.usual == pytest.approx(5 * CENT, rel=0.01)
    assert (reading.wait_us > 0) is (level >= Level.SLOW)


def test_the_more_the_longer_a_request_waits_and_never_beyond_the_most() -> None:
    pace = spent(steady())
    waits = []
    for _ in range(300):
        pace.spend(GUARD, CENT // 2, T)
        reading = pace.read(GUARD, T)
        if reading.level is Level.SLOW:
            waits.append(reading.wait_us)
    assert waits == sorted(waits)
    assert 0 <= waits[0] < waits[-1] <= MOST_WAIT_US
    assert len(set(waits)) > 10


def test_it_opens_when_it_says_it_will_and_not_before() -> None:
    pace = spent(steady())
    for at in range(5):
        pace.spend(GUARD, 30 * CENT, T + at * 20 * S)
    now_us = T + 100 * S
    reading = pace.read(GUARD, now_us)
    assert reading.level is Level.STOP
    assert pace.read(GUARD, now_us + reading.wait_us - 1).level is Level.STOP
    assert pace.read(GUARD, now_us + reading.wait_us).level < Level.STOP


def test_nobody_is_held_to_what_is_not_known_yet() -> None:
    young = spent([(T - 4 * MINUTE, CENT)] * 1000)
    assert young.read(GUARD, T) == (Level.USUAL, 1000 * CENT, None, 0)
    few = spent([(T - (20 - number) * MINUTE, CENT) for number in range(MIN_REQUESTS - 6)])
    few.spend(GUARD, 1000 * CENT, T)
    assert few.read(GUARD, T).usual is None


def test_a_few_expensive_requests_over_half_a_day_are_a_history() -> None:
    pace = spent([(T - number * HOUR, 50 * CENT) for number in range(SPANS // 4 + 1, 0, -1)])
    pace.spend(GUARD, 1000 * CENT, T)
    assert pace.read(GUARD, T).level is Level.STOP


def test_who_comes_back_from_a_weekend_is_not_held_to_having_spent_nothing() -> None:
    pace = spent(steady())
    monday = T + 2 * DAY
    pace.spend(GUARD, 100 * CENT, monday)
    assert pace.read(GUARD, monday) == (Level.USUAL, 100 * CENT, None, 0)
    for at in range(60):
        pace.spend(GUARD, 100 * CENT, monday + at * 10 * S)
    reading = pace.read(GUARD, monday + 10 * MINUTE)
    assert reading.usual is not None, "half of that is known by then"
    assert reading.usual == pytest.approx(reading.spent, rel=0.25)


def test_small_money_never_trips_it() -> None:
    pace = spent(steady(each=1))
    pace.spend(GUARD, FLOOR - 100, T)
    assert pace.read(GUARD, T).level is Level.USUAL
    pace.spend(GUARD, 100, T)
    assert pace.read(GUARD, T).level is Level.WARN


def test_an_instance_that_sees_a_share_of_all_comes_to_the_same() -> None:
    whole, half = Pace(), Pace()
    for at_us, atoms in [*steady(), (T, 60 * CENT)]:
        whole.spend(GUARD, atoms, at_us)
        half.spend(GUARD, atoms, at_us, share=0.5)
    assert whole.read(GUARD, T).level is half.read(GUARD, T).level is Level.WARN


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3 * DAY), st.integers(0, 100 * CENT)), max_size=80),
    st.sampled_from([SpendGuard(2, MINUTE), GUARD, SpendGuard(1000, DAY)]),
    st.randoms(use_true_random=False),
)
def test_it_is_what_a_count_from_scratch_says_in_whatever_order_it_learns(
    pairs: list[tuple[int, int]], guard: SpendGuard, random: object
) -> None:
    pairs = sorted((T + at_us, atoms) for at_us, atoms in pairs)
    now_us = pairs[-1][0] if pairs else T
    reading = spent(pairs, guard).read(guard, now_us)
    window = now_us // guard.segment_us - SEGMENTS + 1
    assert reading.spent == sum(atoms for at_us, atoms in pairs if at_us // guard.segment_us >= window)
    assert spent(reversed(pairs), guard).read(guard, now_us) == reading
    assert reading.wait_us <= max(guard.window_us, MOST_WAIT_US)
    if reading.spent < FLOOR or reading.usual is None:
        assert reading.level is Level.USUAL
    elif reading.level is not Level.USUAL:
        assert reading.spent >= guard.times * reading.usual


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 1000), st.integers(1, 24 * 60))
def test_who_keeps_its_pace_is_never_warned(cents: int, window_minutes: int) -> None:
    guard = SpendGuard(2, window_minutes * MINUTE)
    pace = spent(((T - at * window_minutes * MINUTE // 4, cents * CENT) for at in range(400, 0, -1)), guard)
    assert pace.read(guard, T).level is Level.USUAL


def test_what_it_remembers_is_bounded() -> None:
    pace = Pace()
    for at in range(5000):
        pace.spend(GUARD, CENT, T + at * MINUTE)
        assert len(pace._window.parts) <= SEGMENTS
        assert len(pace._history.parts) <= SPANS
    assert pace.read(GUARD, T + 5000 * MINUTE + DAY) == (Level.USUAL, 0, None, 0)
    assert pace._window.parts == pace._history.parts == {}
