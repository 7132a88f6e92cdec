"""Asking a running gateway as its admin, over TCP, TLS or a unix socket: what commands do."""

from __future__ import annotations

import http.client
import json
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.config.values import quoted
from gateway.errors import ConfigError, GatewayError
from gateway.healthcheck import UnixConnection

ASK_TIMEOUT_S: Final = 10.0
"""Longer than a gateway waits for its Redis, shorter than a person does."""

_KEY_HINT: Final = "set ADMIN_KEY as the gateway has it"


class NoAnswer(GatewayError):
    """Nobody is there."""


class AdminClient:
    """A running gateway.

    Args:
        url: Its address.
        key: The admin key, or None.

    Attributes:
        name: What messages call it.

    Raises:
        ConfigError: It is no address.
    """

    def __init__(self, url: str, key: bytes | None) -> None:
        self._connection, self.name = _connection(url)
        self._fields = {} if key is None else {"Authorization": f"Bearer {key.decode()}"}

    def ask(self, method: str, target: str) -> tuple[int, dict[str, Any]]:
        """Send a request, and return its answer's status and members.

        Raises:
            NoAnswer: There is nobody to ask.
            GatewayError: There is no right to, or it is no gateway.
        """
        was_open = self._connection.sock is not None
        try:
            try:
                status, content = self._ask(method, target)
            except ConnectionError:
                # The worker that had it may have ended, and another one be there.
                self._connection.close()
                if not was_open:
                    raise
                status, content = self._ask(method, target)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise NoAnswer(f"no gateway answers at {self.name}: {error or type(error).__name__}") from None
        try:
            told: dict[str, Any] = json.loads(content)
            detail = told.get("detail")
        except (ValueError, AttributeError):
            raise self.is_no_gateway() from None
        if status == 403:
            raise GatewayError(f"{self.name}: {detail} ({_KEY_HINT})")
        return status, told

    def is_no_gateway(self) -> GatewayError:
        """Make the error that tells of an answer which no gateway gives."""
        return GatewayError(f"what answers at {self.name} is no gateway")

    def _ask(self, method: str, target: str) -> tuple[int, bytes]:
        self._connection.request(method, target, headers=self._fields)
        response = self._connection.getresponse()
        return response.status, response.read()

    def close(self) -> None:
        """Give up the connection."""
        self._connection.close()


def _connection(url: str) -> tuple[http.client.HTTPConnection, str]:
    if url.startswith("unix:/"):
        return UnixConnection(url.removeprefix("unix:").partition(";")[0], ASK_TIMEOUT_S), url
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.scheme not in {"http", "https"}:
        takes = "a gateway's address: http://, https:// or unix:/path"
        raise ConfigError("--url", f"{quoted(url)} is no URL", takes, "--url http://127.0.0.1:3000")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(host, port, timeout=ASK_TIMEOUT_S), parts.netloc
