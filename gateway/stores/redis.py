"""The Redis store: one script call per request, over one multiplexed connection per process.

While Redis cannot answer, checks are lost at once, and one background task tries for a new connection. A check
that was answered too late is given back on the connection that answered it. One whose connection broke may have
been charged; that place comes free when it leaves the window.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
from importlib import resources
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Final

import hiredis

from gateway.errors import StoreUnavailable
from gateway.stores import Verdict
from gateway.stores.pipeline import Connection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.limits import Policy
    from gateway.stores import Plan, Waiter
    from gateway.stores.address import RedisAddress

log = logging.getLogger("gateway.store")

CHECK_SCRIPT: Final = resources.files("gateway.stores").joinpath("sliding_window.lua").read_text("utf-8")
REFUND_SCRIPT: Final = resources.files("gateway.stores").joinpath("sliding_window_refund.lua").read_text("utf-8")

LOSSES_TO_OPEN: Final = 3
"""Losses in a row after which checks are no longer sent. One may be chance; more would each wait for nothing."""
BACK_OFF_S: Final = (0.0, 0.05, 0.1, 0.25)
"""Before each try for a new connection; the last one repeats, short enough to be back within a second."""
CONNECT_S: Final = 0.5
"""The longest that a try takes while checks are being lost."""
START_S: Final = 5.0
"""The longest that the first try takes, before anybody waits for it."""
SECRET_LIVES_S: Final = 400 * 86_400
"""Renewed at each start: a deployment that rests for a year still knows its tokens."""

_SECRET_KEY: Final = b"gateway:{global}:secret"
_PROBE_KEY: Final = b"gateway:{global}:probe"
_KEY_TROUBLE: Final = frozenset({"ERR", "WRONGTYPE"})
"""Errors that come from the value of one key. They must not stop the checks of everybody else."""
_NO_LIMITS: Final = Verdict(admitted=True, policy=-1, remaining=0, reset_us=0, at_us=0)
_verdict: Final = tuple.__new__
"""Makes a Verdict in half the time that its constructor takes."""


class _Plan:
    """The commands of one subject's policies, and the recipient of the replies to its checks."""

    __slots__ = ("_keys", "_numbers", "_store", "packed")

    def __init__(self, store: RedisStore, subject: str, policies: Sequence[Policy]) -> None:
        self._store = store
        self._keys = [f"gateway:{{{policy.owner(subject)}}}:limit:{policy.name}" for policy in policies]
        self._numbers = [number for policy in policies for number in (policy.quota, policy.segment_us)]
        self.packed = self._pack("EVALSHA", store.script_sha) if policies else b""

    def pack_with_script(self) -> bytes:
        """Return the check as a command that brings the script along, and leaves it with Redis."""
        return self._pack("EVAL", self._store.script)

    def pack_refund(self, at_us: int) -> bytes:
        """Return the command that gives back a charge made at `at_us`."""
        segments_us = self._numbers[1::2]
        return _pack("EVAL", REFUND_SCRIPT, len(self._keys), *self._keys, at_us, *segments_us)

    def on_reply(self, waiter: Waiter, reply: object) -> None:
        """Tell the verdict."""
        if type(reply) is list and len(reply) == 5:
            self._store.losses = 0
            reply[0] = reply[0] == 1
            try:
                waiter.on_verdict(_verdict(Verdict, reply))
            except Exception:
                # A defect in one request must not take along the replies to all the others that are under way.
                log.exception("a request failed when its limits were known")
                waiter.on_store_loss(StoreUnavailable("Something went wrong in the gateway."))
        else:
            self._store.on_error(self, waiter, reply)

    def on_loss(self, connection: Connection, waiter: Waiter, reason: str) -> None:
        """Tell the loss."""
        self._store.on_trouble(connection, reason)
        waiter.on_store_loss(StoreUnavailable(reason))

    def on_late_reply(self, connection: Connection, reply: object) -> None:
        """Give back what was charged for a request that has had its answer."""
        if type(reply) is list and len(reply) == 5 and reply[0] == 1:
            connection.send(self.pack_refund(reply[4]), _NOBODY)

    def _pack(self, command: str, script: str) -> bytes:
        return _pack(command, script, len(self._keys), *self._keys, *self._numbers)


class _Nobody:
    """The recipient of replies that change nothing."""

    def on_reply(self, context: object, reply: object) -> None:
        """Do nothing."""

    def on_loss(self, connection: Connection, context: object, reason: str) -> None:
        """Do nothing."""

    def on_late_reply(self, connection: Connection, reply: object) -> None:
        """Do nothing."""


_NOBODY: Final = _Nobody()


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


class RedisStore:
    """Checks and charges limits in one Redis, together with every other gateway on it.

    Args:
        address: Where Redis is.
        timeout_s: `STORE_TIMEOUT` in seconds, more than 0: a check without an answer by then is a loss. (Twice
            that, if Redis had lost the script meanwhile.)
        script: The text of the check script. Tests pass one that reads a clock of theirs.
    """

    __slots__ = (
        "_address",
        "_closed",
        "_live",
        "_outage",
        "_recovery",
        "_retired",
        "_timeout_s",
        "losses",
        "script",
        "script_sha",
    )

    def __init__(self, address: RedisAddress, *, timeout_s: float, script: str = CHECK_SCRIPT) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self.script = script
        self.script_sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        self._closed = False
        self._live: Connection | None = None
        self._retired: Connection | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._outage = "The store is not started."
        self.losses = 0

    def plan(self, subject: str, policies: Sequence[Policy]) -> _Plan:
        """Prepare the complete command of this subject's checks; see `Store.plan`.

        Raises:
            ValueError: The subject is not one that limits can be counted for (`Policy.owner`).
        """
        return _Plan(self, subject, policies)

    def check(self, plan: Plan, waiter: Waiter) -> None:
        """Check all policies and charge 1 to each, or charge none; call `waiter` back when Redis has answered."""
        packed: bytes = plan.packed  # type: ignore[attr-defined]  # opaque to others, but this store's own
        connection = self._live
        if not packed:
            waiter.on_verdict(_NO_LIMITS)
        elif connection is None:
            waiter.on_store_loss(StoreUnavailable(self._outage))
        elif connection.congested:
            waiter.on_store_loss(StoreUnavailable("Redis does not read what it is sent."))
        else:
            connection.send(packed, plan, waiter)  # type: ignore[arg-type]  # see above

    def refund(self, plan: Plan, at_us: int) -> None:
        """Give back a charge of 1 made at `at_us` (a `Verdict`'s), where its segment is still counted.

        While Redis is out of reach the charge stays, until it leaves the window.
        """
        packed: bytes = plan.packed  # type: ignore[attr-defined]  # opaque to others, but this store's own
        if packed and self._live is not None and not self._live.congested:
            self._live.send(plan.pack_refund(at_us), _NOBODY)  # type: ignore[attr-defined]  # see above

    async def start(self) -> None:
        """Connect, log in and load the script.

        Raises:
            StoreUnavailable: Redis could not be reached, refused the login, or cannot run the script.
        """
        try:
            self._live = await self._connect(START_S)
        except StoreUnavailable as error:
            raise StoreUnavailable(f"Redis at {self._address}: {error.detail}") from error

    async def ping(self) -> None:
        """Return when Redis answers; raise StoreUnavailable when it does not within the timeout."""
        (reply,) = await self._ask(self._live, ("PING",))
        _expect(reply, "PING")

    async def agree_secret(self, candidate: bytes) -> bytes:
        """Return the signing secret that all instances on this Redis share; `candidate` if there is none yet.

        Raises:
            StoreUnavailable: Redis did not answer, or refused.
        """
        made, agreed = await self._ask(
            self._live,
            ("SET", _SECRET_KEY, candidate, "NX", "EX", SECRET_LIVES_S),
            ("GETEX", _SECRET_KEY, "EX", SECRET_LIVES_S),
        )
        _expect(made, "SET")
        _expect(agreed, "GETEX")
        if not isinstance(agreed, bytes) or not agreed:
            raise StoreUnavailable("Redis has lost the signing secret just agreed on.")
        return agreed

    async def close(self) -> None:
        """End all connections. Checks in flight end with `on_store_loss`, and so does every later one."""
        self._closed = True
        self._outage = "The store is closed."
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)
        for connection in (self._live, self._retired):
            if connection is not None:
                connection.end(self._outage)
        # The transports let go of their sockets in the loop's next turn.
        await asyncio.sleep(0)

    # What plans and connections report

    def on_error(self, plan: _Plan, waiter: Waiter, reply: object) -> None:
        """Take the reply to a check that is no verdict."""
        code = _error_code(reply)
        if code == "NOSCRIPT" and self._live is not None:
            self._live.send(plan.pack_with_script(), plan, waiter)
            return
        reason = f"Redis answered {code}."
        if code not in _KEY_TROUBLE and self._live is not None:
            self.on_trouble(self._live, reason)
        waiter.on_store_loss(StoreUnavailable(reason))

    def on_trouble(self, connection: Connection, reason: str) -> None:
        """Count a loss; after a few in a row, stop sending and go for a new connection."""
        if connection is self._live:
            self.losses += 1
            if self.losses >= LOSSES_TO_OPEN:
                self._go_out(reason)

    def _on_end(self, connection: Connection, reason: str) -> None:
        if connection is self._live:
            self._go_out(reason)
        elif connection is self._retired:
            self._retired = None

    # Going out and coming back

    def _go_out(self, reason: str) -> None:
        connection, self._live = self._live, None
        if self._closed:
            return
        log.warning("Redis at %s is out: %s", self._address, reason)
        self._outage = reason
        if connection is not None and connection.end_reason is None:
            # Late replies may still come, and have to be given back. One such connection is enough to keep.
            if self._retired is not None:
                self._retired.end("The connection to Redis was replaced.")
            self._retired = connection
            connection.retire()
        self._recovery = asyncio.get_running_loop().create_task(self._recover())

    async def _recover(self) -> None:
        for delay_s in chain(BACK_OFF_S, repeat(BACK_OFF_S[-1])):
            await asyncio.sleep(delay_s)
            try:
                self._live = await self._connect(max(CONNECT_S, self._timeout_s))
            except StoreUnavailable as error:
                self._outage = error.detail
            else:
                self.losses = 0
                log.info("Redis at %s is back.", self._address)
                return

    async def _connect(self, within_s: float) -> Connection:
        connection: Connection | None = None
        try:
            async with asyncio.timeout(within_s):
                connection = await self._dial(within_s)
                await self._greet(connection)
        except BaseException as error:
            if connection is not None:
                connection.end("The connection to Redis was given up.")
            if isinstance(error, TimeoutError):
                raise StoreUnavailable("Redis did not answer in time.") from error
            if isinstance(error, OSError):
                why = error.strerror or type(error).__name__
                raise StoreUnavailable(f"Redis cannot be reached: {why}.") from error
            raise
        if connection.end_reason is not None:
            raise StoreUnavailable(connection.end_reason)
        connection.expect_replies_within(self._timeout_s)
        return connection

    async def _dial(self, within_s: float) -> Connection:
        loop, address = asyncio.get_running_loop(), self._address

        def make() -> Connection:
            return Connection(within_s, self._on_end)

        if address.unix_path is not None:
            _, connection = await loop.create_unix_connection(make, address.unix_path)
        else:
            tls = ssl.create_default_context(cafile=address.ca_file) if address.tls else None
            _, connection = await loop.create_connection(make, address.host, address.port, ssl=tls)
        return connection

    async def _greet(self, connection: Connection) -> None:
        address = self._address
        if address.password is not None:
            login = (address.username, address.password) if address.username else (address.password,)
            (reply,) = await self._ask(connection, ("AUTH", *login))
            _expect(reply, "AUTH")
        if address.db:
            (reply,) = await self._ask(connection, ("SELECT", address.db))
            _expect(reply, "SELECT")
        # The probe is a check like any other: what would refuse those refuses it, be it READONLY, OOM or NOPERM.
        _, eviction, loaded, probed = await self._ask(
            connection,
            ("CLIENT", "SETNAME", "rate-limiting-gateway"),
            ("CONFIG", "GET", "maxmemory-policy"),
            ("SCRIPT", "LOAD", self.script),
            ("EVALSHA", self.script_sha, 1, _PROBE_KEY, 10**9, 16_667),
        )
        _expect(loaded, "SCRIPT LOAD")
        _expect(probed, "the script")
        if isinstance(eviction, list) and len(eviction) == 2 and eviction[1] != b"noeviction":
            log.warning(
                "Redis at %s evicts keys when memory is full (maxmemory-policy %s), and with them counts: "
                "set it to noeviction.",
                address,
                eviction[1].decode("ascii", "replace"),
            )

    async def _ask(self, connection: Connection | None, *commands: tuple[str | bytes | int, ...]) -> list[object]:
        if connection is None:
            raise StoreUnavailable(self._outage)
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[object]] = []
        for command in commands:
            future: asyncio.Future[object] = loop.create_future()
            connection.send(_pack(*command), _AWAITED, future)
            futures.append(future)
        return await asyncio.gather(*futures)


def _pack(*command: Any) -> bytes:  # noqa: ANN401 - str, bytes and int, which hiredis checks
    packed: bytes = hiredis.pack_command(command)
    return packed


def _expect(reply: object, what: str) -> None:
    if isinstance(reply, hiredis.ReplyError):
        raise StoreUnavailable(f"Redis answered {_error_code(reply)} to {what}.")


def _error_code(reply: object) -> str:
    """Return the first word of an error reply; the rest may quote what it was sent."""
    if not isinstance(reply, hiredis.ReplyError):
        return "something that is no verdict"
    word = str(reply).partition(" ")[0]
    return word if word.isascii() and word.isupper() and word.isalpha() else "an error"
