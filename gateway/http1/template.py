"""Heads that look like earlier ones: the same app sends the same lines but for three or four values.

A `Template` comes of two heads that the parser has read in full and that differ only in values that the gateway
passes on unread, in a length, or in a token. In a head that fits it, what lies between those values is compared as
it is and passed on as it was the first time; no line is cut out or looked up. A head that fits no template is read
in full. So a template never takes what the parser would not: it is a memory, not a judge.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from gateway.http1.fields import (
    API_KEY,
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    DATE,
    EXPECT,
    HOST,
    PLAIN,
    TE,
    TRAILER,
)
from gateway.http1.layout import CREDENTIALS, Piece
from gateway.http1.message import CRLF, HEAD_END, MAX_LINE_BYTES, AnswerHead, RequestHead
from gateway.http1.opening import MAX_OPENING_BYTES, MAX_OPENINGS, Ending, Lengths, Opening

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.http1.lines import LineMemory

MAX_SHAPES: Final = 64
MAX_TEMPLATES: Final = 8
MAX_TRIES: Final = 16
"""How often a shape may differ from its template in a new way before it is left to the parser for good."""
MAX_GAPS: Final = 12

HEADS_A_TEMPLATE: Final = 256
"""Making one takes as long as reading a hundred heads (its pattern is compiled), so only every so often one is made."""

_BEARER: Final = b"Bearer "
# What becomes of these is for the parser to say, each time.
_READ_IN_FULL: Final = (EXPECT, TE, TRAILER)
_PASSED_ON: Final = (PLAIN, CONTENT_LENGTH, DATE)
_ALWAYS_CHANGING: Final = (*CREDENTIALS, CONTENT_LENGTH)
_VALUE: Final = rb"[\x21-\x7e\x80-\xff][\t \x21-\x7e\x80-\xff]*+(?<![ \t])"
# What may stand in a gap: the parser's own rules for a value and a length, and a narrower one for a token.
_GAPS: Final = {
    PLAIN: _VALUE,
    DATE: _VALUE,
    CONTENT_LENGTH: rb"(0|[1-9][0-9]{0,17}+)",
    AUTHORIZATION: rb"([A-Za-z0-9._~+/=-]++)",
    API_KEY: rb"([A-Za-z0-9._~+/=-]++)",
}

# Where it is compared with one that was taken.
_KNOWN_TOKEN: Final = rb"([^\r]*+)"

Head = TypeVar("Head", bound=RequestHead | AnswerHead)


class Template(Generic[Head]):
    """One shape of head, and the places in which heads of that shape differ.

    Args:
        lines: The field lines of one such head.
        kinds: What each of them means, of `fields`.
        changing: Which of them change: their indices.
        head: That head, as it was read; only looked at.
        minor: Of its HTTP/1.x.

    Attributes:
        minor, keep_alive, fixed_length: What all such heads say, but for a length that changes.
        match: Takes a head and the end of its first line; None if the head does not fit, else its values.
        length: The group of a match that is the value of `Content-Length`, or 0 if the shape has none.
        token: The group of a match that is the client's token, or 0.
        passed_on: The groups that are lines to pass on, joined where they stand together.
        dated: Whether such heads have a `Date`, which is looked for in answers only.
        host: Their `Host`, which is the same in all.
    """

    # fmt: off
    __slots__ = (
        "minor", "keep_alive", "fixed_length", "changing", "match", "length", "token", "dated", "host", "passed_on",
        "_cut", "ending",
    )
    # fmt: on

    def __init__(self, lines: list[bytes], kinds: list[int], changing: frozenset[int], head: Head, minor: int) -> None:
        self.changing = changing
        self.minor = minor
        # Its exchange may still change the head.
        self.keep_alive, self.fixed_length = head.keep_alive, head.length
        pieces = [
            _piece(line, kind, changes=index in changing)
            for index, (line, kind) in enumerate(zip(lines, kinds, strict=True))
        ]
        # An opening ends before the first line with a value that is not the same for all requests of its connection.
        at = next((index for index, piece in enumerate(pieces) if piece.gap in _PASSED_ON), len(pieces))
        pattern, groups = _pattern(pieces, at)
        self.match = re.compile(pattern).fullmatch
        self.passed_on, self.length, self.token, self._cut = groups
        self.dated = DATE in kinds
        self.host = lines[kinds.index(HOST)].partition(b":")[2].strip() if HOST in kinds else b""

        kept = b"".join([CRLF + piece.text for piece in pieces[:at] if piece.passed_on])
        pattern, groups = _pattern(pieces[at:], token=_KNOWN_TOKEN)
        match = re.compile(pattern + re.escape(HEAD_END)).match
        framing = (groups.length, Lengths(), groups.token, self.fixed_length, self.keep_alive)
        self.ending = Ending(kept, match, groups.passed_on, *framing, tuple(pieces[at:]))
        """What follows the openings of such heads."""

    def begins(self, block: bytes, match: re.Match[bytes]) -> bytes:
        """Return the bytes that an opening of this head would have."""
        return block[: match.start(self._cut)]


class _Groups(NamedTuple):
    """What the groups of a pattern are: its field lines to pass on, joined where they stand together, and values.

    `length` and `token` are 0 where there is none; `cut` is an empty group at a place that was asked for.
    """

    passed_on: tuple[int, ...]
    length: int
    token: int
    cut: int


class _Shape(Generic[Head]):
    """Heads with the same field names in the same order and spelling."""

    __slots__ = ("lines", "template", "tries")

    def __init__(self, lines: list[bytes]) -> None:
        self.lines = lines
        self.template: Template[Head] | None = None
        self.tries = 0


class TemplateMemory(Generic[Head]):
    """The templates of one parser. Bounded in number and in size.

    Attributes:
        ready: Those there are; the one that fitted last comes first.
    """

    __slots__ = ("_openings", "_rest", "_shapes", "ready")

    def __init__(self) -> None:
        self._shapes: dict[tuple[bytes, ...], _Shape[Head]] = {}
        self.ready: list[Template[Head]] = []
        # None where something began so once: what never comes again, as a path with an id in it, is not worth more.
        self._openings: dict[tuple[bytes, bytes | None], Opening[Head] | None] = {}
        self._rest = 0

    def read(self, head: Head, block: bytes, end: int, minor: int) -> re.Match[bytes] | None:
        """Read a head by the template that it fits, if there is one; `ready[0]` is that template then.

        Args:
            head: What its first line said, and no line behind that; the rest is filled in, but for a token.
            block: All of it, without the empty line that ends it.
            end: The end of its first line.
            minor: What that says, of HTTP/1.x.
        """
        if len(block) > MAX_LINE_BYTES:  # a value in it could be longer than a line may be
            return None
        ready = self.ready
        for template in ready:
            match = template.match(block, end)
            if match is not None and template.minor == minor:
                if template is not ready[0]:
                    ready.remove(template)
                    ready.insert(0, template)
                head.keep_alive = template.keep_alive
                head.lines = b"".join([match[group] for group in template.passed_on])
                head.length = int(match[template.length]) if template.length else template.fixed_length
                return match
        return None

    def opening(
        self,
        block: bytes,
        match: re.Match[bytes],
        make: Callable[[], Head],
        token: bytes | None = None,
    ) -> Opening[Head] | None:
        """Return how a head that `read` took begins, for the next one on its connection, if it is not the first such.

        Args:
            block: All of it, without the empty line that ends it.
            match: What `read` returned.
            make: Makes a head of what its first line says, and of its token.
            token: That token.
        """
        template = self.ready[0]
        begins = template.begins(block, match)
        if len(begins) + len(token or b"") > MAX_OPENING_BYTES:
            return None
        known, key = self._openings, (begins, token)
        opening = known.get(key)
        if opening is None and key not in known:
            if len(known) >= MAX_OPENINGS:
                known.clear()
            known[key] = None
        elif opening is None or opening.ending is not template.ending:
            opening = known[key] = Opening(begins, make, template.ending, token)
        return opening

    def learn(self, lines: list[bytes], memory: LineMemory, head: Head, minor: int) -> None:
        """Remember a head that fitted no template and was read in full.

        Args:
            lines: Its field lines.
            memory: Says what each of them means.
            head: What was read.
            minor: Of its HTTP/1.x.
        """
        if self._rest > 0:
            self._rest -= 1
            return
        names = tuple([line.partition(b":")[0] for line in lines])
        shape = self._shapes.get(names)
        if shape is None:
            if len(self._shapes) >= MAX_SHAPES:
                self._shapes.clear()
                self.ready.clear()
            self._shapes[names] = _Shape(lines)
            return
        if shape.tries >= MAX_TRIES:
            return
        shape.tries += 1
        kinds = [memory.kind(line) for line in lines]
        if not _can_have_template(lines, kinds):
            return
        changing = {index for index, line in enumerate(lines) if line != shape.lines[index]}
        changing.update(index for index, kind in enumerate(kinds) if kind in _ALWAYS_CHANGING)
        if shape.template is not None:
            changing |= shape.template.changing
        shape.lines = lines
        if len(changing) > MAX_GAPS or any(kinds[index] not in _GAPS for index in changing):
            return
        self._rest = HEADS_A_TEMPLATE
        old, shape.template = shape.template, Template(lines, kinds, frozenset(changing), head, minor)
        if old in self.ready:
            self.ready.remove(old)
        self.ready.insert(0, shape.template)
        del self.ready[MAX_TEMPLATES:]


def _piece(line: bytes, kind: int, *, changes: bool) -> Piece:
    if not changes:
        return Piece(line, None, kind in _PASSED_ON)
    # With a space even if this one had no value: a value without it is for h11 to read.
    name = line.partition(b":")[0] + b": " + (_BEARER if kind == AUTHORIZATION else b"")
    return Piece(name, kind, kind in _PASSED_ON)


def _pattern(pieces: list[Piece], cut: int | None = None, token: bytes | None = None) -> tuple[bytes, _Groups]:
    """Write a pattern for lines, the line end before each with it, and say what its groups are.

    Args:
        pieces: The lines.
        cut: Where, before which of them, there is an empty group.
        token: The pattern of a token, if it is another.
    """
    pattern = b""
    passed_on: list[int] = []
    group = length_group = token_group = cut_group = 0
    is_within = False
    for index, piece in enumerate((*pieces, None)):
        if is_within and (piece is None or not piece.passed_on):
            pattern += b")"
            is_within = False
        if index == cut:
            pattern += b"()"
            cut_group = group = group + 1
        if piece is None:
            break
        if piece.passed_on and not is_within:
            pattern += b"("
            group += 1
            passed_on.append(group)
            is_within = True
        pattern += CRLF + re.escape(piece.text)
        if piece.gap is not None:
            is_token = piece.gap in CREDENTIALS
            pattern += token if is_token and token is not None else _GAPS[piece.gap]
            if piece.gap == CONTENT_LENGTH:
                length_group = group = group + 1
            elif is_token:
                token_group = group = group + 1
    return pattern, _Groups(tuple(passed_on), length_group, token_group, cut_group)


def _can_have_template(lines: list[bytes], kinds: list[int]) -> bool:
    """Whether each line means the same for all heads of this shape, and there is at most one token."""
    credentials = 0
    for line, kind in zip(lines, kinds, strict=True):
        value = line.partition(b": ")[2]
        if kind in CREDENTIALS:
            credentials += 1
            if kind == AUTHORIZATION and not value.startswith(_BEARER):
                return False
        elif kind in _READ_IN_FULL or (kind == CONNECTION and value.lower() not in (b"keep-alive", b"close")):
            return False
    return credentials <= 1 and len(lines) > 0
