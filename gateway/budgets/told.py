"""An entry of the ledger as the members of a JSON object, for people and programs, and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from gateway.budgets.budget import spelled
from gateway.budgets.grammar import atoms_of
from gateway.budgets.spending import Entry, Mark

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

OPEN: Final = "open"
"""What stands for the mark of a reservation that is not settled."""

_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def told(entry: Entry) -> dict[str, Any]:
    """Return an entry's members: amounts as decimal texts by unit, times in UTC; `at` is null of an open one."""
    is_open = not entry.at_us
    return {
        "request": entry.id,
        "began": spelled_us(entry.began_us),
        "at": None if is_open else spelled_us(entry.at_us),
        "token": entry.token,
        "target": entry.target,
        "model": entry.model,
        "method": entry.method,
        "path": entry.path,
        "status": entry.status,
        "mark": OPEN if is_open else entry.mark.value,
        "cost": {} if is_open else _texts(entry.cost),
        "reserved": _texts(entry.reserved),
        "units": dict(entry.units),
        "upstream_request": entry.upstream_id,
    }


def read_told(members: Mapping[str, Any]) -> Entry:
    """Read what `told` made.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: It did not.
    """
    is_open = members["at"] is None
    return Entry(
        id=members["request"],
        began_us=read_us(members["began"]),
        token=members["token"],
        target=members["target"],
        model=members["model"],
        method=members["method"],
        path=members["path"],
        reserved=_atoms(members["reserved"]),
        cost=_atoms(members["cost"]),
        mark=Mark.ASSUMED if is_open else Mark(members["mark"]),
        units=dict(members["units"]),
        status=int(members["status"]),
        upstream_id=members["upstream_request"],
        at_us=0 if is_open else read_us(members["at"]),
    )


def latest(entries: Iterable[Entry]) -> list[Entry]:
    """Return the last entry of each request, in the order of the last ones: a log, where costs are mended later."""
    found: dict[str, Entry] = {}
    for entry in entries:
        found.pop(entry.id, None)
        found[entry.id] = entry
    return list(found.values())


def spelled_us(moment_us: int) -> str:
    """Spell a time in microseconds since the epoch (RFC 3339, UTC), exactly."""
    moment = _EPOCH + timedelta(microseconds=moment_us)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def read_us(text: str) -> int:
    """Read a time (RFC 3339), or a day, of which it is the midnight; without a zone, it is UTC's.

    Raises:
        ValueError: It is neither.
    """
    moment = datetime.fromisoformat(text)
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


def _texts(amounts: Mapping[str, int]) -> dict[str, str]:
    return {unit: spelled(atoms, unit) for unit, atoms in amounts.items()}


def _atoms(texts: Mapping[str, str]) -> dict[str, int]:
    return {unit: atoms_of(text, unit) for unit, text in texts.items()}
