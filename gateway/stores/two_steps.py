"""A check of limits in two slots of a cluster: one after the other, and what the first charged is given back.

Until it is given back it counts, so no limit is ever exceeded; a request may be refused that would have passed
otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from gateway.stores import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.errors import StoreUnavailable
    from gateway.limits import Policy
    from gateway.stores import Waiter
    from gateway.stores.cluster import ClusterStore
    from gateway.stores.redis_plan import RedisPlan
    from gateway.stores.two_spends import TwoSpends, TwoSpendVerdicts

_Both = TypeVar("_Both", "TwoVerdicts", "TwoSpendVerdicts")


class TwoPlans:
    """The plans of a subject whose limits are in two slots.

    Args:
        own: For the limits of the subject's own, and its revocation.
        shared: For those that count for all subjects.
        policies: All of them, in the order that verdicts count.
    """

    __slots__ = ("own", "own_at", "shared", "shared_at")

    def __init__(self, own: RedisPlan, shared: RedisPlan, policies: Sequence[Policy]) -> None:
        self.own = own
        self.shared = shared
        self.own_at = [index for index, policy in enumerate(policies) if not policy.shared]
        self.shared_at = [index for index, policy in enumerate(policies) if policy.shared]


class TwoVerdicts(Verdict):
    """What both steps together decided; `refund` and `release` need what each did.

    Attributes:
        own: The first step's verdict, as its plan counts.
        shared: The second step's.
    """

    own: Verdict
    shared: Verdict


class TwoSteps:
    """One check on its way through both plans; the `Waiter` of either step."""

    __slots__ = ("_own", "_plans", "_store", "_waiter")

    def __init__(self, store: ClusterStore, plans: TwoPlans | TwoSpends, waiter: Waiter) -> None:
        self._store = store
        self._plans = plans
        self._waiter = waiter
        self._own: Verdict | None = None

    def on_verdict(self, verdict: Verdict) -> None:
        """Go on to the second step, or tell the outcome."""
        plans, own = self._plans, self._own
        if own is None:
            if not verdict.admitted:
                self._tell(placed(verdict, plans.own_at), verdict, None)
                return
            self._own = verdict
            if verdict.at_us > 0:
                self._go_on()
            else:  # Redis did not decide: it has been waited for already
                self._store.lose(plans.shared, self, "Redis did not answer to the check before.")
            return
        self._own = None  # from here on it is the waiter's, or is given back
        if verdict.admitted:
            self._tell(self._joined(own, verdict), own, verdict)
        else:
            self._give_back(own)
            self._tell(placed(verdict, plans.shared_at), own, verdict)

    def on_store_loss(self, error: StoreUnavailable) -> None:
        """Give back what the first step charged."""
        own, self._own = self._own, None
        if own is not None:
            self._give_back(own)
        self._waiter.on_store_loss(error)

    def _go_on(self) -> None:
        """Take the second step."""
        self._store.check_one(self._plans.shared, self)

    def _joined(self, own: Verdict, shared: Verdict) -> TwoVerdicts | TwoSpendVerdicts:
        return joined(TwoVerdicts, self._plans, own, shared)

    def _tell(self, verdict: Verdict, own: Verdict, shared: Verdict | None) -> None:
        """Tell the outcome, given as well what each step decided that was taken."""
        del own, shared
        self._waiter.on_verdict(verdict)

    def _give_back(self, own: Verdict) -> None:
        self._store.refund(self._plans.own, own)


def placed(verdict: Verdict, indexes: Sequence[int]) -> Verdict:
    """Return a verdict of one plan with its policies counted as in both."""
    shadowed = sum(1 << place for bit, place in enumerate(indexes) if verdict.shadowed >> bit & 1)
    policy = verdict.policy if verdict.policy < 0 else indexes[verdict.policy]
    return verdict._replace(policy=policy, shadowed=shadowed)


def joined(kind: type[_Both], plans: TwoPlans | TwoSpends, own: Verdict, shared: Verdict) -> _Both:
    """Put two verdicts together that both admit."""
    verdict = kind(*nearest(plans, own, shared))
    verdict.own, verdict.shared = own, shared
    return verdict


def nearest(plans: TwoPlans | TwoSpends, own: Verdict, shared: Verdict) -> Verdict:
    """Return of two verdicts that both admit the one that is nearer its end, with what both did."""
    first, second = placed(own, plans.own_at), placed(shared, plans.shared_at)
    limited = [one for one in (first, second) if one.policy >= 0]
    nearer = min(limited, key=lambda one: (one.remaining, one.policy), default=first)
    return nearer._replace(shadowed=first.shadowed | second.shadowed, lease=own.lease or shared.lease)
