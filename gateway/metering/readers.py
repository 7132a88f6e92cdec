"""What a reader of an answer's content finds out, whichever form the content has."""

from __future__ import annotations

import json
from json.scanner import make_scanner
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from gateway.metering.rates import Counts

KEPT_BYTES: Final = 64 * 1024
"""How much of an answer is kept to be read as a whole: of its JSON, or of one event."""
MAX_ID_CHARACTERS: Final = 128

_scan: Final = make_scanner(json.JSONDecoder())  # type: ignore[arg-type]  # typeshed errs
_SPACE: Final = " \t\n\r"


class Said(NamedTuple):
    """What an answer says of itself.

    Args:
        counts: What has been used; None: it does not say, or nothing that could be.
        final: Whether that is all: a stream may say it as it goes.
        text_bytes: In events: of the text that has passed, since it last said what has been used if that is not final;
            no fewer than there are tokens in it.
        failed: In events: whether one of them is an error, or none behind the last text says what has been used.
        model: As the answer names it; "" if it does not.
        tier: Its `service_tier`; "" if it has none.
        speed: Its usage's `speed`; likewise.
        id: Its own id; likewise.
        geo: Its usage's `inference_geo`; likewise.
        cost: Its usage's `cost`, as JSON has it, and what it says of that.
    """

    counts: Counts | None = None
    final: bool = False
    text_bytes: int = 0
    failed: bool = False
    model: str = ""
    tier: str = ""
    speed: str = ""
    id: str = ""
    geo: str = ""
    cost: tuple[object, object, object] | None = None


class Reader(Protocol):
    """Takes an answer's content as it passes, decoded."""

    def feed(self, content: bytes) -> bytes:
        """See `Meter.feed`."""
        ...

    def finish(self) -> bytes:
        """See `Meter.finish`."""
        ...

    def said(self) -> Said:
        """Return what is known so far."""
        ...

    def cut_event(self) -> bytes | None:
        """See `Meter.cut_event`."""
        ...


def parsed(text: bytes) -> object:
    """Return a JSON text's value; None if it is not JSON, or not to be read without harm."""
    try:
        plain = text.decode()
        if not plain.startswith("{"):
            plain = plain.lstrip(_SPACE)
        value, end = _scan(plain, 0)  # quicker than `json.loads`, which looks for space first
        return value if end == len(plain) or not plain[end:].strip(_SPACE) else None
    except (ValueError, RecursionError, StopIteration):  # of numbers with thousands of digits as well
        return None


def name_of(value: object) -> str:
    """Return a name that an answer gives; "" if it is no text, or cannot be written to a log."""
    if type(value) is str and len(value) <= MAX_ID_CHARACTERS and value.isprintable():
        return value
    return ""
