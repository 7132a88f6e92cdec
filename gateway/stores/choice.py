"""Which store a configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.stores.memory import MemoryStore

if TYPE_CHECKING:
    from gateway.config import Settings
    from gateway.stores import Store


def make_store(settings: Settings) -> Store:
    """Make the store, not started: in Redis where `REDIS_URL` is set, else in this process."""
    if settings.redis is None:
        return MemoryStore()
    # hiredis is loaded only where it is used: the embedded store should not pay for it.
    from gateway.stores.redis import RedisStore

    return RedisStore(settings.redis, timeout_s=settings.store_timeout_s)
