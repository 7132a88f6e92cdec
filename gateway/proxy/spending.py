"""What all metered exchanges of one gateway share."""

from __future__ import annotations

import logging
import os
from itertools import count
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gateway.proxy.clock import Watched

MAX_TOLD: Final = 1000
"""So many different notices are logged; a client can name any number of models."""

_log = logging.getLogger("gateway.budgets")


class Spending:
    """Names requests, and says once what has to be said of a model.

    Attributes:
        left: Exchanges whose clients have left, and whose answers are read on.
    """

    __slots__ = ("_instance", "_numbers", "_told", "left")

    def __init__(self) -> None:
        self._instance = os.urandom(8).hex()
        self._numbers = count(1)
        self._told: set[str] = set()
        self.left: set[Watched] = set()

    def end(self) -> None:
        """Settle what is read on, as at its deadline."""
        for exchange in tuple(self.left):
            exchange.on_deadline()

    def next_id(self) -> str:
        """Return a name that no other request has had, here or elsewhere."""
        return f"{self._instance}-{next(self._numbers)}"

    def tell(self, notice: str) -> None:
        """Log a notice, if it is the first of its kind."""
        if notice not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(notice)
            _log.warning("%s", notice)
