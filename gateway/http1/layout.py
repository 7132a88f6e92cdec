"""Where in a head its changing values stand: mostly they are as long as they were in the last one of the connection.

Then what lies between them is at the same places as well, and is compared there as a whole: that takes a fraction of
what a pattern takes to go through it. A `Layout` is a memory, as an opening is: it takes nothing that the opening's
pattern would not, and reads the same out of it.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from gateway.http1.fields import API_KEY, AUTHORIZATION, CONTENT_LENGTH
from gateway.http1.message import CRLF, HEAD_END

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_Cut: TypeAlias = "Callable[[bytes], tuple[bytes, ...]]"
CREDENTIALS: Final = (AUTHORIZATION, API_KEY)
VISIBLE: Final = bytes(one if 0x21 <= one <= 0x7E or one >= 0x80 else ord("?") for one in range(256))
"""Leaves a value as it is that has neither blanks nor controls in it, and no other."""


class Piece(NamedTuple):
    """A field line of a template.

    Args:
        text: What of it stays as it is; all of it, or what comes before the value.
        gap: The kind of the value that changes, of `fields`; None if none does.
        passed_on: Whether the line is passed on.
    """

    text: bytes
    gap: int | None
    passed_on: bool


Layout: TypeAlias = tuple[int, tuple[bytes, ...], _Cut, _Cut, int, bytes]
"""Heads that are the same but for values of the same lengths, none of which has a blank in it.

- `end`: where such heads end, behind their empty line;
- `fixed`: all that stays as it is; a value with a blank, such as a date, is in it, and so is the token;
- `fixed_of`: cuts the same out of another head;
- `values_of`: cuts the values out of it;
- `number`: which of these is that of `Content-Length`; -1 if none is;
- `passed_on`: its lines to pass on, joined, with `%b` for each value.

A plain tuple, which is taken apart in a tenth of the time that a named one takes.
"""


def layout_of(data: bytes, begin: int, kept: Sequence[bytes], pieces: Sequence[Piece]) -> Layout:
    """Return the layout of a head that was read.

    Args:
        data: What begins with it.
        begin: Where its opening ends.
        kept: The lines to pass on of what comes before.
        pieces: The lines behind that.
    """
    at, cut, number = begin, 0, -1
    cuts: list[tuple[int, int]] = []
    passed_on = [_literally(line) for line in kept]
    for piece in pieces:
        line = _literally(piece.text)
        at += len(CRLF) + len(piece.text)
        if piece.gap is not None:
            begin, at = at, data.index(CRLF, at)
            value = data[begin:at]
            if piece.gap in CREDENTIALS or value.translate(VISIBLE) != value:
                line += _literally(value)
            else:
                if piece.gap == CONTENT_LENGTH:
                    number = len(cuts)
                cuts.append((begin - cut, len(value)))
                cut = at
                line += b"%b"
        if piece.passed_on:
            passed_on.append(line)
    end = at + len(HEAD_END)
    fixed_of = Struct("".join(f"{fixed}s{value}x" for fixed, value in cuts) + f"{end - cut}s").unpack_from
    values_of = Struct("".join(f"{fixed}x{value}s" for fixed, value in cuts)).unpack_from
    return end, fixed_of(data), fixed_of, values_of, number, CRLF.join(passed_on)


def _literally(text: bytes) -> bytes:
    return text.replace(b"%", b"%%")
