"""What every store promises: the table of cases, a model of random steps, and the corners of the protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.limits import parse_limits
from gateway.limits.window import Window, decide, refund
from tests.kit.rule import CASES, Case, Check, Log, S, T, as_tuple
from tests.kit.stores import Subject, ask

if TYPE_CHECKING:
    from gateway.stores import Verdict


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_cases(under_test: Subject, case: Case) -> None:
    store = await under_test.fresh()
    plan = store.plan("abc", case.policies)
    verdicts: list[Verdict] = []
    for step in case.steps:
        if isinstance(step, Check):
            await under_test.set_clock(step.now_us)
            verdicts.append(await ask(store, plan))
            assert as_tuple(verdicts[-1]) == step.expected
        else:
            store.refund(plan, verdicts[step.check].at_us)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("advance"), st.sampled_from([1, S - 1, S, 7 * S, 30 * S, 61 * S, 130 * S, 700 * S])),
        st.tuples(st.just("back"), st.sampled_from([1, S, 20 * S, 60 * S])),
        st.tuples(st.just("check"), st.integers(0, 3)),
        st.tuples(st.just("check"), st.integers(0, 3)),
        st.tuples(st.just("check"), st.integers(0, 3)),
        st.tuples(st.just("refund"), st.integers(0, 5)),
    ),
    max_size=60,
)
PLANS = (
    ("a", parse_limits("2/minute")),
    ("b", parse_limits("3/minute,4/10m") + parse_limits("7/10m", shared=True)),
    ("c", parse_limits("1/minute") + parse_limits("7/10m", shared=True)),
    ("a", parse_limits("2/minute,9/2m")),
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_random_steps_against_a_log_counted_from_scratch(
    under_test: Subject, steps: list[tuple[str, int]]
) -> None:
    store = await under_test.fresh()
    plans = [store.plan(subject, policies) for subject, policies in PLANS]
    log = Log()
    windows: dict[tuple[str, str], Window] = {}
    admitted: list[tuple[int, int]] = []
    now_us = newest_us = T
    await under_test.set_clock(now_us)
    for step, number in steps:
        if step == "advance":
            now_us += number
            newest_us = max(newest_us, now_us)
            await under_test.set_clock(now_us)
        elif step == "back":
            # Never more than a minute, the shortest window here, behind the newest time that there was: a store
            # may drop what has been empty for longer.
            now_us = max(now_us - number, newest_us - 60 * S)
            await under_test.set_clock(now_us)
        elif step == "check":
            subject, policies = PLANS[number]
            keys = [(policy.owner(subject), policy.name) for policy in policies]
            verdict = await ask(store, plans[number])
            assert as_tuple(verdict) == log.check(subject, policies, now_us)
            decision, after = decide(policies, [windows.get(key, Window()) for key in keys], now_us)
            windows.update(zip(keys, after, strict=True))
            assert as_tuple(verdict) == tuple(decision)
            if verdict.admitted:
                admitted.append((number, verdict.at_us))
        elif number < len(admitted):
            which, at_us = admitted.pop(-1 - number)
            subject, policies = PLANS[which]
            keys = [(policy.owner(subject), policy.name) for policy in policies]
            store.refund(plans[which], at_us)
            log.refund(subject, policies, at_us)
            windows.update(zip(keys, refund(policies, [windows[key] for key in keys], at_us), strict=True))


async def test_no_policies_admit_always(under_test: Subject) -> None:
    store = await under_test.fresh()
    plan = store.plan("abc", ())
    verdict = await ask(store, plan)
    assert (verdict.admitted, verdict.policy) == (True, -1)
    store.refund(plan, verdict.at_us)


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
        assert as_tuple(verdict) == (False, 0, 0, wait_us, T + 3 * S)


@pytest.mark.parametrize("subject", ["global", "a:b", ""])
async def test_a_subject_that_could_reach_anothers_counts_is_refused(under_test: Subject, subject: str) -> None:
    store = await under_test.fresh()
    with pytest.raises(ValueError, match="subject"):
        store.plan(subject, parse_limits("60"))


async def test_the_store_answers_and_agrees_on_a_secret(under_test: Subject) -> None:
    store = await under_test.fresh()
    await store.ping()
    assert await store.agree_secret(b"\x00\xff\r\n" * 8) == b"\x00\xff\r\n" * 8
