"""Which store a configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.budgets.family import is_long
from gateway.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.config import Settings
    from gateway.stores.fallback import LossPolicy
    from gateway.stores.ledger import SpendStore


def make_store(settings: Settings, current: Callable[[], Settings] | None = None) -> SpendStore:
    """Make the store, not started: in Redis where `REDIS_URL` is set, else in this process and its `STATE_FILE`.

    Args:
        settings: Where it is, and what becomes of requests while it is lost.
        current: Returns the settings as they are after a reload, for what is said about limits; None: they
            stay, for it is only a look, and nothing is warned of that whoever serves is to know.
    """
    if settings.redis is None:
        if settings.state_file is None:
            return MemoryStore()
        from gateway.stores.memory_ledger import MemoryLedger
        from gateway.stores.state_file import StateFile  # sqlite3 is a megabyte that few need

        return MemoryStore(ledger=MemoryLedger(journal=StateFile(settings.state_file)))
    # hiredis is loaded only where it is used: the embedded store should not pay for it.
    from gateway.stores.address import ClusterAddress
    from gateway.stores.cluster import ClusterStore
    from gateway.stores.fallback import Allow, Deny, Local
    from gateway.stores.instances import Instances
    from gateway.stores.redis import RedisStore

    instances = Instances() if settings.on_store_loss == "local" else None
    loss: LossPolicy
    if instances is not None:
        loss = Local(instances, lambda: (settings if current is None else current()).all_limits)
    else:
        loss = Allow() if settings.on_store_loss == "allow" else Deny()
    timeout_s = settings.store_timeout_s
    if isinstance(settings.redis, ClusterAddress):
        return ClusterStore(settings.redis, timeout_s=timeout_s, loss=loss, instances=instances)
    long = current is not None and any(map(is_long, (*settings.budgets.each, *settings.budgets.together)))
    return RedisStore(settings.redis, timeout_s=timeout_s, loss=loss, instances=instances, is_long=long)


def what_a_restart_forgets(settings: Settings) -> str:
    """Say, for the log, what of tokens ends with this process; "" if nothing does."""
    if settings.redis is not None:
        return ""
    if not settings.token_secrets:
        return "tokens end with this process: neither TOKEN_SECRET nor REDIS_URL is set"
    if settings.state_file is None:
        return "a restart forgets which tokens were revoked: neither STATE_FILE nor REDIS_URL is set"
    return ""
