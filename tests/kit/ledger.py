"""A ledger that a test fills, in a store, in a running gateway: for who reads it, whatever fills it in the end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

import pytest

from gateway import Gateway
from gateway.budgets.spending import Entry, Mark
from gateway.budgets.told import read_us
from gateway.config import Config
from gateway.stores.memory import MemoryStore
from tests.kit.upstream import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway.budgets.book import BudgetStanding
    from gateway.budgets.spending import Ask, Settlement
    from gateway.stores.ledger import SpendPlan

HOUR_US = 3_600_000_000


def entry(id_: str, at_us: int = HOUR_US, **others: Any) -> Entry:
    """Return an entry that cost a cent, and began a second before it was settled; `others` in place of that."""
    known = {
        "began_us": max(at_us - 1_000_000, 0),
        "token": "agent",
        "target": "api",
        "model": "gpt-5",
        "method": "POST",
        "path": "/chat/completions",
        "reserved": {"USD": 20_000_000},
        "cost": {"USD": 10_000_000},
        "mark": Mark.EXACT,
        "units": {"input": 12, "output": 34},
        "status": 200,
        "upstream_id": f"req_{id_}",
    }
    return Entry(id_, at_us=at_us, **{**known, **others})


def reserved(id_: str, began_us: int = HOUR_US, **others: Any) -> Entry:
    """Return an entry as a store has it of a reservation that is open."""
    one = entry(id_, 0, began_us=began_us, status=0, upstream_id="", units={}, mark=Mark.ASSUMED, **others)
    return one._replace(cost=one.reserved)


def morning() -> FakeLedger:
    """Return the ledger of a morning in which a client hung up and a process died: what the README shows."""
    start_us = read_us("2026-11-26T09:00:00Z")
    dollars = {"cost": {"USD": 12_300_000}, "reserved": {"USD": 20_000_000}, "model": "gpt-5-mini"}
    mine, yours = {**dollars, "token": "VYKvw7Qm2l0"}, {**dollars, "token": "k3Jd81mPq_w"}

    def at(number: int, second: int, **others: Any) -> Entry:
        name = f"5f0c3a9e12d4-{number}"
        known = {"upstream_id": f"req_7d{number}", **others}
        return entry(name, start_us + second * 1_000_000, **known)

    settled = [
        at(1, 2, **mine),
        at(2, 4, **{**mine, "cost": {"USD": 4_000_000}, "mark": Mark.ESTIMATED}),
        at(3, 9, **{**yours, "cost": {"USD": 500_000}, "path": "/embeddings", "model": "text-embedding-3-small"}),
        at(4, 41, **{**mine, "cost": {"USD": 20_000_000}, "mark": Mark.ASSUMED, "status": 0, "upstream_id": ""}),
    ]
    return FakeLedger(settled, [reserved("5f0c3a9e12d4-5", start_us + 45_000_000, token="VYKvw7Qm2l0")])


class FakeLedger:
    """What is told of as it was put in: see `stores.ledger.Ledger`.

    Attributes:
        settled: Oldest first.
        reserved: Those that are open.
        asked: How often for entries.
    """

    def __init__(self, settled: Sequence[Entry] = (), reserved: Sequence[Entry] = ()) -> None:
        self.settled = list(settled)
        self.reserved = list(reserved)
        self.asked = 0

    def settle(self, plan: SpendPlan, ask: Ask, granted: int, settlement: Settlement) -> None:
        raise NotImplementedError

    async def standings(self, plan: SpendPlan) -> list[BudgetStanding]:
        raise NotImplementedError

    async def entries(self, since_us: int, token: str | None = None, limit: int | None = None) -> list[Entry]:
        self.asked += 1
        found = [one for one in self.settled if one.at_us >= since_us and _is_of(one, token)]
        if limit is None or len(found) <= limit:
            return found
        return [one for one in found if one.at_us <= found[limit - 1].at_us]

    async def open(self) -> list[Entry]:
        return list(self.reserved)

    async def find(self, token: str, request: str) -> Entry | None:
        known = [one for one in (*self.settled, *self.reserved) if one.id == request and _is_of(one, token)]
        return known[-1] if known else None

    async def release(self, request: str) -> Entry | None:
        assumed = [one for one in self.settled if one.mark is Mark.ASSUMED]
        for one in (*self.reserved, *assumed):
            if one.id == request:
                self.reserved = [other for other in self.reserved if other.id != request]
                self.settled = [other for other in self.settled if other.id != request]
                self.settled.append(one._replace(mark=Mark.RELEASED, cost={}, at_us=one.at_us or one.began_us + 1))
                return one
        return None


class LedgerStore:
    """The embedded store, with a test's ledger in place of its own."""

    def __init__(self, ledger: FakeLedger) -> None:
        self.ledger = ledger
        self._store = MemoryStore()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@contextlib.contextmanager
def serving_ledger(ledger: FakeLedger, key: str = "") -> Iterator[str]:
    """Run a gateway with this ledger, in a thread, until the block ends; yield its address."""
    started, stop, urls = threading.Event(), asyncio.Event(), list[str]()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        config = Config(target_api_url="http://127.0.0.1:1", admin_key=key or None)
        gateway = Gateway(config)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gateway.server.make_store", lambda *_: LedgerStore(ledger))
            await gateway.start()
        loops.append(asyncio.get_running_loop())
        urls.extend(gateway.urls)
        started.set()
        await stop.wait()
        await gateway.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(TIMEOUT_S)
        yield urls[0]
    finally:
        if loops:
            loops[0].call_soon_threadsafe(stop.set)
        thread.join()


def _is_of(one: Entry, token: str | None) -> bool:
    return token is None or f"{one.token}.".startswith(f"{token}.")
