"""`LOOP_GUARD`: what tells one request from another, and what people are told of one that repeats."""

from __future__ import annotations

import hashlib
import logging
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gateway.errors import LoopDetected
    from gateway.proxy.exchange import Exchange

MARK_BYTES: Final = 16
SAMPLE_CHARACTERS: Final = 120
"""Of a body, so much is shown: the begin of a prompt, or the name of a model."""
PATH_CHARACTERS: Final = 200

_LOOKED_AT_BYTES: Final = 512
"""So much is looked at for secrets: one that begins in what is shown is seen as a whole, or is long in any case."""
_SECRETS: Final = re.compile(
    r"""(?ax)
    (?<=["'])(?P<member>[\w.-]{0,30}(?i:key|token|secret|passw|credential|authorization|cookie)[\w.-]{0,30}["']\s*:\s*["'])[^"']*
    | (?P<form>(?i:key|token|secret|passw(?:or)?d|credential)s?=)[^&\s"']+
    | (?P<scheme>(?i:bearer|basic)\s+)[\w.~+/=-]+
    | (?:sk|pk|rk|ak|key|gsk|xai|pplx|hf|r8|glpat|gh[a-z]|github_pat|xox[a-z])[-_][\w-]{8,}
    | (?:AKIA|AIza)[\w-]{12,}
    | [0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}
    | (?=[a-zA-Z_]{0,50}[0-9])\w{20,}  # what is long and no word
    | (?=[a-z0-9+/]{0,50}[A-Z])(?=[A-Z0-9+/]{0,50}[a-z])(?=[a-zA-Z+/]{0,50}[0-9])[\w+/]{24,}  # base64
    """
)
_MASKED: Final = "***"
_UNPRINTABLE: Final = re.compile(r"[^ -~]")

_log = logging.getLogger("gateway.guards")


def mark_of(target: str, method: bytes, path: bytes, body: bytes) -> str:
    """Return what two requests have in common that are the same, in letters and digits.

    Args:
        target: The target's name.
        method: The request's.
        path: Likewise, behind the target's prefix and with its query.
        body: All of its content.
    """
    # No method or path has a NUL in it.
    hashed = hashlib.blake2b(b"%b\0%b\0%b\0" % (target.encode(), method, path), digest_size=MARK_BYTES)
    hashed.update(body)
    return hashed.hexdigest()


def shown(content: bytes, characters: int) -> str:
    """Return the begin of what a client sent, for people: printable ASCII, and nothing that looks like a secret."""
    text = content[:_LOOKED_AT_BYTES].decode("latin-1")
    text = _SECRETS.sub(lambda found: f"{found[found.lastgroup or 0] if found.lastgroup else ''}{_MASKED}", text)
    return _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)[:characters]


def note(exchange: Exchange, mark: str, body: bytes, error: LoopDetected) -> LoopDetected:
    """Note that a request is refused because it repeats, and log it if that has just begun.

    Args:
        exchange: The request's.
        mark: See `mark_of`.
        body: All of its content.
        error: The refusal.

    Returns:
        The refusal, which says what repeats.
    """
    context, subject, head = exchange.context, exchange.subject, exchange.head
    assert subject is not None  # noqa: S101 - nobody else has been counted
    loop = context.metrics.on_repeated(subject.id, mark, context.clock.wall_s, quiet_s=error.window_s)
    if loop.refused == 1:
        path = context.route.path_of(head.target).partition(b"?")[0] or b"/"
        loop.target = context.route.name
        loop.request = f"{head.method.decode('latin-1')} {shown(path, PATH_CHARACTERS)}"
        loop.body = shown(body, SAMPLE_CHARACTERS)
        often = (error.quota, error.window_s, loop.body or "no body")
        told = "token %s repeats %s at the target %s, more than %d times in %d s (LOOP_GUARD): %s"
        _log.warning(told, subject.id, loop.request, loop.target, *often)
    return error.naming(loop.request)
