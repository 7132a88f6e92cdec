"""The program's event loop: uvloop's, but that names are looked up in threads whose end nobody waits for.

libuv has two threads for all names, and a loop that ends waits for them: with a DNS server that does not answer, a stop
would take half a minute longer, whatever `DRAIN_TIMEOUT` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from typing import TYPE_CHECKING, Any

import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable


class Loop(uvloop.Loop):
    """An event loop. A name has one look-up at a time: one that hangs outlives those who wait, and they ask again."""

    def __init__(self) -> None:
        super().__init__()
        self._looking_up: dict[tuple[object, ...], asyncio.Future[list[Any]]] = {}

    async def getaddrinfo(
        self,
        host: str | bytes | None,
        port: str | bytes | int | None,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002 - as asyncio has it
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """See `asyncio.AbstractEventLoop`."""
        if host is None or _is_address(host):  # this takes no thread
            return await super().getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags)
        # Of a str, Python loads its codec of IDNA.
        name = host.encode() if isinstance(host, str) and host.isascii() else host
        question = (name, port, family, type, proto, flags)
        found = self._looking_up.get(question)
        if found is None:
            found = self._begin(question)
        return await asyncio.shield(found)

    def _begin(self, question: tuple[Any, ...]) -> asyncio.Future[list[Any]]:
        found: asyncio.Future[list[Any]] = self.create_future()

        def look_up() -> None:
            try:
                result = socket.getaddrinfo(*question)
            except (OSError, UnicodeError) as error:
                self._tell(found.set_exception, error)
            else:
                self._tell(found.set_result, result)

        try:
            threading.Thread(target=look_up, name="look-up", daemon=True).start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, str(error)) from None
        self._looking_up[question] = found
        found.add_done_callback(lambda _: self._looking_up.pop(question).exception())  # all who asked may have left
        return found

    def _tell(self, tell: Callable[[Any], None], what: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.call_soon_threadsafe(tell, what)


def _is_address(host: str | bytes) -> bool:
    text = host if isinstance(host, str) else host.decode("latin-1")
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, text)
            return True
    return False
