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
from gateway.endpoints import Endpoints
from gateway.http1.parser import AnswerParser, RequestParser
from gateway.listening import Descriptors, Listener, soft_limit
from gateway.metrics import Metrics
from gateway.proxy.client import ClientConnection
from gateway.proxy.clock import Clock
from gateway.proxy.context import ProxyContext
from gateway.proxy.routes import Routes
from gateway.proxy.upstreams import Upstreams
from gateway.stores.choice import make_store
from gateway.tokens import TokenSigner

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from types import TracebackType

    from gateway.certificates import ReloadedTls
    from gateway.config import Config, KeyPair, Settings, Target
    from gateway.stores import Store

_SECRET_BYTES: Final = 32

_log = logging.getLogger("gateway")


class Gateway:
    """A running gateway; `async with` starts and stops it.

    Args:
        config: What it does. `gateway_listen` is a free port of 127.0.0.1 unless it says otherwise.
        sockets: Listening stream sockets to accept from in place of `gateway_listen`; the gateway closes them.

    Attributes:
        metrics: What became of the requests so far.
    """

    def __init__(self, config: Config, *, sockets: Sequence[socket.socket] = ()) -> None:
        self._settings: Settings = config.settings
        self._sockets = sockets
        self.metrics = Metrics()
        self._listener: Listener | None = None
        self._store: Store | None = None
        self._context: ProxyContext | None = None
        self._upstreams = Upstreams(AnswerParser())
        self._reloaded: list[ReloadedTls] = []

    async def start(self) -> None:
        """Connect to the store and listen.

        Raises:
            StoreUnavailable: Redis does not answer.
            OSError: An address cannot be listened on, or `TARGET_CA_FILE` cannot be read.
        """
        settings = self._settings
        loop = asyncio.get_running_loop()
        self._store = store = make_store(settings)
        try:
            await store.start()
            signer = TokenSigner(settings.token_secrets or [await store.agree_secret(os.urandom(_SECRET_BYTES))])
            admission = Admission(
                store, signer, settings.limits, settings.common_limits, settings.token_ttl_s, shadow=settings.shadow
            )
            clock = Clock(loop)
            tls = self._own_tls(clock)
            context = ProxyContext(
                loop=loop,
                settings=settings,
                clock=clock,
                parser=RequestParser(),
                admission=admission,
                routes=Routes(),
                endpoint=Endpoints(admission, store, self.metrics, settings.admin_key, lambda: context.draining),
                metrics=self.metrics,
            )
            self._context = context
            context.routes = self._upstreams.connect(
                settings, context, admission, lambda target: self._upstream_tls(target, clock)
            )
            clock.start()
            descriptors = Descriptors(soft_limit(), self._upstreams)
            self._listener = listener = Listener(
                clock, lambda: ClientConnection(context), descriptors, tls, settings.header_timeout_s
            )
            context.on_client_gone = listener.on_client_gone
            for sock in self._sockets:
                listener.adopt(sock)
            for address in () if self._sockets else settings.listen:
                await listener.bind(address)
            listener.start()
        except BaseException:
            await self.close()
            raise
        if settings.redis is None and not settings.token_secrets:
            _log.info("tokens end with this process: neither TOKEN_SECRET nor REDIS_URL is set")
        _log.info("listening on %s, sending to %s", ", ".join(self.urls), _sent_to(settings))

    def _own_tls(self, clock: Clock) -> ReloadedTls | None:
        """Return what is spoken with clients on TCP; None for plain HTTP."""
        own = self._settings.tls
        if own is None:
            return None
        from gateway.certificates import ReloadedTls, server_context

        return self._watch(ReloadedTls("the certificate", own.files, lambda: server_context(*own), clock), own, clock)

    def _upstream_tls(self, target: Target, clock: Clock) -> ReloadedTls | None:
        """Return what is spoken with a target; None for plain HTTP."""
        if not target.tls:
            return None
        from gateway.certificates import ReloadedTls, client_context

        shown = target.client or (None, None)
        files = [file for file in (target.ca_file, *shown) if file is not None]
        what = f"the TLS of {target.url}"
        tls = ReloadedTls(what, files, lambda: client_context(target.ca_file, *shown), clock)
        return self._watch(tls, target.client, clock)

    def _watch(self, tls: ReloadedTls, pair: KeyPair | None, clock: Clock) -> ReloadedTls:
        from gateway.certificates import is_open_to_others

        self._reloaded.append(tls)
        clock.watched.add(tls)
        if pair is not None and is_open_to_others(pair.key_file):
            _log.warning("%s, a private key, is open to other users of this machine: chmod 600", pair.key_file)
        return tls

    @property
    def has_certificates(self) -> bool:
        """Whether there is anything for `reload_certificates` to read."""
        return bool(self._reloaded)

    def reload_certificates(self) -> None:
        """Read the PEM files now, as is done by itself within seconds of a change."""
        for tls in self._reloaded:
            tls.reload()

    @property
    def urls(self) -> list[str]:
        """Where it listens: a base URL for each address, `unix:/path` for each unix socket."""
        return [] if self._listener is None else self._listener.urls

    @property
    def url(self) -> str:
        """The first of `urls`, without a path: a client's base URL is this and `/api`."""
        return self.urls[0]

    def issue_token(
        self, *, name: str | None = None, limits: Sequence[str] | None = None, ttl_s: int | None = None
    ) -> str:
        """Make a token.

        Args:
            name: For people.
            limits: In `RATE_LIMIT`'s grammar, in place of the gateway's. None: the gateway's.
            ttl_s: Seconds that it is good for; 0: without end; None: `TOKEN_TTL`.

        Raises:
            ValueError: A limit or the name is not one that a token may have.
            RuntimeError: The gateway is not running.
        """
        if self._context is None:
            raise RuntimeError("the gateway is not running: use 'async with Gateway(config) as gateway'")
        return self._context.admission.issue(time.time(), name=name, limits=limits, ttl_s=ttl_s)[0]

    async def drain(self) -> bool:
        """Stop listening, and let what is in flight end, for `DRAIN_TIMEOUT` at most.

        Returns:
            Whether everything ended in time.
        """
        context = self._context
        if context is None or self._listener is None:
            return True
        self._listener.stop()
        context.draining = True
        for connection in tuple(context.connections):
            connection.drain()
        if context.connections:
            context.emptied.clear()
            try:
                await asyncio.wait_for(context.emptied.wait(), self._settings.drain_timeout_s)
            except TimeoutError:
                return False
        return True

    async def close(self) -> None:
        """End everything now, and give up every descriptor."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()
        context, self._context = self._context, None
        if context is not None:
            context.draining = True
            for connection in tuple(context.connections):
                connection.abort()
            self._upstreams.close()
            context.clock.stop()
            # Transports tell their protocols of the end in the loop's next turn, and places in flight come back.
            await asyncio.sleep(0)
        if self._store is not None:
            await self._store.close()
        if listener is not None:
            await listener.close()
        await self._upstreams.closed()
        for sock in self._sockets:  # where it did not come to listening
            sock.close()
        # Transports tell their protocols of the end in the next turn of the loop.
        await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _sent_to(settings: Settings) -> str:
    others = [f"{target.keyed[0].prefix.decode()} to {target.keyed[0].url}" for target in settings.targets]
    return ", ".join([settings.target.url, *others])
