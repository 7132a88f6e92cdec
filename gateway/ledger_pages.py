"""The ledger over HTTP: for admins a page at a time, and what can be done about it; for others their own requests."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import parse_qsl, urlencode

from gateway.budgets.told import spelled_us, told
from gateway.config.moments import moment_us
from gateway.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.budgets.spending import Entry
    from gateway.stores import Store
    from gateway.stores.ledger import Ledger, SpendStore

PATH: Final = "/admin/ledger"
PAGE: Final = 500
"""Entries: some 200 kB."""
SLICE: Final = 50
"""Entries that are told at a stretch, in a millisecond of the event loop."""
NO_SINCE: Final = "24h"

_TAKES: Final = "since=24h (or a time), token=ID and open=only|no"
_REQUEST: Final = re.compile("[A-Za-z0-9-]{1,100}")


def ledger_of(store: Store) -> Ledger:
    """Return the ledger of a store."""
    return cast("SpendStore", store).ledger


async def page(ledger: Ledger, query: str) -> dict[str, Any]:
    """Answer `GET /admin/ledger`: the reservations that are open, and the oldest entries since then.

    Args:
        ledger: Where they are.
        query: The request-target's. `open=only`: no entries; `open=no`: no reservations.

    Returns:
        `entries`, `open` and, in `next`, the request-target of what follows: now, or once it has been settled. It is
        null where there are no entries, and nothing follows yet.

    Raises:
        BadRequest: The query is none of these.
        StoreUnavailable: The store does not answer.
    """
    since_us, token, which = _read(query)
    # These first: what is settled between the two looks is then in both, not in neither.
    opened = [] if which == "no" else await open_of(ledger, token)
    entries = [] if which == "only" else await ledger.entries(since_us, token, PAGE)
    follows = None
    if entries:
        asked = {"since": spelled_us(entries[-1].at_us + 1), "open": "no"}
        follows = f"{PATH}?{urlencode(asked if token is None else {**asked, 'token': token})}"
    return {"open": await _told(opened), "entries": await _told(entries), "next": follows}


async def _told(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Tell of entries, and let requests get on meanwhile."""
    members = []
    for start in range(0, len(entries), SLICE):
        members += [told(entry) for entry in entries[start : start + SLICE]]
        await asyncio.sleep(0)
    return members


async def open_of(ledger: Ledger, token: str | None) -> list[Entry]:
    """Return the open reservations of a token and those made from it, or of all.

    Raises:
        StoreUnavailable: The store does not answer.
    """
    found = await ledger.open()
    return found if token is None else [one for one in found if f"{one.token}.".startswith(f"{token}.")]


async def of_request(ledger: Ledger, token: str, request: str) -> dict[str, Any]:
    """Answer `GET /usage/requests/REQUEST`: say what a request cost, or may cost as long as it is not over.

    Args:
        ledger: Where it is.
        token: Whose, or of one made from it: nobody else is told that there is such a request.
        request: Its id.

    Raises:
        NotFound: There is no such request, or it is another's.
        StoreUnavailable: The store does not answer.
    """
    entry = await ledger.find(token, request) if _REQUEST.fullmatch(request) else None
    if entry is None:
        raise NotFound("The ledger knows no such request of this token or one made from it, or no longer.")
    return told(entry)


async def release(ledger: Ledger, request: str) -> dict[str, Any]:
    """Answer `DELETE /admin/ledger/REQUEST`: say what it was that is released.

    Raises:
        NotFound: There is no such reservation, open or assumed.
        StoreUnavailable: The store does not answer.
    """
    entry = await ledger.release(request) if _REQUEST.fullmatch(request) else None
    if entry is None:
        raise NotFound("No reservation of this request is open, or was assumed.")
    return told(entry)


def _read(query: str) -> tuple[int, str | None, str]:
    """Read the moment in microseconds, the token, and which of the two are wanted."""
    try:
        asked = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        members = dict(asked)
        which = members.pop("open", "")
        token = members.pop("token", None)
        since = members.pop("since", NO_SINCE)
        if members or len({name for name, _ in asked}) < len(asked) or which not in {"", "only", "no"}:
            raise ValueError
        return moment_us(since, time.time_ns() // 1000), token, which
    except ValueError:
        raise BadRequest(f"The query is not of {_TAKES}.") from None
