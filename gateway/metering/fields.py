"""What field lines say: values of fields, and how the upstream calls the request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

IDS: Final = (
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
MAX_ID_CHARACTERS: Final = 128


class Fields:
    """Field lines, to be asked for a few names.

    Args:
        lines: An element may hold several, joined.
    """

    __slots__ = ("_lines", "_lowered")

    def __init__(self, lines: Sequence[bytes]) -> None:
        self._lines = b"\r\n%b\r\n" % b"\r\n".join(lines)
        self._lowered = self._lines.lower()

    def get(self, name: bytes) -> bytes:
        """Return the value of the first field of a name, without space around it; b"" if there is none.

        Args:
            name: In lower case.
        """
        at = self._lowered.find(b"\r\n%b:" % name)
        if at < 0:
            return b""
        start = at + len(name) + 3
        return self._lines[start : self._lines.index(b"\r\n", start)].strip(b" \t")

    @property
    def upstream_id(self) -> str:
        """The upstream's id of a request, from its answer's fields; "" if none names one."""
        for name in IDS:
            value = self.get(name) if name in self._lowered else b""
            if value and len(value) <= MAX_ID_CHARACTERS and value.isascii() and b" " not in value:
                return value.decode() if value.decode().isprintable() else ""
        return ""


def upstream_id(lines: Sequence[bytes]) -> str:
    """Return the upstream's id of a request from its answer's field lines; "" if none names one."""
    return Fields(lines).upstream_id
