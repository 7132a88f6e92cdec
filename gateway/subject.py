"""A subject: a verified token with the limits and budgets it is under, and how those are told of."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

from gateway.errors import BudgetExceeded, ConcurrencyLimited, LoopDetected, RateLimited, TokenRevoked
from gateway.limits import Kind, parse_limits
from gateway.stores import REVOKED, UNCHECKED
from gateway.stores.ledger import SpendVerdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.budgets.budget import Budget
    from gateway.limits import Policy
    from gateway.stores import Plan, Verdict
    from gateway.stores.ledger import SpendPlan
    from gateway.tokens import Claims

REVOKED_DETAIL: Final = "The token was revoked; get a new one from whoever issued it."

Refusal: TypeAlias = RateLimited | BudgetExceeded | LoopDetected | TokenRevoked
"""What a refused request is told."""

_UNCHECKED: Final = b"\r\nX-Gateway-Limits: unchecked"
"""In place of what nobody knows: Redis is out, and `ON_STORE_LOSS=allow` let the request pass."""


class Subject:
    """A verified token: whose it is, and the limits and budgets it is under.

    Args:
        claims: What the token says.
        policies: Its limits and the shared ones, as the store counts them.
        plan: The store's preparation of them.
        budgets: Those that it is under, the shared ones last; of requests that cost something.

    Attributes:
        spend_plan: The store's preparation of policies and budgets; None, as long as nothing that it asked for had a
            cost.
    """

    # fmt: off
    __slots__ = (
        "_lines", "budgets", "claims", "expires_at_s", "id", "is_special", "plan", "policies", "scope", "spend_plan",
    )
    # fmt: on

    def __init__(
        self, claims: Claims, policies: Sequence[Policy], plan: Plan, budgets: tuple[Budget, ...] = ()
    ) -> None:
        self.claims = claims
        self.id = claims.id
        self.expires_at_s = float("inf" if claims.expires_at_s is None else claims.expires_at_s)
        scope = claims.scope()
        self.scope = scope if scope.is_narrow else None
        """What the token may be used for; None: anything. To be checked before its limits are."""
        self.plan = plan
        self.policies = policies
        self.budgets = budgets
        self.spend_plan: SpendPlan | None = None
        # Whether its verdicts may have a lease or shadows: whoever is in a hurry need not look for them else.
        self.is_special = any(policy.shadow or policy.kind is Kind.LEASE for policy in policies)
        self._lines: dict[int, bytes] = {}  # of those limits that were nearest their end: each has all in it

    def with_guard(self, guard: Policy, plan: Plan, spend_plan: SpendPlan | None) -> Subject:
        """Return the same subject, of which one more policy is asked, as it has to be for one of its requests.

        Args:
            guard: That policy: it is the last one, and no header tells of it.
            plan: The store's preparation of all of them.
            spend_plan: The same with the budgets, where the request costs something.
        """
        other = copy.copy(self)
        other.policies, other.plan, other.spend_plan = (*self.policies, guard), plan, spend_plan
        return other

    def about(self) -> dict[str, str]:
        """Return what is kept beside the token's usage, for people and for whoever has to know its limits: no secret.

        `limits` and what stands in `above`, for each token that it was made from, are in `RATE_LIMIT`'s grammar; a
        token without limits of its own has none there. `budgets` and `above_budgets` are the same in `BUDGET`'s.
        `targets` names those that it is for, where not all.
        """
        claims = self.claims
        told = {"name": claims.name or ""}
        if claims.limits is not None:
            told["limits"] = ",".join(claims.limits)
        if claims.targets is not None:
            told["targets"] = ",".join(claims.targets)
        if claims.above:
            told["above"] = json.dumps([limits and ",".join(limits) for limits in claims.above])
        if claims.budgets is not None:
            told["budgets"] = ",".join(claims.budgets)
        if claims.above_budgets:
            told["above_budgets"] = json.dumps([budgets and ",".join(budgets) for budgets in claims.above_budgets])
        return told

    def limit_lines(self, verdict: Verdict) -> bytes:
        """Spell how the limits stand, for the limit nearest its end.

        Returns:
            Two field lines, each with a line end before it; one where no limit was checked; b"" where there is none.

        Source: draft-ietf-httpapi-ratelimit-headers-10, §3 and §4; `t` is the time until a place comes free.
        """
        policy, remaining, reset_us = verdict[1:4]  # by name, each would take longer than all of them
        if policy < 0:
            return _UNCHECKED if policy == UNCHECKED else b""
        try:
            lines = self._lines[policy]
        except KeyError:
            lines = self._spell(policy)
            if not lines:  # a budget or a guard refused
                return self.policy_line
        return lines % (remaining, -(-reset_us // 1_000_000))

    def _spell(self, index: int) -> bytes:
        """Spell a limit's field lines, but for the numbers; b"" for a guard or a budget."""
        if index >= len(self.policies) or self.policies[index].guard:
            return b""
        policy = self.policies[index]
        standing = f'\r\nRateLimit: "{policy.label}";r=%d;t=%d{_shadow_of(policy)}'.encode()
        self._lines[index] = lines = self.policy_line + standing
        return lines

    @property
    def policy_line(self) -> bytes:
        """The field line that names the limits, with a line end before it; b"" where there is none."""
        listed = ", ".join(_quota_of(policy) for policy in self.policies if not policy.guard)
        return f"\r\nRateLimit-Policy: {listed}".encode() if listed else b""

    def refusal(self, verdict: Verdict, now_s: float | None = None) -> Refusal:
        """Say what refused, and until when.

        Args:
            verdict: A refusal.
            now_s: Seconds since the epoch, of which a budget's refusal tells; None: as this machine has it.
        """
        if verdict.policy == REVOKED:
            return TokenRevoked(REVOKED_DETAIL)
        if isinstance(verdict, SpendVerdict) and verdict.policy >= len(self.policies):
            index = verdict.policy - len(self.policies)
            now_s = time.time() if now_s is None else now_s
            from gateway.budgets.refusing import exceeded  # only here: see `stores.memory`

            return exceeded(self.budgets[index], verdict.used[index], verdict.reset_us, now_s)
        policy = self.policies[verdict.policy]
        if policy.guard:
            return LoopDetected(policy.quota, policy.window_s, verdict.reset_us)
        kind = ConcurrencyLimited if policy.kind is Kind.LEASE else RateLimited
        return kind(policy.label, policy.quota, policy.window_s, verdict.reset_us)

    def shadowed(self, verdict: Verdict) -> list[str]:
        """Name the limits that would have refused this request, were they not but shadows."""
        return [policy.label for index, policy in enumerate(self.policies) if verdict.shadowed >> index & 1]


def policies_of(
    claims: Claims, limits: Sequence[Policy], common_limits: Sequence[Policy], *, shadow: bool = False
) -> tuple[Policy, ...]:
    """Return all limits that a token is under: its own, those of the tokens it was made from, the common ones.

    Args:
        claims: The token's.
        limits: For a token that has none of its own, and was made from none.
        common_limits: Of every token.
        shadow: None of them refuses.

    Raises:
        ValueError: A limit is none.
    """
    generations = (claims.limits, *reversed(claims.above))
    first = len(generations) - 1
    policies: list[Policy] = []
    for above, texts in enumerate(generations):
        if texts is not None:
            own: Sequence[Policy] = parse_limits(",".join(texts))
        else:
            own = limits if above == first else ()
        policies += [replace(policy, above=above, shadow=policy.shadow or shadow) for policy in own]
    return (*policies, *as_counted(common_limits, claims, shadow=shadow))


def as_counted(limits: Sequence[Policy], claims: Claims, *, shadow: bool) -> tuple[Policy, ...]:
    """Return limits that are no token's own as a token is under them.

    The first of a family has as much of each as any other token, for all of the family.
    """
    first = len(claims.above)
    return tuple(
        replace(policy, above=0 if policy.shared else first, shadow=policy.shadow or shadow) for policy in limits
    )


def _quota_of(policy: Policy) -> str:
    """Spell a limit as an item of `RateLimit-Policy`; §3.1.2 has the unit for requests in flight."""
    unit = 'qu="concurrent-requests"' if policy.kind is Kind.LEASE else f"w={policy.window_s}"
    # Who holds us to a window must not take a bucket for one: it may let nearly twice as many through.
    bucket = ";bucket" if policy.kind is Kind.BUCKET else ""
    return f'"{policy.label}";q={policy.quota};{unit}{bucket}{_shadow_of(policy)}'


def _shadow_of(policy: Policy) -> str:
    return ";shadow" if policy.shadow else ""
