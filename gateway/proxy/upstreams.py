"""Builds what exchanges with the targets of a configuration use, and ends it: pools, dialers, routes."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakValueDictionary

from gateway.budgets.grammar import written
from gateway.config import TargetSettings
from gateway.proxy.context import Destination
from gateway.proxy.dial import Dialer
from gateway.proxy.keys import KeyRing
from gateway.proxy.pool import UpstreamPool
from gateway.proxy.routes import Routes
from gateway.proxy.target import TargetRoute

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.admission import Admission
    from gateway.certificates import ReloadedTls
    from gateway.config import Settings, Target
    from gateway.http1.parser import AnswerParser
    from gateway.proxy.client import ClientConnection
    from gateway.proxy.context import ProxyContext
    from gateway.proxy.exchange import Exchange
    from gateway.proxy.keys import KeyRest

_log = logging.getLogger("gateway")

TIMEOUTS = ("connect_timeout_s", "response_timeout_s", "idle_timeout_s")


class Upstreams:
    """The connections to all targets. Its length is how many there are.

    Args:
        parser: The process's answer parser.
    """

    def __init__(self, parser: AnswerParser) -> None:
        self._parser = parser
        self._ends: list[tuple[UpstreamPool, Dialer]] = []
        # Of earlier configurations. What may still use one holds it: a connection, an attempt at one, or an exchange
        # that has none yet, since the store has not decided.
        self._retired: WeakKeyDictionary[UpstreamPool, Dialer] = WeakKeyDictionary()
        self._rests: WeakValueDictionary[tuple[str, bytes], KeyRest] = WeakValueDictionary()

    def __len__(self) -> int:
        """Count the connections, idle or not, and the attempts at one."""
        return sum(len(pool) for pool, _ in self._ends) + sum(map(len, self._retired))

    def connect(
        self,
        settings: Settings,
        context: ProxyContext,
        admission: Admission,
        tls_of: Callable[[Target], ReloadedTls | None],
    ) -> Routes:
        """Make ready for the targets of a configuration; nothing is connected to yet.

        Connections for an earlier configuration end as their exchanges do.

        Args:
            settings: That configuration.
            context: What all connections share.
            admission: Checks the limits that do not depend on the target.
            tls_of: Returns the TLS to speak with a target; None for plain HTTP.
        """
        for budget in settings.idle_budgets:
            _log.warning("the budget %s holds nothing: no target has a cost in %s", written(budget), budget.unit)
        targets = (TargetSettings(name="api", keyed=(settings.target,), cost=settings.target_cost), *settings.targets)
        dialers = [Dialer(target.keyed[0], tls_of(target.keyed[0])) for target in targets]
        for pool, _ in self._ends:
            pool.retire()
            context.clock.watched.discard(pool)
        self._retired.update(self._ends)
        self._ends = []
        found = []
        for target, dialer in zip(targets, dialers, strict=True):
            given = {name: value for name in TIMEOUTS if (value := getattr(target, name)) is not None}
            own = replace(settings, **given)
            name = f"{target.name} ({target.keyed[0].url})"
            pool = UpstreamPool(dialer, own, self._parser, context.clock, name)
            context.clock.watched.add(pool)
            self._ends.append((pool, dialer))
            limited = admission.beside(target.name, target.common_limits)
            shared = (context, own, context.clock, context.metrics, limited)
            metered = _metered(target, own)
            destinations = [
                Destination(*shared, TargetRoute(keyed, target.name), pool, metered=metered) for keyed in target.keyed
            ]
            first = destinations[0]
            if len(destinations) > 1:
                # The ring knows none that knows the ring: what nobody uses any more is to go at once (see `_retired`).
                first = replace(first, keys=KeyRing(target.name, destinations, context.clock, self._rests))
            found.append(first)
        return Routes(found)

    def close(self) -> None:
        """End every connection, idle or not, and every attempt at one."""
        for pool, _ in self._all():
            pool.close()

    async def closed(self) -> None:
        """Wait until the attempts that `close` ended are over."""
        for pool, dialer in self._all():
            await pool.closed()
            await dialer.closed()

    def _all(self) -> list[tuple[UpstreamPool, Dialer]]:
        return [*self._ends, *self._retired.items()]


def _metered(target: TargetSettings, settings: Settings) -> Callable[[Destination, ClientConnection], Exchange] | None:
    """Return what makes exchanges with a target, where plain ones will not do; see `Destination`."""
    if target.cost is not None:
        # Only here: whose requests cost nothing should not pay for what meters them.
        from gateway.metering.pricing import pricing_of
        from gateway.proxy.metered import MeteredExchange

        pricing = pricing_of(target.cost, target.keyed[0].url, clamp=settings.budget_clamp)
        return partial(MeteredExchange, pricing)
    if settings.loop_guard is not None:
        from gateway.proxy.guarded import GuardedExchange  # likewise

        return GuardedExchange
    return None
