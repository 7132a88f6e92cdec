"""Which budgets a token is under: its own, those of the tokens that it was made from, and the gateway's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from gateway.budgets.grammar import parse_budgets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.budgets.budget import Budget


class GatewayBudgets(NamedTuple):
    """What a gateway's settings say about budgets.

    Args:
        each: For each token that has none of its own and was made from no other.
        together: Of all tokens together.
        zone: Where the days of budgets begin that tokens carry, an IANA name.
    """

    each: tuple[Budget, ...] = ()
    together: tuple[Budget, ...] = ()
    zone: str = "UTC"

    def of(self, generations: Sequence[Sequence[str] | None]) -> tuple[Budget, ...]:
        """Return all budgets that a token is under, its own first.

        Args:
            generations: What the token says of budgets, then the one that it was made from, and so on: texts in
                `BUDGET`'s grammar; None where it says nothing.

        Raises:
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
        return (*found, *self.together)
