"""What is read of the ledger in Redis: of each family, what is open, and a stream of what was settled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from gateway.budgets.spending import Entry, Mark
from gateway.errors import StoreUnavailable
from gateway.stores.ledger import page_of
from gateway.stores.redis_spend import family_keys
from gateway.stores.replies import expect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.stores.link import Command
    from gateway.stores.redis import RedisStore

KEPT_S: Final = 35 * 86_400
"""How long a family is known after it last spent: as long as its ledger."""
PAGE: Final = 1000
"""Entries at once: a few milliseconds of Redis's time."""
FOUND_WITHIN: Final = 10_000
"""How many of a family's entries are looked through for one request."""
_AT_ONCE: Final = 50
SPENDERS_KEY: Final = "gateway:{global}:spenders"
_SHARED: Final = "global"
"""In whose slot of a cluster is reserved what counts for all."""


class RedisEntries:
    """Reads the ledgers of all families.

    Args:
        store: Its connections, clock and scripts.
    """

    __slots__ = ("_store",)

    def __init__(self, store: RedisStore) -> None:
        self._store = store

    async def entries(self, since_us: int, token: str | None = None, limit: int | None = None) -> list[Entry]:
        """Return what was settled since then, oldest first; see `Ledger.entries`.

        Raises:
            StoreUnavailable: Redis did not answer, or refused.
        """
        families = await self._families() if token is None else [token.partition(".")[0]]
        # Of one token's family, most may be others'.
        most = limit if token is None or limit is None else max(limit, PAGE)
        found: list[Entry] = []
        known_until_us = None
        for at in range(0, len(families), _AT_ONCE):
            one_by_one = (self._entries_of(family, since_us, most) for family in families[at : at + _AT_ONCE])
            for some, has_more in await asyncio.gather(*one_by_one):
                if has_more:
                    known_until_us = min(some[-1].at_us, known_until_us or some[-1].at_us)
                found += (entry for entry in some if _is_of(entry.token, token))
        if known_until_us is not None:
            # Of a family that has more than was read, later ones are missing.
            found = [entry for entry in found if entry.at_us <= known_until_us]
            if not found:  # there are others of the family in between
                return await self.entries(known_until_us + 1, token, limit)
        return page_of(sorted(found, key=lambda entry: entry.at_us), limit)

    async def open(self) -> list[Entry]:
        """Return what is not settled; see `Ledger.open`.

        Raises:
            StoreUnavailable: Redis did not answer, or refused.
        """
        found: list[Entry] = []
        families = await self._families()
        for at in range(0, len(families), _AT_ONCE):
            for some in await asyncio.gather(*map(self._open_of, families[at : at + _AT_ONCE])):
                found += some
        return sorted(found, key=lambda entry: (entry.began_us, entry.id))

    async def find(self, token: str, request: str) -> Entry | None:
        """Return the last entry of a request; see `Ledger.find`.

        Raises:
            StoreUnavailable: Redis did not answer, or refused.
        """
        keys = family_keys(token.partition(".")[0])
        await self._expire(keys)
        about = await self._ask(keys[0], "HGET", keys[0], request)
        if about is not None:
            entry = Entry.read(about, Mark.ASSUMED, 0)
            return entry if _is_of(entry.token, token) else None
        before = "+"
        for _ in range(FOUND_WITHIN // PAGE):
            page = await self._ask(keys[4], "XREVRANGE", keys[4], before, "-", "COUNT", PAGE)
            for one in page:
                if f'"id":"{request}"'.encode() in one[1][3]:
                    entry = _read(one)
                    if entry.id == request and _is_of(entry.token, token):
                        return entry
            if len(page) < PAGE:
                break
            before = f"({page[-1][0].decode()}"
        return None

    async def release(self, request: str) -> Entry | None:
        """Settle for nothing what is open or was assumed; see `Ledger.release`.

        Raises:
            StoreUnavailable: Redis did not answer, or refused.
        """
        for family in await self._families():
            text, *at_us = await self._release_in(family, request) or [b""]
            if text:
                # In a cluster, what it holds of a budget of all is in another slot.
                await self._release_in(_SHARED, request)
                return Entry.read(text, Mark.ASSUMED, int(at_us[0]))
        return None

    def noting(self, families: Sequence[str]) -> tuple[Command, ...]:
        """Return the commands that note that families have a ledger."""
        now_s = int(self._store.now_s())
        return (
            ("ZADD", SPENDERS_KEY, *(word for family in families for word in (now_s, family))),
            ("ZREMRANGEBYSCORE", SPENDERS_KEY, "-inf", now_s - KEPT_S),
            ("PEXPIRE", SPENDERS_KEY, KEPT_S * 1000),
        )

    async def _families(self) -> list[str]:
        families = await self._ask(SPENDERS_KEY, "ZRANGE", SPENDERS_KEY, 0, -1)
        return [family.decode() for family in families]

    async def _entries_of(self, family: str, since_us: int, limit: int | None) -> tuple[list[Entry], bool]:
        """Return what was settled in a family since then, and whether there may be more than this."""
        keys = family_keys(family)
        await self._expire(keys)
        pages: list[Any] = []
        since, has_more, most = str(max(since_us, 0)), True, min(limit or PAGE, PAGE)
        while has_more and (limit is None or len(pages) < limit):
            page = await self._ask(keys[4], "XRANGE", keys[4], since, "+", "COUNT", most)
            pages += page
            has_more = len(page) == most
            if page:
                since = f"({page[-1][0].decode()}"
        return await asyncio.to_thread(lambda: [_read(one) for one in pages]), has_more and bool(pages)

    async def _open_of(self, family: str) -> list[Entry]:
        keys = family_keys(family)
        await self._expire(keys)
        texts = await self._ask(keys[0], "HVALS", keys[0])
        return [Entry.read(text, Mark.ASSUMED, 0) for text in texts if text.startswith(b"{")]

    async def _release_in(self, family: str, request: str) -> list[bytes]:
        keys = family_keys(family)
        await self._expire(keys)
        script = self._store.spends.release.text
        reply: list[bytes] = await self._ask(keys[0], "EVAL", script, len(keys), *keys, request)
        return reply

    async def _expire(self, keys: tuple[str, ...]) -> None:
        """Enter what ended unsettled."""
        while await self._ask(keys[0], "EVAL", self._store.spends.expire.text, len(keys), *keys) == 1:
            pass

    async def _ask(self, key: str, *command: str | int) -> Any:  # noqa: ANN401 - whatever Redis answers to it
        (reply,) = await self._store.ask_of(key, command)
        expect(reply, str(command[0]))
        return reply


def _read(one: Any) -> Entry:  # noqa: ANN401 - an entry of a stream, as Redis answers
    """Read an entry that a script of ours has added.

    Raises:
        StoreUnavailable: It is somebody else's.
    """
    id_, (_, mark, _, text) = one
    try:
        return Entry.read(text, mark.decode(), int(id_.partition(b"-")[0]))
    except (TypeError, ValueError):
        raise StoreUnavailable("In Redis's ledger is an entry that is not the gateway's.") from None


def _is_of(token: str, whose: str | None) -> bool:
    """Return whether a token is this one, or made from it."""
    return whose is None or token == whose or token.startswith(f"{whose}.")
