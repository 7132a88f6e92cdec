"""The reader of moments: how long ago, or when."""

from __future__ import annotations

import contextlib

from gateway.budgets.told import read_us
from gateway.config.values import duration_s, quoted


def moment_us(text: str, now_us: int) -> int:
    """Read `24h`, `7d`, so long ago, or a day or time: `2026-11-01`, `2026-11-01T12:00:00Z` (UTC without a zone).

    Args:
        text: As users write it.
        now_us: The time, in microseconds since the epoch.

    Returns:
        Microseconds since the epoch, not negative.

    Raises:
        ValueError: Half a sentence that says what is wrong.
    """
    # Digits alone would be seconds where a duration is read; here they might be meant as a year, or a day.
    if not text.isdigit():
        with contextlib.suppress(ValueError):
            return max(now_us - int(duration_s(text) * 1_000_000), 0)
        with contextlib.suppress(ValueError, OverflowError):
            return max(read_us(text), 0)
    raise ValueError(f"{quoted(text)} is neither how long ago nor when")
