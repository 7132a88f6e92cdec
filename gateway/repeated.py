"""`LOOP_GUARD`: requests that are counted by what they are, beside all that counts them as requests."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gateway.limits import Policy
    from gateway.stores.ledger import SpendStore
    from gateway.subject import Subject

MAX_REMEMBERED: Final = 512
"""How many requests' plans are kept, some 4 kB each with Redis: what repeats often is among them. One that is not is
made anew in some 20 µs, and has lost nothing: the counts are the store's."""


class Repeated:
    """Makes what the store needs to count one request by what it is, and keeps that for the next one like it.

    Args:
        store: Counts.
    """

    __slots__ = ("_known", "_store")

    def __init__(self, store: SpendStore) -> None:
        self._store = store
        self._known: OrderedDict[tuple[Subject, str], Subject] = OrderedDict()

    def subject(self, subject: Subject, guard: Policy, mark: str, *, spends: bool) -> Subject:
        """Return a subject whose limits, budgets and this request's own count are checked in one step.

        Args:
            subject: Whose request it is.
            guard: How often the same one may be sent; of one configuration, always the same.
            mark: What tells this request from others, its target among it, in letters and digits.
            spends: Whether it costs something.
        """
        known, key = self._known, (subject, mark)
        found = known.get(key)
        if found is not None:
            known.move_to_end(key)
            return found
        own = replace(guard, name=f"{guard.name}-{mark}")
        policies = (*subject.policies, own)
        if spends:
            plan = self._store.spend_plan(subject.id, policies, subject.budgets)
            found = subject.with_guard(own, plan, plan)
        else:
            found = subject.with_guard(own, self._store.plan(subject.id, policies), None)
        known[key] = found
        if len(known) > MAX_REMEMBERED:
            known.popitem(last=False)
        return found
