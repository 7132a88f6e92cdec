"""The states of `budgets.book`, changed in place: what the embedded store keeps budgets with.

An account answers as a `Book` does, from sums that it keeps; what a settlement will change is said before it is
changed, so that it can be written down first. A reservation of this process lasts as long as this process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from gateway.budgets.book import Assumed, BudgetStanding, Room, Sums, leaves_us, room_in, segment_of
from gateway.limits.policy import SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.budgets.budget import Budget, Calendar
    from gateway.budgets.spending import Ask

Segments: TypeAlias = "dict[int, int]"
"""Atoms by segment."""


class Starts:
    """When calendar windows begin, worked out once for each window."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[Calendar | None, str], tuple[int, ...]] = {}

    def of(self, budget: Budget, now_us: int) -> tuple[int, ...]:
        """Return `Budget.starts` of a time in microseconds."""
        if budget.calendar is None:
            return ()
        key = (budget.calendar, budget.zone)
        known = self._known.get(key)
        if known is None or not known[1] <= now_us // 1_000_000 < known[2]:
            known = self._known[key] = budget.starts(now_us // 1_000_000)
        return known


class Account:
    """The state of one budget.

    Args:
        key: Whose, and what is counted.
        budget: One that has its window and its unit; its amount may be another's.

    Attributes:
        row: Its number in a file; 0: it is in none.
        spent: What counts, oldest first.
        settled: The sum of that.
        held: What is reserved, by request.
        reserved: The sum of that.
        assumed: See `Book`.
    """

    __slots__ = ("assumed", "budget", "held", "key", "reserved", "row", "settled", "spent")

    def __init__(self, key: str, budget: Budget) -> None:
        self.key = key
        self.budget = budget
        self.row = 0
        self.spent: Segments = {}
        self.settled = 0
        self.held: dict[str, int] = {}
        self.reserved = 0
        self.assumed: dict[str, Assumed] = {}

    def advance(self, now_us: int, starts: Sequence[int]) -> int:
        """Forget what has left the window; return the segment that is spent in now."""
        segment, spent = segment_of(self.budget, now_us, starts), self.spent
        if not spent:
            return segment
        segment = max(segment, next(reversed(spent)))
        first = segment if self.budget.calendar is not None else segment - SEGMENTS
        while spent and (oldest := next(iter(spent))) < first:
            self.settled -= spent.pop(oldest)
        if self.assumed:
            self.assumed = {id_: one for id_, one in self.assumed.items() if one.segment >= first}
        return segment

    def room(self, budget: Budget, ask: Ask, now_us: int, starts: Sequence[int]) -> Room:
        """Say how many output tokens of an ask there is room for. To be asked when it has advanced to this time."""
        return room_in(budget, Sums(self.settled, self.reserved, self.spent.items()), ask, now_us, starts)

    def standing(self, now_us: int, starts: Sequence[int]) -> BudgetStanding:
        """Say how it stands. To be asked when it has advanced to this time."""
        oldest = next(iter(self.spent), None)
        reset_us = 0 if oldest is None else leaves_us(self.budget, oldest, now_us, starts) - now_us
        return BudgetStanding(self.settled, self.reserved, reset_us)

    def reserve(self, id_: str, atoms: int) -> None:
        """Hold atoms for a request."""
        self.reserved += atoms - self.held.get(id_, 0)
        self.held[id_] = atoms

    def settling(self, id_: str, cost: int, now_us: int, starts: Sequence[int]) -> Segments | None:
        """Say which sums a settlement will change, and to what; None if there is nothing to settle."""
        was = self.assumed.get(id_)
        if was is None and id_ not in self.held:
            return None
        segment, spent = segment_of(self.budget, now_us, starts), self.spent
        if was is None:
            segment = max(segment, next(reversed(spent), segment))
            return {segment: spent.get(segment, 0) + cost}
        spent = {**spent, was.segment: spent[was.segment] - was.atoms}
        segment = max(segment, *(one for one, atoms in spent.items() if atoms), segment)
        return {was.segment: spent[was.segment], segment: spent.get(segment, 0) + cost}

    def settle(self, id_: str, sums: Segments) -> None:
        """Settle a request as `settling` said."""
        self.reserved -= self.held.pop(id_, 0)
        self.assumed.pop(id_, None)
        for segment, atoms in sums.items():
            self.settled += atoms - self.spent.pop(segment, 0)
            if atoms:
                self.spent[segment] = atoms
        if len(sums) > 1:
            self.spent = dict(sorted(self.spent.items()))

    def abandon(self, id_: str, now_us: int, starts: Sequence[int]) -> None:
        """Assume what is held for a request; see `Book.abandoned`."""
        atoms, segment = self.held.pop(id_), self.advance(now_us, starts)
        self.reserved -= atoms
        self.assumed[id_] = Assumed(atoms, segment)
        self.spent[segment] = self.spent.get(segment, 0) + atoms
        self.settled += atoms

    def is_idle(self, now_us: int, starts: Sequence[int]) -> bool:
        """Return whether it may be forgotten: nothing is held, and nothing counts any more."""
        if self.held:
            return False
        self.advance(now_us, starts)
        return not self.spent
