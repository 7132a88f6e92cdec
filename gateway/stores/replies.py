"""What Redis answers that is an error, in words: for the log, `/readyz`, a start that fails, and refusals."""

from __future__ import annotations

import os
from typing import Final

import hiredis

from gateway.errors import StoreUnavailable

CLOCK: Final = "CLOCK"
"""What `budgets.lua` answers with, for the one who asks alone."""

_MEANINGS: Final = {
    CLOCK: "its clock and the gateway's are so far apart that a budget's day, week or month is not the same",
    "CLUSTERDOWN": "the cluster lacks a master",
    "LOADING": "it is still reading its data",
    "MASTERDOWN": "it is a replica that has lost its master",
    "MISCONF": "it cannot save its data to disk",
    "NOAUTH": "it asks for a password: redis://:PASSWORD@HOST",
    "NOPERM": "its ACL user may not do that",
    "NOREPLICAS": "too few replicas follow it: min-replicas-to-write",
    "OOM": "its memory is full: maxmemory",
    "READONLY": "it is a replica, not the master",
    "WRONGPASS": "the user or the password in REDIS_URL is not right",
}


def meaning(code: str) -> str:
    """Return what an error code means, in brackets to put behind it; nothing, where there is nothing to add."""
    found = _MEANINGS.get(code)
    return "" if found is None else f" ({found})"


def why(error: Exception) -> str:
    """Say in a few words what kind of failure it was; the whole text of an error may hold more than is wanted."""
    if isinstance(error, ConnectionError) and error.errno:
        return f"{os.strerror(error.errno)}."
    return f"{(error.strerror if isinstance(error, OSError) else None) or type(error).__name__}."


def expect(reply: object, what: str) -> None:
    """Raise StoreUnavailable if the reply to `what` is an error."""
    if isinstance(reply, hiredis.ReplyError):
        code = error_code(reply)
        raise StoreUnavailable(f"Redis answered {code} to {what}{meaning(code)}.")


def error_code(reply: object) -> str:
    """Return the first word of an error reply; the rest may quote what it was sent."""
    if not isinstance(reply, hiredis.ReplyError):
        return "something that is no verdict"
    word = str(reply).partition(" ")[0]
    return word if word.isascii() and word.isupper() and word.isalpha() else "an error"
