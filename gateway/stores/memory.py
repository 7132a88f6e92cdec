"""The embedded store: limits counted in this process, for one process.

The rule is `limits.rule`'s, on counters that change in place: a check of one limit takes about a microsecond.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from gateway.errors import StoreUnavailable
from gateway.limits.policy import MAX_QUOTA, SEGMENTS, Kind, check_subject, lineage
from gateway.stores import REVOKED, Standing, Verdict
from gateway.stores.counters import BucketCounter, PlacesCounter, WindowCounter
from gateway.stores.ledger import SpendVerdict
from gateway.stores.lines import MemoryLines, Noted
from gateway.stores.usage import MemoryUsage
from gateway.tuples import new

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.budgets.budget import Budget
    from gateway.budgets.spending import Ask
    from gateway.limits import Policy
    from gateway.stores import Plan, Waiter
    from gateway.stores.counters import Counter
    from gateway.stores.ledger import SpendPlan
    from gateway.stores.memory_ledger import MemoryLedger

_Windows: TypeAlias = "tuple[tuple[str, int, int], ...]"
"""Key, quota and segment in microseconds of each limit of a plan that has windows only."""

_MAKE: Final[dict[Kind, Callable[[], Counter]]] = {
    Kind.WINDOW: WindowCounter,
    Kind.BUCKET: BucketCounter,
    Kind.LEASE: PlacesCounter,
}


def monotonic_us() -> int:
    """Return a time in microseconds that never steps back."""
    return time.monotonic_ns() // 1000


class _Limit(NamedTuple):
    """One policy of a plan; `unit_us` is a window's segment, a bucket's interval."""

    key: str
    quota: int
    unit_us: int
    kind: Kind
    shadow: bool
    guard: bool


class _Limited:
    """Keeps what the limits say."""

    __slots__ = ("verdict",)
    verdict: Verdict

    def on_verdict(self, verdict: Verdict) -> None:
        """See `stores.Waiter`."""
        self.verdict = verdict

    def on_store_loss(self, error: StoreUnavailable) -> None:
        """Never: limits are counted in memory."""
        raise error


class _Plan:
    """Keys and numbers of one subject's policies and budgets. No counters: a purge may drop those at any time."""

    __slots__ = ("budgets", "leases", "limits", "lineage", "subject", "windows")

    def __init__(self, subject: str, policies: Sequence[Policy], budgets: Sequence[Budget] = ()) -> None:
        check_subject(subject)
        self.subject = subject
        self.budgets = tuple((f"{budget.owner(subject)}:{budget.counter}", budget) for budget in budgets)
        self.lineage = lineage(subject)
        self.limits = tuple(
            _Limit(
                f"{policy.owner(subject)}:{policy.counter}",
                policy.quota,
                policy.unit_us,
                policy.kind,
                policy.shadow,
                policy.guard,
            )
            for policy in policies
        )
        self.leases = any(policy.kind is Kind.LEASE for policy in policies)
        is_plain = all(policy.kind is Kind.WINDOW for policy in policies)
        self.windows: _Windows = tuple(limit[:3] for limit in self.limits) if is_plain else ()


class MemoryStore:
    """Checks and charges limits within this process; every waiter is called back before `check` returns.

    Memory is bounded by the subjects seen in about two windows: whenever a counter is made or moves on, two
    others are looked at, and dropped if they count nothing any more.

    Args:
        now_us: The clock that limits are measured with, in microseconds.
        ledger: Keeps budgets; None: one of this process alone, on the system's clock.
    """

    # fmt: off
    __slots__ = (
        "_counters", "_ledger", "_leases", "_limited", "_lines", "_lines_of_children", "_now_us", "_revoked",
        "_to_purge", "usage",
    )
    # fmt: on

    def __init__(self, now_us: Callable[[], int] = monotonic_us, ledger: MemoryLedger | None = None) -> None:
        self._ledger = ledger
        self._now_us = now_us
        self._counters: dict[str, Counter] = {}
        self._to_purge: deque[tuple[str, int]] = deque()
        self._leases = count(1)
        self._lines, self._lines_of_children = MemoryLines(), MemoryLines()
        self._limited = _Limited()
        self.usage = MemoryUsage()
        self._revoked: dict[str, int] = {}  # until when, in microseconds

    def plan(self, subject: str, policies: Sequence[Policy]) -> _Plan:
        """Prepare what every check of this subject needs; see `Store.plan`.

        Raises:
            ValueError: The subject is not one that limits can be counted for (`Policy.owner`).
        """
        return _Plan(subject, policies)

    def check(self, plan: Plan, waiter: Waiter) -> None:
        """Check revocation and all policies and charge 1 to each, or none; `waiter` is called before this returns."""
        windows: _Windows = plan.windows  # type: ignore[attr-defined]  # opaque to others, but this store's own
        now_us = self._now_us()
        if self._revoked and self._is_revoked(plan.lineage, now_us):  # type: ignore[attr-defined]  # see above
            waiter.on_verdict(Verdict(False, REVOKED, 0, 0, now_us))
            return
        if len(windows) == 1:
            # By far the most frequent case, spelled out: one limit, and its segment is still the newest.
            ((key, quota, segment_us),) = windows
            counter: WindowCounter | None = self._counters.get(key)  # type: ignore[assignment]  # as the plan has it
            if counter is not None and counter.newest == now_us // segment_us and counter.total < quota:
                # The total may count what has left meanwhile: there is room all the same.
                counter.count += 1
                counter.total = total = counter.total + 1
                past = counter.past
                frees_us = ((past[0][0] if past else counter.newest) + SEGMENTS + 1) * segment_us
                waiter.on_verdict(new(Verdict, (True, 0, quota - total, frees_us - now_us, now_us, 0, b"")))
                return
        verdict = self._charge_windows(windows, now_us) if windows else None
        waiter.on_verdict(self._decide(plan, now_us) if verdict is None else verdict)  # type: ignore[arg-type]

    def spend_plan(self, subject: str, policies: Sequence[Policy], budgets: Sequence[Budget]) -> _Plan:
        """Prepare what every reservation of this subject needs; see `SpendStore.spend_plan`.

        Raises:
            ValueError: The subject is not one that limits can be counted for (`Policy.owner`).
        """
        return _Plan(subject, policies, budgets)

    def reserve(self, plan: SpendPlan, ask: Ask, waiter: Waiter) -> None:
        """Charge and reserve, or neither; `waiter` is called before this returns. See `SpendStore.reserve`."""
        own: _Plan = plan  # type: ignore[assignment]  # opaque to others, but this store's own
        if self._revoked and self._is_revoked(own.lineage, now_us := self._now_us()):
            waiter.on_verdict(SpendVerdict(False, REVOKED, 0, 0, now_us))
            return
        ledger = self._ledger or self.ledger
        offer = ledger.offer(own.budgets, ask)
        granted = offer[2]  # by its name, it would take longer
        if granted < 0:
            verdict = SpendVerdict(False, len(own.limits) + offer.refusing, 0, offer.frees_us, self._now_us())
        else:
            self.check(plan, self._limited)
            verdict = new(SpendVerdict, self._limited.verdict)
        if verdict[0]:
            try:
                verdict.used = ledger.reserve(own.subject, ask, offer)
            except StoreUnavailable as error:
                self.refund(plan, verdict)
                waiter.on_store_loss(error)
                return
            verdict.granted = granted
        else:
            verdict.used = offer.used
        waiter.on_verdict(verdict)

    @property
    def ledger(self) -> MemoryLedger:
        """Settles what was reserved, and remembers it."""
        if self._ledger is None:
            # Only here: where nothing has a cost, it should not take memory.
            from gateway.stores.memory_ledger import MemoryLedger

            self._ledger = MemoryLedger()
        return self._ledger

    def refund(self, plan: Plan, verdict: Verdict) -> None:
        """Give back what an admitted request was charged, where it still counts, and its places in flight."""
        limits: tuple[_Limit, ...] = plan.limits  # type: ignore[attr-defined]  # opaque to others, but this store's own
        for index, limit in enumerate(limits):
            counter = self._counters.get(limit.key)
            if counter is not None and not verdict.shadowed >> index & 1:
                counter.refund(limit.unit_us, verdict.at_us, verdict.lease)

    def release(self, plan: Plan, verdict: Verdict) -> None:
        """Give back the places in flight of an admitted request that is over; its charges stay."""
        limits: tuple[_Limit, ...] = plan.limits  # type: ignore[attr-defined]  # opaque to others, but this store's own
        for limit in limits:
            if limit.kind is Kind.LEASE and (counter := self._counters.get(limit.key)) is not None:
                counter.refund(0, 0, verdict.lease)

    async def look(self, plan: Plan) -> list[Standing] | None:
        """Say how each policy stands, and charge nothing; None for a subject that is revoked."""
        limits: tuple[_Limit, ...] = plan.limits  # type: ignore[attr-defined]  # opaque to others, but this store's own
        now_us = self._now_us()
        if self._is_revoked(plan.lineage, now_us):  # type: ignore[attr-defined]  # see above
            return None
        counters = [self._counters.get(limit.key) or _MAKE[limit.kind]() for limit in limits]
        at_us = _time_of(counters, limits, now_us)
        looks = []
        for counter, limit in zip(counters, limits, strict=True):
            used, remaining, frees_us = counter.standing(limit.quota, limit.unit_us, at_us)
            looks.append(Standing(used, remaining, frees_us - now_us if used and not counter.in_flight else 0))
        return looks

    async def revoke(self, subject: str, lives_s: int) -> None:
        """Refuse this subject from now on; see `Store.revoke`. In the file, if there is one, it stays so.

        Raises:
            ValueError: The subject is not one that limits can be counted for.
            StoreUnavailable: It is refused by this process alone, for the file cannot be written.
        """
        check_subject(subject)
        now_us = self._now_us()
        self._revoked = {one: until_us for one, until_us in self._revoked.items() if until_us > now_us}
        self._revoked[subject] = now_us + lives_s * 1_000_000
        if self._ledger is not None:
            self._ledger.revoke(subject, lives_s)

    def note(self, line: str, ends_s: int, *, is_child: bool = False) -> None:
        """Note a token in the register; see `Store.note`."""
        (self._lines_of_children if is_child else self._lines).note(line, ends_s)

    async def noted(self) -> Noted:
        """Return what the register knows, and which tokens are revoked."""
        now_us = self._now_us()
        lines = [*self._lines.lines(), *self._lines_of_children.lines()]
        return Noted(lines, frozenset(one for one, until in self._revoked.items() if until > now_us))

    def at_least(self, plan: Plan, index: int, used: int, at_us: int) -> None:
        """See to it that a limit counts no less than is known from elsewhere.

        Args:
            plan: The subject's.
            index: Which of its limits.
            used: How many admissions counted, taken as if all had been made at `at_us`.
            at_us: When, on this store's clock; what is ahead of it counts as now.
        """
        limits: tuple[_Limit, ...] = plan.limits  # type: ignore[attr-defined]  # opaque to others, but this store's own
        limit, now_us = limits[index], self._now_us()
        self._counter(limit).at_least(limit.unit_us, used, min(at_us, now_us), now_us)

    async def start(self) -> None:
        """Read what the ledger's file knows, if it has one.

        Raises:
            StoreUnavailable: That cannot be done; it says why.
        """
        if self._ledger is not None:
            self._ledger.start()
            now_us = self._now_us()
            self._revoked = {one: now_us + left_us for one, left_us in self._ledger.revoked().items()}

    async def ping(self) -> None:
        """Raise StoreUnavailable if the ledger's file cannot be written; else this store always answers."""
        if self._ledger is not None:
            self._ledger.ping()

    async def agree_secret(self, candidate: bytes) -> bytes:
        """Return `candidate`: nobody else shares this store."""
        return candidate

    async def close(self) -> None:
        """Give up the ledger's file: no check is ever in flight."""
        if self._ledger is not None:
            self._ledger.close()

    def _is_revoked(self, subjects: Sequence[str], now_us: int) -> bool:
        return any(self._revoked.get(subject, 0) > now_us for subject in subjects)

    def _charge_windows(self, windows: _Windows, now_us: int) -> Verdict | None:
        """Charge windows that are all there, and surely have room; None if one is not, or may not."""
        counters = self._counters
        found: list[tuple[WindowCounter, int, int]] = []
        for key, quota, segment_us in windows:
            counter: WindowCounter | None = counters.get(key)  # type: ignore[assignment]  # as the plan has it
            segment = now_us // segment_us
            # The total may count what has left meanwhile; then the long way finds out.
            if counter is None or counter.total >= quota or counter.newest > segment:
                return None
            found.append((counter, quota, segment))
        nearest, least, moved = 0, MAX_QUOTA, 0
        for index, (counter, quota, segment) in enumerate(found):
            if counter.newest != segment:
                counter.advance(segment)
                moved += 1
            counter.count += 1
            counter.total = total = counter.total + 1
            if quota - total < least:
                nearest, least = index, quota - total
        # Not before all are charged: one that had long been idle would be dropped, and its charge with it.
        for _ in range(moved):
            self._purge(now_us)
        counter = found[nearest][0]
        past = counter.past
        frees_us = ((past[0][0] if past else counter.newest) + SEGMENTS + 1) * windows[nearest][2]
        return new(Verdict, (True, nearest, least, frees_us - now_us, now_us, 0, b""))

    def _decide(self, plan: _Plan, now_us: int) -> Verdict:
        limits = plan.limits
        counters = [self._counter(limit) for limit in limits]
        # The newest time charged stands, should the clock have stepped back.
        at_us = _time_of(counters, limits, now_us)
        refused, frees_us, shadowed = -1, 0, 0
        for index, (counter, limit) in enumerate(zip(counters, limits, strict=True)):
            stands = counter.standing(limit.quota, limit.unit_us, now_us if counter.in_flight else at_us)
            if not stands.remaining and limit.shadow:
                shadowed |= 1 << index
            elif not stands.remaining and stands.frees_us > frees_us:
                refused, frees_us = index, stands.frees_us
        if refused >= 0:
            verdict = Verdict(False, refused, 0, frees_us - now_us, at_us)
        else:
            lease = b"%d" % next(self._leases) if plan.leases else b""
            verdict = _charge(counters, limits, Verdict(True, -1, 0, 0, at_us, shadowed, lease), now_us)
        for _ in limits:
            self._purge(now_us)
        return verdict

    def _counter(self, limit: _Limit) -> Counter:
        counter = self._counters.get(limit.key)
        if counter is None:
            counter = self._counters[limit.key] = _MAKE[limit.kind]()
            self._to_purge.append((limit.key, limit.unit_us))
        return counter

    def _purge(self, now_us: int) -> None:
        to_purge = self._to_purge
        for _ in range(min(2, len(to_purge))):
            key, unit_us = entry = to_purge.popleft()
            if now_us >= self._counters[key].idle_from_us(unit_us):
                del self._counters[key]
            else:
                to_purge.append(entry)


def _time_of(counters: Sequence[Counter], limits: Sequence[_Limit], now_us: int) -> int:
    pairs = zip(counters, limits, strict=True)
    return max([now_us, *(counter.newest_us(limit.unit_us) for counter, limit in pairs)])


def _charge(counters: Sequence[Counter], limits: Sequence[_Limit], verdict: Verdict, now_us: int) -> Verdict:
    """Charge all that are not shadows which would have refused, and find the one nearest its end."""
    nearest, least, frees_us = -1, 0, now_us
    for index, (counter, limit) in enumerate(zip(counters, limits, strict=True)):
        if not verdict.shadowed >> index & 1:
            counter.charge(limit.unit_us, verdict.at_us, verdict.lease)
        if counter.in_flight or limit.guard:
            continue
        stands = counter.standing(limit.quota, limit.unit_us, verdict.at_us)
        if nearest < 0 or stands.remaining < least:
            nearest, least, frees_us = index, stands.remaining, stands.frees_us
    return verdict._replace(policy=nearest, remaining=least, reset_us=frees_us - now_us)
