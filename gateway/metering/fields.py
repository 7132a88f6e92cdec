"""What field lines say: one field's value, and how the upstream calls the request."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_IDS: Final = (
    b"x-request-id",
    b"request-id",
    b"apim-request-id",
    b"x-goog-request-id",
    b"x-amzn-requestid",
    b"x-amz-request-id",
    b"x-ms-request-id",
    b"cf-ray",
)
"""What an upstream's invoice and support know a request by; what is a proxy's comes behind what is the API's."""
_ID: Final = re.compile(rb"(?i)\r\n(%b):[ \t]*([!-~]{1,128})[ \t]*(?=\r\n)" % b"|".join(_IDS))


def block_of(lines: Sequence[bytes]) -> bytes:
    """Return field lines as one, each with CRLF before and behind it; an element may hold several."""
    return b"\r\n%b\r\n" % b"\r\n".join(lines)


def field(block: bytes, name: bytes) -> bytes:
    """Return the value of the first field of a name, without space around it; b"" if there is none.

    Args:
        block: As of `block_of`.
        name: In lower case.
    """
    found = _pattern(name).search(block)
    return b"" if found is None else found[1].strip(b" \t")


@lru_cache(maxsize=64)
def _pattern(name: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"(?i)\r\n%b:([^\r]*)" % re.escape(name))


def upstream_id(lines: Sequence[bytes]) -> str:
    """Return the upstream's id of a request from its answer's field lines; "" if none names one.

    Args:
        lines: Field lines; an element may hold several, joined.
    """
    return upstream_id_of(block_of(lines))


def upstream_id_of(block: bytes) -> str:
    """Return the same from a `block_of` them."""
    found = {name.lower(): value for name, value in reversed(_ID.findall(block))}
    return next((found[name].decode() for name in _IDS if name in found), "") if found else ""
