"""Decodes gzip beside the answer, which is passed on as it came."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

STEP_BYTES: Final = 64 * 1024
"""How much is decoded at once."""
MAX_RATIO: Final = 200
"""How many times longer than its coding a piece of an answer may be, beyond `ALLOWED_BYTES`: text has 3 to 20."""
ALLOWED_BYTES: Final = 4 * 1024 * 1024

_GZIP: Final = 31
"""zlib's name for a gzip header and the largest window."""


def gzip_of(coding: bytes) -> Gzip | None:
    """Return what decodes a `Content-Encoding`, given in lower case; None for any but gzip."""
    return Gzip() if coding in {b"gzip", b"x-gzip"} else None


class Gzip:
    """Decodes one answer. What is longer than an honest one could be, or broken, is given up.

    Attributes:
        lost: Whether it was given up: what was decoded is not all.
    """

    __slots__ = ("_decoder", "_in_bytes", "_out_bytes", "lost")

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(_GZIP)
        self._in_bytes = self._out_bytes = 0
        self.lost = False

    def decode(self, coded: bytes) -> Iterator[bytes]:
        """Yield what the next piece decodes to, in steps."""
        self._in_bytes += len(coded)
        while coded and not self.lost:
            if self._decoder.eof:  # members may follow each other (RFC 1952 §2.2)
                self._decoder = zlib.decompressobj(_GZIP)
            try:
                plain = self._decoder.decompress(coded, STEP_BYTES)
            except zlib.error:
                self.lost = True
                return
            self._out_bytes += len(plain)
            self.lost = self._out_bytes > ALLOWED_BYTES + MAX_RATIO * self._in_bytes
            if plain:
                yield plain
            coded = self._decoder.unused_data if self._decoder.eof else self._decoder.unconsumed_tail
