"""The ledger for people and spreadsheets to read: as a table of text, and as CSV. Pure.

A path, a model and an upstream's id may hold anything: a terminal's control sequences among it, and what a spreadsheet
takes for a formula.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from typing import TYPE_CHECKING, Final

from gateway.budgets.budget import amount_of, spelled
from gateway.budgets.spending import Mark
from gateway.budgets.told import OPEN, spelled_us
from gateway.config.values import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gateway.budgets.spending import Entry
    from gateway.ledger.source import Found

KINDS: Final = ("input", "cached", "cache_write", "output", "bytes", "ms")
"""What is counted, in the order of its columns."""
COLUMNS: Final = (
    *("at", "began", "request", "upstream_request", "token", "target", "model", "method", "path", "status", "mark"),
    *("cost_usd", "reserved_usd", "cost", "reserved", *KINDS),
)
"""The head of the CSV. It stays: what is new comes behind it."""

# At the begin of a cell, in the forms of East Asia too; a semicolon ends one where commas are for decimals.
_FORMULA: Final = re.compile("(?:^|(?<=;))(?=[=+@\uff1d\uff0b\uff0d\uff20-])")
MAX_CELL: Final = 60
"""Characters of a cell of the table for people; what is longer is cut."""


def as_text(found: Found) -> str:
    """Return a table, reservations that are open behind what was settled, and below it what they are in all."""
    rows: list[tuple[str, ...]] = [("settled", "request", "token", "target", "model", "cost", "mark", "status", "what")]
    rows += [_row(entry) for entry in (*found.entries, *found.open)]
    lines = aligned(rows) if len(rows) > 1 else []
    return "\n".join([*lines, summary(found), ""])


def as_csv(found: Found) -> str:
    """Return all as CSV (RFC 4180), for any spreadsheet: what might be a formula has `'` before it."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    writer.writerows(_cells(entry) for entry in (*found.entries, *found.open))
    return out.getvalue()


def summary(found: Found) -> str:
    """Say what it was in all, by how sure that is."""
    marked = [(mark, [one for one in found.entries if one.mark is mark]) for mark in Mark]
    told = [f"{len(ones)} {mark.value}: {amounts(total(one.cost for one in ones))}" for mark, ones in marked if ones]
    lines = [f"{len(found.entries)} settled: {amounts(total(one.cost for one in found.entries))}"]
    if len(told) > 1:
        lines += [f"  {line}" for line in told]
    if found.open:
        lines.append(f"{len(found.open)} open: {amounts(total(one.reserved for one in found.open))} held")
    return "\n".join(lines)


def total(costs: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up amounts by unit."""
    sums: Counter[str] = Counter()
    for cost in costs:
        sums.update(cost)
    return dict(sums)


def amounts(cost: Mapping[str, int]) -> str:
    """Spell amounts of several units for people."""
    return printable(amount_of(cost)) or "nothing"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines with columns one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def short(text: str) -> str:
    """Return a text for a cell of a table: printable, cut where it is long, `-` where there is none."""
    text = printable(text)
    return text if 0 < len(text) <= MAX_CELL else f"{text[: MAX_CELL - 1]}…" if text else "-"


def seconds(moment_us: int) -> str:
    """Spell a time (RFC 3339, UTC), to the second."""
    return f"{spelled_us(moment_us)[:19]}Z"


def _row(entry: Entry) -> tuple[str, ...]:
    is_open = not entry.at_us
    return (
        OPEN if is_open else seconds(entry.at_us),
        short(entry.id),
        short(entry.token),
        short(entry.target),
        short(entry.model),
        f"{amounts(entry.reserved)} held" if is_open else amounts(entry.cost),
        OPEN if is_open else entry.mark.value,
        str(entry.status or "-"),
        short(f"{entry.method} {entry.path}".strip()),
    )


def _cells(entry: Entry) -> list[str | int]:
    is_open = not entry.at_us
    texts = (entry.id, entry.upstream_id, entry.token, entry.target, entry.model, entry.method, entry.path)
    cost = {} if is_open else entry.cost
    return [
        "" if is_open else spelled_us(entry.at_us),
        spelled_us(entry.began_us),
        *map(_harmless, texts),
        entry.status or "",
        OPEN if is_open else entry.mark.value,
        spelled(cost["USD"], "USD") if "USD" in cost else "",
        spelled(entry.reserved["USD"], "USD") if "USD" in entry.reserved else "",
        _harmless(amount_of(cost)),
        _harmless(amount_of(entry.reserved)),
        *(entry.units.get(kind, "") for kind in KINDS),
    ]


def _harmless(text: str) -> str:
    """Spreadsheets run what begins like a formula (OWASP, CSV injection)."""
    return _FORMULA.sub("'", printable(text))
