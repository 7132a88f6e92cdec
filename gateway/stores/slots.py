"""Which slot of a Redis Cluster a key is in, and what nodes say of each other's; pure.

Source: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/ (Valkey's is the same).
"""

from __future__ import annotations

import re
from binascii import crc_hqx
from itertools import count
from typing import Final, NamedTuple

SLOTS: Final = 16384

_TAG: Final = re.compile(rb"[^{]*\{([^}]+)\}")
_REDIRECT: Final = re.compile(r"(MOVED|ASK) ([0-9]{1,5}) (.*):([0-9]{1,5})")


class Share(NamedTuple):
    """A range of slots and the master that has it; `host` is empty where that is the node that said so."""

    first: int
    last: int
    host: str
    port: int


class Redirect(NamedTuple):
    """Where a node sends a command on to; for good, or (`ASK`) only this once."""

    for_good: bool
    slot: int
    host: str
    port: int


def key_slot(key: bytes) -> int:
    """Return the slot of a key: of its hash tag, if it has one."""
    tag = _TAG.match(key)
    return crc_hqx(tag[1] if tag else key, 0) % SLOTS


def probe_tag(first: int, last: int) -> str:
    """Return a hash tag whose keys are in one of the slots from `first` to `last`."""
    tags = (f"probe-{number}" for number in count())
    return next(tag for tag in tags if first <= key_slot(f"{{{tag}}}".encode()) <= last)


def read_shares(reply: object) -> list[Share]:
    """Read the reply to `CLUSTER SLOTS`.

    Raises:
        ValueError: It is no such reply, or says that nobody has any slot.
    """
    try:
        shares = [
            Share(int(first), int(last), (master[0] or b"").decode(), int(master[1]))
            for first, last, master, *_replicas in reply  # type: ignore[attr-defined]  # caught below
        ]
    except (TypeError, ValueError, AttributeError, IndexError):
        raise ValueError("a node does not say who has which slots") from None
    if not shares or not all(0 <= share.first <= share.last < SLOTS for share in shares):
        raise ValueError("a node does not know who has which slots")
    return shares


def read_redirect(error: str) -> Redirect | None:
    """Read `MOVED SLOT HOST:PORT` or `ASK SLOT HOST:PORT`; None if it is neither, or names no place."""
    found = _REDIRECT.fullmatch(error)
    if found is None or found[3] == "?":
        return None
    return Redirect(found[1] == "MOVED", int(found[2]) % SLOTS, found[3], int(found[4]))
