"""How long an exchange waits, once its request is on the way, and what it says when that was in vain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import RequestTimeout, UpstreamTimeout
from gateway.proxy.sockets import still_takes

if TYPE_CHECKING:
    from gateway.errors import GatewayError
    from gateway.proxy.exchange import Exchange
    from gateway.proxy.upstream import UpstreamConnection


def await_upstream(exchange: Exchange) -> None:
    """Begin to wait anew: for the answer's head behind a whole request, else for more of either body."""
    settings = exchange.context.settings
    awaits_answer = exchange.request_done and not exchange.answer_started
    timeout_s = settings.response_timeout_s if awaits_answer else settings.idle_timeout_s
    exchange.client.deadline_s = exchange.context.clock.soon_s + timeout_s


def overdue(exchange: Exchange, upstream: UpstreamConnection | None) -> GatewayError | None:
    """Say what did not come in time; or wait anew, where the upstream is only slow and still takes bytes.

    Args:
        exchange: The one that has waited.
        upstream: What it is sent on, if there is a connection.
    """
    if not exchange.answer_started and upstream is not None and still_takes(upstream):
        await_upstream(exchange)
        return None
    if not exchange.request_done and exchange.client.transport.is_reading():
        return RequestTimeout("The request body did not come in time.")
    return UpstreamTimeout("The upstream did not answer in time.")
