"""What every store promises about budgets: a model of random steps, what no window may exceed, and the corners."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING
from unittest.mock import ANY
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.budgets.budget import Budget
from gateway.budgets.spending import Ask, Entry, Mark, Settlement
from gateway.limits.rule import decide, refund, unused
from gateway.stores import REVOKED
from tests.kit.rule import policies_of
from tests.kit.spending import SPEND_KINDS, Books, SpendSubject, entry_of, reserve, spend_subject

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from gateway.limits.rule import State
    from gateway.stores.ledger import SpendVerdict
    from tests.kit.spending import Spending

S = 1_000_000
HOUR = 3600 * S
T = int(datetime(2026, 10, 24, 20, 59, tzinfo=UTC).timestamp()) * S
"""An hour before a day of 25 hours begins in Berlin, which is a Sunday."""


@pytest.fixture(scope="module", params=SPEND_KINDS)
def subject_of_kind(request: pytest.FixtureRequest) -> Iterator[SpendSubject]:
    with spend_subject(request.param) as one:
        yield one


@pytest.fixture
async def under_test(subject_of_kind: SpendSubject) -> AsyncIterator[SpendSubject]:
    yield subject_of_kind
    await subject_of_kind.close()


MINUTE = Budget(unit="USD", amount=100, window_us=60 * S)
TOKENS = Budget(unit="tokens", amount=60, window_us=600 * S)
DAY = Budget(unit="USD", amount=170, calendar="day", zone="Europe/Berlin")
WEEK = Budget(unit="USD", amount=400, calendar="week", zone="America/New_York")
MONTH = Budget(unit="USD", amount=900, calendar="month", shared=True)
FAMILY = (replace(DAY, amount=120), TOKENS)
WHO = (
    ("a", policies_of("9/minute"), (MINUTE,)),
    ("b", policies_of("3/minute"), (MINUTE, TOKENS, DAY, MONTH)),
    ("c", (), (WEEK, MONTH)),
    ("d", policies_of("5/minute", "7/10m"), ()),
    ("e", policies_of("9/minute", "7/10m"), FAMILY),
    ("e.x", policies_of("9/minute", "7/10m"), (replace(MINUTE, amount=30), *(replace(one, above=1) for one in FAMILY))),
)
ASKS = (
    Ask("", {"USD": 1}),
    Ask("", {"USD": 45}),
    Ask("", {"USD": 100}),
    Ask("", {"USD": 7, "tokens": 20}),
    Ask("", {"tokens": 25}),
    Ask("", {"USD": 5, "tokens": 10}, {"USD": 2, "tokens": 1}, most=30, least=1),
    Ask("", {"USD": 5}, {"USD": 4}, most=20, least=20),
    Ask("", {"tokens": 5}, {"tokens": 1}, most=500, least=0),
    Ask("", {"credits": 9}),
    Ask("", {}),
)
IMPOSSIBLE = Ask("", {"USD": 10**6, "tokens": 10**6})
FORWARD = st.sampled_from(
    [1, S - 1, S, 7 * S, 26 * S, 61 * S, 130 * S, 700 * S, HOUR, 11 * HOUR, 26 * HOUR, 240 * HOUR]
)
STEPS = [
    st.tuples(st.just("advance"), FORWARD),
    *[st.tuples(st.just("reserve"), st.tuples(st.integers(0, len(WHO) - 1), st.integers(0, len(ASKS) - 1)))] * 4,
    *[st.tuples(st.just("settle"), st.tuples(st.integers(0, 5), st.integers(0, 4)))] * 2,
    st.tuples(st.just("drop"), st.integers(0, 5)),
    st.tuples(st.just("again"), st.integers(0, 5)),
    st.tuples(st.just("release"), st.integers(0, 5)),
    st.tuples(st.just("kill"), st.integers(0, 5)),
    st.tuples(st.just("renew"), st.just(0)),
    st.tuples(st.just("reopen"), st.just(0)),
    st.tuples(st.just("look"), st.integers(0, len(WHO) - 1)),
]
ODD_STEPS = [
    st.tuples(st.just("back"), st.sampled_from([1, S, 20 * S, 60 * S, HOUR, 26 * HOUR])),
    st.tuples(st.just("exceed"), st.tuples(st.integers(0, 5), st.integers(0, 4))),
]


@dataclass
class Passed:
    """A request that was admitted: what was reserved of each unit, and what it cost, when."""

    who: int
    reserved: dict[str, int]
    cost: dict[str, int] | None = None
    at_us: int = 0


class Model:
    """A store, the books and the rule of the limits, asked the same and held against each other."""

    def __init__(self, under_test: SpendSubject, store: Spending) -> None:
        self.under_test = under_test
        self.store = store
        self.books = Books(WHO, under_test.lease_us)
        self.states: dict[tuple[str, str], State] = {}
        self.plans = [store.spend_plan(*who) for who in WHO]
        self.now_us = self.newest_us = T
        self.count = 0
        self.verdicts: dict[str, SpendVerdict] = {}
        self.killed: set[str] = set()
        self.gone: list[tuple[int, Ask, int]] = []
        self.log: dict[str, Passed] = {}

    async def advance(self, by_us: int) -> None:
        self.now_us += by_us
        self.newest_us = max(self.newest_us, self.now_us)
        await self.set_clock()

    async def back(self, by_us: int) -> None:
        # What a store has forgotten by now it may know again, or not, when the clock steps back: have it all forgotten.
        for who in range(len(WHO)):
            await self.reserve((who, None))
        await self.compare()
        # The embedded store's clock of limits never steps back; it drops what has been empty for a window or two.
        furthest_us = self.newest_us - 60 * S if self.under_test.lease_us is None else 0
        self.now_us = max(self.now_us - by_us, furthest_us)
        await self.set_clock()

    async def set_clock(self) -> None:
        await self.under_test.set_clock(self.now_us)
        for request, ends_us in self.books.ends.items():
            if ends_us <= self.now_us:
                passed = self.log[request]
                passed.cost, passed.at_us = passed.reserved, ends_us
        self.books.pass_time(self.now_us)

    async def reserve(self, what: tuple[int, int | None]) -> None:
        who, shape = what
        subject, policies, budgets = WHO[who]
        self.count += 1
        ask = (IMPOSSIBLE if shape is None else ASKS[shape])._replace(id=f"r-{self.count}")
        reserved = {unit: ask.amount(unit, ask.most) for unit in {**ask.fixed, **ask.each}}
        entry = entry_of(ask.id, subject, reserved, self.now_us)
        ask = ask._replace(about=entry.text())
        verdict = await reserve(self.store, self.plans[who], ask)
        offered = self.books.offer(who, ask, self.now_us)
        if offered.refusing >= 0:
            told = (False, len(policies) + offered.refusing, 0, offered.frees_us)
            assert (verdict[:4], verdict.granted, verdict.used) == (told, 0, offered.used)
            return
        keys, states = self.limits_of(who)
        at_us = self.now_us
        if policies:
            decision, after = decide(policies, states, self.now_us)
            assert verdict[:5] == decision[:5]
            self.states.update(zip(keys, after, strict=True))
            at_us = decision.at_us
        else:
            assert verdict[:5] == (True, -1, 0, 0, at_us)
        if not verdict.admitted:
            assert (verdict.granted, verdict.used) == (0, offered.used)
            return
        assert verdict.granted == offered.granted
        self.books.reserve(who, ask, verdict.granted, entry, self.now_us)
        with_this = zip(offered.used, budgets, strict=True)
        assert verdict.used == tuple(used + ask.amount(one.unit, verdict.granted) for used, one in with_this)
        self.verdicts[ask.id] = verdict
        reserved = {unit: ask.amount(unit, verdict.granted) for unit in {**ask.fixed, **ask.each}}
        self.log[ask.id] = Passed(who, reserved)

    async def settle(self, what: tuple[int, int]) -> None:
        number, quarters = what
        if (request := self.one_alive(number)) is not None:
            self.settle_for(
                request, {unit: atoms * quarters // 4 for unit, atoms in self.log[request].reserved.items()}
            )

    async def exceed(self, what: tuple[int, int]) -> None:
        number, units = what
        if (request := self.one_alive(number)) is not None:
            self.settle_for(request, {unit: atoms + 3 * units for unit, atoms in self.log[request].reserved.items()})

    async def drop(self, number: int) -> None:
        if (request := self.one_alive(number)) is None or request not in self.books.open:
            return
        who, verdict = self.books.open[request].who, self.verdicts[request]
        self.settle_for(request, {}, is_sent=False)
        self.store.refund(self.plans[who], verdict)
        keys, states = self.limits_of(who)
        self.states.update(zip(keys, refund(WHO[who][1], states, verdict.at_us), strict=True))
        del self.log[request]

    async def again(self, number: int) -> None:
        if number < len(self.gone):
            who, ask, granted = self.gone[-1 - number]
            entry = entry_of(ask.id, WHO[who][0], {}, 0)._replace(cost={"USD": 77})
            settlement = Settlement(entry.cost, Mark.EXACT, entry.text())
            self.store.ledger.settle(self.plans[who], ask, granted, settlement)
            self.books.settle(ask.id, settlement, self.now_us)

    async def release(self, number: int) -> None:
        known = [*self.books.open, *(one for one in self.books.assumed if self.is_known(one))]
        if number >= len(known):
            assert await self.store.ledger.release(f"x-{number}") is None
            return
        request = known[-1 - number]
        one = self.books.open.get(request) or self.books.assumed[request]
        was = await self.store.ledger.release(request)
        assert was is not None
        assert (was.id, was.token, was.reserved) == (request, one.entry.token, one.entry.reserved)
        self.books.release(request, Settlement({}, Mark.RELEASED, one.entry.text()), self.now_us)
        self.gone.append((one.who, one.ask, one.granted))
        self.log[request].cost = {}
        self.under_test.forget(request)

    async def kill(self, number: int) -> None:
        if self.under_test.lease_us is not None and (request := self.one_alive(number)) is not None:
            self.killed.add(request)
            self.under_test.kill(request)

    async def renew(self, _: int) -> None:
        if self.under_test.lease_us is not None:
            # Whoever comes back when its assumption counts no more may find the budget spent: nobody can help that.
            for request in [one for one in self.books.assumed if one not in self.killed and not self.is_known(one)]:
                self.killed.add(request)
                self.under_test.kill(request)
        await self.under_test.renew()
        if self.under_test.lease_us is None:
            return
        for request in {*self.books.open, *self.books.assumed} - self.killed:
            self.books.renew(request, self.now_us)
            self.log[request].cost = None

    async def reopen(self, _: int) -> None:
        if not self.under_test.reopens:
            return
        self.store = await self.under_test.reopen()
        self.plans = [self.store.spend_plan(*who) for who in WHO]
        for request in self.books.open:
            self.log[request].cost, self.log[request].at_us = self.log[request].reserved, self.now_us
        self.killed |= self.books.open.keys()
        self.books.abandon(self.now_us)
        self.states.clear()

    async def look(self, who: int) -> None:
        await self.under_test.settled()
        assert await self.store.ledger.standings(self.plans[who]) == self.books.standings(who, self.now_us)

    async def compare(self) -> None:
        """Hold all that the ledger tells against the model."""
        for who in range(len(WHO)):
            await self.look(who)
        ledger = self.store.ledger
        opened = {one.id: one for one in await ledger.open()}
        assert opened.keys() == self.books.open.keys()
        for request, one in opened.items():
            assert (one.reserved, one.at_us) == (self.books.open[request].entry.reserved, 0)
        entries = await ledger.entries(0)
        assert {one.id: one._replace(at_us=0) for one in entries} == self.books.entries
        assert len(entries) == len(self.books.entries)
        times = [one.at_us for one in entries]
        assert times == sorted(times)
        paged, since_us = list[Entry](), 0
        while page := await ledger.entries(since_us, limit=2):
            paged += page
            since_us = page[-1].at_us + 1
        assert paged == entries
        of_e = [one for one in self.books.entries.values() if one.token.startswith("e")]
        assert {one.id for one in await ledger.entries(0, "e")} == {one.id for one in of_e}
        for entry in list(self.books.entries.values())[-2:]:
            found = await ledger.find(entry.token, entry.id)
            assert found is not None
            assert found._replace(at_us=0) == entry
            assert await ledger.find("f", entry.id) is None

    def check_windows(self) -> None:
        """See that in the window that ends now, and at any other since it began, no budget was exceeded."""
        for who, (_, _, budgets) in enumerate(WHO):
            for key, budget in zip(self.books.keys(who), budgets, strict=True):
                total = 0
                for passed in self.log.values():
                    if key not in self.books.keys(passed.who):
                        continue
                    if passed.cost is None:
                        total += passed.reserved.get(budget.unit, 0)
                    elif in_window(budget, passed.at_us, self.now_us):
                        total += passed.cost.get(budget.unit, 0)
                assert total <= budget.amount

    def settle_for(self, request: str, cost: dict[str, int], *, is_sent: bool = True) -> None:
        one = self.books.open.get(request) or self.books.assumed[request]
        entry = one.entry._replace(cost=cost, status=200, upstream_id=f"up-{request}")
        settlement = Settlement(cost, Mark.EXACT, entry.text() if is_sent else "")
        self.store.ledger.settle(self.plans[one.who], one.ask, one.granted, settlement)
        self.books.settle(request, settlement, self.now_us)
        self.gone.append((one.who, one.ask, one.granted))
        self.log[request].cost, self.log[request].at_us = cost, self.now_us

    def one_alive(self, number: int) -> str | None:
        """Return the id of a request that is under way, or was when its lease ended."""
        known = [*self.books.open, *(one for one in self.books.assumed if self.is_known(one))]
        alive = [one for one in known if one not in self.killed]
        return alive[-1 - number] if number < len(alive) else None

    def is_known(self, request: str) -> bool:
        """Return whether an assumption still counts, in all budgets that it was counted in."""
        one = self.books.assumed[request]
        counted = [key for key in one.keys if one.ask.amount(self.books.books[key][0].unit, one.granted)]
        return all(request in self.books.books[key][1].assumed for key in counted)

    def limits_of(self, who: int) -> tuple[list[tuple[str, str]], list[State]]:
        subject, policies, _ = WHO[who]
        keys = [(policy.owner(subject), policy.counter) for policy in policies]
        return keys, [self.states.get(key) or unused(policy) for key, policy in zip(keys, policies, strict=True)]


def in_window(budget: Budget, at_us: int, now_us: int) -> bool:
    """Return whether a time lies in the window that now lies in, or that ends now."""
    if budget.calendar is None:
        return at_us > now_us - budget.window_us
    zone = ZoneInfo(budget.zone)
    at, now = (datetime.fromtimestamp(one // S, zone).date() for one in (at_us, now_us))
    begins: dict[str, date] = {
        "day": now,
        "week": now - timedelta(days=now.weekday()),
        "month": now.replace(day=1),
    }
    return at >= begins[budget.calendar]


def _steps(*kinds: st.SearchStrategy[tuple[str, object]]) -> st.SearchStrategy[list[tuple[str, object]]]:
    return st.lists(st.one_of(*kinds), min_size=20, max_size=60)


SETTINGS = settings(
    deadline=None,
    derandomize="MACHINE_EXAMPLES" not in os.environ,
    max_examples=int(os.environ.get("MACHINE_EXAMPLES", "40")),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@SETTINGS
@given(steps=_steps(*STEPS, *ODD_STEPS))
async def test_random_steps_against_the_books(under_test: SpendSubject, steps: list[tuple[str, object]]) -> None:
    model = Model(under_test, await under_test.fresh())
    await model.set_clock()
    for step, what in steps:
        await getattr(model, step)(what)
    await model.compare()


@SETTINGS
@given(steps=_steps(*STEPS))
async def test_no_window_ever_exceeds_a_budget(under_test: SpendSubject, steps: list[tuple[str, object]]) -> None:
    model = Model(under_test, await under_test.fresh())
    await model.set_clock()
    for step, what in steps:
        await getattr(model, step)(what)
        model.check_windows()


async def test_a_revoked_subject_reserves_nothing(under_test: SpendSubject) -> None:
    store = await under_test.fresh()
    await under_test.set_clock(T)
    plan = store.spend_plan("e.x", (), (MINUTE,))
    await store.revoke("e", 60)
    verdict = await reserve(store, plan, ASKS[0]._replace(id="r-1"))
    assert (verdict[:2], verdict.granted) == ((False, REVOKED), 0)
    assert await store.ledger.standings(plan) == [(0, 0, 0)]
    assert await store.ledger.open() == []


async def test_of_two_budgets_that_refuse_the_one_with_the_longer_wait_is_told_and_never_is_the_longest(
    under_test: SpendSubject,
) -> None:
    store = await under_test.fresh()
    await under_test.set_clock(T)
    plan = store.spend_plan("a", policies_of("1/minute"), (MINUTE, replace(TOKENS, amount=40), DAY))
    first = ASKS[3]._replace(id="r-1", fixed={"USD": 100, "tokens": 40})
    assert (await reserve(store, plan, first)).used == (100, 40, 100)
    store.ledger.settle(plan, first, 0, Settlement(first.fixed, Mark.EXACT, entry_of("r-1", "a", {}, T).text()))
    await under_test.settled()
    # The limit would refuse as well: where budgets do, it is not asked.
    asks = ({"USD": 1}, {"USD": 1, "tokens": 1}, {"USD": 71, "tokens": 41}, {"USD": 171, "tokens": 1})
    told = [await reserve(store, plan, Ask(f"x-{number}", fixed)) for number, fixed in enumerate(asks)]
    assert [(one.admitted, one.policy) for one in told] == [(False, index) for index in (1, 2, 2, 1)]


async def test_what_is_released_under_way_counts_when_it_is_over(under_test: SpendSubject) -> None:
    store = await under_test.fresh()
    await under_test.set_clock(T)
    plan = store.spend_plan("a", (), (MINUTE, DAY))
    for number, is_sent in enumerate((True, False)):
        ask = Ask(f"r-{number}", {"USD": 40}, about=(about := entry_of(f"r-{number}", "a", {"USD": 40}, T)).text())
        assert (await reserve(store, plan, ask)).admitted
        assert await store.ledger.release(ask.id)
        assert await store.ledger.standings(plan) == [(30 * number, 0, ANY), (30 * number, 0, ANY)]
        assert await store.ledger.open() == []
        await under_test.renew()
        cost = {"USD": 30} if is_sent else {}
        text = about._replace(cost=cost).text() if is_sent else ""
        for _ in range(2):
            store.ledger.settle(plan, ask, 0, Settlement(cost, Mark.EXACT, text))
            await under_test.settled()
        assert await store.ledger.standings(plan) == [(30, 0, ANY), (30, 0, ANY)]
    entries = await store.ledger.entries(0)
    assert [(one.id, one.mark, one.cost) for one in entries][:1] == [("r-0", Mark.EXACT, {"USD": 30})]
    assert {one.id for one in entries[1:]} <= {"r-1"}
