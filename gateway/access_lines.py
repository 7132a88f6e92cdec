"""The lines of the access log: one for each request, in JSON or in the common log format. Pure."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from gateway.budgets.budget import spelled
from gateway.http1 import ids, writer
from gateway.http1.ids import FIRST_TRACE, HEX, NO_IDS, NO_PARENT, PARENT, PLAIN, TRACE_IN_HEX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.http1.layout import Memo
    from gateway.http1.message import RequestHead
    from gateway.http1.opening import Opening

MAX_PLACES: Final = 1024
MAX_PLACE_BYTES: Final = 512
"""Of a method and a request-target, to be remembered; with `MAX_PLACES`, a megabyte."""
MAX_METHOD_BYTES: Final = 64
MAX_PATH_BYTES: Final = 1500
"""A longer method or path is cut: with every byte of it escaped, a line stays below `access_log.ATOMIC_BYTES`.
A longer line could be torn by those of another worker."""

_ESCAPED: Final = re.compile(rb'["\\]')
_AUTHORITY: Final = re.compile(rb"\A[A-Za-z]+://[^/]*")
# What begins like a token is taken as a whole: else a path of nothing but `gw_` would take the square of its length.
_TOKEN: Final = re.compile(rb"gw_[A-Za-z0-9_-]{32,}(?:\.[A-Za-z0-9_-]+)?")
_OWN_TIME, _UPSTREAM_TIME, _ = writer.TIMING.split(b"%.3f")
_TIMES_AT: Final = len(_OWN_TIME)
# Where both times stand if the first is below 10 ms: to check that is quicker than to search for them.
_DOT_AT: Final = _TIMES_AT + 1
_DOT: Final = ord(".")
_OWN: Final = slice(_TIMES_AT, _TIMES_AT + len(b"0.000"))
_REST: Final = slice(_OWN.stop + len(_UPSTREAM_TIME), None)

_ANY: Final = (
    b'%b",%b,"status":%d,"gateway_ms":%b,"upstream_ms":%b,"bytes_in":%d,"bytes_out":%d,"error":%b,"trace":%b%b}\n'
)
_FORM: Final = (
    b'%b",%b,"status":%d,"gateway_ms":%%b,"upstream_ms":%%b,"bytes_in":%%d,"bytes_out":%%d,"error":null,"trace":%b}\n'
)
"""To be filled twice: with what requests to one place have in common, then with what each has of its own."""
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


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
        spent: What it cost, where it went to a target whose requests cost something.
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
        status: int,
        timing: bytes,
        received: int,
        sent: int,
    ) -> bool:
        """Take what there is to tell of a request that passed, the quick way.

        Args:
            opening: What its head began with; so whose it was is known as well.
            target: As in `Record`, and so are the others.
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
        if len(method) + len(target) <= MAX_PLACE_BYTES:  # longer ones are anybody's to send
            if len(self._known) >= MAX_PLACES:
                self._known.clear()
            self._known[key] = place
        return place


class JsonLines:
    """One JSON object a line.

    Args:
        begin: Called before the first line of a batch; returns the time of all, in seconds since the epoch.
    """

    __slots__ = ("_begin", "_lines", "_made", "_numbers", "_places", "_start")

    def __init__(self, begin: Callable[[], float]) -> None:
        self._begin = begin
        self._places = _Places(is_json=True)
        self._made = os.urandom(6).hex().encode() + b"-%d"
        self._numbers = itertools.count(1)
        self._start = b""  # of all lines
        self._lines: list[bytes] = []  # without that, and an empty one before them

    def again(  # noqa: PLR0917 - to put them into a tuple first would take longer
        self,
        opening: Opening[RequestHead],
        target: str,
        status: int,
        timing: bytes,
        received: int,
        sent: int,
    ) -> bool:
        """See `Lines`."""
        memo, values = opening.memo, opening.values
        if values is None or memo.target is not target or memo.status != status:
            return False
        request_at, trace_at = memo.ids_at
        request_id = b""
        if request_at >= 0:
            request_id = values[request_at]
            if request_id.translate(PLAIN) != request_id:  # what is odd is read again, more closely
                return False
        lines = self._lines or self._begin_batch()
        if timing[_DOT_AT] == _DOT:
            own, upstream = timing[_OWN], timing[_REST]
        else:
            own, upstream = _times(timing)
        if trace_at < 0:
            lines.append(memo.form % (request_id or next(self._numbers), own, upstream, received, sent))
            return True
        trace = values[trace_at]
        if trace.translate(HEX) != TRACE_IN_HEX or trace < FIRST_TRACE or trace[PARENT] == NO_PARENT:
            return False
        lines.append(memo.form % (request_id or next(self._numbers), own, upstream, received, sent, trace))
        return True

    def add(self, record: Record) -> None:
        """See `Lines`."""
        head, opening, token_id, target, _, status, received, sent, timing, error, spent = record
        request_id, trace_id = NO_IDS if head is None else ids.read(head.lines)
        place = self._places.of(record, token_id, target)
        if error is None and spent is None and opening is not None and opening.values is not None:
            self._keep(opening.memo, target, status, place)
        lines = self._lines or self._begin_batch()
        own, upstream = _times(timing)
        end = b"" if spent is None else b"," + spent.spelled()
        request_id = request_id or self._made % next(self._numbers)
        code = _quoted(_encoded(error))
        lines.append(_ANY % (request_id, place, status, own, upstream, received, sent, code, _quoted(trace_id), end))

    def _keep(self, memo: Memo, target: str | None, status: int, place: bytes) -> None:
        if memo.ids_known:
            request_at, trace_at = memo.ids_at
            request_id, trace_id = self._made if request_at < 0 else b"%b", b"null" if trace_at < 0 else b'"%.32b"'
            memo.target, memo.status = target, status
            memo.form = _FORM % (request_id, place.replace(b"%", b"%%"), status, trace_id)

    def _begin_batch(self) -> list[bytes]:
        now_s = self._begin()
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s))
        self._start = f'{{"time":"{second}.{int(now_s % 1 * 1000):03d}Z","id":"'.encode()
        self._lines.append(b"")
        return self._lines

    def take(self) -> tuple[bytes, int]:
        """See `Lines`."""
        lines, self._lines = self._lines, []
        return self._start.join(lines), len(lines) - 1


class CommonLines:
    """The common log format, that of Apache httpd's `common`, with the token's id as the user.

    Args:
        begin: As in `JsonLines`.
    """

    __slots__ = ("_begin", "_lines", "_places", "_stamp")

    def __init__(self, begin: Callable[[], float]) -> None:
        self._begin = begin
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

    def take(self) -> tuple[bytes, int]:
        """See `Lines`."""
        lines, self._lines = self._lines, []
        return "".join(lines).encode(), len(lines)


def _times(timing: bytes) -> list[bytes]:
    """Return the milliseconds of both shares."""
    return timing[_TIMES_AT:].split(_UPSTREAM_TIME)


def _cut(text: bytes, most: int) -> bytes:
    return text if len(text) <= most else text[:most] + b"..."


def _encoded(word: str | None) -> bytes | None:
    return None if word is None else word.encode()


def _quoted(word: bytes | None) -> bytes:
    return b'"%b"' % word if word else b"null"
