"""What field lines say: values of fields, and how the upstream calls the request."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from gateway.scope import names_another

if TYPE_CHECKING:
    from collections.abc import Sequence

CRLF: Final = b"\r\n"
CONTENT_TYPE: Final = b"\r\ncontent-type:"
CONTENT_ENCODING: Final = b"\r\ncontent-encoding:"
SERVICE_TIER: Final = b"\r\nx-gemini-service-tier:"
IDS: Final = (
    b"\r\nx-request-id:",
    b"\r\nrequest-id:",
    b"\r\napim-request-id:",
    b"\r\nx-goog-request-id:",
    b"\r\nx-amzn-requestid:",
    b"\r\nx-amz-request-id:",
    b"\r\nx-ms-request-id:",
    b"\r\ncf-ray:",
)
"""What an upstream's invoice and support know a request by; what is a proxy's comes behind what is the API's."""
MAX_ID_CHARACTERS: Final = 128

EVENTS: Final = b"text/event-stream"

MAX_FORM_BYTES: Final = 4096
"""Longer forms are not remembered."""
_PLAIN_ID: Final = re.compile(rb"[A-Za-z0-9_.:+/=-]{1,128}")
# With space around the value: to match that here would take a time that grows with its square.
_CODING: Final = re.compile(rb"\r\ncontent-encoding:([^\r]*)")
_CHARSET: Final = re.compile(rb"\r\ncontent-type:[^\r]*;[ \t]*charset[ \t]*=([^\r]*)")
_MASK: Final = re.compile(rb"(?i)[&;]\$?fields(?:[=&;]|\Z)")
_TIER: Final = re.compile(rb"(?i)\r\nx-vertex-ai-llm-shared-request-type:(?![ \t]*(?:flex|standard)[ \t]*(?:\r|\Z))")
_UTF_8: Final = frozenset((b"utf-8", b"utf8", b'"utf-8"', b'"utf8"', b"us-ascii"))
_ACCEPTS: Final = re.compile(rb"(?i)\r\naccept-encoding:")
_ACCEPTED: Final = re.compile(_ACCEPTS.pattern + rb"[^\r]*")
# A value that is not the same in all heads of a form.
_VARIES: Final = re.compile(rb"(?i)\r\n(?:content-type|content-encoding|anthropic-beta):[^\r]*%b")


# RFC 9110 §12.5.3: a coding, or all that are not named, unless its weight is 0.
_TAKES_GZIP: Final = re.compile(rb"(?i)[:,][ \t]*(?:x-)?(gzip|\*)[ \t]*(?:;[ \t]*q=([01][.0-9]*)[ \t]*)?(?=[,\r]|\Z)")
_IDENTITY: Final = b"\r\nAccept-Encoding: identity"


def asked(lines: bytes, form: bytes) -> tuple[bool, bytes, bytes]:
    """Read the field lines of a request.

    Args:
        lines: As of `RequestHead`.
        form: Likewise.

    Returns:
        Whether no price depends on them: they name no other request, no protocol is to be switched to, and the body is
        text in UTF-8, as far as they say. Those that are not `Accept-Encoding`. And those that are.
    """
    is_usual, accepts = _asked(form) if 0 < len(form) <= MAX_FORM_BYTES else (False, b"")
    if is_usual:
        at = lines.find(accepts) if accepts else -1
        if at < 0:
            return True, lines, b""
        end = lines.find(CRLF, at + 2)
        if end < 0:
            return True, lines[:at], lines[at:]
        return True, lines[:at] + lines[end:], lines[at:end]
    return _is_usual(lines), _ACCEPTED.sub(b"", lines), b"".join(_ACCEPTED.findall(lines))


@lru_cache(maxsize=64)
def codings_line(readable: bytes, accepted: bytes) -> bytes:
    """Return the `Accept-Encoding` of a request whose answer is to be read on its way, with a line end before it.

    The answer goes to the client as it comes, so of what can be read it may have no more than the client takes. One
    that says nothing would take any coding (RFC 9110 §12.5.3), but curl and others that say nothing can decode none.

    Args:
        readable: `Quote.accepts`.
        accepted: What `asked` has found.
    """
    weights = {coding.lower(): weight for coding, weight in _TAKES_GZIP.findall(accepted)}
    weight = weights.get(b"gzip", weights.get(b"*", b"0"))
    return b"\r\nAccept-Encoding: " + readable if weight.strip(b"0.") or not weight else _IDENTITY


@lru_cache(maxsize=256)
def _asked(form: bytes) -> tuple[bool, bytes]:
    """Return whether all requests of a form are usual, and then how `Accept-Encoding` is spelled; b"" for none."""
    accepts = _ACCEPTS.findall(form)
    is_known = len(accepts) <= 1 and not _VARIES.search(form)  # twice: to be looked for in each head
    return is_known and _is_usual(form), accepts[0] if accepts else b""


def _is_usual(lines: bytes) -> bool:
    some = (lines,)
    is_plain_one = not names_another(some) and not names_mask(some) and not wants_long(some) and is_plain(some)
    return is_plain_one and not names_tier(some) and b"\r\nupgrade:" not in lines.lower()


def masks(query: bytes) -> bool:
    """Whether a query says which members of the answer are to be left out: its usage may be among them.

    Source: https://cloud.google.com/apis/docs/system-parameters
    """
    return bool(query) and _MASK.search(b"&" + unquote_to_bytes(query)) is not None


def names_mask(lines: Sequence[bytes]) -> bool:
    """Whether a field of a request says so; see `masks`."""
    return b"\r\nx-goog-fieldmask:" in (CRLF + CRLF.join(lines)).lower()


def names_tier(lines: Sequence[bytes]) -> bool:
    """Whether a field of a request asks Vertex for a dearer tier; its other values are cheaper.

    Source: https://cloud.google.com/vertex-ai/generative-ai/docs/priority-paygo
    """
    return _TIER.search(CRLF + CRLF.join(lines)) is not None


def wants_long(texts: Sequence[bytes]) -> bool:
    """Whether a field, or a member of the body, asks for a longer context than a model has by itself.

    Source: https://platform.claude.com/docs/en/build-with-claude/context-windows
    """
    return any(b"context-1m" in text for text in texts)


def answered(lines: Sequence[bytes], form: bytes) -> tuple[bytes, bool, str]:
    """Read the field lines of an answer.

    Args:
        lines: Those of an `AnswerHead`.
        form: Likewise.

    Returns:
        The value of `Content-Encoding` in lower case, whether it is a stream of events, and the upstream's id.
    """
    known = _answered(form) if 0 < len(form) <= MAX_FORM_BYTES else None
    if known is not None:
        coding, is_stream, name = known
        if not name:
            return coding, is_stream, ""
        text = b"".join(lines)
        at = text.find(name)
        start, end = at + len(name), text.find(CRLF, at + 2)
        value = (text[start:] if end < 0 else text[start:end]).strip(b" \t")
        if at >= 0 and _PLAIN_ID.fullmatch(value) is not None:
            return coding, is_stream, value.decode()
    fields = Fields(lines)
    is_stream = fields.get(CONTENT_TYPE)[:17].lower() == EVENTS
    return fields.get(CONTENT_ENCODING).lower(), is_stream, fields.upstream_id


@lru_cache(maxsize=256)
def _answered(form: bytes) -> tuple[bytes, bool, bytes] | None:
    """Return what `answered` does, but how the field of the id is spelled, b"" for none; None if that is not known."""
    fields = Fields((form,))
    at, size = fields.id_at()
    name = (CRLF + form)[at : at + size] if size else b""
    if _VARIES.search(form):
        return None
    is_stream = fields.get(CONTENT_TYPE)[:17].lower() == EVENTS
    return fields.get(CONTENT_ENCODING).lower(), is_stream, name


def is_plain(lines: Sequence[bytes]) -> bool:
    """Whether field lines say of a body that it is text in UTF-8, without a coding, or nothing of that."""
    text = (b"\r\n%b\r\n" % b"\r\n".join(lines)).lower()
    if b"\r\ncontent-encoding:" not in text and b"charset" not in text:
        return True
    codings, charsets = _CODING.findall(text), _CHARSET.findall(text)
    return {one.strip(b" \t") for one in codings} <= {b"identity"} and {one.strip(b" \t") for one in charsets} <= _UTF_8


class Fields:
    """Field lines, to be asked for a few names.

    Args:
        lines: An element may hold several, joined.
    """

    __slots__ = ("_lines", "_lowered")

    def __init__(self, lines: Sequence[bytes]) -> None:
        self._lines = b"\r\n%b\r\n" % b"\r\n".join(lines)
        self._lowered = self._lines.lower()

    def get(self, start_of_line: bytes) -> bytes:
        """Return the value of the first field of a name, without space around it; b"" if there is none.

        Args:
            start_of_line: CRLF, the name in lower case, and the colon.
        """
        at = self._lowered.find(start_of_line)
        if at < 0:
            return b""
        lines, start = self._lines, at + len(start_of_line)
        return lines[start : lines.index(b"\r\n", start)].strip(b" \t")

    def only(self, start_of_line: bytes) -> bytes:
        """Return what `get` does, but b"" for several fields of the name: nobody knows which of them counts."""
        several = self._lowered.find(start_of_line) != self._lowered.rfind(start_of_line)
        return b"" if several else self.get(start_of_line)

    @property
    def upstream_id(self) -> str:
        """The upstream's id of a request, from its answer's fields; "" if none names one."""
        lines, lowered = self._lines, self._lowered
        for one in IDS:
            at = lowered.find(one)
            if at >= 0:
                start = at + len(one)
                value = lines[start : lines.index(b"\r\n", start)].strip(b" \t").decode("latin-1")
                if value and len(value) <= MAX_ID_CHARACTERS and value.isascii() and " " not in value:
                    return value if value.isprintable() else ""
        return ""

    def id_at(self) -> tuple[int, int]:
        """Return where the first of `IDS` is that is there, and its size; -1 and 0 if none is."""
        return next(((at, len(one)) for one in IDS if (at := self._lowered.find(one)) >= 0), (-1, 0))


def upstream_id(lines: Sequence[bytes]) -> str:
    """Return the upstream's id of a request from its answer's field lines; "" if none names one."""
    return Fields(lines).upstream_id
