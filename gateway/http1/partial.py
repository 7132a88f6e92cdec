"""A request head that comes in pieces: kept until it is whole, refused as soon as it can no longer become one."""

from __future__ import annotations

import re
from typing import Final

from gateway.errors import BadRequest, FieldsTooLarge, TargetTooLong
from gateway.http1 import gate
from gateway.http1.message import CRLF, HEAD_END, MAX_HEAD_BYTES, MAX_LINE_BYTES

MAX_EMPTY_LINES: Final = 8
"""RFC 9112 §2.2 asks to ignore at least one before a request."""

# What speaks another protocol may never end a line.
_START: Final = re.compile(rb"(?:" + gate.TOKEN + rb"(?: |\Z)|\Z)")
HEAD_BEGINS: Final = b"HEAD "
_START_BYTES: Final = 64  # looked at each time; longer methods are judged when their line is whole


class PartialHead:
    """Gathers one head, without empty lines before it. Each byte is looked at once, however small the pieces are."""

    __slots__ = ("_checked", "_data", "_empty_lines", "_line_start")

    def __init__(self) -> None:
        self._data = bytearray()
        self._empty_lines = 0
        self._checked = 0  # up to here, no byte can be wrong
        self._line_start = 0  # up to here, the lines are whole and right

    @property
    def is_heads(self) -> bool:
        """Whether its method is HEAD, as far as it can be read."""
        return self._data.startswith(HEAD_BEGINS)

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; return all that was taken once the end of the head is among them.

        Raises:
            GatewayError: As `RequestParser.parse` would; no more can be fed then.
        """
        whole = self._data
        whole += data
        while whole.startswith(CRLF):
            del whole[:2]
            self._checked = 0
            self._empty_lines += 1
            if self._empty_lines > MAX_EMPTY_LINES:
                raise BadRequest("There are too many empty lines before the request.")
        if 0 <= whole.find(HEAD_END, max(self._checked - 3, 0)) <= MAX_HEAD_BYTES:
            return bytes(whole)
        # A CR at the very end may still get its LF: it is left for the next time.
        checked = len(whole) - whole.endswith(b"\r")
        if self._line_start == 0 and checked > MAX_LINE_BYTES and whole.find(CRLF, 0, MAX_LINE_BYTES + 2) < 0:
            raise TargetTooLong(f"The request line is longer than {MAX_LINE_BYTES} bytes.")
        if len(whole) > MAX_HEAD_BYTES + 3:  # three of them may be the begin of the end
            raise FieldsTooLarge(f"The head is longer than {MAX_HEAD_BYTES} bytes.")
        gate.check_bytes(bytes(whole[self._checked : checked]))
        end = whole.rfind(CRLF, max(self._checked - 1, self._line_start))
        self._checked = checked
        if end >= 0:
            lines = bytes(whole[self._line_start : end]).split(CRLF)
            if self._line_start == 0:
                gate.check_request_line(lines.pop(0))
            gate.check_fields(lines)
            self._line_start = end + 2
        elif self._line_start == 0 and not _START.match(whole, 0, min(checked, _START_BYTES)):
            raise BadRequest("The method is not a token.")
        return None
