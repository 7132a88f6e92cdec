"""A blocking HTTP/1.1 client on one connection: the least that a measurement needs, and no more cost than that."""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

ADMIN_KEY: Final = "an-admin-key-for-the-benches-of-32-characters"
"""Of gateways under measurement: without one, an address registers ten times a minute."""
TIMEOUT_S: Final = 30.0

_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def request(path: str, token: str, method: str = "GET") -> bytes:
    """Write a request without a body."""
    length = "Content-Length: 0\r\n" if method == "POST" else ""
    return f"{method} {path} HTTP/1.1\r\nHost: lab\r\nAuthorization: Bearer {token}\r\n{length}\r\n".encode()


class Connection:
    """A connection to 127.0.0.1.

    Args:
        port: Where to.
        receive_bytes: The size of the socket's receive buffer; None: the system's own.
    """

    __slots__ = ("_rest", "socket")

    def __init__(self, port: int, receive_bytes: int | None = None) -> None:
        self.socket = socket.socket()
        try:
            if receive_bytes is not None:
                # Before connecting: it bounds the window that is offered.
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            self.socket.settimeout(TIMEOUT_S)
            self.socket.connect(("127.0.0.1", port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            self.socket.close()
            raise
        self._rest = b""

    def send(self, *requests: bytes) -> None:
        """Send requests without waiting for their answers."""
        self.socket.sendall(b"".join(requests))

    def read_head(self) -> tuple[int, int | None]:
        """Read the next answer's head; its status code and, where it says, the length of its body."""
        while (end := self._rest.find(b"\r\n\r\n")) < 0:
            self._rest += self._more()
        head, self._rest = self._rest[: end + 2], self._rest[end + 4 :]
        status, length = _STATUS.match(head), _LENGTH.search(head)
        if status is None:
            raise ConnectionError("the answer is no HTTP/1.1")
        return int(status[1]), None if length is None else int(length[1])

    def read(self) -> tuple[int, bytes]:
        """Read the next answer; its status code and body, which has to have a Content-Length."""
        status, length = self.read_head()
        if length is None:
            raise ConnectionError("the answer has no Content-Length")
        while len(self._rest) < length:
            self._rest += self._more()
        body, self._rest = self._rest[:length], self._rest[length:]
        return status, body

    def skip(self, length: int) -> None:
        """Read that much of a body and drop it."""
        left = length - len(self._rest)
        self._rest = b""
        buffer = bytearray(1 << 20)
        while left > 0:
            received = self.socket.recv_into(buffer, min(left, len(buffer)))
            if not received:
                raise ConnectionError(f"the answer ended {left} bytes early")
            left -= received

    def lines(self) -> Iterable[bytes]:
        """Read an endless body line by line, as it comes."""
        while True:
            *whole, self._rest = self._rest.split(b"\n")
            yield from whole
            self._rest += self._more()

    def register(self) -> str:
        """Get a token from a gateway."""
        self.send(request("/register", ADMIN_KEY, "POST"))
        status, body = self.read()
        if status != 201:
            raise ConnectionError(f"/register answered {status}")
        token: str = json.loads(body)["token"]
        return token

    def _more(self) -> bytes:
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
