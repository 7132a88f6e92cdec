"""The ledger of a running gateway, as an admin reads it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp

from gateway.budgets.told import read_told
from tests.kit.upstream import soon

if TYPE_CHECKING:
    from gateway.budgets.spending import Entry

_LOOK_S = 0.01


async def held(url: str, admin_key: str, count: int) -> list[Entry]:
    """Wait until so many requests are settled and none is open; return their entries, oldest first.

    Args:
        url: The gateway's.
        admin_key: Its key.
        count: How many there have to be; more are returned as well.
    """
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {admin_key}"}) as session:
        return await soon(_look(session, f"{url}/admin/ledger", count))


async def _look(session: aiohttp.ClientSession, url: str, count: int) -> list[Entry]:
    while True:
        async with session.get(url, raise_for_status=True) as answer:
            page: dict[str, Any] = await answer.json()
        if len(page["entries"]) >= count and not page["open"]:
            return [read_told(members) for members in page["entries"]]
        # Nobody tells of it.
        await asyncio.sleep(_LOOK_S)
