"""The embedded store's ledger: budgets, and what was spent, in this process; and in a file, if it has one.

A reservation lasts until it is settled or this process ends. What a process before has left open in the file is
assumed at its full amount as soon as the file is read: nobody is left who could settle it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from gateway.budgets.book import NEVER_US, BudgetStanding
from gateway.budgets.spending import Mark, Settlement
from gateway.errors import StoreUnavailable
from gateway.stores.accounts import Account
from gateway.stores.journal import Line, MemoryJournal, Reservation
from gateway.tuples import new

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gateway.budgets.budget import Budget
    from gateway.budgets.spending import Ask, Entry
    from gateway.stores.journal import Journal
    from gateway.stores.ledger import SpendPlan


def wall_us() -> int:
    """Return the time since the epoch in microseconds."""
    return time.time_ns() // 1000


class Offer(NamedTuple):
    """What budgets say to an ask.

    Args:
        accounts: Theirs, brought up to now.
        amounts: What each of them has to hold, in atoms.
        granted: Output tokens, of those asked for; -1: it is refused.
        refusing: Then which budget refused, from 0.
        frees_us: Likewise, `Room.frees_us`.
    """

    accounts: Sequence[Account]
    amounts: Sequence[int]
    granted: int
    refusing: int
    frees_us: int

    @property
    def used(self) -> tuple[int, ...]:
        """Of each budget what is spent and held now."""
        return tuple([account.settled + account.reserved for account in self[0]])


class MemoryLedger:
    """See `stores.ledger.Ledger`; and the budgets' part of `SpendStore.reserve`, in two steps.

    Memory is bounded as the store's is: whenever an account is made, two others are looked at.

    Args:
        now_us: The wall clock, in microseconds since the epoch.
        journal: Keeps what has happened; None: as long as this process lives.
    """

    __slots__ = ("_accounts", "_assumed", "_journal", "_late", "_made", "_now_us", "_open", "_released", "_to_purge")

    def __init__(self, now_us: Callable[[], int] = wall_us, journal: Journal | None = None) -> None:
        self._now_us = now_us
        self._journal = journal or MemoryJournal()
        self._accounts: dict[str, Account] = {}
        self._to_purge: deque[Account] = deque()
        self._made = 0
        self._open: dict[str, Reservation] = {}
        self._assumed: dict[str, Reservation] = {}
        self._released: dict[str, Reservation] = {}  # by hand, while they were under way
        self._late: deque[tuple[str, Settlement]] = deque()

    def start(self) -> None:
        """Go on from where a process before has ended, if there was one.

        Raises:
            StoreUnavailable: What it left cannot be read; it says why.
        """
        known, now_us = self._journal.begin(), self._now_us()
        for account in known.accounts:
            account.advance(now_us)
        for request, reservation in known.open.items():
            for account in reservation.accounts:
                account.abandon(request)
        accounts = [account for account in known.accounts if not account.is_idle(now_us)]
        known = known._replace(accounts=accounts, assumed={**known.assumed, **known.open})
        lines = [Line(request, one.token, one.text, Mark.ASSUMED, now_us) for request, one in known.open.items()]
        self._journal.assume(known, lines)
        self._accounts = {account.key: account for account in accounts}
        self._to_purge.extend(accounts)
        self._assumed = dict(known.assumed)

    def revoke(self, token: str, lives_s: int) -> None:
        """Write down that a token is revoked, for so long. Raises StoreUnavailable if that cannot be done."""
        self._journal.revoke(token, self._now_us() // 1_000_000 + lives_s)

    def revoked(self) -> dict[str, int]:
        """Return who is, and for how many microseconds more. Raises StoreUnavailable if that cannot be read."""
        now_us = self._now_us()
        known = self._journal.revoked(now_us // 1_000_000)
        return {token: until_s * 1_000_000 - now_us for token, until_s in known.items()}

    def ping(self) -> None:
        """Raise StoreUnavailable if nothing can be written down; what was held up by that is settled when it can."""
        self._journal.check()
        self._settle_late()

    def close(self) -> None:
        """Write nothing down any more."""
        self._settle_late()
        self._journal.end()

    def offer(self, budgets: Iterable[tuple[str, Budget]], ask: Ask) -> Offer:
        """Say how much of an ask there is room for under all budgets, and reserve nothing.

        Args:
            budgets: By their keys.
            ask: What is asked for.
        """
        if self._late:
            self._settle_late()
        now_us, accounts, amounts = self._now_us(), [], []
        _, fixed, each, most, _, _ = ask
        granted = most
        refusing, frees_us, longest_us = -1, 0, -1.0
        for index, (key, budget) in enumerate(budgets):
            account = self._accounts.get(key) or self._make(key, budget)
            accounts.append(account)
            account.advance(now_us)
            unit = account.unit
            needed = fixed.get(unit, 0) + each.get(unit, 0) * granted
            amounts.append(needed)
            if account.settled + account.reserved + needed <= budget.amount:
                continue  # by far the most frequent case
            room = account.room(budget, ask, now_us)
            if room.granted < 0:
                wait_us = float("inf") if room.frees_us == NEVER_US else room.frees_us
                if wait_us > longest_us:
                    refusing, frees_us, longest_us = index, room.frees_us, wait_us
            elif room.granted < granted:
                granted = room.granted
        if granted < most:
            amounts = [ask.amount(account.unit, granted) for account in accounts]
        return new(Offer, (accounts, amounts, granted if refusing < 0 else -1, refusing, frees_us))

    def reserve(self, token: str, ask: Ask, offer: Offer) -> tuple[int, ...]:
        """Hold what was offered; return `SpendVerdict.used`.

        Raises:
            StoreUnavailable: It could not be written down, and is not held.
        """
        accounts, amounts, granted, _, _ = offer
        if 0 in amounts:  # where nothing is needed, nothing is held
            accounts = [account for account, amount in zip(accounts, amounts, strict=True) if amount]
            amounts = list(filter(None, amounts))
        request, _, _, _, _, about = ask
        reservation = new(Reservation, (token, about, accounts, granted))
        if self._journal.keeps_sums:
            self._journal.reserve(request, reservation, amounts)
        for account, amount in zip(accounts, amounts, strict=True):
            account.reserve(request, amount)
        self._open[request] = reservation
        if self._made:
            self._purge()
        return offer.used

    def settle(self, plan: SpendPlan, ask: Ask, granted: int, settlement: Settlement) -> None:
        """See `Ledger.settle`."""
        del plan, granted  # they are as when it was reserved
        if not self._late:
            try:
                self._settle(ask.id, settlement)
            except StoreUnavailable:
                self._late.append((ask.id, settlement))
        else:
            self._late.append((ask.id, settlement))
            self._settle_late()

    async def standings(self, plan: SpendPlan) -> list[BudgetStanding]:
        """See `Ledger.standings`."""
        self._settle_late()
        budgets: Sequence[tuple[str, Budget]] = plan.budgets  # type: ignore[attr-defined]  # as the store made it
        now_us = self._now_us()
        standings = []
        for key, budget in budgets:
            account = self._accounts.get(key) or Account(key, budget)
            account.advance(now_us)
            standings.append(account.standing(now_us))
        return standings

    async def entries(self, since_us: int, token: str | None = None, limit: int | None = None) -> list[Entry]:
        """See `Ledger.entries`."""
        self._settle_late()
        read = self._journal.reader(since_us, token, limit)
        return await asyncio.to_thread(lambda: [line.entry() for line in read()])

    async def open(self) -> list[Entry]:
        """See `Ledger.open`."""
        self._settle_late()
        return [_as_open(request, one).entry() for request, one in self._open.items()]

    async def find(self, token: str, request: str) -> Entry | None:
        """See `Ledger.find`."""
        reservation = self._open.get(request)
        line = self._journal.line(request) if reservation is None else _as_open(request, reservation)
        return line.entry() if line is not None and line.is_of(token) else None

    async def release(self, request: str) -> Entry | None:
        """See `Ledger.release`."""
        reservation = self._open.get(request) or self._assumed.get(request)
        if reservation is None:
            return None
        was, is_open = self._journal.line(request) or _as_open(request, reservation), request in self._open
        self._settle(request, Settlement({}, Mark.RELEASED, reservation.text))
        if is_open:  # nothing is held any more, but its holder will say what it cost
            self._released[request] = reservation
            for account in reservation.accounts:
                account.reserve(request, 0)
        return was.entry()

    def _settle_late(self) -> None:
        """Settle what is to be settled, as far as it can be written down."""
        while self._late:
            try:
                self._settle(*self._late[0])
            except StoreUnavailable:
                return  # it is held until it can: whatever is asked for next comes here first
            self._late.popleft()

    def _settle(self, request: str, settlement: Settlement) -> None:
        reservation = self._open.get(request) or self._assumed.get(request) or self._released.get(request)
        if reservation is None:
            return
        now_us, changed = self._now_us(), []
        token, _, accounts, _ = reservation
        cost, mark, entry = settlement
        is_told = self._journal.keeps_sums or request not in self._open
        for account in accounts:
            account.advance(now_us)
            if not is_told:
                account.settle_held(request, cost.get(account.unit, 0))
                continue
            segments = account.settling(request, cost.get(account.unit, 0), now_us)
            if segments is not None:
                changed.append((account, segments))
        line = None
        if cost or entry:
            line = new(Line, (request, token, entry, mark, now_us))
        self._journal.settle(request, changed, line)
        for account, segments in changed:
            account.settle(request, segments)
        if self._open.pop(request, None) is None and self._released.pop(request, None) is None:
            del self._assumed[request]

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
            if account.is_idle(now_us):
                del self._accounts[account.key]
                self._journal.forget(account)
            else:
                to_purge.append(account)
        self._made = 0


def _as_open(request: str, reservation: Reservation) -> Line:
    return Line(request, reservation.token, reservation.text, Mark.ASSUMED, 0)
