"""The Redis store with budgets, as a store under test."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.budgets.spending import LEASE_US
from gateway.stores.redis import RedisStore
from tests.kit.stores import CLOCK_KEY, CLOCK_RENEW_SCRIPT, CLOCK_SCRIPT, CLOCK_SPENDS, TIMEOUT_S, connect

if TYPE_CHECKING:
    import redis

    from gateway.stores.address import RedisAddress
    from tests.kit.spending import Spending


class RedisSpending:
    """RedisStore on a server, with scripts that take the time from a key."""

    lease_us: int | None = LEASE_US
    reopens = False
    """It does, but nobody says that the process before is gone: its leases end."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        self._store: RedisStore | None = None
        self._control: redis.Redis | None = None
        self._now_us = 0

    @property
    def _started(self) -> RedisStore:
        assert self._store is not None
        return self._store

    async def fresh(self) -> Spending:
        if self._control is None:
            self._control = connect(self._address)
        if self._store is not None:
            await self.settled()  # what is told again of the last example must not come to this one
        self._control.flushall()
        if self._store is None:
            self._store = RedisStore(
                self._address,
                timeout_s=TIMEOUT_S,
                script=CLOCK_SCRIPT,
                renew_script=CLOCK_RENEW_SCRIPT,
                spends=CLOCK_SPENDS,
                now_s=lambda: self._now_us / 1e6,
            )
            await self._store.start()
            stop_renewing(self._store)
        self._store.ledger._held.clear()
        self._store.ledger._noted.clear()
        self._store.ledger._recent.clear()
        return self._store

    async def reopen(self) -> Spending:
        raise AssertionError("see `reopens`")

    async def set_clock(self, now_us: int) -> None:
        assert self._control is not None
        await self.settled()
        self._now_us = now_us
        self._control.set(CLOCK_KEY, now_us)

    async def settled(self) -> None:
        await self._started.ping()

    async def renew(self) -> None:
        store = self._started
        assert store.link.live is not None
        store.ledger.tell_again()
        store.ledger.tell(store.link, store.link.live)
        await store.ping()

    def kill(self, request: str) -> None:
        self._started.ledger._held.pop(request)

    def forget(self, request: str) -> None:
        self._started.ledger._held.pop(request, None)

    async def close(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._store is not None:
            await self._store.close()
            self._store = None


def stop_renewing(store: RedisStore) -> None:
    """Have nothing renewed by itself: leases last as long as the test's clock says, and that one jumps."""
    store.ledger._timer = asyncio.get_running_loop().call_later(86_400, store.ledger.renew)
