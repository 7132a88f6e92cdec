"""Which `SPEND_GUARD` is in force, if any: the guard is loaded where there is one, and so is the embedded ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.config import Settings
    from gateway.proxy.pacing import Pacing
    from gateway.stores.ledger import SpendStore


class Paces:
    """What holds tokens to their pace just now: a reload may change that.

    Attributes:
        now: That; None: they may spend as fast as they like.
    """

    __slots__ = ("now",)

    def __init__(self, now: Pacing | None = None) -> None:
        self.now = now

    def renew(self, settings: Settings, store: SpendStore) -> None:
        """Go by these settings from now on; what is known goes on where they are as before.

        Args:
            settings: Say how fast tokens may be, and how many processes there are.
            store: Its ledger knows what was spent; it is made only if somebody wants to know.
        """
        now, guard = self.now, settings.spend_guard
        if guard == (None if now is None else now.guard):
            return
        self.close()
        self.now = None
        if guard is not None:
            from gateway.proxy.pacing import Pacing  # see the module's docstring

            self.now = Pacing(guard)
            self.now.seed_soon(store.ledger, 1 / settings.workers)

    def told(self, token_id: str) -> dict[str, Any] | None:
        """See `Pacing.told`; None where nobody looks."""
        return None if self.now is None else self.now.told(token_id)

    def close(self) -> None:
        """Read no more."""
        if self.now is not None:
            self.now.close()
