"""Heads of answers as a client gets them: the upstream's, and what the gateway adds of limits and times."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from gateway.http1 import writer
from gateway.http1.message import CHUNKED, UNTIL_CLOSE

if TYPE_CHECKING:
    from gateway.http1.message import AnswerHead
    from gateway.proxy.exchange import Exchange


def answer_head(exchange: Exchange, head: AnswerHead, length: int, answered_s: float, content: bytes) -> bytes:
    """Make the head of a final answer, and note of the exchange how long it took until then.

    Args:
        exchange: Whose request has been answered.
        head: The upstream's; used up.
        length: How long its body is, as `framing.answer_length` says.
        answered_s: When it came, in seconds of `perf_counter`.
        content: What has come of its body, which goes behind the head in the same piece.
    """
    context, tally = exchange.context, exchange.tally
    minor = exchange.head.minor
    if (
        length == UNTIL_CLOSE  # the connection's end is the body's
        or (length == CHUNKED and minor == 0)  # likewise
        or not exchange.request_done
        or context.shared.draining
    ):
        exchange.keep_alive = False
    upstream_s = answered_s - exchange.lap_began_s
    exchange.status = head.status
    own_s = exchange.own_s  # what is still done with the answer is not worth another look at the clock
    tally.own_s.append(own_s)
    tally.upstream_s.append(upstream_s)
    exchange.timing = timing = writer.TIMING % (own_s * 1e3, upstream_s * 1e3)
    if context.route.reads_answers:
        context.route.hide_key(head)
    if not head.dated:  # whoever passes an answer on and has a clock adds it (RFC 9110 §6.6.1)
        head.lines += context.clock.date_line()
    return writer.answer_head(head, minor, exchange.limits, timing, exchange.keep_alive, content)


def switch_head(exchange: Exchange, head: AnswerHead) -> bytes:
    """Make the head of a 101, and note likewise. See `answer_head`."""
    tally = exchange.tally
    upstream_s = perf_counter() - exchange.lap_began_s
    exchange.status = head.status
    tally.own_s.append(exchange.own_s)
    tally.upstream_s.append(upstream_s)
    exchange.timing = timing = writer.TIMING % (exchange.own_s * 1e3, upstream_s * 1e3)
    exchange.context.route.hide_key(head)
    return writer.switch_head(head, exchange.limits, timing)
