"""The book of usage: what all instances have counted, added up; here, of the one process that has its store in itself.

Nothing is decided by it, and no request waits for it: counts are entered about once a second. `usage_redis` has the
same in Redis.
"""

from __future__ import annotations

from collections import Counter
from heapq import nlargest
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from gateway.metrics import MAX_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.counts import Counts
    from gateway.metrics import Delta

MAX_TOKENS_TOLD: Final = 100


class Used(NamedTuple):
    """What is known of one token's usage.

    Args:
        counts: Of requests that are over, on all instances.
        about: Its name and limits, as `Subject.about` has them.
        in_flight: How many requests are not over, on the other instances.
    """

    counts: Counts
    about: Mapping[str, str]
    in_flight: int = 0


class Overview(NamedTuple):
    """What is known of all usage.

    Args:
        others: How many other instances there are.
        targets: By target; what was for none of them is under "". Of in flight, that of the other instances.
        tokens: By id: those with the most requests, and no more than were asked for.
    """

    others: int
    targets: dict[str, Used]
    tokens: dict[str, Used]


class UsageBook(Protocol):
    """Adds up what was counted."""

    dropped: int
    """How many tokens' counts were lost on their way, because there were too many."""

    def add(self, delta: Delta) -> None:
        """Enter what this instance has counted, as soon as that is possible."""
        ...

    async def of(self, token_id: str) -> Used:
        """Return one token's usage, all that was entered here included.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        ...

    async def overview(self, most: int = MAX_TOKENS_TOLD) -> Overview:
        """Return all usage, of the busiest tokens as many as that.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        ...

    async def close(self) -> None:
        """Return when all that was entered is where it belongs, or cannot get there."""
        ...


class MemoryUsage:
    """The book of a process that shares its store with nobody."""

    __slots__ = ("_targets", "_tokens", "dropped")

    def __init__(self) -> None:
        self.dropped = 0  # what is forgotten was told of as long as it was used
        self._targets: dict[str, Counts] = {}
        self._tokens: dict[str, Used] = {}  # those used last stand last

    def add(self, delta: Delta) -> None:
        """See `UsageBook`. Of more than `MAX_TOKENS`, those that have not been used for longest are forgotten."""
        for name, counts in delta.targets.items():
            self._targets.setdefault(name, Counter()).update(counts)
        for token_id, (counts, about) in delta.tokens.items():
            known = self._tokens.pop(token_id, None)
            if known is None:
                if len(self._tokens) >= MAX_TOKENS:
                    del self._tokens[next(iter(self._tokens))]
                known = Used(Counter(), about)
            known.counts.update(counts)
            self._tokens[token_id] = known

    async def of(self, token_id: str) -> Used:
        """See `UsageBook`."""
        return self._tokens.get(token_id) or Used(Counter(), {})

    async def overview(self, most: int = MAX_TOKENS_TOLD) -> Overview:
        """See `UsageBook`."""
        busiest = nlargest(most, self._tokens, key=lambda token_id: self._tokens[token_id].counts["requests"])
        targets = {name: Used(counts, {}) for name, counts in self._targets.items()}
        return Overview(0, targets, {token_id: self._tokens[token_id] for token_id in busiest})

    async def close(self) -> None:
        """Do nothing: it is all here."""
