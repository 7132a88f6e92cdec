"""Where commands read the ledger: a running gateway, or Redis if none answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar
from urllib.parse import quote, urlencode

from gateway.admin_client import AdminClient, NoAnswer
from gateway.budgets.told import latest, read_told, spelled_us
from gateway.config.moments import moment_us
from gateway.errors import ConfigError, GatewayError, StoreUnavailable
from gateway.ledger_pages import PAGE, PATH, ledger_of, open_of
from gateway.stores.choice import make_store

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from gateway.budgets.spending import Entry
    from gateway.config import Settings
    from gateway.stores.ledger import Ledger

Result = TypeVar("Result")

_FAR_US: Final = 1 << 62


class Wanted(NamedTuple):
    """What is to be read.

    Args:
        since_us, until_us: When it was settled, the second not included; in microseconds since the epoch.
        token: Whose, with those made from it; None: everybody's.
        open_only: Reservations, and no entries.
    """

    since_us: int
    until_us: int = _FAR_US
    token: str | None = None
    open_only: bool = False


class Found(NamedTuple):
    """What was read: the last entry of each request, oldest first, and reservations that are not settled."""

    entries: list[Entry]
    open: list[Entry]


class Source(Protocol):
    """Where a ledger is."""

    def read(self, wanted: Wanted) -> Found:
        """Return what is there. Raises GatewayError or OSError."""
        ...

    def release(self, request: str) -> Entry | None:
        """Settle a reservation for nothing; return what it was, None if there is none. Raises as `read`."""
        ...

    def close(self) -> None:
        """Give up connections."""
        ...


def wanted(options: argparse.Namespace, now_us: int | None = None) -> Wanted:
    """Read `--since`, `--until` and, where a command has them, `--token` and `--open`.

    Raises:
        ConfigError: One of them is nothing that can be read.
    """
    now_us = time.time_ns() // 1000 if now_us is None else now_us
    since_us, until_us = (_moment(options, name, now_us) for name in ("since", "until"))
    found = Wanted(
        0 if since_us is None else since_us,
        _FAR_US if until_us is None else until_us,
        getattr(options, "token", None),
        getattr(options, "open", False),
    )
    if found.until_us <= found.since_us:
        raise ConfigError("--until", "is not after --since", "a later time", "--since 48h --until 24h")
    return found


def ask(url: str | None, settings: Settings, local_url: str, do: Callable[[Source], Result]) -> Result:
    """Ask the gateway at an address; without one, that of this machine or, where none answers, Redis.

    Args:
        url: The address, or None.
        settings: The gateway's; which target it has does not matter.
        local_url: Where a gateway of this machine would be.
        do: Asks.

    Raises:
        ConfigError: The address is not one.
        GatewayError, OSError: There is nobody to ask, or no right to.
    """
    with contextlib.closing(_Gateway(url or local_url, settings.admin_key)) as gateway:
        try:
            return do(gateway)
        except NoAnswer:
            if url is not None or settings.redis is None:
                raise
    with contextlib.closing(_Redis(settings)) as redis:
        return do(redis)


def print_whole(text: str) -> None:
    """Print a text; a reader that has seen enough before its end, like `head`, is no failure."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # what is still buffered must not fail once more at the exit
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _moment(options: argparse.Namespace, name: str, now_us: int) -> int | None:
    text = getattr(options, name)
    try:
        return None if text is None else moment_us(text, now_us)
    except ValueError as error:
        raise ConfigError(f"--{name}", str(error), "24h, 7d, a day or a time", f"--{name} 24h") from None


class _Gateway:
    """A running gateway.

    Args:
        url: Its address.
        key: The admin key, or None.
    """

    def __init__(self, url: str, key: bytes | None) -> None:
        self._client = AdminClient(url, key)

    def read(self, wanted: Wanted) -> Found:
        """See `Source`."""
        opened: list[Entry] = []
        entries: list[Entry] = []
        for told in self._pages(wanted):
            try:
                opened += map(read_told, told["open"])
                entries += map(read_told, told["entries"])
            except (ValueError, TypeError, KeyError, AttributeError):
                raise self._client.is_no_gateway() from None
            if entries and entries[-1].at_us >= wanted.until_us:
                break
        return _found(entries, opened, wanted)

    def _pages(self, wanted: Wanted) -> Iterator[dict[str, Any]]:
        asked = {"since": spelled_us(wanted.since_us)}
        if wanted.token is not None:
            asked["token"] = wanted.token
        if wanted.open_only:
            asked["open"] = "only"
        target: Any = f"{PATH}?{urlencode(asked)}"
        while target is not None:
            status, told = self._client.ask("GET", target)
            if status != 200 or "entries" not in told:
                raise GatewayError(f"{self._client.name} answered {status}: {told.get('detail', 'it is no gateway')}")
            yield told
            target = told.get("next")
            if not isinstance(target, str | None):
                raise self._client.is_no_gateway()

    def release(self, request: str) -> Entry | None:
        """See `Source`."""
        status, told = self._client.ask("DELETE", f"{PATH}/{quote(request, safe='')}")
        if status == 404:
            return None
        try:
            if status == 200:
                return read_told(told)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise self._client.is_no_gateway() from None
        raise GatewayError(f"{self._client.name} answered {status}: {told.get('detail', 'it is no gateway')}")

    def close(self) -> None:
        """See `Source`."""
        self._client.close()


class _Redis:
    """The Redis that gateways keep their ledger in.

    Args:
        settings: Where it is.
    """

    def __init__(self, settings: Settings) -> None:
        self._runner = asyncio.Runner()
        self._store = make_store(settings)

    def read(self, wanted: Wanted) -> Found:
        """See `Source`."""
        return self._runner.run(self._read(wanted))

    async def _read(self, wanted: Wanted) -> Found:
        ledger = await self._ledger()
        opened = await open_of(ledger, wanted.token)
        entries: list[Entry] = []
        since_us = wanted.since_us
        while not wanted.open_only:
            page = await ledger.entries(since_us, wanted.token, PAGE)
            entries += page
            if not page or page[-1].at_us >= wanted.until_us:
                break
            since_us = page[-1].at_us + 1
        return _found(entries, opened, wanted)

    def release(self, request: str) -> Entry | None:
        """See `Source`."""
        return self._runner.run(self._release(request))

    async def _release(self, request: str) -> Entry | None:
        return await (await self._ledger()).release(request)

    async def _ledger(self) -> Ledger:
        try:
            await self._store.start()
        except StoreUnavailable as error:
            raise GatewayError(f"no gateway answers, and {error.detail}") from None
        return ledger_of(self._store)

    def close(self) -> None:
        """See `Source`."""
        self._runner.run(self._store.close())
        self._runner.close()


def _found(entries: list[Entry], opened: list[Entry], wanted: Wanted) -> Found:
    last = latest(entries)
    settled = {entry.id for entry in last}
    return Found(
        [entry for entry in last if entry.at_us < wanted.until_us],
        # One that needed more while it was under way has several reservations.
        [entry for entry in latest(opened) if entry.id not in settled],
    )
