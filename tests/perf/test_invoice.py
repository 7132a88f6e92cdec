"""The judge of the invoice proof finds what it should, and the proof's short run ends well."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perf.invoice import read_bills, read_entry
from perf.invoice_judge import Billed, Held, judge_budget, judge_ledger, limits_of, used, worst_day, worst_window
from tests.kit.programs import program

ROOT = Path(__file__).parent.parent.parent
S = 1_000_000


def bill(number: int = 1, **changes: Any) -> Billed:
    return Billed(f"req_{number}", 0, S, "a", 100, 10)._replace(**changes)


def held(number: int = 1, **changes: Any) -> Held:
    return Held(f"gw-{number}", f"req_{number}", "a", "exact", 100, 150)._replace(**changes)


def test_budgets_are_read_as_the_gateway_writes_them() -> None:
    found = limits_of("0.5 USD/day, 2000 tokens/minute,0.25 USD/10s")
    assert [limit[:3] for limit in found] == [("USD", 500_000_000, 0), ("tokens", 2000, 60), ("USD", 250_000_000, 10)]


def test_the_worst_window_is_what_trying_all_of_them_finds() -> None:
    rng = random.Random(1)
    for _ in range(50):
        times = [(rng.randrange(100), rng.randrange(9)) for _ in range(30)]
        tried = [sum(amount for at, amount in times if end - 7 < at <= end) for end in range(100)]
        assert worst_window(times, 7) == max(tried)
    assert worst_window([], 7) == 0


def test_what_was_used_of_a_window_on_average() -> None:
    # One second's worth in each second, of windows of ten.
    steady = [(second * S + 1, 1) for second in range(40)]
    assert used(steady, 10 * S) == 10
    assert used(steady[:20], 10 * S) == 10
    assert used(steady[:5], 10 * S) is None


def test_a_day_ends_where_its_zone_says() -> None:
    # 23:30 and 00:30 in UTC are one day in Berlin.
    times = [(23 * 3600 * S + 1800 * S, 1), (24 * 3600 * S + 1800 * S, 2)]
    assert (worst_day(times, "UTC"), worst_day(times, "Europe/Berlin")) == (2, 3)


@pytest.mark.parametrize("late", ["began_us", "ended_us"])
def test_a_budget_is_held_against_beginnings_and_ends(late: str) -> None:
    (limit,) = limits_of("0.00000015 USD/10s")
    apart = [bill(1), bill(2, began_us=20 * S, ended_us=30 * S)]
    assert judge_budget("a", limit, apart, "UTC").over == 0
    other = {"ended_us": 99 * S} if late == "began_us" else {"began_us": 0}
    together = [bill(1, **{late: 25 * S}), bill(2, **{late: 26 * S, **other})]
    assert judge_budget("a", limit, together, "UTC").over == 50


def test_what_is_held_of_a_day_is_the_last_that_is_known_of_each_request() -> None:
    (limit,) = limits_of("1 USD/day")
    entries = [held(1, mark="assumed", nano=150), held(1), held(2, mark="assumed", nano=150)]
    assert judge_budget("a", limit, [bill(1), bill(2)], "UTC", entries)[2:] == (200, None, 250)


def test_a_ledger_that_agrees() -> None:
    entries = [
        held(1),
        held(2, mark="assumed", upstream_id="", nano=150),
        held(3, mark="assumed", upstream_id="", nano=150),
        held(3),
        held(4, nano=0),
        held(5, mark="estimated", nano=120),
    ]
    found = judge_ledger(entries, [bill(1), bill(2), bill(3), bill(5)])
    assert found.problems == []
    assert found.marks == {"exact": 3, "assumed": 1, "estimated": 1}
    assert (found.surplus, found.bound) == (70, 100)


@pytest.mark.parametrize(
    ("entries", "bills", "problem"),
    [
        ([held(1, nano=99)], [bill(1)], "gw-1 is exact at 99, and 100 were billed"),
        ([held(1)], [], "gw-1 is exact at 100, and 0 were billed"),
        ([held(1), held(1)], [bill(1)], "gw-1 was settled 2 times"),
        ([held(1), held(1, id="gw-2")], [bill(1)], "req_1 is held twice as exact"),
        ([], [bill(1)], "a: 0 are held as estimated or assumed, and 100 were billed"),
        ([held(1, mark="estimated", nano=99)], [bill(1)], "gw-1 is held at 99, and 100 were billed"),
        (
            [held(1, mark="estimated", nano=151)],
            [bill(1)],
            "151 are held as estimated or assumed, and 150 were reserved",
        ),
    ],
)
def test_a_ledger_that_does_not(entries: list[Held], bills: list[Billed], problem: str) -> None:
    found = judge_ledger(entries, bills)
    assert any(problem in one for one in found.problems)


def test_what_is_open_is_a_problem() -> None:
    assert judge_ledger([], [], ["gw-9"]).problems == ["gw-9 is still open"]


def test_an_entry_is_read_as_it_stands_in_redis() -> None:
    entry = {"id": "gw-1", "token": "t", "upstream_id": "req_1", "reserved": {"USD": 150}, "cost": {"USD": 100}}
    read = read_entry({"mark": "exact", "entry": json.dumps(entry)}, {"t": "a"})
    assert read == held(1)
    # What nobody settled has cost all that was reserved, of which the output that was granted is a part.
    told = {"id": "gw-1", "token": "t", "reserved": {"USD": 50, "tokens": 5}, "each": {"USD": 20, "tokens": 1}}
    read = read_entry({"mark": "assumed", "entry": json.dumps({**told, "granted": 5})}, {"t": "a"})
    assert read == held(1, upstream_id="", mark="assumed", nano=150, tokens=10)


# ---- the proof itself


@pytest.mark.long
def test_a_short_run_finds_no_budget_exceeded_and_every_cent_held(tmp_path: Path) -> None:
    program("redis-server")
    command = [sys.executable, "-m", "perf.invoice", "--short", "--keep", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        try:
            printed, told = run.communicate(timeout=180)
        finally:
            run.terminate()  # and not killed: it has servers to end
    assert (run.returncode, told) == (0, ""), printed + told
    assert "900 requests in " in printed
    assert "2 gateways killed, 1 pauses of Redis, 1 kills of Redis" in printed
    assert printed.endswith("verdict: no budget was exceeded, and every cent is held\n")
    kept = json.loads((tmp_path / "ledger.json").read_text(encoding="utf-8"))
    bills = list(read_bills(tmp_path / "invoice.csv"))
    assert (kept["open"], len(kept["entries"]) > 100 < len(bills)) == ([], True)
    # What the proof was sure of is not so of a provider that bills a nano-USD more for one request.
    entries = [Held(**entry) for entry in kept["entries"]]
    assert judge_ledger(entries, bills).problems == []
    certain = {entry.upstream_id for entry in entries if entry.mark == "exact"}
    one = next(bill.id for bill in bills if bill.id in certain)
    dearer = [bill._replace(nano=bill.nano + (bill.id == one)) for bill in bills]
    assert len(judge_ledger(entries, dearer).problems) == 1
