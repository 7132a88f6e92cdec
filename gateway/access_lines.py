"""What a line of the access log says: of each request one, in JSON or in the common log format. Pure."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from gateway.budgets.budget import spelled
from gateway.http1 import writer
from gateway.http1.message import CRLF

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.http1.message import RequestHead
    from gateway.http1.opening import Opening, Place

MAX_PLACES: Final = 1024
MAX_BATCH: Final = 256
"""Lines in one batch: of more in a tenth of a second, some go sooner. To make them takes less than a millisecond."""
MAX_METHOD_BYTES: Final = 64
MAX_PATH_BYTES: Final = 1500
"""A longer method or path is cut: with every byte of it escaped, a line stays below `access_log.ATOMIC_BYTES`.
A longer line could be torn by those of another worker."""

_ESCAPED: Final = re.compile(rb'["\\]')
_AUTHORITY: Final = re.compile(rb"\A[A-Za-z]+://[^/]*")
# What it has begun to take, it keeps: else a path of nothing but `gw_` would take the square of its length.
_TOKEN: Final = re.compile(rb"gw_[A-Za-z0-9_-]{32,}(?:\.[A-Za-z0-9_-]+)?")
_OWN_TIME, _UPSTREAM_TIME, _ = writer.TIMING.split(b"%.3f")
_TIMES_AT: Final = len(_OWN_TIME)
_UPSTREAM_MS: Final = b',"upstream_ms":'
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_REQUEST_ID: Final = b"\r\nx-request-id:"
_TRACEPARENT: Final = b"\r\ntraceparent:"
_ID_VALUE: Final = rb"[ \t]*+(?P<id>[A-Za-z0-9_.:/+=@-]{1,128}+)[ \t]*+(?:\r\n|\Z)"
_TRACE_VALUE: Final = (
    rb"[ \t]*+(?:00|(?!00|[Ff]{2})([0-9A-Fa-f]{2}))-(?P<id>(?!0{32})[0-9A-Fa-f]{32}+)-(?!0{16})[0-9A-Fa-f]{16}+"
    rb"-[0-9A-Fa-f]{2}(?(1)(?:-[^\r\n]*)?)[ \t]*+(?:\r\n|\Z)"
)
"""Of a `traceparent`.

Source: W3C Trace Context §3.2: no id is all zeros, no version is ff; a later one may have more behind the flags.
"""


class Spent(NamedTuple):
    """What there is to tell of a request to a target whose requests cost something.

    Args:
        request: Its id, as the ledger has it.
        cost: Atoms by unit; None: its answer is read on, and nobody knows yet.
    """

    request: str
    cost: Mapping[str, int] | None

    def spelled(self) -> bytes:
        """Return the members of a JSON object that say so."""
        cost = None if self.cost is None else {unit: spelled(atoms, unit) for unit, atoms in self.cost.items()}
        return b'"request":"%b","cost":%b' % (self.request.encode(), json.dumps(cost, separators=(",", ":")).encode())


class Record(NamedTuple):
    """What there is to tell of a request.

    Args:
        head: Its head; None if it could not be read.
        opening: What the head began with, if that was known: heads that begin so have the same fields.
        token_id, target: Whose it was and where it went, if that was found out.
        host: The client's address, where it is wanted.
        status: The answer's.
        received, sent: The bytes of the bodies.
        timing: How long it took, as in `writer.TIMING`.
        error: The code of what went wrong.
        spent: What it did cost, where it went to a target whose requests cost something.
    """

    head: RequestHead | None
    opening: Opening[RequestHead] | None
    token_id: str | None
    target: str | None
    host: str
    status: int
    received: int
    sent: int
    timing: bytes
    error: str | None
    spent: Spent | None = None


class Lines(Protocol):
    """Gathers lines of one kind, in ASCII."""

    def add(self, record: Record) -> None:
        """Take what there is to tell of a request."""
        ...

    def again(  # noqa: PLR0917 - to put them into a tuple first would take longer
        self,
        opening: Opening[RequestHead],
        target: str,
        head: RequestHead,
        status: int,
        timing: bytes,
        received: int,
        sent: int,
    ) -> bool:
        """Take what there is to tell of a request that passed, the quick way.

        Args:
            opening: What its head began with; so whose it was is known as well.
            target: As in `Record`, and so are the others.
            head: Its head.
            status: The answer's.
            timing: How long it took.
            received: The bytes of the request's body.
            sent: The bytes of the answer's.

        Returns:
            Whether it was taken; else it has to be given to `add`, which will know the next one.
        """
        ...

    def take(self) -> tuple[bytes, int]:
        """Return the lines, each with its end, and how many they are, and begin again."""
        ...


_Key = tuple["str | None", "str | None", bytes, bytes]


class _Places:
    """Spells what is the same for all requests of one token to one path. Its query is nobody's business."""

    __slots__ = ("_is_json", "_known")

    def __init__(self, *, is_json: bool) -> None:
        self._is_json = is_json
        self._known: dict[_Key, bytes] = {}

    def of(self, record: Record, token_id: str | None, target: str | None) -> bytes:
        """Spell where a request went, and whose it was."""
        head = record.head
        key = (token_id, target, b"", b"") if head is None else (token_id, target, head.method, head.target)
        return self._known.get(key) or self._make(key)

    def _make(self, key: _Key) -> bytes:
        token_id, name, method, target = key
        plain = _AUTHORITY.sub(b"", target.partition(b"?")[0])
        if b"gw_" in plain:  # a token, put where its id belongs
            plain = _TOKEN.sub(b"gw_***", plain)
        path = _ESCAPED.sub(rb"\\\g<0>", _cut(plain, MAX_PATH_BYTES))
        verb = _cut(method, MAX_METHOD_BYTES)
        if self._is_json:
            words = (_encoded(token_id), _encoded(name), verb, path)
            place = b'"token":%b,"target":%b,"method":%b,"path":%b' % tuple(map(_quoted, words))
        else:
            place = b"%b %b" % (verb, path or b"/") if verb else b"-"
        if len(self._known) >= MAX_PLACES:
            self._known.clear()
        self._known[key] = place
        return place


class JsonLines:
    """One JSON object a line. A batch is formatted at once, in C: that takes a third of what a line at a time would.

    Args:
        begin: Called before the first line of a batch; returns the time of all, in seconds since the epoch.
        full: Called when a batch has `MAX_BATCH` lines.
    """

    # fmt: off
    __slots__ = (
        "_any", "_begin", "_forms", "_full", "_named", "_next", "_places", "_plain", "_prefix", "_traced", "_values",
    )
    # fmt: on

    def __init__(self, begin: Callable[[], float], full: Callable[[], None]) -> None:
        self._begin = begin
        self._full = full
        self._places = _Places(is_json=True)
        self._prefix = os.urandom(6).hex().encode()
        self._next = itertools.count(1).__next__
        self._plain = self._named = self._traced = self._any = b""
        # For each line its form, and what to put into all of them.
        self._forms: list[bytes] = []
        self._values: list[object] = []

    def again(  # noqa: PLR0917 - to put them into a tuple first would take longer
        self,
        opening: Opening[RequestHead],
        target: str,
        head: RequestHead,
        status: int,
        timing: bytes,
        received: int,
        sent: int,
    ) -> bool:
        """See `Lines`."""
        place, known = opening.place
        if known != target:
            return False
        forms = self._forms
        if not forms:
            self._start()
        times = timing[_TIMES_AT:].replace(_UPSTREAM_TIME, _UPSTREAM_MS)
        request_id, trace_id = (b"", b"") if opening.ids_at is None else ids_of(head, opening)
        if trace_id:
            forms.append(self._traced)
            self._values += (request_id or self._made_id(), place, status, times, received, sent, trace_id)
        elif request_id:
            forms.append(self._named)
            self._values += (request_id, place, status, times, received, sent)
        else:
            forms.append(self._plain)
            self._values += (self._next(), place, status, times, received, sent)
        if len(forms) >= MAX_BATCH:
            self._full()
        return True

    def add(self, record: Record) -> None:
        """See `Lines`."""
        head, opening, token_id, target, _, status, received, sent, timing, error, spent = record
        request_id, trace_id = (b"", b"") if head is None else ids_of(head, opening)
        place = self._places.of(record, token_id, target)
        if opening is not None and target is not None and error is None and spent is None:
            opening.place = (place, target)
        if not self._forms:
            self._start()
        self._forms.append(self._any if spent is None else self._any.replace(b"}\n", b",%b}\n"))
        times = timing[_TIMES_AT:].replace(_UPSTREAM_TIME, _UPSTREAM_MS)
        code = _quoted(_encoded(error))
        self._values += (
            request_id or self._made_id(),
            place,
            status,
            times,
            received,
            sent,
            code,
            _quoted(trace_id),
        )
        if spent is not None:
            self._values.append(spent.spelled())
        if len(self._forms) >= MAX_BATCH:
            self._full()

    def _start(self) -> None:
        now_s = self._begin()
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s))
        begin = f'{{"time":"{second}.{int(now_s % 1 * 1000):03d}Z","id":"'.encode()
        counts = b'",%b,"status":%d,"gateway_ms":%b,"bytes_in":%d,"bytes_out":%d,"error":'
        self._plain = begin + self._prefix + b"-%d" + counts + b'null,"trace":null}\n'
        self._named = begin + b"%b" + counts + b'null,"trace":null}\n'
        self._traced = begin + b"%b" + counts + b'null,"trace":"%b"}\n'
        self._any = begin + b"%b" + counts + b'%b,"trace":%b}\n'

    def _made_id(self) -> bytes:
        return b"%b-%d" % (self._prefix, self._next())

    def take(self) -> tuple[bytes, int]:
        """See `Lines`."""
        forms, values = self._forms, self._values
        text = b"".join(forms) % tuple(values)
        self._forms, self._values = [], []
        return text, len(forms)


class CommonLines:
    """The common log format, that of Apache httpd's `common`, with the token's id as the user.

    Args:
        begin, full: As in `JsonLines`.
    """

    __slots__ = ("_begin", "_full", "_lines", "_places", "_stamp")

    def __init__(self, begin: Callable[[], float], full: Callable[[], None]) -> None:
        self._begin = begin
        self._full = full
        self._places = _Places(is_json=False)
        self._lines: list[str] = []
        self._stamp = ""

    def again(self, *_: object) -> bool:
        """See `Lines`. The client's address is in each line."""
        return False

    def add(self, record: Record) -> None:
        """See `Lines`."""
        if not self._lines:
            moment = time.gmtime(self._begin())
            self._stamp = time.strftime(f"%d/{_MONTHS[moment.tm_mon - 1]}/%Y:%H:%M:%S +0000", moment)
        head = record.head
        place = self._places.of(record, None, None).decode()
        version = "" if head is None else f" HTTP/1.{head.minor}"
        user = record.token_id or "-"
        self._lines.append(f'{record.host} - {user} [{self._stamp}] "{place}{version}" {record.status} {record.sent}\n')
        if len(self._lines) >= MAX_BATCH:
            self._full()

    def take(self) -> tuple[bytes, int]:
        """See `Lines`."""
        lines, self._lines = self._lines, []
        return "".join(lines).encode(), len(lines)


def ids_of(head: RequestHead, opening: Opening[RequestHead] | None) -> tuple[bytes, bytes]:
    """Read the id that a client gave its request, and the trace id of `traceparent`; b"" for none.

    Args:
        head: The request's.
        opening: Remembers where in it they were.
    """
    lines = CRLF.join(head.own_lines)
    request, trace = (opening.ids_at if opening is not None else None) or _look_for(lines)
    request_id, request = (b"", None) if request is None else _read(lines, request)
    trace_id, trace = (b"", None) if trace is None else _read(lines, trace)
    if opening is not None:
        opening.ids_at = None if request is trace else (request, trace)
    return request_id, trace_id.lower()


def _read(lines: bytes, place: Place) -> tuple[bytes, Place]:
    """Return the value at a place, b"" for an odd one, and where it is now."""
    at, name, match = place
    found = match(lines, at)
    if found is None:  # a value before it may be longer or shorter than the last time
        at = lines.find(name)
        found = match(lines, at) if at >= 0 else None
        place = (max(at, 0), name, match)
    return b"" if found is None else found["id"], place


def _look_for(lines: bytes) -> tuple[Place | None, Place | None]:
    """Find both fields: where each is, how it is spelled, and what takes it; None for none."""
    lower = CRLF + lines.lower()
    found: list[Place | None] = []
    for name, value in ((_REQUEST_ID, _ID_VALUE), (_TRACEPARENT, _TRACE_VALUE)):
        at = lower.find(name)  # which has a line's end before it, as `lines` has not before its first
        spelled = lines[at : at + len(name) - len(CRLF)]
        found.append(None if at < 0 else (at, spelled, re.compile(re.escape(spelled) + value).match))
    return found[0], found[1]


def _cut(text: bytes, most: int) -> bytes:
    return text if len(text) <= most else text[:most] + b"..."


def _encoded(word: str | None) -> bytes | None:
    return None if word is None else word.encode()


def _quoted(word: bytes | None) -> bytes:
    return b'"%b"' % word if word else b"null"
