"""A line for each request, on stdout: JSON or the common log format, in batches, and never in a request's way.

Lines are made on the way, kept for a tenth of a second and handed to a thread that writes them. If stdout is not read,
that thread waits and nobody else does: what would pile up is dropped, and counted.
"""

from __future__ import annotations

import logging
import os
import re
import select
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Protocol

from gateway.http1.message import CRLF

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from gateway.http1.message import RequestHead
    from gateway.http1.opening import Opening

    OnDropped = Callable[[int], None]

FLUSH_S: Final = 0.1
MAX_LINES: Final = 32_768
"""Under way at most: about 10 MB."""
MAX_BATCH: Final = 4096
"""Lines in one batch: of more in a tenth of a second, some go sooner."""
ATOMIC_BYTES: Final = 4096
"""What a pipe takes in one piece (PIPE_BUF), so that the lines of several workers on one pipe do not mix."""
MAX_PLACES: Final = 1024
STOP_S: Final = 1.0
"""How long a stop waits for stdout to take the rest."""
QUIET_S: Final = 60.0

_TELLS: Final = re.compile(rb"\r\n(?:x-request-id|traceparent) *:", re.IGNORECASE)
_REQUEST_ID: Final = re.compile(rb"\r\nx-request-id: *([\w.:/+=@-]{1,128}) *(?:\r\n|\Z)", re.IGNORECASE | re.ASCII)
# W3C Trace Context §3.2: no trace id is all zeros, no version is ff; a later version may have more behind it.
_TRACE_ID: Final = re.compile(
    rb"\r\ntraceparent: *(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}[ \r\n-]",
    re.IGNORECASE,
)
_ESCAPED: Final = re.compile(rb'["\\]')
_AUTHORITY: Final = re.compile(rb"[A-Za-z]+://[^/?]*")

_JSON: Final = (
    b'{"time":"%b","id":"%b",%b,"status":%d,"gateway_ms":%b,"upstream_ms":%b,"bytes_in":%d,"bytes_out":%d,'
    b'"error":%b,"trace":%b}\n'
)

_log = logging.getLogger("gateway")

Ids = tuple[bytes, bytes]
"""Of a request: the id that its client gave it, and its trace id; b"" for none."""
NO_IDS: Final = (b"", b"")


class HasHost(Protocol):
    """A client."""

    @property
    def host(self) -> str:
        """Its address."""
        ...


class Sink(Protocol):
    """Takes lines."""

    def put(self, lines: Sequence[bytes]) -> bool:
        """Take some, or say that they are too many."""
        ...

    def close(self) -> None:
        """Write what was taken, if it can be written soon. May be called in a thread."""
        ...


class LineWriter:
    """Writes lines to a descriptor, in a thread.

    Args:
        descriptor: Where to.
    """

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._taken = 0
        self._written = 0  # the thread's
        self._broken = False
        self._queue: SimpleQueue[Sequence[bytes] | None] = SimpleQueue()
        # A daemon: it may wait for ever for somebody to read.
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
        self._thread.start()

    def put(self, lines: Sequence[bytes]) -> bool:
        """See `Sink`."""
        if self._broken or self._taken - self._written + len(lines) > MAX_LINES:
            return False
        self._taken += len(lines)
        self._queue.put(lines)
        return True

    def close(self) -> None:
        """See `Sink`."""
        self._queue.put(None)
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while (lines := self._queue.get()) is not None:
            try:
                for piece in _pieces(lines):
                    self._write(piece)
            except OSError:  # nobody will ever read it
                self._broken = True
                return
            self._written += len(lines)

    def _write(self, piece: bytes) -> None:
        while piece:
            try:
                piece = piece[os.write(self._descriptor, piece) :]
            except BlockingIOError:  # whoever shares it with this process does not want to wait
                select.select((), (self._descriptor,), ())


def _pieces(lines: Sequence[bytes]) -> list[bytes]:
    """Join lines to pieces that are written as one."""
    pieces, piece, size = [], [lines[0]], len(lines[0])
    for line in lines[1:]:
        size += len(line)
        if size > ATOMIC_BYTES:
            pieces.append(b"".join(piece))
            piece, size = [], len(line)
        piece.append(line)
    pieces.append(b"".join(piece))
    return pieces


class AccessLog:
    """Makes the lines.

    Args:
        style: `json` or `common`.
        sink: Takes them.
        loop: Runs the timer.
        on_dropped: Told how many lines were lost.
    """

    __slots__ = (
        "_count",
        "_is_json",
        "_lines",
        "_loop",
        "_lost",
        "_on_dropped",
        "_places",
        "_prefix",
        "_quiet_until_s",
        "_sink",
        "_stamp",
        "_timer",
    )

    def __init__(self, style: str, sink: Sink, loop: asyncio.AbstractEventLoop, on_dropped: OnDropped) -> None:
        self._is_json = style == "json"
        self._sink = sink
        self._loop = loop
        self._on_dropped = on_dropped
        self._lines: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._stamp = b""
        self._prefix = os.urandom(6).hex().encode()
        self._count = 0
        self._places: dict[tuple[bytes, bytes, str | None, str | None], bytes] = {}
        self._lost = 0
        self._quiet_until_s = 0.0

    def ids(self, head: RequestHead, opening: Opening[RequestHead] | None) -> Ids:
        """Read what a request is called; to be asked before anything of the gateway's is among its lines.

        Args:
            head: The request's.
            opening: What it began with, if that was known: heads that begin so have the same fields.
        """
        if opening is not None and opening.tells_ids is False:
            return NO_IDS
        lines = CRLF.join((b"", *head.lines))
        tells = _TELLS.search(lines) is not None
        if opening is not None:
            opening.tells_ids = tells
        if not tells:
            return NO_IDS
        request_id, trace_id = _REQUEST_ID.search(lines), _TRACE_ID.search(lines + CRLF)
        return (request_id[1] if request_id else b"", trace_id[1].lower() if trace_id else b"")

    def add(
        self,
        head: RequestHead | None,
        ids: Ids,
        who: tuple[str | None, str | None, HasHost],
        status: int,
        *,
        times_ms: tuple[bytes, bytes],
        sizes: tuple[int, int],
        error: str | None,
    ) -> None:
        """Write a line.

        Args:
            head: The request's; None if it could not be read.
            ids: What `ids` found.
            who: The token's id, the target's name, and the client.
            status: The answer's.
            times_ms: The gateway's share and the upstream's, in milliseconds, as they are to be written.
            sizes: Bytes of the bodies, from the client and to it.
            error: The code of what went wrong.
        """
        lines = self._lines
        if self._timer is None:
            self._begin()
        token_id, target, client = who
        key = (b"", b"", token_id, target) if head is None else (head.method, head.target, token_id, target)
        place = self._places.get(key) or self._make_place(key)
        if self._is_json:
            request_id, trace_id = ids
            if not request_id:
                self._count += 1
                request_id = b"%b-%x" % (self._prefix, self._count)
            line = _JSON % (
                self._stamp,
                request_id,
                place,
                status,
                *times_ms,
                *sizes,
                b'"%b"' % error.encode() if error else b"null",
                b'"%b"' % trace_id if trace_id else b"null",
            )
        else:
            minor = b"" if head is None else b" HTTP/1.%d" % head.minor
            token = token_id.encode() if token_id else b"-"
            line = b'%b - %b [%b] "%b%b" %d %d\n' % (
                client.host.encode(),
                token,
                self._stamp,
                place,
                minor,
                status,
                sizes[1],
            )
        lines.append(line)
        if len(lines) >= MAX_BATCH:
            self._flush()

    def close(self) -> None:
        """Hand over the rest; `Sink.close` is still to be called."""
        if self._timer is not None:
            self._timer.cancel()
        self._flush()

    def _begin(self) -> None:
        """Begin a batch: its lines have the time of its first, to the millisecond."""
        self._timer = self._loop.call_later(FLUSH_S, self._flush)
        now_s = time.time()
        moment = time.gmtime(now_s)
        if self._is_json:
            self._stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{int(now_s % 1 * 1000):03d}Z".encode()
        else:
            month = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
            self._stamp = time.strftime(f"%d/{month[moment.tm_mon - 1]}/%Y:%H:%M:%S +0000", moment).encode()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        if lines and not self._sink.put(lines):
            self._lost += len(lines)
            self._on_dropped(len(lines))
            now_s = self._loop.time()
            if now_s >= self._quiet_until_s:
                _log.warning("%d lines of the access log were dropped: stdout is not read fast enough", self._lost)
                self._quiet_until_s, self._lost = now_s + QUIET_S, 0

    def _make_place(self, key: tuple[bytes, bytes, str | None, str | None]) -> bytes:
        """Spell what is the same for all requests of one token to one path. Its query is nobody's business."""
        method, target, token_id, name = key
        path = _AUTHORITY.sub(b"", target.partition(b"?")[0], count=1) if target else b""
        path = _ESCAPED.sub(rb"\\\g<0>", path)
        if self._is_json:
            place = b'"token":%b,"target":%b,"method":%b,"path":%b' % (
                *(b"null" if word is None else b'"%b"' % word.encode() for word in (token_id, name)),
                *(b'"%b"' % word if word else b"null" for word in (method, path)),
            )
        else:
            place = b"%b %b" % (method, path or b"/") if method else b"-"
        if len(self._places) >= MAX_PLACES:
            self._places.clear()
        self._places[key] = place
        return place
