"""How the heads of one connection begin: the same app sends the same bytes up to the first value that changes.

An `Opening` is those bytes, token and all, and what they mean; only what follows is still read. It comes of a head
that a template took, and so it is a memory as that is, not a judge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from gateway.http1.message import HEAD_END, MAX_LINE_BYTES, AnswerHead, RequestHead

if TYPE_CHECKING:
    import re
    from collections.abc import Callable

MAX_OPENINGS: Final = 1024
MAX_OPENING_BYTES: Final = 2048
"""With `MAX_OPENINGS`, this bounds the memory to 5 MB for each of the two parsers; heads of SDKs take a quarter."""

Head = TypeVar("Head", bound=RequestHead | AnswerHead)

Place = tuple[int, bytes, "Callable[[bytes, int], re.Match[bytes] | None]"]
"""Where a field line was, its name, and what takes the line there."""


class Ending(NamedTuple):
    """What all heads that one template takes have in common, and what of them follows an opening.

    Args:
        kept: The lines to pass on of what comes before, joined, as far as they go.
        match: Takes bytes and where in them the opening ends; None if a head of this template does not follow, else
            its values. The match ends behind the head's empty line.
        form: What to pass on of that, with a place for each value; None: all of it, as it came.
        length: The group that is the value of `Content-Length`, or 0.
        fixed_length: The length of the body, where no value says it.
        keep_alive: Whether the connection goes on.
    """

    kept: bytes
    match: Callable[[bytes, int], re.Match[bytes] | None]
    form: bytes | None
    length: int
    fixed_length: int
    keep_alive: bool


class Opening(Generic[Head]):
    """The first bytes of a head, up to the first value that changes.

    Args:
        begins: Those bytes, from the first line on.
        make: Makes a head with what they say of it.
        ending: What follows.

    Attributes:
        ids_at: Where the fields that name the request and its trace were in the last head that was looked at, None for
            one that is not there: heads that begin so have the same fields. Empty: nobody has looked; None: neither is.
        place: What the access log says of heads that begin so, and of which target's; None: nothing yet.
    """

    __slots__ = ("_begins", "_make", "_size", "ending", "ids_at", "place")

    def __init__(self, begins: bytes, make: Callable[[], Head], ending: Ending) -> None:
        self._begins = begins
        self._size = len(begins)
        self._make = make
        self.ending = ending
        self.ids_at: tuple[Place | None, Place | None] | tuple[()] | None = ()
        self.place: tuple[bytes, str | None] = (b"", None)

    def read(self, data: bytes) -> tuple[Head, int] | None:
        """Read the head that `data` begins with.

        Returns:
            The head and where it ends in `data`; None if it does not begin so, or is not whole.
        """
        if not data.startswith(self._begins):
            return None
        kept, match_ending, form, length, fixed_length, keep_alive = self.ending
        match = match_ending(data, self._size)
        if match is None:
            return None
        end = match.end()
        if end > MAX_LINE_BYTES:  # a value in it could be longer than a line may be
            return None
        rest = data[self._size : end - len(HEAD_END)] if form is None else form % match.groups()
        head = self._make()
        head.keep_alive = keep_alive
        head.length = int(match[length]) if length else fixed_length
        head.lines = [b"", kept + rest]
        return head, end
