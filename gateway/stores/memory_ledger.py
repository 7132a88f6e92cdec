"""The embedded store's ledger: budgets and what was spent, in this process, and in a file if it has one.

A reservation lasts until it is settled or this process ends. What a process before has left open in the file is
assumed at its full amount as soon as the file is read: nobody is left who could settle it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.budgets.book import NEVER_US, BudgetStanding
from gateway.budgets.spending import Entry, Mark, Settlement
from gateway.stores.accounts import Account, Starts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gateway.budgets.budget import Budget
    from gateway.budgets.spending import Ask
    from gateway.stores.ledger import SpendPlan

MAX_ENTRIES: Final = 10_000
"""About 500 bytes each. Of more, the oldest are forgotten."""


def wall_us() -> int:
    """Return the time since the epoch in microseconds."""
    return time.time_ns() // 1000


class Offer(NamedTuple):
    """What budgets say to an ask.

    Args:
        accounts: Theirs, brought up to now.
        granted: Output tokens, of those asked for; -1: it is refused.
        refusing: Then which budget refused, from 0.
        frees_us: Likewise, `Room.frees_us`.
    """

    accounts: Sequence[Account]
    granted: int
    refusing: int = -1
    frees_us: int = 0

    @property
    def used(self) -> tuple[int, ...]:
        """Of each budget what is spent and held now."""
        return tuple([account.settled + account.reserved for account in self.accounts])


class Reservation(NamedTuple):
    """What is held, or was assumed, for a request.

    Args:
        token: Whose.
        about: `Ask.about`.
        accounts: Where.
    """

    token: str
    about: str
    accounts: Sequence[Account]


class Line(NamedTuple):
    """A line of the ledger: `Entry.text`, and what a store knows of it."""

    request: str
    token: str
    text: str
    mark: str
    at_us: int

    def entry(self) -> Entry:
        """Return what it tells."""
        if not self.text:
            return Entry(self.request, 0, self.token, "", mark=Mark(self.mark), at_us=self.at_us)
        return Entry.read(self.text, self.mark, self.at_us)


class MemoryLedger:
    """See `stores.ledger.Ledger`; and the budgets' part of `SpendStore.reserve`, in two steps.

    Memory is bounded as the store's is: whenever an account is made, two others are looked at.

    Args:
        now_us: The wall clock, in microseconds since the epoch.
    """

    __slots__ = ("_accounts", "_assumed", "_lines", "_made", "_now_us", "_open", "_starts", "_to_purge")

    def __init__(self, now_us: Callable[[], int] = wall_us) -> None:
        self._now_us = now_us
        self._starts = Starts()
        self._accounts: dict[str, Account] = {}
        self._to_purge: deque[Account] = deque()
        self._made = 0
        self._open: dict[str, Reservation] = {}
        self._assumed: dict[str, Reservation] = {}
        self._lines: OrderedDict[str, Line] = OrderedDict()

    def start(self) -> None:
        """Do nothing: there is no file."""

    def close(self) -> None:
        """Do nothing: there is no file."""

    def offer(self, budgets: Iterable[tuple[str, Budget]], ask: Ask) -> Offer:
        """Say how much of an ask there is room for under all budgets, and change nothing.

        Args:
            budgets: By their keys.
            ask: What is asked for.
        """
        now_us, granted, accounts = self._now_us(), ask.most, []
        refusing, frees_us, longest_us = -1, 0, -1.0
        for index, (key, budget) in enumerate(budgets):
            account = self._accounts.get(key) or self._make(key, budget)
            accounts.append(account)
            starts = self._starts.of(budget, now_us)
            account.advance(now_us, starts)
            room = account.room(budget, ask, now_us, starts)
            if room.granted < 0:
                wait_us = float("inf") if room.frees_us == NEVER_US else room.frees_us
                if wait_us > longest_us:
                    refusing, frees_us, longest_us = index, room.frees_us, wait_us
            elif room.granted < granted:
                granted = room.granted
        return Offer(accounts, granted if refusing < 0 else -1, refusing, frees_us)

    def reserve(self, token: str, ask: Ask, offer: Offer) -> None:
        """Hold what was offered."""
        held = [(account, ask.amount(account.budget.unit, offer.granted)) for account in offer.accounts]
        held = [(account, atoms) for account, atoms in held if atoms]
        for account, atoms in held:
            account.reserve(ask.id, atoms)
        self._open[ask.id] = Reservation(token, ask.about, [account for account, _ in held])
        if self._made:
            self._purge()

    def settle(self, plan: SpendPlan, ask: Ask, granted: int, settlement: Settlement) -> None:
        """See `Ledger.settle`."""
        del plan, granted  # they are as when it was reserved
        self._settle(ask.id, settlement)

    async def standings(self, plan: SpendPlan) -> list[BudgetStanding]:
        """See `Ledger.standings`."""
        budgets: Sequence[tuple[str, Budget]] = plan.budgets  # type: ignore[attr-defined]  # as the store made it
        now_us = self._now_us()
        standings = []
        for key, budget in budgets:
            account, starts = self._accounts.get(key), self._starts.of(budget, now_us)
            if account is None:
                standings.append(BudgetStanding(0, 0, 0))
            else:
                account.advance(now_us, starts)
                standings.append(account.standing(now_us, starts))
        return standings

    async def entries(self, since_us: int, token: str | None = None) -> list[Entry]:
        """See `Ledger.entries`."""
        lines = [line for line in self._lines.values() if line.at_us >= since_us and _is_of(line.token, token)]
        return await asyncio.to_thread(lambda: [line.entry() for line in lines])

    async def open(self) -> list[Entry]:
        """See `Ledger.open`."""
        return [_as_open(request, one) for request, one in self._open.items()]

    async def find(self, token: str, request: str) -> Entry | None:
        """See `Ledger.find`."""
        if (reservation := self._open.get(request)) is not None:
            return _as_open(request, reservation) if _is_of(reservation.token, token) else None
        line = self._lines.get(request)
        return line.entry() if line is not None and _is_of(line.token, token) else None

    async def release(self, request: str) -> Entry | None:
        """See `Ledger.release`."""
        if (reservation := self._open.get(request)) is not None:
            was = _as_open(request, reservation)
        elif (reservation := self._assumed.get(request)) is not None:
            was = self._lines[request].entry()
        else:
            return None
        self._settle(request, Settlement({}, Mark.RELEASED, reservation.about))
        return was

    def _settle(self, request: str, settlement: Settlement) -> None:
        reservation = self._open.get(request) or self._assumed.get(request)
        if reservation is None:
            return
        now_us = self._now_us()
        for account in reservation.accounts:
            starts = self._starts.of(account.budget, now_us)
            account.advance(now_us, starts)
            sums = account.settling(request, settlement.cost.get(account.budget.unit, 0), now_us, starts)
            if sums is not None:
                account.settle(request, sums)
        self._open.pop(request, None)
        self._assumed.pop(request, None)
        self._lines.pop(request, None)
        if settlement.cost or settlement.entry:
            self._lines[request] = Line(request, reservation.token, settlement.entry, settlement.mark, now_us)
            if len(self._lines) > MAX_ENTRIES:
                self._lines.popitem(last=False)

    def _make(self, key: str, budget: Budget) -> Account:
        account = self._accounts[key] = Account(key, budget)
        self._to_purge.append(account)
        self._made += 1
        return account

    def _purge(self) -> None:
        """Look at two accounts for each that was made. Not before what was made is held: it would be idle as well."""
        now_us, to_purge = self._now_us(), self._to_purge
        for _ in range(min(2 * self._made, len(to_purge))):
            account = to_purge.popleft()
            if account.is_idle(now_us, self._starts.of(account.budget, now_us)):
                del self._accounts[account.key]
            else:
                to_purge.append(account)
        self._made = 0


def _is_of(token: str, whose: str | None) -> bool:
    """Return whether a token is this one, or made from it."""
    return whose is None or token == whose or token.startswith(f"{whose}.")


def _as_open(request: str, reservation: Reservation) -> Entry:
    return Line(request, reservation.token, reservation.about, Mark.ASSUMED, 0).entry()
