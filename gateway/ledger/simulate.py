"""`gateway simulate`: who would have been refused under other limits and budgets, and what that saves."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from gateway.budgets.budget import spelled
from gateway.budgets.grammar import all_written, parse_budgets
from gateway.budgets.replay import Fate, Replayed, replay
from gateway.budgets.told import spelled_us
from gateway.config.values import without_example
from gateway.errors import ConfigError
from gateway.ledger.source import ask, print_whole, wanted
from gateway.ledger.table import aligned, amounts, seconds, short
from gateway.limits import parse_limits

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from gateway.budgets.budget import Budget
    from gateway.config import Settings
    from gateway.limits import Policy

NOTES: Final = (
    "Limits and budgets begin empty.",
    "What a refused client would have done next is not known: it may have given up, or have come again.",
    "Requests that cost nothing are not in the ledger, nor are those that were refused.",
)


class Rules(NamedTuple):
    """What is tried, of each token.

    Args:
        budgets, policies: As read.
        texts: The limits as they were written.
        zone: Of calendar windows.
    """

    budgets: tuple[Budget, ...]
    policies: tuple[Policy, ...]
    texts: tuple[str, ...]
    zone: str


def run(options: argparse.Namespace, settings: Settings, local_url: str) -> int:
    """Print what would have become of the requests in the ledger.

    Args:
        options: As `options.add_simulate` reads them.
        settings: The gateway's; which target it has does not matter.
        local_url: Where a gateway of this machine would be, if nobody said where.

    Returns:
        0.

    Raises:
        ConfigError: An option that nothing can be done with.
        GatewayError, OSError: There is nobody to ask, or no right to.
    """
    rules = read_rules(options.budget or [], options.limit or [], options.timezone or settings.budgets.zone)
    now_us = time.time_ns() // 1000
    which = wanted(options, now_us)
    found = ask(options.url, settings, local_url, lambda source: source.read(which))
    replayed = replay(found.entries, rules.policies, rules.budgets)
    until_us = now_us if options.until is None else which.until_us
    if options.json:
        print_whole(json.dumps(as_members(replayed, rules, which.since_us, until_us), indent=2) + "\n")
    else:
        print_whole(as_text(replayed, rules, which.since_us, until_us))
    return 0


def read_rules(budgets: list[str], limits: list[str], zone: str) -> Rules:
    """Read what is to be tried.

    Raises:
        ConfigError: A text cannot be read, or there is nothing to try.
    """
    example = "gateway simulate --budget '2 USD/day' --limit 30/minute"
    if not (budgets or limits):
        raise ConfigError("simulate", "has nothing to try", "--budget or --limit", example)
    try:
        ZoneInfo(zone)
    except (ValueError, OSError, KeyError):
        raise ConfigError("--timezone", "is no time zone", "an IANA name", "--timezone Europe/Berlin") from None
    try:
        found = parse_budgets(",".join(budgets), zone=zone) if budgets else ()
    except ValueError as error:
        raise ConfigError("--budget", without_example(error), "budgets", "--budget '2 USD/day'") from None
    try:
        policies = parse_limits(",".join(limits)) if limits else ()
    except ValueError as error:
        raise ConfigError("--limit", without_example(error), "limits", "--limit 30/minute") from None
    return Rules(found, policies, tuple(limits), zone)


def as_text(replayed: Replayed, rules: Rules, since_us: int, until_us: int) -> str:
    """Return what there is to say, with a line for each token that would have been refused something."""
    total = replayed.total
    tried = ", ".join([*([all_written(rules.budgets)] if rules.budgets else []), *rules.texts])
    lines = [
        f"{tried} for each token, {seconds(since_us)} to {seconds(until_us)}",
        f"{_count(total.requests, 'request')} of {_count(len(replayed.tokens), 'token')} cost {amounts(total.cost)}",
    ]
    if total.refused:
        lines.append(
            f"{total.refused} would have been refused, the first at {seconds(total.first_us)}: "
            f"saved {amounts(total.saved)}, left {amounts(_left(total))}"
        )
        rows: list[tuple[str, ...]] = [("token", "requests", "refused", "first", "by", "saved", "of")]
        rows += [_row(token, fate) for token, fate in replayed.tokens.items() if fate.refused]
        lines += ["", *aligned(rows), ""]
    else:
        lines.append("none would have been refused")
    return "\n".join([*lines, *NOTES, ""])


def as_members(replayed: Replayed, rules: Rules, since_us: int, until_us: int) -> dict[str, Any]:
    """Return the same for programs, with every token."""
    return {
        "since": spelled_us(since_us),
        "until": spelled_us(until_us),
        "budgets": all_written(rules.budgets),
        "limits": ", ".join(rules.texts),
        "timezone": rules.zone,
        **_members(replayed.total),
        "tokens": [{"token": token, **_members(fate)} for token, fate in replayed.tokens.items()],
        "notes": list(NOTES),
    }


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _members(fate: Fate) -> dict[str, Any]:
    return {
        "requests": fate.requests,
        "refused": fate.refused,
        "first_refused": spelled_us(fate.first_us) if fate.refused else None,
        "refused_by": dict(fate.by),
        "cost": _texts(fate.cost),
        "saved": _texts(fate.saved),
    }


def _row(token: str, fate: Fate) -> tuple[str, ...]:
    by = ", ".join(f"{label} {count}" for label, count in fate.by.most_common())
    first = seconds(fate.first_us)
    return short(token), str(fate.requests), str(fate.refused), first, by, amounts(fate.saved), amounts(fate.cost)


def _left(fate: Fate) -> dict[str, int]:
    return {unit: atoms - fate.saved[unit] for unit, atoms in fate.cost.items()}


def _texts(cost: Mapping[str, int]) -> dict[str, str]:
    return {unit: spelled(atoms, unit) for unit, atoms in cost.items()}
