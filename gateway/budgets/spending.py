"""What a request may cost, what it cost, and what the ledger remembers of it."""

from __future__ import annotations

import json
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

LEASE_US: Final = 30_000_000
"""How long a reservation lasts without being renewed, in microseconds."""


class Mark(StrEnum):
    """How sure a cost is."""

    EXACT = "exact"
    """As the upstream said, or as a price without a doubt is."""
    ESTIMATED = "estimated"
    """From what passed, on the safe side: the answer ended before it said."""
    ASSUMED = "assumed"
    """The whole reservation: whoever held it died."""
    RELEASED = "released"
    """Nothing: somebody gave it back by hand."""


def _held(fixed: Mapping[str, int], each: Mapping[str, int], granted: int) -> Mapping[str, int]:
    return {**fixed, **{unit: fixed.get(unit, 0) + atoms * granted for unit, atoms in each.items()}}


class Ask(NamedTuple):
    """The most that a request can cost.

    A request whose answer can be kept short costs `fixed` and, for each of up to `most` output tokens, `each`. Of those
    as many are granted as all budgets have room for; fewer than `least` are none, and then the request is refused.

    Args:
        id: The request's, letters, digits and `-`; never given twice.
        fixed: Atoms by unit. A unit that no budget has is only remembered.
        each: Atoms of one output token by unit; empty where nothing can be kept short: then `most` is 0.
        most: Output tokens, 0 or more.
        least: Output tokens, 0 to `most`. As many as `most` where the request must not be changed.
        about: What the ledger remembers should nobody settle it: an `Entry`, or its text, with `each` and without
            `granted`, which the store adds. "": what the store knows.
    """

    id: str
    fixed: Mapping[str, int]
    each: Mapping[str, int] = {}
    most: int = 0
    least: int = 0
    about: About = ""

    def amount(self, unit: str, granted: int) -> int:
        """Return what is reserved of a unit, in atoms, with so many output tokens granted."""
        return self.fixed.get(unit, 0) + self.each.get(unit, 0) * granted

    def amounts(self, granted: int) -> Mapping[str, int]:
        """Return all that is reserved, in atoms by unit, with so many output tokens granted."""
        return _held(self.fixed, self.each, granted)


class Settlement(NamedTuple):
    """What a request cost, and how it is remembered.

    Args:
        cost: Atoms by unit; empty: nothing.
        mark: How sure that is.
        entry: What the ledger remembers: an `Entry`, or its text. In `reserved`, `each` and `granted` is what was held.
    """

    cost: Mapping[str, int]
    mark: Mark
    entry: About


_quoted: Final = json.encoder.encode_basestring_ascii


@lru_cache(maxsize=1024)  # some 300 bytes each
def _names(token: str, target: str, model: str, method: str, path: str) -> str:
    """Write what is the same for many entries as members of a JSON object that has one already."""
    told = {"token": token, "target": target, "model": model, "method": method, "path": path}
    return "".join([f',"{name}":{_quoted(value)}' for name, value in told.items() if value])


@lru_cache(maxsize=1024)
def _amounts(name: str, *units: str) -> str:
    """Write a member of a JSON object with places for the amount of each unit."""
    members = ",".join([f"{_quoted(unit).replace('%', '%%')}:%d" for unit in units])
    return f',"{name}":{{{members}}}'


class Entry(NamedTuple):
    """A request that was settled, in the ledger.

    Args:
        id: The request's.
        began_us: When its reservation was asked for, in microseconds since the epoch.
        token: The token's id.
        target: The target's name.
        model: Of a language model; "" else.
        method, path: The request's; of the path what lies before its query.
        reserved: Atoms by unit.
        cost: Likewise.
        mark: How sure it is.
        units: What was counted by kind: `input`, `cached`, `cache_write`, `output`, `bytes`, `ms`.
        status: The answer's; 0: there was none.
        upstream_id: The upstream's name for the request; "" if it has none.
        at_us: When it was settled, by the store's clock; 0: it has not been.
        each, granted: Of one that is not settled, beside what `reserved` has: atoms of an output token, and how many.
    """

    id: str
    began_us: int = 0
    token: str = ""
    target: str = ""
    model: str = ""
    method: str = ""
    path: str = ""
    reserved: Mapping[str, int] = {}
    cost: Mapping[str, int] = {}
    mark: Mark = Mark.ASSUMED
    units: Mapping[str, int] = {}
    status: int = 0
    upstream_id: str = ""
    at_us: int = 0
    each: Mapping[str, int] = {}
    granted: int = 0

    def text(self) -> str:
        """Return it as JSON on one line, without what a store adds: `mark` and `at_us`."""
        # Where a store keeps texts, two are written for each request: `json.dumps` takes three times as long.
        (
            id_,
            began_us,
            token,
            target,
            model,
            method,
            path,
            reserved,
            cost,
            _,
            units,
            status,
            upstream,
            _,
            each,
            granted,
        ) = self
        parts = [f'{{"id":{_quoted(id_)}']
        if began_us:
            parts.append(f',"began_us":{began_us}')
        parts.append(_names(token, target, model, method, path))
        if reserved:
            parts.append(_amounts("reserved", *reserved) % (*reserved.values(),))
        if cost:
            parts.append(_amounts("cost", *cost) % (*cost.values(),))
        if units:
            parts.append(_amounts("units", *units) % (*units.values(),))
        if status:
            parts.append(f',"status":{status}')
        if upstream:
            parts.append(f',"upstream_id":{_quoted(upstream)}')
        if each:
            parts.append(_amounts("each", *each) % (*each.values(),))
        if granted:
            parts.append(f',"granted":{granted}')
        parts.append("}")
        return "".join(parts)

    @classmethod
    def read(cls, about: Self | str | bytes, mark: str, at_us: int) -> Self:
        """Read an entry, or what `text` made of one. One that nobody settled has cost what was reserved.

        Raises:
            ValueError, TypeError: It did not.
        """
        entry = cls(**json.loads(about)) if isinstance(about, str | bytes) else about
        reserved, sure = entry.all_reserved(), Mark(mark)
        cost = reserved if sure is Mark.ASSUMED else entry.cost
        return entry._replace(reserved=reserved, cost=cost, each={}, granted=0, mark=sure, at_us=at_us)

    def all_reserved(self) -> Mapping[str, int]:
        """Return `reserved` with what was granted beside it."""
        return _held(self.reserved, self.each, self.granted)


def with_granted(about: About, granted: int) -> str:
    """Return `Ask.about` as a store keeps it: as text, with the output tokens that were granted."""
    text = about if isinstance(about, str) else about.text()
    return f'{text[:-1]},"granted":{granted}}}' if text and granted else text


def settled_text(about: About) -> str:
    """Return `Settlement.entry` as a store keeps it that keeps texts."""
    return about if isinstance(about, str) else about._replace(reserved=about.all_reserved(), each={}, granted=0).text()


About: TypeAlias = "str | Entry"
"""What the ledger is told of a request: an entry's text, or an entry, to be written when its text is wanted."""
