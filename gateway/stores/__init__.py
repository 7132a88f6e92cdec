"""Where counts live: the `Store` protocol and the verdict it gives.

A store owns the clock that limits are measured with, checks all policies of a request in one step (all are
charged or none is), and calls the waiter back: at once (memory) or when the reply has come (Redis). It makes no
task, future or timer per check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.errors import StoreUnavailable
    from gateway.limits import Policy
    from gateway.stores.lines import Noted
    from gateway.stores.usage import UsageBook

UNCHECKED: Final = -3
"""`Verdict.policy` of an admission that no limit was asked about."""
REVOKED: Final = -2
"""`Verdict.policy` of a refusal that no limit made: the token is revoked."""


class Verdict(NamedTuple):
    """What a store decided about one request.

    When `admitted`, `policy` is the index of the window or bucket nearest its end (least `remaining`; the earlier one
    on a tie; -1 if there is none, `UNCHECKED` if none was asked), `remaining` what it has left after this request, and
    `reset_us` the time until its next place comes free.
    When refused, `policy` is the index of the policy that refused (of several, the one with the longest wait), or
    `REVOKED`, `remaining` what is left of it (0 for requests that cost 1) and `reset_us` the time until this request
    could pass; of a policy that limits those in flight, when to ask again.
    """

    admitted: bool
    policy: int
    remaining: int
    reset_us: int
    at_us: int
    """The store's time of the charge."""
    shadowed: int = 0
    """The set of policies, as bits by their index, that would have refused and are but shadows: not charged."""
    lease: bytes = b""
    """The id of the places in flight that the request holds until `Store.release` or `Store.refund`; b"" if none."""


class Standing(NamedTuple):
    """How one policy stands: what counts, what is left, and the microseconds until a place comes free.

    `reset_us` is 0 where nothing is used, and for policies that limit those in flight.
    """

    used: int
    remaining: int
    reset_us: int


class Waiter(Protocol):
    """Whoever asked for a verdict. Exactly one of the two is called, once, possibly before `check` returns."""

    def on_verdict(self, verdict: Verdict) -> None:
        """The store decided. Where it admitted and gave a lease, `release` or `refund` must follow, once."""
        ...

    def on_store_loss(self, error: StoreUnavailable) -> None:
        """The store did not decide in time. If it decides later and admits, it gives the charge back itself."""
        ...


class Plan(Protocol):
    """The policies of one subject, prepared by a store so that a check costs as little as it can. Opaque."""


class Store(Protocol):
    """Checks and charges limits."""

    @property
    def usage(self) -> UsageBook:
        """What adds up what all instances have counted. Nothing is decided by it."""
        ...

    def plan(self, subject: str, policies: Sequence[Policy]) -> Plan:
        """Prepare what every check of this subject needs.

        Args:
            subject: The token's id; letters, digits, `-` and `_`. `a.b` is a child of `a`, and is revoked with it.
            policies: In the order that `Verdict.policy` counts, at most 50 and a guard. A policy with `shared` set is
                counted for all subjects together. May be empty: then every check admits, with `policy` -1, unless the
                subject is revoked.

        Raises:
            ValueError: The subject is not one that limits can be counted for (`Policy.owner`).
        """
        ...

    def check(self, plan: Plan, waiter: Waiter) -> None:
        """Check revocation and all policies and charge 1 to each, or charge none; call `waiter` back."""
        ...

    def refund(self, plan: Plan, verdict: Verdict) -> None:
        """Give back what an admitted request was charged, where it still counts, and its places in flight."""
        ...

    def release(self, plan: Plan, verdict: Verdict) -> None:
        """Give back the places in flight of an admitted request that is over; its charges stay."""
        ...

    async def look(self, plan: Plan) -> list[Standing] | None:
        """Say how each policy stands, and charge nothing; None for a subject that is revoked.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        ...

    async def revoke(self, subject: str, lives_s: int) -> None:
        """Refuse this subject from now on, on every instance of the store.

        Args:
            subject: The token's id.
            lives_s: For how many seconds, 1 or more.

        Raises:
            ValueError: The subject is not one that limits can be counted for (`Policy.owner`).
            StoreUnavailable: The store did not take it in.
        """
        ...

    def note(self, line: str, ends_s: int, *, is_child: bool = False) -> None:
        """Note a token in the register, for people to look at, as far as that is possible just now.

        Args:
            line: What is known of it; the same line again is no other.
            ends_s: When it is of no interest any more, in seconds since the epoch.
            is_child: Whether it was made from another one. However many are, the others stay noted.
        """
        ...

    async def noted(self) -> Noted:
        """Return what the register knows, and which tokens are revoked.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        ...

    async def start(self) -> None:
        """Connect. Raises StoreUnavailable, with the reason, if that fails."""
        ...

    async def ping(self) -> None:
        """Return when the store answers; raise StoreUnavailable when it does not within `STORE_TIMEOUT`."""
        ...

    async def agree_secret(self, candidate: bytes) -> bytes:
        """Return the signing secret that all instances on this store share; `candidate` if there is none yet."""
        ...

    async def close(self) -> None:
        """Give up connections and timers. Checks in flight end with `on_store_loss`."""
        ...
