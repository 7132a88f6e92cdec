"""The rule of the sliding window, told twice more: as a table of cases, and as a log that is counted from scratch.

Neither shares a line with `gateway.limits.window`; the tests hold all of them, and every store, together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from gateway.limits import Policy, parse_limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.stores import Verdict

S = 1_000_000
"""A second in microseconds; also the segment of a minute."""
T = 1_000_000 * S
"""When the cases begin: the start of a segment of a minute and of ten minutes."""


class Check(NamedTuple):
    """A check at a time, and the verdict it must get: admitted, policy, remaining, reset, time of charge."""

    now_us: int
    expected: tuple[bool, int, int, int, int]


class Refund(NamedTuple):
    """The charge of an earlier check, counted from 0, is given back."""

    check: int


@dataclass(frozen=True)
class Case:
    """Steps that one subject takes, one after the other."""

    name: str
    limits: str
    steps: tuple[Check | Refund, ...]
    shared: str | None = None

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The subject's own limits, then the shared ones."""
        shared = parse_limits(self.shared, shared=True) if self.shared else ()
        return parse_limits(self.limits) + shared


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
)


class Log:
    """Every admission ever made, and verdicts by counting through all of them."""

    def __init__(self) -> None:
        self._charges: list[tuple[tuple[str, str], int, bool]] = []

    def check(self, subject: str, policies: Sequence[Policy], now_us: int) -> tuple[bool, int, int, int, int]:
        """Decide, and remember the admission."""
        keys = [(policy.owner(subject), policy.name) for policy in policies]
        at_us = now_us
        for key, policy in zip(keys, policies, strict=True):
            for charged, segment, _ in self._charges:
                if charged == key:
                    at_us = max(at_us, segment * policy.segment_us)
        counted = [
            sorted(
                segment
                for charged, segment, counts in self._charges
                if charged == key and counts and (segment + 61) * policy.segment_us > at_us
            )
            for key, policy in zip(keys, policies, strict=True)
        ]
        told = (-1, 0)
        for index, (policy, segments) in enumerate(zip(policies, counted, strict=True)):
            if len(segments) >= policy.quota:
                free_us = (segments[len(segments) - policy.quota] + 61) * policy.segment_us
                if free_us > told[1]:
                    told = (index, free_us)
        if told[0] >= 0:
            return (False, told[0], 0, told[1] - now_us, at_us)
        for key, policy, segments in zip(keys, policies, counted, strict=True):
            segments.append(at_us // policy.segment_us)
            self._charges.append((key, segments[-1], True))
        left = [policy.quota - len(segments) for policy, segments in zip(policies, counted, strict=True)]
        nearest = left.index(min(left))
        free_us = (counted[nearest][0] + 61) * policies[nearest].segment_us
        return (True, nearest, left[nearest], free_us - now_us, at_us)

    def refund(self, subject: str, policies: Sequence[Policy], at_us: int) -> None:
        """Take one admission of that time out of the count."""
        for policy in policies:
            charge = ((policy.owner(subject), policy.name), at_us // policy.segment_us, True)
            if charge in self._charges:
                self._charges[self._charges.index(charge)] = (*charge[:2], False)


def as_tuple(verdict: Verdict) -> tuple[bool, int, int, int, int]:
    """Return the verdict for comparison, after a check that `admitted` is a bool as promised."""
    assert isinstance(verdict.admitted, bool)
    return verdict._replace()
