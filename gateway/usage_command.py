"""`gateway usage`: what a running gateway tells of usage, or what is in Redis if none answers."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from gateway.admission import Admission
from gateway.config.values import quoted
from gateway.errors import ConfigError, GatewayError, StoreUnavailable
from gateway.healthcheck import UnixConnection
from gateway.metrics import Metrics
from gateway.stores.choice import make_store
from gateway.tokens import SECRET_MIN_BYTES, TokenSigner
from gateway.usage import UsageView
from gateway.usage_table import as_line, as_table, as_text

if TYPE_CHECKING:
    import argparse

    from gateway.config import Settings

ASK_TIMEOUT_S: Final = 10.0
EVERY_S: Final = 1.0
_KEY_HINT: Final = "set ADMIN_KEY as the gateway has it"


class Source(Protocol):
    """Where usage is read."""

    def read(self) -> dict[str, Any]:
        """Return what `/admin/usage` would answer now. Raises GatewayError or OSError."""
        ...

    def close(self) -> None:
        """Give up connections."""
        ...


def run(options: argparse.Namespace, settings: Settings, local_url: str) -> int:
    """Print usage, once or until somebody has seen enough.

    Args:
        options: `url`, `json` and `watch`.
        settings: The gateway's, of which the target is not looked at.
        local_url: Where a gateway of this machine would be, if nobody said where.

    Returns:
        0.

    Raises:
        ConfigError: The address is none.
        GatewayError, OSError: There is nobody to ask, or no right to.
    """
    source = _source(options.url, settings, local_url)
    try:
        if options.watch:
            _watch(source, as_json=options.json)
        else:
            told = source.read()
            print(json.dumps(told, indent=2) if options.json else as_text(told), flush=True)
    except KeyboardInterrupt:
        if not options.watch:
            raise
    except BrokenPipeError:  # `head` has seen enough; what is still buffered must not fail once more at the exit
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    finally:
        source.close()
    return 0


def _source(url: str | None, settings: Settings, local_url: str) -> Source:
    gateway = _Gateway(url or local_url, settings.admin_key)
    if url is not None or settings.redis is None:
        return gateway
    try:
        gateway.read()
    except _NoAnswer:
        gateway.close()
        return _Redis(settings)
    return gateway


def _watch(source: Source, *, as_json: bool) -> None:
    if as_json or not sys.stdout.isatty():
        before = None
        while True:
            now = source.read()
            print(json.dumps(now) if as_json else as_line(before, now), flush=True)
            before = now
            time.sleep(EVERY_S)
    from rich.live import Live  # only here: a table takes ten megabytes more

    before, now = None, source.read()
    with Live(as_table(None, now), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(EVERY_S)
            before, now = now, source.read()
            live.update(as_table(before, now), refresh=True)


class _NoAnswer(GatewayError):
    """Nobody is there."""


class _Gateway:
    """A running gateway.

    Args:
        url: Its address.
        key: The admin key, or None.
    """

    def __init__(self, url: str, key: bytes | None) -> None:
        self._connection, self._name = _connection(url)
        self._fields = {} if key is None else {"Authorization": f"Bearer {key.decode()}"}

    def read(self) -> dict[str, Any]:
        """See `Source`."""
        was_open = self._connection.sock is not None
        try:
            try:
                status, content = self._ask()
            except ConnectionError:
                # The worker that had it may have ended, and another one be there.
                self._connection.close()
                if not was_open:
                    raise
                status, content = self._ask()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise _NoAnswer(f"no gateway answers at {self._name}: {error or type(error).__name__}") from None
        try:
            told: dict[str, Any] = json.loads(content)
        except ValueError:
            raise GatewayError(f"what answers at {self._name} is no gateway") from None
        if status == 403:
            raise GatewayError(f"{self._name}: {told.get('detail')} ({_KEY_HINT})")
        if status != 200 or "totals" not in told:
            raise GatewayError(f"{self._name} answered {status}: {told.get('detail', 'it is no gateway')}")
        return told

    def _ask(self) -> tuple[int, bytes]:
        self._connection.request("GET", "/admin/usage", headers=self._fields)
        response = self._connection.getresponse()
        return response.status, response.read()

    def close(self) -> None:
        """See `Source`."""
        self._connection.close()


class _Redis:
    """The Redis that gateways enter their usage in.

    Args:
        settings: Where it is, and which limits tokens are under.
    """

    def __init__(self, settings: Settings) -> None:
        self._runner = asyncio.Runner()
        self._store = make_store(settings)
        # Whose tokens they are is of no interest here, only how their limits stand.
        signer = TokenSigner([os.urandom(SECRET_MIN_BYTES)])
        admission = Admission(
            self._store, signer, settings.limits, settings.common_limits, None, budgets=settings.budgets
        )
        self._view = UsageView(admission, self._store.usage, Metrics())
        self._is_started = False

    def read(self) -> dict[str, Any]:
        """See `Source`."""
        told = self._runner.run(self._read())
        told["instances"] -= 1  # this process is none
        return told

    async def _read(self) -> dict[str, Any]:
        if not self._is_started:
            try:
                await self._store.start()
            except StoreUnavailable as error:
                raise GatewayError(f"no gateway answers, and {error.detail}") from None
            self._is_started = True
        return await self._view.all()

    def close(self) -> None:
        """See `Source`."""
        self._runner.run(self._store.close())
        self._runner.close()


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
