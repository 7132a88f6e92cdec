"""Finds members of a JSON text that is too long to be kept, as it passes."""

from __future__ import annotations

import re
from typing import Final

MAX_VALUE_BYTES: Final = 16 * 1024
"""How long a member's object may be to be kept; that of a usage is 200 to 1000 bytes."""
_MAX_CARRIED: Final = 1024
"""How much of a piece is put before the next one, where a string begins that does not end: those looked for do."""

_QUOTE: Final = 0x22
_BRACE: Final = 0x7B

# A string, whole or as far as it goes, or a bracket.
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?P<end>"|\\?\Z)|[{}\[\]]', re.DOTALL)
_REST: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+(?P<end>"|\\?\Z)', re.DOTALL)


class Scanner:
    """Reads a JSON text in pieces, split anywhere, and keeps the last members with certain names at one depth.

    Names inside of strings, and inside of other objects than those at this depth, are not among them.

    Args:
        names: `{b"usage", b"model"}`.
        depth: Of the objects whose members are looked for: 1 for the text's own; of those in a list, one more.

    Attributes:
        found: The JSON texts of members that are objects or strings, by name.
    """

    # fmt: off
    __slots__ = (
        "_captured", "_carried", "_depth", "_end", "_escaped", "_from", "_held", "_in_string", "_key", "_names",
        "found",
    )
    # fmt: on

    def __init__(self, names: frozenset[bytes], depth: int) -> None:
        self.found: dict[bytes, bytes] = {}
        self._names = names
        self._held = depth
        self._depth = 0
        self._in_string = self._escaped = False
        self._carried = b""
        self._key = b""  # the member whose value comes now, if it is one of those looked for
        self._captured: bytearray | None = None  # its value so far, if that is an object
        self._end = 0  # where the last string of this depth ended, in the piece
        self._from = 0  # where the part of the captured object that is in the piece begins

    @property
    def is_between(self) -> bool:
        """Whether nothing is open but the text's own list or object."""
        return self._depth == 1 and not self._in_string

    def feed(self, piece: bytes) -> None:
        """Take the next piece."""
        if self._carried:
            piece, self._carried = self._carried + piece, b""
        self._from = 0
        self._end = at = self._end_of_string(piece) if self._in_string else 0
        for token in _TOKEN.finditer(piece, at):
            first = piece[token.start()]
            if first == _QUOTE:
                if token["end"] != b'"':
                    if self._captured is None and token.end() - token.start() < _MAX_CARRIED:
                        self._carried = piece[self._seen_again_from(piece, token.start()) :]
                        return
                    self._in_string, self._escaped = True, token["end"] == b"\\"
                    break
                if self._depth == self._held and self._captured is None:
                    self._on_string(piece, token.start(), token.end())
            elif first in b"{[":
                self._on_open(piece, token.start())
            else:
                self._on_close(piece, token.end())
        if self._captured is not None:
            self._keep(piece[self._from :])
        elif self._key and not self._in_string:
            self._carry_key(piece)
        elif self._key:
            self._key = b""

    def _on_string(self, piece: bytes, start: int, end: int) -> None:
        if self._key and self._is_value(piece, start):
            self.found[self._key], self._key = piece[start:end], b""
        else:
            name = piece[start + 1 : end - 1]
            self._key = name if name in self._names else b""
        self._end = end

    def _on_open(self, piece: bytes, start: int) -> None:
        if self._captured is None:
            if self._key and piece[start] == _BRACE and self._is_value(piece, start):
                self._captured, self._from = bytearray(), start
            else:
                self._key = b""
        self._depth += 1

    def _on_close(self, piece: bytes, end: int) -> None:
        self._depth -= 1
        if self._captured is not None and self._depth == self._held:
            self._keep(piece[self._from : end])
            if self._captured is not None:
                self.found[self._key] = bytes(self._captured)
            self._captured, self._key = None, b""

    def _is_value(self, piece: bytes, start: int) -> bool:
        """Whether what starts here is the value of the member whose key came last."""
        return piece[self._end : start].strip() == b":"

    def _seen_again_from(self, piece: bytes, start: int) -> int:
        """Return from where the piece has to be seen again: from the key, if this string is its value."""
        if self._key and self._is_value(piece, start):
            start = self._end - len(self._key) - 2
        self._key = b""
        return start

    def _carry_key(self, piece: bytes) -> None:
        """See the key again with what follows it, if only space and a colon have: else its value is no object."""
        rest = piece[self._end :]
        if len(rest) < _MAX_CARRIED and rest.strip() in {b"", b":"}:
            self._carried = piece[self._end - len(self._key) - 2 :]
        self._key = b""

    def _end_of_string(self, piece: bytes) -> int:
        """Return where the string ends that the piece begins in; its length if it does not."""
        if not piece:
            return 0
        rest = _REST.match(piece, 1 if self._escaped else 0)
        assert rest is not None  # noqa: S101 - it matches nothing, too
        self._escaped = rest["end"] == b"\\"
        self._in_string = rest["end"] != b'"'
        return rest.end()

    def _keep(self, part: bytes) -> None:
        assert self._captured is not None  # noqa: S101 - whoever calls has looked
        if len(self._captured) + len(part) > MAX_VALUE_BYTES:
            self._captured, self._key = None, b""
        else:
            self._captured += part
