"""`gateway usage`: what a running gateway tells of usage, or what is in Redis if none answers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from gateway.admin_client import AdminClient, NoAnswer
from gateway.admission import Admission
from gateway.errors import GatewayError, StoreUnavailable
from gateway.metrics import Metrics
from gateway.stores.choice import make_store
from gateway.tokens import SECRET_MIN_BYTES, TokenSigner
from gateway.usage import UsageView, now
from gateway.usage_table import as_line, as_table, as_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from typing import NoReturn

    from rich.console import RenderableType
    from rich.live import Live

    from gateway.config import Settings

EVERY_S: Final = 1.0


class Source(Protocol):
    """Where usage is read."""

    def read(self) -> dict[str, Any]:
        """Return what `/admin/usage` would answer now. Raises GatewayError or OSError."""
        ...

    def rest(self, seconds: float) -> None:
        """Let so much time pass."""
        ...

    def close(self) -> None:
        """Give up connections."""
        ...


def run(options: argparse.Namespace, settings: Settings, local_url: str) -> int:
    """Print usage, once or until somebody has seen enough.

    Args:
        options: `url`, `json` and `watch`.
        settings: The gateway's; which target it has does not matter.
        local_url: Where a gateway of this machine would be, if nobody said where.

    Returns:
        0.

    Raises:
        ConfigError: `--url` is not an address.
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
    finally:
        source.close()
    return 0


def _source(url: str | None, settings: Settings, local_url: str) -> Source:
    gateway = _Gateway(url or local_url, settings.admin_key)
    if url is not None or settings.redis is None:
        return gateway
    try:
        gateway.read()
    except NoAnswer:
        gateway.close()
        return _Redis(settings)
    return gateway


def _watch(source: Source, *, as_json: bool) -> None:
    before = None
    if as_json or not _is_drawn_on():
        for told, trouble in _looks(source):
            if not trouble:
                print(json.dumps(told) if as_json else as_line(before, told), flush=True)
                before = told
            else:
                print(f"{now()[11:19]} {trouble}", file=sys.stderr if as_json else sys.stdout, flush=True)
        return
    from rich.live import Live  # only here: a table takes ten megabytes more

    signal.signal(signal.SIGTERM, _leave)  # else the terminal would be left with this screen, and without a cursor
    screen = Screen(Live(auto_refresh=False, screen=True))
    signal.signal(signal.SIGTSTP, screen.on_stop)  # likewise, to whoever typed Ctrl-Z
    try:
        for told, trouble in _looks(source):
            screen.show(as_table(before, told, trouble))
            before = told
    finally:
        screen.close()


class Screen:
    """The terminal that is drawn on. Ctrl-Z gives it back, but not in the middle of a drawing, which takes no other.

    Args:
        live: Draws.
        stop: Stops this process, until somebody has it go on.
    """

    __slots__ = ("_is_drawing", "_is_to_stop", "_live", "_stop")

    def __init__(self, live: Live, stop: Callable[[], object] = lambda: signal.raise_signal(signal.SIGSTOP)) -> None:
        self._live = live
        self._stop = stop
        self._is_drawing = self._is_to_stop = False

    def show(self, table: RenderableType) -> None:
        """Draw."""
        self._is_drawing = True
        self._live.update(table)
        self._live.start()  # `with` would not hear of an interruption of the first drawing
        self._live.refresh()
        self._is_drawing = False
        self._stop_if_asked()

    def on_stop(self, *_: object) -> None:
        """Hear of SIGTSTP."""
        self._is_to_stop = True
        self._stop_if_asked()

    def close(self) -> None:
        """Leave the terminal as it was before."""
        self._is_drawing = True
        self._live.stop()

    def _stop_if_asked(self) -> None:
        while self._is_to_stop and not self._is_drawing:
            self._is_to_stop, self._is_drawing = False, True
            self._live.stop()
            self._stop()
            self._live.start(refresh=True)
            self._is_drawing = False


def _looks(source: Source) -> Iterator[tuple[dict[str, Any], str]]:
    """Look every second, and yield what there is to see; after a look in vain once more what was there, and why.

    Raises:
        GatewayError, OSError: The first look was in vain. Later on, who watches wants to see what becomes of it.
    """
    told = source.read()
    yield told, ""
    while True:
        source.rest(EVERY_S)
        trouble = ""
        try:
            told = source.read()
        except (GatewayError, OSError) as error:
            trouble = str(error)
        yield told, trouble


def _is_drawn_on() -> bool:
    """Whether stdout is a terminal that can move its cursor: on any other, rich shows nothing before the end."""
    return sys.stdout.isatty() and os.environ.get("TERM", "").lower() not in {"dumb", "unknown"}


def _leave(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


class _Gateway:
    """A running gateway.

    Args:
        url: Its address.
        key: The admin key, or None.
    """

    def __init__(self, url: str, key: bytes | None) -> None:
        self._client = AdminClient(url, key)

    def read(self) -> dict[str, Any]:
        """See `Source`."""
        status, told = self._client.ask("GET", "/admin/usage")
        if status != 200 or "totals" not in told:
            raise GatewayError(f"{self._client.name} answered {status}: {told.get('detail', 'it is no gateway')}")
        return told

    def rest(self, seconds: float) -> None:
        """See `Source`."""
        time.sleep(seconds)

    def close(self) -> None:
        """See `Source`."""
        self._client.close()


class _Redis:
    """The Redis that gateways enter their usage in.

    Args:
        settings: Where it is, and which limits tokens are under.
    """

    def __init__(self, settings: Settings) -> None:
        logging.getLogger("gateway.store").setLevel(logging.ERROR)  # what is wrong with Redis is told by `read`
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

    def rest(self, seconds: float) -> None:
        """See `Source`. Meanwhile, a connection that was lost is made again."""
        self._runner.run(asyncio.sleep(seconds))

    def close(self) -> None:
        """See `Source`."""
        self._runner.run(self._store.close())
        self._runner.close()
