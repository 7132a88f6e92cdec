r"""A proxied exchange told as a script of both sides: no socket, no sleep, and time passes when the script says so.

    play.client.sends(play.request(b"GET", b"/api/x"))
    assert play.upstream.request().start == b"GET /v1/x HTTP/1.1"
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    assert play.client.answer().body == b"hi"

Everything between the two transports is the gateway's own. When the script is over, `close` checks that nothing was
left behind.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, Self

from gateway.access_log import AccessLog
from gateway.admission import Admission
from gateway.config import Config
from gateway.endpoints import Endpoints
from gateway.http1.parser import AnswerParser, RequestParser
from gateway.metering.pricing import pricing_of
from gateway.metrics import Metrics
from gateway.proxy.client import ClientConnection
from gateway.proxy.clock import Clock
from gateway.proxy.context import Destination, ProxyContext
from gateway.proxy.guarded import GuardedExchange
from gateway.proxy.metered import MeteredExchange
from gateway.proxy.pacing import Pacing
from gateway.proxy.pool import UpstreamPool
from gateway.proxy.routes import Routes
from gateway.proxy.target import TargetRoute
from gateway.tokens import TokenSigner
from tests.kit.printed import printed
from tests.kit.script import ScriptLoop, ScriptStore, Verdicts
from tests.kit.transport import FakeTransport
from tests.kit.wire import Incomplete, Message, read_body, read_head

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.config import Settings
    from gateway.metering.costs import CostTable
    from gateway.proxy.exchange import Exchange
    from gateway.proxy.upstream import UpstreamConnection

KEY: Final = "sk-7Vx2Wb9Lm4Rz"
LOOPBACK: Final = ("127.0.0.1", 50000)
BODILESS: Final = (204, 304)
EPOCH_S: Final = 1_800_000_000
"""When the script's time was 0, to what goes by the calendar."""


class _Peer:
    """The far end of one of the gateway's connections."""

    def __init__(self, loop: ScriptLoop, transport: FakeTransport) -> None:
        self._loop = loop
        self._unread = b""
        self.transport = transport

    def sends(self, *pieces: bytes) -> Self:
        """Send, each piece by itself."""
        for piece in pieces:
            self._loop.act(self.transport.peer_sends, piece)
        return self

    def dribbles(self, data: bytes) -> Self:
        """Send byte by byte."""
        return self.sends(*(data[at : at + 1] for at in range(len(data))))

    def ends(self) -> None:
        """End this side of the connection (FIN)."""
        self._loop.act(self.transport.peer_ends)

    def resets(self) -> None:
        """Break the connection (RST)."""
        self._loop.act(self.transport.peer_resets)

    def stops_reading(self) -> None:
        self.transport.peer_stops_reading()

    def reads_on(self) -> None:
        self._loop.act(self.transport.peer_reads_on)

    def reads(self, size: int) -> None:
        """Read so much of what waits, and rest again."""
        self._loop.act(self.transport.peer_reads, size)

    @property
    def state(self) -> str:
        """What the gateway made of the connection: `open`, `half-closed`, `closed` in good order, or `aborted`."""
        transport = self.transport
        if transport.aborted:
            return "aborted"
        if transport.is_closing():
            return "closed"
        return "half-closed" if transport.eof_written else "open"

    @property
    def is_ended(self) -> bool:
        """Whether the gateway has ended its side in good order."""
        return self.state in {"closed", "half-closed"}

    @property
    def unread(self) -> bytes:
        """What has come and was not looked at yet."""
        self._unread += self.transport.take()
        return self._unread

    def got(self, expected: bytes) -> None:
        """Exactly these bytes have come since."""
        assert self.unread == expected
        self._unread = b""

    def got_nothing(self) -> None:
        self.got(b"")

    def head(self) -> Message:
        """Read a head, and leave what is behind it."""
        message, self._unread = read_head(self.unread)
        return message

    def has_head(self) -> bool:
        return b"\r\n\r\n" in self.unread


class Client(_Peer):
    """The side that asks."""

    def answer(self, method: bytes = b"GET") -> Message:
        """Read the next answer, whole, with the interim ones before it."""
        interims: list[Message] = []
        message = self.head()
        while message.status < 200:
            interims.append(message)
            message = self.head()
        if method != b"HEAD" and message.status not in BODILESS:
            self._unread = read_body(message, self._unread, until_close=self.transport.lost)
            if message.values(b"content-length") == [] and message.values(b"transfer-encoding") == []:
                assert not self.transport.aborted, "cut short"
        message.interims = interims
        is_error = message.values(b"x-gateway-error") != []
        printed.note_answer(message.status, message.fields, message.body, is_error=is_error)
        return message

    def problem(self, status: int, code: str) -> Message:
        """Read an answer that must be one of the gateway's errors, as INTERFACE has them."""
        message = self.answer()
        assert (message.status, message.value(b"x-gateway-error")) == (status, code.encode()), message
        assert message.value(b"content-type") == b"application/problem+json"
        problem = json.loads(message.body)
        assert problem.keys() == {"type", "title", "status", "detail", "error"}
        assert problem["status"] == status
        assert problem["error"].keys() == {"message", "type", "code", "param"}
        assert (problem["error"]["code"], problem["error"]["param"]) == (code, None)
        assert problem["error"]["message"] == problem["detail"]
        return message


class Upstream(_Peer):
    """The side that answers."""

    def request(self) -> Message:
        """Read the next request, whole."""
        message = self.head()
        self._unread = read_body(message, self._unread, until_close=None)
        return message

    def answers(self, content: bytes = b"hi", start: bytes = b"200 OK", *lines: bytes) -> None:
        """Send a whole answer with a length."""
        length = b"Content-Length: %d" % len(content)
        self.sends(b"\r\n".join((b"HTTP/1.1 " + start, *lines, length, b"", content)))


class Lines:
    """A sink of the access log's that keeps the lines, as long as it takes any."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self.takes = True
        self.failed, self.problem = 0, ""

    def put(self, lines: bytes, count: int) -> bool:
        if self.takes:
            found = lines.decode("ascii").splitlines(keepends=True)
            assert len(found) == count
            self._lines += found
        return self.takes

    def close(self) -> None:
        """There is nothing to write."""

    def read(self) -> list[str]:
        """Return the lines that have come since."""
        lines, self._lines = self._lines, []
        assert all(line.endswith("\n") and line.count("\n") == 1 and line.isascii() for line in lines)
        return [line[:-1] for line in lines]


def _compiled(**config: Any) -> Settings:
    usual = {
        "target_api_url": "http://api.test:8080/v1",
        "target_api_key": KEY,
        "rate_limit": "60/minute",
        "connect_timeout": "5s",
        "response_timeout": "20s",
        "idle_timeout": "30s",
        "header_timeout": "10s",
        "keepalive_timeout": "15s",
    }
    return Config(**{**usual, **config}).settings


_known: Final = lru_cache(maxsize=64)(_compiled)
"""Some tests make thousands of playbooks, with the same settings, which nothing can change."""


class Playbook:
    """A gateway between scripted clients and a scripted upstream.

    Args:
        cost: What requests cost; None: nothing.
        config: Settings that differ from these: an upstream `http://api.test:8080/v1`, its key, 60 requests a minute.

    Attributes:
        client: The first client; `connect` makes others.
        upstreams: The upstream's ends of the connections made to it, in their order.
        jitter: How much of the possible is added to the waits of those who are refused, 0 to 1.
        logged: The lines of the access log, where there is one.
        dial_error: What connecting fails with.
        dial_waits: Connecting lasts until `dial_now`.
        dial_slow: The upstream does not read from new connections, until `reads_on`.
        dial_ends_at_once: The connection breaks before whoever waits for it is told of it.
    """

    def __init__(self, cost: CostTable | None = None, **config: Any) -> None:
        self.loop = ScriptLoop()
        settings = (_known if all(isinstance(value, str | int) for value in config.values()) else _compiled)(**config)
        self.store = ScriptStore(self.loop)
        signer = TokenSigner([b"s" * 32])
        self.admission = Admission(
            self.store,
            signer,
            settings.limits,
            settings.common_limits,
            settings.token_ttl_s,
            shadow=settings.shadow,
            budgets=settings.budgets,
        )
        self.metrics = Metrics()
        self.logged = Lines()
        self.jitter = 0.0
        clock = Clock(self.loop)
        self.pool = pool = UpstreamPool(self._dial, settings, AnswerParser(), clock, "api (test)")
        self.context = context = ProxyContext(
            loop=self.loop,
            settings=settings,
            clock=clock,
            parser=RequestParser(),
            admission=self.admission,
            routes=Routes(),
            endpoint=Endpoints(
                self.admission,
                self.store,
                self.metrics,
                settings.admin_key,
                lambda: context.draining,
                pace_of=lambda token_id: context.paces.told(token_id),  # noqa: PLW0108 - it is made later
            ),
            metrics=self.metrics,
            access_log=self._log_to(settings.access_log),
            random=lambda: self.jitter,
        )
        if settings.spend_guard is not None:
            context.paces.now = Pacing(settings.spend_guard, lambda: EPOCH_S + self.loop.time())
        metered: Callable[..., Exchange] | None = GuardedExchange if settings.loop_guard else None
        if cost is not None:
            metered = partial(MeteredExchange, pricing_of(cost, settings.target.url, clamp=settings.budget_clamp))
        route = TargetRoute(settings.target)
        to = Destination(context, settings, clock, self.metrics, self.admission, route, pool, metered=metered)
        context.routes = Routes([to])
        clock.watched.add(pool)
        clock.start()
        self.token = self.admission.issue(time.time())[0].encode()
        self.upstreams: list[Upstream] = []
        self.dials = 0
        self._tls = settings.target.tls
        self.dial_error: OSError | None = None
        self.dial_waits = False
        self.dial_ends_at_once = False
        self.dial_slow = False
        self._dialling: list[asyncio.Future[None]] = []
        self.client = self.connect()

    def _log_to(self, style: str) -> AccessLog | None:
        if style == "off":
            return None
        return AccessLog(style, self.logged, self.loop, self.metrics.on_lines_dropped)

    def connect(self, peername: object = LOOPBACK) -> Client:
        """Let another client connect."""
        protocol = ClientConnection(self.context)
        transport = FakeTransport(self.loop, protocol, {"peername": peername})
        protocol.connection_made(transport)
        return Client(self.loop, transport)

    @property
    def upstream(self) -> Upstream:
        """The upstream's end of the connection that was made last."""
        assert self.upstreams, "the upstream was never connected to"
        return self.upstreams[-1]

    def dial_now(self) -> None:
        """Let the oldest connection attempt succeed, or fail with `dial_error`."""
        self.loop.act(self._dialling.pop(0).set_result, None)

    def pass_time(self, seconds: float) -> None:
        self.loop.pass_time(seconds)

    def request(self, method: bytes, target: bytes, *lines: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
        """Spell a request of the issued token's; with a `Content-Length` if there is a body."""
        fields = [b"Host: localhost", b"Authorization: Bearer " + self.token, *lines]
        if body and not any(line.lower().startswith(b"transfer-encoding") for line in lines):
            fields.append(b"Content-Length: %d" % len(body))
        return b"\r\n".join((method + b" " + target + b" HTTP/" + version, *fields, b"", body))

    def used(self) -> int:
        """How many requests the token is charged with now."""
        seen = Verdicts()
        held, self.store.holds = self.store.holds, False
        refunds = self.store.refunds
        subject = self.admission.authenticate(self.token, time.time())
        self.admission.store.check(subject.plan, seen)
        (verdict,) = seen.verdicts
        quota = subject.policies[0].quota
        if verdict.admitted:
            self.admission.give_back(subject, verdict)
        self.store.holds, self.store.refunds = held, refunds
        return quota - verdict.remaining - 1 if verdict.admitted else quota

    def close(self) -> None:
        """End the script; nothing may be left of it."""
        try:
            self.loop.settle()
            for connection in tuple(self.context.connections):
                self.loop.act(connection.abort)
            assert not self.context.connections
            assert self.context.clock.watched == {self.pool}, "still watched by the clock"
            self.loop.act(self.pool.close)
            assert all(upstream.transport.lost for upstream in self.upstreams), "an upstream connection was left open"
            left = asyncio.all_tasks(self.loop)
            assert not left, left
        finally:
            self.context.clock.stop()
            for future in self._dialling:
                future.cancel()
            self.loop.close()

    async def _dial(self, connection: UpstreamConnection) -> None:
        self.dials += 1
        if self.dial_waits:
            waiting = self.loop.create_future()
            self._dialling.append(waiting)
            try:
                await waiting
            finally:
                if waiting in self._dialling:
                    self._dialling.remove(waiting)
        if self.dial_error is not None:
            raise self.dial_error
        transport = FakeTransport(self.loop, connection, {"sslcontext": object()} if self._tls else {})
        if self.dial_slow:
            transport.peer_stops_reading()
        connection.connection_made(transport)
        self.upstreams.append(Upstream(self.loop, transport))
        if self.dial_ends_at_once:
            transport.peer_resets()


def unmeasured(data: bytes) -> bytes:
    """Put `MS` and `NOW` where measured times and dates stand, so that whole heads can be compared."""
    data = re.sub(rb"dur=[0-9]+\.[0-9]{3}", b"dur=MS", data)
    return re.sub(rb"Date: [A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT", b"Date: NOW", data)


__all__ = ["KEY", "Client", "Incomplete", "Playbook", "ScriptLoop", "ScriptStore", "Upstream", "unmeasured"]
