"""Costs that the answer says in a number of its own, or that are measured on it."""

from __future__ import annotations

import json
from decimal import ROUND_UP, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Final

from gateway.budgets.budget import MAX_ATOMS
from gateway.budgets.spending import Mark
from gateway.metering import Cost
from gateway.metering.decoding import gzip_of
from gateway.metering.fields import CONTENT_ENCODING, Fields
from gateway.metering.fixed import FixedMeter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.metering.costs import Measured, UnitPrice

MAX_JSON_BYTES: Final = 256 * 1024
"""How much of an answer is kept to look for a number in: for a longer one, the reservation is what it cost."""
_MAX_NUMBER: Final = 10**15
_PARTS: Final = 10**12
"""A number that an answer says is rounded up to as many parts of one."""


class MeasuredQuote:
    """See `Quote`: the reservation, until the answer is there.

    Args:
        measured: What is measured, and its price.
        reserve: The most that a request can cost.
        body: The request's.
    """

    __slots__ = ("_body", "_measured", "accepts", "each", "fixed", "least", "model", "most", "notice")

    limited = 0

    def __init__(self, measured: Measured, reserve: Mapping[str, int], body: bytes | None) -> None:
        self._measured = measured
        self._body = body
        self.model = ""
        self.fixed = reserve
        self.each: Mapping[str, int] = {}
        self.most = self.least = 0
        self.accepts = b"gzip, identity" if measured.kind == "json" else b""
        self.notice = ""

    def body(self, granted: int) -> bytes | None:
        """See `Quote`."""
        del granted
        return self._body

    def meter(
        self, granted: int, status: int, lines: Sequence[bytes], form: bytes = b"", content: bytes = b""
    ) -> MeasuredMeter | FixedMeter:
        """See `Quote`."""
        del granted, form, content
        fields = Fields(lines)
        if status < 400:
            return MeasuredMeter(self._measured, self.fixed, fields)
        cost: Mapping[str, int] = {}
        if self._measured.kind == "header" and (said := _of_field(self._measured, fields)) is not None:
            cost = priced(self._measured.price, said)  # an error is free unless it says otherwise
        return FixedMeter(Cost(cost, Mark.EXACT, upstream_id=fields.upstream_id))

    def unanswered(self, granted: int, elapsed_ms: int) -> Cost:
        """See `Quote`."""
        del granted, elapsed_ms
        return Cost(self.fixed, Mark.ESTIMATED)


class MeasuredMeter:
    """See `Meter`.

    Args:
        measured: What is measured, and its price.
        reserved: What the request is held to have cost where that cannot be.
        fields: The answer's.
    """

    __slots__ = ("_bytes", "_fields", "_gzip", "_kept", "_kept_bytes", "_measured", "_reserved")

    def __init__(self, measured: Measured, reserved: Mapping[str, int], fields: Fields) -> None:
        self._measured = measured
        self._reserved = reserved
        self._fields = fields
        self._gzip = gzip_of(fields.get(CONTENT_ENCODING).lower())
        self._kept: list[bytes] = []
        self._kept_bytes = self._bytes = 0

    def feed(self, content: bytes) -> bytes:
        """See `Meter`."""
        self._bytes += len(content)
        if self._measured.kind == "json":
            for part in (content,) if self._gzip is None else self._gzip.decode(content):
                self._kept_bytes += len(part)
                if self._kept_bytes > MAX_JSON_BYTES:
                    self._kept.clear()
                else:
                    self._kept.append(part)
        return content

    def finish(self) -> bytes:
        """See `Meter`."""
        return b""

    def running(self, elapsed_ms: int) -> Mapping[str, int]:
        """See `Meter`."""
        counted = self._counted(elapsed_ms)
        return self._reserved if counted is None else priced(self._measured.price, counted)

    def result(self, *, whole: bool, elapsed_ms: int) -> Cost:
        """See `Meter`."""
        kind = self._measured.kind
        counted = self._said() if kind == "json" and whole else self._counted(elapsed_ms)
        if counted is None:
            return Cost(self._reserved, Mark.ESTIMATED, upstream_id=self._fields.upstream_id)
        units = {"bytes": self._bytes} if kind == "bytes" else {"ms": elapsed_ms} if kind == "seconds" else {}
        mark = Mark.EXACT if whole or kind == "header" else Mark.ESTIMATED
        return Cost(priced(self._measured.price, counted), mark, units, upstream_id=self._fields.upstream_id)

    def cut_event(self) -> bytes:
        """See `Meter`."""
        return b""

    def _counted(self, elapsed_ms: int) -> Decimal | None:
        match self._measured.kind:
            case "bytes":
                return Decimal(self._bytes)
            case "seconds":
                return Decimal(max(elapsed_ms, 0)) / 1000
            case "header":
                return _of_field(self._measured, self._fields)
        return None

    def _said(self) -> Decimal | None:
        try:
            answer = json.loads(b"".join(self._kept).decode(), parse_float=Decimal)
            return number(pointed(answer, self._measured.place))
        except (ValueError, RecursionError, LookupError):
            return None


def _of_field(measured: Measured, fields: Fields) -> Decimal | None:
    return number(fields.only(b"\r\n%b:" % measured.place.encode()).decode("latin-1"))


def priced(price: UnitPrice, count: Decimal) -> dict[str, int]:
    """Return what so many cost, in atoms rounded up; no more than stores can count, which no budget is."""
    parts = int((count * _PARTS).to_integral_value(ROUND_UP))
    return {price.unit: min(-(-parts * price.atoms // (price.per * _PARTS)), MAX_ATOMS - 1)}


def number(value: object) -> Decimal | None:
    """Return what an answer says that it cost; None if that can be no cost."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        return None
    try:
        said = Decimal(value)
    except (InvalidOperation, ValueError):
        return None
    return said if said.is_finite() and 0 <= said <= _MAX_NUMBER else None


def pointed(value: object, pointer: str) -> object:
    """Return what a JSON pointer leads to.

    Raises:
        LookupError, ValueError: It leads nowhere.

    Source: RFC 6901 §4.
    """
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list):
            if not name.isascii() or not name.isdigit() or (len(name) > 1 and name.startswith("0")):
                raise LookupError(name)
            value = value[int(name)]
        elif isinstance(value, dict):
            value = value[name]
        else:  # a number has no members
            raise LookupError(name)  # noqa: TRY004
    return value
