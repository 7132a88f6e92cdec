"""What `/readyz` tells: whether the store takes checks. Anybody may ask, so one answer of the store's is for many."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from gateway.errors import StoreUnavailable

if TYPE_CHECKING:
    from gateway.stores import Store

SHARED_S: Final = 0.25
"""How long an answer of the store's is told: less than anybody notices who asks once a second."""


class Readiness:
    """Asks a store whether it answers, four times a second at most, whoever wants to know.

    Args:
        store: Is asked.
    """

    __slots__ = ("_asked", "_store", "_until_s")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asked: asyncio.Task[str] | None = None
        self._until_s = 0.0

    async def check(self) -> None:
        """Return when the store takes checks, or did a moment ago.

        Raises:
            StoreUnavailable: It does not.
        """
        loop = asyncio.get_running_loop()
        if self._asked is None or (self._asked.done() and loop.time() >= self._until_s):
            self._until_s = loop.time() + SHARED_S
            self._asked = loop.create_task(self._ask())
        problem = await asyncio.shield(self._asked)  # who leaves meanwhile is not the only one who wants to know
        if problem:
            raise StoreUnavailable(problem)

    async def _ask(self) -> str:
        """Say what is wrong, or nothing."""
        try:
            await self._store.ping()
        except StoreUnavailable as error:
            return error.detail
        return ""
