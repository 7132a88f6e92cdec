"""A check that a coroutine awaits: off the hot path only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from gateway.errors import StoreUnavailable
    from gateway.stores import Verdict


class Awaited:
    """A waiter that a coroutine awaits, by its future."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[Verdict]) -> None:
        self.future = future

    def on_verdict(self, verdict: Verdict) -> None:
        """See `stores.Waiter`."""
        if not self.future.done():  # whoever waited may have left
            self.future.set_result(verdict)

    def on_store_loss(self, error: StoreUnavailable) -> None:
        """See `stores.Waiter`."""
        if not self.future.done():
            self.future.set_exception(error)
