"""What only the embedded store has: memory that stays bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.limits import parse_limits
from gateway.stores.memory import MemoryStore
from tests.kit.rule import S, T
from tests.kit.stores import ask

if TYPE_CHECKING:
    from gateway.stores import Verdict


class Verdicts:
    """A waiter that keeps what it is told."""

    def __init__(self) -> None:
        self.all: list[Verdict] = []

    def on_verdict(self, verdict: Verdict) -> None:
        self.all.append(verdict)

    def on_store_loss(self, error: Exception) -> None:
        raise AssertionError(error)


class Clock:
    def __init__(self) -> None:
        self.now_us = T

    def __call__(self) -> int:
        return self.now_us


def test_counters_of_subjects_gone_are_dropped() -> None:
    clock, waiter = Clock(), Verdicts()
    store = MemoryStore(clock)
    for number in range(1000):
        store.check(store.plan(f"gone-{number}", parse_limits("5/minute")), waiter)
    assert len(store._counters) == 1000
    clock.now_us += 121 * S
    # One subject that goes on is enough: each of its new segments has two counters looked at.
    stays = store.plan("stays", parse_limits("1000/minute"))
    for _ in range(501):
        clock.now_us += S
        store.check(stays, waiter)
    assert list(store._counters) == ["stays:limit:minute"]
    assert [key for key, _ in store._to_purge] == ["stays:limit:minute"]


def test_ever_new_subjects_leave_no_more_counters_than_two_windows_hold() -> None:
    clock, waiter = Clock(), Verdicts()
    store = MemoryStore(clock)
    most = 0
    for number in range(5000):
        clock.now_us += S
        store.check(store.plan(f"new-{number}", parse_limits("5/minute")), waiter)
        most = max(most, len(store._counters))
    assert most <= 2 * 122


def test_a_plan_made_before_a_purge_counts_together_with_one_made_after() -> None:
    clock, waiter = Clock(), Verdicts()
    store = MemoryStore(clock)
    old = store.plan("abc", parse_limits("2/minute"))
    store.check(old, waiter)
    clock.now_us += 1000 * S
    for number in range(10):
        store.check(store.plan(f"other-{number}", parse_limits("2/minute")), waiter)
    assert "abc:limit:minute" not in store._counters
    new = store.plan("abc", parse_limits("2/minute"))
    waiter.all.clear()
    for plan in (old, new, old, new):
        store.check(plan, waiter)
    assert [verdict.admitted for verdict in waiter.all] == [True, True, False, False]


def test_refused_requests_leave_nothing_behind() -> None:
    clock, waiter = Clock(), Verdicts()
    store = MemoryStore(clock)
    shared = parse_limits("1/day", shared=True)
    for number in range(100):
        store.check(store.plan(f"refused-{number}", parse_limits("5/minute") + shared), waiter)
    assert len(store._counters) < 10


async def test_the_default_clock_counts_microseconds() -> None:
    store = MemoryStore()
    plan = store.plan("abc", parse_limits("2/day"))
    first, second, third = [await ask(store, plan) for _ in range(3)]
    assert (first.admitted, second.admitted, third.admitted) == (True, True, False)
    assert first.at_us <= second.at_us <= third.at_us < first.at_us + 60 * S
    await store.start()
    await store.close()


@pytest.mark.parametrize("text", ["60/minute,10/second", "10/second,60/minute", "3/second,5/minute"])
def test_who_was_idle_is_charged_under_every_limit(text: str) -> None:
    policies = parse_limits(text)
    for idle_s in (3, 125, 4000):
        clock, waiter = Clock(), Verdicts()
        store = MemoryStore(clock)
        plan = store.plan("abc", policies)
        store.check(plan, waiter)
        clock.now_us += idle_s * S
        admitted_us: list[int] = []
        for _ in range(600):
            store.check(plan, waiter)
            if waiter.all[-1].admitted:
                admitted_us.append(clock.now_us)
            clock.now_us += S // 50
        for policy in policies:
            ends = [moment_us + policy.window_us for moment_us in admitted_us]
            assert max(sum(end - policy.window_us <= at < end for at in admitted_us) for end in ends) <= policy.quota
