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

    from gateway.budgets.budget import Budget
    from gateway.budgets.spending import Ask

Segments: TypeAlias = "dict[int, int]"
"""Atoms by segment."""


class Account:
    """The state of one budget. Before it is asked anything, it is to `advance` to now.

    Args:
        key: Whose, and what is counted.
        budget: One that has its window and its unit; its amount may be another's.

    Attributes:
        row: Its number in a file; 0: it is in none.
        unit: The budget's.
        segment: The one that is spent in now.
        spent: What counts, oldest first.
        settled: The sum of that.
        held: What is reserved, by request.
        reserved: The sum of that.
        assumed: See `Book`.
    """

    __slots__ = (
        "_from_us",
        "_starts",
        "_until_us",
        "assumed",
        "budget",
        "held",
        "key",
        "reserved",
        "row",
        "segment",
        "settled",
        "spent",
        "unit",
    )

    def __init__(self, key: str, budget: Budget) -> None:
        self.key = key
        self.budget = budget
        self.unit = budget.unit
        self.row = 0
        self.segment = 0
        self._from_us = self._until_us = 0
        self._starts: Sequence[int] = ()
        self.spent: Segments = {}
        self.settled = 0
        self.held: dict[str, int] = {}
        self.reserved = 0
        self.assumed: dict[str, Assumed] = {}

    def advance(self, now_us: int) -> None:
        """Make it that time, and forget what has left the window."""
        # Nothing leaves within a segment.
        if not self._from_us <= now_us < self._until_us:
            self._move(now_us)

    def room(self, budget: Budget, ask: Ask, now_us: int) -> Room:
        """Say how many output tokens of an ask there is room for."""
        return room_in(budget, Sums(self.settled, self.reserved, self.spent.items()), ask, now_us, self._starts)

    def standing(self, now_us: int) -> BudgetStanding:
        """Say how it stands."""
        oldest = next(iter(self.spent), None)
        reset_us = 0 if oldest is None else leaves_us(self.budget, oldest, now_us, self._starts) - now_us
        return BudgetStanding(self.settled, self.reserved, reset_us)

    def reserve(self, id_: str, atoms: int) -> None:
        """Hold atoms for a request."""
        self.reserved += atoms - self.held.get(id_, 0)
        self.held[id_] = atoms

    def settling(self, id_: str, cost: int, now_us: int) -> Segments | None:
        """Say which sums a settlement will change, and to what; None if there is nothing to settle."""
        if id_ in self.held:
            segment = self.segment
            return {segment: self.spent.get(segment, 0) + cost}
        was = self.assumed.get(id_)
        if was is None:
            return None
        spent = {**self.spent, was.segment: self.spent[was.segment] - was.atoms}
        now = segment_of(self.budget, now_us, self._starts)
        segment = max([now, *(one for one, atoms in spent.items() if atoms)])
        return {was.segment: spent[was.segment], segment: spent.get(segment, 0) + cost}

    def settle_held(self, id_: str, cost: int) -> None:
        """Settle what is held for a request, where nobody has to know before what that will change."""
        self.reserved -= self.held.pop(id_)
        if cost:
            self.settled += cost
            self.spent[self.segment] = self.spent.get(self.segment, 0) + cost

    def settle(self, id_: str, segments: Segments) -> None:
        """Settle a request as `settling` said."""
        self.reserved -= self.held.pop(id_, 0)
        spent = self.spent
        for segment, atoms in segments.items():
            self.settled += atoms - spent.get(segment, 0)
            if atoms:
                spent[segment] = atoms
            else:
                spent.pop(segment, None)
        if self.assumed and self.assumed.pop(id_, None) is not None:
            self._until_us = 0  # what is the newest may be older now

    def abandon(self, id_: str) -> None:
        """Assume what is held for a request; see `Book.abandoned`."""
        atoms = self.held.pop(id_)
        self.reserved -= atoms
        self.assumed[id_] = Assumed(atoms, self.segment)
        self.spent[self.segment] = self.spent.get(self.segment, 0) + atoms
        self.settled += atoms

    def is_idle(self, now_us: int) -> bool:
        """Return whether it may be forgotten: nothing is held, and nothing counts any more."""
        if self.held:
            return False
        self.advance(now_us)
        return not self.spent

    def _move(self, now_us: int) -> None:
        budget, spent = self.budget, self.spent
        if budget.calendar is None:
            segment, lasts_us = now_us // budget.segment_us, budget.segment_us
            self._from_us = segment * lasts_us
            self._until_us = self._from_us + lasts_us
        else:
            if not self._starts or not self._starts[1] <= now_us // 1_000_000 < self._starts[2]:
                self._starts = budget.starts(now_us // 1_000_000)
            segment = segment_of(budget, now_us, self._starts)
            self._from_us, self._until_us = segment * 1_000_000, leaves_us(budget, segment, now_us, self._starts)
        self.segment = segment = max(segment, next(reversed(spent), segment))
        first = segment if budget.calendar is not None else segment - SEGMENTS
        while spent and (oldest := next(iter(spent))) < first:
            self.settled -= spent.pop(oldest)
        if self.assumed:
            self.assumed = {id_: one for id_, one in self.assumed.items() if one.segment >= first}
