"""What a worker counts, and how it tells the run."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

from gateway.verify.judge import Seen

ADMITTED = "admitted"
"""The kind of every answer that is not the gateway's own; the others' kind is their `X-Gateway-Error`."""

RATE_LIMITED = "rate_limited"
UNDECIDED = "store_unavailable"
UNANSWERED = "unanswered"
"""Requests whose connection ended before an answer, or that had none when the run was over."""
UNREACHABLE = "unreachable"
"""Connections that could not be made; nothing was asked on them."""


MOST_POLICIES = 4
"""More than one is wrong already."""


def now_us() -> int:
    """Read the clock that all processes of a machine share, in microseconds."""
    return time.monotonic_ns() // 1000


@dataclass(slots=True)
class Tally:
    """Counts since the last report. Instants are microseconds of the machine's monotonic clock.

    Args:
        asked: Requests sent.
        kinds: How many answers of each kind.
        slowest_us: The slowest answer of each kind.
        admissions: Each request that was admitted.
        undecided_us: When the last request was answered that could not be decided; 0: none was.
        policies: The values of `RateLimit-Policy` that answers had, `MOST_POLICIES` of them at most.
    """

    asked: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    slowest_us: dict[str, int] = field(default_factory=dict)
    admissions: list[Seen] = field(default_factory=list)
    undecided_us: int = 0
    policies: set[str] = field(default_factory=set)

    def note(self, kind: str, sent_us: int, received_us: int) -> None:
        """Count one answer, or one that did not come in time."""
        self.kinds[kind] += 1
        self.slowest_us[kind] = max(self.slowest_us.get(kind, 0), received_us - sent_us)
        if kind == ADMITTED:
            self.admissions.append(Seen(sent_us, received_us))
        elif kind == UNDECIDED:
            self.undecided_us = received_us

    def add(self, other: Tally) -> None:
        """Add another one's counts to this."""
        self.asked += other.asked
        self.kinds += other.kinds
        for kind, slowest_us in other.slowest_us.items():
            self.slowest_us[kind] = max(self.slowest_us.get(kind, 0), slowest_us)
        self.admissions += other.admissions
        self.undecided_us = max(self.undecided_us, other.undecided_us)
        self.policies |= other.policies

    def to_json(self) -> str:
        """Write it on one line."""
        policies = sorted(self.policies)
        return json.dumps([self.asked, self.kinds, self.slowest_us, self.admissions, self.undecided_us, policies])

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what `to_json` wrote."""
        asked, kinds, slowest_us, admissions, undecided_us, policies = json.loads(text)
        return cls(asked, Counter(kinds), slowest_us, [Seen(*seen) for seen in admissions], undecided_us, set(policies))
