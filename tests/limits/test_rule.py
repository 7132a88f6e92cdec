"""The reference rule against the table of cases."""

from __future__ import annotations

import pytest

from gateway.limits.places import Places
from gateway.limits.rule import State, decide, refund, unused
from gateway.stores import REVOKED
from tests.kit.rule import CASES, LEASE_US, Case, Check, Kill, Refund, Release, Renew


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cases(case: Case) -> None:
    policies = case.policies
    states: tuple[State, ...] = tuple(unused(policy) for policy in policies)
    made: list[tuple[int, int]] = []
    in_flight: set[bytes] = set()
    for step in case.steps:
        lease = b"%d" % len(made)
        if isinstance(step, Check):
            if step.told[1] == REVOKED:  # the rule is not asked for a token that is revoked
                continue
            decision, states = decide(policies, states, step.now_us, lease)
            assert decision == step.expected
            made.append((decision.at_us, decision.shadowed))
            if decision.admitted:
                in_flight.add(lease)
        elif isinstance(step, Refund):
            states = refund(policies, states, *made[step.check], b"%d" % step.check)
        elif isinstance(step, Release):
            in_flight.discard(b"%d" % step.check)
            states = tuple(one.released(b"%d" % step.check) if isinstance(one, Places) else one for one in states)
        elif isinstance(step, Kill):
            in_flight.discard(b"%d" % step.check)
        elif isinstance(step, Renew):
            for held in sorted(in_flight):
                states = tuple(
                    one.leased(held, step.now_us, LEASE_US) if isinstance(one, Places) else one for one in states
                )
