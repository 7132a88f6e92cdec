"""The register in Redis; see `lines`."""

from __future__ import annotations

import time
from importlib import resources
from typing import TYPE_CHECKING, Final

from gateway.errors import StoreUnavailable
from gateway.stores.lines import MAX_LINES, Noted
from gateway.stores.link import pack
from gateway.stores.replies import expect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.stores.link import Command, Link
    from gateway.stores.pipeline import Connection

NOTE_SCRIPT: Final = resources.files("gateway.stores").joinpath("note.lua").read_text("utf-8")

_TOKENS_KEY: Final = "gateway:{global}:tokens"
_CHILDREN_KEY: Final = "gateway:{global}:tokens-made"
_REVOKED_KEY: Final = "gateway:{global}:tokens-revoked"
_KEPT_S: Final = 10 * 366 * 86_400
"""No line lasts longer, and every key expires."""


class RedisLines:
    """Lines in Redis, shared by all gateways on it.

    Args:
        link_of: Finds the way to a key.
        send: Sends a command whose reply nobody waits for.
        ask_of: Sends commands about a key and returns the replies (`RedisStore.ask_of`).
        now_s: Seconds since the epoch.
    """

    __slots__ = ("_ask_of", "_link_of", "_now_s", "_send")

    def __init__(
        self,
        link_of: Callable[[str], Link],
        send: Callable[[Connection, bytes], None],
        ask_of: Callable[..., Awaitable[list[object]]],
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._link_of = link_of
        self._send = send
        self._ask_of = ask_of
        self._now_s = now_s

    def note(self, line: str, ends_s: int, *, is_child: bool) -> None:
        """Note a token; while Redis cannot be reached, nothing is noted."""
        connection = self._link_of(_TOKENS_KEY).live
        if connection is not None and not connection.congested:
            self._send(connection, pack(*self._noting(_CHILDREN_KEY if is_child else _TOKENS_KEY, line, ends_s)))

    async def note_revoked(self, token_id: str, lives_s: int) -> None:
        """Note that a token is revoked.

        Raises:
            StoreUnavailable: Redis did not answer, or refused.
        """
        noting = self._noting(_REVOKED_KEY, token_id, int(self._now_s()) + lives_s)
        (reply,) = await self._ask_of(_REVOKED_KEY, noting)
        expect(reply, "the script")

    async def noted(self) -> Noted:
        """Return what is known.

        Raises:
            StoreUnavailable: Redis did not answer, or refused.
        """
        after = f"({int(self._now_s())}"
        keys = (_TOKENS_KEY, _CHILDREN_KEY, _REVOKED_KEY)
        replies = await self._ask_of(_TOKENS_KEY, *(("ZREVRANGEBYSCORE", key, "+inf", after) for key in keys))
        found: list[list[str]] = []
        for reply in replies:
            expect(reply, "ZREVRANGEBYSCORE")
            if not isinstance(reply, list):
                raise StoreUnavailable("Redis answered something that is no register.")
            found.append([one.decode() for one in reply])
        issued, made, revoked = found
        return Noted(issued + made, frozenset(revoked))

    def _noting(self, key: str, line: str, ends_s: int) -> Command:
        return ("EVAL", NOTE_SCRIPT, 1, key, ends_s, line, int(self._now_s()), MAX_LINES, _KEPT_S)
