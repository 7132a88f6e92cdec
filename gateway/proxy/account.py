"""How an exchange is counted and logged when it is over: one of these functions is called, whichever way it ended.

They read its attributes; its `Tally` is what adds up.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from gateway.access_lines import Record
from gateway.errors import Draining
from gateway.http1 import fields, writer
from gateway.tally import CLIENT_GONE, MAX_LISTED

if TYPE_CHECKING:
    from gateway.access_log import AccessLog
    from gateway.errors import GatewayError
    from gateway.proxy.exchange import Exchange


def settle(exchange: Exchange, error: str | None = None) -> None:
    """Count a request whose whole answer has been passed on.

    Args:
        exchange: Which.
        error: What stands in the log, of a request that did not end so well; the functions below have counted it.
    """
    tally, upload, answer = exchange.tally, exchange.upload, exchange.answer
    received = exchange.head.length if upload is None else upload.body.seen_bytes
    if received:
        tally.bytes_in += received
    sent = exchange.answer_bytes if answer is None else answer.body.seen_bytes
    if error is None:
        tally.passed.append(sent)
        if exchange.status != 200:
            tally.statuses.append(exchange.status)
    else:
        tally.bytes_out += sent
    if tally.begun >= MAX_LISTED:
        tally.fold(exchange.context.usage)
    log = exchange.context.log
    if log is None:
        return
    opening = exchange.client.opening  # still that of this request: the next one is not read before this is over
    if (
        error is not None
        or opening is None
        or exchange.spent is not None
        or not log.lines.again(opening, exchange.context.route.name, exchange.status, exchange.timing, received, sent)
    ):
        _log(exchange, log, received, sent, error)


def refused(exchange: Exchange, error: GatewayError) -> None:
    """Count a request that the gateway answers itself."""
    subject, context = exchange.subject, exchange.context
    is_retry = subject is not None and fields.is_retry(exchange.head)
    if subject is None:
        exchange.tally = context.usage.strangers
        exchange.tally.begun += 1  # which the others had when their token was known
    elif error.denies:
        context.metrics.on_denied(subject.id, error, is_retry=is_retry)
    exchange.tally.on_refused(error, is_retry=is_retry)
    exchange.status = error.status
    settle(exchange, error.code)


def cut(exchange: Exchange, *, by_upstream: bool) -> None:
    """Count a request whose answer ended in the middle, and not because its client had left."""
    exchange.tally.on_cut(exchange.status, by_upstream=by_upstream)
    settle(exchange, "upstream_cut" if by_upstream else "cut")


def left(exchange: Exchange) -> None:
    """Count a request whose connection to its client ended under it: the client left, or the gateway is closed."""
    exchange.tally.on_left(exchange.status)
    settle(exchange, Draining.code if exchange.context.shared.closed else "client_gone")


def switched(exchange: Exchange, received: int, sent: int) -> None:
    """Count a request that became a tunnel, which has ended after so many bytes from the client and to it."""
    exchange.answer_bytes += sent
    exchange.tally.bytes_in += received
    settle(exchange)


def _log(exchange: Exchange, log: AccessLog, received: int, sent: int, error: str | None) -> None:
    timing = exchange.timing
    if not timing:  # there was no answer
        lap_ms = (perf_counter() - exchange.lap_began_s) * 1e3
        timing = writer.TIMING % ((exchange.own_s * 1e3, lap_ms) if exchange.sent else (lap_ms, 0.0))
    subject = exchange.subject
    token_id = None if subject is None else subject.id
    host = exchange.client.host if log.wants_host else ""
    target, status = exchange.context.route.name, exchange.status or CLIENT_GONE
    whose = (exchange.head, exchange.client.opening, token_id, target, host)
    log.lines.add(Record(*whose, status, received, sent, timing, error, exchange.spent))
