"""A provider's invoice as CSV, a line a request or several, and how it agrees with the ledger. Pure."""

from __future__ import annotations

import csv
import re
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.budgets.budget import NANO

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gateway.budgets.spending import Entry

_SEPARATORS: Final = (",", ";", "\t")
_NUMBER: Final = re.compile(r"(-?)\$?([0-9]{1,15}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE]([+-]?[0-9]{1,2}))?")


class _Column(NamedTuple):
    """What a column has, the names that it may have, the likeliest first, as `_plain` has them, and its option."""

    what: str
    names: tuple[str, ...]
    option: str


_ID: Final = _Column(
    "the request ids",
    ("upstream_request_id", "upstream_request", "request_id", "x_request_id", "requestid", "id"),
    "--column-id",
)
_COST: Final = _Column(
    "the costs in USD", ("cost_usd", "cost", "amount_usd", "amount", "total_cost", "usd"), "--column-cost"
)


class InvoiceError(ValueError):
    """It cannot be read; says at which line and column, and why."""


class Billed(NamedTuple):
    """What was billed for a request.

    Args:
        upstream_id: The provider's name for it; "" where the line has none.
        usd: How much, exactly.
        lines: Where it stands, from 1 for the head.
    """

    upstream_id: str
    usd: Fraction
    lines: tuple[int, ...]


class Pair(NamedTuple):
    """A request that the invoice and the ledger have, with different amounts."""

    billed: Billed
    held: tuple[Entry, ...]


class Reconciled(NamedTuple):
    """How an invoice and the ledger agree.

    Args:
        agreed: How many requests are in both, with the same amount.
        only_billed: Those that the ledger does not have.
        only_held: Those that cost something, and are not in the invoice.
        different: Those that are in both, with different amounts.
        billed_usd: What the invoice says in all.
        held: Atoms of USD that the ledger says in all.
        repeated: How many requests have several lines in the invoice, which were added up.
    """

    agreed: int
    only_billed: list[Billed]
    only_held: list[Entry]
    different: list[Pair]
    billed_usd: Fraction
    held: int
    repeated: int

    @property
    def agrees(self) -> bool:
        """Whether there is nothing to look into."""
        return not (self.only_billed or self.only_held or self.different)


def read_invoice(lines: Iterable[str], id_column: str | None = None, cost_column: str | None = None) -> list[Billed]:
    """Read an invoice: a head, and a line or several for each request.

    Args:
        lines: Its lines, line ends included; a byte order mark is passed over.
        id_column: The name of the column with the provider's request ids; None: the likeliest in the head.
        cost_column: Likewise of that with the costs in USD.

    Returns:
        What was billed, by request, in the order in which they come first; amounts of several lines added up.

    Raises:
        InvoiceError: It cannot be read as one.
    """
    reader = _rows(lines)
    try:
        head_line, head = next(reader)
    except StopIteration:
        raise InvoiceError("it is empty: not even a head") from None
    plain = [_plain(name) for name in head]
    id_at, cost_at = _index(_ID, id_column, plain, head_line), _index(_COST, cost_column, plain, head_line)
    found: dict[str, Billed] = {}
    for line, cells in reader:
        if len(cells) != len(head):
            raise InvoiceError(f"line {line}: {len(cells)} columns, not the {len(head)} of the head")
        upstream_id, usd = cells[id_at].strip(), _usd(cells[cost_at], line, head[cost_at])
        known = found.get(upstream_id)
        if known is None:
            found[upstream_id] = Billed(upstream_id, usd, (line,))
        else:
            found[upstream_id] = Billed(upstream_id, known.usd + usd, (*known.lines, line))
    return list(found.values())


def reconcile(billed: Iterable[Billed], entries: Iterable[Entry]) -> Reconciled:
    """Join an invoice with the ledger by the upstream's request ids.

    Amounts agree that differ by less than a billionth of a dollar for each line or entry: the ledger has no smaller
    parts.

    Args:
        billed: The invoice.
        entries: What was settled, one for each request.
    """
    by_id: dict[str, list[Entry]] = {}
    known = list(entries)
    for entry in known:
        if entry.upstream_id:
            by_id.setdefault(entry.upstream_id, []).append(entry)
    agreed, only_billed, different = 0, list[Billed](), list[Pair]()
    invoice = list(billed)
    for one in invoice:
        held = by_id.pop(one.upstream_id, None)
        if held is None:
            only_billed.append(one)
        elif abs(one.usd * NANO - sum(map(usd_of, held))) < max(len(one.lines), len(held)):
            agreed += 1
        else:
            different.append(Pair(one, tuple(held)))
    unseen = {entry.id for held in by_id.values() for entry in held}
    only_held = [one for one in known if usd_of(one) and (one.id in unseen or not one.upstream_id)]
    return Reconciled(
        agreed,
        only_billed,
        only_held,
        different,
        sum((one.usd for one in invoice), Fraction(0)),
        sum(map(usd_of, known)),
        sum(1 for one in invoice if one.upstream_id and len(one.lines) > 1),
    )


def usd_of(entry: Entry) -> int:
    """Return what a request cost, in atoms of USD."""
    return entry.cost.get("USD", 0)


def _rows(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows, cut at the separator that the head has most of, each with its first line; empty ones left out."""
    whole, before = iter(lines), 1
    head = next(whole, "").removeprefix("\ufeff")
    while head and not head.strip():
        head, before = next(whole, ""), before + 1
    reader = csv.reader(chain([head], whole), delimiter=max(_SEPARATORS, key=head.count), strict=True)
    line = before
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = before + reader.line_num
    except csv.Error as error:
        raise InvoiceError(f"line {line}: {error}") from None


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _index(column: _Column, wanted: str | None, head: Sequence[str], line: int) -> int:
    names = column.names if wanted is None else (_plain(wanted),)
    for name in names:
        if head.count(name) > 1:
            raise InvoiceError(f"line {line}: two columns are named {name!r}")
        if name in head:
            return head.index(name)
    if wanted is not None:
        raise InvoiceError(f"line {line}: no column is named {wanted!r}")
    known = ", ".join(names)
    raise InvoiceError(f"line {line}: no column seems to have {column.what} ({known}); say which with {column.option}")


def _usd(text: str, line: int, column: str) -> Fraction:
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise InvoiceError(f"line {line}, column {column!r}: {text[:40]!r} is not an amount like 0.0123")
    amount = Fraction(match[2]) * Fraction(10) ** int(match[3] or 0)
    return -amount if match[1] else amount
