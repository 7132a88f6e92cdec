"""What a run does to Redis: makes it wait, or kills it and has it started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import hiredis

from gateway.errors import ConfigError, StoreUnavailable
from gateway.verify.tally import now_us

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.stores.address import RedisAddress
    from gateway.verify.plan import Faults

BACK_S: Final = 30.0
"""How long Redis may take to come back; a supervisor may wait a while before it restarts."""
ANSWER_S: Final = 5.0

_LOOK_S: Final = 0.02
_NAMES: Final = ("redis", "valkey", "keydb")
_MARK: Final = "gateway:{global}:verify"
"""A key that tells whether Redis came back with its data; it expires by itself."""
_MARK_LIVES_S: Final = 600
_NOTHING: Final = object()


class Outage(NamedTuple):
    """One thing that was done to Redis. Instants are microseconds of the machine's monotonic clock.

    Args:
        what: `paused` or `killed`.
        begin_us: From when on it did not answer.
        end_us: When it answered again.
        kept_data: Whether it came back with what it held.
    """

    what: str
    begin_us: int
    end_us: int
    kept_data: bool


class Redis:
    """One Redis server, asked over a connection of its own each time."""

    def __init__(self, address: RedisAddress) -> None:
        self.address = address

    async def ask(self, *command: str | int, within_s: float = ANSWER_S) -> object:
        """Send one command and return the reply.

        Raises:
            StoreUnavailable: Redis did not answer in time, or with an error.
        """
        try:
            async with asyncio.timeout(within_s):
                return await self._ask(command)
        except OSError as error:
            raise StoreUnavailable(f"Redis at {self.address}: {error or type(error).__name__}") from error

    async def _ask(self, command: tuple[str | int, ...]) -> object:
        address = self.address
        if address.unix_path is not None:
            streams = await asyncio.open_unix_connection(address.unix_path)
        else:
            tls = ssl.create_default_context(cafile=address.ca_file) if address.tls else None
            streams = await asyncio.open_connection(address.host, address.port, ssl=tls)
        reader, writer = streams
        login: list[tuple[str | int, ...]] = []
        if address.password is not None:
            login.append(("AUTH", *((address.username,) if address.username else ()), address.password))
        if address.db:
            login.append(("SELECT", address.db))
        packed: Any = hiredis.pack_command
        try:
            replies = hiredis.Reader(notEnoughData=_NOTHING)
            reply: object = None
            for each in (*login, command):
                writer.write(packed(each))
                while (reply := replies.gets()) is _NOTHING:
                    data = await reader.read(65536)
                    if not data:
                        raise ConnectionResetError("the connection was closed")
                    replies.feed(data)
                if isinstance(reply, hiredis.ReplyError):
                    # Only its first word: the rest may quote what it was sent.
                    raise StoreUnavailable(f"Redis at {self.address} answered {str(reply).partition(' ')[0]}.")
            return reply
        finally:
            writer.transport.abort()

    async def answers(self) -> None:
        """Wait until it answers; what is down or still loading its data is asked again.

        Raises:
            StoreUnavailable: It has not answered for `BACK_S`.
        """
        try:
            async with asyncio.timeout(BACK_S):
                while True:
                    with contextlib.suppress(StoreUnavailable):
                        await self.ask("PING", within_s=BACK_S)
                        return
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise StoreUnavailable(f"Redis at {self.address} did not come back within {BACK_S:g} s.") from None

    async def pid(self) -> int:
        """Return the number of its process, as it says itself."""
        info = await self.ask("INFO", "server")
        text = info.decode("ascii", "replace") if isinstance(info, bytes) else ""
        found = [line.partition(":")[2] for line in text.splitlines() if line.startswith("process_id:")]
        return int(found[0]) if found else 0


async def pid_to_kill(faults: Faults) -> int:
    """Say which process would be killed, having made sure that it is a Redis of this machine.

    Raises:
        ConfigError: It is not, or cannot be known.
        StoreUnavailable: Redis does not answer.
    """
    pid = faults.pid or await Redis(faults.address).pid()
    if pid <= 1:
        raise _not_killable("Redis does not say which process it is")
    try:
        name = _program(pid)
    except OSError as error:
        raise _not_killable(f"process {pid} cannot be killed from here: {error.strerror}") from None
    # In a container Redis calls itself 1 or so; outside, that number is somebody else.
    if name and not any(known in name for known in _NAMES):
        raise _not_killable(f"process {pid} is {name!r}, no Redis")
    return pid


def _program(pid: int) -> str:
    """Return what a process runs, or "" where the system does not tell; OSError if it is none that can be killed."""
    os.kill(pid, 0)
    comm = Path(f"/proc/{pid}/comm")
    return comm.read_text(encoding="utf-8").strip() if comm.exists() else ""


def _not_killable(problem: str) -> ConfigError:
    return ConfigError("--kill-redis", problem, "a Redis of this machine, or its --redis-pid", "--redis-pid 4711")


async def pause(faults: Faults) -> Outage:
    """Make Redis wait. It goes on by itself, whatever becomes of this process."""
    redis = Redis(faults.address)
    begin_us = now_us()
    await redis.ask("CLIENT", "PAUSE", int(faults.outage_s * 1000), "ALL")
    await redis.answers()
    return Outage("paused", begin_us, now_us(), kept_data=True)


async def kill(faults: Faults, pid: int) -> Outage:
    """Kill Redis and start it again, or wait until somebody does.

    When this is cancelled meanwhile, it is started all the same.
    """
    redis = Redis(faults.address)
    mark = os.urandom(8).hex()
    await redis.ask("SET", _MARK, mark, "EX", _MARK_LIVES_S)
    begin_us = now_us()
    os.kill(pid, signal.SIGKILL)
    try:
        await asyncio.sleep(faults.outage_s)
    finally:
        if faults.restart:
            _start(faults.restart)
    await redis.answers()
    return Outage("killed", begin_us, now_us(), kept_data=await redis.ask("GET", _MARK) == mark.encode())


def _start(command: Sequence[str]) -> None:
    """Start what outlives this process: in a session of its own, as what it replaces would have.

    Not by asyncio, which kills what it has started when it is closed (as of Python 3.15, at the latest).
    """
    nothing = [(os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0) for descriptor in (0, 1, 2)]
    os.posix_spawnp(command[0], list(command), os.environ, file_actions=nothing, setsid=True)
