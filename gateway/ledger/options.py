"""The options of the commands about the ledger, apart from them, which load a store."""

from __future__ import annotations

import argparse
from typing import Final

_MOMENT: Final = "so long ago, or a day or time: 24h, 7d, 2026-11-01, 2026-11-01T12:00:00Z"


def add_ledger(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gateway ledger`; `options.action` is `release`, or None."""
    _add_which(parser, "24h")
    _add_token(parser)
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--csv", action="store_true", help="as CSV, for a spreadsheet")
    shape.add_argument("--json", action="store_true", help="as JSON, as GET /admin/ledger has it")
    parser.add_argument("--open", action="store_true", help="reservations that are not settled, alone")
    _add_where(parser)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action")
    release = actions.add_parser("release", help="settle a reservation for nothing", allow_abbrev=False)
    release.add_argument("request", metavar="ID", help="the request's, as X-Gateway-Request told it")
    # What is not said behind `release` must not undo what was said before it.
    _add_where(release, default=argparse.SUPPRESS)


def add_reconcile(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gateway reconcile`."""
    parser.add_argument("invoice", metavar="INVOICE.csv", help="what the provider billed, a line a request; '-': stdin")
    _add_which(parser, None)
    parser.add_argument("--column-id", metavar="NAME", help="the column with the request ids (default: by its name)")
    parser.add_argument("--column-cost", metavar="NAME", help="the column with the cost in USD (default: by its name)")
    _add_where(parser)


def add_simulate(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gateway simulate`."""
    parser.add_argument("--budget", action="append", metavar="BUDGET", help="of each token, e.g. '2 USD/day'")
    parser.add_argument("--limit", action="append", metavar="LIMIT", help="of each token, e.g. 30/minute")
    parser.add_argument("--timezone", metavar="ZONE", help="of days, weeks and months (default: BUDGET_TIMEZONE)")
    _add_which(parser, "24h")
    _add_token(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")
    _add_where(parser)


def _add_which(parser: argparse.ArgumentParser, default: str | None) -> None:
    told = "the first that is there" if default is None else default
    parser.add_argument("--since", metavar="WHEN", default=default, help=f"{_MOMENT} (default: {told})")
    parser.add_argument("--until", metavar="WHEN", help="likewise; what was settled before then (default: now)")


def _add_token(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--token", metavar="ID", help="of this one and those made from it (default: all)")


def _add_where(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    url = "ask the gateway there (default: from GATEWAY_LISTEN; if none answers, Redis)"
    parser.add_argument("--url", default=default, help=url)
    config = "a TOML file of settings (default: GATEWAY_CONFIG)"
    parser.add_argument("--config", metavar="FILE", default=default, help=config)
