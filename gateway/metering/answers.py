"""Reads the usage out of an answer that is one JSON text."""

from __future__ import annotations

from typing import Final

from gateway.metering.endings import list_ending
from gateway.metering.readers import KEPT_BYTES, Said, name_of, parsed
from gateway.metering.scan import Scanner
from gateway.metering.shapes import Shape, counts_of, tier_of_gemini
from gateway.tuples import new

_NAMES: Final = frozenset((b"usage", b"model", b"id", b"service_tier"))
_BEFORE_A_NAME: Final = frozenset((b"{", b",", b" ", b"\n", b"\r", b"\t"))
_GEMINI_NAMES: Final = frozenset((b"usageMetadata", b"modelVersion", b"responseId", b"error"))
_SEEN_BYTES: Final = 16
"""At the end of what has passed, to look for what is no space in."""


class JsonReader:
    """See `Reader`: keeps an answer up to `KEPT_BYTES`; scans a longer one, and keeps nothing of it.

    Gemini's streams are a list, unless asked for as events; then the last element that says its usage counts. What it
    says is all only if the list has come to its end.

    Args:
        shape: How the answer looks.
        named: Whether the answer's model and id are known already: its beginning need not be read for them.
    """

    # fmt: off
    __slots__ = (
        "_shape", "_named",
        "_kept", "_kept_bytes", "_said",  # of a short answer
        "_scanner", "_is_list", "_end", "_is_awaited", "_awaited_bytes",  # of a longer one
    )
    # fmt: on

    def __init__(self, shape: Shape, *, named: bool = False) -> None:
        self._shape = shape
        self._named = named
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._scanner: Scanner | None = None
        self._said: Said | None = None
        self._is_list = False
        self._end = b""
        self._is_awaited = False  # the end of an element, to end the list there
        self._awaited_bytes = 0

    def feed(self, content: bytes) -> bytes:
        """See `Meter`."""
        if self._scanner is not None:
            self._scanner.feed(content)
            if self._is_list:
                self._end = (self._end + content[-_SEEN_BYTES:])[-_SEEN_BYTES:]
                self._awaited_bytes += len(content) if self._is_awaited else 0
            return content
        self._kept.append(content)
        self._kept_bytes += len(content)
        if self._kept_bytes > KEPT_BYTES:
            self._scan()
        return content

    def finish(self) -> bytes:
        """See `Meter`."""
        return b""

    def cut_event(self) -> bytes | None:
        """See `Meter`: only a list may end early, between two of its elements, which are short."""
        scanner = self._scanner or self._scan()
        if not self._is_list:
            return b""
        if scanner.is_between:
            return list_ending(self._end.rstrip()[-1:])
        self._is_awaited = True
        return None if self._awaited_bytes < KEPT_BYTES else b""

    def said(self) -> Said:
        """See `Reader`."""
        if self._scanner is not None:
            members = {name.decode(): parsed(text) for name, text in self._scanner.found.items()}
            said = said_of(self._shape, members)
            return said._replace(final=False, failed="error" in members) if self._is_list else said
        if self._said is None or self._kept:
            self._said = said_of_text(self._shape, b"".join(self._kept), named=self._named)
        return self._said

    def _scan(self) -> Scanner:
        """Keep nothing of the answer from here on."""
        whole = b"".join(self._kept)
        self._kept.clear()
        self._is_list = self._shape.of_gemini and whole.lstrip().startswith(b"[")
        self._end = whole[-_SEEN_BYTES:]
        names = _GEMINI_NAMES if self._shape.of_gemini else _NAMES
        self._scanner = scanner = Scanner(names, 2 if self._is_list else 1)
        scanner.feed(whole)
        return scanner


def said_of_text(shape: Shape, text: bytes, *, named: bool) -> Said:
    """Return what a whole answer says of itself.

    Args:
        shape: How it looks.
        text: All of it, up to `KEPT_BYTES`.
        named: As of `JsonReader`.
    """
    whole = _end_of(text, shape) if named else None
    if whole is None:
        whole = parsed(text)
    if not isinstance(whole, list):
        return said_of(shape, whole)
    elements = [one for one in whole if isinstance(one, dict)]
    said = said_of(shape, next((one for one in reversed(elements) if "usageMetadata" in one), None))
    failed = any("error" in one for one in elements)
    return said._replace(final=not failed, failed=failed)


def _end_of(text: bytes, shape: Shape) -> object:
    """Read an answer from its last usage on, as nearly all that is of use is behind it; None if that is not enough.

    Inside of a string there is no quote without a backslash. Were it not the whole's own usage, more would be closed
    behind it than is opened here, and that is no JSON.
    """
    before, name, behind = text.rpartition(b'"usageMetadata"' if shape.of_gemini else b'"usage"')
    if not name or before[-1:] not in _BEFORE_A_NAME or before.find(b'"service_tier"') >= 0:
        return None
    return parsed(b"{%b%b" % (name, behind))


def said_of(shape: Shape, answer: object) -> Said:
    """Return what a whole answer says of itself; a member that is not there says nothing."""
    if not isinstance(answer, dict):
        return Said()
    get = answer.get
    if shape.of_gemini:
        usage, model, id_ = get("usageMetadata"), get("modelVersion"), get("responseId")
    else:
        usage, model, id_ = get("usage"), get("model"), get("id")
    if not isinstance(usage, dict):
        return Said(model=name_of(model), id=name_of(id_))
    told, counts = usage.get, counts_of(shape, usage)
    tier, speed, geo = get("service_tier"), told("speed"), told("inference_geo")
    if shape.of_gemini:
        tier = tier_of_gemini(told("serviceTier"))
    model, tier, speed = model and name_of(model), tier and name_of(tier), speed and name_of(speed)
    id_, geo = id_ and name_of(id_), geo and name_of(geo)
    cost = told("cost")
    if cost is not None:
        cost = cost, told("is_byok"), told("cost_details")
    elif type(ticks := told("cost_in_usd_ticks")) is int:  # x.ai's, ten billion of them a dollar
        cost = f"{ticks}e-10", None, None
    return new(Said, (counts, True, 0, False, model or "", tier or "", speed or "", id_ or "", geo or "", cost))
