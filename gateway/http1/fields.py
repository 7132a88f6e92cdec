"""What a field means to a gateway: passed on, read, or kept from the other side (RFC 9110 §7.6.1)."""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from typing import TYPE_CHECKING, Final

from gateway.http1.gate import TOKEN
from gateway.http1.message import CRLF

if TYPE_CHECKING:
    from collections.abc import Collection

    from gateway.http1.message import RequestHead

# Kinds of field. Plain ints: they are compared for every line of every head.
PLAIN: Final = 0
HOST: Final = 1
CONTENT_LENGTH: Final = 2
AUTHORIZATION: Final = 3
CONNECTION: Final = 4
TRANSFER_ENCODING: Final = 5
API_KEY: Final = 6
EXPECT: Final = 7
DROPPED: Final = 8
TE: Final = 9
TRAILER: Final = 10
UPGRADE: Final = 11
PROXY_AUTHORIZATION: Final = 12  # read in the proxy form alone
DATE: Final = 13  # an answer's

_RETRY: Final = re.compile(rb"\r\nx-stainless-retry-count: *0*[1-9]", re.IGNORECASE)

_HOP_BY_HOP: Final = (
    b"keep-alive",
    b"proxy-connection",
    b"http2-settings",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-authentication-info",
)

REQUEST_FIELDS: Final[dict[bytes, int]] = {
    b"host": HOST,
    b"content-length": CONTENT_LENGTH,
    b"authorization": AUTHORIZATION,
    b"connection": CONNECTION,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"x-api-key": API_KEY,
    b"api-key": API_KEY,
    b"x-goog-api-key": API_KEY,
    b"expect": EXPECT,
    b"te": TE,
    b"trailer": TRAILER,
    b"upgrade": UPGRADE,
    **dict.fromkeys(_HOP_BY_HOP, DROPPED),
    b"proxy-authorization": PROXY_AUTHORIZATION,
}

ANSWER_FIELDS: Final[dict[bytes, int]] = {
    b"content-length": CONTENT_LENGTH,
    b"connection": CONNECTION,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"te": DROPPED,
    b"trailer": TRAILER,
    b"upgrade": UPGRADE,
    b"date": DATE,
    **dict.fromkeys(_HOP_BY_HOP, DROPPED),
}

# The only member of `TE` that is a promise for all downstream clients (RFC 9110 §10.1.4); the codings are for the next
# server, which is the gateway, and it has none. A sender of TE must name it in Connection.
TAKES_TRAILERS: Final = b"\r\nTE: trailers\r\nConnection: TE"

# A sender of `Upgrade` must name it in Connection (RFC 9110 §7.8).
UPGRADES_TO: Final = b"\r\nConnection: Upgrade\r\nUpgrade: "
_PROTOCOL: Final = re.compile(TOKEN + rb"(?:/" + TOKEN + rb")?+")
# HTTP of any version or spelling, and TLS, in which HTTP would go on (RFC 2817): with these behind a 101, one counted
# request could carry any number of others, past the limits and with no look at their paths.
_CARRIES_HTTP: Final = re.compile(rb"(?:s?https?|spdy|h[0-9]+c?|tls|ssl)(?:[-/].*)?")

# Named in `Connection` by a client, these would take the message apart: they are ours to set, never its to remove
# (RFC 9110 §7.6.1 forbids a sender to list them; a hostile one does).
_NEVER_REMOVED: Final = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"authorization", b"content-type", b"date", b"expect")
)

# Trailers may carry none of the fields that frame, route, authenticate or describe the message (RFC 9110 §6.5.1).
FORBIDDEN_TRAILERS: Final = frozenset(
    (
        *REQUEST_FIELDS,
        b"content-encoding",
        b"content-type",
        b"content-range",
        b"cache-control",
        b"cookie",
        b"set-cookie",
        b"max-forwards",
        b"www-authenticate",
    )
)


def list_members(value: bytes) -> list[bytes]:
    """Split a comma-separated field value into its lower-cased, non-empty members (RFC 9110 §5.6.1)."""
    return [member for member in (part.strip(b" \t").lower() for part in value.split(b",")) if member]


def takes_trailers(te: bytes) -> bool:
    """Whether a value of `TE` has the member `trailers` (RFC 9110 §10.1.4).

    One with a quoted string counts as without: a comma in it ends no member, and nobody quotes there.
    """
    return b'"' not in te and b"trailers" in list_members(te)


def tunnelled_protocols(upgrade: bytes) -> list[bytes]:
    """List the members of a client's `Upgrade` that an upstream may be offered, as they are spelled (RFC 9110 §7.8)."""
    members = [part.strip(b" \t") for part in upgrade.split(b",")]
    return [member for member in members if _PROTOCOL.fullmatch(member) and not _CARRIES_HTTP.fullmatch(member.lower())]


def passable_trailers(lines: list[bytes]) -> list[bytes]:
    """Drop the trailers that no message may set at its end."""
    return without(lines, FORBIDDEN_TRAILERS)


def remove_named(lines: list[bytes], options: list[bytes]) -> list[bytes]:
    """Drop the lines whose names `Connection` lists (RFC 9110 §7.6.1).

    Args:
        lines: Field lines, `name: value`.
        options: Lower-cased connection options.
    """
    return without(lines, {option for option in options if option not in _NEVER_REMOVED})


def without(lines: list[bytes], names: Collection[bytes]) -> list[bytes]:
    """Drop the lines with these names, given in lower case."""
    return [line for line in lines if line.partition(b":")[0].lower() not in names]


def only(good: bytes) -> bytes:
    """Return a table for `bytes.translate` that leaves what is all of these bytes as it is, and nothing else.

    Args:
        good: One byte at least.
    """
    return bytes(byte if byte in good else good[0] for byte in range(256))


def without_field(lines: bytes, start: bytes) -> bytes:
    """Drop the lines of one name; `without` for whoever has them joined.

    Args:
        lines: Each with the line end before it.
        start: Of such a line: CRLF, its name in lower case, and the colon.
    """
    lowered = lines.lower()
    at = lowered.find(start)
    if at < 0:
        return lines
    kept, end = [lines[:at]], at
    while at >= 0:
        kept.append(lines[end:at])
        end = lowered.find(CRLF, at + 2)
        if end < 0:
            break
        at = lowered.find(start, end)
    else:
        kept.append(lines[end:])
    return b"".join(kept)


def credential(authorization: bytes) -> bytes | None:
    """Read a client's token from the value of `Authorization`, or of `Proxy-Authorization`.

    Args:
        authorization: `Bearer TOKEN` (RFC 6750 §2.1) or `Basic BASE64` (RFC 7617), where the token is the user
            name or, if that is empty, the password. Schemes are case-insensitive (RFC 9110 §11.1).

    Returns:
        The token, or None if there is none in it.
    """
    scheme, _, rest = authorization.partition(b" ")
    rest = rest.strip(b" ")
    match scheme.lower():
        case b"bearer":
            return rest or None
        case b"basic":
            try:
                user, _, password = b64decode(rest, validate=True).partition(b":")
            except (Base64Error, ValueError):
                return None
            return user or password or None
    return None


def is_retry(head: RequestHead) -> bool:
    """Whether an SDK says that it sends this request again by itself (the official OpenAI and Anthropic SDKs do)."""
    return _RETRY.search(head.lines) is not None
