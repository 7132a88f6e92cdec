"""What ends an answer early whose money is spent, as its provider would have ended it for an error."""

from __future__ import annotations

import json
from typing import Final

from gateway.metering.shapes import Shape

_TEXT: Final = "The budget of this token is spent, so the answer ends here."
_OF_GOOGLE: Final = json.dumps({"error": {"code": 429, "message": _TEXT, "status": "RESOURCE_EXHAUSTED"}}).encode()


def event_ending(shape: Shape, number: int) -> bytes:
    """Return an event that ends a stream.

    Args:
        shape: Of the stream.
        number: Of the event, where events are numbered.
    """
    if shape is Shape.MESSAGES:
        error = {"type": "error", "error": {"type": "rate_limit_error", "message": _TEXT}}
        return b"event: error\ndata: %b\n\n" % json.dumps(error).encode()
    if shape is Shape.RESPONSES:
        told = {"type": "error", "code": "budget_exceeded", "message": _TEXT, "param": None, "sequence_number": number}
        return b"event: error\ndata: %b\n\n" % json.dumps(told).encode()
    if shape is Shape.GEMINI:
        return b"data: %b\n\n" % _OF_GOOGLE
    quota = {"message": _TEXT, "type": "insufficient_quota", "param": None, "code": "budget_exceeded"}
    return b"data: %b\n\ndata: [DONE]\n\n" % json.dumps({"error": quota}).encode()


def list_ending(last: bytes) -> bytes:
    """Return an element that ends a list of Gemini's, and the list; b"" where none can come.

    Args:
        last: The last byte of the list so far that is no space.
    """
    if last not in (b"[", b",", b"}"):
        return b""
    return b"%b%b]" % (b"," if last == b"}" else b"", _OF_GOOGLE)
