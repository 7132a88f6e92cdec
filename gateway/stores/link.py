"""The way to one Redis: the connection that is live, or why there is none and the search for a new one.

While Redis cannot answer there is no live connection, and one background task tries for a new one. Connections that
were given up are kept for a while: replies that come late on them may have to be given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import hiredis

from gateway.errors import StoreUnavailable
from gateway.stores.pipeline import dial
from gateway.stores.replies import error_code, expect, why

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gateway.stores.address import RedisAddress
    from gateway.stores.pipeline import Connection

log = logging.getLogger("gateway.store")

Command: TypeAlias = tuple[str | bytes | int, ...]
Locate: TypeAlias = "Callable[[float], Awaitable[RedisAddress]]"

LOSSES_TO_OPEN: Final = 3
"""Losses in a row after which checks are no longer sent. One may be chance; more would each wait for nothing."""
MOST_TOLD: Final = 3
"""So many causes of one outage are logged, the first included: each attempt could find another."""
BACK_OFF_S: Final = (0.0, 0.05, 0.1, 0.25)
"""Before each try for a new connection; the last one repeats, short enough to be back within a second."""
KEY_TROUBLE: Final = frozenset({"ERR", "WRONGTYPE"})
"""Errors that come from the value of one key. They must not stop the commands of everybody else."""
MOST_RETIRED: Final = 4
"""Connections given up that may still answer, as a Redis that stands still again and again leaves them behind."""
CONNECT_S: Final = 0.5
"""The longest that a try takes while checks are being lost."""
FOLLOW_S: Final = 1.0
"""How often it is asked anew where Redis is, where that may change."""
START_S: Final = 5.0
"""The longest that the first try takes, before anybody waits for it."""


def at(address: RedisAddress) -> Locate:
    """Return the whereabouts of a server that stays where it is."""

    async def locate(_within_s: float) -> RedisAddress:
        return address

    return locate


class Nobody:
    """The recipient of replies that change nothing."""

    def on_reply(self, context: object, reply: object) -> None:
        """Do nothing."""

    def on_loss(self, connection: Connection, context: object, reason: str) -> None:
        """Do nothing."""

    def on_late_reply(self, connection: Connection, reply: object) -> None:
        """Do nothing."""


NOBODY: Final = Nobody()


class _Awaited:
    """The recipient of replies that a coroutine awaits; the context is its future."""

    def on_reply(self, future: asyncio.Future[object], reply: object) -> None:
        """Wake the coroutine."""
        if not future.done():
            future.set_result(reply)

    def on_loss(self, connection: Connection, future: asyncio.Future[object], reason: str) -> None:
        """Wake the coroutine with StoreUnavailable."""
        if not future.done():
            future.set_exception(StoreUnavailable(reason))

    def on_late_reply(self, connection: Connection, reply: object) -> None:
        """Do nothing: the coroutine has gone on."""


_AWAITED: Final = _Awaited()


class Link:
    """Keeps a connection to one Redis, and finds a new one when it is lost.

    Args:
        name: What the log calls it.
        locate: Says where it is, before each connection; its argument is how long it may take, in seconds.
        timeout_s: `STORE_TIMEOUT` in seconds, more than 0: a command without a reply by then is a loss.
        rehearsal: Commands that a new connection has to answer without an error before it is used. Whatever
            would refuse checks should refuse one of these, be it READONLY, OOM or NOPERM.
        consequence: Says, for the log, what an outage means.
        moves: Whether `locate` may name another server while this one still answers.
        accepts: Error codes that a rehearsal may end with all the same.
        on_out: Called when Redis is out.
        on_back: Called with the link when Redis is back; it has a live connection then.
    """

    __slots__ = (
        "_accepts",
        "_closed",
        "_consequence",
        "_doubt",
        "_following",
        "_locate",
        "_moves",
        "_name",
        "_on_back",
        "_on_out",
        "_place",
        "_recovery",
        "_rehearsal",
        "_retired",
        "_timeout_s",
        "live",
        "losses",
        "outage",
    )

    def __init__(
        self,
        name: str,
        locate: Locate,
        *,
        timeout_s: float,
        rehearsal: Sequence[Command],
        consequence: Callable[[], str],
        moves: bool = False,
        accepts: frozenset[str] = frozenset(),
        on_out: Callable[[], None] | None = None,
        on_back: Callable[[Link], None] | None = None,
    ) -> None:
        self._name = name
        self._locate = locate
        self._consequence = consequence
        self._timeout_s = timeout_s
        self._rehearsal = rehearsal
        self._moves = moves
        self._accepts = accepts
        self._on_out = on_out
        self._on_back = on_back
        self._place: RedisAddress | None = None
        self._following: asyncio.Task[None] | None = None
        self._doubt: asyncio.Task[None] | None = None
        self._closed = False
        self._retired: list[Connection] = []  # the newest one last
        self._recovery: asyncio.Task[None] | None = None
        self.live: Connection | None = None
        """Where commands go; None while Redis is out."""
        self.outage = "Redis is not connected yet."
        """Why there is no live connection: a sentence."""
        self.losses = 0
        """Losses in a row; whoever gets a reply sets it back to 0."""

    async def start(self) -> None:
        """Connect and log in.

        Raises:
            StoreUnavailable: Redis could not be reached, refused the login, or failed the rehearsal.
        """
        try:
            self.live = await self._connect(START_S)
        except StoreUnavailable as error:
            raise StoreUnavailable(f"Redis at {self._name}: {error.detail}") from error
        if self._moves:
            self._following = asyncio.get_running_loop().create_task(self._follow())

    def begin(self) -> None:
        """Connect, however long that takes, without being waited for."""
        self._recovery = asyncio.get_running_loop().create_task(self._recover())

    def leave(self, reason: str) -> None:
        """Send nothing there any more; what is in flight may still be answered."""
        self._closed = True
        self.outage = reason
        connection, self.live = self.live, None
        for task in (self._recovery, self._doubt):
            if task is not None:
                task.cancel()
        if connection is not None and connection.end_reason is None:
            self._retired.append(connection)
        self._retire()

    @property
    def done(self) -> bool:
        """Whether no connection is left that a late reply could come on."""
        return self.live is None and not self._retired

    @property
    def back(self) -> Connection | None:
        """The connection to give something back on: the live one, else the last one, which may still answer."""
        return self._retired[-1] if self.live is None and self._retired else self.live

    async def ask(self, *commands: Command) -> list[object]:
        """Send commands on the live connection and return their replies, error replies included.

        Raises:
            StoreUnavailable: Redis is out, or did not answer within the timeout.
        """
        connection = self.live
        if connection is None:
            raise StoreUnavailable(self.outage)
        try:
            return await ask(connection, *commands)
        except StoreUnavailable as error:
            self.on_trouble(connection, error.detail)
            raise

    async def probe(self) -> None:
        """Return when a check would get a verdict: a replica, or a Redis without memory left, answers to all else.

        Raises:
            StoreUnavailable: It would not.
        """
        (reply,) = await self.ask(self._rehearsal[-1])
        if error_code(reply) not in {"NOSCRIPT", *self._accepts}:  # a check would bring the script along
            expect(reply, "the script")

    async def close(self) -> None:
        """End all connections. Commands in flight are lost, and there is no live connection ever after."""
        self._closed = True
        self.outage = "The store is closed."
        for task in (self._recovery, self._following, self._doubt):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        for connection in (self.live, *self._retired):
            if connection is not None:
                connection.end(self.outage)
        # The transports let go of their sockets in the loop's next turn.
        await asyncio.sleep(0)

    def on_trouble(self, connection: Connection, reason: str) -> None:
        """Count a loss, and make sure that it was but one; after a few in a row, go for a new connection."""
        if connection is self.live:
            self.losses += 1
            if self.losses >= LOSSES_TO_OPEN:
                self._go_out(reason)
            elif self._doubt is None or self._doubt.done():
                self._doubt = asyncio.get_running_loop().create_task(self._make_sure(connection))

    # Going out and coming back

    async def _make_sure(self, connection: Connection) -> None:
        # One that a firewall has forgotten is silent for ever: few requests would find that out one by one, each lost.
        while connection is self.live:
            with contextlib.suppress(StoreUnavailable):  # a loss like any other: there are not many until it is out
                await self.ask(("PING",))
                return

    def _on_end(self, connection: Connection, reason: str) -> None:
        if connection is self.live:
            self._go_out(reason)
        elif connection in self._retired:
            self._retired.remove(connection)

    def _go_out(self, reason: str) -> None:
        connection, self.live = self.live, None
        if self._closed:
            return
        log.warning("Redis at %s is out: %s %s", self._name, reason, self._consequence())
        self.outage = reason
        if connection is not None and connection.end_reason is None:
            # Late replies may still come, and have to be given back, as does what was admitted and is never sent.
            self._retired.append(connection)
            if len(self._retired) > MOST_RETIRED:
                self._retired[0].cut("The connection to Redis was replaced.")
        self.begin()
        if self._on_out is not None:
            self._on_out()

    def _retire(self) -> None:
        for connection in tuple(self._retired):
            connection.retire()

    async def _recover(self) -> None:
        told = {self.outage}
        for delay_s in chain(BACK_OFF_S, repeat(BACK_OFF_S[-1])):
            # Instances that lost Redis in the same moment do not all come back in the same.
            await asyncio.sleep(delay_s * random.uniform(0.75, 1))  # noqa: S311 - no secret
            try:
                self.live = await self._connect(max(CONNECT_S, self._timeout_s))
            except StoreUnavailable as error:
                self.outage = error.detail
                # While it restarts it refuses, which is no news.
                if delay_s == BACK_OFF_S[-1] and error.detail not in told and len(told) < MOST_TOLD:
                    log.warning("Redis at %s is still out: %s", self._name, error.detail)
                    told.add(error.detail)
            else:
                self.losses = 0
                self._retire()
                log.info("Redis at %s is back.", self._name)
                if self._on_back is not None:
                    self._on_back(self)
                return

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(FOLLOW_S)
            if self.live is None:
                continue  # whoever looks for a new connection asks as well
            try:
                place = await self._locate(CONNECT_S)
            except StoreUnavailable:
                continue  # as long as the connection is good, nobody needs to know
            if self.live is not None and place != self._place:
                self._go_out(f"It has moved to {place}.")

    async def _connect(self, within_s: float) -> Connection:
        connection: Connection | None = None
        try:
            async with asyncio.timeout(within_s):
                self._place = place = await self._locate(within_s)
                connection = await dial(place, within_s, self._on_end)
                await self._greet(connection, place)
        except BaseException as error:
            if connection is not None:
                connection.end("The connection to Redis was given up.")
            if isinstance(error, TimeoutError):
                hint = " (rediss:// is for a port of TLS)" if self._place is not None and self._place.tls else ""
                raise StoreUnavailable(f"Redis did not answer in time{hint}.") from error
            if isinstance(error, OSError):
                raise StoreUnavailable(f"Redis cannot be reached: {why(error)}") from error
            raise
        if connection.end_reason is not None:
            raise StoreUnavailable(connection.end_reason)
        connection.expect_replies_within(self._timeout_s)
        return connection

    async def _greet(self, connection: Connection, address: RedisAddress) -> None:
        expect(await log_in(connection, address), "AUTH")
        if address.db:
            (reply,) = await ask(connection, ("SELECT", address.db))
            expect(reply, f"SELECT {address.db}, the database in REDIS_URL")
        _, eviction, *rehearsed = await ask(
            connection,
            ("CLIENT", "SETNAME", "rate-limiting-gateway"),
            ("CONFIG", "GET", "maxmemory-policy"),
            *self._rehearsal,
        )
        for command, reply in zip(self._rehearsal, rehearsed, strict=True):
            code = error_code(reply)
            if code == "MOVED" and code not in self._accepts:
                raise StoreUnavailable("It is a node of a cluster, which takes redis+cluster:// in place of redis://.")
            if code not in self._accepts:
                expect(reply, "the script" if command[0] == "EVALSHA" else " ".join(map(str, command[:2])))
        if isinstance(eviction, list) and len(eviction) == 2 and eviction[1] != b"noeviction":
            log.warning(
                "Redis at %s evicts keys when memory is full (maxmemory-policy %s), and with them counts: "
                "set it to noeviction.",
                address,
                eviction[1].decode("ascii", "replace"),
            )


async def log_in(connection: Connection, address: RedisAddress) -> object:
    """Send user and password, if there is one, and return the reply."""
    if address.password is None:
        return None
    login = (address.username, address.password) if address.username else (address.password,)
    (reply,) = await ask(connection, ("AUTH", *login))
    return reply


async def ask(connection: Connection, *commands: Command) -> list[object]:
    """Send commands and return their replies, error replies included.

    Raises:
        StoreUnavailable: They did not come in time.
    """
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[object]] = []
    for command in commands:
        future: asyncio.Future[object] = loop.create_future()
        connection.send(pack(*command), _AWAITED, future)
        futures.append(future)
    return await asyncio.gather(*futures)


def pack(*command: Any) -> bytes:  # noqa: ANN401 - str, bytes and int, which hiredis checks
    """Return a command in RESP."""
    packed: bytes = hiredis.pack_command(command)
    return packed
