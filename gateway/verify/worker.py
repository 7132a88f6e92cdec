"""`python -m gateway.verify.worker`: one process of clients, started by the run.

On stdin it gets its load, says `ready`, and gets the instants to begin and to end; on stdout it tells what it counts, a
tally on each line. The token comes that way because every user of a machine can read its command lines.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import sys
import time
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

import uvloop

from gateway.errors import GatewayError, UpstreamProtocolError
from gateway.http1 import framing
from gateway.http1.message import HEAD_END, MAX_HEAD_BYTES
from gateway.http1.parser import AnswerParser
from gateway.verify.plan import Load
from gateway.verify.tally import ADMITTED, MOST_POLICIES, UNANSWERED, UNREACHABLE, Tally, now_us

if TYPE_CHECKING:
    from gateway.http1.framing import Body

READY: Final = "ready"
TELL_S: Final = 0.25
"""How often counts are told: soon enough for progress, seldom enough to cost nothing."""
CONNECT_S: Final = 5.0
AGAIN_S: Final = 0.05
"""Between two tries for a connection to an instance that is gone."""
GRACE_S: Final = 5.0
"""How long outstanding answers are waited for at the end."""

_ERROR: Final = re.compile(rb"\r\nx-gateway-error: *([!-~]{1,64})", re.IGNORECASE)
_POLICY: Final = re.compile(rb"\r\nratelimit-policy: *([ -~]{1,1000})", re.IGNORECASE)


class Sender:
    """The clients of one process.

    Args:
        load: What they send.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._until_us = 0
        self._left = load.most
        self.parser = AnswerParser()
        self.tally = Tally()
        self.stated = HEAD_END  # the field line of the last answer that had another one; no head has this in it
        # One for all: reading the system's roots takes 30 ms.
        is_secure = any(url.startswith("https:") for url in load.urls)
        self.tls = ssl.create_default_context() if is_secure else None

    async def run(self, until_us: int) -> None:
        """Send until an instant, or until nothing is left to send, telling the counts."""
        self._until_us = until_us
        clients = [Client(self, self._load.urls[number % len(self._load.urls)], self._load) for number in self._numbers]
        running = {asyncio.ensure_future(client.run()) for client in clients}
        deadline_us = until_us + int(GRACE_S * 1e6)
        while running and now_us() < deadline_us:
            _, running = await asyncio.wait(running, timeout=TELL_S)
            self._tell()
        for client in clients:
            client.give_up()
        await asyncio.gather(*running)
        self._tell()

    @property
    def _numbers(self) -> range:
        return range(self._load.first, self._load.first + self._load.connections)

    def may_send(self) -> bool:
        """Take one request from what is left."""
        if not self._left or now_us() >= self._until_us:
            return False
        self._left -= 1
        return True

    @property
    def is_over(self) -> bool:
        """Whether nothing more is sent."""
        return not self._left or now_us() >= self._until_us

    def _tell(self) -> None:
        _tell(self.tally.to_json())
        self.tally = Tally()
        self.stated = HEAD_END  # the field line of the last answer that had another one; no head has this in it


class Client(asyncio.Protocol):
    """One connection with one request at a time, made anew whenever it ends.

    Args:
        sender: Says whether to go on, and counts.
        url: The instance.
        load: What to send.
    """

    __slots__ = (
        "_body",
        "_buffer",
        "_closes",
        "_ended",
        "_host",
        "_port",
        "_request",
        "_sender",
        "_sent_us",
        "_tls",
        "_transport",
    )

    def __init__(self, sender: Sender, url: str, load: Load) -> None:
        address = urlsplit(url)
        self._sender = sender
        self._host = address.hostname or ""
        self._port = address.port or (443 if address.scheme == "https" else 80)
        self._tls = sender.tls if address.scheme == "https" else None
        fields = f"Host: {address.netloc}\r\nAuthorization: Bearer {load.token}\r\nUser-Agent: gateway-verify"
        self._request = f"GET {load.path} HTTP/1.1\r\n{fields}\r\n\r\n".encode()
        self._ended: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._sent_us = 0
        self._buffer = b""
        self._body: Body | None = None
        self._closes = False

    async def run(self) -> None:
        """Connect, ask until the connection ends, and again, until it is over."""
        loop = asyncio.get_running_loop()
        while not self._sender.is_over:
            self._ended = loop.create_future()
            try:
                async with asyncio.timeout(CONNECT_S):
                    await loop.create_connection(lambda: self, self._host, self._port, ssl=self._tls)
            except OSError:
                self._sender.tally.kinds[UNREACHABLE] += 1
                await asyncio.sleep(AGAIN_S)
            else:
                await self._ended

    def give_up(self) -> None:
        """End the connection, whatever is still to come on it."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            if self._body is None:
                data = self._read_head(self._buffer + data if self._buffer else data)
            if self._body is not None:
                self._body.feed(data)
        except GatewayError:
            self.give_up()  # a gateway that is no HTTP/1.1 server: what was asked stays unanswered
        else:
            self._ask_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if self._sent_us and self._body is None:
            self._sender.tally.note(UNANSWERED, self._sent_us, now_us())
        self._transport = None
        self._sent_us, self._buffer, self._body = 0, b"", None
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _ask(self) -> None:
        assert self._transport is not None  # noqa: S101 - only called on a connection
        if not self._sender.may_send():
            self._transport.close()
            return
        self._sender.tally.asked += 1
        self._sent_us = now_us()
        self._transport.write(self._request)

    def _ask_again(self) -> None:
        if self._body is not None and self._body.done:
            self._sent_us, self._body = 0, None
            if self._closes and self._transport is not None:
                self._transport.close()
            else:
                self._ask()

    def _read_head(self, data: bytes) -> bytes:
        """Read the final head, if it is there, and return what is behind it."""
        while (end := data.find(HEAD_END)) >= 0:
            block, data = data[:end], data[end + 4 :]
            head = self._sender.parser.parse(block)
            if head.status >= 200:
                self._note(block)
                self._buffer = b""
                self._closes = not head.keep_alive
                self._body = framing.body(framing.answer_length(b"GET", head), UpstreamProtocolError)
                return data
        if len(data) > MAX_HEAD_BYTES:
            raise UpstreamProtocolError("The answer's head is longer than any of the gateway's.")
        self._buffer = data
        return b""

    def _note(self, block: bytes) -> None:
        tally = self._sender.tally
        refusal = _ERROR.search(block)
        tally.note(refusal[1].decode() if refusal else ADMITTED, self._sent_us, now_us())
        sender = self._sender
        if sender.stated not in block and (stated := _POLICY.search(block)) and len(tally.policies) < MOST_POLICIES:
            sender.stated = stated[0]
            tally.policies.add(stated[1].decode())


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Do what stdin says."""
    sender = Sender(Load.from_json(sys.stdin.readline()))
    _tell(READY)
    begin_us, until_us = map(int, sys.stdin.readline().split())
    time.sleep(max(0, begin_us - now_us()) / 1e6)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(sender.run(until_us))


if __name__ == "__main__":
    main()
