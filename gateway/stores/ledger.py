"""Where budgets and the ledger live: what a `Store` does for requests that cost something.

`Store.reserve` is its `check` for them: revocation, limits and budgets in one step. Whoever was admitted calls
`Ledger.settle`, once, however the request ends: with nothing, if nothing was sent. Until then the store renews the
reservation; one whose process died is settled at its full amount when its lease ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from gateway.stores import Plan, Store, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.budgets.book import BudgetStanding
    from gateway.budgets.budget import Budget
    from gateway.budgets.spending import Ask, Entry, Settlement
    from gateway.limits import Policy
    from gateway.stores import Waiter


class SpendPlan(Plan, Protocol):
    """The policies and the budgets of one subject, prepared by a store: opaque, and a plan as any."""


class SpendVerdict(Verdict):
    """What a store decided about a request that costs something.

    A `policy` behind the last of the plan's policies counts its budgets: of a refusal, the one that refused (of
    several, the one with the longest wait; `book.NEVER_US`, where the request could cost more than the whole budget, is
    the longest of all). Of an admission, `policy` is about the limits alone.

    Attributes:
        granted: Output tokens, of those asked for; 0 where it was refused.
        used: Of each budget, the atoms that are spent or held: with this request's, if it was admitted.
    """

    granted: int = 0
    used: tuple[int, ...] = ()


class Ledger(Protocol):
    """Settles what was reserved, and remembers it."""

    def settle(self, plan: SpendPlan, ask: Ask, granted: int, settlement: Settlement) -> None:
        """Settle a request that was admitted, exactly once, whatever becomes of the connection to the store.

        A settlement that the store cannot take just now is kept, and the reservation held, until it can.

        Args:
            plan: The one it was reserved under.
            ask: As reserved.
            granted: `SpendVerdict.granted`.
            settlement: What it cost. A cost of nothing with an empty `entry` leaves no entry: nothing was sent.
        """
        ...

    async def standings(self, plan: SpendPlan) -> list[BudgetStanding]:
        """Say how each budget of a plan stands.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        ...

    async def entries(self, since_us: int, token: str | None = None, limit: int | None = None) -> list[Entry]:
        """Return what was settled since then, oldest first.

        Args:
            since_us: In microseconds since the epoch; of then, too.
            token: Of this one and those made from it; None: of all.
            limit: About so many, the oldest, with all of the same microsecond as the last of them: whoever asks on from
                the microsecond behind it misses none. Fewer where that is quicker; none only if there are none. None:
                all.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        ...

    async def open(self) -> list[Entry]:
        """Return the reservations that are not settled, with `at_us` 0.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        ...

    async def find(self, token: str, request: str) -> Entry | None:
        """Return the last entry of a request of a token, settled or open; None: it is not known, or no longer.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        ...

    async def release(self, request: str) -> Entry | None:
        """Settle a reservation that is open, or was assumed, for nothing; return what it was, None if it is neither.

        Of one that was open, `settle` counts all the same, once: it was under way, and cost something.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        ...


class SpendStore(Store, Protocol):
    """A store, with what it has for requests that cost something."""

    @property
    def ledger(self) -> Ledger:
        """Settles, and remembers."""
        ...

    def spend_plan(self, subject: str, policies: Sequence[Policy], budgets: Sequence[Budget]) -> SpendPlan:
        """Prepare what every reservation of this subject needs; see `Store.plan`. Budgets may be none.

        Raises:
            ValueError: The subject is not one that limits can be counted for.
        """
        ...

    def reserve(self, plan: SpendPlan, ask: Ask, waiter: Waiter) -> None:
        """Check revocation, policies and budgets, and charge and reserve under all of them, or none.

        `waiter` is called back as of `Store.check`, with a `SpendVerdict`. Without a store that answers, nothing that
        costs something passes under a budget, whatever `ON_STORE_LOSS` says. Whoever is admitted and sends nothing
        calls `Store.refund` and settles for nothing.
        """
        ...


class Settled(Protocol):
    """Something that was settled."""

    @property
    def at_us(self) -> int:
        """When."""
        ...


_T = TypeVar("_T", bound=Settled)


def page_of(found: list[_T], limit: int | None) -> list[_T]:
    """Return the first of what was found, oldest first, as `Ledger.entries` limits them."""
    if limit is None or len(found) <= limit:
        return found
    last_us = found[limit - 1].at_us
    end = next((index for index in range(limit, len(found)) if found[index].at_us != last_us), len(found))
    return found[:end]
