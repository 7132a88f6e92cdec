"""The ledger of every store in pages: together they are all of it, once, oldest first."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from gateway.budgets.spending import Ask, Entry, Mark, Settlement
from gateway.stores.memory import MemoryStore
from gateway.stores.memory_ledger import MemoryLedger
from gateway.stores.redis import RedisStore
from gateway.stores.state_file import StateFile
from tests.kit.redis import running_redis
from tests.kit.spending import reserve
from tests.kit.stores import CLOCK_KEY, CLOCK_SCRIPT, CLOCK_SPENDS, TIMEOUT_S, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from gateway.stores.address import RedisAddress

BEGIN_US = 1_772_300_000_000_000
FAMILIES = 9

Stored = tuple[MemoryStore | RedisStore, "Callable[[int], object]"]


@pytest.fixture(scope="module")
def address() -> Iterator[RedisAddress]:
    with running_redis() as server:
        yield server.address


@pytest.fixture(params=["memory", "file", "redis"])
async def stored(request: pytest.FixtureRequest, address: RedisAddress, tmp_path: Path) -> AsyncIterator[Stored]:
    """Yield a store, and what sets its clock."""
    times = [BEGIN_US]
    if request.param != "redis":
        journal = StateFile(str(tmp_path / "state.db")) if request.param == "file" else None
        embedded = MemoryStore(lambda: times[0], MemoryLedger(lambda: times[0], journal))
        await embedded.start()
        yield embedded, lambda now_us: times.__setitem__(0, now_us)
        await embedded.close()
        return
    with contextlib.closing(connect(address)) as control:
        control.flushall()
        control.set(CLOCK_KEY, BEGIN_US)
        store = RedisStore(
            address,
            timeout_s=TIMEOUT_S,
            script=CLOCK_SCRIPT,
            spends=CLOCK_SPENDS,
            now_s=lambda: BEGIN_US / 1e6,
        )
        await store.start()
        try:
            yield store, lambda now_us: control.set(CLOCK_KEY, now_us)
        finally:
            await store.close()


async def spend(stored: Stored, token: str, names: Sequence[str]) -> None:
    """Settle requests, two of them in each microsecond."""
    store, set_clock = stored
    plan = store.spend_plan(token, (), ())
    for number, name in enumerate(names):
        set_clock(BEGIN_US + number // 2)
        ask = Ask(name, {"USD": 1}, about=Entry(name, BEGIN_US, token, "api", reserved={"USD": 1}).text())
        verdict = await reserve(store, plan, ask)
        assert verdict.admitted
        text = Entry(name, BEGIN_US, token, "api", reserved={"USD": 1}, cost={"USD": 1}).text()
        store.ledger.settle(plan, ask, verdict.granted, Settlement({"USD": 1}, Mark.EXACT, text))
        await store.ping()  # it has arrived before the clock goes on


async def paged(stored: Stored, token: str | None, limit: int) -> list[list[Entry]]:
    pages: list[list[Entry]] = []
    since_us = 0
    while page := await stored[0].ledger.entries(since_us, token, limit):
        pages.append(page)
        since_us = page[-1].at_us + 1
    return pages


async def test_pages_are_all_of_it(stored: Stored) -> None:
    for family in range(FAMILIES):
        await spend(stored, f"t{family}", [f"r-{family}-{number}" for number in range(3 * family)])
    whole = await stored[0].ledger.entries(0)
    assert len(whole) == sum(3 * family for family in range(FAMILIES))
    for limit in (1, 4, 7, 1000):
        pages = await paged(stored, None, limit)
        found = [entry for page in pages for entry in page]
        assert sorted(entry.id for entry in found) == sorted(entry.id for entry in whole)
        assert [entry.at_us for entry in found] == [entry.at_us for entry in whole]
        # Two of each family at most are of one microsecond.
        assert max(map(len, pages)) < limit + 2 * FAMILIES


async def test_pages_of_a_token_that_has_few_among_many(stored: Stored) -> None:
    await spend(stored, "t.child", ["mine"])
    await spend(stored, "t", [f"r-{number}" for number in range(40)])
    await spend(stored, "t.child", [f"mine-{number}" for number in range(20)])
    pages = await paged(stored, "t.child", 3)
    assert sorted(entry.id for page in pages for entry in page) == sorted(
        ["mine", *(f"mine-{number}" for number in range(20))]
    )
    assert await stored[0].ledger.entries(0, "t.child.none", 3) == []
