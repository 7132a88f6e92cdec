"""`gateway reconcile`: what the provider billed against what the ledger holds."""

from __future__ import annotations

import io
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.budgets.budget import NANO, spelled
from gateway.config.values import printable
from gateway.errors import ConfigError
from gateway.ledger.invoice import InvoiceError, read_invoice, reconcile, usd_of
from gateway.ledger.source import ask, print_whole, wanted
from gateway.ledger.table import aligned, amounts, seconds, short, total

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from gateway.budgets.spending import Entry
    from gateway.config import Settings
    from gateway.ledger.invoice import Billed, Reconciled


def run(options: argparse.Namespace, settings: Settings, local_url: str) -> int:
    """Compare an invoice with the ledger, and print where they differ.

    Args:
        options: As `options.add_reconcile` reads them.
        settings: The gateway's; which target it has does not matter.
        local_url: Where a gateway of this machine would be, if nobody said where.

    Returns:
        0 if they agree, else 1.

    Raises:
        ConfigError: The invoice cannot be read.
        GatewayError, OSError: There is nobody to ask, or no right to.
    """
    which = wanted(options)
    content = sys.stdin.buffer.read() if options.invoice == "-" else Path(options.invoice).read_bytes()
    try:
        billed = read_invoice(_lines(content), options.column_id, options.column_cost)
    except InvoiceError as error:
        takes = "CSV with a line for each request"
        raise ConfigError(printable(options.invoice), printable(str(error)), takes, "request_id,cost_usd") from None
    found = ask(options.url, settings, local_url, lambda source: source.read(which))
    compared = reconcile(billed, found.entries)
    print_whole(as_text(compared, found.open))
    return 0 if compared.agrees else 1


def as_text(compared: Reconciled, opened: list[Entry]) -> str:
    """Return what there is to say, with a line for each request that there is something to say about."""
    lines = [
        *_section("billed and not held", [_billed(one) for one in compared.only_billed]),
        *_section("held and not billed", [_held(one) for one in compared.only_held]),
        *_section("different amounts", [_different(pair.billed, pair.held) for pair in compared.different]),
    ]
    difference = compared.billed_usd - Fraction(compared.held, NANO)
    repeated = f" ({compared.repeated} of several lines, added up)" if compared.repeated else ""
    differ = len(compared.only_billed) + len(compared.only_held) + len(compared.different)
    lines.append(f"{compared.agreed} requests agree, {differ} do not{repeated}")
    lines.append(
        f"billed {usd(compared.billed_usd)} USD, held {spelled(compared.held, 'USD')} USD: {_more(difference)}"
    )
    if opened:
        lines.append(f"{len(opened)} open: {amounts(total(one.reserved for one in opened))} held, and not compared")
    return "\n".join(lines) + "\n"


def usd(amount: Fraction) -> str:
    """Spell an amount of an invoice: exactly, as it was decimal there."""
    digits = 0
    while (amount * 10**digits).denominator != 1:
        digits += 1
    whole = f"{abs(int(amount * 10**digits)):0{digits + 1}d}"
    return ("-" if amount < 0 else "") + (f"{whole[:-digits]}.{whole[-digits:]}" if digits else whole)


def _more(difference: Fraction) -> str:
    if not difference:
        return "as much"
    return f"{usd(abs(difference))} USD {'more' if difference > 0 else 'less'} billed than held"


def _lines(content: bytes) -> Iterator[str]:
    """Cut into lines, where CSV may have line ends inside of quotes."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvoiceError(f"line {line}: is not UTF-8") from None
    return iter(io.StringIO(text, newline=""))


def _section(title: str, rows: list[tuple[str, ...]]) -> list[str]:
    return [f"{title}: {len(rows)}", *(f"  {line}" for line in aligned(rows)), ""] if rows else []


def _billed(one: Billed) -> tuple[str, ...]:
    return short(one.upstream_id), f"{usd(one.usd)} USD", _places(one)


def _held(one: Entry) -> tuple[str, ...]:
    return short(one.upstream_id), f"{spelled(usd_of(one), 'USD')} USD", one.mark.value, *_who(one)


def _different(billed: Billed, held: tuple[Entry, ...]) -> tuple[str, ...]:
    atoms = sum(map(usd_of, held))
    return (
        short(billed.upstream_id),
        f"billed {usd(billed.usd)} USD",
        f"held {spelled(atoms, 'USD')} USD",
        "+".join(one.mark.value for one in held),
        *_who(held[0]),
        _places(billed),
    )


def _who(entry: Entry) -> tuple[str, ...]:
    return f"request {short(entry.id)}", f"token {short(entry.token)}", seconds(entry.at_us)


def _places(one: Billed) -> str:
    numbers = ", ".join(map(str, one.lines[:5]))
    return f"line{'s' if len(one.lines) > 1 else ''} {numbers}{', …' if len(one.lines) > 5 else ''}"
