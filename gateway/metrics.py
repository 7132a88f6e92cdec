"""Plain counters of this process, kept on the way and gathered once a second.

A `Tally` is what became of one token's requests to one target since it was last gathered. `Metrics.gather` takes the
numbers out and adds them up: by target for as long as the process lives, and by token until somebody has taken them
away (`take`), to where all instances' are added up.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.counts import REFUSED, add_up
from gateway.errors import BudgetExceeded, RateLimited
from gateway.tally import TargetUsage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.counts import Counts
    from gateway.errors import GatewayError

MAX_TOKENS: Final = 8192
"""Tokens that are counted apart: about 1 kB each. The one that came first makes room."""

MAX_LOOPS: Final = 5
"""Of one token, so many requests that repeat are remembered: half a kB each. The one refused longest ago makes room."""

LINES_DROPPED: Final = "log_lines_dropped"


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
