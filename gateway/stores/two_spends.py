"""A reservation in two slots of a cluster: one after the other, and what the first reserved is given back.

Each step grants what there is room for; the smaller of the two stands. What the first has reserved above that stays
reserved until it is settled, which is the safe side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.stores.ledger import SpendVerdict
from gateway.stores.two_steps import TwoSteps, joined

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.budgets.budget import Budget
    from gateway.budgets.spending import Ask
    from gateway.limits import Policy
    from gateway.stores import Verdict, Waiter
    from gateway.stores.cluster import ClusterStore
    from gateway.stores.redis_spend import RedisSpendPlan


class TwoSpendVerdicts(SpendVerdict):
    """As `TwoVerdicts`, of a reservation."""

    own: Verdict
    shared: Verdict


class TwoSpends:
    """The plans of a subject whose limits and budgets are in two slots.

    Args:
        own: For those of the subject's own, and its revocation.
        shared: For those that count for all subjects.
        policies: All of them, in the order that verdicts count.
        budgets: Likewise, behind them.
    """

    __slots__ = ("budgets", "own", "own_at", "own_budgets", "shared", "shared_at", "shared_budgets")

    def __init__(
        self, own: RedisSpendPlan, shared: RedisSpendPlan, policies: Sequence[Policy], budgets: Sequence[Budget]
    ) -> None:
        self.own = own
        self.shared = shared
        self.budgets = tuple(budgets)
        self.own_budgets = [index for index, budget in enumerate(budgets) if not budget.shared]
        self.shared_budgets = [index for index, budget in enumerate(budgets) if budget.shared]
        first = len(policies)
        self.own_at = [index for index, policy in enumerate(policies) if not policy.shared]
        self.own_at += [first + index for index in self.own_budgets]
        self.shared_at = [index for index, policy in enumerate(policies) if policy.shared]
        self.shared_at += [first + index for index in self.shared_budgets]

    def spend_parts(self) -> tuple[tuple[RedisSpendPlan, Sequence[int]], ...]:
        """Return both plans, and which budgets are theirs."""
        return ((self.own, self.own_budgets), (self.shared, self.shared_budgets))

    def told(self, verdict: Verdict, own: Verdict | None, shared: Verdict | None) -> SpendVerdict:
        """Return a verdict with what each step says of budgets; of a step that was not taken, nothing is known."""
        told = verdict if isinstance(verdict, SpendVerdict) else SpendVerdict(*verdict)
        used = [0] * len(self.budgets)
        for step, indexes in ((own, self.own_budgets), (shared, self.shared_budgets)):
            if isinstance(step, SpendVerdict):
                for index, atoms in zip(indexes, step.used, strict=False):
                    used[index] = atoms
        told.used = tuple(used)
        if verdict.admitted:
            told.granted = min(step.granted for step in (own, shared) if isinstance(step, SpendVerdict))
        return told


class SpendSteps(TwoSteps):
    """One reservation on its way through both plans."""

    __slots__ = ("_ask", "_spends")

    def __init__(self, store: ClusterStore, plans: TwoSpends, ask: Ask, waiter: Waiter) -> None:
        super().__init__(store, plans, waiter)
        self._spends = plans
        self._ask = ask

    def _go_on(self) -> None:
        shared = self._spends.shared
        if shared.budgets:
            self._store.reserve_one(shared, self._ask, self)
        else:
            self._store.check_one(shared, self)

    def _joined(self, own: Verdict, shared: Verdict) -> TwoSpendVerdicts:
        return joined(TwoSpendVerdicts, self._spends, own, shared)

    def _tell(self, verdict: Verdict, own: Verdict, shared: Verdict | None) -> None:
        self._waiter.on_verdict(self._spends.told(verdict, own, shared))

    def _give_back(self, own: Verdict) -> None:
        super()._give_back(own)
        self._store.ledger.give_all_back(self._ask)


def of_slot(
    policies: Sequence[Policy], budgets: Sequence[Budget], *, shared: bool
) -> tuple[list[Policy], list[Budget]]:
    """Return those that count for all subjects, or the others."""
    return [one for one in policies if one.shared is shared], [one for one in budgets if one.shared is shared]
