"""Which budgets a token is under: its own, those of the tokens that it was made from, and the gateway's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.budgets.grammar import parse_budgets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.budgets.budget import Budget


LONG_S: Final = 86_400
"""A budget whose window is so long has to outlive the process that counts it: a restart a day is nothing unusual."""


class Forgotten(ValueError):
    """A budget is for so long that it would be forgotten before its window is over."""


class GatewayBudgets(NamedTuple):
    """What a gateway's settings say about budgets.

    Args:
        each: For each token that has none of its own and was made from no other.
        together: Of all tokens together.
        zone: Where the days of budgets begin that tokens carry, an IANA name.
        forgets: Whether what was spent is forgotten when this process ends: then no budget may be for long.
    """

    each: tuple[Budget, ...] = ()
    together: tuple[Budget, ...] = ()
    zone: str = "UTC"
    forgets: bool = False

    def of(self, generations: Sequence[Sequence[str] | None]) -> tuple[Budget, ...]:
        """Return all budgets that a token is under, its own first.

        Args:
            generations: What the token says of budgets, then the one that it was made from, and so on: texts in
                `BUDGET`'s grammar; None where it says nothing.

        Raises:
            Forgotten: One is for too long.
            ValueError: A text is no budget.
        """
        first = len(generations) - 1
        found: list[Budget] = []
        for above, texts in enumerate(generations):
            if texts is not None:
                own = parse_budgets(",".join(texts), zone=self.zone)
            else:
                own = self.each if above == first else ()
            found += [replace(budget, above=above) for budget in own]
        if self.forgets and any(map(is_long, found)):
            raise Forgotten("a budget of a day or longer, which takes a STATE_FILE or REDIS_URL to outlive a restart")
        return (*found, *self.together)


def is_long(budget: Budget) -> bool:
    """Whether a budget's window is a day or longer."""
    return budget.calendar is not None or budget.window_us >= LONG_S * 1_000_000
