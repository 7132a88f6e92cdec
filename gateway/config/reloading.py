"""What of a configuration can change while the gateway runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gateway.config.settings import Settings

_FIXED: Final = {
    "listen": "GATEWAY_LISTEN",
    "workers": "GATEWAY_WORKERS",
    "tls": "GATEWAY_TLS_CERT",
    "state_file": "STATE_FILE",
    "redis": "REDIS_URL",
    "on_store_loss": "ON_STORE_LOSS",
    "store_timeout_s": "STORE_TIMEOUT",
    "access_log": "ACCESS_LOG",
    "log_level": "LOG_LEVEL",
}
"""Settings that are looked at once, at the start."""


def reloadable(old: Settings, new: Settings) -> tuple[Settings, list[str]]:
    """Return what a running gateway can go on with, and the names of the settings that it cannot change."""
    fixed = dict(_FIXED)
    if bool(old.token_secrets) is not bool(new.token_secrets):  # the store's own secret is agreed on at start
        fixed["token_secrets"] = "TOKEN_SECRET"  # noqa: S105 - a name
    left = [name for attribute, name in fixed.items() if getattr(old, attribute) != getattr(new, attribute)]
    return replace(new, **{attribute: getattr(old, attribute) for attribute in fixed}), left
