"""What Redis's error codes mean to whoever runs it, in a few words: for the log, `/readyz` and the end of a start."""

from __future__ import annotations

from typing import Final

_MEANINGS: Final = {
    "CLUSTERDOWN": "the cluster lacks a master",
    "LOADING": "it is still reading its data",
    "MASTERDOWN": "it is a replica that has lost its master",
    "MISCONF": "it cannot save its data to disk",
    "NOAUTH": "it asks for a password: redis://:PASSWORD@HOST",
    "NOPERM": "its ACL user may not do that",
    "OOM": "its memory is full: maxmemory",
    "READONLY": "it is a replica, not the master",
    "WRONGPASS": "the user or the password in REDIS_URL is not right",
}


def meaning(code: str) -> str:
    """Return what an error code means, in brackets to put behind it; nothing, where there is nothing to add."""
    found = _MEANINGS.get(code)
    return "" if found is None else f" ({found})"
