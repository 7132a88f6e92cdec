"""The keys of one target, used in turn; one that the API refuses rests for as long as the API says."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from gateway.http1.message import CRLF

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

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


class KeyRest:
    """Until when one key rests. It outlives a reload, for the API does not know of that.

    Args:
        clock: The process's coarse time.

    Attributes:
        until_s: On the clock's time line.
        label: Which key it is, for the log.
    """

    __slots__ = ("__weakref__", "_clock", "label", "until_s")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.until_s = 0.0
        self.label = ""

    def on_answer(self, head: AnswerHead) -> None:
        """Look at the answer to a request that went with the key."""
        if head.status not in REFUSALS:
            return
        rest_s = _rest_s(head, self._clock.wall_s)
        _log.warning("%s got a %d: it rests for %.0f s", self.label, head.status, rest_s)
        self.until_s = self._clock.soon_s + rest_s


class KeyRing:
    """Where requests to one target go that has several keys, once for each of them.

    Args:
        name: The target's, for the log.
        destinations: The same target with each of its keys.
        clock: The process's coarse time.
        rests: By key, what is known of those that there were before; keys that are new are added.
    """

    __slots__ = ("_clock", "_destinations", "_next", "_rests")

    def __init__(
        self,
        name: str,
        destinations: Sequence[Destination],
        clock: Clock,
        rests: MutableMapping[tuple[str, bytes], KeyRest],
    ) -> None:
        self._destinations = tuple(destinations)
        self._clock = clock
        self._next = 0
        self._rests: list[KeyRest] = []
        for index, destination in enumerate(self._destinations):
            rest = rests.setdefault(destination.route.key, KeyRest(clock))
            rest.label = f"key {index + 1} of target {name}"
            destination.route.watch_answers(rest.on_answer)
            self._rests.append(rest)

    def take(self) -> Destination:
        """Return the next one whose key does not rest; if all do, the one whose rest is over first.

        To be called for a request that is about to be sent, and for no other.
        """
        count = len(self._destinations)
        now_s, rests = self._clock.now_s, self._rests
        order = [(self._next + step) % count for step in range(count)]
        index = next((index for index in order if rests[index].until_s <= now_s), None)
        if index is None:
            index = min(order, key=lambda index: rests[index].until_s)
        self._next = (index + 1) % count
        return self._destinations[index]


def _rest_s(head: AnswerHead, wall_s: float) -> float:
    """Read `Retry-After`, seconds or a date (RFC 9110 §10.2.3), within bounds."""
    lines = head.lines.split(CRLF)
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
