"""The fields that name a request and its trace, for the log: which a head has, and what is a good value of each."""

from __future__ import annotations

import re
import string
from typing import Final

from gateway.http1.fields import only
from gateway.http1.message import CRLF

Ids = tuple[bytes, bytes]
"""The id that a client gave its request, and the trace id of `traceparent`, in lower case; b"" for none."""

NO_IDS: Final[Ids] = (b"", b"")
REQUEST_ID: Final = b"x-request-id"
TRACEPARENT: Final = b"traceparent"
MAX_ID_BYTES: Final = 128

_ID: Final = rb"(?P<id>[A-Za-z0-9_.:/+=@-]{1,%d}+)" % MAX_ID_BYTES
_TRACE: Final = (
    rb"(?:00|(?P<later>(?!00|[Ff]{2})[0-9A-Fa-f]{2}))-(?P<id>(?!0{32})[0-9A-Fa-f]{32}+)-(?!0{16})[0-9A-Fa-f]{16}+"
    rb"-[0-9A-Fa-f]{2}(?(later)(?:-[^\r\n]*)?)"
)
"""Source: W3C Trace Context §3.2: no id is all zeros, no version is ff; a later one may have more behind the flags."""
_BLANK: Final = rb"[ \t]*+"
_END: Final = rb"[ \t]*+(?:\r\n|\Z)"
_match_id: Final = re.compile(_BLANK + _ID + _END).match
_match_trace: Final = re.compile(_BLANK + _TRACE + _END).match

VERSION: Final = b"00-"
"""What nearly every `traceparent` begins with."""
SIZES: Final = {
    REQUEST_ID: range(1, MAX_ID_BYTES + 1),
    TRACEPARENT: (len(b"0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),),
}
"""How long a value may be, by the field's name; that of `traceparent` without its version."""

PLAIN: Final = only(f"{string.ascii_letters}{string.digits}_.:/+=@-".encode())
"""Leaves a request's id as it is, and no other value."""
HEX: Final = bytes.maketrans(b"0123456789abcdefx", b"xxxxxxxxxxxxxxxx!")
TRACE_IN_HEX: Final = b"-".join((b"x" * 32, b"x" * 16, b"x" * 2))
"""What `HEX` makes of a `traceparent` without its version."""
FIRST_TRACE: Final = b"0" * 31 + b"1"
"""What is less than this has a trace id that is all zeros."""
PARENT: Final = slice(33, 49)
NO_PARENT: Final = b"0" * 16


def read(lines: bytes) -> Ids:
    """Look for both in field lines, each with a line end before it; the first of a name counts."""
    lower = lines.lower()
    request_at, trace_at = lower.find(CRLF + REQUEST_ID + b":"), lower.find(CRLF + TRACEPARENT + b":")
    request = None if request_at < 0 else _match_id(lines, lines.index(b":", request_at) + 1)
    trace = None if trace_at < 0 else _match_trace(lines, lines.index(b":", trace_at) + 1)
    return b"" if request is None else request["id"], b"" if trace is None else trace["id"].lower()
