"""Usage as users see it, of one token and of all, and its way from this process's counters to the store's book."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from gateway.budgets.budget import spelled
from gateway.counts import histogram_ms, told
from gateway.errors import TokenRevoked
from gateway.limits import Kind
from gateway.metrics import MAX_TOKENS
from gateway.tokens import Claims

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from gateway.admission import Admission
    from gateway.budgets.book import BudgetStanding
    from gateway.budgets.budget import Budget
    from gateway.limits import Policy
    from gateway.metrics import Delta, Loop, Metrics
    from gateway.shared_counts import SharedCounts
    from gateway.stores import Standing
    from gateway.stores.usage import UsageBook, Used
    from gateway.subject import Subject

FLUSH_S: Final = 0.25
"""With the clock's tick on top, counts go to the book half a second after they were made, at the latest: there they may
have to wait for others for about as long (`usage_redis.SPREAD_S`)."""
MAX_SUBJECTS: Final = 256
_OF_CLAIMS: Final = ("limits", "targets", "above", "budgets", "above_budgets")
QUIET_S: Final = 60.0
"""Between two warnings of the same."""

_log = logging.getLogger("gateway")

Told = dict[str, Any]
"""Members of a JSON object."""


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer that is told anew every second, as server-sent events.

    Args:
        make: Makes what there is to tell now. Raises GatewayError where there is nothing.
        token_id: Whose holder it is for; None: an admin.
    """

    make: Callable[[], Awaitable[Told]]
    token_id: str | None


class UsageView:
    """Reads usage.

    Args:
        admission: Knows how limits and budgets stand.
        book: Has what all instances counted.
        metrics: What this one counted, and has not entered yet.
        pace_of: Tells of how fast a token spends; None: nobody looks at that.
    """

    def __init__(
        self,
        admission: Admission,
        book: UsageBook,
        metrics: Metrics,
        pace_of: Callable[[str], Told | None] = lambda _: None,
    ) -> None:
        self._pace_of = pace_of
        self._admission = admission
        self._book = book
        self._metrics = metrics
        self._subjects: dict[tuple[str, ...], Subject] = {}

    async def of(self, subject: Subject) -> Told:
        """Tell a token's holder how its limits and budgets stand, and what became of its requests. Nothing is charged.

        Raises:
            TokenRevoked: The token is.
            StoreUnavailable: The store does not answer.
        """
        limits = [_limit(*pair) for pair in await self._admission.usage(subject)]
        budgets = [_budget(*pair) for pair in await self._admission.spending(subject)]
        delta = self._metrics.take()
        self._book.add(delta)
        used = await self._book.of(subject.id)
        denials, claims = self._metrics.of(subject.id), subject.claims
        return {
            "at": now(),
            "id": claims.id,
            "name": claims.name,
            "expires_at": rfc3339(claims.expires_at_s),
            "limits": limits,
            "budgets": budgets,
            **told(used.counts, used.in_flight + delta.token_flights.get(subject.id, 0)),
            "denied": {
                "total": denials.reasons.total(),
                "retries": denials.retries,
                "by_reason": dict(denials.reasons),
            },
            "shadowed": dict(denials.shadowed),
            "loops": [_loop(loop) for loop in denials.loops.values()],
            "spend_guard": self._pace_of(subject.id),
        }

    async def all(self) -> Told:
        """Tell what became of all requests, and of the busiest tokens how their limits and budgets stand.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        delta = self._metrics.take()
        self._book.add(delta)
        overview = await self._book.overview()
        totals: Counter[str] = Counter()
        targets: dict[str, Told] = {}
        in_flight = 0
        for name in sorted(overview.targets.keys() | delta.target_flights.keys()):
            used = overview.targets.get(name)
            counts = Counter[str]() if used is None else used.counts
            flying = delta.target_flights.get(name, 0) + (0 if used is None else used.in_flight)
            totals.update(counts)
            in_flight += flying
            if name:
                targets[name] = told(counts, flying)
        known = overview.tokens.items()
        standings = await asyncio.gather(*(self._standing_of(token_id, used.about) for token_id, used in known))
        tokens = [
            {"id": token_id, "name": used.about.get("name") or None, **standing, **_told_of(token_id, used, delta)}
            for (token_id, used), standing in zip(known, standings, strict=True)
        ]
        tokens.sort(key=lambda token: -token["requests"])
        return {
            "at": now(),
            "instances": overview.others + 1,
            "totals": {**told(totals, in_flight), "latency_histogram_ms": histogram_ms(totals)},
            "targets": targets,
            "tokens": tokens,
        }

    async def _standing_of(self, token_id: str, about: Mapping[str, str]) -> Told:
        try:
            subject = self._subject(token_id, about)
            limits = [_limit(*pair) for pair in await self._admission.usage(subject)]
            budgets = [_budget(*pair) for pair in await self._admission.spending(subject)]
        except TokenRevoked:
            return {"revoked": True, "limits": [], "budgets": []}
        except (ValueError, TypeError):  # another version of the gateway wrote it
            return {"revoked": False, "limits": [], "budgets": []}
        return {"revoked": False, "limits": limits, "budgets": budgets}

    def _subject(self, token_id: str, about: Mapping[str, str]) -> Subject:
        key = (token_id, *(about.get(one, "") for one in _OF_CLAIMS))
        subject = self._subjects.get(key)
        if subject is None:
            if len(self._subjects) >= MAX_SUBJECTS:
                self._subjects.clear()
            targets = about.get("targets")
            claims = Claims(
                id=token_id,
                issued_at_s=0,
                limits=_texts(about.get("limits")),
                budgets=_texts(about.get("budgets")),
                targets=None if targets is None else tuple(targets.split(",")),
                above=tuple(map(_texts, json.loads(about.get("above", "[]")))),
                above_budgets=tuple(map(_texts, json.loads(about.get("above_budgets", "[]")))),
            )
            subject = self._subjects[key] = self._admission.subject_of(claims)
        return subject


class UsageFlush:
    """Enters what was counted in the book, twice a second. The clock's `Watched`.

    Args:
        book: Where to.
        metrics: Where from.
        shared: Has them for the other workers.
        now_s: The clock's coarse time.
    """

    def __init__(self, book: UsageBook, metrics: Metrics, shared: SharedCounts, now_s: Callable[[], float]) -> None:
        self._book = book
        self._metrics = metrics
        self._shared = shared
        self._now_s = now_s
        self._dropped = 0
        self._quiet_until_s = 0.0
        self.deadline_s = 0.0

    def on_deadline(self) -> None:
        """See `clock.Watched`."""
        self.deadline_s = self._now_s() + FLUSH_S
        self._book.add(self._metrics.take())
        self._shared.write()
        dropped = self._book.dropped + self._metrics.dropped
        if dropped > self._dropped and self._now_s() >= self._quiet_until_s:
            _log.warning(
                "the counts of %d tokens were lost: more than %d had some that are not in Redis yet; what /usage and "
                "/admin/usage say of these tokens is too little, their limits are kept, targets and totals are right",
                dropped - self._dropped,
                MAX_TOKENS,
            )
            self._dropped, self._quiet_until_s = dropped, self._now_s() + QUIET_S

    async def close(self) -> None:
        """Enter the rest, and return when it is where it belongs."""
        self._book.add(self._metrics.take())
        self._shared.close()
        await self._book.close()


def _texts(joined: str | None) -> tuple[str, ...] | None:
    return None if joined is None else (joined,)


def _told_of(token_id: str, used: Used, delta: Delta) -> Told:
    return told(used.counts, used.in_flight + delta.token_flights.get(token_id, 0))


def _limit(policy: Policy, standing: Standing) -> Told:
    """Describe a limit; `window` and `reset` are seconds, null for requests in flight: they come back as they end."""
    is_lease = policy.kind is Kind.LEASE
    return {
        "name": policy.label,
        "kind": "concurrency" if is_lease else policy.kind.value,
        "shared": policy.shared,
        "shadow": policy.shadow,
        "limit": policy.quota,
        "window": None if is_lease else policy.window_s,
        "used": standing.used,
        "remaining": standing.remaining,
        "reset": None if is_lease else round(standing.reset_us / 1e6, 3),
    }


def _loop(loop: Loop) -> Told:
    return {
        "target": loop.target,
        "request": loop.request,
        "body": loop.body,
        "refused": loop.refused,
        "last_at": rfc3339(int(loop.last_s)),
    }


def _budget(budget: Budget, standing: BudgetStanding) -> Told:
    """Describe a budget; amounts are decimal numbers as texts, which lose nothing.

    `held` is what requests under way could still cost; `reset`, in seconds, is when some of what is spent leaves the
    window, 0 where nothing is.
    """
    unit, amount = budget.unit, budget.amount
    return {
        "name": budget.label,
        "unit": unit,
        "window": budget.window_name,
        "shared": budget.shared,
        "limit": spelled(amount, unit),
        "spent": spelled(standing.spent, unit),
        "held": spelled(standing.held, unit),
        "remaining": spelled(max(amount - standing.spent - standing.held, 0), unit),
        "reset": round(standing.reset_us / 1e6, 3),
    }


def now() -> str:
    """Spell the current time (RFC 3339), to the millisecond."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def rfc3339(moment_s: int | None) -> str | None:
    """Spell a time in seconds since the epoch; None for none."""
    return None if moment_s is None else datetime.fromtimestamp(moment_s, UTC).isoformat().replace("+00:00", "Z")
