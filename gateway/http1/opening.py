"""How the heads of one connection begin: the same app sends the same bytes up to the first value that changes.

An `Opening` is those bytes, token and all, and what they mean; only what follows is still read. It comes of a head
that a template took, and so it is a memory as that is, not a judge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from gateway.http1.layout import VISIBLE, Memo, layout_of
from gateway.http1.message import HEAD_END, MAX_LINE_BYTES, AnswerHead, RequestHead

if TYPE_CHECKING:
    import re
    from collections.abc import Callable

    from gateway.http1.layout import Layout, Piece

MAX_OPENINGS: Final = 512
MAX_OPENING_BYTES: Final = 2048
MAX_LAYOUTS: Final = 4
"""Of heads that begin alike: each takes a head's bytes twice, with the access log three times, and 1 kB."""
MAX_LAYOUT_BYTES: Final = 4096
"""Of a longer head, none is made.

So the memory of each of the two parsers is bounded to 28 MB; with heads of SDKs it is a seventh of that at most.
"""
HEADS_A_LAYOUT: Final = 8
"""Making one takes as long as reading ten heads by their pattern, so only every so often one is made."""
_MAX_LENGTHS: Final = 1024

Head = TypeVar("Head", bound=RequestHead | AnswerHead)


class Lengths(dict[bytes, int]):
    """What digits mean, remembered: a look-up takes a third of the time that `int` does."""

    def __missing__(self, digits: bytes) -> int:
        if len(self) >= _MAX_LENGTHS:
            self.clear()
        length = self[digits] = int(digits)
        return length


class Ending(NamedTuple):
    """What all heads that one template takes have in common, and what of them follows an opening.

    Args:
        kept: The lines to pass on of what comes before, each with a line end before it.
        match: Takes bytes and where in them the opening ends; None if a head of this template does not follow, else
            its values. The match ends behind the head's empty line.
        passed_on: The groups that are lines to pass on of that, likewise.
        length: The group that is the value of `Content-Length`, or 0.
        lengths: What such values mean.
        token: The group that is the client's token, or 0; it takes what no token may be, too.
        fixed_length: The length of the body, where no value says it.
        keep_alive: Whether the connection goes on.
        pieces: The lines that follow an opening.
    """

    kept: bytes
    match: Callable[[bytes, int], re.Match[bytes] | None]
    passed_on: tuple[int, ...]
    length: int
    lengths: Lengths
    token: int
    fixed_length: int
    keep_alive: bool
    pieces: tuple[Piece, ...]


class Opening(Generic[Head]):
    """The first bytes of a head, up to the first line with a value that changes.

    Args:
        begins: Those bytes, from the first line on.
        make: Makes a head with what they say of it.
        ending: What follows.
        token: The client's, if it has one: it stays the same on its connection, wherever in the head it stands.

    Whoever reads by it has done with each head when he reads the next one: it is always the same object.

    Attributes:
        values: Those of the last head, as its layout has them; None: it was read without one.
        memo: That of the layout.
    """

    # fmt: off
    __slots__ = (
        "_begins", "_fixed_length", "_head", "_keep_alive", "_layout", "_layouts", "_lengths", "_make", "_rest",
        "_size", "_token", "ending", "memo", "values",
    )
    # fmt: on

    def __init__(self, begins: bytes, make: Callable[[], Head], ending: Ending, token: bytes | None) -> None:
        self._begins = begins
        self._size = len(begins)
        self._make = make
        self._token = token
        self._head = make()
        self.ending = ending
        # As they are in `ending`, where they would take longer to look up.
        self._keep_alive, self._fixed_length, self._lengths = ending.keep_alive, ending.fixed_length, ending.lengths
        # By where their heads end; of all openings that `alone` made of one, and of it.
        self._layouts: dict[int, Layout] = {}
        self._layout: Layout | None = None  # that of the last head
        self._rest = 0
        self.values: tuple[bytes, ...] | None = None
        self.memo = Memo()

    def alone(self) -> Opening[Head]:
        """Return one like it, with a head of its own."""
        other = Opening(self._begins, self._make, self.ending, self._token)
        other._layouts = self._layouts
        return other

    def read(self, data: bytes) -> tuple[Head, int] | None:
        """Read the head that `data` begins with.

        Returns:
            The head and where it ends in `data`; None if it does not begin so, or is not whole.
        """
        layout = self._layout
        if layout is None:
            return self._read_anew(data)
        end, fixed, fixed_of, values_of, number, form, _ = layout
        if len(data) < end or fixed_of(data) != fixed:
            return self._read_anew(data)
        self.values = values = values_of(data)
        length = self._fixed_length if number < 0 else self._lengths.get(values[number])
        text = b"".join(values)
        if length is None or text.translate(VISIBLE) != text:
            return self._read_anew(data)
        head = self._head
        head.keep_alive = self._keep_alive
        head.length = length
        head.lines = form % values
        return head, end

    def _read_anew(self, data: bytes) -> tuple[Head, int] | None:
        """Read a head that has another layout than the last one, or has something in it that needs a closer look."""
        if not data.startswith(self._begins):
            return None
        layout = self._layouts.get(data.find(HEAD_END, self._size) + len(HEAD_END))
        if layout is not None and layout is not self._layout:
            self._keep(layout)
            return self.read(data)
        self.values = self._layout = None
        kept, match_ending, passed_on, length, lengths, token, fixed_length, keep_alive, pieces = self.ending
        match = match_ending(data, self._size)
        if match is None:
            return None
        if token and match[token] != self._token:
            return None
        end = match.end()
        if end > MAX_LINE_BYTES:  # a value in it could be longer than a line may be
            return None
        head = self._head
        head.keep_alive = keep_alive
        head.length = lengths[match[length]] if length else fixed_length
        head.lines = kept + b"".join([match[group] for group in passed_on])
        head.form = b""
        self._rest -= 1
        if self._rest < 0 and head.lines and end <= MAX_LAYOUT_BYTES:  # a layout has something to pass on
            self._rest = HEADS_A_LAYOUT
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            layout = self._layouts[end] = layout_of(data, self._size, kept, pieces)
            self._keep(layout)
        return head, end

    def _keep(self, layout: Layout) -> None:
        self._layout = layout
        self._head.form, self.memo = layout[-2:]
