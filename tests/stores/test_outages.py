"""Each way that a real Redis stops deciding: lost, decided on by the policy meanwhile, and noticed when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import signal
import socket
import termios
from typing import TYPE_CHECKING, Any

import hiredis
import pytest
import trustme

from gateway.config import Config
from gateway.errors import StoreUnavailable
from gateway.limits import parse_limits
from gateway.stores.address import RedisAddress
from gateway.stores.choice import make_store
from gateway.stores.fallback import Local
from gateway.stores.instances import Instances
from gateway.stores.redis import RedisStore
from tests.kit.redis import RedisServer, free_ports, running_redis, until
from tests.kit.stores import TIMEOUT_S, ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

DAY = parse_limits("9/day")
TIMEOUT = 0.1


@contextlib.contextmanager
def paused(server: RedisServer) -> Iterator[None]:
    server.call("CLIENT", "PAUSE", 60_000, "WRITE")
    yield
    server.call("CLIENT", "UNPAUSE")


@contextlib.contextmanager
def asleep(server: RedisServer) -> Iterator[None]:
    """A server that is busy with itself, for 0.7 s."""
    with unanswered(server, "DEBUG", "SLEEP", "0.7"):
        yield


@contextlib.contextmanager
def stopped(server: RedisServer) -> Iterator[None]:
    server.signal(signal.SIGSTOP)
    yield
    server.signal(signal.SIGCONT)


@contextlib.contextmanager
def restarted(server: RedisServer) -> Iterator[None]:
    server.kill()
    yield
    server.start()


@contextlib.contextmanager
def full(server: RedisServer) -> Iterator[None]:
    server.call("CONFIG", "SET", "maxmemory", "1")
    yield
    server.call("CONFIG", "SET", "maxmemory", "0")


@contextlib.contextmanager
def busy(server: RedisServer) -> Iterator[None]:
    """A script that does not end."""
    server.call("CONFIG", "SET", "busy-reply-threshold", "1")
    with unanswered(server, "EVAL", "while true do end", "0"):
        yield
        server.call("SCRIPT", "KILL")


@contextlib.contextmanager
def demoted(server: RedisServer) -> Iterator[None]:
    server.call("CONFIG", "SET", "replica-serve-stale-data", "yes")
    server.call("REPLICAOF", "127.0.0.1", "1")
    yield
    server.call("REPLICAOF", "NO", "ONE")


@contextlib.contextmanager
def demoted_and_stale(server: RedisServer) -> Iterator[None]:
    server.call("CONFIG", "SET", "replica-serve-stale-data", "no")
    server.call("REPLICAOF", "127.0.0.1", "1")
    yield
    server.call("REPLICAOF", "NO", "ONE")


@contextlib.contextmanager
def too_few_replicas(server: RedisServer) -> Iterator[None]:
    server.call("CONFIG", "SET", "min-replicas-to-write", "1")
    yield
    server.call("CONFIG", "SET", "min-replicas-to-write", "0")


@contextlib.contextmanager
def not_saved(server: RedisServer) -> Iterator[None]:
    """A server that may not write to its disk, and is told to refuse writes then."""
    server.call("CONFIG", "SET", "save", "3600 1")
    server.break_directory()
    server.call("SET", "gateway:{x}:y", "1", "EX", "60")
    server.call("BGSAVE")
    until(lambda: b"rdb_last_bgsave_status:err" in server.info("persistence"), "a save that failed")
    yield
    server.call("CONFIG", "SET", "save", "")


@contextlib.contextmanager
def locked(server: RedisServer) -> Iterator[None]:
    """The user has lost its rights."""
    server.call("ACL", "SETUSER", "default", "-evalsha", "-eval")
    yield
    server.call("ACL", "SETUSER", "default", "+evalsha", "+eval")


@contextlib.contextmanager
def unanswered(server: RedisServer, *command: str) -> Iterator[None]:
    """Have the server begin with a command, and wait for its reply at the end only."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(server.path)
        packed: Any = hiredis.pack_command
        connection.sendall(packed(command))
        # What it has read, it does before it reads anything else.
        until(lambda: not any(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))), "a server that has read it")
        yield
        connection.recv(1024)


OUTAGES = {
    "paused": (paused, "did not answer within"),
    "asleep": (asleep, "did not answer within"),
    "stopped": (stopped, "did not answer within"),
    "restarted": (restarted, "lost|closed"),
    "full": (full, "OOM"),
    "busy": (busy, "BUSY|did not answer within"),
    "demoted": (demoted, "READONLY"),
    "demoted-and-stale": (demoted_and_stale, "MASTERDOWN|READONLY"),
    "too-few-replicas": (too_few_replicas, "NOREPLICAS"),
    "not-saved": (not_saved, "MISCONF"),
    "locked": (locked, "NOPERM"),
}


@pytest.fixture
def debugged() -> Iterator[RedisServer]:
    with running_redis("--enable-debug-command", "yes") as server:
        yield server


async def recovered(store: RedisStore) -> None:
    """Wait until the store has found its way back; its own back-off bounds the wait."""
    store.link._timeout_s = TIMEOUT_S  # from now on, nothing should time out, on a machine however slow
    if store.link._recovery is not None:
        await store.link._recovery


@pytest.mark.parametrize("outage", OUTAGES)
async def test_an_outage_is_a_loss_until_it_is_over(debugged: RedisServer, outage: str) -> None:
    broken, reason = OUTAGES[outage]
    store = RedisStore(debugged.address, timeout_s=TIMEOUT)
    await store.start()
    plan = store.plan("abc", DAY)
    assert (await ask(store, plan)).remaining == 8
    with broken(debugged):
        for number in range(4):
            with pytest.raises(StoreUnavailable, match=reason if number < 2 else None):
                await ask(store, plan)
        assert store.link.live is None, "four losses, and still waiting for each"
        with pytest.raises(StoreUnavailable, match="ON_STORE_LOSS=deny"):
            await store.ping()
    await recovered(store)
    # What was answered late has been given back by then, or will be on its own connection.
    while store.link._retired:
        await store.ping()
    assert (await ask(store, plan)).remaining == (8 if outage == "restarted" else 7)
    await store.close()


@pytest.mark.parametrize("outage", OUTAGES)
async def test_local_limits_take_over_from_what_was_known(debugged: RedisServer, outage: str) -> None:
    broken, _ = OUTAGES[outage]
    instances = Instances()
    store = RedisStore(debugged.address, timeout_s=TIMEOUT, loss=Local(instances, lambda: DAY), instances=instances)
    await store.start()
    plan = store.plan("abc", DAY)
    assert [(await ask(store, plan)).remaining for _ in range(4)] == [8, 7, 6, 5]
    with broken(debugged):
        verdicts = [await ask(store, plan) for _ in range(7)]
        assert [verdict.remaining for verdict in verdicts] == [4, 3, 2, 1, 0, 0, 0]
        assert [verdict.admitted for verdict in verdicts] == [True] * 5 + [False] * 2
    await recovered(store)
    while store.link._retired:
        await store.ping()
    assert (await ask(store, plan)).remaining == (8 if outage == "restarted" else 4)
    await store.close()


async def test_a_reload_is_waited_for_and_counts_survive_it(debugged: RedisServer) -> None:
    store = RedisStore(debugged.address, timeout_s=TIMEOUT_S)
    await store.start()
    plan = store.plan("abc", DAY)
    assert (await ask(store, plan)).remaining == 8
    debugged.call("DEBUG", "RELOAD")
    assert (await ask(store, plan)).remaining == 7
    await store.close()


@pytest.fixture
async def over_tls(tmp_path: Path) -> AsyncIterator[tuple[RedisServer, str]]:
    """A real Redis that speaks TLS only, and the file of its authority."""
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    key, chain, roots = tmp_path / "key.pem", tmp_path / "chain.pem", tmp_path / "ca file.pem"
    leaf.private_key_pem.write_to_path(str(key))
    leaf.cert_chain_pems[0].write_to_path(str(chain))
    authority.cert_pem.write_to_path(str(roots))
    (port,) = free_ports(1)
    tls = ("--tls-port", str(port), "--tls-cert-file", str(chain), "--tls-key-file", str(key))
    with running_redis(*tls, "--tls-ca-cert-file", str(roots), "--tls-auth-clients", "no") as server:
        server.port = port
        yield server, str(roots)


async def test_tls_with_roots_user_and_database_from_the_url(over_tls: tuple[RedisServer, str]) -> None:
    server, roots = over_tls
    server.call("ACL", "SETUSER", "me", "on", ">p@ss/word", "~gateway:*", "+@all")
    url = f"rediss://me:p%40ss%2Fword@127.0.0.1:{server.port}/2?ca_file={roots.replace(' ', '%20')}"
    settings = Config(target_api_url="http://api.example", redis_url=url, store_timeout="10s").settings
    store = make_store(settings)
    await store.start()
    assert (await ask(store, store.plan("abc", DAY))).admitted
    assert b"db2:" in server.info("keyspace")
    await store.close()


async def test_tls_that_nobody_vouches_for_is_refused(over_tls: tuple[RedisServer, str]) -> None:
    server, _ = over_tls
    store = RedisStore(RedisAddress("127.0.0.1", server.port, tls=True), timeout_s=TIMEOUT_S)
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await asyncio.wait_for(store.start(), 30)
    await store.close()
