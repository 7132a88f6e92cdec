"""Readers of what is said about budgets, beside their own grammar."""

from __future__ import annotations

from gateway.config.values import duration_s, quoted


def time_zone(text: str) -> str:
    """Read the IANA name of a time zone that is known here."""
    if text == "UTC":
        return text
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # only here: it takes 10 ms to load

    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: it is a folder of zones
        raise ValueError(f"{quoted(text)} is no time zone that is known here") from None
    return text


def drain_s(text: str) -> float:
    """Read `cancel` or `drain:DURATION`: how long an answer is still read whose client has left, in seconds, or 0."""
    if text == "cancel":
        return 0.0
    word, colon, duration = text.partition(":")
    if word != "drain" or not colon:
        raise ValueError(f"{quoted(text)} is neither cancel nor like drain:10s")
    return duration_s(duration)
