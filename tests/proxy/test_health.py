"""The breaker's rule by itself: when it opens, how long it waits, who may try, and what closes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.health import FAILURES, FIRST_WAIT_S, MEANWHILE_S, MOST_WAIT_S, Health

NOW_S = 1000.0


def fail(health: Health, now_s: float = NOW_S) -> bool:
    """Make one attempt that fails; return whether that opened the breaker."""
    attempt = object()
    assert health.left_s(now_s) == 0
    health.begin(attempt)
    opened = health.on_failure(attempt, now_s)
    health.end(attempt)
    return opened


def opened() -> Health:
    health = Health()
    assert [fail(health) for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    return health


def test_it_opens_with_so_many_failures_in_a_row_and_not_before() -> None:
    health = Health()
    for _ in range(FAILURES - 1):
        fail(health)
        assert (health.is_open, health.left_s(NOW_S)) == (False, 0)
    assert fail(health)
    assert (health.is_open, health.left_s(NOW_S)) == (True, FIRST_WAIT_S)


def test_a_success_between_begins_the_count_anew() -> None:
    health = Health()
    for _ in range(3):
        for _ in range(FAILURES - 1):
            assert not fail(health)
        assert not health.on_success()


def test_what_was_given_up_counts_neither_way() -> None:
    health = Health()
    for _ in range(FAILURES - 1):
        fail(health)
    attempt = object()
    health.begin(attempt)
    health.end(attempt)
    assert not health.is_open
    assert fail(health)


def test_the_wait_doubles_up_to_its_most_and_begins_anew_after_a_success() -> None:
    health, now_s, waits = opened(), NOW_S, []
    for _ in range(8):
        waits.append(health.left_s(now_s))
        now_s += waits[-1]
        assert not fail(health, now_s)
    assert waits == [1, 2, 4, 8, 16, MOST_WAIT_S, MOST_WAIT_S, MOST_WAIT_S]
    assert health.on_success()
    for _ in range(FAILURES):
        fail(health, now_s)
    assert health.left_s(now_s) == FIRST_WAIT_S


def test_one_at_a_time_tries_again() -> None:
    health, first, second = opened(), object(), object()
    now_s = NOW_S + FIRST_WAIT_S
    health.begin(first)
    assert health.left_s(now_s) == health.left_s(now_s + 100) == MEANWHILE_S
    health.end(first)  # its client has left
    assert health.left_s(now_s) == 0
    health.begin(second)
    assert health.left_s(now_s) == MEANWHILE_S
    health.end(first)  # says nothing of the second
    assert health.left_s(now_s) == MEANWHILE_S


def test_attempts_that_began_before_it_opened_put_nothing_off_but_may_close_it() -> None:
    health, attempts = Health(), [object() for _ in range(20)]
    for attempt in attempts:
        health.begin(attempt)
    assert [health.on_failure(attempt, NOW_S) for attempt in attempts[:-1]].count(True) == 1
    assert health.left_s(NOW_S) == FIRST_WAIT_S
    assert health.on_success()
    assert not health.is_open


@pytest.mark.parametrize("left_s", [0.001, 0.999])
def test_nobody_tries_before_the_wait_is_over(left_s: float) -> None:
    assert opened().left_s(NOW_S + FIRST_WAIT_S - left_s) == pytest.approx(left_s)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["begins", "fails", "succeeds", "gives up"]),
            st.integers(0, 9),
            st.floats(0, 5, allow_nan=False),
        ),
        max_size=60,
    )
)
def test_whatever_happens_there_is_a_way_out_within_the_longest_wait(story: list[tuple[str, int, float]]) -> None:
    """Orders nobody would think of: there is never more than one who tries, and never none for ever."""
    health, now_s = Health(), NOW_S
    under_way: list[tuple[object, bool]] = []
    for what, which, pause_s in story:
        now_s += pause_s
        if what == "begins":
            if health.left_s(now_s) == 0:
                under_way.append((object(), health.is_open))
                health.begin(under_way[-1][0])
        elif under_way:
            attempt, _ = under_way.pop(which % len(under_way))
            if what == "fails":
                health.on_failure(attempt, now_s)
            elif what == "succeeds":
                assert not (health.on_success() and health.is_open)
                under_way = [(other, False) for other, _ in under_way]
            health.end(attempt)
        assert 0 <= health.left_s(now_s) <= MOST_WAIT_S
        if health.is_open:
            assert [is_probe for _, is_probe in under_way].count(True) <= 1
    for attempt, _ in under_way:
        health.end(attempt)
    assert health.left_s(now_s + MOST_WAIT_S) == 0
