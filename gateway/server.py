"""The gateway as an object in somebody's event loop: builds the parts, listens, drains, closes.

It installs no signal handlers, sets up no logging and changes no policy of the process: that is workers.py's
business when the gateway is the whole program.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Final, Self

from gateway.admission import Admission
from gateway.config.reloading import reloadable
from gateway.config.values import Address, lifetime_s
from gateway.endpoints import Endpoints
from gateway.finishing import to_the_end
from gateway.http1.parser import AnswerParser, RequestParser
from gateway.listening import Descriptors, Listener, soft_limit
from gateway.metrics import Metrics
from gateway.proxy.client import GRACE_S, ClientConnection
from gateway.proxy.clock import Clock
from gateway.proxy.context import ProxyContext
from gateway.proxy.paces import Paces
from gateway.proxy.routes import Routes
from gateway.proxy.upstreams import Upstreams
from gateway.scope import Scope
from gateway.shared_counts import SharedCounts
from gateway.stores.choice import make_store, what_a_restart_forgets
from gateway.tls import SpokenTls
from gateway.tokens import TokenSigner
from gateway.usage import UsageFlush
from gateway.watching import FileWatch

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from gateway.access_log import AccessLog, LineWriter
    from gateway.config import Config, Settings
    from gateway.stamps import Stamp
    from gateway.stores.ledger import SpendStore

NOTICE_SHARE: Final = 0.25
"""How much of `DRAIN_TIMEOUT` may go by before listening ends: what comes last needs the rest."""
HANDSHAKE_S: Final = 0.25
"""From turning clients away to the end of listening, after a notice. A client that is halfway connected has so long for
its round trip; else it would be reset with a request on its way."""
TURNS: Final = 8
"""Of the loop: in so many at most, each connection that was aborted has heard of it."""
_SECRET_BYTES: Final = 32
_NOT_RUNNING: Final = "the gateway is not running: use 'async with Gateway(config) as gateway'"

_log = logging.getLogger("gateway")


class Gateway:
    """A running gateway; `async with` starts and stops it.

    Args:
        config: What it does. `gateway_listen` is a free port of 127.0.0.1 unless it says otherwise.
        sockets: Listening stream sockets to accept from in place of `gateway_listen`; the gateway closes them.
        others: More of these, that other processes accept from; see `Listener`.
        shared_dir: Where the workers of one program tell each other what they have counted; None: this is the only one.

    Attributes:
        metrics: What became of the requests so far.
    """

    def __init__(
        self,
        config: Config,
        *,
        sockets: Sequence[socket.socket] = (),
        others: Sequence[socket.socket] = (),
        shared_dir: Path | None = None,
    ) -> None:
        self._settings: Settings = config.settings
        self._sockets = sockets
        self._others = others
        self.metrics = Metrics()
        self._shared = SharedCounts(self.metrics, shared_dir)
        self._listener: Listener | None = None
        self._store: SpendStore | None = None
        self._context: ProxyContext | None = None
        self._upstreams = Upstreams(AnswerParser())
        self._paces = Paces()
        self._tls: SpokenTls | None = None
        self._signer: TokenSigner | None = None
        self._flush: UsageFlush | None = None
        self._line_writer: LineWriter | None = None

    async def start(self) -> None:
        """Connect to the store and listen.

        Raises:
            StoreUnavailable: Redis does not answer, or `STATE_FILE` cannot be used.
            OSError: An address cannot be listened on, or `TARGET_CA_FILE` cannot be read.
            ValueError: A certificate or its key cannot be read.
            RuntimeError: It is running.
        """
        if self._store is not None:
            raise RuntimeError("the gateway is running already")
        settings = self._settings
        loop = asyncio.get_running_loop()
        self._store = store = make_store(settings, lambda: self._settings)
        try:
            await store.start()
            secrets = settings.token_secrets or [await store.agree_secret(os.urandom(_SECRET_BYTES))]
            self._signer = signer = TokenSigner(secrets)
            rules = (settings.limits, settings.common_limits, settings.token_ttl_s)
            admission = Admission(store, signer, *rules, shadow=settings.shadow, budgets=settings.budgets)
            clock = Clock(loop)
            self._tls = tls = SpokenTls(clock)
            with_clients = tls.with_clients(settings.tls)
            context = ProxyContext(
                loop=loop,
                settings=settings,
                clock=clock,
                parser=RequestParser(),
                admission=admission,
                routes=Routes(),
                endpoint=self._endpoints(settings, admission, lambda: context.stopping),
                metrics=self.metrics,
                access_log=self._log_on(loop),
                paces=self._paces,
            )
            self._context = context
            self._paces.renew(settings, store)
            tls.renew(settings)
            context.routes = self._upstreams.connect(settings, context, admission, tls.with_target)
            self._shared.open()
            self._flush = UsageFlush(store.usage, self.metrics, self._shared, lambda: clock.now_s)
            clock.watched.add(self._flush)
            clock.start()
            descriptors = Descriptors(soft_limit(), self._upstreams)
            self._listener = listener = Listener(
                clock, lambda: ClientConnection(context), descriptors, with_clients, settings.header_timeout_s
            )
            context.on_client_gone = listener.on_client_gone
            await self._listen(listener)
        except BaseException:
            await self.close()
            raise
        if forgotten := what_a_restart_forgets(settings):
            _log.info(forgotten)
        _log.info("listening on %s, sending to %s", ", ".join(self.urls), settings.sent_to)

    async def _listen(self, listener: Listener) -> None:
        """Accept from the sockets that the gateway was given, or else where `GATEWAY_LISTEN` says."""
        for sock in self._sockets:
            listener.adopt(sock)
        for sock in self._others:
            listener.adopt(sock, is_own=False)
        for address in () if self._sockets else self._settings.listen:
            await listener.bind(address)
        listener.start()

    def _log_on(self, loop: asyncio.AbstractEventLoop) -> AccessLog | None:
        if self._settings.access_log == "off":
            return None
        from gateway.access_log import AccessLog, LineWriter  # a thread's worth of imports that few need

        self._line_writer = LineWriter()
        return AccessLog(self._settings.access_log, self._line_writer, loop, self.metrics.on_lines_dropped)

    def _endpoints(self, settings: Settings, admission: Admission, is_draining: Callable[[], bool]) -> Endpoints:
        assert self._store is not None  # noqa: S101 - it is connected to before anything else
        names = frozenset(one.host.lower().encode() for one in settings.listen if isinstance(one, Address))
        return Endpoints(
            admission,
            self._store,
            self.metrics,
            settings.admin_key,
            is_draining,
            shared=self._shared,
            names=names,
            pace_of=self._paces.told,
        )

    def reload_certificates(self) -> None:
        """Read the PEM files now, as is done by itself within seconds of a change."""
        if self._tls is not None:
            self._tls.reload()

    @property
    def urls(self) -> list[str]:
        """Where it listens: a base URL for each address, `unix:/path` for each unix socket."""
        return [] if self._listener is None else self._listener.urls

    @property
    def url(self) -> str:
        """The first of `urls`: a client's base URL is this and `/api`. RuntimeError where it does not run."""
        if self._listener is None:
            raise RuntimeError(_NOT_RUNNING)
        return self.urls[0]

    def issue_token(
        self,
        name: str | None = None,
        ttl: str | int | None = None,
        limits: Sequence[str] | None = None,
        *,
        targets: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
        paths: Sequence[str] | None = None,
        budgets: Sequence[str] | None = None,
    ) -> str:
        """Make a token.

        Args:
            name: For people.
            ttl: How long it is good: seconds, or like `"30d"`; 0: without end; None: `TOKEN_TTL`.
            limits: In `RATE_LIMIT`'s grammar, in place of the gateway's. None: the gateway's.
            targets: The targets that it is for, by their names; None: all. As for the two below, see `Scope`.
            methods: The methods that it allows.
            paths: Prefixes of the paths that it allows, under the target's own prefix.
            budgets: In `BUDGET`'s grammar, in place of the gateway's. None: the gateway's.

        Raises:
            ValueError: Something is not as a token may have it.
            RuntimeError: The gateway is not running.
        """
        if self._context is None:
            raise RuntimeError(_NOT_RUNNING)
        ttl_s = None if ttl is None else lifetime_s(str(ttl)) or 0
        scope = Scope(targets, methods, paths)
        admission = self._context.admission
        return admission.issue(time.time(), name=name, limits=limits, budgets=budgets, ttl_s=ttl_s, scope=scope)[0]

    async def revoke_token(self, token: str) -> None:
        """End a token, and all that was made from it, on every instance on this store; what is under way goes on.

        Raises:
            TokenError: It is none that is good here.
            StoreUnavailable: The store did not take it in: this instance refuses the token, others do not.
            RuntimeError: The gateway is not running.
        """
        if self._context is None:
            raise RuntimeError(_NOT_RUNNING)
        admission, now_s = self._context.admission, time.time()
        claims = admission.authenticate(token.encode(), now_s).claims
        await admission.revoke(claims.id, claims.expires_at_s, now_s=now_s)

    def reload(self, config: Config) -> list[str]:
        """Go on with another configuration; what is in flight ends as it began.

        Args:
            config: The whole of it, found good.

        Returns:
            The settings that differ and stay as they were, because they cannot change while the gateway runs.

        Raises:
            OSError, ValueError: A CA file, or a certificate to show, cannot be read. Then nothing has changed.
            RuntimeError: The gateway is not running.
        """
        context, tls, signer, listener, store = self._context, self._tls, self._signer, self._listener, self._store
        if context is None or tls is None or signer is None or listener is None or store is None:
            raise RuntimeError(_NOT_RUNNING)
        settings, left = reloadable(self._settings, config.settings)
        if settings.token_secrets and settings.token_secrets != self._settings.token_secrets:
            signer = TokenSigner(settings.token_secrets)
        rules = (settings.limits, settings.common_limits, settings.token_ttl_s)
        admission = context.admission.renewed(signer, *rules, shadow=settings.shadow, budgets=settings.budgets)
        tls.renew(settings)
        # Nothing from here on can fail, and nothing waits: no request sees a part of it.
        routes = self._upstreams.connect(settings, context, admission, tls.with_target)
        self._settings, self._signer = settings, signer
        context.admission.give_way_to(admission)
        tls.reload()
        listener.handshake_timeout_s = settings.header_timeout_s
        context.settings, context.admission, context.routes = settings, admission, routes
        for connection in context.connections:
            connection.spare = None  # it is of what was before
        self._paces.renew(settings, store)
        context.endpoint = self._endpoints(settings, admission, lambda: context.stopping)
        context.streams.renew()
        return left

    def watch_files(self, known: Mapping[Path, Stamp | None], on_change: Callable[[], None]) -> FileWatch:
        """Look at files about once a second, until `close`; see `FileWatch`.

        Raises:
            RuntimeError: The gateway is not running.
        """
        if self._context is None:
            raise RuntimeError(_NOT_RUNNING)
        watch = FileWatch(known, self._context.clock, on_change)
        self._context.clock.watched.add(watch)
        return watch

    async def drain(self, *, notice_s: float = 0.0, handed_over: bool = False) -> bool:
        """Stop listening, and let what is in flight end, for `DRAIN_TIMEOUT` at most.

        From the first moment `/readyz` is a 503, unless another process goes on, and each answer says that its
        connection closes; connections that stay idle are closed a second later.

        Args:
            notice_s: Go on listening for so long, so that load balancers notice first, and again as long as new clients
                come meanwhile, up to a quarter of `DRAIN_TIMEOUT`.
            handed_over: Another process accepts from the same sockets, so nobody needs notice.

        Returns:
            Whether everything ended in time.
        """
        context, listener = self._context, self._listener
        if context is None or listener is None:
            return True
        context.draining, context.stopping = True, not handed_over
        context.streams.end()
        for connection in tuple(context.connections):
            connection.drain()
        timeout_s = self._settings.drain_timeout_s
        loop = asyncio.get_running_loop()
        impatient: asyncio.TimerHandle | None = None
        try:
            async with asyncio.timeout(timeout_s):
                if notice_s and not handed_over:
                    await listener.until_calm(notice_s, timeout_s * NOTICE_SHARE)
                    listener.turn_away()
                    await asyncio.sleep(min(HANDSHAKE_S, timeout_s * NOTICE_SHARE))
                listener.end(handed_over=handed_over)
                impatient = loop.call_later(GRACE_S, listener.end_handshakes)
                while listener.clients:
                    listener.emptied.clear()
                    await listener.emptied.wait()
        except TimeoutError:
            return False
        finally:
            if impatient is not None:
                impatient.cancel()
        return True

    def share_sockets(self) -> list[int]:
        """Return descriptors of the listening sockets for another process; see `leave_files`.

        Raises:
            RuntimeError: The gateway is not running.
        """
        if self._listener is None:
            raise RuntimeError(_NOT_RUNNING)
        return self._listener.shared()

    def own_sockets(self, sockets: Sequence[socket.socket]) -> None:
        """Hear which of the sockets that the gateway was given have become its alone; `drain` has to follow."""
        if self._listener is not None:
            self._listener.own(sockets)

    def leave_files(self) -> list[str]:
        """Leave the files of unix sockets to a process that listens on; return their marks."""
        return [] if self._listener is None else self._listener.leave_files()

    @to_the_end
    async def close(self) -> None:
        """End everything now, and give up every descriptor, also where the caller is cancelled meanwhile."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()
        context, self._context = self._context, None
        if context is not None:
            context.draining = context.closed = True
            for connection in tuple(context.connections):
                connection.abort()
            context.spending.end()
            self._upstreams.close()
            context.clock.stop()
            self._paces.close()
            # Transports tell their protocols of the end in the loop's next turn, those of TLS in the one after it; then
            # places in flight come back, and what was reserved is settled.
            for _ in range(TURNS):
                await asyncio.sleep(0)
                if not context.connections:
                    break
        if context is not None and context.access_log is not None:
            context.access_log.flush()
        if self._line_writer is not None:
            await asyncio.to_thread(self._line_writer.close)
        if self._flush is not None:
            await self._flush.close()
        if self._store is not None:
            await self._store.close()
            self._store = None
        if listener is not None:
            await listener.close()
        await self._upstreams.closed()
        for sock in (*self._sockets, *self._others):  # where it did not come to listening
            sock.close()
        await asyncio.sleep(0)  # for those transports: see above

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
