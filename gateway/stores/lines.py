"""The register: which tokens were issued and which were revoked, for people to look at; here, in this process.

No decision is made by it. A line is text, noted without waiting for it; each has an end, and their number is bounded.
`register` has the same in Redis.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LINES: Final = 4096
"""Of tokens that were issued, and as many of those made from them, which any token's holder makes 60 a minute of: about
200 bytes each. Of more, those that end first are forgotten."""


class Noted(NamedTuple):
    """What a register knows."""

    lines: list[str]
    """Of the tokens that have not ended, those that end last first; those made from others behind all others."""
    revoked: frozenset[str]
    """The ids that were revoked."""


class MemoryLines:
    """Lines of this process.

    Args:
        now_s: Seconds since the epoch.
    """

    __slots__ = ("_ends", "_now_s")

    def __init__(self, now_s: Callable[[], float] = time.time) -> None:
        self._ends: dict[str, int] = {}
        self._now_s = now_s

    def note(self, line: str, ends_s: int) -> None:
        """Note a line that ends at a second since the epoch."""
        if len(self._ends) >= MAX_LINES and line not in self._ends:
            # A quarter at a time: to look for the one that ends first would cost every note a look at all.
            kept = self.lines()[: MAX_LINES * 3 // 4]
            self._ends = {one: self._ends[one] for one in kept}
        self._ends[line] = ends_s

    def lines(self) -> list[str]:
        """Return what has not ended, what ends last first."""
        now_s = self._now_s()
        self._ends = {line: ends_s for line, ends_s in self._ends.items() if ends_s > now_s}
        return sorted(self._ends, key=self._ends.__getitem__, reverse=True)
