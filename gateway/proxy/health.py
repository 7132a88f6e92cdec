"""Whether a target can be connected to, judged by what its requests met: a circuit breaker. Pure.

Nothing is ever sent to find out. After `FAILURES` attempts in a row have failed, it opens: no more are made until a
wait is over, then one at a time, each of them for a request that somebody made. The first that succeeds closes it.
"""

from __future__ import annotations

from typing import Final

FAILURES: Final = 5
"""Attempts in a row that must fail. One or two are what a restart of the API or a lost packet costs; Envoy has the same
number (`consecutive_local_origin_failure`)."""
FIRST_WAIT_S: Final = 1.0
"""Most restarts are over by then, and a client that is told to come back in a second does so."""
MOST_WAIT_S: Final = 30.0
"""The wait doubles up to this: then an API that is back is noticed within half a minute, and SDKs still obey it as a
`Retry-After`."""
MEANWHILE_S: Final = 1.0
"""What is left to wait, as far as anybody knows, while an attempt is under way."""


class Health:
    """The breaker of one target.

    Times are seconds on any clock that never goes back. An attempt is whatever object stands for one.

    Attributes:
        is_open: Whether attempts are held back. False in good times.
    """

    __slots__ = ("_failures", "_probe", "_retry_at_s", "_wait_s", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        self._failures = 0
        self._wait_s = FIRST_WAIT_S
        self._retry_at_s = 0.0
        self._probe: object = None

    def left_s(self, now_s: float) -> float:
        """Return how long no attempt may be made; 0 if one may be made now."""
        if not self.is_open:
            return 0.0
        return MEANWHILE_S if self._probe is not None else max(self._retry_at_s - now_s, 0.0)

    def begin(self, attempt: object) -> None:
        """Hear that an attempt is made, which `left_s` has just allowed; `end` has to follow, whatever comes of it."""
        if self.is_open:
            self._probe = attempt

    def end(self, attempt: object) -> None:
        """Hear that an attempt is over. If nothing was said of how, it was given up, and says nothing of the target."""
        if self._probe is attempt:
            self._probe = None

    def on_success(self) -> bool:
        """Hear that an attempt, any attempt, has reached the target; return whether that closed the breaker."""
        was_open, self.is_open = self.is_open, False
        self._failures = 0
        return was_open

    def on_failure(self, attempt: object, now_s: float) -> bool:
        """Hear that an attempt has failed; return whether that opened the breaker."""
        if self.is_open:
            if self._probe is attempt:  # else it began before: its failure is no news
                self._wait_s = min(self._wait_s * 2, MOST_WAIT_S)
                self._retry_at_s = now_s + self._wait_s
            return False
        self._failures += 1
        if self._failures < FAILURES:
            return False
        self.is_open = True
        self._probe = None
        self._wait_s = FIRST_WAIT_S
        self._retry_at_s = now_s + FIRST_WAIT_S
        return True
