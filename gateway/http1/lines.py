"""Field lines from bytes: each checked once, and known by its bytes from then on.

The same app sends the same lines over and over. The memory of them is bounded, and a name whose values are never the
same twice is no longer remembered.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.http1 import fields
from gateway.http1.fields import (
    API_KEY,
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    DATE,
    EXPECT,
    HOST,
    PLAIN,
    PROXY_AUTHORIZATION,
    TRAILER,
)
from gateway.http1.gate import TOKEN, is_host
from gateway.http1.message import MAX_LINE_BYTES

_FIELD_LINE: Final = re.compile(TOKEN + rb":(?: (?![ \t])[\t \x21-\x7e\x80-\xff]++(?<![ \t]))?+")
# One spelling of a length, so that what goes on is what was counted; h11 reads the others and they are rewritten.
_LENGTH: Final = re.compile(rb"0|[1-9][0-9]{0,17}")

_MAX_LINES: Final = 2048
MAX_LINE_REMEMBERED: Final = 256  # bytes; with _MAX_LINES this bounds the memory to about 0.7 MB
_MAX_VALUES_A_NAME: Final = 64
_MAX_NAMES: Final = 512

Meaning = tuple[int, bytes]
"""A kind of `fields`, and the value as far as the reader of a head needs it."""
_IS_PLAIN: Final[Meaning] = (PLAIN, b"")
_PASSED_ON: Final = frozenset((CONTENT_LENGTH, DATE, EXPECT, TRAILER))


class NotCanonical(Exception):
    """The fast path does not take this head."""


class LineMemory:
    """Field lines that were checked before, and what each means. Bounded.

    Args:
        kinds: What the field names mean, lower-cased, on this side.
    """

    __slots__ = ("_changing", "_kinds", "_values_left", "known")

    def __init__(self, kinds: dict[bytes, int]) -> None:
        self._kinds = kinds
        self.known: dict[bytes, Meaning] = {}
        self._values_left: dict[bytes, int] = {}
        # Plain names, as spelled, whose values are never the same twice: request ids, say.
        self._changing: set[bytes] = set()

    def sort(self, lines: list[bytes]) -> tuple[list[bytes], list[Meaning]]:
        """Tell the lines to pass on from what they and the others mean.

        Args:
            lines: A head's; the first is not looked at, and its place among those passed on is left free.

        Raises:
            NotCanonical: See `learn`.
        """
        known, learn = self.known.get, self.learn
        kept = [b""]
        keep = kept.append
        special: list[Meaning] = []
        for line in lines[1:]:
            meaning = known(line) or learn(line)
            if meaning is _IS_PLAIN:
                keep(line)
            else:
                special.append(meaning)
                if meaning[0] in _PASSED_ON:
                    keep(line)
        return kept, special

    def kind(self, line: bytes) -> int:
        """Say what kind of field a line is that `sort` has taken."""
        return self._kinds.get(line.partition(b":")[0].lower(), PLAIN)

    def learn(self, line: bytes) -> Meaning:
        """Check a line and return what it means.

        Raises:
            NotCanonical: It is malformed, too long, or legal in a spelling that h11 should read.
        """
        name, colon, value = line.partition(b": ")
        changing = name in self._changing
        # Letters and digits alone, as ids are, need no pattern.
        if changing and value.isalnum() and len(line) <= MAX_LINE_BYTES:
            return _IS_PLAIN
        if not _FIELD_LINE.fullmatch(line) or len(line) > MAX_LINE_BYTES:
            raise NotCanonical
        if changing:
            return _IS_PLAIN
        if not colon:
            name = line[:-1]
        lowered = name.lower()
        kind = self._kinds.get(lowered, PLAIN)
        meaning = _IS_PLAIN if kind == PLAIN else (kind, _checked_value(kind, lowered, value))
        if len(line) <= MAX_LINE_REMEMBERED:
            self._remember(line, name, meaning)
        return meaning

    def _remember(self, line: bytes, name: bytes, meaning: Meaning) -> None:
        if len(self.known) >= _MAX_LINES or len(self._values_left) >= _MAX_NAMES:
            self.known.clear()
            self._values_left.clear()
            self._changing.clear()
        values_left = self._values_left.get(name, _MAX_VALUES_A_NAME)
        if values_left > 0:
            self._values_left[name] = values_left - 1
            self.known[line] = meaning
        elif meaning is _IS_PLAIN:
            self._changing.add(name)


def _checked_value(kind: int, name: bytes, value: bytes) -> bytes:
    if kind in (AUTHORIZATION, PROXY_AUTHORIZATION):
        return name + b":" + (fields.credential(value) or b"")
    if kind == API_KEY:
        return name + b":" + value
    if kind == CONNECTION:
        return value.lower()
    if kind == CONTENT_LENGTH and not _LENGTH.fullmatch(value):
        raise NotCanonical
    if kind == HOST and not is_host(value):
        raise NotCanonical
    return value
