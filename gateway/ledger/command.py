"""`gateway ledger`: what requests cost, and what is reserved for those under way."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gateway.budgets.told import told
from gateway.config.values import printable
from gateway.errors import ConfigError, GatewayError
from gateway.ledger.source import ask, print_whole, wanted
from gateway.ledger.table import amounts, as_csv, as_text

if TYPE_CHECKING:
    import argparse

    from gateway.config import Settings
    from gateway.ledger.source import Found


def run(options: argparse.Namespace, settings: Settings, local_url: str) -> int:
    """Print the ledger, or release a reservation.

    Args:
        options: As `options.add_ledger` reads them.
        settings: The gateway's; which target it has does not matter.
        local_url: Where a gateway of this machine would be, if nobody said where.

    Returns:
        0.

    Raises:
        ConfigError: An option that nothing can be done with.
        GatewayError, OSError: There is nobody to ask, or no right to; there is nothing to release.
    """
    if options.action == "release":
        print_whole(_release(options.request, options.url, settings, local_url))
        return 0
    which = wanted(options)
    found = ask(options.url, settings, local_url, lambda source: source.read(which))
    print_whole(as_csv(found) if options.csv else _as_json(found) if options.json else as_text(found))
    return 0


def _release(request: str, url: str | None, settings: Settings, local_url: str) -> str:
    if not request:
        raise ConfigError("ID", "is empty", "a request's id, as X-Gateway-Request told it", "gateway ledger release ID")
    entry = ask(url, settings, local_url, lambda source: source.release(request))
    if entry is None:
        raise GatewayError(f"no reservation of request {printable(request)!r} is open, or was assumed")
    return f"released {printable(entry.id)}: {amounts(entry.reserved)} of token {printable(entry.token)}\n"


def _as_json(found: Found) -> str:
    members = {"open": [told(entry) for entry in found.open], "entries": [told(entry) for entry in found.entries]}
    return json.dumps(members, indent=2) + "\n"
