"""The ledger in Redis: settles what this process has reserved, renews what is not settled, and reads what was.

A settlement is sent until Redis has acknowledged it; that it is applied once is the script's business, which remembers
whom it has settled until this process has long known. What is not settled is renewed in batches, and first of all on a
new connection: a Redis that has lost its data learns of it before it is asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import hiredis

from gateway.budgets.book import BudgetStanding
from gateway.budgets.spending import LEASE_US, Mark, Settlement
from gateway.stores.leases import RENEWALS
from gateway.stores.link import KEY_TROUBLE, pack
from gateway.stores.redis_entries import SPENDERS_KEY, RedisEntries
from gateway.stores.redis_spend import REDIRECTS
from gateway.stores.replies import error_code

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.budgets.spending import Ask
    from gateway.stores.ledger import SpendPlan
    from gateway.stores.link import Link
    from gateway.stores.pipeline import Connection
    from gateway.stores.redis import RedisStore
    from gateway.stores.redis_spend import RedisSpendPlan, Reservation

log = logging.getLogger("gateway.store")

MAX_KEPT: Final = 50_000
"""Settlements that Redis has not acknowledged, about a kilobyte each. Of more, the oldest end as assumed."""
BATCH: Final = 100
"""Settlements or renewals at once: a check that waits behind them waits for a millisecond or two."""
PAUSE_S: Final = 0.01
RETRY_S: Final = 0.25
CLOSE_S: Final = 2.0
"""How long a stop waits for Redis, whatever `STORE_TIMEOUT` says."""
REMEMBERED: Final = 6
"""Renewals, a minute, for which Redis remembers whom it has settled: what a proxy held up for that long counts once."""
RECENT_S: Final = 5.0
"""Settlements that Redis has acknowledged so many seconds ago are sent again on a new connection: a replica that took
over, or a server that was restarted, may not have them. Where it has, they count once: `REMEMBERED` is longer."""
MAX_RECENT: Final = 5_000
_MOST_NOTED: Final = 10_000
_NOTED_FOR: Final = 360
"""Renewals, about an hour: then families that still spend are noted again."""
_NOTHING: Final = Settlement({}, Mark.RELEASED, "")


class RedisLedger(RedisEntries):
    """See `stores.ledger.Ledger`.

    Args:
        store: Its connections, clock and scripts.
    """

    __slots__ = (
        "_draining",
        "_dropped",
        "_held",
        "_kept",
        "_known",
        "_noted",
        "_recent",
        "_rounds",
        "_store",
        "_timer",
        "_told",
        "_unsent",
    )

    def __init__(self, store: RedisStore) -> None:
        super().__init__(store)
        self._held: dict[str, list[Reservation]] = {}
        self._kept: dict[Settling, None] = {}
        """Not acknowledged, in the order made."""
        self._unsent: deque[Settling] = deque()
        """Those of them that are not under way."""
        self._dropped = 0
        # Acknowledged, by the key that remembers them: since the last renewal, last, and since those before.
        self._known: deque[dict[str, list[str]]] = deque(({},))
        self._recent: deque[tuple[float, Settling]] = deque(maxlen=MAX_RECENT)  # when acknowledged, oldest first
        self._noted: set[str] = set()
        self._rounds = 0
        self._told: dict[Link, Connection] = {}  # which connections have heard of what is held
        self._timer: asyncio.TimerHandle | None = None
        self._draining: asyncio.TimerHandle | None = None

    # What is held

    def hold(self, reservation: Reservation) -> None:
        """Renew a reservation from now on, until it is settled."""
        self._held.setdefault(reservation.ask.id, []).append(reservation)
        family = reservation.plan.family
        if family and family not in self._noted:
            self._note(family)
        self._wait()

    def let_end(self, reservation: Reservation) -> None:
        """Renew a reservation no longer: nobody will settle it."""
        self._held.pop(reservation.ask.id, None)

    def on_back(self, link: Link, connection: Connection) -> None:
        """Tell on a connection that is new what `tell` says, and what was settled meanwhile."""
        self._forget_recent()
        if self._held or self._recent:
            self.tell(link, connection)
        if self._noted and self._store.link_of(SPENDERS_KEY) is link:
            self._note(*self._noted)
        self.send_kept()

    def tell(self, link: Link, connection: Connection) -> None:
        """First of all, on a connection that has not heard of it, renew what is held and tell what was just settled."""
        if connection is self._told.get(link):
            return
        for script in (self._store.spends.reserve, self._store.spends.settle):
            self._store.send_away(connection, pack("SCRIPT", "LOAD", script.text))
        self._told = {one: told for one, told in self._told.items() if told.end_reason is None}
        self._told[link] = connection
        for plan, batch in self._batches():
            if self._store.link_of(plan.family_keys[0]) is link:
                self._renew(connection, plan, batch)
        self._forget_recent()
        recent = [one for _, one in self._recent if self._store.link_of(one.plan.family_keys[0]) is link]
        for number, at in enumerate(range(0, len(recent), BATCH)):
            asyncio.get_running_loop().call_later(number * PAUSE_S, self._tell_of, connection, recent[at : at + BATCH])

    def tell_again(self) -> None:
        """Have each connection told before it is next asked: who has which keys has changed."""
        self._told.clear()

    def renew(self) -> None:
        """Renew all that is held, where Redis is there, a batch at a time."""
        loop = asyncio.get_running_loop()
        for number, (plan, batch) in enumerate(self._batches()):
            if number == 0:
                self._renew_batch(plan, batch)
            else:
                loop.call_later(number * PAUSE_S, self._renew_batch, plan, batch)

    # Settling

    def settle(self, plan: SpendPlan, ask: Ask, granted: int, settlement: Settlement) -> None:
        """Settle a request, in each slot that it is reserved in; see `Ledger.settle`."""
        del plan, granted  # as reserved: where it took two steps, each granted its own
        for one in self._held.pop(ask.id, ()):
            self._settle(one, settlement)

    def give_back(self, reservation: Reservation) -> None:
        """Settle for nothing what Redis may or may not have reserved."""
        self._settle(reservation, _NOTHING)

    def give_all_back(self, ask: Ask) -> None:
        """Settle for nothing whatever is held for a request."""
        for one in self._held.pop(ask.id, ()):
            self._settle(one, _NOTHING)

    def send_kept(self) -> None:
        """Send the settlements that are not under way, in the order made, as far as Redis is there."""
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None
        if self._send_some(BATCH) == BATCH:
            self._drain_in(PAUSE_S)

    async def close(self) -> None:
        """Send what is left, and wait a moment for Redis to take it. What is held ends with its lease."""
        for timer in (self._timer, self._draining):
            if timer is not None:
                timer.cancel()
        self._send_some(len(self._unsent))
        # Replies come in order: when these are there, so are those to all that was sent before.
        links = {self._store.link_of(one.plan.family_keys[0]) for one in self._kept}
        asked = asyncio.gather(*(link.ask(("PING",)) for link in links), return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asked, CLOSE_S)
        if self._kept:
            log.warning("%d settlements were not taken by Redis: they end as assumed.", len(self._kept))

    async def standings(self, plan: SpendPlan) -> list[BudgetStanding]:
        """Say how each budget of a plan stands; see `Ledger.standings`.

        Raises:
            StoreUnavailable: Redis did not answer, or refused.
        """
        placed: list[tuple[int, BudgetStanding]] = []
        parts: Any = plan.spend_parts()  # type: ignore[attr-defined]  # opaque to others, but this store's own
        for part, indexes in parts:
            if not part.budgets:
                continue
            words = part.standings_words(self._store.now_s())
            reply: Any = await self._store.run(part.key, self._store.spends.standings, *words)
            numbers: Any = iter(reply)
            standings = [BudgetStanding(*three) for three in zip(numbers, numbers, numbers, strict=True)]
            placed += zip(indexes, standings, strict=True)
        return [standing for _, standing in sorted(placed)]

    # What settlements report

    def on_acknowledged(self, one: Settling) -> None:
        """Keep a settlement no longer; what remembers it in Redis may forget it, some time from now."""
        if one in self._kept:
            del self._kept[one]
            self._known[-1].setdefault(one.plan.family_keys[2], []).append(one.id)
            self._recent.append((asyncio.get_running_loop().time(), one))
            self._wait()

    def on_refused(self, one: Settling, reply: object) -> None:
        """Take an error in place of an acknowledgement."""
        code, link = error_code(reply), self._store.link_of(one.plan.family_keys[0])
        if code == "NOSCRIPT" and link.live is not None:
            link.live.send(one.pack_with_script(), one, link.live)
        elif code in {"MOVED", "ASK"} and one.sent_on(reply):
            pass
        elif code in KEY_TROUBLE:
            # The next try would have it again.
            self._kept.pop(one, None)
            log.error("Redis cannot settle request %s: it answered %s.", one.id, code)
        else:
            self.on_unsent(one)

    def on_unsent(self, one: Settling) -> None:
        """Send a settlement again, soon."""
        if one in self._kept:
            self._unsent.append(one)
            if self._draining is None:
                self._drain_in(RETRY_S)

    # Inside

    def _tell_of(self, connection: Connection, recent: Iterable[Settling]) -> None:
        for one in recent:
            self._store.send_away(connection, one.pack())

    def _forget_recent(self) -> None:
        since_s, recent = asyncio.get_running_loop().time() - RECENT_S, self._recent
        while recent and recent[0][0] < since_s:
            recent.popleft()

    def _settle(self, reservation: Reservation, settlement: Settlement) -> None:
        one = Settling(self._store, reservation, settlement)
        if len(self._kept) >= MAX_KEPT:
            del self._kept[next(iter(self._kept))]
            self._dropped += 1
            if self._dropped % 1000 == 1:
                log.warning("Redis takes no settlements: %d are given up, and end as assumed.", self._dropped)
        self._kept[one] = None
        self._wait()
        connection = self._usable(one.plan)
        if connection is None:
            self._unsent.append(one)
        else:
            connection.send(one.pack(), one, connection)

    def _send_some(self, most: int) -> int:
        sent, waiting = 0, []
        while self._unsent and sent < most:
            one = self._unsent.popleft()
            connection = self._usable(one.plan)
            if one not in self._kept:
                continue
            if connection is None:
                waiting.append(one)
            else:
                connection.send(one.pack(), one, connection)
                sent += 1
        self._unsent.extendleft(reversed(waiting))
        return sent

    def _drain_in(self, delay_s: float) -> None:
        self._draining = asyncio.get_running_loop().call_later(delay_s, self.send_kept)

    def _usable(self, plan: RedisSpendPlan) -> Connection | None:
        live = self._store.link_of(plan.family_keys[0]).live
        return None if live is None or live.congested else live

    def _batches(self) -> Iterable[tuple[RedisSpendPlan, list[Reservation]]]:
        by_plan: dict[RedisSpendPlan, list[Reservation]] = {}
        for ones in self._held.values():
            for one in ones:
                by_plan.setdefault(one.plan, []).append(one)
        return [(plan, ones[at : at + BATCH]) for plan, ones in by_plan.items() for at in range(0, len(ones), BATCH)]

    def _renew_batch(self, plan: RedisSpendPlan, batch: list[Reservation]) -> None:
        connection = self._usable(plan)
        held = [one for one in batch if one.ask.id in self._held]
        if connection is not None and held:
            self._renew(connection, plan, held)

    def _renew(self, connection: Connection, plan: RedisSpendPlan, batch: list[Reservation]) -> None:
        words = plan.renew_words(batch, self._store.now_s())
        self._store.send_away(connection, pack("EVAL", self._store.spends.renew.text, *words))

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LEASE_US / 1e6 / RENEWALS, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._rounds += 1
        if self._rounds % _NOTED_FOR == 0:
            self._noted.clear()
        self.renew()
        self.send_kept()
        self.forget()
        self._forget_recent()
        if self._held or self._kept or any(self._known):
            self._wait()

    def forget(self) -> None:
        """Have Redis forget whom it has settled, of whom this process has known for `REMEMBERED` times."""
        self._known.append({})
        if len(self._known) <= REMEMBERED:
            return
        for key, requests in self._known.popleft().items():
            live = self._store.link_of(key).live
            if live is not None and not live.congested:
                for at in range(0, len(requests), BATCH):
                    self._store.send_away(live, pack("ZREM", key, *requests[at : at + BATCH]))

    def _note(self, *families: str) -> None:
        """Tell whoever reads ledgers that these families have one; while Redis is away, when it is back."""
        if len(self._noted) >= _MOST_NOTED:
            self._noted.clear()
        self._noted.update(families)
        live = self._store.link_of(SPENDERS_KEY).live
        if live is not None and not live.congested:
            for command in self.noting(families):
                self._store.send_away(live, pack(*command))


class Settling:
    """One settlement in one slot, and the recipient of its acknowledgement.

    Args:
        store: Its connections, clock and scripts.
        reservation: What it settles.
        settlement: How.
    """

    __slots__ = ("_left", "_reservation", "_settlement", "_store", "id", "plan")

    def __init__(self, store: RedisStore, reservation: Reservation, settlement: Settlement) -> None:
        self._store = store
        self._reservation = reservation
        self._settlement = settlement
        self._left = REDIRECTS
        self.plan = reservation.plan
        self.id = reservation.ask.id

    def pack(self) -> bytes:
        """Return the command."""
        return pack("EVALSHA", self._store.spends.settle.sha, *self._words())

    def pack_with_script(self) -> bytes:
        """Return the same as a command that brings the script along."""
        return pack("EVAL", self._store.spends.settle.text, *self._words())

    def sent_on(self, reply: object) -> bool:
        """Send it to the node of a cluster that another one named; return whether that was possible."""
        self._left -= 1
        return self._left >= 0 and self._store.send_on_to(reply, self.pack_with_script(), self, self.plan)

    def on_reply(self, context: Connection | None, reply: object) -> None:
        """Take the acknowledgement, if it is not that of a Redis which was replaced meanwhile."""
        if isinstance(reply, hiredis.ReplyError):
            self._store.ledger.on_refused(self, reply)
        elif context in {None, self._live()}:
            self._store.ledger.on_acknowledged(self)
        else:
            self._store.ledger.on_unsent(self)

    def on_loss(self, connection: Connection, context: object, reason: str) -> None:
        """Have it sent again: the first may have arrived, or may not."""
        del context
        self._left = REDIRECTS
        self._store.link_of(self.plan.family_keys[0]).on_trouble(connection, reason)
        self._store.ledger.on_unsent(self)

    def on_late_reply(self, connection: Connection, reply: object) -> None:
        """Take the acknowledgement; that of another Redis than the one of now is none: it has been sent there again."""
        if connection is self._live() and not isinstance(reply, hiredis.ReplyError):
            self._store.ledger.on_acknowledged(self)

    def _live(self) -> Connection | None:
        return self._store.link_of(self.plan.family_keys[0]).live

    def _words(self) -> tuple[str | int, ...]:
        one = self._reservation
        return one.plan.settle_words(one.ask, one.granted, self._settlement, self._store.now_s())
