"""The judge of `gateway verify` accuses nobody whom some order of clocks would excuse, and finds who did exceed."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gateway.limits import Policy
from gateway.limits.policy import SEGMENTS
from gateway.verify.judge import DRIFT, Limit, Seen, judge, read_policies, worst_window

WINDOW_US = 1_000_000
SPAN_US = int(WINDOW_US * (1 - DRIFT))
SECOND = Limit("second", 5, 1)

instants = st.integers(0, 5 * WINDOW_US)
sightings = st.lists(st.builds(lambda at, took: Seen(at, at + took), instants, st.integers(0, 2 * WINDOW_US)))


def worst_by_force(admissions: list[Seen], span_us: int) -> int:
    inside = (
        sum(end - span_us <= seen.sent_us and seen.received_us <= end for seen in admissions)
        for end in (seen.received_us for seen in admissions)
    )
    return max(inside, default=0)


def seen_around(at_us: int, before_us: int, after_us: int) -> Seen:
    return Seen(at_us - before_us, at_us + after_us)


@given(sightings, st.integers(1, 2 * WINDOW_US))
def test_the_worst_window_is_the_one_that_counting_them_all_finds(admissions: list[Seen], span_us: int) -> None:
    assert worst_window(admissions, span_us) == worst_by_force(admissions, span_us)


@given(st.lists(st.tuples(instants, st.integers(0, 300_000), st.integers(0, 300_000))))
def test_an_exact_limiter_is_never_accused(asked: list[tuple[int, int, int]]) -> None:
    """Whatever came between a client and the instant of its admission, and however the clients were served in turn."""
    policy = Policy("second", SECOND.quota, WINDOW_US)
    admitted: list[int] = []
    seen: list[Seen] = []
    for at_us, before_us, after_us in sorted(asked):
        # The product's rule by force: what counts at a segment is what came in it and the 60 before.
        segment = at_us // policy.segment_us
        if sum(segment - past // policy.segment_us <= SEGMENTS for past in admitted) < policy.quota:
            admitted.append(at_us)
            seen.append(seen_around(at_us, before_us, after_us))
    assert judge(SECOND, seen).over == 0


@given(
    st.lists(st.integers(0, SPAN_US - 200_000), min_size=SECOND.quota + 1, max_size=20),
    st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 100_000)), min_size=20, max_size=20),
    sightings,
)
def test_a_planted_excess_is_found(burst: list[int], around: list[tuple[int, int]], others: list[Seen]) -> None:
    start_us = 2 * WINDOW_US
    planted = [seen_around(start_us + 100_000 + at, *jitter) for at, jitter in zip(burst, around, strict=False)]
    assert judge(SECOND, [*others, *planted]).over >= len(burst) - SECOND.quota


def test_what_may_have_happened_outside_of_the_window_is_no_excess() -> None:
    inside = [Seen(at, at + 1) for at in range(0, 500_000, 100_000)]
    assert judge(SECOND, inside).worst_window == 5
    # It may have been admitted before the first of them was sent, or more than a window after.
    assert judge(SECOND, [*inside, Seen(-600_000, 400_000)]).over == 0
    assert judge(SECOND, [*inside, Seen(400_000, 1_000_002)]).over == 0
    assert judge(SECOND, [*inside, Seen(400_000, SPAN_US)]).over == 1


def test_two_clocks_may_differ_a_little_on_how_long_a_window_is() -> None:
    rest = [Seen(at, at) for at in (1, 2, 3, 4)]
    assert judge(SECOND, [Seen(0, 0), *rest, Seen(WINDOW_US - 500, WINDOW_US - 500)]).over == 0
    assert judge(SECOND, [Seen(0, 0), *rest, Seen(WINDOW_US - 2000, WINDOW_US - 2000)]).over == 1


@given(st.integers(1, 50), st.integers(1, 200_000))
def test_the_usable_share_is_how_soon_places_come_back(quota: int, late_us: int) -> None:
    limit = Limit("second", quota, 1)
    bursts = [number * (WINDOW_US + late_us) for number in range(4)]
    seen = [Seen(at, at) for at in bursts for _ in range(quota)]
    usable = judge(limit, seen).usable
    assert usable is not None
    assert abs(usable - WINDOW_US / (WINDOW_US + late_us)) < 1e-9


def test_an_outage_does_not_count_for_what_was_usable() -> None:
    bursts = [0, WINDOW_US, 5 * WINDOW_US, 6 * WINDOW_US]
    seen = [Seen(at, at) for at in bursts for _ in range(SECOND.quota)]
    assert judge(SECOND, seen).usable == 0.5
    assert judge(SECOND, seen, [(2 * WINDOW_US, 4 * WINDOW_US)]).usable == 1
    assert judge(SECOND, seen, list(pairwise(bursts))).usable is None
    assert judge(SECOND, seen[: SECOND.quota]).usable is None


def test_policies_are_read_as_the_gateway_writes_them() -> None:
    field = '"second";q=10;w=1, "global-day";q=5000;w=86400'
    assert read_policies(field) == (Limit("second", 10, 1), Limit("global-day", 5000, 86_400))
    assert read_policies("") == ()
    assert read_policies('"concurrency";q=10, "global-concurrency";q=10;w=0') == ()
    # One whose further parameters say something that is not known here is not judged by what is.
    assert read_policies('"minute";q=60;w=60;pk=1, "10s";q=1;w=10') == (Limit("10s", 1, 10),)
