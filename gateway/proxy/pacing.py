"""`SPEND_GUARD`: how fast each token spends, as this process sees it, and what becomes of one that is too fast.

An instance sees a share of a token's requests, of now as of the day before, so what it makes of them is the same as if
it saw them all. What was spent before it started it reads out of the ledger, in the background.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from gateway.budgets.budget import spelled
from gateway.budgets.pace import Level, Pace, Reading
from gateway.errors import SpendGuarded, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.budgets.pace import SpendGuard
    from gateway.stores.ledger import Ledger

MAX_TOKENS: Final = 4096
"""Tokens whose pace is known: up to 10 kB each. The one that spent nothing for longest makes room."""
UNIT: Final = "USD"
"""Of no other unit is it known what little is."""

_PAGE: Final = 500
_DONE: Final = {
    Level.WARN: "it is only told of",
    Level.SLOW: "its requests wait for up to 5 s",
    Level.STOP: "its requests are refused",
}

_log = logging.getLogger("gateway.guards")


class _Token:
    """One token's pace, and what was logged of it since it last was as usual."""

    __slots__ = ("pace", "told")

    def __init__(self) -> None:
        self.pace = Pace()
        self.told = Level.USUAL


class Pacing:
    """Holds tokens to some times their usual pace.

    Args:
        guard: To how many times.
        now_s: Seconds since the epoch.
    """

    __slots__ = ("_now_s", "_seeding", "_tokens", "guard")

    def __init__(self, guard: SpendGuard, now_s: Callable[[], float] = time.time) -> None:
        self.guard = guard
        self._now_s = now_s
        self._tokens: OrderedDict[str, _Token] = OrderedDict()
        self._seeding: asyncio.Task[None] | None = None

    def spent(self, token_id: str, atoms: int) -> None:
        """Enter what a request cost, 0 or more, for its token and its parents; log who of them is too fast by that."""
        if atoms:
            for one in _generations(token_id):
                self._enter(one, atoms, self._now_us())
                self.read(one)

    def strictest(self, token_id: str) -> Reading:
        """Say how fast a token is, or who it was made from, if that is too fast: none gets away by making others."""
        return max(map(self.read, _generations(token_id)), key=attrgetter("level"))

    def read(self, token_id: str) -> Reading:
        """Say how fast a token is, and log it once for each step that it takes."""
        token = self._tokens.get(token_id)
        if token is None:
            return Reading(Level.USUAL, 0, None, 0)
        reading = token.pace.read(self.guard, self._now_us())
        if reading.level > token.told:
            spent, usual, window_s = spelled(reading.spent, UNIT), _about(reading.usual or 0), self._window_s
            told = "token %s spends fast, %s USD in %d s where %s USD are usual (SPEND_GUARD): %s"
            _log.warning(told, token_id, spent, window_s, usual, _DONE[reading.level])
            token.told = reading.level
        elif reading.level is Level.USUAL:
            token.told = Level.USUAL
        return reading

    def refusal(self, token_id: str, reading: Reading) -> SpendGuarded:
        """Return what a request of a token is told that is refused because of a reading."""
        whose = "This token, or one that it was made from," if "." in token_id else "This token"
        usual = reading.usual or 0
        spent, most = spelled(reading.spent, UNIT), _about(self.guard.stops_at(usual))
        detail = (
            f"{whose} has spent {spent} USD in {self._window_s} seconds, where {_about(usual)} USD are usual "
            f"for it; it is stopped at {most} USD, and passes again in {reading.wait_us / 1e6:.1f} seconds."
        )
        return SpendGuarded(detail, most, reading.wait_us)

    def told(self, token_id: str) -> dict[str, Any]:
        """Return a token's pace as members of a JSON object; amounts are texts, and `usual` null if not known yet."""
        level, spent, usual, wait_us = self.read(token_id)
        return {
            "level": level.name.lower(),
            "window": self._window_s,
            "unit": UNIT,
            "spent": spelled(spent, UNIT),
            "usual": None if usual is None else _about(usual),
            "reset": round(wait_us / 1e6, 3) if level is Level.STOP else 0,
        }

    async def seed(self, ledger: Ledger, share: float = 1.0) -> None:
        """Enter what the ledger knows of before now.

        Args:
            ledger: That.
            share: As much of it would have been this process's.
        """
        until_us = self._now_us()
        since_us = until_us - self.guard.history_us
        try:
            while entries := await ledger.entries(since_us, None, _PAGE):
                for entry in entries:
                    if entry.at_us < until_us:  # what is settled from here on, `spent` enters
                        for one in _generations(entry.token):
                            self._enter(one, entry.cost.get(UNIT, 0), entry.at_us, share)
                since_us = entries[-1].at_us + 1
        except StoreUnavailable as error:
            _log.warning("what is usual is not known yet, for the ledger cannot be read (SPEND_GUARD): %s", error)

    def seed_soon(self, ledger: Ledger, share: float) -> None:
        """Do so in the background, until `close`."""
        self._seeding = asyncio.get_running_loop().create_task(self.seed(ledger, share))

    def close(self) -> None:
        """Read no more."""
        if self._seeding is not None:
            self._seeding.cancel()

    @property
    def _window_s(self) -> int:
        return self.guard.window_us // 1_000_000

    def _now_us(self) -> int:
        return int(self._now_s() * 1e6)

    def _enter(self, token_id: str, atoms: int, at_us: int, share: float = 1.0) -> None:
        tokens = self._tokens
        token = tokens.get(token_id)
        if token is None:
            token = tokens[token_id] = _Token()
            if len(tokens) > MAX_TOKENS:
                tokens.popitem(last=False)
        else:
            tokens.move_to_end(token_id)
        token.pace.spend(self.guard, atoms, at_us, share)


def _generations(token_id: str) -> list[str]:
    """Return the names of a token and of those that it was made from."""
    names = [token_id]
    while "." in names[-1]:
        names.append(names[-1].rpartition(".")[0])
    return names


def _about(atoms: int) -> str:
    """Spell an average, to a hundredth of a cent."""
    return spelled(round(atoms, -5), UNIT)
