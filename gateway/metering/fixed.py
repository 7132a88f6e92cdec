"""Requests whose cost is known before they are sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.budgets.spending import Mark
from gateway.metering import Cost
from gateway.metering.fields import upstream_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class FixedQuote:
    """See `Quote`: a price, whatever the answer says; nothing if it is an error."""

    __slots__ = ("_body", "accepts", "each", "fixed", "least", "model", "most", "notice")

    limited = 0

    def __init__(self, price: Mapping[str, int], body: bytes | None, model: str = "", notice: str = "") -> None:
        self.model = model
        self.fixed = price
        self.each: Mapping[str, int] = {}
        self.most = self.least = 0
        self.accepts = b""
        self.notice = notice
        self._body = body

    def body(self, granted: int) -> bytes | None:
        """See `Quote`."""
        del granted
        return self._body

    def meter(
        self, granted: int, status: int, lines: Sequence[bytes], form: bytes = b"", content: bytes = b""
    ) -> FixedMeter:
        """See `Quote`."""
        del granted, form, content
        cost = {} if status >= 400 else self.fixed
        return FixedMeter(Cost(cost, Mark.EXACT, model=self.model, upstream_id=upstream_id(lines)))

    def unanswered(self, granted: int, elapsed_ms: int) -> Cost:
        """See `Quote`."""
        del granted, elapsed_ms
        return Cost(self.fixed, Mark.ESTIMATED, model=self.model)


class FixedMeter:
    """See `Meter`: a cost that nothing in the answer changes."""

    __slots__ = ("_cost",)

    def __init__(self, cost: Cost) -> None:
        self._cost = cost

    def feed(self, content: bytes) -> bytes:
        """See `Meter`."""
        return content

    def finish(self) -> bytes:
        """See `Meter`."""
        return b""

    def running(self, elapsed_ms: int) -> Mapping[str, int]:
        """See `Meter`."""
        del elapsed_ms
        return self._cost.cost

    def result(self, *, whole: bool, elapsed_ms: int) -> Cost:
        """See `Meter`."""
        del whole, elapsed_ms
        return self._cost

    def cut_event(self) -> bytes:
        """See `Meter`."""
        return b""
