"""What field lines say: values of fields, and how the upstream calls the request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

CONTENT_TYPE: Final = b"\r\ncontent-type:"
CONTENT_ENCODING: Final = b"\r\ncontent-encoding:"
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


class Fields:
    """Field lines, to be asked for a few names.

    Args:
        lines: An element may hold several, joined.
    """

    __slots__ = ("_lines", "_lowered")

    def __init__(self, lines: Sequence[bytes]) -> None:
        self._lines = b"\r\n%b\r\n" % b"\r\n".join(lines)
        self._lowered = self._lines.lower()

    def have(self, text: bytes) -> bool:
        """Whether a text in lower case is anywhere in them, which is sooner known than where."""
        return text in self._lowered

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

    @property
    def upstream_id(self) -> str:
        """The upstream's id of a request, from its answer's fields; "" if none names one."""
        lowered = self._lowered
        for one in IDS:
            if one in lowered:  # seen sooner than its value is found
                value = self.get(one).decode("latin-1")
                if value and len(value) <= MAX_ID_CHARACTERS and value.isascii() and " " not in value:
                    return value if value.isprintable() else ""
        return ""


def upstream_id(lines: Sequence[bytes]) -> str:
    """Return the upstream's id of a request from its answer's field lines; "" if none names one."""
    return Fields(lines).upstream_id
