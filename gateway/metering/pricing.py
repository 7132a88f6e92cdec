"""What requests to one target cost, by its cost table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import PriceUnknown
from gateway.metering.fixed import FixedQuote

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.metering import Pricing, Quote
    from gateway.metering.costs import CostTable


def pricing_of(table: CostTable, url: str, *, clamp: bool) -> Pricing:
    """Make the pricing of a target.

    Args:
        table: What it says of costs.
        url: The target's, which tells the provider.
        clamp: Whether a request's output may be limited to what money is left for (`BUDGET_CLAMP`).
    """
    del url, clamp
    return FixedPricing(table)


class FixedPricing:
    """See `Pricing`: prices by method and path."""

    __slots__ = ("_table", "needs_body")

    def __init__(self, table: CostTable) -> None:
        self.needs_body = False
        self._table = table

    def quote(self, method: bytes, path: bytes, lines: Sequence[bytes], body: bytes | None, now_s: float) -> Quote:
        """See `Pricing`."""
        del lines, now_s
        plain = path.partition(b"?")[0] or b"/"
        for one in self._table.fixed:
            if one.fits(method, plain):
                return FixedQuote(one.price, body)
        return unknown(self._table, body, "", "this method and path", 'give it one, or "* /*", in `fixed`')


def unknown(table: CostTable, body: bytes | None, model: str, what: str, mend: str) -> Quote:
    """Quote a request whose price nobody has said.

    Raises:
        PriceUnknown: That is refused.
    """
    if table.unknown_price == "deny":
        raise PriceUnknown(f"There is no price for {what}, so nothing was sent to the API; to allow it, {mend}.")
    if table.unknown_price == "default":
        return FixedQuote(table.default or {}, body, model)
    return FixedQuote({}, body, model, notice=f"There is no price for {what}: it is free.")
