"""Who takes the replies of a cluster's nodes that may name another node in place of an answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import hiredis

from gateway.errors import StoreUnavailable
from gateway.stores.link import NOBODY
from gateway.stores.replies import error_code

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from gateway.stores import Waiter
    from gateway.stores.cluster import ClusterStore
    from gateway.stores.pipeline import Connection
    from gateway.stores.redis_plan import RedisPlan


_Answer = TypeVar("_Answer")


class Follower:
    """The recipient of replies to commands that nobody waits for: a node that has their keys no more sends them on."""

    __slots__ = ("_store",)

    def __init__(self, store: ClusterStore) -> None:
        self._store = store

    def on_reply(self, packed: bytes, reply: object) -> None:
        """Send the command to the node that this one named."""
        if isinstance(reply, hiredis.ReplyError) and error_code(reply) in {"MOVED", "ASK"}:
            self._store.send_on_to(reply, packed, NOBODY)

    def on_loss(self, connection: Connection, packed: bytes, reason: str) -> None:
        """Do nothing: it ends by itself."""

    def on_late_reply(self, connection: Connection, reply: object) -> None:
        """Do nothing."""


class SentOn:
    """The recipient of the reply to a check that another node sent on, with a lease of its own."""

    __slots__ = ("_lease", "_left", "_plan", "_store")

    def __init__(self, store: ClusterStore, plan: RedisPlan, lease: bytes, left: int) -> None:
        self._store = store
        self._plan = plan
        self._lease = lease
        self._left = left

    def on_reply(self, waiter: Waiter, reply: object) -> None:
        """Tell the verdict, or send the check on once more."""
        if isinstance(reply, hiredis.ReplyError) and error_code(reply) in {"MOVED", "ASK"}:
            self._store.send_on(self._plan, waiter, reply, self._left)
        else:
            self._plan.on_reply(waiter, reply)

    def on_loss(self, connection: Connection, waiter: Waiter, reason: str) -> None:
        """Tell the loss."""
        self._plan.asked_with(self._lease).on_loss(connection, waiter, reason)

    def on_late_reply(self, connection: Connection, reply: object) -> None:
        """Give back what was charged."""
        self._plan.on_late_reply(connection, reply)


async def first_answer(asked: Sequence[Coroutine[None, None, _Answer]], within_s: float) -> _Answer:
    """Return what the first of several nodes answers.

    Raises:
        StoreUnavailable: None did in time, with a reason.
    """
    tasks = [asyncio.ensure_future(one) for one in asked]
    reason = "No node was named."
    try:
        for answer in asyncio.as_completed(tasks, timeout=within_s):
            try:
                return await answer
            except StoreUnavailable as error:
                reason = error.detail
    except TimeoutError:
        reason = "No node answered in time."
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    raise StoreUnavailable(reason)
