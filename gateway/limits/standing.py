"""How much of a limit is used."""

from __future__ import annotations

from typing import NamedTuple


class Standing(NamedTuple):
    """How a limit stands at a moment.

    `used` is what counts now, `remaining` what could be admitted now (0 or more), `frees_us` the time, on the
    store's clock in microseconds, when `remaining` next grows; it says nothing while nothing is used.
    """

    used: int
    remaining: int
    frees_us: int
