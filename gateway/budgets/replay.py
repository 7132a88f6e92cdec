"""Replays the ledger against other limits and budgets: who would have been refused, and what that would have saved.

Each request asks again when it began, for what it reserved then, and is settled when it was settled, for what it cost;
one that would have been refused is charged nowhere. What a client would have done after a refusal is not known: it may
have given up, or have come again. Limits and budgets begin empty.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from gateway.budgets.book import NEVER_US, Book, segment_of
from gateway.budgets.spending import Ask
from gateway.limits.rule import decide, unused

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.budgets.budget import Budget
    from gateway.budgets.spending import Entry
    from gateway.limits.policy import Policy
    from gateway.limits.rule import State


@dataclass(slots=True)
class Fate:
    """What would have become of the requests of one token, or of all.

    Args:
        requests: How many there were.
        refused: How many of them would have been refused.
        first_us: When the first of these began, in microseconds since the epoch; 0: none.
        by: How many would have been refused by each limit and budget, by label.
        cost: What all of them cost, atoms by unit.
        saved: What those that would have been refused cost.
    """

    requests: int = 0
    refused: int = 0
    first_us: int = 0
    by: Counter[str] = field(default_factory=Counter)
    cost: Counter[str] = field(default_factory=Counter)
    saved: Counter[str] = field(default_factory=Counter)

    def add(self, entry: Entry, refused_by: str) -> None:
        """Count a request; `refused_by` is empty of one that would have passed."""
        self.requests += 1
        self.cost.update(entry.cost)
        if refused_by:
            self.refused += 1
            self.first_us = self.first_us or entry.began_us
            self.by[refused_by] += 1
            self.saved.update(entry.cost)


class Replayed(NamedTuple):
    """What a replay found.

    Args:
        total: Of all requests.
        tokens: By token, those with the most refusals first.
        refused: The ids of the requests that would have been refused.
    """

    total: Fate
    tokens: dict[str, Fate]
    refused: frozenset[str]


def replay(entries: Iterable[Entry], policies: Sequence[Policy], budgets: Sequence[Budget]) -> Replayed:
    """Ask for every request again, in the order of the time.

    Args:
        entries: What was settled, one for each request, in any order.
        policies: Of each token; those made from it count for it. What is a shadow refuses here.
        budgets: Likewise.
    """
    known = list(entries)
    steps = [(entry.at_us, 0, index) for index, entry in enumerate(known)]
    # Where two come at the same time, money comes back first: as it did, if the second got it.
    steps += [(min(entry.began_us, entry.at_us), 1, index) for index, entry in enumerate(known)]
    steps.sort()
    real = [replace(policy, shadow=False) for policy in policies]
    owners: dict[str, _Owner] = {}
    total, tokens, refused = Fate(), dict[str, Fate](), set[str]()
    for now_us, is_ask, index in steps:
        entry = known[index]
        owner_name = entry.token.partition(".")[0]
        owner = owners.get(owner_name)
        if owner is None:
            owner = owners[owner_name] = _Owner(real, budgets)
        if is_ask:
            refused_by = owner.ask(entry, now_us)
            total.add(entry, refused_by)
            tokens.setdefault(entry.token, Fate()).add(entry, refused_by)
            if refused_by:
                refused.add(entry.id)
            elif entry.at_us == now_us:  # it took no time at all, and its settling came before it was asked for
                owner.settle(entry)
        else:
            owner.settle(entry)
    ranked = sorted(tokens.items(), key=lambda item: (-item[1].refused, item[0]))
    return Replayed(total, dict(ranked), frozenset(refused))


class _Owner:
    """The limits and budgets of one token with those made from it, as they stand."""

    __slots__ = ("_books", "_policies", "_states")

    def __init__(self, policies: Sequence[Policy], budgets: Sequence[Budget]) -> None:
        self._policies = policies
        self._states: tuple[State, ...] = tuple(unused(policy) for policy in policies)
        self._books = [_Account(budget) for budget in budgets]

    def ask(self, entry: Entry, now_us: int) -> str:
        """Reserve and charge under all, or none; return the label of what refuses, or nothing."""
        waits: list[tuple[float, str]] = []
        ask = Ask(entry.id, entry.reserved)
        for account in self._books:
            room = account.at(now_us).room(account.budget, ask, now_us, account.starts)
            if room.granted < 0:
                waits.append((float("inf") if room.frees_us == NEVER_US else room.frees_us, account.budget.label))
        states = self._states
        if self._policies:
            decision, states = decide(self._policies, states, now_us)
            if not decision.admitted:
                waits.append((decision.reset_us, self._policies[decision.policy].label))
        if waits:
            return max(waits, key=lambda wait: wait[0])[1]
        self._states = states
        for account in self._books:
            amount = ask.amount(account.budget.unit, 0)
            # Not before it is settled: that it would be assumed is in the ledger already, if it was.
            account.book = account.book.reserved(entry.id, amount, entry.at_us + 1)
        return ""

    def settle(self, entry: Entry) -> None:
        """Settle what was reserved; one that was refused is not known."""
        for account in self._books:
            book, cost = account.at(entry.at_us), entry.cost.get(account.budget.unit, 0)
            account.book = book.settled(account.budget, entry.id, cost, entry.at_us, account.starts)


class _Account:
    """One budget and its book."""

    __slots__ = ("_segment", "book", "budget", "starts")

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.book = Book()
        self.starts: tuple[int, ...] = ()
        self._segment = -1

    def at(self, now_us: int) -> Book:
        """Return the book as it is at a time, which never steps back."""
        now_s = now_us / 1_000_000
        # Boundaries are asked for once a window: a time zone's are slow to tell.
        if self.budget.calendar is not None and not (self.starts and self.starts[1] <= now_s < self.starts[2]):
            self.starts = self.budget.starts(now_s)
        # Within a segment nothing leaves the window, and no reservation ends here before it is settled.
        segment = segment_of(self.budget, now_us, self.starts)
        if segment != self._segment:
            self._segment, self.book = segment, self.book.at(self.budget, now_us, self.starts)
        return self.book
