"""Who may pass: tokens become subjects, subjects are checked against their limits. No HTTP; usable alone.

`authenticate` says whose token it is, `check` asks the store for a place, `give_back` returns one that was not
used, `release` says that a request is over. The store calls back; see `stores.Waiter`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Unpack

from gateway.budgets.family import Forgotten, GatewayBudgets
from gateway.errors import TokenExpired, TokenInvalid, TokenMissing, TokenRevoked
from gateway.limits.policy import check_subject, lineage
from gateway.repeated import Repeated
from gateway.stores import REVOKED
from gateway.subject import REVOKED_DETAIL, Subject, as_counted, policies_of
from gateway.tokens import Claims, is_token_id
from gateway.wishes import claims_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.budgets.book import BudgetStanding
    from gateway.budgets.budget import Budget
    from gateway.budgets.spending import Ask, Settlement
    from gateway.limits import Policy
    from gateway.stores import Plan, Standing, Verdict, Waiter
    from gateway.stores.ledger import SpendPlan, SpendStore
    from gateway.subject import Refusal
    from gateway.tokens import TokenSigner
    from gateway.wishes import Wishes

MAX_SUBJECTS: Final = 8192
"""How many verified tokens of one limit are remembered: about 1 kB each, and half of that for each limit more."""
_WEIGHT: Final = 8
"""What a token weighs there beside its limits, of which it may have many: memory is bounded whatever they are."""
MAX_POLICIES: Final = 50
"""Limits of a token, of those it was made from and common ones in all: so what one check costs is bounded."""
MAX_BUDGETS: Final = 20
"""Budgets of a token, of those it was made from and shared ones in all, likewise."""
MAX_REVOKED: Final = 65_536
"""How many revoked tokens are remembered: about 100 bytes each. The store knows the others."""
FOR_EVER_S: Final = 10 * 366 * 86_400
"""How long the revocation of a token without an end lasts: longer than any Redis does, and yet every key expires."""

_ENDED: Final = float("-inf")
_NO_BUDGETS: Final = GatewayBudgets()


class Admission:
    """Verifies tokens and checks limits.

    Args:
        store: Counts.
        signer: Issues and verifies tokens.
        limits: For every token that has none of its own.
        common_limits: For every token, whatever limits it has of its own: shared ones, and those of requests in flight.
        token_ttl_s: How long a token is good that is issued without saying so; None: without end.
        shadow: No limit ever refuses; each only tells what it would do.
        budgets: What requests that cost something may cost.

    Attributes:
        store: As above; its `check` asks for a place under all limits of a subject, by its plan. Whoever is told that
            it was admitted calls `give_back` if nothing was sent, else, if the verdict has a lease, `release`, when the
            request is over.
        repeated: Has a subject's requests counted by what they are, too.
    """

    def __init__(
        self,
        store: SpendStore,
        signer: TokenSigner,
        limits: Sequence[Policy],
        common_limits: Sequence[Policy],
        token_ttl_s: int | None,
        *,
        shadow: bool = False,
        budgets: GatewayBudgets = _NO_BUDGETS,
    ) -> None:
        self.store = store
        self._signer = signer
        self._limits = tuple(limits)
        self._common_limits = tuple(common_limits)
        self._token_ttl_s = token_ttl_s
        self._shadow = shadow
        self._budgets = budgets
        self._subjects: dict[bytes, Subject] = {}
        self._weight = 0
        self._revoked: dict[str, None] = {}
        self._memories = [self._subjects]
        self._targets: dict[str, tuple[Policy, ...]] = {}
        self.repeated = Repeated(store)

    def renewed(
        self,
        signer: TokenSigner,
        limits: Sequence[Policy],
        common_limits: Sequence[Policy],
        token_ttl_s: int | None,
        *,
        shadow: bool,
        budgets: GatewayBudgets,
    ) -> Admission:
        """Return one with other settings, on the same store, that knows the same revoked tokens; see the class."""
        other = Admission(self.store, signer, limits, common_limits, token_ttl_s, shadow=shadow, budgets=budgets)
        other._revoked = self._revoked
        return other

    def give_way_to(self, other: Admission) -> None:
        """Pass on to another one which tokens this one still learns to be revoked, by requests that are under way."""
        self._memories[:] = other._memories

    def beside(self, target: str, limits: Sequence[Policy]) -> Admission:
        """Return one for the same tokens that checks the limits of one target, given by its name, as well.

        What either learns of revoked tokens, both know; and this one issues no token that would be under too many.
        """
        if not limits:
            return self
        self._targets[target] = tuple(limits)
        common = (*self._common_limits, *limits)
        other = Admission(
            self.store,
            self._signer,
            self._limits,
            common,
            self._token_ttl_s,
            shadow=self._shadow,
            budgets=self._budgets,
        )
        other._revoked = self._revoked
        other._memories = self._memories
        self._memories.append(other._subjects)
        return other

    def authenticate(self, token: bytes | None, now_s: float) -> Subject:
        """Say whose token this is.

        Args:
            token: As received, or None if none was.
            now_s: Seconds since the epoch.

        Raises:
            TokenMissing, TokenInvalid, TokenExpired, TokenRevoked: It grants nothing. Nothing is counted for it.
        """
        if token is None:
            raise TokenMissing("Send a token as 'Authorization: Bearer TOKEN'; POST /register issues one.")
        subject = self._subjects.get(token)
        if subject is None:
            subject = self._remember(token, self._signer.verify(token, now_s=now_s))
        if subject.expires_at_s <= now_s:
            if not self._revoked.keys().isdisjoint(lineage(subject.id)):
                raise TokenRevoked(REVOKED_DETAIL)  # and is remembered: else each try would be work, here and in Redis
            del self._subjects[token]
            self._weight -= _WEIGHT + len(subject.policies)
            raise TokenExpired("The token has expired; POST /register issues a new one.")
        return subject

    def give_back(self, subject: Subject, verdict: Verdict) -> None:
        """Return what an admitted request was charged that was never sent, and its places in flight."""
        self.store.refund(subject.plan, verdict)

    def release(self, subject: Subject, verdict: Verdict) -> None:
        """Return the places in flight of a request that is over; to be called once."""
        self.store.release(subject.plan, verdict)

    def reserve(self, subject: Subject, ask: Ask, waiter: Waiter) -> None:
        """Ask for a place, as `store.check` does, and for what a request may cost under all budgets of a subject.

        Whoever is told that it was admitted calls `settle`, once, and what is said of `store` as well.
        """
        self.store.reserve(subject.spend_plan or self._spend_plan(subject), ask, waiter)

    def reserve_more(self, subject: Subject, ask: Ask, waiter: Waiter) -> None:
        """Ask for more of what a request under way may cost, under another id: its limits are not charged again."""
        self.store.reserve(self.store.spend_plan(subject.id, (), subject.budgets), ask, waiter)

    def settle(self, subject: Subject, ask: Ask, granted: int, settlement: Settlement) -> None:
        """Say what a request that was admitted cost; see `Ledger.settle`."""
        self.store.ledger.settle(subject.spend_plan or self._spend_plan(subject), ask, granted, settlement)

    def _spend_plan(self, subject: Subject) -> SpendPlan:
        plan = subject.spend_plan = self.store.spend_plan(subject.id, subject.policies, subject.budgets)
        return plan

    def refusal(self, subject: Subject, verdict: Verdict, now_s: float | None = None) -> Refusal:
        """Say what refused, and until when; that a token is revoked is remembered, whatever becomes of the store.

        Args:
            subject: Whom.
            verdict: The store's.
            now_s: As of `Subject.refusal`.
        """
        if verdict.policy == REVOKED:
            self._remember_revoked(subject.id)
        return subject.refusal(verdict, now_s)

    def subject_of(self, claims: Claims) -> Subject:
        """Return the subject that a token stands for. Raises ValueError if its limits or budgets cannot be read."""
        policies = policies_of(claims, self._limits, self._common_limits, shadow=self._shadow)
        budgets = self._budgets.of(claims.budgets_by_generation())
        return Subject(claims, policies, self.store.plan(claims.id, policies), budgets)

    async def usage(self, subject: Subject) -> list[tuple[Policy, Standing]]:
        """Say how each of a subject's limits stands, those of the targets that it is for behind the others.

        Nothing is charged.

        Raises:
            TokenRevoked: The token is.
            StoreUnavailable: The store does not answer.
        """
        found = await self.look(subject)
        for limits in self._targets_of(subject.claims).values():
            policies = as_counted(limits, subject.claims, shadow=self._shadow)
            found += await self._look(subject, policies, self.store.plan(subject.id, policies))
        return found

    async def spending(self, subject: Subject) -> list[tuple[Budget, BudgetStanding]]:
        """Say how each of a subject's budgets stands, the shared ones last.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        if not subject.budgets:
            return []
        standings = await self.store.ledger.standings(subject.spend_plan or self._spend_plan(subject))
        return list(zip(subject.budgets, standings, strict=True))

    async def look(self, subject: Subject) -> list[tuple[Policy, Standing]]:
        """Say how each of a subject's limits stands that does not depend on the target. Raises as `usage` does."""
        return await self._look(subject, subject.policies, subject.plan)

    async def _look(self, subject: Subject, policies: Sequence[Policy], plan: Plan) -> list[tuple[Policy, Standing]]:
        standings = await self.store.look(plan)
        if standings is None:
            self._remember_revoked(subject.id)
            raise TokenRevoked(REVOKED_DETAIL)
        return list(zip(policies, standings, strict=True))

    async def revoke(self, token_id: str, until_s: float | None, *, now_s: float) -> None:
        """End a token, on every instance on this store; what it has under way goes on.

        Args:
            token_id: Its id.
            until_s: When it would expire, in seconds since the epoch; None: as the register has it, or never.
            now_s: Seconds since the epoch.

        Raises:
            ValueError: This is no token's id.
            StoreUnavailable: The store did not take it in: this instance refuses the token, others do not.
        """
        check_subject(token_id)
        if not is_token_id(token_id):  # the text of a token would do for a subject, and must not get into a key
            raise ValueError("no subject is a token's text")
        self._remember_revoked(token_id)
        if until_s is None:
            known = [one["expires_at"] for one in await self.tokens() if one["id"] == token_id]
            until_s = known[0] if known else None
        lives_s = FOR_EVER_S if until_s is None else max(int(until_s - now_s) + 1, 1)
        await self.store.revoke(token_id, lives_s)

    def issue(self, now_s: float, **wishes: Unpack[Wishes]) -> tuple[str, Claims]:
        """Make a new token.

        Args:
            now_s: Seconds since the epoch.
            wishes: What it is to be like.

        Returns:
            The token and what it says.

        Raises:
            ValueError: Something is not as a token may have it.
        """
        claims = claims_of(wishes, now_s, self._token_ttl_s)
        return self._sign(claims), claims

    def issue_child(self, parent: Subject, now_s: float, **wishes: Unpack[Wishes]) -> tuple[str, Claims]:
        """Make a token from another one: it allows no more, lasts no longer, counts for that one, and ends with it.

        Args:
            parent: The token that it is made from.
            now_s: Seconds since the epoch.
            wishes: What it is to be like.

        Returns:
            The token and what it says.

        Raises:
            ValueError: Something is not as a token may have it, or more than the parent has.
        """
        claims = claims_of(wishes, now_s, self._token_ttl_s, parent.claims)
        return self._sign(claims), claims

    def _sign(self, claims: Claims) -> str:
        targets = self._targets_of(claims)
        most = max(targets, key=lambda name: len(targets[name]), default="")
        count = len(policies_of(claims, self._limits, self._common_limits)) + len(targets.get(most, ()))
        if count > MAX_POLICIES:
            at = f" at the target {most}" if most else ""
            raise ValueError(
                f"it would be under {count} limits{at}, with those of the tokens it is made from and the gateway's; "
                f"no more than {MAX_POLICIES} are checked at once"
            )
        count = len(self._budgets.of(claims.budgets_by_generation()))
        if count > MAX_BUDGETS:
            raise ValueError(
                f"it would be under {count} budgets, with those of the tokens it is made from and of all tokens "
                f"together; no more than {MAX_BUDGETS} are checked at once"
            )
        token = self._signer.issue(claims)
        self._note(claims)
        return token

    def _targets_of(self, claims: Claims) -> dict[str, tuple[Policy, ...]]:
        """Return the limits of the targets that a token is for, by the targets' names."""
        allowed = claims.targets
        return {name: limits for name, limits in self._targets.items() if allowed is None or name in allowed}

    async def tokens(self) -> list[dict[str, Any]]:
        """List the tokens that the store's register knows and that have not ended; see `Noted.lines`.

        It knows those that were issued by a gateway on this store, and those issued elsewhere from their first use on.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        noted = await self.store.noted()
        listed: list[dict[str, Any]] = [json.loads(line) for line in noted.lines]
        for one in listed:
            one["parent"] = one["id"].rpartition(".")[0] or None
            one["revoked"] = not noted.revoked.isdisjoint(lineage(one["id"]))
        return listed

    def _note(self, claims: Claims) -> None:
        """Let the register know of a token. The line is the same whoever writes it: a token has one."""
        line = {
            "id": claims.id,
            "name": claims.name,
            "issued_at": claims.issued_at_s,
            "expires_at": claims.expires_at_s,
        }
        ends_s = claims.issued_at_s + FOR_EVER_S if claims.expires_at_s is None else claims.expires_at_s
        self.store.note(json.dumps(line, separators=(",", ":")), ends_s, is_child="." in claims.id)

    def _remember(self, token: bytes, claims: Claims) -> Subject:
        try:
            subject = self.subject_of(claims)
        except Forgotten as error:
            raise TokenInvalid(f"The token has {error}.") from None
        except ValueError:
            problem = "The token has limits or budgets that this version of the gateway cannot read."
            raise TokenInvalid(problem) from None
        if len(subject.budgets) > MAX_BUDGETS:
            raise TokenInvalid(f"The token is under more than {MAX_BUDGETS} budgets here, which is too many to check.")
        if len(subject.policies) > MAX_POLICIES:  # it was issued where others were set
            raise TokenInvalid(f"The token is under more than {MAX_POLICIES} limits here, which is too many to check.")
        self._weight += _WEIGHT + len(subject.policies)
        if self._weight > MAX_SUBJECTS * (_WEIGHT + 1):
            self._subjects.clear()
            self._weight = _WEIGHT + len(subject.policies)
        if not self._revoked.keys().isdisjoint(lineage(claims.id)):
            subject.expires_at_s = _ENDED
        self._subjects[token] = subject
        self._note(claims)
        return subject

    def _remember_revoked(self, token_id: str) -> None:
        if len(self._revoked) >= MAX_REVOKED:
            del self._revoked[next(iter(self._revoked))]
        self._revoked[token_id] = None
        for subjects in self._memories:
            for subject in subjects.values():
                if token_id in lineage(subject.id):
                    subject.expires_at_s = _ENDED
