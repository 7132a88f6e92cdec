"""Stores for tests, each with a clock that the test sets, and waiters to ask them with."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from typing import TYPE_CHECKING, Any, Protocol

import fakeredis
import redis
from fakeredis._clients._tcp_server import TCPFakeRequestHandler

from gateway.errors import StoreUnavailable
from gateway.limits.places import LEASE_US
from gateway.stores.address import RedisAddress
from gateway.stores.memory import MemoryStore
from gateway.stores.redis import CHECK_SCRIPT, RENEW_SCRIPT, RedisStore
from gateway.stores.spend_scripts import SpendScripts
from tests.kit.redis import running_redis, valkey_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway.limits import Policy
    from gateway.stores import Plan, Store, Verdict

TIMEOUT_S = 10.0
"""For tests that nothing should time out in, on a machine however slow."""

CLOCK_KEY = "test:clock"
_TIME_CALL = re.compile(r"(redis\.)?call\('TIME'\)")


def on_test_clock(script: str) -> str:
    """Return a script with a clock that tests set."""
    return _TIME_CALL.sub(f"{{0, redis.call('GET', '{CLOCK_KEY}') or '0'}}", script)


CLOCK_SCRIPT, CLOCK_RENEW_SCRIPT = map(on_test_clock, (CHECK_SCRIPT, RENEW_SCRIPT))
CLOCK_SPENDS = SpendScripts.on_clock(on_test_clock)
assert CLOCK_SCRIPT != CHECK_SCRIPT and CLOCK_RENEW_SCRIPT != RENEW_SCRIPT  # noqa: PT018


class Waiting:
    """A waiter that can be awaited, and that sees to it that it is called back once."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()

    def on_verdict(self, verdict: Verdict) -> None:
        self.future.set_result(verdict)

    def on_store_loss(self, error: StoreUnavailable) -> None:
        self.future.set_exception(error)


async def ask(store: Store, plan: Plan) -> Verdict:
    """Check, and return the verdict or raise the loss."""
    waiting = Waiting()
    store.check(plan, waiting)
    return await waiting.future


async def many(store: Store, subject: str, policies: Sequence[Policy], count: int) -> list[Verdict]:
    """Check `count` times with all in flight at once."""
    plan = store.plan(subject, policies)
    waiting = [Waiting() for _ in range(count)]
    for waiter in waiting:
        store.check(plan, waiter)
    return [await waiter.future for waiter in waiting]


async def until_answered(store: Pinged) -> None:
    """Wait until a server that was out, or moved, decides again."""
    async with asyncio.timeout(30):
        while True:
            try:
                await store.ping()
            except StoreUnavailable:
                await asyncio.sleep(0.01)  # the servers tell nobody
            else:
                return


class Pinged(Protocol):
    """A store with a server behind it."""

    async def ping(self) -> None: ...


class Subject(Protocol):
    """A store under test, on a clock of the test's."""

    async def fresh(self) -> Store:
        """Return the store, started, with nothing counted in it."""
        ...

    lease_us: int | None
    """How long a lease lasts; None: for ever."""

    async def set_clock(self, now_us: int) -> None:
        """Make it that time for the store."""
        ...

    def renew(self) -> None:
        """Renew what is held."""
        ...

    def kill(self, lease: bytes) -> None:
        """Neither renew a lease any more nor give it back, as if the process that took it were gone."""
        ...

    async def close(self) -> None:
        """Close the store."""
        ...


class MemorySubject:
    """MemoryStore on a variable."""

    lease_us: int | None = None

    def __init__(self) -> None:
        self._now_us = 0

    async def fresh(self) -> Store:
        return MemoryStore(lambda: self._now_us)

    async def set_clock(self, now_us: int) -> None:
        self._now_us = now_us

    def renew(self) -> None:
        """Leases of this process last as long as it does."""

    def kill(self, lease: bytes) -> None:
        raise AssertionError("the embedded store is gone with its process")

    async def close(self) -> None:
        pass


class RedisSubject:
    """RedisStore on a server, with scripts that take the time from a key."""

    lease_us: int | None = LEASE_US

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        self._store: RedisStore | None = None
        self._control: redis.Redis | None = None

    async def fresh(self) -> Store:
        if self._control is None:
            self._control = connect(self._address)
        self._control.flushall()
        if self._store is None:
            self._store = RedisStore(
                self._address, timeout_s=TIMEOUT_S, script=CLOCK_SCRIPT, renew_script=CLOCK_RENEW_SCRIPT
            )
            await self._store.start()
        for lease in tuple(self._store.leases._held):
            self.kill(lease)
        return self._store

    def renew(self) -> None:
        assert self._store is not None
        self._store.leases.renew()

    def kill(self, lease: bytes) -> None:
        assert self._store is not None
        self._store.leases._held.pop(lease)

    async def set_clock(self, now_us: int) -> None:
        assert self._control is not None
        self._control.set(CLOCK_KEY, now_us)

    async def close(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._store is not None:
            await self._store.close()
            self._store = None


def connect(address: RedisAddress) -> redis.Redis:
    """Return a client of redis-py's, for what the tests do beside the store."""
    if address.unix_path is not None:
        return redis.Redis(unix_socket_path=address.unix_path, protocol=2)
    return redis.Redis(address.host, address.port, protocol=2)


class _LikeRedis(TCPFakeRequestHandler):
    """Keeps a connection open after an error reply, as Redis does and fakeredis 2.40 does not."""

    def setup(self) -> None:
        super().setup()
        client: Any = self.current_client
        read = client.read_response

        def read_response(*args: object, **kwargs: object) -> object:
            try:
                return read(*args, **kwargs)
            except redis.ResponseError as error:
                return error

        client.read_response = read_response


@contextlib.contextmanager
def fake_redis() -> Iterator[RedisAddress]:
    """Serve fakeredis over TCP, on a port that the kernel chooses."""
    server = fakeredis.TcpFakeServer(("127.0.0.1", 0), server_version=(7, 0))
    server.RequestHandlerClass = _LikeRedis
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        host, port = server.server_address[:2]
        yield RedisAddress(str(host), int(port))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def subject(kind: str) -> Iterator[Subject]:
    """Yield a store of the kind: `memory`, `fakeredis`, `redis` or `valkey`."""
    if kind == "memory":
        yield MemorySubject()
    elif kind == "fakeredis":
        with fake_redis() as address:
            yield RedisSubject(address)
    else:
        with running_redis(binary=valkey_server() if kind == "valkey" else None) as server:
            yield RedisSubject(server.address)


KINDS = ("memory", "fakeredis", "redis", "valkey")
