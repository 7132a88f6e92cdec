"""Readers of what is said about budgets, beside their own grammar."""

from __future__ import annotations

import os
from pathlib import Path

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


def state_file(text: str) -> str:
    """Read the path of a file that can be written, or made."""
    path = Path(text)
    if not text or "\0" in text or path.is_dir():
        raise ValueError(f"{text!r} is no path of a file")
    if not path.parent.is_dir():
        raise ValueError(f"there is no directory {str(path.parent)!r}")
    # SQLite keeps two more files beside it.
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"the directory {str(path.parent)!r} cannot be written to")
    if path.exists() and not (path.is_file() and os.access(path, os.R_OK | os.W_OK)):
        raise ValueError(f"{text!r} is not a file that can be read and written")
    return text


def drain_s(text: str) -> float:
    """Read `cancel` or `drain:DURATION`: how long an answer is still read whose client has left, in seconds, or 0."""
    if text == "cancel":
        return 0.0
    word, colon, duration = text.partition(":")
    if word != "drain" or not colon:
        raise ValueError(f"{quoted(text)} is neither cancel nor like drain:10s")
    return duration_s(duration)
