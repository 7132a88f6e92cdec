"""How the heads of one connection begin: the same app sends the same bytes up to the first value that changes.

An `Opening` is those bytes, token and all, and what they mean; only what follows is still read. It comes of a head
that a template took, and so it is a memory as that is, not a judge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

from gateway.http1.message import HEAD_END, MAX_LINE_BYTES, AnswerHead, RequestHead

if TYPE_CHECKING:
    import re
    from collections.abc import Callable

MAX_OPENINGS: Final = 1024
MAX_OPENING_BYTES: Final = 2048
"""With `MAX_OPENINGS`, this bounds the memory to about 4 MB; the heads of SDKs take a quarter of that."""

Head = TypeVar("Head", bound=RequestHead | AnswerHead)


class Ending:
    """What follows the openings of one template.

    Args:
        match: Takes bytes and where in them the opening ends; None if a head of this template does not follow, else
            its values. The match ends behind the head's empty line.
        form: What to pass on of it, with a place for each value; None: all of it, as it came.
        length: The group that is the value of `Content-Length`, or 0.
    """

    __slots__ = ("form", "length", "match")

    def __init__(self, match: Callable[[bytes, int], re.Match[bytes] | None], form: bytes | None, length: int) -> None:
        self.match = match
        self.form = form
        self.length = length


class Opening(Generic[Head]):
    """The first bytes of a head, up to the first value that changes.

    Args:
        begins: Those bytes, from the first line on.
        make: Makes a head with what they say of it.
        like: A head with the same lines, for what else they say.
        kept: The lines to pass on, joined, as far as they go.
        ending: What follows.
    """

    __slots__ = ("_begins", "_keep_alive", "_kept", "_length", "_make", "_size", "ending")

    def __init__(self, begins: bytes, make: Callable[[], Head], like: Head, kept: bytes, ending: Ending) -> None:
        self._begins = begins
        self._size = len(begins)
        self._make = make
        self._keep_alive = like.keep_alive
        self._length = like.length
        self._kept = kept
        self.ending = ending

    def read(self, data: bytes) -> tuple[Head, int] | None:
        """Read the head that `data` begins with.

        Returns:
            The head and where it ends in `data`; None if it does not begin so, or is not whole.
        """
        if not data.startswith(self._begins):
            return None
        ending = self.ending
        match = ending.match(data, self._size)
        if match is None:
            return None
        end = match.end()
        if end > MAX_LINE_BYTES:  # a value in it could be longer than a line may be
            return None
        form = ending.form
        rest = data[self._size : end - len(HEAD_END)] if form is None else form % match.groups()
        head = self._make()
        head.keep_alive = self._keep_alive
        head.length = int(match[ending.length]) if ending.length else self._length
        head.lines = [b"", self._kept + rest]
        return head, end
