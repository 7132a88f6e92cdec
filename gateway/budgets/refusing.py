"""What a client is told when a budget refuses its request."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from gateway.budgets.book import NEVER_US
from gateway.budgets.budget import Budget, spelled
from gateway.errors import BudgetExceeded

SOON_US: Final = 60_000_000
"""A budget that frees up within so many microseconds is told in seconds, and clients may wait for it; see
`http1.writer.STORM_AFTER_S`."""


def exceeded(budget: Budget, used: int, frees_us: int, now_s: float) -> BudgetExceeded:
    """Return the refusal by a budget.

    Args:
        budget: The one that refused.
        used: Its atoms that are spent or held.
        frees_us: Microseconds until there could be room; `NEVER_US`.
        now_s: Seconds since the epoch.
    """
    unit = budget.unit
    limit = f"The budget '{budget.label}' is {spelled(budget.amount, unit)} {unit}"
    reset = None if frees_us == NEVER_US else _rfc3339(now_s + frees_us / 1e6)
    if reset is None:
        detail = f"{limit} in all; this request may cost more than that, and so cannot pass."
    else:
        when = f"ask again in {frees_us / 1e6:.1f} seconds" if frees_us <= SOON_US else f"it has room again at {reset}"
        spent = f"{spelled(used, unit)} {unit} of it are spent or held"
        detail = f"{limit}, and {spent}: too little is left for what this request may cost; {when}."
    return BudgetExceeded(
        detail,
        budget=budget.label,
        unit=unit,
        used=_number(used, unit),
        limit=_number(budget.amount, unit),
        retry_after_us=None if reset is None else frees_us,
        reset=reset,
    )


def _number(atoms: int, unit: str) -> float:
    """Return an amount as JSON has it: the decimal number that `spelled` writes."""
    text = spelled(atoms, unit)
    return float(text) if "." in text else int(text)


def _rfc3339(moment_s: float) -> str:
    """Spell a moment, rounded up to whole seconds: what is promised for then must be so by then."""
    # Two clocks are read for it: what is a millisecond late is on time.
    return datetime.fromtimestamp(-(-round(moment_s, 2) // 1), UTC).isoformat().replace("+00:00", "Z")
