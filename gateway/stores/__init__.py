"""Where counts live: the `Store` protocol and the verdict it gives.

A store owns the clock that limits are measured with, checks all policies of a request in one step (all are
charged or none is), and calls the waiter back: at once (memory) or when the reply has come (Redis). It makes no
task, future or timer per check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.errors import StoreUnavailable
    from gateway.limits import Policy


class Verdict(NamedTuple):
    """What a store decided about one request.

    When `admitted`, `policy` is the index of the policy nearest its end (least `remaining`; the earlier one on a
    tie), `remaining` what it has left after this request, and `reset_us` the time until its next place comes free.
    When refused, `policy` is the index of the policy that refused (of several, the one with the longest wait),
    `remaining` what is left of it (0 for requests that cost 1) and `reset_us` the time until this request could pass.
    """

    admitted: bool
    policy: int
    remaining: int
    reset_us: int
    at_us: int
    """The store's time of the charge; `Store.refund` takes it."""


class Waiter(Protocol):
    """Whoever asked for a verdict. Exactly one of the two is called, once, possibly before `check` returns."""

    def on_verdict(self, verdict: Verdict) -> None:
        """The store decided."""
        ...

    def on_store_loss(self, error: StoreUnavailable) -> None:
        """The store did not decide in time. If it decides later and admits, it gives the charge back itself."""
        ...


class Plan(Protocol):
    """The policies of one subject, prepared by a store so that a check costs as little as it can. Opaque."""


class Store(Protocol):
    """Checks and charges limits."""

    def plan(self, subject: str, policies: Sequence[Policy]) -> Plan:
        """Prepare what every check of this subject needs.

        Args:
            subject: The token's id; letters, digits, `-` and `_`.
            policies: In the order that `Verdict.policy` counts. A policy with `shared` set is counted for all
                subjects together. May be empty: then every check admits, with `policy` -1.
        """
        ...

    def check(self, plan: Plan, waiter: Waiter) -> None:
        """Check all policies and charge 1 to each, or charge none; call `waiter` back."""
        ...

    def refund(self, plan: Plan, at_us: int) -> None:
        """Give back a charge of 1 made at `at_us` (a `Verdict`'s), where its segment is still counted."""
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
