"""The chunked transfer coding (RFC 9112 §7.1): a scanner that checks the framing and lets the bytes pass.

What is framed in one plain way goes on as the bytes object it came as. Chunk extensions are checked, bounded and
dropped; which trailer fields go on is for a function to say. Anything that two parsers could read in two
ways is an error.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from gateway.errors import GatewayError
from gateway.http1.fields import passable_trailers
from gateway.http1.gate import TOKEN, check_bytes, check_fields
from gateway.http1.message import CRLF, HEAD_END

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CHUNK_LINE_BYTES: Final = 1024
MAX_TRAILER_BYTES: Final = 8 * 1024
_MAX_CHUNK_BYTES: Final = 1 << 62

_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*+"'
_EXTENSIONS: Final = (
    rb"((?:[ \t]*+;[ \t]*+" + TOKEN + rb"(?:[ \t]*+=[ \t]*+(?:" + TOKEN + rb"|" + _QUOTED + rb"))?+)*+)"
)
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})" + _EXTENSIONS + rb"\r\n")
# What may still become a chunk line when more bytes come.
_UNFINISHED_LINE: Final = re.compile(rb"[0-9A-Fa-f]{1,16}(?:[ \t]*+(?:;[\t \x21-\x7e\x80-\xff]*+)?+)\r?")

_LINE, _DATA, _DATA_END, _TRAILERS = range(4)


class ChunkedBody:
    """Walks a chunked body; see `framing.Body`.

    Args:
        error: What broken framing raises.
        decode: Pass on the content without its framing, or trailers.
        trailers: Takes the field lines of the trailer section, which are well-formed, and returns those to pass on.

    Attributes:
        decoded_trailers: With `decode`, those to pass on as field lines, each with its end; b"" until it is done.
    """

    __slots__ = (
        "_checked",
        "_data",
        "_decode",
        "_error",
        "_left",
        "_line_start",
        "_out",
        "_passed",
        "_position",
        "_state",
        "_trailers",
        "decoded_trailers",
        "done",
        "seen_bytes",
    )

    def __init__(
        self,
        error: type[GatewayError],
        *,
        decode: bool = False,
        trailers: Callable[[list[bytes]], list[bytes]] = passable_trailers,
    ) -> None:
        self._error = error
        self._decode = decode
        self._trailers = trailers
        self._state = _LINE
        self._left = 0  # bytes of the current chunk
        self._checked = 0  # bytes of the trailers that have nothing wrong in them
        self._line_start = 0  # bytes of the trailers that are whole lines and right
        self.decoded_trailers = b""
        self.done = False
        self.seen_bytes = 0
        # What feed works on: _data[_passed:_position] is checked and goes on as it is, behind what is in _out.
        self._data = b""
        self._passed = self._position = 0
        self._out: list[bytes] = []

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take bytes; return those to pass on and those behind the last chunk. See `framing.Body.feed`.

        A chunk line or trailer section that has not ended is held back (at most `MAX_TRAILER_BYTES`); content
        never is.
        """
        data = self._data = self._data + data if self._data else data
        self._passed = self._position = 0
        while self._position < len(data) and not self.done and self._step():
            pass
        position = self._position
        if self._decode:
            forward = b"".join(self._out)
        elif self._out:
            forward = b"".join((*self._out, data[self._passed : position]))
        else:
            forward = data if position == len(data) else data[:position]
        self._out.clear()
        rest = data[position:]
        if self.done:
            self._data = b""
            return forward, rest
        self._data = rest
        return forward, b""

    @property
    def least_left(self) -> int:
        """See `framing.Body`."""
        if self.done:
            return 0
        held = self._data
        if self._state == _DATA:
            return self._left + 7  # CRLF "0" CRLF CRLF
        if self._state == _DATA_END:
            return 7 - len(held)
        if self._state == _LINE:
            return 4 - held.endswith(b"\r") if held else 5
        # The last chunk's line ends in the CRLF that an empty trailer section begins with.
        return next(4 - size for size in (3, 2, 1, 0) if (CRLF + held).endswith(HEAD_END[:size]))

    def _step(self) -> bool:
        """Walk to the next boundary; say whether there was one."""
        if self._state == _DATA:
            return self._walk_data()
        if self._state == _LINE:
            return self._walk_line()
        if self._state == _DATA_END:
            return self._walk_data_end()
        return self._walk_trailers()

    def _walk_data(self) -> bool:
        step = min(self._left, len(self._data) - self._position)
        if self._decode:
            self._out.append(self._data[self._position : self._position + step])
        self._position += step
        self._left -= step
        self.seen_bytes += step
        if self._left == 0:
            self._state = _DATA_END
        return True

    def _walk_data_end(self) -> bool:
        end = self._data[self._position : self._position + 2]
        if end == b"\r":
            return False
        if end != CRLF:
            raise self._error("Chunk data is longer than its chunk size says.")
        self._position += 2
        self._state = _LINE
        return True

    def _walk_line(self) -> bool:
        match = _CHUNK_LINE.match(self._data, self._position)
        if match is None:
            line = self._data[self._position :]
            if len(line) > MAX_CHUNK_LINE_BYTES or not _UNFINISHED_LINE.fullmatch(line):
                raise self._error("A chunk line is malformed or too long.")
            return False
        if match.end() - match.start() > MAX_CHUNK_LINE_BYTES:
            raise self._error(f"A chunk line is longer than {MAX_CHUNK_LINE_BYTES} bytes.")
        self._left = int(match[1], 16)
        if self._left > _MAX_CHUNK_BYTES:
            raise self._error("A chunk size is larger than any chunk.")
        if match[2] and not self._decode:
            self._replace(match.start(2), match.end(2), b"")
        self._position = match.end()
        self._state = _DATA if self._left else _TRAILERS
        return True

    def _walk_trailers(self) -> bool:
        start = self._position
        if self._data.startswith(CRLF, start):
            self._position += 2
            self.done = True
            return True
        end = self._data.find(HEAD_END, max(start + self._checked - 3, start))
        section = self._data[start:] if end < 0 else self._data[start:end]
        # As long as their end has not come, the last three bytes may be the begin of it.
        if len(section) > MAX_TRAILER_BYTES + (3 if end < 0 else 0):
            raise self._error(f"The trailers are longer than {MAX_TRAILER_BYTES} bytes.")
        try:
            # Each byte is looked at once; a CR at the very end may still get its LF.
            checked = len(section) - section.endswith(b"\r")
            check_bytes(section[self._checked : checked])
            self._checked = checked
            if end < 0:
                line_end = section.rfind(CRLF, self._line_start)
                if line_end >= 0:
                    check_fields(section[self._line_start : line_end].split(CRLF))
                    self._line_start = line_end + 2
                return False
            lines = section.split(CRLF)
            check_fields(lines)
        except GatewayError as error:
            raise self._error(f"Trailers: {error}") from None
        kept = self._trailers(lines)
        if self._decode:
            self.decoded_trailers = b"".join(line + CRLF for line in kept)
        elif kept != lines:
            self._replace(start, end + 2, b"".join(line + CRLF for line in kept))
        self._position = end + len(HEAD_END)
        self.done = True
        return True

    def _replace(self, start: int, end: int, by: bytes) -> None:
        self._out += (self._data[self._passed : start], by)
        self._passed = end
