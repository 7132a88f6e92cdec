"""How an upstream calls a request: what its invoice and its support know it by."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAMED: Final = re.compile(
    rb"(?i)\r\n(x-request-id|request-id|apim-request-id|x-goog-request-id|x-amzn-requestid|x-amz-request-id|"
    rb"x-ms-request-id|cf-ray): *([!-~]{1,128}) *(?=\r\n)"
)


def upstream_id(lines: Sequence[bytes]) -> str:
    """Return the upstream's id of a request from its answer's field lines; "" if none names one.

    Args:
        lines: Field lines; an element may hold several, joined.
    """
    found = {match[1].lower(): match[2] for match in _NAMED.finditer(b"\r\n" + b"\r\n".join(lines) + b"\r\n")}
    return next((found[name].decode() for name in _ORDER if name in found), "")


# What is a proxy's comes behind what is the API's.
_ORDER: Final = (
    b"x-request-id",
    b"request-id",
    b"apim-request-id",
    b"x-goog-request-id",
    b"x-amzn-requestid",
    b"x-amz-request-id",
    b"x-ms-request-id",
    b"cf-ray",
)
