"""Asks sentinels where the master is: https://redis.io/docs/latest/develop/reference/sentinel-clients/

They are asked before each connection that is made, and every second beside the checks: a master that they have
replaced may not know yet, and would go on counting apart from the new one.
"""

from __future__ import annotations

import asyncio
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from gateway.errors import StoreUnavailable
from gateway.stores.link import ask, log_in
from gateway.stores.pipeline import dial
from gateway.stores.replies import why

if TYPE_CHECKING:
    from gateway.stores.address import RedisAddress, SentinelAddress
    from gateway.stores.pipeline import Connection


OTHERS_S: Final = 0.05
"""How long the other sentinels get when one has answered. One that hangs must not use up the time that there is."""
NEWS_S: Final = 10.0
"""How long one who has not heard of a failover is not believed: they tell each other every two seconds."""


class Whereabouts:
    """Finds the master, by the newest that those sentinels know who answer; a `Locate`.

    After a failover, they hear of the new master one after the other. One who has not heard yet does not lead back to
    the old one, which may still take writes and count apart.

    Args:
        address: The sentinels.
    """

    __slots__ = ("_address", "_heard_s", "_newest")

    def __init__(self, address: SentinelAddress) -> None:
        self._address = address
        self._newest = -1
        self._heard_s = float("-inf")

    async def __call__(self, within_s: float) -> RedisAddress:
        """Return where the master is.

        Args:
            within_s: The longest that it takes, in seconds.

        Raises:
            StoreUnavailable: None of them knows, with a reason.
        """
        loop = asyncio.get_running_loop()
        master, epoch = await _newest_of(self._address, loop.time() + within_s)
        if epoch < self._newest and loop.time() < self._heard_s + NEWS_S:
            raise StoreUnavailable("The sentinels that answer have not heard of the last failover yet.")
        self._newest, self._heard_s = epoch, loop.time()
        return master


async def _newest_of(address: SentinelAddress, ends_s: float) -> tuple[RedisAddress, int]:
    tasks = {asyncio.ensure_future(_ask_one(one, address, ends_s)) for one in address.sentinels}
    pending = tasks
    found: dict[RedisAddress, int] = {}
    reason = "They did not answer in time."
    try:
        while pending and (left_s := ends_s - asyncio.get_running_loop().time()) > 0:
            wait_s = min(left_s, OTHERS_S) if found else left_s
            done, pending = await asyncio.wait(pending, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            for task in done:
                try:
                    master, epoch = task.result()
                    found[master] = max(epoch, found.get(master, -1))
                except StoreUnavailable as error:
                    reason = error.detail
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not found:
        raise StoreUnavailable(f"No sentinel knows the master of {address.service!r}: {reason}")
    return max(found.items(), key=itemgetter(1))


async def _ask_one(sentinel: RedisAddress, address: SentinelAddress, ends_s: float) -> tuple[RedisAddress, int]:
    connection: Connection | None = None
    within_s = ends_s - asyncio.get_running_loop().time()
    try:
        connection = await dial(sentinel, within_s, _on_end)
        # Many sentinels have no password where their Redis has one; if this one has, the questions are refused.
        await log_in(connection, sentinel)
        place, fields = await ask(
            connection,
            ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service),
            ("SENTINEL", "MASTER", address.service),
        )
        if isinstance(place, list) and isinstance(fields, list):
            known = dict(zip(fields[::2], fields[1::2], strict=False))
            return address.master(place[0].decode(), int(place[1])), int(known.get(b"config-epoch", 0))
    except (OSError, IndexError, ValueError) as error:
        raise StoreUnavailable(why(error)) from error
    finally:
        if connection is not None:
            connection.end("The sentinel was asked.")
    raise StoreUnavailable("They have no such service." if place is None else "They refuse to say.")


def _on_end(_connection: Connection, _reason: str) -> None:
    """Nothing: the connection is this function's own."""
