"""What becomes of a request while Redis cannot say: `ON_STORE_LOSS`, as three policies.

A store asks its policy only about checks that are lost, so good times cost nothing. A verdict that a policy gave has
an `at_us` of 0 or less: its charge and its places in flight, if any, are the policy's to give back.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

from gateway.errors import StoreUnavailable
from gateway.stores import UNCHECKED, Verdict
from gateway.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.limits import Policy
    from gateway.stores import Plan, Waiter
    from gateway.stores.instances import Instances

log = logging.getLogger("gateway.store")

PASSED: Final = Verdict(admitted=True, policy=UNCHECKED, remaining=0, reset_us=0, at_us=0)
"""Admitted, by no limit."""


class LostPlan(Protocol):
    """What a policy has to know of the plan whose check was lost."""

    subject: str
    policies: Sequence[Policy]
    known: list[Verdict | None]
    """For each policy, the last verdict that was about it."""
    local: Plan | None
    """The plan in this process's own store, once it was needed."""


class LossPolicy(Protocol):
    """Decides on checks that Redis did not decide on in time."""

    def decide(self, plan: LostPlan, waiter: Waiter, error: StoreUnavailable) -> None:
        """Call the waiter back, now."""
        ...

    def refund(self, plan: LostPlan, verdict: Verdict) -> None:
        """Give back what a verdict of this policy charged, and its places in flight."""
        ...

    def release(self, plan: LostPlan, verdict: Verdict) -> None:
        """Give back the places in flight of a verdict of this policy."""
        ...

    def consequence(self) -> str:
        """Say, in a sentence for the log and `/readyz`, what happens until Redis is back."""
        ...


class Deny:
    """`deny`: nothing passes unchecked."""

    def decide(self, plan: LostPlan, waiter: Waiter, error: StoreUnavailable) -> None:
        """Tell the loss."""
        waiter.on_store_loss(error)

    def refund(self, plan: LostPlan, verdict: Verdict) -> None:
        """Do nothing: nothing was charged."""

    def release(self, plan: LostPlan, verdict: Verdict) -> None:
        """Do nothing: no place was taken."""

    def consequence(self) -> str:
        """Say that requests are refused."""
        return "Until it is back, requests are refused (ON_STORE_LOSS=deny)."


class Allow:
    """`allow`: everything passes, and answers mention no limit."""

    def decide(self, plan: LostPlan, waiter: Waiter, error: StoreUnavailable) -> None:
        """Admit."""
        _tell(waiter, PASSED)

    def refund(self, plan: LostPlan, verdict: Verdict) -> None:
        """Do nothing: nothing was charged."""

    def release(self, plan: LostPlan, verdict: Verdict) -> None:
        """Do nothing: no place was taken."""

    def consequence(self) -> str:
        """Say that requests pass."""
        return "Until it is back, requests pass unchecked, by no limit (ON_STORE_LOSS=allow)."


class Local:
    """`local`: this instance counts alone, beginning with what it last knew of each limit.

    What was charged here is never told to Redis. So in one window, Redis may have admitted the quota, and each
    instance the quota again.

    Args:
        instances: Knows how many there are, and Redis's time.
        policies: Returns the limits that most tokens are under just now, for `consequence`.
    """

    __slots__ = ("_instances", "_memory", "_policies", "_verdict")

    def __init__(self, instances: Instances, policies: Callable[[], Sequence[Policy]]) -> None:
        self._instances = instances
        self._policies = policies
        # One for all outages: a Redis that comes and goes does not bring a new quota each time.
        self._memory = MemoryStore(instances.store_time_us)
        self._verdict = PASSED

    def decide(self, plan: LostPlan, waiter: Waiter, error: StoreUnavailable) -> None:
        """Check the limits in this process."""
        local = plan.local
        if local is None:
            local = plan.local = self._memory.plan(plan.subject, plan.policies)
        for index, verdict in enumerate(plan.known):
            if verdict is not None:
                used = plan.policies[index].quota - verdict.remaining
                self._memory.at_least(local, index, used, verdict.at_us)
        self._memory.check(local, self)
        _tell(waiter, self._verdict._replace(at_us=-self._verdict.at_us))

    def on_verdict(self, verdict: Verdict) -> None:
        """Keep what the memory store decided, which it does before its `check` returns."""
        self._verdict = verdict

    def on_store_loss(self, error: StoreUnavailable) -> None:
        """Never: memory is not lost."""
        raise error

    def refund(self, plan: LostPlan, verdict: Verdict) -> None:
        """Give back a charge made in this process, and its places in flight."""
        if plan.local is not None:
            self._memory.refund(plan.local, verdict._replace(at_us=-verdict.at_us))

    def release(self, plan: LostPlan, verdict: Verdict) -> None:
        """Give back places in flight that were taken in this process."""
        if plan.local is not None:
            self._memory.release(plan.local, verdict)

    def consequence(self) -> str:
        """Say by how much the limits may be exceeded."""
        seen = self._instances.seen
        worst = ", ".join(
            f"'{one.label}' {seen * one.most} more than {one.most}" for one in self._policies() if not one.shadow
        )
        said = f"Until it is back, each instance counts alone (ON_STORE_LOSS=local). Instances seen: {seen}"
        return f"{said}; so at worst, one window of {worst}." if worst else f"{said}; no limit refuses anything."


def _tell(waiter: Waiter, verdict: Verdict) -> None:
    try:
        waiter.on_verdict(verdict)
    except Exception:
        # A defect in one request must not take along the others that are lost with it.
        log.exception("a request failed when its limits were known")
        waiter.on_store_loss(StoreUnavailable("Something went wrong in the gateway."))
