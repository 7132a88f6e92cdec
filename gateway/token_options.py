"""The options of `gateway token`, apart from the command, which loads a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_actions(parser: argparse.ArgumentParser) -> None:
    """Add `issue`, `inspect` and `revoke`; `options.action` is the one that was chosen."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)

    issue = actions.add_parser("issue", help="print a new token", allow_abbrev=False)
    issue.add_argument("--name", help="for people")
    issue.add_argument("--ttl", help="how long it is good, e.g. 30d; 0: without end (default: TOKEN_TTL)")
    issue.add_argument(
        "--limit",
        action="append",
        metavar="LIMIT",
        help="e.g. 60/minute; in place of RATE_LIMIT",
    )
    issue.add_argument(
        "--budget",
        action="append",
        metavar="BUDGET",
        help='e.g. "5 USD/day"; in place of BUDGET',
    )
    issue.add_argument(
        "--parent",
        metavar="TOKEN",
        help="make it from this one, for which it counts and with which it ends; '-': from stdin",
    )

    for option, metavar, meaning in (
        ("--target", "NAME", "a target it is for, e.g. api (default: any)"),
        ("--method", "METHOD", "a method it allows, e.g. POST (default: any)"),
        ("--path", "PREFIX", "a path it allows, with all below, as sent behind /api, e.g. /chat (default: any)"),
    ):
        issue.add_argument(option, action="append", metavar=metavar, help=meaning)

    inspect = actions.add_parser("inspect", help="print what a token grants", allow_abbrev=False)
    inspect.add_argument("token", metavar="TOKEN", help="the token; '-': from stdin")

    revoke = actions.add_parser("revoke", help="end a token on every instance at once", allow_abbrev=False)
    revoke.add_argument("token", metavar="TOKEN_OR_ID", help="the token or its id; '-': from stdin")

    for action in (issue, inspect, revoke):
        action.add_argument("--config", metavar="FILE", help="a TOML file of settings (default: GATEWAY_CONFIG)")
    for action in (issue, revoke):
        action.add_argument("--url", help="ask the gateway there, whatever secrets are known here")
