"""From a client's request-target to the upstream's head: the prefix replaced, the key put in. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from gateway.errors import BadRequest
from gateway.http1 import fields
from gateway.http1.message import CHUNKED, CRLF, HEAD_END

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.config import Target
    from gateway.http1.message import AnswerHead, RequestHead

MAX_TARGETS: Final = 1024
MAX_TARGET_REMEMBERED: Final = 256  # bytes

# RFC 3986 §3.1, §3.2.2: scheme and host in any case; §3.2.3: a port may be empty. The gate has found it well-formed.
_URL: Final = re.compile(rb"(?i)(https?)://([^/?]*?)(?::([0-9]*))?([/?].*)?")
_DEFAULT_PORTS: Final = {b"http": b"80", b"https": b"443"}

# What servers take for the end of a path segment, each its own: what one splits in two, and climbs out of twice, is one
# segment for another. And what some server might take for a dot segment, or an empty one: with parameters behind it, or
# with what it cuts off when it has decoded that (controls, blanks, '#', '?'). Those of Microsoft's decode %u002e, too.
_SEPARATORS: Final = tuple(
    re.compile(b"(?i)" + ends)
    for ends in (b"/", rb"/|\\", rb"/|%(?:u00)?2f", rb"/|\\|%(?:u00)?5c", rb"/|\\|%(?:u00)?(?:2f|5c)")
)
_PARAMETERS: Final = re.compile(rb";[^/]*")
_DOT: Final = rb"(\.|%(?:u00)?2e)"
_DOTS: Final = re.compile(rb"(?i)%b?%b?(?:(?:;|%%(?:[01][0-9a-f]|2[03]|3[bf])).*)?" % (_DOT, _DOT))
_TWO_DOTS: Final = re.compile(rb"(?i)%b%b" % (_DOT, _DOT))

MAX_SEGMENTS: Final = 256
"""Of a path with two dots in a row, which is read in each of these ways: a millisecond's work."""


_LONG_KEY: Final = 8
"""A key of so many characters is nowhere by chance."""


class TargetRoute:
    """Writes request heads for one target.

    Args:
        target: Where requests go, and the key that they carry there.
        name: What tokens call it.

    Attributes:
        name: As above.
        prefix: The target's.
        reads_answers: Whether `hide_key` does anything.
        key: Tells keys apart: what carries it, and to where.
    """

    __slots__ = (
        "_authorities",
        "_base",
        "_host",
        "_key_query",
        "_on_answer",
        "_plain_key",
        "_replaced",
        "_shows_key",
        "_starts",
        "_tail",
        "_tail_chunked",
        "key",
        "name",
        "prefix",
        "reads_answers",
    )

    def __init__(self, target: Target, name: str = "api") -> None:
        self.name = name
        self.key = (target.url, target.key_line or target.key_query or b"")
        self.prefix = target.prefix
        self._on_answer: Callable[[AnswerHead], None] | None = None
        self.reads_answers = target.key_query is not None
        self._base = target.base_path
        self._authorities = target.authorities
        self._host = b" HTTP/1.1\r\nHost: " + target.authority
        self._key_query = target.key_query
        self._plain_key = unquote_to_bytes((target.key_query or b"").partition(b"=")[2])
        self._shows_key = None if target.key_query is None else _key_in_urls(target.key_query)
        # Credentials that clients send never get this far; a field of any other name has to be looked for.
        own = {target.key_field} if target.key_field is not None else set()
        replaced = (target.removed | own) - fields.REQUEST_FIELDS.keys()
        self._replaced = frozenset(name.replace(b"_", b"-") for name in replaced)
        added = target.added if target.key_line is None else (*target.added, target.key_line)
        self._tail = b"".join([CRLF + line for line in added]) + HEAD_END
        self._tail_chunked = b"\r\nTransfer-Encoding: chunked" + self._tail
        self._starts: dict[tuple[bytes, bytes], bytes] = {}

    @property
    def base_size(self) -> int:
        """How long the target's own path is."""
        return len(self._base)

    def owns(self, url: bytes) -> bool:
        """Whether a URL lies under this target's own."""
        return self._rest_of_url(url) is not None

    def path_of(self, target: bytes) -> bytes:
        """Return what a request-target has behind the prefix, or a URL behind the target's own, query and all."""
        return target[len(self.prefix) :] if target.startswith(b"/") else self._rest_of_url(target) or b""

    def _rest_of_url(self, target: bytes) -> bytes | None:
        """Return what a URL has behind this target's; None if it is no URL, or another's.

        A client that takes the gateway for its HTTP proxy writes `http` for a target of either scheme, since of `https`
        it would send nothing but a CONNECT. So the schemes' default ports count as one.
        """
        url = None if target.startswith(b"/") else _URL.fullmatch(target)
        if url is None:
            return None
        authority, port = url[2].lower(), (url[3] or b"").lstrip(b"0")
        if port and port != _DEFAULT_PORTS[url[1].lower()]:
            authority += b":" + port
        if authority not in self._authorities:
            return None
        rest = url[4] or b""
        if not rest.startswith(self._base):
            return None
        rest = rest[len(self._base) :]
        return rest if not rest or rest.startswith((b"/", b"?")) else None

    def start_of(self, head: RequestHead) -> bytes:
        """Return how the upstream's request head begins: the request line, and `Host`.

        Raises:
            BadRequest: The path's dot segments climb out of the prefix.
        """
        method, target = head.method, head.target
        return self._starts.get((method, target)) or self._write_start(method, target)

    def write_head(self, head: RequestHead, start: bytes, content: bytes = b"") -> bytes:
        """Make the upstream's request head. Strips first, then adds, so that no client can name our fields.

        Args:
            head: The client's.
            start: What `start_of` says of it.
            content: What goes behind the head in the same piece.
        """
        lines = head.lines
        if self._replaced:
            lines = CRLF.join(self._without_replaced(lines.split(CRLF)))
        return b"".join((start, lines, self._tail_chunked if head.length == CHUNKED else self._tail, content))

    def request_trailers(self, lines: list[bytes]) -> list[bytes]:
        """Return the trailers of a client's that go upstream: not those that some would merge into our fields."""
        kept = fields.passable_trailers(lines)
        return self._without_replaced(kept) if self._replaced else kept

    def _without_replaced(self, lines: list[bytes]) -> list[bytes]:
        """Drop what is not a client's to send, also in the names of CGI and its heirs, which have `_` for `-`."""
        return [line for line in lines if line.partition(b":")[0].lower().replace(b"_", b"-") not in self._replaced]

    def answer_trailers(self, lines: list[bytes]) -> list[bytes]:
        """Return the trailers of the upstream's that go to the client, as `hide_key` does."""
        return self._without_key(fields.passable_trailers(lines))

    def hide_key(self, head: AnswerHead) -> None:
        """Cut the key out of an answer's head, where it went upstream in the query and may come back in a URL.

        Whoever watches the answers sees this one.
        """
        if self._on_answer is not None:
            self._on_answer(head)
        if self._key_query is not None:
            head.start, head.lines = self._without_key([head.start, head.lines])

    def watch_answers(self, on_answer: Callable[[AnswerHead], None]) -> None:
        """Have the head of each answer looked at."""
        self._on_answer = on_answer
        self.reads_answers = True

    def _without_key(self, lines: list[bytes]) -> list[bytes]:
        shows, key = self._shows_key, self._plain_key
        if shows is None:
            return lines
        # Without a '%' nothing is escaped, and that is soon seen.
        return [shows.sub(_what_is_left, line) if b"%" in line or key in line else line for line in lines]

    def _write_start(self, method: bytes, target: bytes) -> bytes:
        """Write what `start_of` returns."""
        path = self.path_of(target)
        if _climbs(path.partition(b"?")[0]):
            raise BadRequest("The path climbs out of its prefix with dot segments, or has too many others.")
        if not path.startswith(b"/") and not self._base:
            path = b"/" + path
        path = self._base + path
        if self._key_query is not None:
            path += (b"&" if b"?" in path else b"?") + self._key_query
        start = method + b" " + path + self._host
        if len(target) + len(method) <= MAX_TARGET_REMEMBERED:
            if len(self._starts) >= MAX_TARGETS:
                self._starts.clear()
            self._starts[method, target] = start
        return start


def _key_in_urls(pair: bytes) -> re.Pattern[bytes]:
    """Return what finds a key in URLs, or in a URL within a URL, however it is escaped there.

    Args:
        pair: `name=key` as it went upstream.
    """
    name, _, key = map(unquote_to_bytes, pair.partition(b"="))
    found = b"(?P<before>[?&])" + _spellings(name) + b"=" + _spellings(key) + b"(?P<behind>&?)"
    return re.compile(found if len(key) < _LONG_KEY else found + b"|" + _spellings(key))


def _spellings(text: bytes) -> bytes:
    """Write a pattern for a text of which any character may be escaped, once or again and again."""
    return b"".join(b"(?:%b|%%(?:25)*(?i:%02x))" % (re.escape(text[at : at + 1]), text[at]) for at in range(len(text)))


def _what_is_left(match: re.Match[bytes]) -> bytes:
    return match["before"] if match["behind"] else b""


def _climbs(path: bytes) -> bool:
    """Whether some server could read the path as leaving the directory it starts in, or nobody can tell soon enough."""
    if (b"." not in path and b"%" not in path) or _TWO_DOTS.search(path) is None:
        return False
    if len(_SEPARATORS[-1].findall(path)) > MAX_SEGMENTS:
        return True
    readings = _SEPARATORS if b"%" in path or b"\\" in path else _SEPARATORS[:1]
    # Who cuts parameters off before he decodes the rest never sees the slashes that are escaped in them.
    paths = (path, _PARAMETERS.sub(b"", path)) if b";" in path else (path,)
    return any(_climbs_out(separator.split(one)[1:]) for one in paths for separator in readings)


def _climbs_out(segments: list[bytes]) -> bool:
    depth = 0
    for segment in segments:
        dots = _DOTS.fullmatch(segment)
        if dots is None:
            depth += 1
        elif dots.lastindex == 2:
            depth -= 1
            if depth < 0:
                return True
    return False
