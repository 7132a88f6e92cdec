"""An event loop whose connections are objects in this process: what is measured on it is the gateway, not the kernel.

The loop is uvloop's, as in the program; only listening and connecting are its own. A gateway or a store is started
on it as on any other loop; the far ends of its connections are then in `upstreams` and `redis`, and `connect` makes
clients.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

import hiredis
import uvloop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator

    Steps = Generator[None, None, None]
    """Something to be done in several turns of a loop: it yields where a turn ends."""

REDIS_PORT: Final = 6379
_PEER: Final = ("127.0.0.1", 50_000)
_NOTHING: Final = object()
_VERDICT: Final = b"*5\r\n:1\r\n:0\r\n:%d\r\n:1000000\r\n:%d\r\n"
_REPLIES: Final = {
    b"CONFIG": b"*2\r\n$16\r\nmaxmemory-policy\r\n$10\r\nnoeviction\r\n",
    b"EVALSHA": _VERDICT % (10**9, 1),
    b"PING": b"+PONG\r\n",
}


def verdict(number: int) -> bytes:
    """Return Redis's reply to a check that admits, with a time of its own and less than 10^9 places left."""
    return _VERDICT % (10**9 - number, 1_800_000_000_000_000 + number)


class _Socket:
    """What a transport's `get_extra_info("socket")` gives; its options change nothing."""

    def setsockopt(self, *_: object) -> None:
        """Do nothing."""

    def getsockopt(self, *_: object) -> int:
        """Return 0."""
        return 0

    def fileno(self) -> int:
        """Return what a closed one does: there is nothing to ask the kernel."""
        return -1


class Wire:
    """A transport: keeps what its protocol writes.

    Args:
        loop: Tells the protocol of the connection's end, in its next turn.
        protocol: Whose transport it is.

    Attributes:
        sent: What was written since it was cleared last, write by write.
        receive: Gives bytes to the protocol.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        self._loop = loop
        self._protocol = protocol
        self._closing = False
        self._reading = True
        self.sent: list[bytes] = []
        self.receive = protocol.data_received
        # No method of this class's: the gateway's own work should be most of what is measured.
        self.write: Callable[[bytes], None] = self.sent.append
        self._extra = {"peername": _PEER, "sockname": _PEER, "socket": _Socket()}
        protocol.connection_made(cast("asyncio.Transport", self))

    def writelines(self, pieces: list[bytes]) -> None:
        """See `asyncio.WriteTransport`."""
        self.write(b"".join(pieces))

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport`."""
        return self._closing

    def is_reading(self) -> bool:
        """See `asyncio.ReadTransport`."""
        return self._reading

    def pause_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        self._reading = False

    def resume_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        self._reading = True

    def get_extra_info(self, name: str, default: object = None) -> object:
        """See `asyncio.BaseTransport`."""
        return self._extra.get(name, default)

    def get_write_buffer_size(self) -> int:
        """Return 0: the peer reads at once."""
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Do nothing."""

    def can_write_eof(self) -> bool:
        """See `asyncio.WriteTransport`."""
        return True

    def write_eof(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """See `asyncio.BaseTransport`."""
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        """See `asyncio.WriteTransport`."""
        self.close()


class RedisWire(Wire):
    """A connection to a Redis that answers by itself until `rest`; then whoever measures feeds it replies."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        super().__init__(loop, protocol)
        self._commands = hiredis.Reader(notEnoughData=_NOTHING)
        self.write = self._answer

    def rest(self) -> None:
        """Answer no more."""
        self.write = self.sent.append

    def commands(self) -> list[list[bytes]]:
        """Return the commands in `sent`."""
        self._commands.feed(b"".join(self.sent))
        commands = []
        while (command := self._commands.gets()) is not _NOTHING:
            commands.append(command)
        return commands

    def _answer(self, data: bytes) -> None:
        self.sent.append(data)
        replies = [_REPLIES.get(command[0], b"+OK\r\n") for command in self.commands()]
        self.sent.clear()
        self._loop.call_soon(self.receive, b"".join(replies))


class InMemoryLoop(uvloop.Loop):
    """A loop without network. A connection made to Redis's port is to Redis, any other one to the upstream.

    The gateway listens on a real port, but of what it accepts there, only the beginning is real.

    Attributes:
        upstreams: The connections made to the upstream, in their order.
        redis: Those made to Redis.
    """

    def __init__(self) -> None:
        super().__init__()
        self.upstreams: list[Wire] = []
        self.redis: list[RedisWire] = []
        self._accepted: asyncio.Future[Wire] | None = None
        self._failure: BaseException | None = None
        self.set_exception_handler(self._on_failure)

    def connect(self, url: str) -> Wire:
        """Let a client connect to the gateway that listens on this loop."""
        address = urlsplit(url)
        self._accepted = self.create_future()
        with socket.create_connection((address.hostname, address.port)):
            return self.run_until_complete(self._accepted)

    def take_turns(self, steps: Steps) -> None:
        """Run the loop until `steps` end, one step in each turn. Raises what they or the loop's callbacks raise."""

        def turn() -> None:
            try:
                next(steps)
            except StopIteration:
                self.stop()
            except BaseException as failure:  # noqa: BLE001 - raised again below
                self._failure = failure
                self.stop()
            else:
                self.call_soon(turn)

        self.call_soon(turn)
        self.run_forever()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _on_failure(self, _loop: object, context: dict[str, Any]) -> None:
        self._failure = context.get("exception") or RuntimeError(context["message"])
        self.stop()

    async def connect_accepted_socket(  # type: ignore[override]  # only what is used here
        self, protocol_factory: Callable[[], asyncio.Protocol], sock: socket.socket
    ) -> tuple[Wire, asyncio.Protocol]:
        """Put the far end of a connection in the place of a real one."""
        sock.close()
        protocol = protocol_factory()
        wire = Wire(self, protocol)
        if self._accepted is not None:
            self._accepted.set_result(wire)
        return wire, protocol

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:  # noqa: ANN401 - as asyncio has it
        """Return an address that nothing is ever sent to."""
        del host
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))]

    async def sock_connect(self, sock: Any, address: Any) -> None:  # noqa: ANN401 - as asyncio has it
        """Do nothing."""

    async def create_connection(  # type: ignore[override]  # only what is used here
        self,
        protocol_factory: Callable[[], asyncio.Protocol],
        host: str | None = None,
        port: int | None = None,
        *,
        sock: socket.socket | None = None,
        **_: Any,  # noqa: ANN401 - as asyncio has it
    ) -> tuple[Wire, asyncio.Protocol]:
        """Make the far end of a connection."""
        del host
        if sock is not None:
            sock.close()
        protocol = protocol_factory()
        if port == REDIS_PORT:
            self.redis.append(RedisWire(self, protocol))
            return self.redis[-1], protocol
        self.upstreams.append(Wire(self, protocol))
        return self.upstreams[-1], protocol
