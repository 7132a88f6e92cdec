"""The sentence of a refusal by a budget, and what programs read of it."""

from __future__ import annotations

import pytest

from gateway.budgets.book import NEVER_US
from gateway.budgets.budget import NANO
from gateway.budgets.grammar import parse_budgets
from gateway.budgets.refusing import exceeded

NOW_S = 1_795_727_999.5  # 2026-11-26T21:19:59.5Z
HOUR_US = 3_600_000_000


@pytest.mark.parametrize(
    ("text", "used", "frees_us", "detail", "reset"),
    [
        (
            "5 USD/day",
            4_983_000_000,
            HOUR_US,
            (
                "The budget 'day-USD' is 5 USD, and 4.983 USD of it are spent or held: too little is left for what "
                "this request may cost; it has room again at 2026-11-26T22:20:00Z."
            ),
            "2026-11-26T22:20:00Z",
        ),
        (
            "200 tokens/minute",
            190,
            12_340_000,
            (
                "The budget '1m-tokens' is 200 tokens, and 190 tokens of it are spent or held: too little is left for "
                "what this request may cost; ask again in 12.3 seconds."
            ),
            "2026-11-26T21:20:12Z",
        ),
        (
            "1000 credits/24h",
            0,
            NEVER_US,
            (
                "The budget '24h-credits' is 1000 credits in all; this request may cost more than that, and so cannot "
                "pass."
            ),
            None,
        ),
    ],
)
def test_what_is_said(text: str, used: int, frees_us: int, detail: str, reset: str | None) -> None:
    (budget,) = parse_budgets(text)
    error = exceeded(budget, used, frees_us, NOW_S)
    assert (error.detail, error.reset, error.budget) == (detail, reset, budget.label)
    assert error.retry_after_us == (None if reset is None else frees_us)
    assert (error.status, error.code, error.denies) == (429, "budget_exceeded", True)


def test_numbers_are_told_in_the_unit() -> None:
    (money,), (tokens,) = parse_budgets("0.5 USD/day"), parse_budgets("7 tokens/day")
    error = exceeded(money, NANO // 8 + 1, HOUR_US, NOW_S)
    assert (error.used, error.limit, error.unit) == (0.125000001, 0.5, "USD")
    error = exceeded(tokens, 3, HOUR_US, NOW_S)
    assert (error.used, error.limit, error.unit) == (3, 7, "tokens")
