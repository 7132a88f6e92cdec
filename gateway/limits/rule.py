"""The rule: all limits of a request are checked, then all are charged, or none is.

If the clock steps back, the newest time charged in any of the request's windows and buckets stands in its place: so
there is no interval of the store's time in which more than a window's quota is admitted, whatever the clock does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from gateway.limits.bucket import Bucket
from gateway.limits.places import LEASE_US, Places
from gateway.limits.policy import Kind
from gateway.limits.window import Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.limits.policy import Policy
    from gateway.limits.standing import Standing

State: TypeAlias = Window | Bucket | Places


class Decision(NamedTuple):
    """What the rule says about one request; the fields mean what those of `stores.Verdict` mean."""

    admitted: bool
    policy: int
    remaining: int
    reset_us: int
    at_us: int
    shadowed: int = 0


def unused(policy: Policy) -> State:
    """Return the state of a limit that was never used."""
    if policy.kind is Kind.LEASE:
        return Places()
    return Bucket() if policy.kind is Kind.BUCKET else Window()


def standing(policy: Policy, state: State, at_us: int, now_us: int) -> Standing:
    """Say how a limit stands, at the newest time charged and the store's time now."""
    return state.standing(policy, now_us if isinstance(state, Places) else at_us)


def decide(
    policies: Sequence[Policy], states: Sequence[State], now_us: int, lease: bytes = b"", lease_us: int = LEASE_US
) -> tuple[Decision, tuple[State, ...]]:
    """Check all policies of a request and charge 1 to each, or charge none.

    Args:
        policies: At least one.
        states: The state of each policy, in the same order.
        now_us: The store's time in microseconds, not negative.
        lease: The id of the places that the request takes, where a policy limits those in flight.
        lease_us: How long they are taken for, in microseconds.

    Returns:
        The decision, and the states as they are to be kept. A refused request charges none of them.
    """
    found = [
        state.cleared(policy, now_us, lease_us) if isinstance(state, Places) else state
        for policy, state in zip(policies, states, strict=True)
    ]
    at_us = time_of(policies, found, now_us)
    stand = [standing(policy, state, at_us, now_us) for policy, state in zip(policies, found, strict=True)]
    full = [not one.remaining for one in stand]
    refusals = [(stand[i].frees_us, -i) for i, policy in enumerate(policies) if full[i] and not policy.shadow]
    if refusals:
        frees_us, minus_index = max(refusals)
        return Decision(False, -minus_index, 0, frees_us - now_us, at_us), tuple(found)

    kept: list[State] = []
    nearest, least, frees_us = -1, 0, now_us
    for index, (policy, state) in enumerate(zip(policies, found, strict=True)):
        if full[index]:
            after = state
        elif isinstance(state, Places):
            after = state.leased(lease, now_us, lease_us)
        else:
            after = state.charged(policy, at_us)
        kept.append(after)
        # A place in flight comes back with its answer: nobody has to spare it. A guard is no limit to keep to.
        if policy.kind is not Kind.LEASE and not policy.guard:
            told = standing(policy, after, at_us, now_us)
            if nearest < 0 or told.remaining < least:
                nearest, least, frees_us = index, told.remaining, told.frees_us
    shadowed = sum(1 << index for index, is_full in enumerate(full) if is_full)
    return Decision(True, nearest, least, frees_us - now_us, at_us, shadowed), tuple(kept)


def time_of(policies: Sequence[Policy], states: Sequence[State], now_us: int) -> int:
    """Return the time that windows and buckets go by: the store's, or the newest charged."""
    pairs = zip(policies, states, strict=True)
    return max([now_us, *(state.newest_us(policy) for policy, state in pairs if not isinstance(state, Places))])


def refund(
    policies: Sequence[Policy], states: Sequence[State], at_us: int, shadowed: int = 0, lease: bytes = b""
) -> tuple[State, ...]:
    """Give back what a request was charged, where it still counts, and its places.

    Args:
        policies: Those of the decision.
        states: The state of each policy, in the same order.
        at_us: `Decision.at_us` of the charge.
        shadowed: `Decision.shadowed`: those limits were not charged.
        lease: The request's.

    Returns:
        The states as they are to be kept.
    """
    kept: list[State] = []
    for index, (policy, state) in enumerate(zip(policies, states, strict=True)):
        if shadowed >> index & 1:
            kept.append(state)
        elif isinstance(state, Places):
            kept.append(state.released(lease))
        else:
            kept.append(state.refunded(policy, at_us))
    return tuple(kept)
