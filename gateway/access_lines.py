"""What a line of the access log says: of each request one, in JSON or in the common log format. Pure."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from gateway.http1 import writer
from gateway.http1.message import CRLF

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.http1.message import RequestHead
    from gateway.http1.opening import Opening

MAX_PLACES: Final = 1024
MAX_ID_BYTES: Final = 128
MAX_METHOD_BYTES: Final = 64
MAX_PATH_BYTES: Final = 1500
"""A longer method or path is cut: with every byte of it escaped, a line stays below `access_log.ATOMIC_BYTES`.
A longer line could be torn by those of another worker."""

_SANE: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_.:/+=@"
_ESCAPED: Final = re.compile(rb'["\\]')
_AUTHORITY: Final = re.compile(rb"\A[A-Za-z]+://[^/]*")
# What it has begun to take, it keeps: else a path of nothing but `gw_` would take the square of its length.
_TOKEN: Final = re.compile(rb"gw_[A-Za-z0-9_-]{32,}(?:\.[A-Za-z0-9_-]+)?")
_TIMING: Final = writer.TIMING.decode().split("%.3f")
_TIMING_BEGIN: Final = len(_TIMING[0])
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_HEX: Final = b"0123456789abcdefABCDEF"
_DASH: Final = ord("-")
_NO_TRACE: Final = b"0" * 32
_NO_PARENT: Final = b"0" * 16
_REQUEST_ID: Final = b"\r\nx-request-id:"
_TRACEPARENT: Final = b"\r\ntraceparent:"


class Record(NamedTuple):
    """What there is to tell of a request.

    Args:
        head: Its head; None if it could not be read.
        own_lines: How many of the head's lines are the client's: behind them may be some of the gateway's.
        opening: What the head began with, if that was known: heads that begin so have the same fields.
        token_id, target: Whose it was and where it went, if that was found out.
        host: The client's address, where it is wanted.
        status: The answer's.
        received, sent: The bytes of the bodies.
        timing: How long it took, as in `writer.TIMING`.
        error: The code of what went wrong.
    """

    head: RequestHead | None
    own_lines: int
    opening: Opening[RequestHead] | None
    token_id: str | None
    target: str | None
    host: str
    status: int
    received: int
    sent: int
    timing: bytes
    error: str | None


class Lines(Protocol):
    """Makes lines of one kind."""

    def make(self, records: Sequence[Record], now_s: float) -> list[str]:
        """Return a line for each record, in ASCII, with its end.

        Args:
            records: In their order.
            now_s: When the first of them was taken, in seconds since the epoch: the time of all.
        """
        ...


_Key = tuple["str | None", "str | None", bytes, bytes]


class _Places:
    """Spells what is the same for all requests of one token to one path. Its query is nobody's business."""

    __slots__ = ("_is_json", "known")

    def __init__(self, *, is_json: bool) -> None:
        self._is_json = is_json
        self.known: dict[_Key, str] = {}

    def make(self, key: _Key) -> str:
        """Spell one that is not known."""
        token_id, name, method, target = key
        plain = _AUTHORITY.sub(b"", target.partition(b"?")[0])
        if b"gw_" in plain:  # a token, put where its id belongs
            plain = _TOKEN.sub(b"gw_***", plain)
        path = _ESCAPED.sub(rb"\\\g<0>", _cut(plain, MAX_PATH_BYTES)).decode()
        verb = _cut(method, MAX_METHOD_BYTES).decode()
        if self._is_json:
            words = (token_id, name, verb, path)
            place = '"token":{},"target":{},"method":{},"path":{}'.format(*map(_quoted, words))
        else:
            place = f"{verb} {path or '/'}" if verb else "-"
        if len(self.known) >= MAX_PLACES:
            self.known.clear()
        self.known[key] = place
        return place


class JsonLines:
    """One JSON object a line."""

    __slots__ = ("_count", "_places", "_prefix")

    def __init__(self) -> None:
        self._places = _Places(is_json=True)
        self._prefix = os.urandom(6).hex()
        self._count = 0

    def make(self, records: Sequence[Record], now_s: float) -> list[str]:
        """See `Lines`."""
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s))
        begin = f'{{"time":"{second}.{int(now_s % 1 * 1000):03d}Z","id":"'
        known, make_place = self._places.known, self._places.make
        lines = []
        for head, own_lines, opening, token_id, target, _, status, received, sent, timing, error in records:
            request_id = trace_id = ""
            if head is None:
                key = (token_id, target, b"", b"")
            else:
                key = (token_id, target, head.method, head.target)
                if opening is None or opening.ids_at is not None:
                    request_id, trace_id = ids_of(head.lines[1:own_lines], opening)
            if not request_id:
                self._count = count = self._count + 1
                request_id = f"{self._prefix}-{count:x}"
            place = known.get(key) or make_place(key)
            times = timing[_TIMING_BEGIN:].decode().replace(_TIMING[1], ',"upstream_ms":')
            line = (
                f'{begin}{request_id}",{place},"status":{status},"gateway_ms":{times},"bytes_in":{received},'
                f'"bytes_out":{sent},"error":'
            )
            if error is None and not trace_id:
                lines.append(line + 'null,"trace":null}\n')
            else:
                lines.append(f'{line}{_quoted(error)},"trace":{_quoted(trace_id)}}}\n')
        return lines


class CommonLines:
    """The common log format, that of Apache httpd's `common`, with the token's id as the user."""

    __slots__ = ("_places",)

    def __init__(self) -> None:
        self._places = _Places(is_json=False)

    def make(self, records: Sequence[Record], now_s: float) -> list[str]:
        """See `Lines`."""
        moment = time.gmtime(now_s)
        stamp = time.strftime(f"%d/{_MONTHS[moment.tm_mon - 1]}/%Y:%H:%M:%S +0000", moment)
        lines = []
        for record in records:
            head = record.head
            key = (None, None, b"", b"") if head is None else (None, None, head.method, head.target)
            place = self._places.known.get(key) or self._places.make(key)
            version = "" if head is None else f" HTTP/1.{head.minor}"
            user = record.token_id or "-"
            lines.append(f'{record.host} - {user} [{stamp}] "{place}{version}" {record.status} {record.sent}\n')
        return lines


def ids_of(own: list[bytes], opening: Opening[RequestHead] | None) -> tuple[str, str]:
    """Read the id that a client gave its request, and the trace id of `traceparent`; "" for none.

    Args:
        own: The client's field lines.
        opening: Remembers where in them they were.
    """
    lines = own[0] if len(own) == 1 else CRLF.join(own)
    places = (opening.ids_at if opening is not None else None) or _look_for(lines)
    request_at, request_name, trace_at, trace_name = places
    # Values before them may be longer or shorter than the last time.
    if request_name and not lines.startswith(request_name, request_at):
        request_at = lines.find(request_name)
    if trace_name and not lines.startswith(trace_name, trace_at):
        trace_at = lines.find(trace_name)
    if opening is not None:
        opening.ids_at = (request_at, request_name, trace_at, trace_name) if request_name or trace_name else None
    request_id = trace_id = ""
    if request_name and request_at >= 0:
        value = _value(lines, request_at + len(request_name))
        if len(value) <= MAX_ID_BYTES and not value.translate(None, _SANE):
            request_id = value.decode()
    if trace_name and trace_at >= 0:
        trace_id = _trace_id(_value(lines, trace_at + len(trace_name)))
    return request_id, trace_id


def _look_for(lines: bytes) -> tuple[int, bytes, int, bytes]:
    """Find both fields: where each is, and how it is spelled; b"" for none."""
    lower = CRLF + lines.lower()
    places: list[int | bytes] = []
    for name in (_REQUEST_ID, _TRACEPARENT):
        at = lower.find(name)  # which has a line's end before it, as `lines` has not before its first
        places += (at, lines[at : at + len(name) - len(CRLF)] if at >= 0 else b"")
    return tuple(places)  # type: ignore[return-value]  # two times two


def _value(lines: bytes, begin: int) -> bytes:
    end = lines.find(CRLF, begin)
    return lines[begin:end].strip() if end >= 0 else lines[begin:].strip()


def _cut(text: bytes, most: int) -> bytes:
    return text if len(text) <= most else text[:most] + b"..."


def _quoted(word: str | None) -> str:
    return f'"{word}"' if word else "null"


def _trace_id(value: bytes) -> str:
    """Read a `traceparent`; "" if it is none.

    Source: W3C Trace Context §3.2: no id is all zeros, no version is ff; a later one may have more behind the flags.
    """
    version, trace_id, parent = value[:2].lower(), value[3:35], value[36:52]
    if len(value) != 55 and (len(value) < 55 or version == b"00" or value[55] != _DASH):
        return ""
    if value[:55].translate(None, _HEX) != b"---" or not value[2] == value[35] == value[52] == _DASH:
        return ""
    if version == b"ff" or trace_id == _NO_TRACE or parent == _NO_PARENT:
        return ""
    return trace_id.decode().lower()
