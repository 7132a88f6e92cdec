"""Who may pass: tokens become subjects, subjects are checked against their limits. No HTTP; usable alone.

`authenticate` says whose token it is, `check` asks the store for a place, `give_back` returns one that was not
used. The store calls back; see `stores.Waiter`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.errors import RateLimited, TokenExpired, TokenInvalid, TokenMissing
from gateway.limits import parse_limits
from gateway.tokens import Claims, new_token_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.limits import Policy
    from gateway.stores import Plan, Store, Verdict, Waiter
    from gateway.tokens import TokenSigner

MAX_SUBJECTS: Final = 8192
"""How many verified tokens are remembered: about 1 kB each."""

_UNCHECKED: Final = b"X-Gateway-Limits: unchecked"
"""In place of what nobody knows: Redis is out, and `ON_STORE_LOSS=allow` let the request pass."""


class Subject:
    """A verified token: whose it is, and the limits it is under.

    Args:
        claims: What the token says.
        policies: Its limits and the shared ones, as the store counts them.
        plan: The store's preparation of them.
    """

    __slots__ = ("_lines", "expires_at_s", "id", "plan", "policies")

    def __init__(self, claims: Claims, policies: Sequence[Policy], plan: Plan) -> None:
        self.id = claims.id
        self.expires_at_s = float("inf") if claims.expires_at_s is None else claims.expires_at_s
        self.plan = plan
        self.policies = policies
        listed = ", ".join(f'"{policy.label}";q={policy.quota};w={policy.window_s}' for policy in policies)
        self._lines = [
            f'RateLimit-Policy: {listed}\r\nRateLimit: "{policy.label}";r=%d;t=%d'.encode() for policy in policies
        ]

    def limit_lines(self, verdict: Verdict) -> bytes:
        """Spell how the limits stand, for the limit nearest its end.

        Returns:
            Two field lines, or one where no limit was checked, without the last line end.

        Source: draft-ietf-httpapi-ratelimit-headers-10, §3 and §4; `t` is the time until a place comes free.
        """
        if verdict.policy < 0:
            return _UNCHECKED
        return self._lines[verdict.policy] % (verdict.remaining, -(-verdict.reset_us // 1_000_000))

    def refusal(self, verdict: Verdict) -> RateLimited:
        """Say which limit refused, and until when."""
        policy = self.policies[verdict.policy]
        return RateLimited(policy.label, policy.quota, policy.window_s, verdict.reset_us)


class Admission:
    """Verifies tokens and checks limits.

    Args:
        store: Counts.
        signer: Issues and verifies tokens.
        limits: For every token that has none of its own.
        global_limits: For all tokens together.
        token_ttl_s: How long a token is good that is issued without saying so; None: without end.
    """

    def __init__(
        self,
        store: Store,
        signer: TokenSigner,
        limits: Sequence[Policy],
        global_limits: Sequence[Policy],
        token_ttl_s: int | None,
    ) -> None:
        self._store = store
        self._signer = signer
        self._limits = tuple(limits)
        self._global_limits = tuple(global_limits)
        self._token_ttl_s = token_ttl_s
        self._subjects: dict[bytes, Subject] = {}

    def authenticate(self, token: bytes | None, now_s: float) -> Subject:
        """Say whose token this is.

        Args:
            token: As received, or None if none was.
            now_s: Seconds since the epoch.

        Raises:
            TokenMissing, TokenInvalid, TokenExpired: It grants nothing. Nothing is counted for it.
        """
        if token is None:
            raise TokenMissing("Send a token as 'Authorization: Bearer TOKEN'; POST /register issues one.")
        subject = self._subjects.get(token)
        if subject is None:
            subject = self._remember(token, self._signer.verify(token, now_s=now_s))
        elif subject.expires_at_s <= now_s:
            del self._subjects[token]
            raise TokenExpired("The token has expired; POST /register issues a new one.")
        return subject

    def check(self, subject: Subject, waiter: Waiter) -> None:
        """Ask for a place under all limits of a subject; `waiter` is called back, possibly before this returns."""
        self._store.check(subject.plan, waiter)

    def give_back(self, subject: Subject, verdict: Verdict) -> None:
        """Return the place of an admitted request that was never sent."""
        self._store.refund(subject.plan, verdict.at_us)

    def issue(
        self,
        now_s: float,
        *,
        name: str | None = None,
        limits: Sequence[str] | None = None,
        ttl_s: int | None = None,
    ) -> tuple[str, Claims]:
        """Make a new token.

        Args:
            now_s: Seconds since the epoch.
            name: For people.
            limits: In `RATE_LIMIT`'s grammar; they stand in for the gateway's own. None: the gateway's.
            ttl_s: How long it is good, in seconds; 0: without end; None: `TOKEN_TTL`.

        Returns:
            The token and what it says.

        Raises:
            ValueError: A limit or the name is not one that a token may have.
        """
        if limits is not None:
            parse_limits(",".join(limits))
        lifetime_s = self._token_ttl_s if ttl_s is None else ttl_s
        claims = Claims(
            id=new_token_id(),
            name=name,
            issued_at_s=int(now_s),
            expires_at_s=int(now_s) + lifetime_s if lifetime_s else None,
            limits=None if limits is None else tuple(limits),
        )
        return self._signer.issue(claims), claims

    def _remember(self, token: bytes, claims: Claims) -> Subject:
        limits = self._limits
        if claims.limits is not None:
            try:
                limits = parse_limits(",".join(claims.limits))
            except ValueError:
                raise TokenInvalid("The token has limits that this version of the gateway cannot read.") from None
        policies = (*limits, *self._global_limits)
        if len(self._subjects) >= MAX_SUBJECTS:
            self._subjects.clear()
        subject = Subject(claims, policies, self._store.plan(claims.id, policies))
        self._subjects[token] = subject
        return subject
