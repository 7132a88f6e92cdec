"""The keys of one target, used in turn; one that the API refuses rests for as long as the API says."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from gateway.http1.message import CRLF

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.http1.message import AnswerHead
    from gateway.proxy.clock import Clock
    from gateway.proxy.context import Destination

REFUSALS: Final = frozenset((401, 429))
REST_S: Final = 10.0
"""How long a key rests where the API does not say."""
LEAST_REST_S: Final = 1.0
MOST_REST_S: Final = 600.0
"""An API that says more may mean it; but a key that was mended meanwhile should not wait for a restart."""

_log = logging.getLogger("gateway.upstream")


class KeyRing:
    """Where requests to one target go, once for each of its keys.

    Args:
        name: The target's, for the log.
        destinations: The same target with each of its keys, one or more.
        clock: The process's coarse time.

    Attributes:
        first: Stands for the target until a request has got a key: all but the key is the same with each.
        prefix, base_size: The target's.
    """

    __slots__ = ("_clock", "_destinations", "_name", "_next", "_rested_until_s", "base_size", "first", "prefix")

    def __init__(self, name: str, destinations: Sequence[Destination], clock: Clock) -> None:
        self._name = name
        self._destinations = tuple(destinations)
        self._clock = clock
        self._next = 0
        self._rested_until_s = [0.0] * len(self._destinations)
        self.first = destinations[0]
        route = self.first.route
        self.prefix = route.prefix
        self.base_size = route.base_size
        if len(self._destinations) > 1:
            for index, destination in enumerate(self._destinations):
                destination.keys = self
                destination.route.watch_answers(partial(self._on_answer, index))

    def owns(self, url: bytes) -> bool:
        """Whether a URL lies under the target's own."""
        return self.first.route.owns(url)

    def take(self) -> Destination:
        """Return the next one whose key does not rest; if all do, the one whose rest is over first.

        To be called for a request that is about to be sent, and for no other.
        """
        count = len(self._destinations)
        now_s, rested_until_s = self._clock.now_s, self._rested_until_s
        order = [(self._next + step) % count for step in range(count)]
        index = next((index for index in order if rested_until_s[index] <= now_s), None)
        if index is None:
            index = min(order, key=rested_until_s.__getitem__)
        self._next = (index + 1) % count
        return self._destinations[index]

    def _on_answer(self, index: int, head: AnswerHead) -> None:
        if head.status not in REFUSALS:
            return
        clock = self._clock
        rest_s = _rest_s(head, clock.wall_s)
        _log.warning("key %d of target %s got a %d: it rests for %.0f s", index + 1, self._name, head.status, rest_s)
        self._rested_until_s[index] = clock.soon_s + rest_s


def _rest_s(head: AnswerHead, wall_s: float) -> float:
    """Read `Retry-After`, seconds or a date (RFC 9110 §10.2.3), within bounds."""
    lines = CRLF.join(head.lines).split(CRLF)
    told = [line.partition(b":")[2].strip() for line in lines if line[:12].lower() == b"retry-after:"]
    if not told:
        return REST_S
    text = told[0].decode("latin-1")
    if text.isascii() and text.isdigit() and len(text) < 10:
        wait_s = float(text)
    else:
        from email.utils import parsedate_to_datetime  # only here: a megabyte that few APIs' answers are worth

        try:
            wait_s = parsedate_to_datetime(text).timestamp() - wall_s
        except (ValueError, OverflowError):
            return REST_S
    return min(max(wait_s, LEAST_REST_S), MOST_REST_S)
