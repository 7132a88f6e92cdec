"""A Redis that answers checks only as a test tells it to: late, wrongly, in pieces or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import hiredis

from gateway.stores.address import RedisAddress

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

_GREETINGS = {
    b"CLIENT": b"+OK\r\n",
    b"CONFIG": b"*2\r\n$16\r\nmaxmemory-policy\r\n$10\r\nnoeviction\r\n",
    b"SCRIPT": b"+sha\r\n",
    b"PING": b"+PONG\r\n",
}


def admitted(at_us: int, remaining: int = 9) -> bytes:
    """Return the reply to a check that admits at a time; the time tells one reply from another."""
    return b"*5\r\n:1\r\n:0\r\n:%d\r\n:1000000\r\n:%d\r\n" % (remaining, at_us)


class ScriptedRedis:
    """Greets by itself; every other command waits in `commands` for the test."""

    def __init__(self, address: RedisAddress) -> None:
        self.address = address
        self.commands: asyncio.Queue[tuple[asyncio.StreamWriter, list[bytes]]] = asyncio.Queue()
        self.greetings = dict(_GREETINGS)
        self.probe_reply = admitted(1)
        self.instances_reply = b"*2\r\n:1\r\n:1000000000000000\r\n"
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        parser = hiredis.Reader()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                parser.feed(data)
                while command := parser.gets():
                    if command[0] in self.greetings:
                        writer.write(self.greetings[command[0]])
                    elif b"gateway:{global}:probe" in command:
                        writer.write(self.probe_reply)
                    elif b"gateway:{global}:instances" in command:
                        writer.write(self.instances_reply)
                    else:
                        self.commands.put_nowait((writer, command))
        self._writers.discard(writer)
        writer.close()

    def drop_all(self) -> None:
        """Cut every connection."""
        for writer in self._writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def scripted_redis_over_tls(context: ssl.SSLContext) -> AsyncIterator[ScriptedRedis]:
    """Serve on TCP and TLS, on a port that the kernel chooses."""
    scripted = ScriptedRedis(RedisAddress())
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0, ssl=context)
    scripted.address = RedisAddress("127.0.0.1", server.sockets[0].getsockname()[1], tls=True)
    try:
        yield scripted
    finally:
        scripted.drop_all()
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def scripted_redis() -> AsyncIterator[ScriptedRedis]:
    """Serve on a unix socket."""
    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        path = str(Path(directory) / "redis.sock")
        scripted = ScriptedRedis(RedisAddress(host="", unix_path=path))
        server = await asyncio.start_unix_server(scripted.serve, path)
        try:
            yield scripted
        finally:
            scripted.drop_all()
            server.close()
            await server.wait_closed()
