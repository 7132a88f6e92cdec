"""Heads from bytes: a fast path that remembers lines it has seen, else the strict gate and then h11.

The law of the fast path: it takes a strict subset of what h11 takes and reads the same method, target, fields and
framing out of it. A property test holds it to that. The same app sends the same lines over and over, so a line
that was checked once is known by its bytes; the memory is bounded, and a name whose values keep changing is no
longer remembered.

This is the only file that imports h11.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import h11

from gateway.errors import (
    BadRequest,
    FieldsTooLarge,
    GatewayError,
    NotImplementedHere,
    UpstreamProtocolError,
)
from gateway.http1 import fields
from gateway.http1.fields import (
    API_KEY,
    API_KEY_ORDER,
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    EXPECT,
    HOST,
    PLAIN,
    TRANSFER_ENCODING,
)
from gateway.http1.gate import TOKEN, check_answer, check_request
from gateway.http1.message import (
    CHUNKED,
    CRLF,
    HEAD_END,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    MAX_LINE_BYTES,
    AnswerHead,
    RequestHead,
)

if TYPE_CHECKING:
    from h11._headers import Headers

_REQUEST_LINE: Final = re.compile(rb"(" + TOKEN + rb") (/[\x21\x22\x24-\x7e]*+) HTTP/1\.([01])")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})((?: [\t \x21-\x7e\x80-\xff]*+)?)")
_FIELD_LINE: Final = re.compile(TOKEN + rb":(?: (?![ \t])[\t \x21-\x7e\x80-\xff]++(?<![ \t]))?+")
# One spelling of a length, so that what goes on is what was counted; h11 reads the others and they are rewritten.
_LENGTH: Final = re.compile(rb"0|[1-9][0-9]{0,17}")

_MAX_LINES: Final = 2048
_MAX_LINE_REMEMBERED: Final = 256  # bytes; with _MAX_LINES this bounds the memory to about 0.7 MB
_MAX_VALUES_A_NAME: Final = 64
_MAX_NAMES: Final = 512
_MAX_STARTS: Final = 64

_Meaning = tuple[int, bytes]
"""A kind of `fields`, and the value as far as the reader of a head needs it."""
_IS_PLAIN: Final[_Meaning] = (PLAIN, b"")
_PASSED_ON: Final = frozenset((CONTENT_LENGTH, EXPECT))


class _NotCanonical(Exception):
    """The fast path does not take this head."""


class _LineMemory:
    """Field lines that were checked before, and what each means. Bounded.

    Args:
        kinds: What the field names mean, lower-cased, on this side.
    """

    __slots__ = ("_changing", "_kinds", "_values_left", "known")

    def __init__(self, kinds: dict[bytes, int]) -> None:
        self._kinds = kinds
        self.known: dict[bytes, _Meaning] = {}
        self._values_left: dict[bytes, int] = {}
        # Plain names, as spelled, whose values are never the same twice: request ids, say.
        self._changing: set[bytes] = set()

    def sort(self, lines: list[bytes]) -> tuple[list[bytes], list[_Meaning]]:
        """Tell the lines to pass on from what they and the others mean.

        Args:
            lines: A head's; the first is not looked at, and its place among those passed on is left free.

        Raises:
            _NotCanonical: See `learn`.
        """
        known, learn = self.known.get, self.learn
        kept = [b""]
        keep = kept.append
        special: list[_Meaning] = []
        for line in lines[1:]:
            meaning = known(line) or learn(line)
            if meaning is _IS_PLAIN:
                keep(line)
            else:
                special.append(meaning)
                if meaning[0] in _PASSED_ON:
                    keep(line)
        return kept, special

    def learn(self, line: bytes) -> _Meaning:
        """Check a line and return what it means.

        Raises:
            _NotCanonical: It is malformed, too long, or legal in a spelling that h11 should read.
        """
        name, colon, value = line.partition(b": ")
        changing = name in self._changing
        # Letters and digits alone, as ids are, need no pattern.
        if changing and value.isalnum() and len(line) <= MAX_LINE_BYTES:
            return _IS_PLAIN
        if not _FIELD_LINE.fullmatch(line) or len(line) > MAX_LINE_BYTES:
            raise _NotCanonical
        if changing:
            return _IS_PLAIN
        if not colon:
            name = line[:-1]
        lowered = name.lower()
        kind = self._kinds.get(lowered, PLAIN)
        meaning = _IS_PLAIN if kind == PLAIN else (kind, _checked_value(kind, lowered, value))
        if len(line) <= _MAX_LINE_REMEMBERED:
            self._remember(line, name, meaning)
        return meaning

    def _remember(self, line: bytes, name: bytes, meaning: _Meaning) -> None:
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
    if kind == AUTHORIZATION:
        return fields.credential(value) or b""
    if kind == API_KEY:
        return name + b":" + value
    if kind == CONNECTION:
        return value.lower()
    if kind == CONTENT_LENGTH and not _LENGTH.fullmatch(value):
        raise _NotCanonical
    if kind == HOST and not fields.is_host(value):
        raise _NotCanonical
    return value


class RequestParser:
    """Turns request heads into `RequestHead`s. One per process: its memory is what makes it fast."""

    __slots__ = ("_memory",)

    def __init__(self) -> None:
        self._memory = _LineMemory(fields.REQUEST_FIELDS)

    def parse(self, block: bytes) -> RequestHead:
        """Parse a head.

        Args:
            block: Its bytes without the empty line that ends it; at most `MAX_HEAD_BYTES`.

        Raises:
            BadRequest, TargetTooLong, FieldsTooLarge, HttpVersionUnsupported, NotImplementedHere: It is not
                HTTP/1.1 as this gateway accepts it; the connection must close.
        """
        lines = block.split(CRLF)
        start = _REQUEST_LINE.fullmatch(lines[0])
        if start is not None and len(lines) <= MAX_FIELDS + 1 and len(lines[0]) <= MAX_LINE_BYTES:
            try:
                return self._read(RequestHead(start[1], start[2], 1 if start[3] == b"1" else 0), lines)
            except _NotCanonical:
                pass  # h11 has the word on every head that is not canonical
        check_request(block)
        head, lines = _request_by_h11(block)
        try:
            return self._read(head, lines)
        except _NotCanonical:
            raise BadRequest(
                "A field that frames or routes the request has a value that no request may have."
            ) from None

    def _read(self, head: RequestHead, lines: list[bytes]) -> RequestHead:
        head.lines, special = self._memory.sort(lines)
        host = length = coding = authorization = options = None
        keys: list[bytes] = []
        for kind, value in special:
            if kind == HOST:
                host = _once(host, value, "Host")
            elif kind == CONTENT_LENGTH:
                length = _once(length, value, "Content-Length")
            elif kind == AUTHORIZATION:
                authorization = _once(authorization, value, "Authorization")
            elif kind == CONNECTION:
                options = value if options is None else options + b"," + value
            elif kind == TRANSFER_ENCODING:
                coding = _once(coding, value, "Transfer-Encoding")
            elif kind == API_KEY:
                keys.append(value)
            elif kind == EXPECT:
                _apply_expect(head, value)
        if host is None and head.minor:
            raise BadRequest("There is no Host field.")
        if options is not None:
            _apply_options(head, options)
        if coding is not None:
            _frame_chunked(head, length, coding)
        elif length is not None:
            head.length = int(length)
        head.bearer = authorization or (_api_key(keys) if keys else None)
        return head


class AnswerParser:
    """Turns answer heads into `AnswerHead`s, with the same severity (RFC 9112 §4 to §6)."""

    __slots__ = ("_memory", "_starts")

    def __init__(self) -> None:
        self._memory = _LineMemory(fields.ANSWER_FIELDS)
        self._starts: dict[bytes, tuple[int, bytes, int]] = {}

    def parse(self, block: bytes) -> AnswerHead:
        """Parse a head.

        Args:
            block: Its bytes without the empty line that ends it; at most `MAX_HEAD_BYTES`.

        Raises:
            UpstreamProtocolError: It is malformed or ambiguous; the upstream connection must close.
        """
        try:
            return self._parse(block)
        except (GatewayError, _NotCanonical, h11.ProtocolError):
            raise UpstreamProtocolError("The upstream's answer is malformed or ambiguous.") from None

    def _parse(self, block: bytes) -> AnswerHead:
        lines = block.split(CRLF)
        if len(lines) <= MAX_FIELDS + 1:
            try:
                return self._read(lines)
            except _NotCanonical:
                pass  # h11 has the word on every head that is not canonical
        check_answer(block)
        return self._read(_answer_by_h11(block))

    def _read(self, lines: list[bytes]) -> AnswerHead:
        status, start_line, minor = self._starts.get(lines[0]) or self._learn_start(lines[0])
        head = AnswerHead(status, start_line, minor)
        head.lines, special = self._memory.sort(lines)
        length = coding = options = None
        for kind, value in special:
            if kind == CONTENT_LENGTH:
                length = _once(length, value, "Content-Length")
            elif kind == CONNECTION:
                options = value if options is None else options + b"," + value
            elif kind == TRANSFER_ENCODING:
                coding = _once(coding, value, "Transfer-Encoding")
        if options is not None:
            _apply_options(head, options)
        if coding is not None:
            if length is not None or minor == 0 or coding.lower() != b"chunked":
                raise _NotCanonical
            head.length = CHUNKED
        elif length is not None:
            head.length = int(length)
        return head

    def _learn_start(self, line: bytes) -> tuple[int, bytes, int]:
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise _NotCanonical
        start = (int(match[2]), b"HTTP/1.1 " + match[2] + (match[3] or b" "), 1 if match[1] == b"1" else 0)
        if len(line) <= _MAX_LINE_REMEMBERED:
            if len(self._starts) >= _MAX_STARTS:
                self._starts.clear()
            self._starts[line] = start
        return start


def _once(seen: bytes | None, value: bytes, name: str) -> bytes:
    """A second field of these names is refused even when it says the same (RFC 9112 §6.3 rule 5; stricter)."""
    if seen is not None:
        raise BadRequest(f"There is more than one {name} field.")
    return value


def _apply_options(head: RequestHead | AnswerHead, value: bytes) -> None:
    if value == b"keep-alive":  # by far the most frequent
        head.keep_alive = True
        return
    options = fields.list_members(value)
    if b"close" in options:
        head.keep_alive = False
    elif b"keep-alive" in options:
        head.keep_alive = True
    if any(option not in (b"close", b"keep-alive") for option in options):
        head.lines = [b"", *fields.remove_named(head.lines[1:], options)]


def _apply_expect(head: RequestHead, value: bytes) -> None:
    head.expects_continue = bool(head.minor) and value.lower() == b"100-continue"
    if not head.minor:  # a 1.0 client's is ignored, and must not reach a 1.1 server (RFC 9110 §10.1.1)
        head.lines = [b"", *fields.remove_named(head.lines[1:], [b"expect"])]


def _frame_chunked(head: RequestHead, length: bytes | None, coding: bytes) -> None:
    """A request that says twice where its body ends is refused (RFC 9112 §6.1, §6.3 rules 3 to 5; stricter)."""
    if length is not None:
        raise BadRequest("Content-Length and Transfer-Encoding together.")
    if head.minor == 0:
        raise BadRequest("Transfer-Encoding in an HTTP/1.0 request.")
    if coding.lower() != b"chunked":
        raise NotImplementedHere("The only transfer coding here is a single 'chunked'.")
    head.length = CHUNKED


def _api_key(keys: list[bytes]) -> bytes | None:
    by_name = dict(key.split(b":", 1) for key in keys)
    if len(by_name) < len(keys):
        raise BadRequest("An API-key field is there more than once.")
    return next((by_name[name] for name in API_KEY_ORDER if by_name.get(name)), None)


def _request_by_h11(block: bytes) -> tuple[RequestHead, list[bytes]]:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES + len(HEAD_END))
    connection.receive_data(block + HEAD_END)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        if error.error_status_hint == 501:
            raise NotImplementedHere("The only transfer coding here is a single 'chunked'.") from None
        if error.error_status_hint == 431:
            raise FieldsTooLarge from None
        raise BadRequest("The request head is not HTTP/1.1.") from None
    if not isinstance(event, h11.Request):
        raise BadRequest("The request head is not HTTP/1.1.")
    head = RequestHead(event.method, event.target, 1 if event.http_version == b"1.1" else 0)
    return head, [block.split(CRLF, 1)[0], *_canonical_lines(event.headers)]


def _answer_by_h11(block: bytes) -> list[bytes]:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES + len(HEAD_END))
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    connection.receive_data(block + HEAD_END)
    event = connection.next_event()
    if not isinstance(event, h11.Response | h11.InformationalResponse):
        raise _NotCanonical
    return [block.split(CRLF, 1)[0], *_canonical_lines(event.headers)]


def _canonical_lines(headers: Headers) -> list[bytes]:
    """Spell each field as the fast path does; a length loses its leading zeros."""
    lines = []
    for raw_name, value in headers.raw_items():
        if raw_name.lower() == b"content-length":
            value = b"%d" % int(value)  # noqa: PLW2901 - h11 has checked that it is digits
        lines.append(raw_name + b": " + value if value else raw_name + b":")
    return lines
