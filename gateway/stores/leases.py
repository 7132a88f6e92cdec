"""The places in flight that this process holds in Redis: taken with a check, renewed together, given back one by one.

A lease is known by an id of this process's making. What is held here is renewed in batches, a few commands for all of
it, long before it ends, and first of all on a new connection: a Redis that has lost its data learns of it before the
next check. What ends while Redis is out of reach, or was on its way as it went, is given back when it is back.
"""

from __future__ import annotations

import asyncio
import os
from itertools import count
from typing import TYPE_CHECKING, Final

import hiredis

from gateway.stores.link import KEY_TROUBLE, NOBODY, pack
from gateway.stores.replies import error_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.stores.link import Link
    from gateway.stores.pipeline import Connection, Recipient

RENEWALS: Final = 3
"""In the time of a lease: two may fail."""
_BATCH: Final = 500
"""Leases in one command: Redis is kept for a fraction of a millisecond."""
_FOR_GOOD: Final = KEY_TROUBLE | {"NOPERM"}
"""Errors that a lease would have again: it has to wait for its end. What else refuses it refuses checks as well."""


class Leases:
    """What this process holds; the recipient of the replies to what gives it back.

    Args:
        link_of: Says the way to whoever has a key. The keys of one lease are all in one place.
        send: Sends a command whose reply nobody waits for.
        send_on: Sends a command to the node that another one named; returns whether that is possible.
        lease_us: How long a lease lasts, in microseconds.
        renew_script: What renews leases there.
    """

    # fmt: off
    __slots__ = (
        "_held", "_instance", "_lease_us", "_link_of", "_numbers", "_owed", "_renew_script", "_send", "_send_on",
        "_timer", "_told",
    )
    # fmt: on

    def __init__(
        self,
        link_of: Callable[[str], Link],
        send: Callable[[Connection, bytes], None],
        send_on: Callable[[object, bytes, Recipient], bool],
        lease_us: int,
        renew_script: str,
    ) -> None:
        self._link_of = link_of
        self._send = send
        self._send_on = send_on
        self._lease_us = lease_us
        self._renew_script = renew_script
        self._instance = os.urandom(6).hex().encode()
        self._numbers = count(1)
        self._held: dict[bytes, tuple[str, ...]] = {}
        self._owed: dict[bytes, tuple[str, ...]] = {}
        self._told: dict[Link, Connection] = {}  # which connections have heard of what is held
        self._timer: asyncio.TimerHandle | None = None

    def next_id(self) -> bytes:
        """Return an id that no other lease has had, always of the same length."""
        return b"%s%012x" % (self._instance, next(self._numbers))

    def hold(self, lease: bytes, keys: tuple[str, ...]) -> None:
        """Keep a lease that was taken on the places of these keys, until `let_go`."""
        if not keys:  # only shadows let it pass
            return
        self._held[lease] = keys
        if self._timer is None:
            self._wait()

    def let_go(self, lease: bytes) -> None:
        """Give a lease back, if it is still held: it is given back once."""
        keys = self._held.pop(lease, None)
        if keys is None:
            return
        connection = self._link_of(keys[0]).live
        if connection is None or connection.congested:
            self._owed[lease] = keys
        else:
            self._give_back(connection, lease, keys)

    def tell(self, link: Link, connection: Connection) -> None:
        """Renew what is held on a connection that has not heard of it yet, before anything else is asked there."""
        if connection is not self._told.get(link):
            self._renew(link, connection)

    def tell_again(self) -> None:
        """Have each connection told before its next check: who has which keys has changed."""
        self._told.clear()

    def renew(self) -> None:
        """Renew all that is held, where Redis is there."""
        for link in {self._link_of(keys[0]) for keys in (*self._held.values(), *self._owed.values())}:
            connection = link.live
            if connection is not None and not connection.congested:
                self._renew(link, connection)

    async def close(self) -> None:
        """Give everything back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for lease in tuple(self._held):
            self.let_go(lease)
        self.renew()
        # Commands leave at the end of the loop's turn.
        await asyncio.sleep(0)

    def give_back_late(self, connection: Connection, lease: bytes, keys: Iterable[str]) -> None:
        """Give back a lease that nobody waits for any more, on the connection that told of it."""
        self._give_back(connection, lease, keys)

    def owe(self, lease: bytes, keys: tuple[str, ...]) -> None:
        """Have a lease given back on the next connection, or with the next renewal; it may never have been taken."""
        self._owed[lease] = (*self._owed.get(lease, ()), *keys)

    def _give_back(self, connection: Connection, lease: bytes, keys: Iterable[str]) -> None:
        for key in keys:
            packed = pack("ZREM", key, lease)
            connection.send(packed, self, (lease, (key,), packed))

    def on_reply(self, context: tuple[bytes, tuple[str, ...], bytes], reply: object) -> None:
        """Give a lease back elsewhere, or once more, if it is not taken back."""
        if isinstance(reply, hiredis.ReplyError) and error_code(reply) not in _FOR_GOOD:
            lease, keys, packed = context
            if not self._send_on(reply, packed, NOBODY):
                self.owe(lease, keys)

    def on_loss(self, connection: Connection, context: tuple[bytes, tuple[str, ...], bytes], reason: str) -> None:
        """Give a lease back once more, on the next connection or with the next renewal."""
        lease, keys, _ = context
        self.owe(lease, keys)

    def on_late_reply(self, connection: Connection, reply: object) -> None:
        """Do nothing: it is given back twice."""

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._lease_us / 1e6 / RENEWALS, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self.renew()
        if self._held or self._owed:
            self._wait()

    def _renew(self, link: Link, connection: Connection) -> None:
        self._told = {one: told for one, told in self._told.items() if told.end_reason is None}
        self._told[link] = connection
        for lease, keys in tuple(self._owed.items()):
            if self._link_of(keys[0]) is link:
                del self._owed[lease]
                self._give_back(connection, lease, keys)
        by_key: dict[str, list[bytes]] = {}
        for lease, keys in self._held.items():
            if self._link_of(keys[0]) is link:
                for key in keys:
                    by_key.setdefault(key, []).append(lease)
        for key, leases in by_key.items():
            for at in range(0, len(leases), _BATCH):
                batch = leases[at : at + _BATCH]
                self._send(connection, pack("EVAL", self._renew_script, 1, key, self._lease_us, *batch))
