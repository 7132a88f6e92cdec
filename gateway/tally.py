"""What became of one token's requests to one target, and of all requests to one. Pure.

Exchanges add to a `Tally`, an attribute at a time; what can wait is done for many requests at once, when it is folded.
"""

from __future__ import annotations

from collections import Counter
from operator import add
from typing import TYPE_CHECKING, Final

from gateway.counts import BUCKET_NAMES, BUCKETS, COST, REFUSED, SETTLED, bucketed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.counts import Counts
    from gateway.errors import GatewayError

CLIENT_GONE: Final = 499
"""The status of a request whose client left before there was an answer, for counts and the log; nginx has it so."""

MAX_LISTED: Final = 1024
"""Requests of one token to one target that are kept one by one, 100 bytes each; before there are more, they are folded
into counts, in half a millisecond."""

_COUNTED: Final = ("upstream_errors", "failed", "retries", "bytes_in", "bytes_out")


class Tally:
    """One token's requests to one target; each of them that is over is counted in exactly one of the first four.

    Attributes:
        passed: The API answered, and its answer was not cut: an entry for each, the bytes of its body, to be added up
            when they are gathered. One whose client left in the middle is among them, with 0.
        refused: The gateway answered, and nothing was sent to the API, or not all of it: by the error's code.
        upstream_errors: No answer could be had of the API, or only a part of one.
        failed: All else: the client left before there was an answer, or did not send what it had begun to.
        retries: How many of the refused and the upstream's errors an SDK had sent again by itself.
        bytes_in: Of the bodies that the client sent; chunk framing not counted.
        bytes_out: Likewise of those that it got, but for those in `passed`.
        begun: How many requests have begun. At `MAX_LISTED`, `fold` is to be called.
        own_s, upstream_s: Of each answer, how long the gateway and the upstream took, to its head. Two lists of the
            same length: to sort them when they are gathered costs less than to find a bucket for each on the way.
        statuses: The answers' statuses, but for those of 200: these are the rest.
        settled: What requests cost, and how sure that is.
        about: What is known of the token, as fields for people to read.

    All but the last are since it was last folded.
    """

    # fmt: off
    __slots__ = (
        "about", "begun", "bytes_in", "bytes_out", "failed", "own_s", "passed", "refused", "retries", "settled",
        "statuses", "upstream_errors", "upstream_s", "_flying", "_folded",
    )
    # fmt: on

    def __init__(self, about: Mapping[str, str]) -> None:
        self.about = about
        self._flying = 0  # when it was last folded
        self._folded: Counts = Counter()
        self._begin()

    def _begin(self) -> None:
        self.upstream_errors = self.failed = self.retries = self.bytes_in = self.bytes_out = self.begun = 0
        self.passed: list[int] = []
        self.refused: dict[str, int] = {}
        self.own_s: list[float] = []
        self.upstream_s: list[float] = []
        self.statuses: list[int] = []
        self.settled: list[tuple[Mapping[str, int], str]] = []

    @property
    def _over(self) -> int:
        return len(self.passed) + self.upstream_errors + self.failed + sum(self.refused.values())

    @property
    def in_flight(self) -> int:
        """How many requests have begun, ever, and are not over."""
        return self._flying + self.begun - self._over

    def on_refused(self, error: GatewayError, *, is_retry: bool = False) -> None:
        """Count a request that the gateway answered with an error of its own."""
        if error.blames_upstream:
            self.upstream_errors += 1
        elif error.status == 500:
            self.failed += 1
        else:
            self.refused[error.code] = self.refused.get(error.code, 0) + 1
        self.retries += is_retry
        self.statuses.append(error.status)

    def on_cut(self, status: int, *, by_upstream: bool) -> None:
        """Count a request whose answer, of this status, ended in the middle, and not because its client had left."""
        if by_upstream:
            self.upstream_errors += 1
        else:
            self.failed += 1
        self.statuses.append(status)

    def on_left(self, status: int) -> None:
        """Count a request whose client left; in the middle of an answer of this status, or (0) before there was one."""
        if status:
            self.passed.append(0)
        else:
            self.failed += 1
        self.statuses.append(status or CLIENT_GONE)

    def take(self, usage: TargetUsage) -> Counts:
        """Return what was counted, enter in `usage` what is counted by target alone, and begin again."""
        self.fold(usage)
        counts, self._folded = self._folded, Counter()
        return counts

    def fold(self, usage: TargetUsage) -> None:
        """Make a few numbers of the lists, which are as long as there were requests."""
        over = self._over
        self._flying = self.in_flight
        self.begun = 0
        for cost, mark in self.settled:
            self._folded[SETTLED + mark] += 1
            for unit, atoms in cost.items():
                self._folded[COST + unit] += atoms
        self.settled.clear()
        if not over and not self.own_s:
            return
        self.bytes_out += sum(self.passed)
        counts = self._folded
        counts.update({name: count for name in _COUNTED if (count := getattr(self, name))})
        if self.passed:
            counts["passed"] += len(self.passed)
        if self.refused:
            counts.update({REFUSED + code: count for code, count in self.refused.items()})
        if over:
            counts["requests"] += over
        latencies = list(map(add, self.own_s, self.upstream_s))
        counts.update({BUCKET_NAMES[place]: count for place, count in bucketed(latencies)})
        usage.own_s += self.own_s
        usage.upstream_s += self.upstream_s
        if len(usage.own_s) >= MAX_LISTED:
            usage.enter_times()
        usage.statuses[2] += over - len(self.statuses)
        for status in self.statuses:
            usage.statuses[status // 100] += 1
        self._begin()


class TargetUsage:
    """All requests to one target.

    Attributes:
        tallies: By token, of those with a request under way or not gathered yet.
        strangers: Of requests that carried no good token.
        totals: What was gathered, of all tokens.
        own, upstream: Histograms of how long the gateway and the upstream took, from the start of the process.
        statuses: How many answers had a status of 1xx, 2xx, …, by its first digit.
        own_s, upstream_s: As in `Tally`, while they are gathered.
    """

    # fmt: off
    __slots__ = ("name", "own", "own_s", "statuses", "strangers", "tallies", "totals", "upstream", "upstream_s")
    # fmt: on

    def __init__(self, name: str) -> None:
        self.name = name
        self.tallies: dict[str, Tally] = {}
        self.strangers = Tally({})
        self.totals: Counts = Counter()
        self.own, self.upstream = Histogram(), Histogram()
        self.own_s: list[float] = []
        self.upstream_s: list[float] = []
        self.statuses = [0] * 6

    def open(self, token_id: str, about: Mapping[str, str]) -> Tally:
        """Begin to count for a token that has no tally."""
        tally = self.tallies[token_id] = Tally(about)
        return tally

    def enter_times(self) -> None:
        """Put the times that were gathered into the histograms."""
        self.own.enter(self.own_s)
        self.upstream.enter(self.upstream_s)
        self.own_s, self.upstream_s = [], []

    @property
    def in_flight(self) -> int:
        """How many requests are not over."""
        return sum(tally.in_flight for tally in self.tallies.values())


class Histogram:
    """How many times lie in each of the buckets of `counts.BOUNDS_S`, and their sum in seconds."""

    __slots__ = ("buckets", "sum_s")

    def __init__(self) -> None:
        self.buckets = [0] * BUCKETS
        self.sum_s = 0.0

    def enter(self, samples: list[float]) -> None:
        """Count times, in seconds."""
        self.sum_s += sum(samples)
        for place, count in bucketed(samples):
            self.buckets[place] += count
