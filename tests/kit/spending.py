"""Stores under test that hold budgets, and a model of what they promise: `Book`, asked the same.

A kind of store joins in with a `SpendSubject` and a line in `spend_subject`.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from gateway.budgets.book import NEVER_US, Book, BudgetStanding, Held
from gateway.budgets.spending import Ask, Entry, Mark, Settlement
from gateway.stores.memory import MemoryStore
from gateway.stores.memory_ledger import MemoryLedger
from gateway.stores.state_file import StateFile
from tests.kit.redis import running_redis
from tests.kit.redis_spending import RedisSpending
from tests.kit.stores import Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway.budgets.budget import Budget
    from gateway.limits import Policy
    from gateway.stores.ledger import SpendPlan, SpendStore, SpendVerdict

    class Spending(SpendStore, Protocol):
        """A store with budgets."""


class SpendSubject(Protocol):
    """A store under test, with all of its clocks on the test's."""

    lease_us: int | None
    """How long a reservation lasts without being renewed; None: as long as the store lives."""
    reopens: bool
    """Whether what it knows outlives the store."""

    async def fresh(self) -> Spending:
        """Return the store, started, with nothing spent in it."""
        ...

    async def reopen(self) -> Spending:
        """Give the store up as a process that is killed does, and return the one of the process after it."""
        ...

    async def set_clock(self, now_us: int) -> None:
        """Make it that time for the store."""
        ...

    async def settled(self) -> None:
        """Return when all settlements have arrived."""
        ...

    async def renew(self) -> None:
        """Renew what is held; return when that has arrived."""
        ...

    def kill(self, request: str) -> None:
        """Neither renew nor settle a reservation any more, as if the process that made it were gone."""
        ...

    def forget(self, request: str) -> None:
        """See that nobody renews a reservation that was released by hand; see `kill`."""
        ...

    async def close(self) -> None:
        """Close the store."""
        ...


class MemorySpending:
    """MemoryStore on a variable, without a file."""

    lease_us: int | None = None
    reopens = False

    def __init__(self) -> None:
        self._now_us = 0

    async def fresh(self) -> Spending:
        return MemoryStore(lambda: self._now_us, MemoryLedger(lambda: self._now_us))

    async def reopen(self) -> Spending:
        raise AssertionError("it ends with its process")

    async def set_clock(self, now_us: int) -> None:
        self._now_us = now_us

    async def settled(self) -> None:
        """They arrive at once."""

    async def renew(self) -> None:
        """What this process holds lasts as long as it does."""

    def kill(self, request: str) -> None:
        raise AssertionError("it ends with its process")

    def forget(self, request: str) -> None:
        """Nothing is ever renewed."""

    async def close(self) -> None:
        pass


class FileSpending(MemorySpending):
    """The same with a `STATE_FILE`."""

    reopens = True

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._count = 0
        self._store: MemoryStore | None = None

    async def fresh(self) -> Spending:
        await self.close()
        self._count += 1
        return await self._opened()

    async def reopen(self) -> Spending:
        # A process that is killed closes its descriptors, and does nothing else.
        assert self._store is not None
        copies = self._directory / f"{self._count}-killed"
        copies.mkdir()
        for file in self._directory.glob(f"{self._count}.db*"):
            shutil.copy(file, copies / file.name)
        await self.close()
        for file in copies.iterdir():
            shutil.copy(file, self._directory / file.name)
        shutil.rmtree(copies)
        return await self._opened()

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()
            self._store = None

    async def _opened(self) -> MemoryStore:
        journal = StateFile(str(self._directory / f"{self._count}.db"))
        self._store = store = MemoryStore(lambda: self._now_us, MemoryLedger(lambda: self._now_us, journal))
        await store.start()
        return store


SPEND_KINDS = ("memory", "file", "redis")
"""Not fakeredis, which would take a minute for it: `test_redis_ledger_model.py` has it."""


@contextlib.contextmanager
def spend_subject(kind: str) -> Iterator[SpendSubject]:
    """Yield a store of a kind."""
    if kind == "memory":
        yield MemorySpending()
    elif kind == "redis":
        with running_redis() as server:
            yield RedisSpending(server.address)
    else:
        # In memory: what a disk takes to write it down for good is of no interest here.
        shared = Path("/dev/shm")
        with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as directory:
            yield FileSpending(Path(directory))


async def reserve(store: SpendStore, plan: SpendPlan, ask: Ask) -> SpendVerdict:
    """Reserve, and return the verdict or raise the loss."""
    waiting = Waiting()
    store.reserve(plan, ask, waiting)
    return cast("SpendVerdict", await waiting.future)


def entry_of(request: str, token: str, reserved: dict[str, int], at_us: int) -> Entry:
    """Return what the ledger is to remember of a request, before it is settled."""
    return Entry(request, at_us, token, "maps", model="m-1", method="GET", path="/x", reserved=reserved)


class Offered(NamedTuple):
    """What the model says to an ask."""

    granted: int
    refusing: int
    frees_us: int
    used: tuple[int, ...]


@dataclass
class Reserved:
    """A request that was admitted, and is not settled."""

    ask: Ask
    granted: int
    who: int
    entry: Entry
    keys: list[tuple[str, str]]


@dataclass
class Books:
    """All budgets of some subjects, as `Book` has them, and the ledger."""

    who: Sequence[tuple[str, Sequence[Policy], Sequence[Budget]]]
    lease_us: int | None
    books: dict[tuple[str, str], tuple[Budget, Book]] = field(default_factory=dict)
    open: dict[str, Reserved] = field(default_factory=dict)
    assumed: dict[str, Reserved] = field(default_factory=dict)
    released: dict[str, Reserved] = field(default_factory=dict)
    """By hand, while they were under way: whoever has them may settle them yet. Not where a test has that forgotten."""
    entries: dict[str, Entry] = field(default_factory=dict)
    """Without the times they were settled at."""
    ends: dict[str, int] = field(default_factory=dict)

    def keys(self, who: int) -> list[tuple[str, str]]:
        subject, _, budgets = self.who[who]
        return [(budget.owner(subject), budget.counter) for budget in budgets]

    def pass_time(self, now_us: int) -> None:
        """Bring everything up to a time: what has left windows is gone, and what has ended is assumed."""
        for subject, _, budgets in self.who:
            for budget in budgets:
                key = budget.owner(subject), budget.counter
                book = self.books.get(key, (budget, Book()))[1]
                self.books[key] = budget, book.at(budget, now_us, budget.starts(now_us // 1_000_000))
        for request in [one for one, ends_us in self.ends.items() if ends_us <= now_us]:
            self._assume(request)

    def offer(self, who: int, ask: Ask, now_us: int) -> Offered:
        granted, refusals, used = ask.most, [], []
        for index, (key, budget) in enumerate(zip(self.keys(who), self.who[who][2], strict=True)):
            book, starts = self.books[key][1], budget.starts(now_us // 1_000_000)
            room, stands = book.room(budget, ask, now_us, starts), book.standing(budget, now_us, starts)
            used.append(stands.spent + stands.held)
            if room.granted < 0:
                longest_us = 1 << 62 if room.frees_us == NEVER_US else room.frees_us
                refusals.append((longest_us, -index, room.frees_us))
            granted = min(granted, room.granted)
        _, minus_index, frees_us = max(refusals, default=(0, 1, 0))
        return Offered(granted, -minus_index, frees_us, tuple(used))

    def reserve(self, who: int, ask: Ask, granted: int, entry: Entry, now_us: int) -> None:
        keys = self.keys(who)
        self.open[ask.id] = Reserved(ask, granted, who, entry, keys)
        self._hold(ask.id, now_us)
        for key in keys:
            budget, book = self.books[key]
            atoms = ask.amount(budget.unit, granted)
            self.books[key] = budget, book.reserved(ask.id, atoms, now_us + (self.lease_us or 1 << 60))

    def renew(self, request: str, now_us: int) -> None:
        """Renew a reservation that is open, or was assumed."""
        if request in self.assumed:
            self.open[request] = self.assumed.pop(request)
            self.entries.pop(request, None)
        one = self.open[request]
        self._hold(request, now_us)
        for key in one.keys:
            budget, book = self.books[key]
            if atoms := one.ask.amount(budget.unit, one.granted):
                self.books[key] = budget, book.renewed(request, atoms, now_us + (self.lease_us or 1 << 60))

    def settle(self, request: str, settlement: Settlement, now_us: int) -> None:
        one = self.open.pop(request, None) or self.assumed.pop(request, None) or self.released.pop(request, None)
        if one is None:
            return
        self.ends.pop(request, None)
        for key in one.keys:
            budget, book = self.books[key]
            cost, starts = settlement.cost.get(budget.unit, 0), budget.starts(now_us // 1_000_000)
            self.books[key] = budget, book.settled(budget, request, cost, now_us, starts)
        self.entries.pop(request, None)
        if settlement.cost or settlement.entry:
            self.entries[request] = Entry.read(settlement.entry, settlement.mark, 0)

    def release(self, request: str, settlement: Settlement, now_us: int) -> None:
        """Settle a request for nothing that is open, or was assumed."""
        one = self.open.get(request)
        self.settle(request, settlement, now_us)
        if one is not None and self.lease_us is None:
            self.released[request] = one
            for key in one.keys:
                budget, book = self.books[key]
                if one.ask.amount(budget.unit, one.granted):
                    self.books[key] = budget, book._replace(held={**book.held, request: Held(0, 1 << 60)})

    def abandon(self, now_us: int) -> None:
        """Have nobody be left who could settle what is open."""
        for request in tuple(self.released):
            for key in self.released.pop(request).keys:
                budget, book = self.books[key]
                held = {one: atoms for one, atoms in book.held.items() if one != request}
                self.books[key] = budget, book._replace(held=held)
        for key, (budget, book) in self.books.items():
            self.books[key] = budget, book.abandoned(budget, now_us, budget.starts(now_us // 1_000_000))
        for request in tuple(self.open):
            self._assume(request)

    def standings(self, who: int, now_us: int) -> list[BudgetStanding]:
        found = zip(self.keys(who), self.who[who][2], strict=True)
        return [
            self.books[key][1].standing(budget, now_us, budget.starts(now_us // 1_000_000)) for key, budget in found
        ]

    def _hold(self, request: str, now_us: int) -> None:
        if self.lease_us is not None:
            self.ends[request] = now_us + self.lease_us

    def _assume(self, request: str) -> None:
        one = self.assumed[request] = self.open.pop(request)
        self.ends.pop(request, None)
        self.entries[request] = Entry.read(one.entry.text(), Mark.ASSUMED, 0)
