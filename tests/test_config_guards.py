"""The settings of the guards: what resolves to what, how it is shown, and what is refused with which words."""

from __future__ import annotations

import pytest

from gateway.budgets.pace import SpendGuard
from gateway.config.describing import describe
from gateway.limits import Kind
from tests.test_config import config, refusal


@pytest.mark.parametrize("value", [{}, {"loop_guard": "off", "spend_guard": "off"}])
def test_off_unless_asked_for(value: dict[str, str]) -> None:
    settings = config(**value).settings
    assert (settings.loop_guard, settings.spend_guard) == (None, None)
    shown = dict(describe(config(**value)))
    assert (shown["LOOP_GUARD"], shown["SPEND_GUARD"]) == ("off", "off")


@pytest.mark.parametrize(("text", "quota", "window_s"), [("20/minute", 20, 60), ("20", 20, 60), ("3/30s", 3, 30)])
def test_a_loop_guard_is_a_bucket(text: str, quota: int, window_s: int) -> None:
    guard = config(loop_guard=text).settings.loop_guard
    assert guard is not None
    assert (guard.quota, guard.window_s, guard.kind, guard.guard, guard.label) == (
        quota,
        window_s,
        Kind.BUCKET,
        True,
        "loop",
    )


@pytest.mark.parametrize(
    ("text", "times", "window_s"), [("10x/5m", 10, 300), ("2x/1m", 2, 60), ("1000x/24h", 1000, 86_400)]
)
def test_a_spend_guard_is_times_and_a_window(text: str, times: int, window_s: int) -> None:
    assert config(spend_guard=text).settings.spend_guard == SpendGuard(times, window_s * 1_000_000)


def test_they_are_shown() -> None:
    guards = {"loop_guard": "20/minute", "spend_guard": "10x/5m"}
    shown = dict(describe(config(**guards, target_cost="0.01 USD")))
    assert shown["LOOP_GUARD"] == "of the same request 20 at once, then one each 3 s"
    assert shown["SPEND_GUARD"] == "in 300 s warns at 10 times the usual, slows at 15, stops at 20"
    shown = dict(describe(config(**guards, target_cost="1 credits")))
    assert shown["SPEND_GUARD"].endswith("(holds nothing: no target's requests have a cost in USD)")


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        (
            "loop_guard",
            "20/minute,5/second",
            "'20/minute,5/second' is not one limit without anything behind it",
        ),
        ("loop_guard", "20/minute;shadow", "is not one limit without anything behind it"),
        ("loop_guard", "20/minute;bucket", "is not one limit without anything behind it"),
        ("loop_guard", "0/minute", "a limit allows 1 to 1000000000 requests, not 0"),
        ("loop_guard", "20/year", "'year' is no window"),
        ("loop_guard", "1000000/second", "a bucket allows at most"),
        ("loop_guard", "", "a limit is missing"),
        ("loop_guard", True, "is a boolean"),
        ("spend_guard", "10/5m", "'10/5m' is not like 10x/5m; it takes off, or Nx/WINDOW"),
        ("spend_guard", "10x", "'10x' is not like 10x/5m"),
        ("spend_guard", "1x/5m", "'1x' is not from 2x to 1000x"),
        ("spend_guard", "1001x/5m", "'1001x' is not from 2x to 1000x"),
        ("spend_guard", "10x/59s", "'59s' is not from 1m to 24h"),
        ("spend_guard", "10x/25h", "'25h' is not from 1m to 24h"),
        ("spend_guard", "10x/soon", "'soon' is not a duration"),
        ("spend_guard", "", "'' is not like 10x/5m"),
    ],
)
def test_what_is_refused(setting: str, value: object, problem: str) -> None:
    message = refusal(**{setting: value})
    assert message.startswith(f"{setting}: ")
    assert problem in message
