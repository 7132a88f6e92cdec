"""Plain counters of this process, kept on the way and gathered once a second.

A `Tally` is what became of one token's requests to one target since it was last gathered. Exchanges add to it, an
attribute at a time; `Metrics.gather` takes the numbers out and adds them up: by target for as long as the process
lives, and by token until somebody has taken them away (`take`), to where all instances' are added up.
"""

from __future__ import annotations

from collections import Counter
from operator import add
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.counts import BUCKET_NAMES, BUCKETS, COST, REFUSED, SETTLED, add_up, bucketed
from gateway.errors import BudgetExceeded, RateLimited

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.counts import Counts
    from gateway.errors import GatewayError

MAX_TOKENS: Final = 8192
"""Tokens that are counted apart: about 1 kB each. The one that came first makes room."""

MAX_LOOPS: Final = 5
"""Of one token, so many requests that repeat are remembered: half a kB each. The one refused longest ago makes room."""

CLIENT_GONE: Final = 499
"""The status of a request whose client left before there was an answer, for counts and the log; nginx has it so."""

MAX_LISTED: Final = 1024
"""Requests of one token to one target that are kept one by one, 100 bytes each; before there are more, they are folded
into counts, in half a millisecond."""

LINES_DROPPED: Final = "log_lines_dropped"

_COUNTED: Final = ("upstream_errors", "failed", "retries", "bytes_in", "bytes_out")


class Loop:
    """A request that is refused because it repeats, since it began to be.

    Attributes:
        target: The target's name.
        request: Method and path, for people.
        body: The begin of its content, for people; "" if it has none.
        refused: How often it was.
        last_s: When it was last, in seconds since the epoch.
    """

    __slots__ = ("body", "last_s", "refused", "request", "target")

    def __init__(self) -> None:
        self.target = self.request = self.body = ""
        self.refused = 0
        self.last_s = 0.0


class Denials:
    """What one token was refused, and what only a shadow let pass, since this process began to count for it.

    Attributes:
        reasons: How many requests, by the limit's or the budget's name, or the error's code.
        shadowed: How many requests passed that a shadow would have refused, by the limit's name.
        retries: How many of the refused requests an SDK sent again by itself.
        loops: What repeated, by what tells requests apart; the one refused last is the last.
    """

    __slots__ = ("loops", "reasons", "retries", "shadowed")

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.shadowed: Counter[str] = Counter()
        self.retries = 0
        self.loops: dict[str, Loop] = {}


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
        begun: How many requests have begun. Who finds `MAX_LISTED` calls `fold`.
        own_s, upstream_s: Of each answer, how long the gateway and the upstream took, to its head. Two lists of the
            same length: to sort them when they are gathered costs less than to find a bucket for each on the way.
        statuses: The answers' statuses, but for those of 200: these are the rest.
        settled: What requests did cost, and how sure that is.
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


class Delta(NamedTuple):
    """What was counted since it was last taken away.

    Args:
        tokens: By token; and what is known of each. Those with a request in flight are among them.
        targets: By target; what was for none of them is under "".
        token_flights: How many requests are in flight, by token, of those that have any.
        target_flights: How many by target, of all targets.
    """

    tokens: dict[str, tuple[Counts, Mapping[str, str]]]
    targets: dict[str, Counts]
    token_flights: dict[str, int]
    target_flights: dict[str, int]


class Metrics:
    """Counts of a gateway's.

    Attributes:
        targets: By the target's name.
        nowhere: Of requests that could not be read, or were for no target.
        dropped: How many tokens' counts were lost, because more than `MAX_TOKENS` had any before they were taken away.
    """

    __slots__ = ("_denials", "_targets", "_tokens", "dropped", "nowhere", "targets")

    def __init__(self) -> None:
        self.nowhere = TargetUsage("")
        self.dropped = 0
        self.targets: dict[str, TargetUsage] = {}
        self._denials: dict[str, Denials] = {}
        self._tokens: dict[str, tuple[Counts, Mapping[str, str]]] = {}  # gathered, and not taken yet
        self._targets: dict[str, Counts] = {}

    def target(self, name: str) -> TargetUsage:
        """Return the counts of a target, which outlast a reload."""
        usage = self.targets.get(name)
        if usage is None:
            usage = self.targets[name] = TargetUsage(name)
        return usage

    def gather(self) -> None:
        """Take the numbers out of all tallies; those that nobody uses any more are dropped."""
        for usage in (self.nowhere, *self.targets.values()):
            gathered = usage.strangers.take(usage)
            unused = []
            for token_id, tally in usage.tallies.items():
                counts = tally.take(usage)
                if counts or tally.in_flight:
                    gathered.update(counts)
                    self.dropped += add_up(self._tokens, token_id, counts, tally.about, MAX_TOKENS)
                else:
                    unused.append(token_id)
            for token_id in unused:
                del usage.tallies[token_id]
            usage.enter_times()
            if gathered:
                usage.totals.update(gathered)
                self._targets.setdefault(usage.name, Counter()).update(gathered)

    def take(self) -> Delta:
        """Gather, and take away what was gathered."""
        self.gather()
        token_flights: Counter[str] = Counter()
        for usage in self.targets.values():
            for token_id, tally in usage.tallies.items():
                if tally.in_flight:
                    token_flights[token_id] += tally.in_flight
        target_flights = {name: usage.in_flight for name, usage in self.targets.items()}
        delta = Delta(self._tokens, self._targets, dict(token_flights), target_flights)
        self._tokens, self._targets = {}, {}
        return delta

    def on_lines_dropped(self, count: int) -> None:
        """Count lines of the access log that nobody took."""
        self.nowhere.totals[LINES_DROPPED] += count

    @property
    def passed(self) -> int:
        """How many requests the API answered, as in `Tally.passed`."""
        return self._sum("passed")

    @property
    def refused(self) -> int:
        """How many requests the gateway answered with a refusal: no good token, a limit, malformed, nobody's path."""
        self.gather()
        usages = (self.nowhere, *self.targets.values())
        return sum(count for usage in usages for name, count in usage.totals.items() if name.startswith(REFUSED))

    @property
    def failed(self) -> int:
        """For how many requests no answer could be had, or only a part of one; or the client left before that."""
        return self._sum("failed") + self._sum("upstream_errors")

    def of(self, token_id: str) -> Denials:
        """Return what a token was denied; all are zero for one that has none."""
        return self._denials.get(token_id) or Denials()

    def on_denied(self, token_id: str, error: GatewayError, *, is_retry: bool) -> None:
        """Count a refused request of a token that is good."""
        denials = self._counted(token_id)
        if isinstance(error, RateLimited):
            denials.reasons[error.policy] += 1
        else:
            denials.reasons[error.budget if isinstance(error, BudgetExceeded) else error.code] += 1
        denials.retries += is_retry

    def on_repeated(self, token_id: str, mark: str, now_s: float, *, quiet_s: float) -> Loop:
        """Count a request that is refused because it repeats; return it with the others like it.

        Args:
            token_id: Whose it is.
            mark: What tells it from others.
            now_s: Seconds since the epoch.
            quiet_s: When none was refused for as long, another loop begins.
        """
        loops = self._counted(token_id).loops
        loop = loops.pop(mark, None)
        if loop is None or loop.last_s + quiet_s < now_s:
            loop = Loop()
        loops[mark] = loop
        if len(loops) > MAX_LOOPS:
            del loops[next(iter(loops))]
        loop.refused += 1
        loop.last_s = now_s
        return loop

    def on_shadowed(self, token_id: str, limits: Sequence[str]) -> None:
        """Count a request that passed, and that these limits, if any, would have refused were they not shadows."""
        if limits:
            self._counted(token_id).shadowed.update(limits)

    def _counted(self, token_id: str) -> Denials:
        denials = self._denials.get(token_id)
        if denials is None:
            if len(self._denials) >= MAX_TOKENS:
                del self._denials[next(iter(self._denials))]
            denials = self._denials[token_id] = Denials()
        return denials

    def _sum(self, name: str) -> int:
        self.gather()
        return sum(usage.totals[name] for usage in (self.nowhere, *self.targets.values()))
