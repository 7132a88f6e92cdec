"""How often somebody without the admin key may ask for a new token."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from gateway.limits import parse_limits
from gateway.stores.awaited import Awaited
from gateway.subject import Subject
from gateway.tokens import Claims

if TYPE_CHECKING:
    from gateway.stores import Store

REGISTRATIONS: Final = parse_limits("60/minute")
"""Of one address that has no admin key: else a new token would be a way round any limit, and those that are made from
one would fill the register."""


async def count_registration(store: Store, peer: str, how: str = "register") -> None:
    """Count that somebody without the admin key asks for a new token, whatever becomes of it.

    Args:
        store: Where it is counted.
        peer: Whose address it is, in letters, digits, `-` and `_`.
        how: What is counted apart from others, likewise.

    Raises:
        RateLimited: That is too often. It has the fields that say so.
        StoreUnavailable: The store did not decide in time.
    """
    name = f"{how}-{peer}"
    subject = Subject(Claims(id=name, issued_at_s=0), REGISTRATIONS, store.plan(name, REGISTRATIONS))
    waiter = Awaited(asyncio.get_running_loop().create_future())
    store.check(subject.plan, waiter)
    verdict = await waiter.future
    if not verdict.admitted:
        refusal = subject.refusal(verdict)
        lines = filter(None, subject.limit_lines(verdict).decode().split("\r\n"))  # none, where it is a revocation
        refusal.limit_fields = [(field, value) for field, _, value in (line.partition(": ") for line in lines)]
        raise refusal
