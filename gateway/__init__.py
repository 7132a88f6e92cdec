"""A rate-limiting gateway for costly APIs, to embed in an asyncio program.

from gateway import Config, Gateway

async with Gateway(Config(target_api_url="https://api.openai.com/v1", rate_limit="60/minute")) as gateway:
    token = gateway.issue_token(name="worker")
    ...  # clients use gateway.url + "/api" as base URL and the token as key

Or its limits alone, for requests that the program sends itself:

from gateway import Admission

async with Admission(rate_limit="60/minute", redis_url="redis://127.0.0.1:6379/0") as admission:
    async with await admission.admit("worker-7"):  # raises RateLimited
        ...
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # typing is a megabyte of the supervisor's, which needs nothing else of it
if TYPE_CHECKING:
    from gateway.config import Config
    from gateway.errors import (
        ConcurrencyLimited,
        ConfigError,
        GatewayError,
        RateLimited,
        StoreUnavailable,
        TokenRevoked,
    )
    from gateway.library import Admission, Grant
    from gateway.server import Gateway

__all__ = [
    "Admission",
    "ConcurrencyLimited",
    "Config",
    "ConfigError",
    "Gateway",
    "GatewayError",
    "Grant",
    "RateLimited",
    "StoreUnavailable",
    "TokenRevoked",
]

_HOMES = {
    "Admission": "gateway.library",
    "Config": "gateway.config",
    "Gateway": "gateway.server",
    "Grant": "gateway.library",
}


def __getattr__(name: str) -> object:
    # Looked up on first use, so that `gateway healthcheck` does not load a server (PEP 562).
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "gateway.errors")), name)
