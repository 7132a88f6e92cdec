"""What every store promises: the table of cases, a model of random steps, and the corners of the protocol."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.limits import Kind, Policy, parse_concurrency, parse_limits
from gateway.limits.places import Places
from gateway.limits.rule import decide, refund, standing, time_of, unused
from gateway.stores import REVOKED
from tests.kit.rule import CASES, Case, Check, Kill, Log, Refund, Release, Renew, S, T, as_tuple, policies_of
from tests.kit.stores import Subject, ask

if TYPE_CHECKING:
    from gateway.limits.rule import State
    from gateway.stores import Store, Verdict
YEARS_S = 10**8


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_cases(under_test: Subject, case: Case) -> None:
    if case.ends and under_test.lease_us is None:
        return  # the embedded store's leases end with their process
    store = await under_test.fresh()
    plan = store.plan("abc", case.policies)
    verdicts: list[Verdict] = []
    for step in case.steps:
        if isinstance(step, Check):
            await under_test.set_clock(step.now_us)
            verdicts.append(await ask(store, plan))
            assert as_tuple(verdicts[-1]) == step.expected
        elif isinstance(step, Refund):
            store.refund(plan, verdicts[step.check])
        elif isinstance(step, Release):
            store.release(plan, verdicts[step.check])
        elif isinstance(step, Renew):
            await under_test.set_clock(step.now_us)
            under_test.renew()
            await store.ping()
        elif isinstance(step, Kill):
            under_test.kill(verdicts[step.check].lease)
        else:
            await store.revoke("abc", 3600)


HOUR = 3600 * S
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("advance"), st.sampled_from([1, S - 1, S, 7 * S, 26 * S, 61 * S, 130 * S, 700 * S, HOUR])),
        st.tuples(st.just("back"), st.sampled_from([1, S, 20 * S, 60 * S, HOUR])),
        *[st.tuples(st.just("check"), st.integers(0, 11))] * 4,
        st.tuples(st.just("refund"), st.integers(0, 5)),
        st.tuples(st.just("release"), st.integers(0, 5)),
        st.tuples(st.just("kill"), st.integers(0, 5)),
        st.tuples(st.just("renew"), st.just(0)),
        st.tuples(st.just("look"), st.integers(0, 11)),
        st.tuples(st.just("revoke"), st.sampled_from([6, 8])),
    ),
    max_size=60,
)
FAMILY = policies_of("5/minute,9/10m;bucket", "7/10m", "2")


def above(generations: int, policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
    return tuple(policy if policy.shared else replace(policy, above=generations) for policy in policies)


GUARD = Policy("loop-1f", 2, 60 * S, kind=Kind.BUCKET, guard=True)
PLANS = (
    ("a", policies_of("2/minute")),
    ("b", policies_of("3/minute,4/10m", shared="7/10m")),
    ("c", policies_of("1/minute", shared="7/10m")),
    ("a", policies_of("2/minute,9/2m,1/minute;shadow")),
    ("d", policies_of("3/5m;bucket,2/10m;shadow", "5/10m;bucket", "2", "3")),
    ("d", policies_of("4/minute;shadow,2/5m;bucket,1/10m;bucket;shadow", None, "1;shadow", "3")),
    ("e", policies_of("9/minute", "7/10m", "1")),
    ("f", FAMILY),
    ("f.x", (*policies_of("3/minute"), *above(1, FAMILY))),
    ("f.x.y", (*policies_of("2/minute;bucket,1/10m;shadow"), *above(1, policies_of("3/minute")), *above(2, FAMILY))),
    ("a", (*policies_of("2/minute"), GUARD)),
    ("f.x", (*policies_of("9/10m"), GUARD, *above(1, FAMILY))),
)


class Model:
    """A store, the log and the pure rule, asked the same and held against each other."""

    def __init__(self, under_test: Subject, store: Store) -> None:
        self.under_test = under_test
        self.store = store
        self.plans = [store.plan(subject, policies) for subject, policies in PLANS]
        self.log = Log(under_test.lease_us)
        self.lease_us = under_test.lease_us or 1 << 62
        self.states: dict[tuple[str, str], State] = {}
        self.admitted: list[tuple[int, Verdict]] = []
        self.in_flight: list[tuple[int, Verdict]] = []
        self.now_us = self.newest_us = T

    async def advance(self, by_us: int) -> None:
        self.now_us += by_us
        self.newest_us = max(self.newest_us, self.now_us)
        await self.under_test.set_clock(self.now_us)

    async def back(self, by_us: int) -> None:
        # The embedded store's clock never steps back; it drops what has been empty for a window or two.
        furthest_us = self.newest_us - 60 * S if self.under_test.lease_us is None else 0
        self.now_us = max(self.now_us - by_us, furthest_us)
        await self.under_test.set_clock(self.now_us)

    async def renew(self, _: int) -> None:
        self.under_test.renew()
        await self.store.ping()
        for which, verdict in self.in_flight:
            self.log.renew(*PLANS[which], verdict, self.now_us)
            for key, places in self.places_of(which, verdict):
                self.states[key] = places.leased(verdict.lease, self.now_us, self.lease_us)

    async def revoke(self, number: int) -> None:
        await self.store.revoke(PLANS[number][0], YEARS_S)  # none of the clocks gets there
        self.log.revoke(PLANS[number][0])

    async def refund(self, number: int) -> None:
        if number >= len(self.admitted):
            return
        which, verdict = one = self.admitted.pop(-1 - number)
        self.store.refund(self.plans[which], verdict)
        self.log.refund(*PLANS[which], verdict)
        keys, states = self.known(which)
        after = refund(PLANS[which][1], states, verdict.at_us, verdict.shadowed, verdict.lease)
        self.states.update(zip(keys, after, strict=True))
        if one in self.in_flight:
            self.in_flight.remove(one)

    async def release(self, number: int) -> None:
        if number >= len(self.in_flight):
            return
        which, verdict = self.in_flight.pop(-1 - number)
        self.store.release(self.plans[which], verdict)
        self.log.release(*PLANS[which], verdict)
        for key, places in self.places_of(which, verdict):
            self.states[key] = places.released(verdict.lease)

    async def kill(self, number: int) -> None:
        if number < len(self.in_flight) and self.under_test.lease_us is not None:
            one = self.in_flight.pop(-1 - number)
            self.admitted.remove(one)
            self.under_test.kill(one[1].lease)

    async def check(self, number: int) -> None:
        subject, policies = PLANS[number]
        verdict = await ask(self.store, self.plans[number])
        assert as_tuple(verdict) == self.log.check(subject, policies, self.now_us, verdict.lease)
        if verdict.policy == REVOKED:
            return
        keys, states = self.known(number)
        decision, after = decide(policies, states, self.now_us, verdict.lease, self.lease_us)
        assert as_tuple(verdict) == decision
        self.states.update(zip(keys, after, strict=True))
        if verdict.admitted:
            self.admitted.append((number, verdict))
            if verdict.lease:
                self.in_flight.append((number, verdict))

    async def look(self, number: int) -> None:
        subject, policies = PLANS[number]
        looks = await self.store.look(self.plans[number])
        assert looks == self.log.look(subject, policies, self.now_us)
        if looks is None:
            return
        _, states = self.known(number)
        at_us = time_of(policies, states, self.now_us)
        for (used, remaining, _), policy, state in zip(looks, policies, states, strict=True):
            assert standing(policy, state, at_us, self.now_us)[:2] == (used, remaining)

    def known(self, number: int) -> tuple[list[tuple[str, str]], list[State]]:
        subject, policies = PLANS[number]
        keys = [(policy.owner(subject), policy.counter) for policy in policies]
        return keys, [self.states.get(key) or unused(policy) for key, policy in zip(keys, policies, strict=True)]

    def places_of(self, number: int, verdict: Verdict) -> list[tuple[tuple[str, str], Places]]:
        """Return where a request's leases are."""
        pairs = enumerate(zip(*self.known(number), strict=True))
        return [
            (key, state)
            for index, (key, state) in pairs
            if isinstance(state, Places) and not verdict.shadowed >> index & 1
        ]


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_random_steps_against_a_log_counted_from_scratch(
    under_test: Subject, steps: list[tuple[str, int]]
) -> None:
    model = Model(under_test, await under_test.fresh())
    await under_test.set_clock(T)
    for step, number in steps:
        await getattr(model, step)(number)


async def test_no_policies_admit_always_but_for_a_revoked_subject(under_test: Subject) -> None:
    store = await under_test.fresh()
    await under_test.set_clock(T)
    plan = store.plan("abc", ())
    verdict = await ask(store, plan)
    assert as_tuple(verdict) == (True, -1, 0, 0, T, 0)
    store.refund(plan, verdict)
    assert await store.look(plan) == []
    await store.revoke("abc", 60)
    assert as_tuple(await ask(store, plan)) == (False, REVOKED, 0, 0, T, 0)
    assert await store.look(plan) is None
    assert (await ask(store, store.plan("abd", ()))).admitted


async def test_only_places_are_told_of_no_limit(under_test: Subject) -> None:
    store = await under_test.fresh()
    await under_test.set_clock(T)
    plan = store.plan("abc", policies_of("1")[:0] + policies_of("1", concurrency="1")[1:])
    assert as_tuple(await ask(store, plan)) == (True, -1, 0, 0, T, 0)
    assert as_tuple(await ask(store, plan)) == (False, 0, 0, S, T, 0)


async def test_subjects_do_not_share_a_count_and_shared_limits_do(under_test: Subject) -> None:
    store = await under_test.fresh()
    await under_test.set_clock(T)
    policies = parse_limits("1") + parse_limits("2", shared=True)
    verdicts = [await ask(store, store.plan(subject, policies)) for subject in ("a", "b", "c", "a")]
    assert [(verdict.admitted, verdict.policy) for verdict in verdicts] == [
        (True, 0),
        (True, 0),
        (False, 1),
        (False, 0),
    ]


async def test_a_lowered_quota_waits_until_enough_has_left(under_test: Subject) -> None:
    store = await under_test.fresh()
    for second in range(3):
        await under_test.set_clock(T + second * S)
        assert (await ask(store, store.plan("a", parse_limits("3")))).admitted
    await under_test.set_clock(T + 3 * S)
    for quota, wait_us in (("1", 60 * S), ("2", 59 * S), ("3", 58 * S)):
        verdict = await ask(store, store.plan("a", parse_limits(quota)))
        assert as_tuple(verdict) == (False, 0, 0, wait_us, T + 3 * S, 0)


async def test_what_a_child_uses_counts_for_its_parents_and_it_ends_with_any_of_them(under_test: Subject) -> None:
    store = await under_test.fresh()
    await under_test.set_clock(T)
    family = policies_of("3/minute", None, "9")
    parent, child = store.plan("p", family), store.plan("p.c", policies_of("2/minute") + above(1, family))
    grandchild = store.plan("p.c.g", above(1, policies_of("2/minute")) + above(2, family))
    verdicts = [await ask(store, plan) for plan in (child, grandchild, child, parent, parent, grandchild)]
    assert [(verdict.admitted, verdict.policy) for verdict in verdicts] == [
        (True, 0),
        (True, 0),
        (False, 0),
        (True, 0),
        (False, 0),
        (False, 0),
    ]
    await store.revoke("p.c", 60)
    for plan, revoked in ((child, True), (grandchild, True), (parent, False), (store.plan("p.cx", ()), False)):
        assert ((await ask(store, plan)).policy == REVOKED) is revoked
        assert (await store.look(plan) is None) is revoked


@pytest.mark.parametrize("subject", ["global", "global.a", "a:b", "", ".", "a.", ".a", "a..b", "a.b.c.d.e"])
async def test_a_subject_that_could_reach_anothers_counts_is_refused(under_test: Subject, subject: str) -> None:
    store = await under_test.fresh()
    with pytest.raises(ValueError, match="subject"):
        store.plan(subject, parse_limits("60"))


async def test_the_store_answers_and_agrees_on_a_secret(under_test: Subject) -> None:
    store = await under_test.fresh()
    await store.ping()
    assert await store.agree_secret(b"\x00\xff\r\n" * 8) == b"\x00\xff\r\n" * 8


async def test_a_lowered_burst_waits_until_enough_has_come_back(under_test: Subject) -> None:
    store = await under_test.fresh()
    await under_test.set_clock(T)
    for _ in range(60):
        assert (await ask(store, store.plan("a", parse_limits("60;bucket")))).admitted
    # 60 s are owed; of two places, 30 s each, none is free until half of that has passed.
    verdict = await ask(store, store.plan("a", parse_limits("2;bucket")))
    assert as_tuple(verdict) == (False, 0, 0, 30 * S, T, 0)
    assert await store.look(store.plan("a", parse_limits("1;bucket"))) == [(1, 0, 60 * S)]


async def test_places_at_a_target_are_counted_apart_from_all_of_a_subjects(under_test: Subject) -> None:
    store = await under_test.fresh()
    await under_test.set_clock(T)
    everywhere = policies_of("9", concurrency="2")
    at_maps = (*everywhere, replace(parse_concurrency("1"), name="maps-concurrency"))
    plan, other = store.plan("abc", at_maps), store.plan("abc", everywhere)
    first = await ask(store, plan)
    assert (first.admitted, [one.used for one in await store.look(plan) or ()]) == (True, [1, 1, 1])
    refused = await ask(store, plan)
    assert (refused.admitted, refused.policy) == (False, 2)
    second = await ask(store, other)
    assert second.admitted
    assert [one.used for one in await store.look(plan) or ()] == [2, 2, 1]
    store.release(plan, first)
    store.release(other, second)
    assert (await ask(store, plan)).admitted


async def test_leases_are_known_apart(under_test: Subject) -> None:
    store = await under_test.fresh()
    plan = store.plan("abc", policies_of("9", concurrency="9"))
    leases = {(await ask(store, plan)).lease for _ in range(5)}
    assert len(leases) == 5
    assert b"" not in leases
