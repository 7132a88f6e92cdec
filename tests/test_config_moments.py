"""How long ago, or when: what `--since` takes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.budgets.told import read_us, spelled_us
from gateway.config.moments import moment_us

NOW_US = 1_764_190_000_000_000  # 2025-11-26T20:46:40Z


@pytest.mark.parametrize(
    ("text", "ago_s"),
    [
        ("24h", 86_400),
        ("7d", 7 * 86_400),
        ("1.5s", 1.5),
        ("2025-11-26", 20 * 3600 + 46 * 60 + 40),
        ("2025-11-26T20:46:39.5Z", 0.5),
        ("2025-11-26T20:46:39", 1),
        ("2025-11-26T21:46:40+01:00", 0),
        ("2025-11-26T20:46:41Z", -1),
    ],
)
def test_what_is_taken(text: str, ago_s: float) -> None:
    assert moment_us(text, NOW_US) == NOW_US - ago_s * 1_000_000


@pytest.mark.parametrize("text", ["1950-01-01", "0001-01-01T00:00:00+14:00"])
def test_before_all_time_is_its_beginning(text: str) -> None:
    assert moment_us(text, NOW_US) == 0


@pytest.mark.parametrize(
    "text", ["", "2025", "20251126", "yesterday", "-24h", "24 h", "0h", "2025-13-01", "99999999999d"]
)
def test_what_is_neither(text: str) -> None:
    with pytest.raises(ValueError, match="neither how long ago nor when"):
        moment_us(text, NOW_US)


@given(st.integers(0, 4_000_000_000_000_000))
@settings(max_examples=100, deadline=None)
def test_times_are_spelled_to_the_microsecond(moment: int) -> None:
    assert read_us(spelled_us(moment)) == moment
