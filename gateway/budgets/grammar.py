"""The grammar of budgets: `5 USD/day`, `200000 tokens/minute`, `1000 credits/24h`, several joined by commas."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, get_args

from gateway.budgets.budget import COUNTED, MAX_ATOMS, NANO, Budget, Calendar, spelled

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_BUDGETS: Final = 8
"""In one setting or token: what one reservation costs Redis is bounded."""

_EXAMPLE: Final = "e.g. 5 USD/day or 200000 tokens/minute,100 USD/month"
_CALENDAR: Final = {str(name): name for name in get_args(Calendar)}
_WORDS: Final = {"second": 1, "minute": 60, "hour": 3_600}
_SIZES: Final = {"s": 1, "m": 60, "h": 3_600}
_WINDOW: Final = re.compile(r"([0-9]{1,8})([smh])")
_WINDOWS: Final = "day, week or month; second, minute, hour or like 60s, 5m, 24h"
_NUMBER: Final = re.compile(r"([0-9]{1,17})(?:\.([0-9]+))?")
_THOUSANDS: Final = re.compile("[0-9],[0-9]")
_UNIT: Final = re.compile("[a-z](?:[a-z0-9-]{0,30}[a-z0-9])?")
_CURRENCY: Final = re.compile("[A-Z]{3}|usd|eur|gbp|dollars?|euros?|cents?")
_SINGULAR: Final = {"token": "tokens", "byte": "bytes"}


def parse_budgets(text: str, *, shared: bool = False, zone: str = "UTC") -> tuple[Budget, ...]:
    """Read budgets as users write them, in `BUDGET` or in a token.

    Args:
        text: `AMOUNT UNIT/WINDOW`, several joined by commas, with spaces around if you like. The amount has at most
            9 decimal places, and none of tokens and bytes; the unit is `USD`, `tokens`, `bytes` or a name of a-z, 0-9
            and `-`; the window is `day`, `week` or `month`, which are the calendar's, or slides: `second`, `minute`,
            `hour`, or like `60s`, `5m`, `24h`.
        shared: They count for all tokens together.
        zone: The time zone of those whose window is the calendar's, an IANA name.

    Returns:
        The budgets in the order written.

    Raises:
        ValueError: One sentence that says what is wrong and gives an example.
    """
    if _THOUSANDS.search(text):
        raise ValueError(f"a number has no comma in it: it is 1000, not 1,000; {_EXAMPLE}")
    members = text.split(",")
    if len(members) > MAX_BUDGETS:
        raise ValueError(f"there are {len(members)} budgets, more than {MAX_BUDGETS}; {_EXAMPLE}")
    budgets: list[Budget] = []
    for member in members:
        budget = _parse_one(member.strip(" "), shared=shared, zone=zone)
        if any(other.label == budget.label for other in budgets):
            raise ValueError(f"two budgets have the same window and unit, '{budget.label}'; {_EXAMPLE}")
        budgets.append(budget)
    return tuple(budgets)


def parse_amount(text: str) -> tuple[str, int]:
    """Read an amount as users write it, `0.005 USD` or `200 tokens`.

    Returns:
        Its unit and its atoms, 0 or more.

    Raises:
        ValueError: Half a sentence that says what is wrong.
    """
    number, _, unit = text.partition(" ")
    unit = unit.strip(" ")
    if text.startswith(("$", "€", "£")):
        raise ValueError(f"{text!r} is not a number, a space and a unit: of money it is like 5 USD")
    if not unit:
        raise ValueError(f"{text!r} has no unit: USD, tokens, bytes, or a name of your own")
    check_unit(unit)
    return unit, atoms_of(number, unit)


def atoms_of(number: str, unit: str) -> int:
    """Read a number of a unit: decimal, without a sign, an exponent or separators.

    Returns:
        Its atoms, 0 or more.

    Raises:
        ValueError: Half a sentence that says what is wrong.
    """
    match = _NUMBER.fullmatch(number)
    if match is None:
        raise ValueError(f"{number!r} is not a number, whole or decimal")
    whole, places = int(match[1]), match[2] or ""
    if unit in COUNTED:
        if match[2]:
            raise ValueError(f"{number!r} is not a whole number, and {unit} have no parts")
        return _bounded(whole, number)
    if len(places) > 9:
        raise ValueError(f"{number!r} has more than 9 decimal places")
    return _bounded(whole * NANO + int(places.ljust(9, "0")), number)


def check_unit(unit: str) -> None:
    """Raise ValueError unless costs may be in this unit."""
    if unit == "USD":
        return
    if _CURRENCY.fullmatch(unit):
        raise ValueError(f"{unit!r} is not a unit: prices are in USD, and so is money")
    if unit in _SINGULAR:
        raise ValueError(f"{unit!r} is spelled {_SINGULAR[unit]}")
    if _UNIT.fullmatch(unit) is None:
        raise ValueError(f"{unit!r} is not a unit: USD, tokens, bytes, or a name of a-z, 0-9 and '-'")


def written(budget: Budget) -> str:
    """Spell a budget as a user would write it; what a text does not say, whose it is and its zone, is left out."""
    return f"{spelled(budget.amount, budget.unit)} {budget.unit}/{budget.window_name}"


def all_written(budgets: Iterable[Budget]) -> str:
    """Spell several, joined by commas."""
    return ", ".join(map(written, budgets))


def _parse_one(member: str, *, shared: bool, zone: str) -> Budget:
    if not member:
        raise ValueError(f"a budget is missing; {_EXAMPLE}")
    amount_text, slash, window = member.rpartition("/")
    if not slash:
        raise ValueError(f"{member!r} has no window behind a '/'; {_EXAMPLE}")
    try:
        unit, amount = parse_amount(amount_text.strip(" "))
    except ValueError as error:
        raise ValueError(f"{error}; {_EXAMPLE}") from None
    window = window.strip(" ")
    calendar, window_us = _CALENDAR.get(window), 0
    if calendar is None:
        window_us = _window_s(window) * 1_000_000
    try:
        return Budget(
            unit=unit,
            amount=amount,
            calendar=calendar,
            window_us=window_us,
            zone=zone if calendar is not None else "UTC",
            shared=shared,
        )
    except ValueError as error:
        raise ValueError(f"{error}; {_EXAMPLE}") from None


def _window_s(text: str) -> int:
    if text in _WORDS:
        return _WORDS[text]
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no window ({_WINDOWS}); {_EXAMPLE}")
    if not int(match[1]):
        raise ValueError(f"a window is longer than {text}; {_EXAMPLE}")
    return int(match[1]) * _SIZES[match[2]]


def _bounded(atoms: int, number: str) -> int:
    if atoms >= MAX_ATOMS:
        raise ValueError(f"{number!r} is too much: at most nine million USD, or 2^53 of what is counted")
    return atoms
