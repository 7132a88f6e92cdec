"""Was a budget exceeded, and does the ledger agree with the invoice? Decided from what the provider billed; pure.

A provider bills a request at some instant between its beginning and its end, so budgets are held against both: as if
all were billed as soon as they had come, and as if all were billed when the last token was made.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Final, NamedTuple
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NANO: Final = 1_000_000_000
_BUDGET: Final = re.compile(r"([\d.]+) (USD|tokens)/(minute|day|(\d+)s)")


class Billed(NamedTuple):
    """A line of the invoice.

    Args:
        id: The provider's for the request.
        began_us, ended_us: When it came, and when the last token was made.
        user: Whose it is: the name of a token.
        nano: Nano-USD.
        tokens: Input and output.
    """

    id: str
    began_us: int
    ended_us: int
    user: str
    nano: int
    tokens: int

    def amount(self, unit: str) -> int:
        """Return how much of a unit it is."""
        return self.nano if unit == "USD" else self.tokens


class Held(NamedTuple):
    """An entry of the ledger.

    Args:
        id: The gateway's for the request.
        upstream_id: The provider's; "" if nobody heard it.
        user: The name of the token.
        mark: `exact`, `estimated`, `assumed` or `released`.
        nano, reserved: Nano-USD: what it cost, and what was reserved for it.
        tokens: What it cost of these.
    """

    id: str
    upstream_id: str
    user: str
    mark: str
    nano: int
    reserved: int
    tokens: int = 0

    def amount(self, unit: str) -> int:
        """Return how much of a unit is held for it."""
        return self.nano if unit == "USD" else self.tokens


class Limit(NamedTuple):
    """A budget: atoms of a unit in so many seconds, or in a calendar's day where these are 0."""

    unit: str
    amount: int
    window_s: int
    text: str


class Finding(NamedTuple):
    """What became of one budget.

    Args:
        user: Whose it is.
        limit: The budget.
        worst: The most that was billed in one window, by beginnings and by ends.
        used: How much was billed in a window on average, from the end of the first on; None: there were not so many.
        held: How much is held in the last of a calendar's windows, what is not exact included; None where it slides.
    """

    user: str
    limit: Limit
    worst: int
    used: float | None
    held: int | None = None

    @property
    def over(self) -> int:
        """Atoms too many."""
        return max(0, self.worst - self.limit.amount)


class Ledgered(NamedTuple):
    """How the ledger and the invoice agree.

    Args:
        marks: How many entries have which mark, the last of each request.
        problems: What must not be, in words.
        surplus: Nano-USD held for entries that are not exact, beyond what was billed for them.
        bound: The most that may be: what was reserved for them, less what was billed.
    """

    marks: Counter[str]
    problems: list[str]
    surplus: int
    bound: int


def limits_of(text: str) -> list[Limit]:
    """Read budgets as they are written for the gateway, of the few kinds that the proof has."""
    found = []
    for match in _BUDGET.finditer(text):
        amount = Decimal(match[1]) * (NANO if match[2] == "USD" else 1)
        window_s = {"minute": 60, "day": 0}.get(match[3], int(match[4] or 0))
        found.append(Limit(match[2], int(amount), window_s, match[0]))
    return found


def worst_window(times: Iterable[tuple[int, int]], span_us: int) -> int:
    """Return the largest sum of amounts in any window of `span_us`, its beginning not included.

    Args:
        times: `(instant in microseconds, amount)`, in any order.
        span_us: The window.
    """
    ordered = sorted(times)
    worst = sum_ = first = 0
    for at_us, amount in ordered:
        sum_ += amount
        while ordered[first][0] <= at_us - span_us:
            sum_ -= ordered[first][1]
            first += 1
        worst = max(worst, sum_)
    return worst


def used(times: Iterable[tuple[int, int]], span_us: int) -> float | None:
    """Return the sum of amounts in a window of `span_us` on average, looked at once a second; None without a window."""
    ordered = sorted(times)
    if not ordered or ordered[-1][0] - ordered[0][0] < span_us:
        return None
    instants = [at_us for at_us, _ in ordered]
    sums = [0, *itertools.accumulate(amount for _, amount in ordered)]
    looks = range(instants[0] + span_us - 1, instants[-1], 1_000_000)
    found = [sums[bisect_right(instants, at)] - sums[bisect_right(instants, at - span_us)] for at in looks]
    return sum(found) / len(found)


def worst_day(times: Iterable[tuple[int, int]], zone: str) -> int:
    """Return the largest sum of amounts in any day of a time zone."""
    days: dict[object, int] = defaultdict(int)
    for at_us, amount in times:
        days[datetime.fromtimestamp(at_us / 1e6, ZoneInfo(zone)).date()] += amount
    return max(days.values(), default=0)


def judge_budget(user: str, limit: Limit, bills: Sequence[Billed], zone: str, entries: Iterable[Held] = ()) -> Finding:
    """Hold an invoice against one budget.

    Args:
        user: Whose, for people.
        limit: The budget.
        bills: What counts for it.
        zone: Of its days.
        entries: What the ledger has of them; a run is of one day.
    """
    began = [(one.began_us, one.amount(limit.unit)) for one in bills]
    ended = [(one.ended_us, one.amount(limit.unit)) for one in bills]
    if not limit.window_s:
        held = sum({entry.id: entry.amount(limit.unit) for entry in entries}.values())
        return Finding(user, limit, max(worst_day(began, zone), worst_day(ended, zone)), None, held)
    span_us = limit.window_s * 1_000_000
    worst = max(worst_window(began, span_us), worst_window(ended, span_us))
    return Finding(user, limit, worst, used(ended, span_us))


def judge_ledger(entries: Sequence[Held], bills: Sequence[Billed], open_: Iterable[str] = ()) -> Ledgered:
    """Hold the ledger against the invoice, request by request.

    Args:
        entries: The ledger's, oldest first; a request that was assumed may have another entry later.
        bills: The invoice's.
        open_: Requests whose reservations are not settled.
    """
    problems = [f"{id_} is still open" for id_ in open_]
    settled = Counter(entry.id for entry in entries if entry.mark != "assumed")
    problems += [f"{id_} was settled {count} times" for id_, count in settled.items() if count > 1]
    last = {entry.id: entry for entry in entries}
    billed = {bill.id: bill for bill in bills}
    certain, uncertain = set(), []
    for entry in last.values():
        bill = billed.get(entry.upstream_id)
        if entry.mark != "exact":
            uncertain.append(entry)
            if bill is not None and entry.nano < bill.nano:
                problems.append(f"{entry.id} is held at {entry.nano}, and {bill.nano} were billed ({entry.mark})")
            continue
        if entry.upstream_id in certain:
            problems.append(f"{entry.upstream_id} is held twice as exact")
        certain.add(entry.upstream_id)
        if entry.nano != (bill.nano if bill is not None else 0):
            problems.append(f"{entry.id} is exact at {entry.nano}, and {bill.nano if bill else 0} were billed")
    rest: Counter[str] = Counter()
    for bill in bills:
        if bill.id not in certain:
            rest[bill.user] += bill.nano
    surplus = bound = 0
    for user in rest.keys() | {entry.user for entry in uncertain}:
        of_user = [entry for entry in uncertain if entry.user == user]
        held, reserved = sum(entry.nano for entry in of_user), sum(entry.reserved for entry in of_user)
        if held < rest[user]:
            problems.append(f"{user}: {held} are held as estimated or assumed, and {rest[user]} were billed")
        if held > reserved:
            problems.append(f"{user}: {held} are held as estimated or assumed, and {reserved} were reserved")
        surplus, bound = surplus + held - rest[user], bound + reserved - rest[user]
    return Ledgered(Counter(entry.mark for entry in last.values()), problems, surplus, bound)
