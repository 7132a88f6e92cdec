"""What other readers make of the bytes that `tools/fuzz.py` feeds: h11, and one that takes nothing but the letter.

Nothing here asks the gateway how it reads; what it should pass on and leave out is said again, from the RFCs.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Final

import h11

from gateway.http1.message import CHUNKED, CRLF, HEAD_END, UNTIL_CLOSE, RequestHead
from tests.kit import wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.http1.message import AnswerHead

Fields = list[tuple[bytes, bytes]]
Read = tuple[tuple[str, object], ...]
"""All that a head's attributes say; or, of a head that was refused, the error."""

DROPPED: Final = frozenset(
    (
        b"connection",
        b"transfer-encoding",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"upgrade",
        b"http2-settings",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-authentication-info",
    )
)
# The gateway writes these itself, where they are wanted.
OURS: Final = frozenset((b"connection", b"te", b"transfer-encoding", b"upgrade"))
CREDENTIALS: Final = frozenset((b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"))
NEVER_NAMED: Final = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"authorization", b"content-type", b"date", b"expect")
)
_UPGRADES: Final = ("Connection", "upgrade")
# What a request may ask to switch to: no HTTP of any kind, nor TLS.
_PROTOCOL: Final = re.compile(
    rb"(?i)(?!(?:https?|shttp|spdy|h[0-9]+c?|tls|ssl)(?:[-/]|$))"
    rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:/[!#$%&'*+\-.^_`|~0-9A-Za-z]+)?"
)


class Finding(Exception):
    """Two readers disagree, or what is written cannot be read in one way.

    Args:
        what: What is wrong.
        data: The input that shows it, where that is not the one given.
    """

    def __init__(self, what: str, data: bytes | None = None) -> None:
        super().__init__(what)
        self.data = data


def require(holds: object, what: str) -> None:
    """Raise a finding unless something holds."""
    if not holds:
        raise Finding(what)


def agree(what: str, one: object, other: object) -> None:
    """Raise a finding unless two readings are the same."""
    if one != other:
        raise Finding(f"{what}:\n  {one!r}\n  {other!r}")


def pairs(lines: Sequence[bytes]) -> Fields:
    """Take field lines apart, of which an element may hold several."""
    each = CRLF.join(lines).split(CRLF)
    return [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in each if line)]


def request_by_h11(block: bytes) -> h11.Request:
    """Let h11 read a request head that the gateway has taken."""
    message = _next_by_h11(h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20), block)
    if not isinstance(message, h11.Request):
        raise Finding(f"h11 reads no request out of what was taken: {message!r}")
    return message


def answer_by_h11(block: bytes) -> h11.Response | h11.InformationalResponse:
    """Let h11 read an answer head that the gateway has taken."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    # With an offer to switch, so that h11 has nothing against a 101 as such.
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "h"), ("Upgrade", "x"), _UPGRADES]))
    message = _next_by_h11(connection, block)
    if not isinstance(message, h11.Response | h11.InformationalResponse):
        raise Finding(f"h11 reads no answer out of what was taken: {message!r}")
    return message


def _next_by_h11(connection: h11.Connection, block: bytes) -> object:
    connection.receive_data(block + HEAD_END)
    try:
        return connection.next_event()
    except h11.RemoteProtocolError as error:
        raise Finding(f"h11 refuses what was taken: {error}") from None


def by_h11(message: h11.Request | h11.Response | h11.InformationalResponse, extra: frozenset[bytes]) -> Read:
    """Spell what h11 read as the gateway should: names, values, framing, persistence."""
    fields = list(message.headers.raw_items())
    named = [part.strip(b" \t").lower() for name, value in message.headers if name == b"connection"
             for part in value.split(b",")]  # fmt: skip
    dropped = DROPPED | extra | (frozenset(named) - NEVER_NAMED)
    minor = 1 if message.http_version == b"1.1" else 0
    if isinstance(message, h11.Request) and minor == 0:
        dropped |= {b"expect"}
    if not any(name == b"transfer-encoding" for name, _ in message.headers):
        dropped |= {b"trailer"}
    lengths = [value for name, value in message.headers if name == b"content-length"]
    codings = [value for name, value in message.headers if name == b"transfer-encoding"]
    none = 0 if isinstance(message, h11.Request) else UNTIL_CLOSE
    length = CHUNKED if codings else int(lengths[0]) if lengths else none
    kept = [
        (name, b"%d" % int(value) if name.lower() == b"content-length" else value)
        for name, value in fields
        if name.lower() not in dropped
    ]
    kept += _added(message, named, length) if minor else []
    keep_alive = b"close" not in named and (minor == 1 or b"keep-alive" in named)
    if isinstance(message, h11.Request):
        own: tuple[str, object] = ("minor", minor)
    else:
        own = ("dated", any(name == b"date" for name, _ in message.headers))
    return (("lines", kept), ("length", length), own, ("keep_alive", keep_alive))


def _added(message: h11.Request | h11.Response | h11.InformationalResponse, named: list[bytes], length: int) -> Fields:
    """What an HTTP/1.1 message says to this hop and the gateway says again to the next (RFC 9110 §7.8, §10.1.4)."""
    offers = [value for name, value in message.headers if name == b"upgrade"]
    if isinstance(message, h11.Request):
        members = [member.strip(b" \t") for value in offers for member in value.split(b",")]
        offers = [member for member in members if _PROTOCOL.fullmatch(member)]
        counts = length == 0
    else:
        counts = message.status_code == 101
    added = []
    if offers and b"upgrade" in named and counts:
        added = [(b"Connection", b"Upgrade"), (b"Upgrade", b", ".join(offers))]
    codings = [value for name, value in message.headers if name == b"te" and b'"' not in value]
    members = [member.strip(b" \t").lower() for value in codings for member in value.split(b",")]
    if isinstance(message, h11.Request) and b"trailers" in members:
        added += [(b"TE", b"trailers"), (b"Connection", b"TE")]
    return added


def as_h11(head: RequestHead | AnswerHead) -> Read:
    """Spell what the gateway read as `by_h11` does."""
    return (
        ("lines", pairs((head.lines,))),
        ("length", head.length),
        ("minor", head.minor) if isinstance(head, RequestHead) else ("dated", head.dated),
        ("keep_alive", head.keep_alive),
    )


def strictly(written: bytes) -> wire.Message:
    """Read a head that the gateway has written, and nothing but one."""
    message, rest = wire.read_head(written)
    require(not rest, f"there is more than one head in {written!r}")
    names = {name.lower() for name in message.names}
    require(not names & (DROPPED - OURS), f"a field of this hop goes on: {written!r}")
    return message


def under(path: bytes, base: bytes) -> bool:
    """Whether a path is a base path, or what follows it is more of the path, or the query."""
    return path.startswith((base + b"/", base + b"?")) or (path == base != b"")


def leaves(path: bytes) -> bool:
    """Whether a server that decodes a path once is led out of the directory, whichever slashes it takes for one."""
    path = path.partition(b"?")[0]

    def decode(text: bytes) -> bytes:
        return re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes((int(match[1], 16),)), text)

    # First what is split as it was sent, then what is split behind the decoding.
    readings = [list(map(decode, re.split(slashes, path))) for slashes in (rb"/", rb"[/\\]")]
    readings += [re.split(rb"[/\\]", decode(path)), re.split(rb"/", decode(path))]
    for segments, keep_empty in itertools.product(readings, (True, False)):
        depth = 0
        for segment in segments[1:]:
            plain = segment.partition(b";")[0]
            if plain == b"..":
                depth -= 1
            elif plain != b"." and (plain or keep_empty):
                depth += 1
            if depth < 0:
                return True
    return False


def chunks_by_h11(data: bytes) -> tuple[bytes, Fields, bytes] | None:
    """Let h11 read a chunked body: content, trailers, and what lies behind; None if it refuses it, or wants more."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    content = b""
    try:
        connection.next_event()
        while isinstance(event := connection.next_event(), h11.Data):
            content += event.data
    except h11.RemoteProtocolError:
        return None
    if not isinstance(event, h11.EndOfMessage):
        return None
    return content, list(event.headers.raw_items()), connection.trailing_data[0]
