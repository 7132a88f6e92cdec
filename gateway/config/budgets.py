"""Readers of what is said about budgets, which raise as those in `values` do; and the way to those of costs.

What reads costs is loaded where something has a cost: it takes half a megabyte.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from gateway.config.values import duration_s, quoted

if TYPE_CHECKING:
    from gateway.config.reading import Reader
    from gateway.metering.costs import CostTable
    from gateway.metering.rates import Rates

COST_TAKES: Final = (
    "a table with one of fixed, llm, json, header, bytes, seconds, or a text: llm, or an amount like 0.005 USD"
)
COST_EXAMPLE: Final = 'cost = "llm"'


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
    from pathlib import Path  # see `serving.named_file`

    path = Path(text)
    if text != text.strip() or not text or re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError(f"{quoted(text)} is empty, begins or ends with a space, or has control characters")
    try:
        mode = path.stat().st_mode  # as of Python 3.14, `is_dir` hides why it cannot tell
    except (FileNotFoundError, NotADirectoryError):
        mode = 0
    except OSError as error:
        raise ValueError(f"{quoted(text)} cannot be looked at: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        raise ValueError(f"{text!r} is a directory, not a file")
    if not path.parent.is_dir():
        raise ValueError(f"there is no directory {str(path.parent)!r}")
    # SQLite keeps two more files beside it.
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"the directory {str(path.parent)!r} cannot be written to")
    if mode and not (stat.S_ISREG(mode) and os.access(path, os.R_OK | os.W_OK)):
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


def read_prices(tables: object, where: str) -> Mapping[str, Rates] | None:
    """Read the tables `[prices."MODEL"]`, if there are any; see `costs.read_prices`."""
    if tables == {}:
        return None
    from gateway.config import costs  # see the module's docstring

    return costs.read_prices(tables, where)


def target_cost(read: Reader, prices: Mapping[str, Rates] | None) -> CostTable | None:
    """Read `TARGET_COST`; None if nothing is said of it."""
    given = read.given("target_cost")
    if given is None:
        return None
    from gateway.config import costs  # see the module's docstring

    if not isinstance(given, Mapping):
        read.optional("target_cost", costs.parse_cost)  # what is wrong with it is told as of any other setting
    return costs.cost_of("target_cost", read.where("target_cost"), given, prices)


def cost_of(name: str, where: str, value: object, prices: Mapping[str, Rates] | None) -> CostTable | None:
    """Read what a target's requests cost, if anything is said of it; see `costs.cost_of`."""
    if value is None:
        return None
    from gateway.config import costs  # see the module's docstring

    return costs.cost_of(name, where, value, prices)
