"""The rule of the limits, told twice more: as a table of cases, and as a log that is counted from scratch.

Neither shares a line with `gateway.limits`; the tests hold all of them, and every store, together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from gateway.limits import Kind, Policy, parse_concurrency, parse_limits
from gateway.limits.policy import lineage
from gateway.stores import REVOKED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.stores import Verdict

Key: TypeAlias = "tuple[str, str]"
Told: TypeAlias = "tuple[bool, int, int, int, int, int]"

S = 1_000_000
"""A second in microseconds; also the segment of a minute."""
T = 1_000_000 * S
"""When the cases begin: the start of a segment of a minute and of ten minutes."""


class Check(NamedTuple):
    """A check at a time, and the verdict it must get: admitted, policy, remaining, reset, time of charge, shadowed."""

    now_us: int
    told: tuple[bool, int, int, int, int]
    shadowed: int = 0

    @property
    def expected(self) -> Told:
        return (*self.told, self.shadowed)


class Refund(NamedTuple):
    """What an earlier check was charged, counted from 0, is given back."""

    check: int


class Release(NamedTuple):
    """The request of an earlier check, counted from 0, is over."""

    check: int


class Renew(NamedTuple):
    """All requests in flight renew their leases, at a time."""

    now_us: int


class Kill(NamedTuple):
    """The process of an earlier check's request is killed: its places are neither renewed nor given back."""

    check: int


class Revoke(NamedTuple):
    """The token is revoked."""


Step: TypeAlias = "Check | Refund | Release | Renew | Kill | Revoke"
LEASE_US = 25 * S


@dataclass(frozen=True)
class Case:
    """Steps that one subject takes, one after the other.

    `ends` says that leases end in it: the embedded store's do not, and it sits those cases out.
    """

    name: str
    limits: str
    steps: tuple[Step, ...]
    shared: str | None = None
    concurrency: str | None = None
    shared_concurrency: str | None = None
    ends: bool = False

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The subject's own limits, then the shared ones."""
        return policies_of(self.limits, self.shared, self.concurrency, self.shared_concurrency)


def policies_of(
    limits: str, shared: str | None = None, concurrency: str | None = None, shared_concurrency: str | None = None
) -> tuple[Policy, ...]:
    """Return the policies in the order that the gateway has them in."""
    return (
        *parse_limits(limits),
        *((parse_concurrency(concurrency),) if concurrency else ()),
        *(parse_limits(shared, shared=True) if shared else ()),
        *((parse_concurrency(shared_concurrency, shared=True),) if shared_concurrency else ()),
    )


@dataclass
class _Charge:
    key: Key
    at_us: int
    interval_us: int
    counts: bool = True


CASES = (
    Case(
        "a quota is used up, refused, and free again when its segment has left",
        "2/minute",
        (
            Check(T, (True, 0, 1, 61 * S, T)),
            Check(T + 5, (True, 0, 0, 61 * S - 5, T + 5)),
            Check(T + 7, (False, 0, 0, 61 * S - 7, T + 7)),
            Check(T + 61 * S - 1, (False, 0, 0, 1, T + 61 * S - 1)),
            Check(T + 61 * S, (True, 0, 1, 61 * S, T + 61 * S)),
        ),
    ),
    Case(
        "at a segment's end a request is counted for the window and no less",
        "1/minute",
        (
            Check(T + S - 1, (True, 0, 0, 60 * S + 1, T + S - 1)),
            Check(T + 61 * S - 1, (False, 0, 0, 1, T + 61 * S - 1)),
            Check(T + 61 * S, (True, 0, 0, 61 * S, T + 61 * S)),
        ),
    ),
    Case(
        "segments leave one by one",
        "3/minute",
        (
            Check(T, (True, 0, 2, 61 * S, T)),
            Check(T + 10 * S, (True, 0, 1, 51 * S, T + 10 * S)),
            Check(T + 20 * S, (True, 0, 0, 41 * S, T + 20 * S)),
            Check(T + 30 * S, (False, 0, 0, 31 * S, T + 30 * S)),
            Check(T + 61 * S, (True, 0, 0, 10 * S, T + 61 * S)),
            Check(T + 71 * S, (True, 0, 0, 10 * S, T + 71 * S)),
            Check(T + 72 * S, (False, 0, 0, 9 * S, T + 72 * S)),
        ),
    ),
    Case(
        "of several limits the one nearest its end is told, the earlier one on a tie",
        "5/minute,5/10m,4/hour",
        (
            Check(T, (True, 2, 3, 3660 * S - T % (60 * S), T)),
            Check(T + 1, (True, 2, 2, 3660 * S - T % (60 * S) - 1, T + 1)),
        ),
    ),
    Case("a tie goes to the earlier limit", "5/minute,5/10m", (Check(T, (True, 0, 4, 61 * S, T)),)),
    Case(
        "all limits are charged, or none is",
        "1/minute,9/10m",
        (
            Check(T, (True, 0, 0, 61 * S, T)),
            Check(T, (False, 0, 0, 61 * S, T)),
            Check(T, (False, 0, 0, 61 * S, T)),
            Check(T + 61 * S, (True, 0, 0, 61 * S, T + 61 * S)),
            Check(T + 122 * S, (True, 0, 0, 61 * S, T + 122 * S)),
            Check(T + 183 * S, (True, 0, 0, 61 * S, T + 183 * S)),
        ),
    ),
    Case(
        "of two limits that refuse, the one with the longer wait is told",
        "1/minute,1/10m",
        (
            Check(T, (True, 0, 0, 61 * S, T)),
            Check(T + 1, (False, 1, 0, 610 * S - 1, T + 1)),
            Check(T + 61 * S, (False, 1, 0, 549 * S, T + 61 * S)),
        ),
    ),
    Case(
        "a shared limit is checked in the same step",
        "2/minute",
        (
            Check(T, (True, 1, 0, 61 * S, T)),
            Check(T, (False, 1, 0, 61 * S, T)),
        ),
        shared="1/minute",
    ),
    Case(
        "a refund frees a place, once, in the newest segment and in older ones",
        "2/minute",
        (
            Check(T, (True, 0, 1, 61 * S, T)),
            Check(T + S, (True, 0, 0, 60 * S, T + S)),
            Refund(1),
            Refund(1),
            Check(T + S, (True, 0, 0, 60 * S, T + S)),
            Refund(0),
            Refund(0),
            Check(T + 2 * S, (True, 0, 0, 60 * S, T + 2 * S)),
            Check(T + 2 * S, (False, 0, 0, 60 * S, T + 2 * S)),
        ),
    ),
    Case(
        "a refund of the oldest leaves the others' time",
        "3/minute",
        (
            Check(T, (True, 0, 2, 61 * S, T)),
            Check(T + S, (True, 0, 1, 60 * S, T + S)),
            Refund(0),
            Check(T + S, (True, 0, 1, 61 * S, T + S)),
        ),
    ),
    Case(
        "counts of more than a byte",  # that of the newest segment is 255 later than that of all
        "270/minute",
        (
            *(Check(T, (True, 0, 270 - n, 61 * S, T)) for n in range(1, 11)),
            *(Check(T + S, (True, 0, 270 - n, 60 * S, T + S)) for n in range(11, 271)),
            Check(T + S, (False, 0, 0, 60 * S, T + S)),
        ),
    ),
    Case(
        "a refund that comes after its segment has left changes nothing",
        "1/minute",
        (
            Check(T, (True, 0, 0, 61 * S, T)),
            Check(T + 61 * S, (True, 0, 0, 61 * S, T + 61 * S)),
            Refund(0),
            Check(T + 61 * S, (False, 0, 0, 61 * S, T + 61 * S)),
        ),
    ),
    Case(
        "a refunded segment in the middle leaves the others alone",
        "3/minute",
        (
            Check(T, (True, 0, 2, 61 * S, T)),
            Check(T + S, (True, 0, 1, 60 * S, T + S)),
            Check(T + 2 * S, (True, 0, 0, 59 * S, T + 2 * S)),
            Refund(1),
            Check(T + 3 * S, (True, 0, 0, 58 * S, T + 3 * S)),
            Check(T + 61 * S, (True, 0, 0, 2 * S, T + 61 * S)),
        ),
    ),
    Case(
        "a newest segment given back whole is not remembered as the oldest later",
        "3/minute",
        (
            Check(T, (True, 0, 2, 61 * S, T)),
            Check(T + S, (True, 0, 1, 60 * S, T + S)),
            Refund(1),
            Check(T + 2 * S, (True, 0, 1, 59 * S, T + 2 * S)),
            Check(T + 61 * S, (True, 0, 1, 2 * S, T + 61 * S)),
        ),
    ),
    Case(
        "what has left is not told as the oldest, though the newest segment was given back whole",
        "2/minute",
        (
            Check(T, (True, 0, 1, 61 * S, T)),
            Check(T + 30 * S, (True, 0, 0, 31 * S, T + 30 * S)),
            Refund(1),
            Check(T + 61 * S, (True, 0, 1, 61 * S, T + 61 * S)),
        ),
    ),
    Case(
        "when the clock steps back, the newest segment charged stands",
        "2/minute",
        (
            Check(T + 30 * S + 9, (True, 0, 1, 61 * S - 9, T + 30 * S + 9)),
            Check(T, (True, 0, 0, 91 * S, T + 30 * S)),
            Check(T + 61 * S, (False, 0, 0, 30 * S, T + 61 * S)),
            Check(T, (False, 0, 0, 91 * S, T + 30 * S)),
            Check(T + 91 * S, (True, 0, 1, 61 * S, T + 91 * S)),
        ),
    ),
    Case(
        "the newest time stands even when its charge was given back",
        "1/minute",
        (
            Check(T + 30 * S, (True, 0, 0, 61 * S, T + 30 * S)),
            Refund(0),
            Check(T, (True, 0, 0, 91 * S, T + 30 * S)),
        ),
    ),
    Case(
        "segments of one second's window are rounded up",
        "1/second",
        (
            Check(16_667 * 100, (True, 0, 0, 61 * 16_667, 16_667 * 100)),
            Check(16_667 * 161 - 1, (False, 0, 0, 1, 16_667 * 161 - 1)),
            Check(16_667 * 161, (True, 0, 0, 61 * 16_667, 16_667 * 161)),
        ),
    ),
    Case(
        "a bucket gives all its places at once, then one in each interval",
        "3/minute;bucket",
        (
            Check(T, (True, 0, 2, 20 * S, T)),
            Check(T, (True, 0, 1, 20 * S, T)),
            Check(T + 5 * S, (True, 0, 0, 15 * S, T + 5 * S)),
            Check(T + 5 * S, (False, 0, 0, 15 * S, T + 5 * S)),
            Check(T + 20 * S - 1, (False, 0, 0, 1, T + 20 * S - 1)),
            Check(T + 20 * S, (True, 0, 0, 20 * S, T + 20 * S)),
            Check(T + 20 * S, (False, 0, 0, 20 * S, T + 20 * S)),
            Check(T + 61 * S, (True, 0, 1, 19 * S, T + 61 * S)),
        ),
    ),
    Case(
        "a bucket's interval is rounded up, so that it is never too fast",
        "7/second;bucket",
        (
            *(Check(T, (True, 0, 6 - n, 142_858, T)) for n in range(7)),
            Check(T + 142_857, (False, 0, 0, 1, T + 142_857)),
            Check(T + 142_858, (True, 0, 0, 142_858, T + 142_858)),
        ),
    ),
    Case(
        "the newest charge of a bucket can be given back, an older one cannot",
        "2/minute;bucket",
        (
            Check(T, (True, 0, 1, 30 * S, T)),
            Check(T + S, (True, 0, 0, 29 * S, T + S)),
            Refund(0),
            Check(T + S, (False, 0, 0, 29 * S, T + S)),
            Refund(1),
            Check(T + 2 * S, (True, 0, 0, 28 * S, T + 2 * S)),
        ),
    ),
    Case(
        "when the clock steps back, a bucket does not fill until it has caught up, and what is left is left",
        "2/minute;bucket",
        (
            Check(T + 3600 * S, (True, 0, 1, 30 * S, T + 3600 * S)),
            Check(T, (True, 0, 0, 3630 * S, T + 3600 * S)),
            Check(T + 60 * S, (False, 0, 0, 3570 * S, T + 3600 * S)),
            Check(T + 3630 * S, (True, 0, 0, 30 * S, T + 3630 * S)),
        ),
    ),
    Case(
        "a window and a bucket are charged together or not at all",
        "9/minute,2/10m;bucket",
        (
            Check(T, (True, 1, 1, 300 * S, T)),
            Check(T, (True, 1, 0, 300 * S, T)),
            Check(T, (False, 1, 0, 300 * S, T)),
            Check(T + 300 * S, (True, 1, 0, 300 * S, T + 300 * S)),
        ),
    ),
    Case(
        "a shadow never refuses, says that it would have, and does not count what it would have refused",
        "9/minute,1/10m;shadow",
        (
            Check(T, (True, 1, 0, 610 * S, T)),
            Check(T + S, (True, 1, 0, 609 * S, T + S), 0b10),
            Check(T + 2 * S, (True, 1, 0, 608 * S, T + 2 * S), 0b10),
            Refund(2),
            Check(T + 3 * S, (True, 1, 0, 607 * S, T + 3 * S), 0b10),
            Check(T + 610 * S, (True, 1, 0, 610 * S, T + 610 * S)),
        ),
    ),
    Case(
        "what a limit refuses is not counted by a shadow either",
        "1/minute,2/10m;shadow",
        (
            Check(T, (True, 0, 0, 61 * S, T)),
            Check(T, (False, 0, 0, 61 * S, T)),
            Check(T + 61 * S, (True, 0, 0, 61 * S, T + 61 * S)),
            Check(T + 122 * S, (True, 0, 0, 61 * S, T + 122 * S), 0b10),
        ),
    ),
    Case(
        "a stricter limit is tried in the shadow of the real one",
        "3/minute,1/minute;shadow",
        (
            Check(T, (True, 1, 0, 61 * S, T)),
            Check(T, (True, 1, 0, 61 * S, T), 0b10),
            Check(T, (True, 0, 0, 61 * S, T), 0b10),
            Check(T, (False, 0, 0, 61 * S, T)),
        ),
    ),
    Case(
        "a bucket in shadow",
        "9/minute,1/10m;bucket;shadow",
        (
            Check(T, (True, 1, 0, 600 * S, T)),
            Check(T + S, (True, 1, 0, 599 * S, T + S), 0b10),
            Refund(1),
            Check(T + 600 * S, (True, 1, 0, 600 * S, T + 600 * S)),
        ),
    ),
    Case(
        "places in flight come back with the end of the request, and are not told while there are some",
        "9/minute",
        (
            Check(T, (True, 0, 8, 61 * S, T)),
            Check(T, (True, 0, 7, 61 * S, T)),
            Check(T, (False, 1, 0, S, T)),
            Release(0),
            Release(0),
            Check(T, (True, 0, 6, 61 * S, T)),
            Check(T, (False, 1, 0, S, T)),
            Refund(1),
            Check(T, (True, 0, 6, 61 * S, T)),
        ),
        concurrency="2",
    ),
    Case(
        "of a full window and full places the longer wait is told",
        "1/minute",
        (
            Check(T, (True, 0, 0, 61 * S, T)),
            Check(T, (False, 0, 0, 61 * S, T)),
            Renew(T + 50 * S),
            Check(T + 60 * S + S // 2, (False, 1, 0, S, T + 60 * S + S // 2)),
            Check(T + 61 * S, (False, 1, 0, S, T + 61 * S)),
            Release(0),
            Check(T + 61 * S, (True, 0, 0, 61 * S, T + 61 * S)),
        ),
        concurrency="1",
    ),
    Case(
        "places in shadow never refuse, and the request too many takes none",
        "9/minute",
        (
            Check(T, (True, 0, 8, 61 * S, T)),
            Check(T, (True, 0, 7, 61 * S, T), 0b10),
            Release(1),
            Check(T, (True, 0, 6, 61 * S, T), 0b10),
            Release(0),
            Check(T, (True, 0, 5, 61 * S, T)),
        ),
        concurrency="1;shadow",
    ),
    Case(
        "places of one token and of all",
        "9/minute",
        (
            Check(T, (True, 0, 8, 61 * S, T)),
            Check(T, (False, 2, 0, S, T)),
            Release(0),
            Check(T, (True, 0, 7, 61 * S, T)),
        ),
        concurrency="2",
        shared_concurrency="1",
    ),
    Case(
        "a killed process's places come back when the lease ends, renewed ones do not",
        "9/minute",
        (
            Check(T, (True, 0, 8, 61 * S, T)),
            Check(T, (True, 0, 7, 61 * S, T)),
            Kill(0),
            Renew(T + 10 * S),
            Check(T + 25 * S - 1, (False, 1, 0, S, T + 25 * S - 1)),
            Check(T + 25 * S, (True, 0, 6, 36 * S, T + 25 * S)),
            Check(T + 25 * S, (False, 1, 0, S, T + 25 * S)),
        ),
        concurrency="2",
        ends=True,
    ),
    Case(
        "a lease renewed after its end counts again, though its place was given away",
        "9/minute",
        (
            Check(T, (True, 0, 8, 61 * S, T)),
            Check(T + 25 * S, (True, 0, 7, 36 * S, T + 25 * S)),
            Renew(T + 26 * S),
            Release(1),
            Check(T + 26 * S, (False, 1, 0, S, T + 26 * S)),
            Release(0),
            Check(T + 26 * S, (True, 0, 6, 35 * S, T + 26 * S)),
        ),
        concurrency="1",
        ends=True,
    ),
    Case(
        "when the clock steps back, a killed process's places are not held for longer than a lease",
        "9/minute",
        (
            Check(T + 3600 * S, (True, 0, 8, 61 * S, T + 3600 * S)),
            Kill(0),
            Check(T, (False, 1, 0, S, T + 3600 * S)),
            Check(T + 25 * S, (True, 0, 7, 3636 * S, T + 3600 * S)),
        ),
        concurrency="1",
        ends=True,
    ),
    Case(
        "an hour forward, an hour back: nothing is admitted twice",
        "2/minute",
        (
            Check(T, (True, 0, 1, 61 * S, T)),
            Check(T + 3600 * S, (True, 0, 1, 61 * S, T + 3600 * S)),
            Check(T + S, (True, 0, 0, 3660 * S, T + 3600 * S)),
            Check(T + 61 * S, (False, 0, 0, 3600 * S, T + 3600 * S)),
            Check(T + 3661 * S, (True, 0, 1, 61 * S, T + 3661 * S)),
        ),
    ),
    Case(
        "a revoked token is refused before all limits and counts nowhere",
        "1/minute",
        (
            Check(T, (True, 0, 0, 61 * S, T)),
            Revoke(),
            Check(T + 1, (False, REVOKED, 0, 0, T + 1)),
            Check(T + 61 * S, (False, REVOKED, 0, 0, T + 61 * S)),
        ),
        concurrency="1",
    ),
    Case(
        "many segments with one request in each leave one by one",
        "9/minute",
        (
            *(Check(T + 8 * n * S, (True, 0, 8 - n, (61 - 8 * n) * S, T + 8 * n * S)) for n in range(8)),
            Check(T + 61 * S, (True, 0, 1, 8 * S, T + 61 * S)),
            Check(T + 64 * S, (True, 0, 0, 5 * S, T + 64 * S)),
            Check(T + 68 * S, (False, 0, 0, S, T + 68 * S)),
        ),
    ),
)


class Log:
    """Every admission ever made, and verdicts by counting through all of them.

    Args:
        lease_us: How long a place in flight is held without being renewed; None: for ever.
    """

    def __init__(self, lease_us: int | None = None) -> None:
        self._charges: list[_Charge] = []
        self._leases: dict[Key, dict[bytes, int]] = {}
        self._lease_us = 1 << 62 if lease_us is None else lease_us
        self._revoked: set[str] = set()

    def check(self, subject: str, policies: Sequence[Policy], now_us: int, lease: bytes) -> Told:
        """Decide, and remember the admission."""
        if not self._revoked.isdisjoint(lineage(subject)):
            return (False, REVOKED, 0, 0, now_us, 0)
        keys = [(policy.owner(subject), policy.counter) for policy in policies]
        at_us = self._time(keys, now_us)
        for key, policy in zip(keys, policies, strict=True):
            self._clear(key, policy, now_us)
        before = [self._look(key, policy, at_us, now_us) for key, policy in zip(keys, policies, strict=True)]
        full = [left <= 0 for _, left, _ in before]
        told = (-1, 0)
        for index, policy in enumerate(policies):
            if full[index] and not policy.shadow and before[index][2] > told[1]:
                told = (index, before[index][2])
        if told[0] >= 0:
            return (False, told[0], 0, told[1] - now_us, at_us, 0)
        for index, (key, policy) in enumerate(zip(keys, policies, strict=True)):
            if full[index]:
                continue
            if policy.kind is Kind.LEASE:
                self._leases.setdefault(key, {})[lease] = now_us + self._lease_us
            else:
                unit_us = policy.segment_us if policy.kind is Kind.WINDOW else 1
                self._charges.append(_Charge(key, at_us // unit_us * unit_us, policy.unit_us))
        shown = [
            (left, index, free_us)
            for index, (key, policy) in enumerate(zip(keys, policies, strict=True))
            if policy.kind is not Kind.LEASE and not policy.guard
            for _, left, free_us in [self._look(key, policy, at_us, now_us)]
        ]
        left, nearest, free_us = min(shown, default=(0, -1, now_us))
        shadowed = sum(2**index for index in range(len(policies)) if full[index])
        return (True, nearest, left, free_us - now_us, at_us, shadowed)

    def look(self, subject: str, policies: Sequence[Policy], now_us: int) -> list[tuple[int, int, int]] | None:
        """Say how each limit stands."""
        if not self._revoked.isdisjoint(lineage(subject)):
            return None
        keys = [(policy.owner(subject), policy.counter) for policy in policies]
        at_us = self._time(keys, now_us)
        looks = [self._look(key, policy, at_us, now_us) for key, policy in zip(keys, policies, strict=True)]
        return [
            (used, left, free_us - now_us if used and policy.kind is not Kind.LEASE else 0)
            for (used, left, free_us), policy in zip(looks, policies, strict=True)
        ]

    def refund(self, subject: str, policies: Sequence[Policy], verdict: Verdict) -> None:
        """Take one admission of that time out of the count."""
        for index, policy in enumerate(policies):
            key = (policy.owner(subject), policy.counter)
            if verdict.shadowed & 2**index or policy.kind is Kind.LEASE:
                continue
            unit_us = policy.segment_us if policy.kind is Kind.WINDOW else 1
            at_us = verdict.at_us // unit_us * unit_us
            same = [one for one in self._charges if one == _Charge(key, at_us, policy.unit_us)]
            newest_us = max((charge.at_us for charge in self._charges if charge.key == key), default=0)
            if same and (policy.kind is Kind.WINDOW or at_us == newest_us):
                same[-1].counts = False
        self.release(subject, policies, verdict)

    def release(self, subject: str, policies: Sequence[Policy], verdict: Verdict) -> None:
        """Take a request in flight out of the count."""
        for policy in policies:
            self._leases.get((policy.owner(subject), policy.counter), {}).pop(verdict.lease, None)

    def renew(self, subject: str, policies: Sequence[Policy], verdict: Verdict, now_us: int) -> None:
        """Hold a request's places from now on."""
        for index, policy in enumerate(policies):
            if policy.kind is Kind.LEASE and not verdict.shadowed & 2**index:
                leases = self._leases.setdefault((policy.owner(subject), policy.counter), {})
                leases[verdict.lease] = now_us + self._lease_us

    def revoke(self, subject: str) -> None:
        """Refuse this subject from now on."""
        self._revoked.add(subject)

    def _time(self, keys: list[Key], now_us: int) -> int:
        return max([now_us, *(charge.at_us for charge in self._charges if charge.key in keys)])

    def _clear(self, key: Key, policy: Policy, now_us: int) -> None:
        leases = self._leases.get(key, {})
        if len(leases) >= policy.quota:
            for lease, ends_us in tuple(leases.items()):
                if ends_us <= now_us:
                    del leases[lease]
                else:
                    leases[lease] = min(ends_us, now_us + self._lease_us)

    def _look(self, key: Key, policy: Policy, at_us: int, now_us: int) -> tuple[int, int, int]:
        """Return what is used, what is left and when that grows."""
        quota = policy.quota
        if policy.kind is Kind.LEASE:
            used = sum(ends_us > now_us for ends_us in self._leases.get(key, {}).values())
            return used, max(quota - used, 0), now_us + S
        charges = [charge for charge in self._charges if charge.key == key and charge.counts]
        if policy.kind is Kind.BUCKET:
            served_us = 0  # requests that queue up, each served for an interval
            for charge in charges:
                served_us = max(served_us, charge.at_us) + charge.interval_us
            # One that comes now is let in if it is served within the bucket's depth.
            depth_us = quota * policy.interval_us
            left = 0
            while max(served_us, at_us) + (left + 1) * policy.interval_us <= at_us + depth_us:
                left += 1
            free_us = max(served_us, at_us) + (left + 1) * policy.interval_us - depth_us
            queued = 0
            while served_us - queued * policy.interval_us > at_us:
                queued += 1
            return queued, left, free_us
        counted = sorted(charge.at_us for charge in charges if charge.at_us + 61 * policy.segment_us > at_us)
        used = len(counted)
        first = counted[max(used - quota, 0)] if counted else at_us
        return used, max(quota - used, 0), first + 61 * policy.segment_us


def as_tuple(verdict: Verdict) -> Told:
    """Return the verdict for comparison, after a check that `admitted` is a bool as promised."""
    assert isinstance(verdict.admitted, bool)
    return verdict[:6]
