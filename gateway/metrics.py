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
    """Counts by token."""

    __slots__ = ("_denials",)

    def __init__(self) -> None:
        self._denials: dict[str, Denials] = {}

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
