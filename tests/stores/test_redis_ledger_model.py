"""Budgets in Redis against the rule: whatever happens, the script decides as `Book` does, and counts what it counts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.budgets.book import NEVER_US, Book
from gateway.budgets.budget import Budget
from gateway.budgets.spending import LEASE_US, Ask, Entry, Mark, Settlement
from gateway.stores.redis import RedisStore
from tests.kit.redis import running_redis
from tests.kit.redis_spending import stop_renewing
from tests.kit.stores import CLOCK_KEY, CLOCK_SCRIPT, CLOCK_SPENDS, TIMEOUT_S, Waiting, connect, fake_redis

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from gateway.stores.address import RedisAddress
    from gateway.stores.ledger import SpendVerdict

HOUR_US = 3_600_000_000
BEGIN_US = 1_772_300_000_000_000  # 28 February 2026, 17:33 UTC: days, weeks and a month end soon
BUDGETS = (
    Budget(unit="USD", amount=1000, calendar="day"),
    Budget(unit="USD", amount=700, window_us=60_000_000),
    Budget(unit="tokens", amount=2000, calendar="week", zone="Asia/Tokyo", above=1),
    Budget(unit="USD", amount=1500, window_us=24 * HOUR_US, shared=True),
    Budget(unit="tokens", amount=(1 << 53) - 1, calendar="month"),
)

amounts = st.integers(0, 400) | st.sampled_from((699, 700, 701, 1000, 1001, (1 << 53) - 2))
asks = st.builds(
    lambda usd, tokens, each, most, least: Ask(
        "", {"USD": usd, "tokens": tokens}, {"USD": each} if each else {}, most, min(most, least)
    ),
    amounts,
    amounts,
    st.integers(0, 7),
    st.integers(0, 300),
    st.integers(0, 60),
)
steps_us = st.sampled_from((1, 900_000, 1_000_000, 7_000_000, LEASE_US, 61_000_000, 6 * HOUR_US, 40 * HOUR_US))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), asks),
        st.tuples(st.just("settle"), st.tuples(st.integers(0, 30), amounts)),
        st.tuples(st.just("pass"), steps_us),
        st.tuples(st.just("back"), st.sampled_from((1, 2_000_000, HOUR_US))),
        st.tuples(st.just("renew"), st.just(0)),
        st.tuples(st.just("release"), st.integers(0, 30)),
    ),
    max_size=30,
)


@pytest.fixture(scope="module", params=["fakeredis", "redis"])
def address(request: pytest.FixtureRequest) -> Iterator[RedisAddress]:
    if request.param == "fakeredis":
        with fake_redis() as fake:
            yield fake
    else:
        with running_redis() as server:
            yield server.address


class Model:
    """Books, and what is open and assumed, beside a store in Redis."""

    def __init__(self, store: RedisStore, control: redis.Redis) -> None:
        self.store = store
        self.control = control
        self.now_us = BEGIN_US
        self.books = [Book() for _ in BUDGETS]
        self.plan: Any = store.spend_plan("first.child", (), BUDGETS)
        self.asked: dict[str, tuple[Ask, int]] = {}
        self.open: dict[str, int] = {}
        self.assumed: set[str] = set()
        self.settled: dict[str, Mark] = {}

    def starts(self, budget: Budget) -> tuple[int, ...]:
        return budget.starts(self.now_us / 1e6)

    def to(self, now_us: int) -> None:
        """Make it that time, everywhere."""
        self.now_us = now_us
        self.control.set(CLOCK_KEY, now_us)

    def update(self) -> None:
        """Bring all books up to now."""
        self.books = [
            book.at(budget, self.now_us, self.starts(budget)) for budget, book in zip(BUDGETS, self.books, strict=True)
        ]

    def expire(self) -> None:
        """Assume what has ended."""
        for id_ in [id_ for id_, ends_us in self.open.items() if ends_us <= self.now_us]:
            del self.open[id_]
            self.assumed.add(id_)

    async def reserve(self, ask: Ask) -> None:
        id_ = f"request-{len(self.asked)}"
        ask = ask._replace(id=id_, about=Entry(id_, 1, "first.child", "t", reserved=ask.fixed).text())
        self.update()
        waiting = Waiting()
        self.store.reserve(self.plan, ask, waiting)
        verdict: SpendVerdict = await waiting.future  # type: ignore[assignment]  # of a reservation it is one
        rooms = [
            book.room(budget, ask, self.now_us, self.starts(budget))
            for budget, book in zip(BUDGETS, self.books, strict=True)
        ]
        used = [sum(atoms for _, atoms in book.spent) + sum(h.atoms for h in book.held.values()) for book in self.books]
        self.asked[id_] = (ask, 0)
        if any(room.granted < 0 for room in rooms):
            waits = [room.frees_us if room.granted < 0 else 0 for room in rooms]
            longest = NEVER_US if NEVER_US in waits else max(waits)
            assert not verdict.admitted
            assert (verdict.policy, verdict.reset_us) == (waits.index(longest), longest)
        else:
            granted = min((ask.most, *(room.granted for room in rooms)))
            assert (verdict.admitted, verdict.policy, verdict.granted) == (True, -1, granted)
            self.asked[id_] = (ask, granted)
            for index, budget in enumerate(BUDGETS):
                atoms = ask.amount(budget.unit, granted)
                used[index] += atoms
                self.books[index] = self.books[index].reserved(id_, atoms, self.now_us + LEASE_US)
            self.open[id_] = self.now_us + LEASE_US
        assert verdict.used == tuple(used)

    async def settle(self, what: tuple[int, int]) -> None:
        number, cost = what
        id_ = f"request-{number}"
        if id_ not in self.asked:
            return
        ask, granted = self.asked[id_]
        settlement = Settlement({"USD": cost, "tokens": cost}, Mark.EXACT, Entry(id_, 1, "first.child", "t").text())
        self.store.ledger.settle(self.plan, ask, granted, settlement)
        self._settle(id_, cost, Mark.EXACT)

    def _settle(self, id_: str, cost: int, mark: Mark) -> None:
        if id_ not in self.open and id_ not in self.assumed:
            return
        self.open.pop(id_, None)
        self.assumed.discard(id_)
        self.settled[id_] = mark
        ask, granted = self.asked[id_]
        for index, (budget, book) in enumerate(zip(BUDGETS, self.books, strict=True)):
            if ask.amount(budget.unit, granted):
                starts = self.starts(budget)
                now = book if mark is Mark.RELEASED else book.at(budget, self.now_us, starts)
                self.books[index] = now.settled(budget, id_, cost, self.now_us, starts)

    async def renew(self, _: int) -> None:
        live = self.store.link.live
        assert live is not None
        self.store.ledger.tell_again()
        self.store.ledger.tell(self.store.link, live)
        self.update()
        for id_ in (*self.open, *self.assumed):
            ask, granted = self.asked[id_]
            self.open[id_] = self.now_us + LEASE_US
            for index, budget in enumerate(BUDGETS):
                atoms = ask.amount(budget.unit, granted)
                if atoms:
                    self.books[index] = self.books[index].renewed(id_, atoms, self.now_us + LEASE_US)
        self.assumed.clear()

    async def release(self, number: int) -> None:
        id_ = f"request-{number}"
        self.expire()
        was = await self.store.ledger.release(id_)
        assert (was is not None) is (id_ in self.open or id_ in self.assumed)
        self._settle(id_, 0, Mark.RELEASED)

    async def take(self, step: str, what: Any) -> None:
        if step in {"pass", "back"}:
            self.to(self.now_us + (what if step == "pass" else -what))
        else:
            await getattr(self, step)(what)

    async def compare(self) -> None:
        """See that both count the same."""
        self.update()
        expected = [
            book.standing(budget, self.now_us, self.starts(budget))
            for budget, book in zip(BUDGETS, self.books, strict=True)
        ]
        assert await self.store.ledger.standings(self.plan) == expected

    async def compare_ledgers(self) -> None:
        """See that both remember the same."""
        self.expire()
        entries = await self.store.ledger.entries(0)
        expected = self.settled | dict.fromkeys(self.assumed, Mark.ASSUMED)
        assert {entry.id: entry.mark for entry in entries} == expected
        assert len(entries) == len(expected)
        assert {entry.id for entry in await self.store.ledger.open()} == set(self.open)


@settings(max_examples=25, deadline=None)
@given(taken=steps)
def test_redis_decides_and_counts_as_the_rule_does(address: RedisAddress, taken: list[tuple[str, Any]]) -> None:
    asyncio.run(play(address, taken))


async def play(address: RedisAddress, taken: list[tuple[str, Any]]) -> None:
    control = connect(address)
    control.flushall()
    now_us: list[int] = [BEGIN_US]
    store = RedisStore(
        address, timeout_s=TIMEOUT_S, script=CLOCK_SCRIPT, spends=CLOCK_SPENDS, now_s=lambda: now_us[0] / 1e6
    )
    await store.start()
    stop_renewing(store)
    try:
        model = Model(store, control)
        model.to(BEGIN_US)
        for step, what in taken:
            await model.take(step, what)
            now_us[0] = model.now_us
            await model.compare()
        await model.compare_ledgers()
    finally:
        await store.close()
        control.close()
