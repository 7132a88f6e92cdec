"""Asking a running gateway over TCP, TLS or a unix socket: what commands do, with the admin key or a token."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.errors import ConfigError, GatewayError

ASK_TIMEOUT_S: Final = 10.0
"""Longer than a gateway waits for its Redis, shorter than a person does."""

_KEY_HINT: Final = "set ADMIN_KEY as the gateway has it"
_NAME_HINT: Final = "; --url takes the name that the certificate is for, and SSL_CERT_FILE who else may vouch for one"


class NoAnswer(GatewayError):
    """Nobody is there."""


class AdminClient:
    """A running gateway.

    Args:
        url: Its address, as `connection_to` takes it.
        key: The admin key, or a token where one is enough; None: neither.

    Attributes:
        name: What messages call it.

    Raises:
        ConfigError: It is no address.
    """

    def __init__(self, url: str, key: bytes | None) -> None:
        self._connection, self.name = connection_to(url, ASK_TIMEOUT_S, verifies=True)
        self._fields = {} if key is None else {"Authorization": f"Bearer {key.decode()}"}

    def ask(self, method: str, target: str, members: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Send a request, and return its answer's status and members.

        Args:
            method: The request's.
            target: Its request-target.
            members: Those of the JSON object that it carries; None: it has no content.

        Raises:
            NoAnswer: There is nobody to ask.
            GatewayError: There is no right to, or it is no gateway.
        """
        content = None if members is None else json.dumps(members)
        was_open = self._connection.sock is not None
        try:
            try:
                status, answer = self._ask(method, target, content)
            except ConnectionError:
                # The worker that had the connection may have ended, and another one be there.
                self._connection.close()
                if not was_open:
                    raise
                status, answer = self._ask(method, target, content)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            hint = _NAME_HINT if isinstance(error, ssl.SSLCertVerificationError) else ""
            raise NoAnswer(f"no gateway answers at {self.name}: {error or type(error).__name__}{hint}") from None
        try:
            told: dict[str, Any] = json.loads(answer)
            detail = told.get("detail")
        except (ValueError, AttributeError):
            raise self.is_no_gateway() from None
        if status == 403:
            raise GatewayError(f"{self.name}: {detail} ({_KEY_HINT})")
        return status, told

    def is_no_gateway(self) -> GatewayError:
        """Make the error that tells of an answer which no gateway gives."""
        return GatewayError(f"what answers at {self.name} is no gateway: say where one is (--url, GATEWAY_LISTEN)")

    def _ask(self, method: str, target: str, content: str | None) -> tuple[int, bytes]:
        self._connection.request(method, target, content, self._fields)
        response = self._connection.getresponse()
        return response.status, response.read()

    def close(self) -> None:
        """Give up the connection."""
        self._connection.close()


def connection_to(url: str, timeout_s: float, *, verifies: bool) -> tuple[http.client.HTTPConnection, str]:
    """Return a connection to a gateway, which is not opened yet, and what messages call it.

    Args:
        url: `http://host:port`, `https://host:port` or `unix:/path`; the mode that `GATEWAY_LISTEN` may have behind a
            path is passed over.
        timeout_s: For each step.
        verifies: Whether a certificate has to be good. Without that, nothing secret may be sent.

    Raises:
        ConfigError: It is no such address.
    """
    if url.startswith("unix:/"):
        path = url.removeprefix("unix:").partition(";")[0]
        return _UnixConnection(path, timeout_s), f"unix:{path}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")  # as a look-up does first, whose UnicodeError nobody would expect
    except ValueError:
        host = port = None
    if not host or parts.scheme not in {"http", "https"}:
        takes = "http://host:port, https://host:port or unix:/path"
        # Without what was given: it could be a key, in the wrong place.
        raise ConfigError("--url", "is not the address of a gateway", takes, "--url http://127.0.0.1:3000")
    name = parts.netloc.rpartition("@")[2]  # a password before it is nobody's business
    if parts.scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=timeout_s), name
    context = ssl.create_default_context() if verifies else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not verifies:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context), name


class _UnixConnection(http.client.HTTPConnection):
    """HTTP on a unix socket.

    Args:
        path: The socket's.
        timeout_s: For each step.
    """

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        """See `HTTPConnection`."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(self._path)
