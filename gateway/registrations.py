"""How often somebody without the admin key may ask for a new token."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from gateway.limits import parse_limits
from gateway.stores.awaited import Awaited
from gateway.subject import Subject
from gateway.tokens import Claims

if TYPE_CHECKING:
    from gateway.stores import Store, Verdict
    from gateway.subject import Refusal

REGISTRATIONS: Final = parse_limits("60/minute")
"""Of one address that has no admin key: else a new token would be a way round any limit, and those that are made from
one would fill the register."""
MAX_REFUSED: Final = 1024
"""How many refusals are remembered: about 2 kB each."""
LEAST_S: Final = 1.0
"""How long one is remembered at least; one that says nothing of the time is."""


class Registrations:
    """Counts who asks for a new token.

    Args:
        store: Where it is counted. It is not asked again about one whom it has refused until that is over: those who
            may do nothing here must not keep it busy.
    """

    __slots__ = ("_refused", "_store")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._refused: dict[str, tuple[Subject, Verdict, float]] = {}  # and until when, by the loop's time

    async def count(self, peer: str, how: str = "register") -> None:
        """Count that somebody without the admin key asks for a new token, whatever becomes of it.

        Args:
            peer: Whose address it is, in letters, digits, `-` and `_`.
            how: What is counted apart from others, likewise.

        Raises:
            RateLimited: That is too often. It has the fields that say so.
            StoreUnavailable: The store did not decide in time.
        """
        name = f"{how}-{peer}"
        loop = asyncio.get_running_loop()
        known = self._refused.get(name)
        if known is not None and (left_s := known[2] - loop.time()) > 0:
            subject, verdict, _ = known
            raise _refusal(subject, verdict._replace(reset_us=int(left_s * 1e6)))
        subject = Subject(Claims(id=name, issued_at_s=0), REGISTRATIONS, self._store.plan(name, REGISTRATIONS))
        waiter = Awaited(loop.create_future())
        self._store.check(subject.plan, waiter)
        verdict = await waiter.future
        if not verdict.admitted:
            if len(self._refused) >= MAX_REFUSED:
                self._refused.clear()
            self._refused[name] = subject, verdict, loop.time() + max(verdict.reset_us / 1e6, LEAST_S)
            raise _refusal(subject, verdict)


def _refusal(subject: Subject, verdict: Verdict) -> Refusal:
    """Return the refusal, with the fields that say how the limit stands."""
    refusal = subject.refusal(verdict)
    lines = filter(None, subject.limit_lines(verdict).decode().split("\r\n"))  # none, where it is a revocation
    refusal.limit_fields = [(field, value) for field, _, value in (line.partition(": ") for line in lines)]
    return refusal
