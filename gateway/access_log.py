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

from gateway.http1 import writer
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

_SANE: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_.:/+=@"
MAX_ID_BYTES: Final = 128
_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_ESCAPED: Final = re.compile(rb'["\\]')
_AUTHORITY: Final = re.compile(rb"[A-Za-z]+://[^/?]*")

_TIMING: Final = writer.TIMING.decode().split("%.3f")
_TIMING_BEGIN: Final = len(_TIMING[0])

_log = logging.getLogger("gateway")

_Key = tuple[str | None, str | None, bytes, bytes]

Ids = tuple[str, str]
"""Of a request: the id that its client gave it, and its trace id; "" for none."""
NO_IDS: Final = ("", "")


class HasHost(Protocol):
    """A client."""

    @property
    def host(self) -> str:
        """Its address."""
        ...


class Sink(Protocol):
    """Takes lines."""

    def put(self, lines: Sequence[str]) -> bool:
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
        self._queue: SimpleQueue[Sequence[str] | None] = SimpleQueue()
        # A daemon: it may wait for ever for somebody to read.
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
        self._thread.start()

    def put(self, lines: Sequence[str]) -> bool:
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


def _pieces(lines: Sequence[str]) -> list[bytes]:
    """Join lines, which are ASCII, to pieces that are written as one."""
    pieces, first, size = [], 0, 0
    for at, line in enumerate(lines):
        size += len(line)
        if size > ATOMIC_BYTES and at > first:
            pieces.append("".join(lines[first:at]).encode())
            first, size = at, len(line)
    pieces.append("".join(lines[first:]).encode())
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
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._stamp = ""
        self._prefix = os.urandom(6).hex()
        self._count = 0
        self._places: dict[_Key, str] = {}
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
        lines = CRLF.join((b"", *head.lines, b""))
        lower = lines.lower()
        request_at, trace_at = lower.find(b"\r\nx-request-id:"), lower.find(b"\r\ntraceparent:")
        if opening is not None:
            opening.tells_ids = request_at >= 0 or trace_at >= 0
        request_id = trace_id = ""
        if request_at >= 0:
            at = request_at + len(b"\r\nx-request-id:")
            value = lines[at : lines.find(CRLF, at)].strip(b" \t")
            if not value.translate(None, _SANE) and len(value) <= MAX_ID_BYTES:
                request_id = value.decode()
        if trace_at >= 0:
            at = trace_at + len(b"\r\ntraceparent:")
            trace_id = _trace_id(lower[at : lower.find(CRLF, at)].strip(b" \t"))
        return request_id, trace_id

    def add(
        self,
        head: RequestHead | None,
        ids: Ids,
        who: tuple[str | None, str | None, HasHost],
        status: int,
        timing: bytes,
        *,
        sizes: tuple[int, int],
        error: str | None = None,
    ) -> None:
        """Write a line.

        Args:
            head: The request's; None if it could not be read.
            ids: What `ids` found.
            who: The token's id, the target's name, and the client.
            status: The answer's.
            timing: How long it took, as in `writer.TIMING`.
            sizes: Bytes of the bodies, from the client and to it.
            error: The code of what went wrong.
        """
        lines = self._lines
        if self._timer is None:
            self._begin()
        token_id, target, client = who
        key = (token_id, target, b"", b"") if head is None else (token_id, target, head.method, head.target)
        place = self._places.get(key) or self._make_place(key)
        if self._is_json:
            request_id, trace_id = ids
            if not request_id:
                self._count += 1
                request_id = f"{self._prefix}-{self._count:x}"
            times = timing.decode()[_TIMING_BEGIN:].replace(_TIMING[1], ',"upstream_ms":')
            lines.append(
                f'{self._stamp}{request_id}",{place},"status":{status},"gateway_ms":{times},"bytes_in":{sizes[0]},'
                f'"bytes_out":{sizes[1]},"error":{_quoted(error)},"trace":{_quoted(trace_id)}}}\n'
                if error or trace_id
                else f'{self._stamp}{request_id}",{place},"status":{status},"gateway_ms":{times},"bytes_in":{sizes[0]},'
                f'"bytes_out":{sizes[1]},"error":null,"trace":null}}\n'
            )
        else:
            # The common log format is that of Apache httpd's `common`, with the token's id as the user.
            version = "" if head is None else f" HTTP/1.{head.minor}"
            user = token_id or "-"
            lines.append(f'{client.host} - {user} [{self._stamp}] "{place}{version}" {status} {sizes[1]}\n')
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
            second = time.strftime("%Y-%m-%dT%H:%M:%S", moment)
            self._stamp = f'{{"time":"{second}.{int(now_s % 1 * 1000):03d}Z","id":"'
        else:
            month = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
            self._stamp = time.strftime(f"%d/{month[moment.tm_mon - 1]}/%Y:%H:%M:%S +0000", moment)

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

    def _make_place(self, key: _Key) -> str:
        """Spell what is the same for all requests of one token to one path. Its query is nobody's business."""
        token_id, name, method, target = key
        path = _ESCAPED.sub(rb"\\\g<0>", _AUTHORITY.sub(b"", target.partition(b"?")[0], count=1)).decode()
        verb = method.decode()
        if self._is_json:
            words = (token_id, name, verb, path)
            place = '"token":{},"target":{},"method":{},"path":{}'.format(*map(_quoted, words))
        else:
            place = f"{verb} {path or '/'}" if verb else "-"
        if len(self._places) >= MAX_PLACES:
            self._places.clear()
        self._places[key] = place
        return place


def _quoted(word: str | None) -> str:
    return f'"{word}"' if word else "null"


def _trace_id(value: bytes) -> str:
    """Read a `traceparent` in lower case; "" if it is none.

    Source: W3C Trace Context §3.2: no id is all zeros, no version is ff; a later one may have more behind the flags.
    """
    if _TRACEPARENT.fullmatch(value) is None:
        return ""
    version, trace_id, parent = value[:2], value[3:35], value[36:52]
    is_none = version == b"ff" or (version == b"00" and len(value) > 55)
    return "" if is_none or trace_id == b"0" * 32 or parent == b"0" * 16 else trace_id.decode()
