"""Readers of the guards, `LOOP_GUARD` and `SPEND_GUARD`; they raise as those in `values` do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from gateway.config.values import duration_s, quoted
from gateway.limits import Kind, Policy, parse_limits

if TYPE_CHECKING:
    from gateway.budgets.pace import SpendGuard

MIN_TIMES: Final = 2
MAX_TIMES: Final = 1000
MIN_WINDOW_S: Final = 60
MAX_WINDOW_S: Final = 86_400

_TIMES: Final = re.compile("([0-9]{1,4})x")


def loop_guard(text: str) -> Policy | None:
    """Read how often the same request may be sent, as one plain limit; `off` gives None.

    Returns:
        A bucket as large: when it is empty, one request in each interval is let through, to probe.
    """
    if text == "off":
        return None
    (policy, *others) = parse_limits(text)
    if others or policy.shadow or policy.kind is not Kind.WINDOW:
        raise ValueError(f"{quoted(text)} is not one limit without anything behind it")
    return Policy("loop", policy.quota, policy.window_us, kind=Kind.BUCKET, guard=True)


def spend_guard(text: str) -> SpendGuard | None:
    """Read `10x/5m`: how many times its usual pace a token may spend, and over how long that is measured; or `off`."""
    if text == "off":
        return None
    times_text, slash, window_text = text.partition("/")
    times = _TIMES.fullmatch(times_text)
    if times is None or not slash:
        raise ValueError(f"{quoted(text)} is not like 10x/5m")
    if not MIN_TIMES <= int(times[1]) <= MAX_TIMES:
        raise ValueError(f"{quoted(times_text)} is not from {MIN_TIMES}x to {MAX_TIMES}x")
    window_s = duration_s(window_text)
    if not MIN_WINDOW_S <= window_s <= MAX_WINDOW_S:
        raise ValueError(f"{quoted(window_text)} is not from 1m to 24h")
    from gateway.budgets.pace import SpendGuard  # few have one

    return SpendGuard(int(times[1]), int(window_s * 1_000_000))
