"""Heads from bytes: a fast path that remembers lines it has seen, else the strict gate and then h11.

The law of the fast path: it takes a strict subset of what h11 takes and reads the same method, target, fields and
framing out of it. A property test holds it to that. Its memories are of lines (lines.py) and of whole heads that differ
in a few values only (template.py); how a connection's last head began (opening.py), and where its values stood
(layout.py), is tried before it is asked.

This is the only file that imports h11.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Final

import h11

from gateway.errors import (
    TWO_TOKENS,
    BadRequest,
    FieldsTooLarge,
    GatewayError,
    UpstreamProtocolError,
)
from gateway.http1 import fields, framing
from gateway.http1.fields import (
    API_KEY,
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    DATE,
    EXPECT,
    HOST,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
)
from gateway.http1.gate import TOKEN, check_answer, check_bytes, check_request
from gateway.http1.lines import MAX_LINE_REMEMBERED, LineMemory, NotCanonical
from gateway.http1.message import (
    CHUNKED,
    CRLF,
    HEAD_END,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    MAX_LINE_BYTES,
    NO_BODY,
    AnswerHead,
    RequestHead,
)
from gateway.http1.template import TemplateMemory

if TYPE_CHECKING:
    from h11._headers import Headers

    from gateway.http1.lines import Meaning

_REQUEST_LINE: Final = re.compile(rb"(" + TOKEN + rb") (/[\x21\x22\x24-\x7e]*+) HTTP/1\.([01])")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})((?: [\t \x21-\x7e\x80-\xff]*+)?)")
_MAX_STARTS: Final = 256
# Without an offer, h11 would take no 101; whether this one was offered is for the exchange to say.
_OFFER: Final = [("Host", "h"), ("Connection", "upgrade"), ("Upgrade", "h")]


class RequestParser:
    """Turns request heads into `RequestHead`s. One per process: its memory is what makes it fast."""

    __slots__ = ("_memory", "_starts", "_templates")

    def __init__(self) -> None:
        self._memory = LineMemory(fields.REQUEST_FIELDS)
        self._starts: dict[bytes, tuple[bytes, bytes, int]] = {}
        self._templates: TemplateMemory[RequestHead] = TemplateMemory()

    def parse(self, block: bytes) -> RequestHead:
        """Parse a head.

        Args:
            block: Its bytes without the empty line that ends it; at most `MAX_HEAD_BYTES`.

        Raises:
            BadRequest, TargetTooLong, FieldsTooLarge, HttpVersionUnsupported, NotImplementedHere: It is not
                HTTP/1.1 as this gateway accepts it; the connection must close.
        """
        end = block.find(CRLF)
        start = (self._starts.get(block[:end]) or self._learn_start(block, end)) if end > 0 else None
        if start is not None:
            head = RequestHead(*start)
            match = self._templates.read(head, block, end, start[2])
            if match is not None:
                template = self._templates.ready[0]
                head.bearer = match[template.token] if template.token else None
                head.host = template.host
                make = partial(RequestHead, *start, head.bearer, head.host)
                head.opening = self._templates.opening(block, match, make, head.bearer)
                return head
            lines = block.split(CRLF)
            if len(lines) <= MAX_FIELDS + 1:
                try:
                    self._read(head, lines)
                except NotCanonical:
                    pass  # h11 has the word on every head that is not canonical
                else:
                    self._templates.learn(lines[1:], self._memory, head, head.minor)
                    return head
        check_request(block)
        head, lines = _request_by_h11(block)
        try:
            self._read(head, lines)
        except NotCanonical:
            raise BadRequest(
                "A field that frames or routes the request has a value that no request may have."
            ) from None
        return head

    def _learn_start(self, block: bytes, end: int) -> tuple[bytes, bytes, int] | None:
        match = _REQUEST_LINE.fullmatch(block, 0, end) if end <= MAX_LINE_BYTES else None
        if match is None or match[1] == b"CONNECT":  # whose target is no path; the gate has the word
            return None
        start = (match[1], match[2], 1 if match[3] == b"1" else 0)
        if end <= MAX_LINE_REMEMBERED:
            if len(self._starts) >= _MAX_STARTS:
                self._starts.clear()
            self._starts[block[:end]] = start
        return start

    def _read(self, head: RequestHead, lines: list[bytes]) -> None:
        kept, special = self._memory.sort(lines)
        head.lines = CRLF.join(kept)
        host = length = coding = options = None
        credentials: list[bytes] = []
        rare: list[Meaning] = []
        for kind, value in special:
            if kind == HOST:
                host = _once(host, value, "Host")
            elif kind == CONTENT_LENGTH:
                length = _once(length, value, "Content-Length")
            elif kind == CONNECTION:
                options = value if options is None else options + b"," + value
            elif kind == TRANSFER_ENCODING:
                coding = _once(coding, value, "Transfer-Encoding")
            elif kind in (AUTHORIZATION, API_KEY):
                credentials.append(value)
            else:
                rare.append((kind, value))
        if host is not None:
            head.host = host
        elif head.minor:
            raise BadRequest("There is no Host field.")
        if options is not None:
            _apply_options(head, options)
        if coding is not None:
            head.length = framing.request_coding(coding, length, head.minor)
        elif length is not None:
            head.length = int(length)
        if rare:
            _apply_rare(head, rare, options)
        if credentials and head.bearer is None:
            head.bearer = _one_token(credentials)


class AnswerParser:
    """Turns answer heads into `AnswerHead`s, with the same severity (RFC 9112 §4 to §6)."""

    __slots__ = ("_memory", "_starts", "_templates")

    def __init__(self) -> None:
        self._memory = LineMemory(fields.ANSWER_FIELDS)
        self._templates: TemplateMemory[AnswerHead] = TemplateMemory()
        self._starts: dict[bytes, tuple[int, bytes, int]] = {}

    def parse(self, block: bytes) -> AnswerHead:
        """Parse a head.

        Args:
            block: Its bytes without the empty line that ends it; at most `MAX_HEAD_BYTES`.

        Raises:
            UpstreamProtocolError: It is malformed or ambiguous; the upstream connection must close.
        """
        end = block.find(CRLF)
        start = self._starts.get(block[:end] if end >= 0 else block)
        if start is None:
            return self._read_in_full(block)
        head = AnswerHead(*start)
        match = self._templates.read(head, block, end, start[2])
        if match is None:
            return self._read_in_full(block)
        head.dated = self._templates.ready[0].dated
        # Whoever gets an answer's head has done with it when `on_answer` returns.
        make = partial(AnswerHead, *start, head.dated)
        head.opening = self._templates.opening(block, match, make)
        return head

    def check_unfinished(self, data: bytes, checked: int) -> None:
        """Refuse what can no longer become a head: one whose lines end in a bare LF has no end to wait for.

        Args:
            data: What has come of it.
            checked: How many bytes of that were looked at before.

        Raises:
            UpstreamProtocolError: There is a byte in it that no head may have, or it does not begin as one does.
        """
        # A CR at the very end may still get its LF.
        piece = data[checked - data.endswith(b"\r", 0, checked) : len(data) - data.endswith(b"\r")]
        try:
            check_bytes(piece)
        except GatewayError:
            raise UpstreamProtocolError("The upstream's answer is malformed or ambiguous.") from None
        if not b"HTTP/1.".startswith(data[:7]):
            raise UpstreamProtocolError("The upstream's answer is not HTTP/1.1.")

    def _read_in_full(self, block: bytes) -> AnswerHead:
        lines = block.split(CRLF)
        try:
            start = self._learn_start(lines[0])
            head, minor = AnswerHead(*start), start[2]
            if len(lines) <= MAX_FIELDS + 1:
                try:
                    self._read(head, lines, minor)
                except NotCanonical:
                    pass  # h11 has the word on every head that is not canonical
                else:
                    self._templates.learn(lines[1:], self._memory, head, minor)
                    return head
            check_answer(block)
            head = AnswerHead(*start)
            self._read(head, _answer_by_h11(block), minor)
        except (GatewayError, NotCanonical, h11.ProtocolError):
            raise UpstreamProtocolError("The upstream's answer is malformed or ambiguous.") from None
        return head

    def _read(self, head: AnswerHead, lines: list[bytes], minor: int) -> None:
        kept, special = self._memory.sort(lines)
        head.lines = CRLF.join(kept)
        length = coding = options = upgrade = None
        announces = False
        for kind, value in special:
            if kind == CONTENT_LENGTH:
                length = _once(length, value, "Content-Length")
            elif kind == CONNECTION:
                options = value if options is None else options + b"," + value
            elif kind == TRANSFER_ENCODING:
                coding = _once(coding, value, "Transfer-Encoding")
            elif kind == DATE:
                head.dated = True
            elif kind == TRAILER:
                announces = True
            elif kind == UPGRADE:
                upgrade = value if upgrade is None else upgrade + b", " + value
        if options is not None:
            _apply_options(head, options)
        if coding is not None:
            if length is not None or minor == 0 or coding.lower() != b"chunked":
                raise NotCanonical
            head.length = CHUNKED
        elif length is not None:
            head.length = int(length)
        if announces:
            _apply_trailer(head)
        if upgrade is not None and head.status == 101 and _may_upgrade(minor, options):
            head.lines += fields.UPGRADES_TO + upgrade
            head.upgrade = frozenset(fields.list_members(upgrade))

    def _learn_start(self, line: bytes) -> tuple[int, bytes, int]:
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise NotCanonical
        start = (int(match[2]), b"HTTP/1.1 " + match[2] + (match[3] or b" "), 1 if match[1] == b"1" else 0)
        if len(line) <= MAX_LINE_REMEMBERED:
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
        head.lines = CRLF.join(fields.remove_named(head.lines.split(CRLF), options))


def _apply_rare(head: RequestHead, meanings: list[Meaning], options: bytes | None) -> None:
    """Do what is left to do once it is known how the request is framed."""
    takes_trailers = False
    for_the_proxy: list[bytes] = []
    protocols: list[bytes] = []
    for kind, value in meanings:
        if kind == EXPECT:
            _apply_expect(head, value)
        elif kind == TRAILER:
            _apply_trailer(head)
        elif kind == TE:
            takes_trailers = takes_trailers or fields.takes_trailers(value)
        elif kind == UPGRADE:
            protocols += fields.tunnelled_protocols(value)
        elif kind == PROXY_AUTHORIZATION and not head.target.startswith(b"/"):
            # What else the client authenticates with is meant for the API (RFC 9110 §11.7).
            for_the_proxy.append(value)
    head.bearer = _one_token(for_the_proxy)
    # A body would have to go before the switch (RFC 9110 §7.8). Nobody sends one with it, so it is not worth the care.
    if protocols and head.length == NO_BODY and _may_upgrade(head.minor, options):
        head.lines += fields.UPGRADES_TO + b", ".join(protocols)
        head.upgrade = frozenset([protocol.lower() for protocol in protocols])
    if takes_trailers and head.minor:  # a 1.0 client gets no chunked body, and so no trailers
        head.lines += fields.TAKES_TRAILERS


def _may_upgrade(minor: int, options: bytes | None) -> bool:
    """Whether an `Upgrade` counts: not in HTTP/1.0, nor where it was meant for the hop before (RFC 9110 §7.8)."""
    return minor == 1 and options is not None and b"upgrade" in fields.list_members(options)


def _apply_expect(head: RequestHead, value: bytes) -> None:
    """Take one `100-continue`; what else servers read into an `Expect` differs, and some then forget the body."""
    if value.lower() != b"100-continue" or head.expects_continue:
        raise BadRequest("The only expectation here is a single '100-continue'.")
    head.expects_continue = bool(head.minor)
    if not head.minor:  # a 1.0 client's is ignored, and must not reach a 1.1 server (RFC 9110 §10.1.1)
        head.lines = fields.without_field(head.lines, b"\r\nexpect:")


def _apply_trailer(head: RequestHead | AnswerHead) -> None:
    """Keep `Trailer` where trailers can follow, which the next hop may pass on only if they were announced.

    It is no connection-specific field (RFC 9110 §6.6.2, §7.6.1), but only a chunked body has a trailer section.
    """
    if head.length != CHUNKED:
        head.lines = fields.without_field(head.lines, b"\r\ntrailer:")


def _one_token(credentials: list[bytes]) -> bytes | None:
    """Return the token that all fields with one name; `TWO_TOKENS` if they differ, or a field is there twice.

    Which of them counts would be a guess, and another reader's would be another (RFC 9110 §5.3).

    Args:
        credentials: Each field's name in lower case, a colon, and its token, if there is one in it.
    """
    named = [credential.split(b":", 1) for credential in credentials]
    tokens = {token for _, token in named if token}
    if len(tokens) > 1 or len({name for name, _ in named}) < len(named):
        return TWO_TOKENS
    return tokens.pop() if tokens else None


def _request_by_h11(block: bytes) -> tuple[RequestHead, list[bytes]]:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES + len(HEAD_END))
    connection.receive_data(block + HEAD_END)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        if error.error_status_hint == 501:
            codings = [line.partition(b":") for line in block.split(CRLF)]
            values = [value for name, _, value in codings if name.lower() == b"transfer-encoding"]
            raise framing.other_coding(values[0] if len(values) == 1 else b"") from None
        if error.error_status_hint == 431:
            raise FieldsTooLarge from None
        raise BadRequest("The request head is not HTTP/1.1.") from None
    if not isinstance(event, h11.Request):
        raise BadRequest("The request head is not HTTP/1.1.")
    head = RequestHead(event.method, event.target, 1 if event.http_version == b"1.1" else 0)
    return head, [block.split(CRLF, 1)[0], *_canonical_lines(event.headers)]


def _answer_by_h11(block: bytes) -> list[bytes]:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES + len(HEAD_END))
    connection.send(h11.Request(method="GET", target="/", headers=_OFFER))
    connection.receive_data(block + HEAD_END)
    event = connection.next_event()
    if not isinstance(event, h11.Response | h11.InformationalResponse):
        raise NotCanonical
    return [block.split(CRLF, 1)[0], *_canonical_lines(event.headers)]


def _canonical_lines(headers: Headers) -> list[bytes]:
    """Spell each field as the fast path does; a length loses its leading zeros."""
    lines = []
    for raw_name, value in headers.raw_items():
        if raw_name.lower() == b"content-length":
            value = b"%d" % int(value)  # noqa: PLW2901 - h11 has checked that it is digits
        lines.append(raw_name + b": " + value if value else raw_name + b":")
    return lines
