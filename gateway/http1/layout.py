"""Where in a head its changing values stand: mostly they are as long as they were in the last one of the connection.

Then what lies between them is at the same places as well, and is compared there as a whole: that takes a fraction of
what a pattern takes to go through it. A `Layout` is a memory, as an opening is: it takes nothing that the opening's
pattern would not, and reads the same out of it.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from gateway.http1.fields import API_KEY, AUTHORIZATION, CONTENT_LENGTH, only
from gateway.http1.ids import REQUEST_ID, SIZES, TRACEPARENT, VERSION
from gateway.http1.message import CRLF, HEAD_END

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_Cut: TypeAlias = "Callable[[bytes], tuple[bytes, ...]]"
CREDENTIALS: Final = (AUTHORIZATION, API_KEY)
VISIBLE: Final = only(bytes((*range(0x21, 0x7F), *range(0x80, 0x100))))
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


class Memo:
    """What the access log has made of a request, for others whose heads have the same layout.

    Args:
        request_id, trace: Which of the values are the request's id, and what follows the version in `traceparent`; -1
            where there is no such field, None where its value is of another form.

    Attributes:
        ids_at: Both.
        ids_known: Whether neither is None.
        target, status: Those of the request that it was made of.
        form: Its line, with places for what each has of its own.
    """

    __slots__ = ("form", "ids_at", "ids_known", "status", "target")

    def __init__(self, request_id: int | None = None, trace: int | None = None) -> None:
        self.ids_known = request_id is not None and trace is not None
        self.ids_at = (-1 if request_id is None else request_id, -1 if trace is None else trace)
        self.target: str | None = None
        self.status = 0
        self.form = b""


Layout: TypeAlias = tuple[int, tuple[bytes, ...], _Cut, _Cut, int, bytes, Memo]
"""Heads that are the same but for values of the same lengths, none of which has a blank in it.

- `end`: where such heads end, behind their empty line;
- `fixed`: all that stays as it is; a value with a blank, such as a date, is in it, and so is the token;
- `fixed_of`: cuts the same out of another head;
- `values_of`: cuts the values out of it;
- `number`: which of these is that of `Content-Length`; -1 if none is;
- `form`: its lines to pass on, each with a line end before it, with `%b` for each value;
- `memo`: the access log's.

A plain tuple, which is taken apart in a tenth of the time that a named one takes.
"""


def layout_of(data: bytes, begin: int, kept: bytes, pieces: Sequence[Piece]) -> Layout:
    """Return the layout of a head that was read.

    Args:
        data: What begins with it.
        begin: Where its opening ends.
        kept: The lines to pass on of what comes before, each with a line end before it.
        pieces: The lines behind that.
    """
    at, cut, number = begin, 0, -1
    cuts: list[tuple[int, int]] = []
    ids_at: dict[bytes, int | None] = {line.partition(b":")[0].lower(): None for line in kept.split(CRLF)}
    form = _literally(kept)
    for piece in pieces:
        line = _literally(piece.text)
        name = piece.text.partition(b":")[0].lower()
        id_at = None
        at += len(CRLF) + len(piece.text)
        if piece.gap is not None:
            begin, at = at, data.index(CRLF, at)
            value = data[begin:at]
            if name == TRACEPARENT and value.startswith(VERSION):
                line += VERSION
                begin += len(VERSION)
                value = data[begin:at]
            if piece.gap in CREDENTIALS or value.translate(VISIBLE) != value:
                line += _literally(value)
            else:
                if piece.gap == CONTENT_LENGTH:
                    number = len(cuts)
                if len(value) in SIZES.get(name, ()):
                    id_at = len(cuts)
                cuts.append((begin - cut, len(value)))
                cut = at
                line += b"%b"
        ids_at.setdefault(name, id_at)
        if piece.passed_on:
            form += CRLF + line
    memo = Memo(ids_at.get(REQUEST_ID, -1), ids_at.get(TRACEPARENT, -1))
    end = at + len(HEAD_END)
    fixed_of = Struct("".join(f"{fixed}s{value}x" for fixed, value in cuts) + f"{end - cut}s").unpack_from
    values_of = Struct("".join(f"{fixed}x{value}s" for fixed, value in cuts)).unpack_from
    return end, fixed_of(data), fixed_of, values_of, number, form, memo


def _literally(text: bytes) -> bytes:
    return text.replace(b"%", b"%%")
