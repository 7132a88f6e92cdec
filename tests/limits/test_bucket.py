"""What a token bucket promises."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gateway.limits import parse_limits
from gateway.limits.bucket import Bucket
from gateway.limits.rule import State, decide

RATES = st.sampled_from(["3/minute;bucket", "7/second;bucket", "10/30s;bucket", "1/hour;bucket"])


@given(rate=RATES, start_us=st.integers(0, 10**15), gaps=st.lists(st.floats(0, 3), max_size=150))
def test_no_interval_holds_more_than_the_burst_and_what_came_back_within_it(
    rate: str, start_us: int, gaps: list[float]
) -> None:
    (policy,) = parse_limits(rate)
    states: tuple[State, ...] = (Bucket(),)
    admitted_us = []
    for now_us in itertools.accumulate((int(gap * policy.interval_us) for gap in gaps), initial=start_us):
        decision, states = decide((policy,), states, now_us)
        if decision.admitted:
            admitted_us.append(now_us)
    for first, first_us in enumerate(admitted_us):
        for last, last_us in enumerate(admitted_us[first:], 1):
            assert last <= policy.quota + (last_us - first_us) // policy.interval_us
    # Never faster than was said, rounding included.
    assert policy.interval_us * policy.quota >= policy.window_us


@given(rate=RATES, offsets=st.lists(st.floats(0, 5), min_size=1, max_size=30))
def test_who_waits_as_told_gets_in_and_not_a_microsecond_sooner(rate: str, offsets: list[float]) -> None:
    (policy,) = parse_limits(rate)
    states: tuple[State, ...] = (Bucket(),)
    for offset in sorted(offsets):
        now_us = int(offset * policy.interval_us)
        decision, states = decide((policy,), states, now_us)
        if not decision.admitted:
            assert not decide((policy,), states, now_us + decision.reset_us - 1)[0].admitted
            assert decide((policy,), states, now_us + decision.reset_us)[0].admitted
        elif decision.remaining < policy.quota - 1:
            sooner, later = (
                decide((policy,), states, now_us + decision.reset_us + by_us)[0].remaining for by_us in (-1, 0)
            )
            assert later == max(sooner, -1) + 1 or not decision.remaining
