"""Plain counters of this process, kept on the way and read when somebody asks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from gateway.errors import RateLimited

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.errors import GatewayError

MAX_TOKENS: Final = 8192
"""Tokens that are counted apart: about 1 kB each. The one that came first makes room."""


class Denials:
    """What one token was refused, and what only a shadow let pass, since this process began to count for it.

    Attributes:
        reasons: How many requests, by the limit's name or the error's code.
        shadowed: How many requests passed that a shadow would have refused, by the limit's name.
        retries: How many of the refused requests an SDK sent again by itself.
    """

    __slots__ = ("reasons", "retries", "shadowed")

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.shadowed: Counter[str] = Counter()
        self.retries = 0


class Metrics:
    """Counts of a gateway's, in all and by token.

    Attributes:
        passed: The API answered, and its answer was not cut. A client that left in the middle of one is among them.
        refused: The gateway answered with a status below 500: a token that is not good, a limit, a malformed request, a
            path of nobody's. Nothing was sent to the API, or not all of it.
        failed: No answer could be had, or only a part of one; or the client left before there was any.
    """

    __slots__ = ("_denials", "failed", "passed", "refused")

    def __init__(self) -> None:
        self.passed = 0
        self.refused = 0
        self.failed = 0
        self._denials: dict[str, Denials] = {}

    def on_error(self, status: int) -> None:
        """The gateway answered with an error of its own."""
        if status < 500:
            self.refused += 1
        else:
            self.failed += 1

    def on_cut(self, *, passed: bool) -> None:
        """A request ended without the end of an answer; `passed`: the client left in the middle of one."""
        if passed:
            self.passed += 1
        else:
            self.failed += 1

    def of(self, token_id: str) -> Denials:
        """Return a token's counts; all are zero for one that has none."""
        return self._denials.get(token_id) or Denials()

    def on_denied(self, token_id: str, error: GatewayError, *, is_retry: bool) -> None:
        """Count a refused request."""
        denials = self._counted(token_id)
        denials.reasons[error.policy if isinstance(error, RateLimited) else error.code] += 1
        denials.retries += is_retry

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
