"""The strict gate: refuses on a head's raw bytes what h11 would let through or repair.

It runs before h11 on every head that the fast path did not take. Whatever could be read in two ways is refused,
never repaired: a second reading is how a request is smuggled past the limits and onto the real key.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Final

from gateway.errors import (
    BadRequest,
    FieldsTooLarge,
    HttpVersionUnsupported,
    TargetTooLong,
)
from gateway.http1.message import CRLF, MAX_FIELDS, MAX_LINE_BYTES

TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
"""A token (RFC 9110 §5.6.2), possessive: it never gives bytes back."""

_METHOD: Final = re.compile(TOKEN)
_VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]")
_TARGET: Final = re.compile(rb"[\x21\x22\x24-\x7e]+")
_ABSOLUTE: Final = re.compile(rb"(?i)https?://([^/?]+)(?:[/?].*)?")
_AUTHORITY: Final = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+):[0-9]{1,5}")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] [1-9][0-9]{2}(?: [\t \x21-\x7e\x80-\xff]*)?")
_FIELD_LINE: Final = re.compile(TOKEN + rb":[\t \x21-\x7e\x80-\xff]*+")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# uri-host [":" port] (RFC 9110 §7.2, RFC 3986 §3.2.2): a bracketed address, or a registered name or IPv4 address.
_HOST: Final = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]+)\]|\[v[0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+\]"
    rb"|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]{0,5})?"
)


def check_request(block: bytes) -> None:
    """Refuse a request head that is not exactly RFC 9112.

    Args:
        block: The head without the empty line that ends it.

    Raises:
        BadRequest: Malformed, or readable in more than one way.
        HttpVersionUnsupported: A version other than HTTP/1.0 and HTTP/1.1.
        TargetTooLong, FieldsTooLarge: Beyond the bounds in message.py.
    """
    check_bytes(block)
    start, *fields = block.split(CRLF)
    check_request_line(start)
    check_fields(fields)


def check_request_line(line: bytes) -> None:
    """Refuse a request line that is not exactly RFC 9112 §3. Raises as `check_request` does."""
    if len(line) > MAX_LINE_BYTES:
        raise TargetTooLong(f"The request line is longer than {MAX_LINE_BYTES} bytes.")
    parts = line.split(b" ")
    if len(parts) != 3:
        raise BadRequest("The request line is not 'METHOD TARGET VERSION' with single spaces.")
    method, target, version = parts
    if not _METHOD.fullmatch(method):
        raise BadRequest("The method is not a token.")
    if not _VERSION.fullmatch(version):
        raise BadRequest("The HTTP version is malformed.")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise HttpVersionUnsupported("This gateway speaks HTTP/1.1 and HTTP/1.0.")
    _check_target(method, target)


def check_answer(block: bytes) -> None:
    """Refuse an answer head that is not exactly RFC 9112. See `check_request`.

    Raises:
        BadRequest, FieldsTooLarge: The caller turns them into `UpstreamProtocolError`.
    """
    check_bytes(block)
    start, *fields = block.split(CRLF)
    if not _STATUS_LINE.fullmatch(start):
        raise BadRequest("The status line is malformed.")
    check_fields(fields)


def check_bytes(piece: bytes) -> None:
    """Refuse a control byte, a CR that no LF follows, and an LF that no CR leads.

    Args:
        piece: Any part of a head or a trailer section; a CR that ends it counts as one without its LF.

    Raises:
        BadRequest: There is one.
    """
    if _CONTROL.search(piece):
        raise BadRequest("There is a control byte in the head or the trailers.")
    # Either could end a line for somebody (RFC 9112 §2.2). To count them takes a hundredth of what a pattern takes.
    pairs = piece.count(CRLF)
    if piece.count(b"\r") != pairs or piece.count(b"\n") != pairs:
        raise BadRequest("There is a bare CR or a bare LF in the head or the trailers.")


def _check_target(method: bytes, target: bytes) -> None:
    if not _TARGET.fullmatch(target):
        raise BadRequest("The request-target is empty, has a fragment, or has a byte that belongs percent-encoded.")
    if method == b"CONNECT":
        if not _AUTHORITY.fullmatch(target):
            raise BadRequest("CONNECT takes host:port.")
    elif target == b"*":
        if method != b"OPTIONS":
            raise BadRequest("Only OPTIONS takes the asterisk-form.")
    elif not target.startswith(b"/"):
        match = _ABSOLUTE.fullmatch(target)
        # User information is a sign of somebody who hides where a URL leads (RFC 9110 §4.2.4).
        if match is None or not is_host(match[1]) or match[1].startswith(b":"):
            raise BadRequest("The request-target is neither a path nor an http URL with a host.")


def check_fields(lines: list[bytes]) -> None:
    """Refuse malformed field lines (RFC 9112 §5), whether a head's or a trailer section's (§7.1.2).

    Raises:
        BadRequest: A line is malformed, or lengths contradict or repeat each other.
        FieldsTooLarge: There are too many lines, or one is too long.
    """
    if len(lines) > MAX_FIELDS:
        raise FieldsTooLarge(f"There are more than {MAX_FIELDS} fields.")
    lengths = 0
    for line in lines:
        if len(line) > MAX_LINE_BYTES:
            raise FieldsTooLarge(f"A field line is longer than {MAX_LINE_BYTES} bytes.")
        if not _FIELD_LINE.fullmatch(line):
            raise BadRequest("A field line is folded, has no name or colon, or has a byte that a field may not have.")
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            # h11 merges equal lengths, repeated or listed; the next parser down the line might not.
            lengths += 1
            if lengths > 1 or not _LENGTH.fullmatch(value.strip(b" \t")):
                raise BadRequest("Content-Length is repeated, or is not 1 to 18 digits.")


def is_host(value: bytes) -> bool:
    """Whether a value is one that `Host` may have (RFC 9110 §7.2)."""
    match = _HOST.fullmatch(value)
    return match is not None and (match[1] is None or _is_ipv6(match[1].decode()))


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True
