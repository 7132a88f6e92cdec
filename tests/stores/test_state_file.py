"""`STATE_FILE`: who may open it, what is told of one that is not good, and what becomes of requests without it."""

from __future__ import annotations

import contextlib
import logging
import resource
import sqlite3
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from gateway.budgets.budget import Budget
from gateway.budgets.spending import Ask, Mark, Settlement
from gateway.config import Config
from gateway.errors import StoreUnavailable
from gateway.limits import parse_limits
from gateway.stores.choice import what_a_restart_forgets
from gateway.stores.memory import MemoryStore
from gateway.stores.memory_ledger import MemoryLedger
from gateway.stores.state_file import MAX_AGE_US, TRIM_EVERY, StateFile
from tests.kit.spending import entry_of, reserve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from gateway.stores.ledger import SpendPlan

DAY_US = 86_400_000_000
BUDGETS = (Budget(unit="USD", amount=100, calendar="month"),)
LIMITS = parse_limits("5/minute")


@contextlib.asynccontextmanager
async def opened(path: Path, now_us: int = 1_790_000_000_000_000) -> AsyncIterator[MemoryStore]:
    store = MemoryStore(lambda: now_us, MemoryLedger(lambda: now_us, StateFile(str(path))))
    try:
        await store.start()
        yield store
    finally:
        await store.close()


def ask_for(request: str, dollars: int) -> Ask:
    return Ask(request, {"USD": dollars}, about=entry_of(request, "abc", {"USD": dollars}, 1).text())


def settle(store: MemoryStore, plan: SpendPlan, ask: Ask, cost: int) -> None:
    entry = entry_of(ask.id, "abc", dict(ask.fixed), 1)._replace(cost={"USD": cost})
    store.ledger.settle(plan, ask, 0, Settlement({"USD": cost}, Mark.EXACT, entry.text()))


async def spent(store: MemoryStore) -> tuple[int, int]:
    (stands,) = await store.ledger.standings(store.spend_plan("abc", LIMITS, BUDGETS))
    return stands.spent, stands.held


@contextlib.contextmanager
def full_disk(file: Path) -> Iterator[None]:
    """Have no file grow beyond the length of this one; Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_only_its_owner_may_read_it_and_whoever_links_to_it_finds_it(tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "state.db")
    async with opened(tmp_path / "state.db") as store:
        plan = store.spend_plan("abc", LIMITS, BUDGETS)
        await reserve(store, plan, ask_for("r-1", 5))
        assert modes_in(tmp_path) == dict.fromkeys(("state.db", "state.db-wal", "state.db-shm", "state.db.lock"), 0o600)
        with pytest.raises(StoreUnavailable, match="another gateway uses it"):
            async with opened(link):
                pass
        assert await spent(store) == (0, 5)
    async with opened(link) as store:
        assert await spent(store) == (5, 0)


def modes_in(directory: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mode & 0o777 for file in directory.iterdir() if not file.is_symlink()}


def other_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE budget (id INTEGER)")


def newer(path: Path) -> None:
    state = StateFile(str(path))
    state.begin()
    state.end()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")


def truncated(path: Path) -> None:
    state = StateFile(str(path))
    state.begin()
    state.end()
    path.write_bytes(path.read_bytes()[: 4096 * 2])


def of_nobody(path: Path) -> None:
    """Spent by a budget that it does not know."""
    state = StateFile(str(path))
    state.begin()
    state.end()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("INSERT INTO spent VALUES (7, 1, 5)")
        db.commit()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.write_bytes(b""), "it is not a gateway's state file"),
        (lambda path: path.write_text("budget = 5\n" * 500), "file is not a database"),
        (other_database, "it is not a gateway's state file; name another one, or move it away"),
        (newer, "it is of version 2, and this gateway knows version 1"),
        (truncated, "malformed"),
        (of_nobody, "it is damaged"),
    ],
    ids=["empty", "text", "other", "newer", "truncated", "of nobody"],
)
async def test_what_is_no_good_file_is_told_and_left_as_it_is(tmp_path: Path, make: object, problem: str) -> None:
    path = tmp_path / "state.db"
    assert callable(make)
    make(path)
    before = path.read_bytes()
    with pytest.raises(StoreUnavailable, match=problem) as caught:
        async with opened(path):
            pass
    assert caught.value.detail.startswith(f"STATE_FILE: '{path}' cannot be used: ")
    assert path.read_bytes() == before
    path.unlink()
    async with opened(path) as store:
        assert await spent(store) == (0, 0)


async def test_a_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be used: No such file or directory"):
        async with opened(tmp_path / "gone" / "state.db"):
            pass


async def test_what_is_not_in_the_file_proper_yet_leaves_a_small_disk_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(f_bavail=64, f_frsize=16_384)
    monkeypatch.setattr("gateway.stores.state_file.os.statvfs", lambda _: free)
    async with opened(tmp_path / "state.db") as store:
        plan = store.spend_plan("abc", (), BUDGETS)
        for number in range(30):  # each of which writes some six pages
            ask = ask_for(f"r-{number}", 1)
            assert (await reserve(store, plan, ask)).admitted
            settle(store, plan, ask, 1)
        assert (tmp_path / "state.db-wal").stat().st_size < 1024 * 1024 / 2


async def test_without_room_on_the_disk_nothing_passes_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "gateway.store")
    path = tmp_path / "state.db"
    async with opened(path) as store:
        plan = store.spend_plan("abc", LIMITS, BUDGETS)
        first = ask_for("r-1", 20)
        assert (await reserve(store, plan, first)).admitted
        with full_disk(tmp_path / "state.db-wal"):
            for number in range(8):  # more than the limits allow: what they charge is given back
                with pytest.raises(StoreUnavailable, match="The file that budgets are kept in cannot be used"):
                    await reserve(store, plan, ask_for(f"x-{number}", 1))
            settle(store, plan, first, 7)
            assert await spent(store) == (0, 20)  # it is held until its settlement is written down
            assert [one.id for one in await store.ledger.open()] == ["r-1"]
            with pytest.raises(StoreUnavailable):
                await store.ledger.release("r-1")
            with pytest.raises(StoreUnavailable):
                await store.ping()
        await store.ping()
        assert not await store.ledger.open()
        assert (await reserve(store, plan, ask_for("r-2", 5))).used == (12,)
        assert await spent(store) == (7, 5)
        assert [(one.id, one.cost, one.mark) for one in await store.ledger.entries(0)] == [
            ("r-1", {"USD": 7}, Mark.EXACT)
        ]
    async with opened(path) as store:
        assert await spent(store) == (12, 0)
    told = [record.getMessage() for record in caplog.records]
    assert [line.partition(f"{path}")[2][:20] for line in told] == [": disk I/O error. Un", " can be written agai"]


async def test_who_is_revoked_is_so_for_the_next_process_as_long_as_the_token_lives(tmp_path: Path) -> None:
    path, now_us = tmp_path / "state.db", 1_790_000_000_000_000

    async def refused(store: MemoryStore, *subjects: str) -> list[bool]:
        return [await store.look(store.plan(one, LIMITS)) is None for one in subjects]

    async with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE revoked")  # as a gateway has left it that did not know of it
    async with opened(path, now_us) as store:
        await store.revoke("abc", 60)
        await store.revoke("xyz", 90)
        assert await refused(store, "abc", "abc.d", "ab") == [True, True, False]
        with full_disk(tmp_path / "state.db-wal"), pytest.raises(StoreUnavailable):
            await store.revoke("late", 60)
        assert await refused(store, "late") == [True]  # here, if nowhere else
    async with opened(path, now_us + 59_000_000) as store:
        assert await refused(store, "abc", "abc.d", "xyz", "ab", "late") == [True, True, True, False, False]
        assert (await store.noted()).revoked == {"abc", "xyz"}
    async with opened(path, now_us + 60_000_000) as store:
        assert await refused(store, "abc", "abc.d", "xyz") == [False, False, True]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "tokens end with this process"),
        ({"state_file": "s.db"}, "tokens end with this process"),
        ({"token_secret": "s" * 32}, "a restart forgets which tokens were revoked"),
        ({"token_secret": "s" * 32, "state_file": "s.db"}, ""),
        ({"redis_url": "redis://h"}, ""),
    ],
)
def test_what_a_restart_forgets_of_tokens_is_told(settings: dict[str, str], told: str) -> None:
    config = Config(target_api_url="http://api.test", **settings)  # type: ignore[arg-type]  # all of them are texts
    assert what_a_restart_forgets(config.settings).partition(":")[0] == told


async def test_a_store_that_is_closed_reserves_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "state.db") as store:
        plan = store.spend_plan("abc", LIMITS, BUDGETS)
        await reserve(store, plan, ask_for("r-1", 5))
    with pytest.raises(StoreUnavailable, match="closed"):
        await reserve(store, plan, ask_for("r-2", 5))
    settle(store, plan, ask_for("r-1", 5), 5)
    assert await spent(store) == (0, 5)


KILLED = """
import asyncio, sys
sys.path.insert(0, {root!r})
from tests.stores.test_state_file import *

async def main():
    async with opened(sys.argv[1]) as store:
        plan = store.spend_plan("abc", (), (Budget(unit="USD", amount=10**9, calendar="month"),))
        for number in range(10**9):
            ask = ask_for(f"r-{{number}}", 3)
            await reserve(store, plan, ask)
            print("left", ask.id, flush=True)
            if number % 3:
                settle(store, plan, ask, 2)
                print("settled", ask.id, flush=True)

asyncio.run(main())
"""


def told_until_killed(command: list[str]) -> list[list[str]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        lines = [killed.stdout.readline() for _ in range(3_000)]
        killed.kill()
        # It may be killed in the middle of a line.
        return [line.split() for line in (*lines, *killed.stdout) if line.endswith("\n")]


async def test_what_a_killed_process_had_reserved_is_assumed(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    path = tmp_path / "state.db"
    lines = told_until_killed([sys.executable, "-c", KILLED.format(root=str(pytestconfig.rootpath)), str(path)])
    left = {line[1] for line in lines if line[0] == "left"}
    settled = {line[1] for line in lines if line[0] == "settled"}
    async with opened(path) as store:
        entries = {one.id: one for one in await store.ledger.entries(0)}
        # It may have written down more than it could tell of, by one.
        assert left <= entries.keys() and len(entries) <= len(left) + 1  # noqa: PT018
        assumed = {one.id for one in entries.values() if one.mark is Mark.ASSUMED}
        assert assumed >= left - settled - {max(left, key=lambda one: int(one[2:]))}
        assert not assumed & settled
        plan = store.spend_plan("abc", (), BUDGETS)
        (stands,) = await store.ledger.standings(plan)
        assert (stands.spent, stands.held) == (3 * len(assumed) + 2 * (len(entries) - len(assumed)), 0)
        assert await store.ledger.open() == []
        one = min(assumed)
        assert await store.ledger.release(one) == entries[one]
        assert await store.ledger.release(one) is None
        (after,) = await store.ledger.standings(plan)
        assert after.spent == stands.spent - 3
        found = await store.ledger.find("abc", one)
        assert found is not None
        assert (found.mark, found.cost) == (Mark.RELEASED, {})


async def test_lines_are_kept_for_a_month_and_some_days(tmp_path: Path) -> None:
    path, began_us = tmp_path / "state.db", 1_790_000_000_000_000
    for start_us, name in (
        (began_us, "old"),
        (began_us + MAX_AGE_US - DAY_US, "new"),
        (began_us + MAX_AGE_US + 1, "x"),
    ):
        async with opened(path, start_us) as store:
            plan = store.spend_plan("abc", (), (Budget(unit="USD", amount=10**9, window_us=60_000_000),))
            for number in range(TRIM_EVERY if name == "x" else 3):
                ask = ask_for(f"{name}-{number}", 1)
                await reserve(store, plan, ask)
                settle(store, plan, ask, 1)
    async with opened(path, began_us + MAX_AGE_US + 1) as store:
        ids = {one.id for one in await store.ledger.entries(0)}
        assert {"old-0", "new-0", "new-2"} & ids == {"new-0", "new-2"}
        assert len(ids) == 3 + TRIM_EVERY


async def test_what_has_left_its_window_leaves_the_file(tmp_path: Path) -> None:
    path, now_us = tmp_path / "state.db", 1_790_000_000_000_000
    for day in range(3):
        async with opened(path, now_us + day * DAY_US) as store:
            for subject in ("a", "b", f"c{day}"):
                plan = store.spend_plan(subject, (), (Budget(unit="USD", amount=10**9, window_us=60_000_000),))
                ask = ask_for(f"r-{day}-{subject}", 1)
                await reserve(store, plan, ask)
                settle(store, plan, ask, 1)
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM spent").fetchone() == (3,)
        assert sorted(db.execute("SELECT key FROM budget")) == [
            ("a:budget:1m-USD",),
            ("b:budget:1m-USD",),
            ("c2:budget:1m-USD",),
        ]


async def test_an_assumption_outlives_the_account_that_it_was_counted_in(tmp_path: Path) -> None:
    path, now_us = tmp_path / "state.db", 1_790_000_000_000_000
    minute = (Budget(unit="USD", amount=10**9, window_us=60_000_000),)
    async with opened(path, now_us) as store:
        await reserve(store, store.spend_plan("a", (), minute), ask_for("r-1", 5))
    clock = [now_us]
    store = MemoryStore(lambda: clock[0], MemoryLedger(lambda: clock[0], StateFile(str(path))))
    await store.start()
    clock[0] += DAY_US
    for subject in ("b", "c", "d"):  # the first of them has the account of `a` forgotten
        ask = ask_for(f"r-{subject}", 7)
        plan = store.spend_plan(subject, (), minute)
        await reserve(store, plan, ask)
        settle(store, plan, ask, 7)
    await store.close()
    async with opened(path, clock[0]) as store:
        was = await store.ledger.release("r-1")
        assert was is not None
        assert (was.mark, was.cost) == (Mark.ASSUMED, {"USD": 5})
        for subject, spent_there in (("a", 0), ("b", 7), ("c", 7), ("d", 7)):
            (stands,) = await store.ledger.standings(store.spend_plan(subject, (), minute))
            assert (stands.spent, stands.held) == (spent_there, 0)
