"""The rule for one budget, as a pure function of integers: the reference that every store is held to.

A reservation counts in full, whatever the window, from when it is made until it is settled; a cost counts in the
window that it is settled in. A provider bills at some time between the two. So whichever window that falls in, the last
request that was admitted in that window was admitted with this one counted: what is billed in any window is never more
than the budget, as long as no request costs more than was reserved for it.

The time of a sliding window is cut in sixtieths, as in `limits.window`; a calendar window is one segment, named by the
second in which it starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.limits.policy import SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gateway.budgets.budget import Budget
    from gateway.budgets.spending import Ask

RETRY_US: Final = 1_000_000
"""When to ask again where only reservations are in the way: nobody knows when they will be settled, but soon."""
NEVER_US: Final = -1
"""In place of a wait: the request could cost more than the whole budget, so it can never pass."""


class Held(NamedTuple):
    """A reservation that is not settled: atoms, and until when without being renewed, in microseconds."""

    atoms: int
    ends_us: int


class Assumed(NamedTuple):
    """A reservation that ended unsettled: atoms, and the segment that they were counted in."""

    atoms: int
    segment: int


class Room(NamedTuple):
    """What a budget says to an ask.

    Args:
        granted: Output tokens, of those asked for; -1: not even the least.
        frees_us: Of a refusal: the microseconds until it could pass; `NEVER_US`.
    """

    granted: int
    frees_us: int = 0


class BudgetStanding(NamedTuple):
    """How a budget stands: atoms spent and held, and the microseconds until some of what is spent leaves the window.

    `reset_us` is 0 where nothing is spent.
    """

    spent: int
    held: int
    reset_us: int


class Book(NamedTuple):
    """The state of one budget.

    Args:
        spent: `(segment, atoms)`, oldest first.
        held: Reservations by request.
        assumed: Those that ended unsettled and still count, by request: they may yet be settled, or released.
    """

    spent: tuple[tuple[int, int], ...] = ()
    held: Mapping[str, Held] = {}
    assumed: Mapping[str, Assumed] = {}

    def at(self, budget: Budget, now_us: int, starts: Sequence[int]) -> Book:
        """Return the state as it is at a time: reservations that ended are assumed, what has left the window is gone.

        Args:
            budget: Whose.
            now_us: The store's time.
            starts: `Budget.starts` of about now.
        """
        ended = {id_: one for id_, one in self.held.items() if one.ends_us <= now_us}
        held = {id_: one for id_, one in self.held.items() if id_ not in ended}
        assumed, spent = dict(self.assumed), dict(self.spent)
        for id_, one in ended.items():
            segment = segment_of(budget, one.ends_us, starts)
            assumed[id_] = Assumed(one.atoms, segment)
            spent[segment] = spent.get(segment, 0) + one.atoms
        first = self.first_segment(budget, now_us, starts)
        kept = tuple((segment, atoms) for segment, atoms in sorted(spent.items()) if segment >= first and atoms)
        return Book(kept, held, {id_: one for id_, one in assumed.items() if one.segment >= first})

    def first_segment(self, budget: Budget, now_us: int, starts: Sequence[int]) -> int:
        """Return the oldest segment that counts; should the clock have stepped back, as of the newest spent in."""
        newest = self.segment(budget, now_us, starts)
        return newest if budget.calendar is not None else newest - SEGMENTS

    def segment(self, budget: Budget, now_us: int, starts: Sequence[int]) -> int:
        """Return the segment that is spent in now: the newest one still, should the clock have stepped back."""
        return max([segment_of(budget, now_us, starts), *(segment for segment, _ in self.spent)])

    def room(self, budget: Budget, ask: Ask, now_us: int, starts: Sequence[int]) -> Room:
        """Say how many output tokens of an ask there is room for. To be asked of a book that is `at` this time."""
        held = sum(one.atoms for one in self.held.values())
        sums = Sums(sum(atoms for _, atoms in self.spent), held, self.spent)
        return room_in(budget, sums, ask, now_us, starts)

    def standing(self, budget: Budget, now_us: int, starts: Sequence[int]) -> BudgetStanding:
        """Say how it stands. To be asked of a book that is `at` this time."""
        spent, held = sum(atoms for _, atoms in self.spent), sum(one.atoms for one in self.held.values())
        reset_us = leaves_us(budget, self.spent[0][0], now_us, starts) - now_us if spent else 0
        return BudgetStanding(spent, held, reset_us)

    def reserved(self, id_: str, atoms: int, ends_us: int) -> Book:
        """Return the state with one more reservation, unless it is of nothing."""
        return self._replace(held={**self.held, id_: Held(atoms, ends_us)}) if atoms else self

    def renewed(self, id_: str, atoms: int, ends_us: int) -> Book:
        """Return the state with a reservation that lasts longer, perhaps with another amount.

        One that had ended is there again; and one that this book never knew, for then the store has lost its data.
        """
        was = self.assumed.get(id_)
        spent = self.spent if was is None else _added(self.spent, was.segment, -was.atoms)
        assumed = {other: one for other, one in self.assumed.items() if other != id_}
        return Book(spent, {**self.held, id_: Held(atoms, ends_us)}, assumed)

    def settled(self, budget: Budget, id_: str, cost: int, now_us: int, starts: Sequence[int]) -> Book:
        """Return the state with a reservation settled, for nothing if it is released; as it is if it has been."""
        if id_ not in self.held and id_ not in self.assumed:
            return self
        was = self.assumed.get(id_)
        spent = self.spent if was is None else _added(self.spent, was.segment, -was.atoms)
        return Book(
            _added(spent, self._replace(spent=spent).segment(budget, now_us, starts), cost),
            {other: one for other, one in self.held.items() if other != id_},
            {other: assumed for other, assumed in self.assumed.items() if other != id_},
        )

    def abandoned(self, budget: Budget, now_us: int, starts: Sequence[int]) -> Book:
        """Return the state with all reservations assumed: whoever held them is gone, and was there until now at most.

        To be asked of a book that is `at` this time.
        """
        segment, atoms = self.segment(budget, now_us, starts), sum(one.atoms for one in self.held.values())
        assumed = {id_: Assumed(one.atoms, segment) for id_, one in self.held.items()}
        return Book(_added(self.spent, segment, atoms), {}, {**self.assumed, **assumed})


class Sums(NamedTuple):
    """What a budget's room depends on.

    Args:
        spent: Atoms that count as spent.
        held: Atoms that are reserved.
        segments: Of those that are spent, how many in which segment, oldest first.
    """

    spent: int
    held: int
    segments: Iterable[tuple[int, int]]


def room_in(budget: Budget, sums: Sums, ask: Ask, now_us: int, starts: Sequence[int]) -> Room:
    """Say how many output tokens of an ask there is room for; see `Book.room`."""
    fixed, each = ask.fixed.get(budget.unit, 0), ask.each.get(budget.unit, 0)
    needed = fixed + each * ask.least
    left = budget.amount - sums.spent - sums.held
    if needed <= left or not needed:
        return Room(ask.most if not each else min(ask.most, max(left - fixed, 0) // each))
    if needed > budget.amount:
        return Room(-1, NEVER_US)
    surplus = sums.spent + needed - budget.amount
    if surplus <= 0:
        return Room(-1, RETRY_US)
    for segment, atoms in sums.segments:
        surplus -= atoms
        if surplus <= 0:
            return Room(-1, max(leaves_us(budget, segment, now_us, starts) - now_us, RETRY_US))
    raise AssertionError("what is spent is the sum of its segments")


def segment_of(budget: Budget, at_us: int, starts: Sequence[int]) -> int:
    """Return the segment of a time: of a calendar's window, the second it starts."""
    if budget.calendar is None:
        return at_us // budget.segment_us
    at_s = at_us // 1_000_000
    return max((start for start in starts if start <= at_s), default=starts[0])


def leaves_us(budget: Budget, segment: int, now_us: int, starts: Sequence[int]) -> int:
    """Return when a segment leaves the window, in microseconds."""
    if budget.calendar is None:
        return (segment + SEGMENTS + 1) * budget.segment_us
    return min((start * 1_000_000 for start in starts if start > segment), default=now_us)


def _added(spent: Iterable[tuple[int, int]], segment: int, atoms: int) -> tuple[tuple[int, int], ...]:
    sums = dict(spent)
    sums[segment] = sums.get(segment, 0) + atoms
    return tuple(sorted((one, amount) for one, amount in sums.items() if amount))
