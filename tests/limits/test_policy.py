"""The grammar of limits, as a table of what is read and a table of what is refused."""

from __future__ import annotations

import pytest

from gateway.limits import Kind, Policy, parse_concurrency, parse_limits
from gateway.limits.policy import SEGMENTS

SECOND_US = 1_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("60", [("minute", 60, 60)]),
        ("5/second", [("second", 5, 1)]),
        ("7/hour", [("hour", 7, 3600)]),
        ("1000000000/day", [("day", 10**9, 86_400)]),
        ("10/30s", [("30s", 10, 30)]),
        ("10/5m", [("5m", 10, 300)]),
        ("10/2h", [("2h", 10, 7200)]),
        ("10/31d", [("31d", 10, 31 * 86_400)]),
        ("10/60s", [("minute", 10, 60)]),
        ("10/1m", [("minute", 10, 60)]),
        ("10/1s", [("second", 10, 1)]),
        ("10/24h", [("day", 10, 86_400)]),
        ("10/3600s", [("hour", 10, 3600)]),
        ("10/90s", [("90s", 10, 90)]),
        ("10/120s", [("2m", 10, 120)]),
        (" 10/second , 60/minute,1000/day ", [("second", 10, 1), ("minute", 60, 60), ("day", 1000, 86_400)]),
    ],
)
def test_limits_are_read(text: str, expected: list[tuple[str, int, int]]) -> None:
    policies = parse_limits(text)
    assert [(policy.name, policy.quota, policy.window_s) for policy in policies] == expected
    assert not any(policy.shared for policy in policies)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "missing"),
        (" ", "missing"),
        ("60,", "missing"),
        ("0", "1 to 1000000000"),
        ("0/minute", "1 to 1000000000"),
        ("1000000001", "1 to 1000000000"),
        ("9" * 5000, "whole number"),
        ("+5", "whole number"),
        ("-5", "whole number"),
        ("1_000", "whole number"),
        ("1.5", "whole number"),
        ("\u0666\u0660", "whole number"),
        ("/minute", "whole number"),
        ("60 /minute", "whole number"),
        ("60/ minute", "no window"),
        ("60/Minute", "no window"),
        ("60/fortnight", "no window"),
        ("60/", "no window"),
        ("60/30", "no window"),
        ("60/3\u0660s", "no window"),
        ("60/1" + "0" * 5000 + "s", "no window"),
        ("60/0s", "1 second to 31 days"),
        ("60/32d", "1 second to 31 days"),
        ("60/minute,70/60s", "same window"),
        ("60/minute;shadow,70/60s;shadow", "same window"),
        ("60/minute,70/60s;bucket", "same window"),
        ("60/minute;leaky", "no known mode"),
        ("60/minute;", "no known mode"),
        ("60/minute;Bucket", "no known mode"),
        ("60/minute;shadow;shadow", "twice"),
        ("60;bucket/minute", "no known mode"),
        ("10001/second;bucket", "10000 requests a second"),
        (",".join(f"9/{n}s" for n in range(1, 18)), "17 limits, more than 16"),
    ],
)
def test_what_is_refused_says_why_and_gives_an_example(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        parse_limits(text)
    assert "e.g. 60/minute" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("60;bucket", ("minute", Kind.BUCKET, False, 1_000_000)),
        ("7/second;bucket", ("second", Kind.BUCKET, False, 142_858)),
        ("10000/second;bucket", ("second", Kind.BUCKET, False, 100)),
        ("60/minute;shadow", ("minute", Kind.WINDOW, True, 1_000_000)),
        ("60/minute;bucket;shadow", ("minute", Kind.BUCKET, True, 1_000_000)),
        ("60/minute;shadow;bucket", ("minute", Kind.BUCKET, True, 1_000_000)),
    ],
)
def test_modes_are_read(text: str, expected: tuple[str, Kind, bool, int]) -> None:
    (policy,) = parse_limits(text)
    assert (policy.name, policy.kind, policy.shadow, policy.unit_us) == expected


def test_a_shadow_beside_a_limit_of_its_window_has_a_name_and_a_counter_of_its_own() -> None:
    for text in ("60/minute,40/60s;shadow", "40/60s;shadow,60/minute"):
        counters = {(policy.quota, policy.name, policy.counter) for policy in parse_limits(text)}
        assert counters == {(60, "minute", "limit:minute"), (40, "minute-shadow", "limit:minute-shadow")}
    (alone,) = parse_limits("40;shadow")
    (real,) = parse_limits("40")
    assert (alone.name, alone.counter) == (real.name, real.counter)
    (bucket,) = parse_limits("40;bucket")
    assert bucket.counter != real.counter


def test_a_concurrency_limit_is_read() -> None:
    policy = parse_concurrency("10")
    assert (policy.label, policy.quota, policy.kind, policy.shadow) == ("concurrency", 10, Kind.LEASE, False)
    assert parse_concurrency("1000000;shadow").shadow
    shared = parse_concurrency("10", shared=True)
    assert (shared.label, shared.owner("abc"), shared.counter) == ("global-concurrency", "global", "inflight")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "whole number"),
        ("0", "1 to 1000000"),
        ("1000001", "1 to 1000000"),
        ("-1", "whole number"),
        ("9" * 5000, "whole number"),
        ("10/minute", "whole number"),
        ("10;bucket", "not 'shadow'"),
        ("10;shadow;shadow", "not 'shadow'"),
        ("10;", "not 'shadow'"),
    ],
)
def test_what_is_no_concurrency_limit_says_why_and_gives_an_example(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        parse_concurrency(text)
    assert "e.g. 10" in str(caught.value)


def test_a_shared_limit_is_shown_and_counted_as_global() -> None:
    (policy,) = parse_limits("60", shared=True)
    assert (policy.label, policy.owner("abc")) == ("global-minute", "global")
    (policy,) = parse_limits("60")
    assert (policy.label, policy.owner("abc")) == ("minute", "abc")


@pytest.mark.parametrize("subject", ["global", "", "a b", "a:b", "a}", "ü", "a\n"])
def test_a_subject_that_could_reach_anothers_counts_is_refused(subject: str) -> None:
    for shared in (False, True):
        with pytest.raises(ValueError, match="subject"):
            parse_limits("60", shared=shared)[0].owner(subject)


@pytest.mark.parametrize("window_s", [1, 7, 60, 86_400, 31 * 86_400])
def test_segments_cover_the_window_and_hardly_more(window_s: int) -> None:
    policy = Policy("x", 1, window_s * SECOND_US)
    assert 0 <= SEGMENTS * policy.segment_us - policy.window_us < SEGMENTS


@pytest.mark.parametrize(
    ("quota", "window_us"),
    [(0, SECOND_US), (10**9 + 1, SECOND_US), (1, 0), (1, SECOND_US + 1), (1, 32 * 86_400 * SECOND_US)],
)
def test_a_policy_out_of_range_cannot_be_made(quota: int, window_us: int) -> None:
    with pytest.raises(ValueError, match=r"e\.g\."):
        Policy("x", quota, window_us)
