"""Asking a gateway on this machine whether it is alive, over TCP, TLS or a unix socket."""

from __future__ import annotations

import http.client
import socket
import ssl
from typing import Final, NoReturn
from urllib.parse import urlsplit

from gateway.errors import ConfigError

TIMEOUT_S: Final = 3.0
"""Well under the 30 s after which container runtimes give up by themselves."""


def ask(url: str) -> str:
    """Send `GET /healthz`.

    Args:
        url: `http://host:port`, `https://host:port` or `unix:/path`.

    Returns:
        What is wrong; nothing if the answer is a 200.

    Raises:
        ConfigError: It is no such address.
    """
    connection, name = _connection(url)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"no answer from {name}: {error or type(error).__name__}"
    finally:
        connection.close()
    return "" if status == 200 else f"{name} answered {status}"


def _connection(url: str) -> tuple[http.client.HTTPConnection, str]:
    if url.startswith("unix:/"):
        path = url.removeprefix("unix:").partition(";")[0]
        return UnixConnection(path), f"unix:{path}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        _refuse()
    if not host or parts.scheme not in {"http", "https"}:
        _refuse()
    if parts.scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S), parts.netloc
    # The certificate is for the name that clients use, not for this machine's; nothing that is secret is sent.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context), parts.netloc


def _refuse() -> NoReturn:
    takes = "a gateway's address: http://, https:// or unix:/path"
    raise ConfigError("--url", "is no address of a gateway", takes, "--url http://127.0.0.1:3000") from None


class UnixConnection(http.client.HTTPConnection):
    """HTTP on a unix socket.

    Args:
        path: The socket's.
        timeout_s: For each step.
    """

    def __init__(self, path: str, timeout_s: float = TIMEOUT_S) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        """See `HTTPConnection`."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(self._path)
