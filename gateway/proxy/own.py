"""Answers of the gateway's own: those of endpoints, and errors. Here a 429 is written, and every other refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.access_lines import Record
from gateway.errors import RateLimited, Stopped, TokenMissing
from gateway.http1 import writer

if TYPE_CHECKING:
    from gateway.errors import GatewayError
    from gateway.http1.message import RequestHead
    from gateway.proxy.client import ClientConnection
    from gateway.proxy.context import Answer, ProxyContext
    from gateway.proxy.exchange import Exchange

_PROXY_ADVICE: Final = (
    "Name the token in the proxy's URL, as in http://TOKEN:x@HOST:PORT; several clients send none without a password."
)


def send(
    client: ClientConnection,
    context: ProxyContext,
    answer: Answer,
    head: RequestHead | None,
    *,
    keep_alive: bool,
    limit_lines: bytes = b"",
) -> None:
    """Send a whole answer, with the time of day, and end its exchange.

    Args:
        client: Who gets it.
        context: What all connections share.
        answer: Its status, fields and content.
        head: The request's, if it could be read: no answer to HEAD has a body.
        keep_alive: Whether the connection may go on.
        limit_lines: Field lines that say how the request's limits stand, each with a line end before it.
    """
    status, fields, content = answer
    keep_alive = keep_alive and not context.draining
    fields = [*fields, ("Date", context.clock.date())]
    is_head = head is not None and head.method == b"HEAD"
    client.write(
        writer.answer(status, fields, content, keep_alive=keep_alive, head_only=is_head, limit_lines=limit_lines)
    )
    client.on_exchange_done(keep_alive=keep_alive)


def send_error(
    client: ClientConnection,
    context: ProxyContext,
    error: GatewayError,
    head: RequestHead | None,
    *,
    keep_alive: bool,
    limit_lines: bytes = b"",
) -> None:
    """Send an answer that tells of an error, as `send` does; a 429 the quick way.

    The connection ends as well where what follows on it cannot be trusted.
    """
    if not isinstance(error, RateLimited):
        if isinstance(error, TokenMissing) and head is not None and not head.target.startswith(b"/"):
            error = TokenMissing(_PROXY_ADVICE)
        target = b"" if head is None else head.target
        fields = writer.error_fields(error, jitter=context.random())
        answer = (error.status, fields, writer.problem(error, target))
        send(client, context, answer, head, keep_alive=keep_alive and not error.closes, limit_lines=limit_lines)
        return
    keep_alive = keep_alive and not context.draining
    client.write(
        writer.refusal(
            error,
            jitter=context.random(),
            date=context.clock.date(),
            limit_lines=limit_lines,
            keep_alive=keep_alive,
            head_only=head is not None and head.method == b"HEAD",
        )
    )
    client.on_exchange_done(keep_alive=keep_alive)


def answer_refused(exchange: Exchange, error: GatewayError) -> None:
    """Answer an exchange's request with a refusal, as `send_error` does, and say how its limits stand, if they decided.

    The connection goes on only behind the whole request.
    """
    subject, verdict, shared = exchange.subject, exchange.verdict, exchange.context.shared
    limit_lines = b""
    if subject is not None and verdict is not None:
        limit_lines = subject.limit_lines(verdict)
    elif subject is not None and isinstance(error, Stopped):  # before any limit was asked
        limit_lines = subject.policy_line
    keep_alive = exchange.keep_alive and exchange.request_done
    send_error(exchange.client, shared, error, exchange.head, keep_alive=keep_alive, limit_lines=limit_lines)


def refuse(
    client: ClientConnection,
    context: ProxyContext,
    error: GatewayError,
    head: RequestHead | None,
    *,
    keep_alive: bool = False,
    limit_lines: bytes = b"",
) -> None:
    """Refuse a request that has no exchange with a target: count it, log it, and answer as `send_error` does."""
    context.metrics.nowhere.strangers.on_refused(error)
    log(client, context, head, error.status, error=error.code)
    send_error(client, context, error, head, keep_alive=keep_alive, limit_lines=limit_lines)


def log(
    client: ClientConnection,
    context: ProxyContext,
    head: RequestHead | None,
    status: int,
    *,
    own_s: float = 0.0,
    received: int = 0,
    sent: int = 0,
    error: str | None = None,
) -> None:
    """Log a request that went to no target."""
    if context.access_log is not None:
        timing = writer.TIMING % (own_s * 1e3, 0.0)
        record = Record(head, None, None, None, client.host, status, received, sent, timing, error)
        context.access_log.lines.add(record)
