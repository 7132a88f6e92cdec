"""The promise of the sliding window, against all intervals."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gateway.limits import Policy, parse_limits
from gateway.limits.rule import State, decide
from gateway.limits.window import Window


@given(
    quota=st.integers(1, 5),
    window_s=st.sampled_from([1, 7, 60, 3600]),
    start_us=st.integers(0, 10**15),
    gaps=st.lists(st.floats(0, 1.5), max_size=150),
)
def test_no_interval_of_the_window_holds_more_than_the_quota(
    quota: int, window_s: int, start_us: int, gaps: list[float]
) -> None:
    policy = Policy("x", quota, window_s * 1_000_000)
    # Gaps around what a client that keeps asking leaves, from none to more than a whole window for the quota.
    steps_us = (int(gap * policy.window_us / quota) for gap in gaps)
    windows: tuple[State, ...] = (Window(),)
    admitted_us = []
    for now_us in itertools.accumulate(steps_us, initial=start_us):
        decision, windows = decide((policy,), windows, now_us)
        if decision.admitted:
            admitted_us.append(now_us)
    for first_us, beyond_us in zip(admitted_us, admitted_us[quota:], strict=False):
        assert beyond_us - first_us >= policy.window_us


@given(quota=st.integers(1, 4), offsets=st.lists(st.integers(0, 59_999_999), min_size=1, max_size=10))
def test_who_waits_as_told_gets_in_and_no_place_is_more_than_a_segment_late(quota: int, offsets: list[int]) -> None:
    policy = Policy("minute", quota, 60_000_000)
    windows: tuple[State, ...] = (Window(),)
    admitted_us = []
    for now_us in sorted(offsets):
        decision, windows = decide((policy,), windows, now_us)
        if decision.admitted:
            admitted_us.append(now_us)
            continue
        early, _ = decide((policy,), windows, now_us + decision.reset_us - 1)
        assert not early.admitted
        in_time, _ = decide((policy,), windows, now_us + decision.reset_us)
        assert in_time.admitted
        # The place that comes free is the one taken a quota of admissions ago.
        late_us = now_us + decision.reset_us - (admitted_us[-quota] + policy.window_us)
        assert 0 <= late_us <= policy.segment_us


def test_a_lowered_quota_waits_until_enough_has_left() -> None:
    windows: tuple[State, ...] = (Window(),)
    for second in range(3):
        _, windows = decide(parse_limits("3"), windows, second * 1_000_000)
    decision, _ = decide(parse_limits("1"), windows, 3_000_000)
    assert decision == (False, 0, 0, 60_000_000, 3_000_000, 0)
