"""The gateway's own answers as bytes, and the field lines it adds to others'."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from gateway.errors import (
    BudgetExceeded,
    ConcurrencyLimited,
    Draining,
    LoopDetected,
    MethodNotAllowed,
    RateLimited,
    Stopped,
    StoreUnavailable,
    TokenError,
    TokenMissing,
    UpstreamShut,
)
from gateway.http1.fields import without_field
from gateway.http1.message import CHUNKED, HEAD_END

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.errors import GatewayError
    from gateway.http1.message import AnswerHead


TIMING: Final = b"\r\nServer-Timing: gateway;dur=%.3f, upstream;dur=%.3f"
"""The line, with a line end before it, and places for the milliseconds of each share."""
STORM_AFTER_S: Final = 60
"""A wait longer than this tells the official SDKs not to retry. They obey a `Retry-After` of 60 s at most; told a
longer one, they would come back within seconds, and again."""
JITTER: Final = 0.05
"""The share of a wait that is added to it at most, so that those who were refused together do not return together."""

_REASONS: Final = {
    100: "Continue",
    200: "OK",
    201: "Created",
    308: "Permanent Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    414: "URI Too Long",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}

# `error.type` as the OpenAI and Anthropic SDKs know it.
_SDK_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}

_MESSAGES: Final = re.compile(rb"/v1/messages(?:[/?]|\Z)")
"""Where Anthropic's SDK sends messages, batches of them, and counts tokens, behind whichever base URL."""

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def http_date(moment: tuple[int, ...]) -> str:
    """Spell a moment as an IMF-fixdate (RFC 9110 §5.6.7), whatever the process's locale.

    Args:
        moment: UTC, as `time.gmtime` gives it.
    """
    year, month, day, hour, minute, second, weekday = moment[:7]
    clock = f"{hour:02}:{minute:02}:{second:02}"
    return f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year:04} {clock} GMT"


def answer(
    status: int,
    fields: Iterable[tuple[str, str]],
    content: bytes,
    *,
    keep_alive: bool,
    head_only: bool = False,
    limit_lines: bytes = b"",
) -> bytes:
    """Make a whole answer of the gateway's own.

    Args:
        status: One of those the gateway answers with.
        fields: Names and values; neither Content-Length nor Connection.
        content: The body.
        keep_alive: Whether the connection goes on; said either way, for HTTP/1.0 clients' sake.
        head_only: Leave the body out, as for HEAD (RFC 9110 §9.3.2).
        limit_lines: Field lines that say how the request's limits stand, each with a line end before it.
    """
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}"]
    lines += [f"{name}: {value}" for name, value in fields]
    lines.append(f"Content-Length: {len(content)}")
    lines.append("Connection: keep-alive" if keep_alive else "Connection: close")
    head = "\r\n".join(lines).encode("latin-1") + limit_lines
    return head + HEAD_END if head_only else head + HEAD_END + content


def answer_head(  # noqa: PLR0917 - by their places, which takes less time
    head: AnswerHead,
    minor: int,
    limits: bytes,
    timing: bytes,
    keep_alive: bool,  # noqa: FBT001
    content: bytes = b"",
) -> bytes:
    """Write an upstream's answer head as it goes to the client: what it keeps, then what the gateway adds.

    Args:
        head: The upstream's.
        minor: The request's, of HTTP/1.x. A 1.0 client gets no chunked body, and is told that a connection stays.
        limits: Field lines that say how the request's limits stand, each with a line end before it.
        timing: The `Server-Timing` line, likewise; it goes behind the upstream's own.
        keep_alive: Whether the client connection goes on.
        content: What goes behind the head in the same piece.
    """
    lines = without_length(head.lines) if head.status == 204 else head.lines
    if head.length == CHUNKED and minor == 1 and head.status != 204:
        lines += b"\r\nTransfer-Encoding: chunked"
    if not keep_alive:
        lines += b"\r\nConnection: close"
    elif minor == 0:
        lines += b"\r\nConnection: keep-alive"
    return b"".join((head.start, lines, limits, timing, HEAD_END, content))


def interim_head(head: AnswerHead) -> bytes:
    """Write an interim (1xx) answer of the upstream's as it goes to the client."""
    return head.start + without_length(head.lines) + HEAD_END


def switch_head(head: AnswerHead, limits: bytes, timing: bytes) -> bytes:
    """Write an upstream's 101 as it goes to the client: the last head on this connection.

    Args:
        head: The upstream's; its `lines` say what it switches to.
        limits: Field lines that say how the request's limits stand, each with a line end before it.
        timing: The `Server-Timing` line, likewise.
    """
    return head.start + without_length(head.lines) + limits + timing + HEAD_END


def without_length(lines: bytes) -> bytes:
    """Drop `Content-Length`: what has no body must not have one (RFC 9110 §8.6), and who changes a body has another."""
    return without_field(lines, b"\r\ncontent-length:")


def problem(error: GatewayError, target: bytes = b"") -> bytes:
    """Make the body of an error answer: RFC 9457's members and the shape that SDKs print.

    Args:
        error: What went wrong.
        target: The request's: where Anthropic's SDK sends messages, a budget's refusal has that API's shape as well.
    """
    sdk_type = _SDK_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    members: dict[str, object] = {
        "type": f"urn:rate-limiting-gateway:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
    }
    if isinstance(error, BudgetExceeded):
        members |= {name: getattr(error, name) for name in ("budget", "unit", "used", "limit", "reset")}
        if _MESSAGES.search(target):
            members["type"] = "error"
        else:
            sdk_type = "insufficient_quota"
    members["error"] = {"message": error.detail, "type": sdk_type, "code": error.code, "param": None}
    return json.dumps(members).encode()


def error_fields(error: GatewayError, *, jitter: float = 0.0) -> list[tuple[str, str]]:
    """List the fields of an error answer that follow from the error alone.

    Args:
        error: What went wrong.
        jitter: From 0 to 1: which part of `JITTER` is added to a wait.
    """
    fields = _plain_fields(error)
    if isinstance(error, RateLimited):
        lines = _retry_lines(error.quota, is_storm=_is_storm(error)) % _waits(error, jitter)
        fields += [(name, value) for name, _, value in (line.partition(": ") for line in lines.split("\r\n"))]
    elif isinstance(error, Stopped):
        fields += _stopped_fields(error, jitter)
    elif isinstance(error, TokenError):
        fields.append(("WWW-Authenticate", _challenge(error)))
    elif isinstance(error, MethodNotAllowed):
        fields.append(("Allow", error.allow))
    elif isinstance(error, StoreUnavailable | Draining | UpstreamShut):
        fields.append(("Retry-After", str(error.retry_after_s)))
    return fields


def _stopped_fields(error: Stopped, jitter: float) -> list[tuple[str, str]]:
    """Say what has no place left, when to come back to it, and to SDKs that they need not, where that is not soon."""
    wait_us, longest_us = error.retry_after_us, STORM_AFTER_S * 1_000_000
    fields, left = [], f'"{error.by}";r=0'
    if wait_us is not None:
        # Of a month, a twentieth would be a day: there, a minute is enough to come apart.
        told_us = wait_us + int(min(wait_us * JITTER, longest_us) * jitter)
        if wait_us <= longest_us:
            told_us = min(told_us, longest_us)
        fields += [("Retry-After", str(_ceil(told_us, 1_000_000))), ("retry-after-ms", str(_ceil(told_us, 1000)))]
        reset_s = _ceil(wait_us, 1_000_000)
        fields.append(("X-RateLimit-Reset", str(reset_s)))
        left += f";t={reset_s}"
    fields += [("X-RateLimit-Limit", error.allows), ("X-RateLimit-Remaining", "0"), ("RateLimit", left)]
    # However soon one like it may pass: what repeats in a loop is not to be repeated by an SDK as well.
    if isinstance(error, LoopDetected) or wait_us is None or wait_us > longest_us:
        fields.append(("x-should-retry", "false"))
    return fields


def _plain_fields(error: GatewayError) -> list[tuple[str, str]]:
    return [
        ("Content-Type", "application/problem+json"),
        ("X-Gateway-Error", error.code),
        ("Cache-Control", "no-store"),
    ]


def refusal(
    error: RateLimited, *, jitter: float, date: str, limit_lines: bytes, keep_alive: bool, head_only: bool
) -> bytes:
    """Make a whole 429, from pieces that are ready: who storms a limit must not cost more than who keeps to it.

    Args:
        error: The refusal.
        jitter: From 0 to 1: which part of `JITTER` is added to the wait.
        date: The current time, as `http_date` spells it.
        limit_lines: As of `answer`.
        keep_alive: Whether the connection goes on.
        head_only: Leave the body out, as for HEAD (RFC 9110 §9.3.2).
    """
    key = (error.policy, error.quota, error.window_s)
    head, body = _ready(*key, is_concurrency=isinstance(error, ConcurrencyLimited), is_storm=_is_storm(error))
    wait_s = max(error.retry_after_us, 0) / 1e6
    content = body % (wait_s, wait_s)
    connection = b"keep-alive" if keep_alive else b"close"
    filled = head % (*_waits(error, jitter), date.encode(), len(content), connection, limit_lines)
    return filled if head_only else filled + content


@lru_cache(maxsize=1024)
def _ready(policy: str, quota: int, window_s: int, *, is_concurrency: bool, is_storm: bool) -> tuple[bytes, bytes]:
    """Return the head and the body of a 429, with places for what differs from one to the next."""
    kind = ConcurrencyLimited if is_concurrency else RateLimited
    error = kind(policy, quota, window_s, 0)
    error.detail = kind.sentence(policy, quota, window_s)
    lines = [f"HTTP/1.1 {kind.status} {_REASONS[kind.status]}"]
    lines += [f"{name}: {value}" for name, value in _plain_fields(error)]
    lines += [_retry_lines(quota, is_storm=is_storm), "Date: %b", "Content-Length: %d", "Connection: %b%b"]
    return "\r\n".join(lines).encode() + HEAD_END, problem(error)


def _retry_lines(quota: int, *, is_storm: bool) -> str:
    """Return the field lines that say when to come back, with places for what `_waits` says."""
    lines = ["Retry-After: %d", "retry-after-ms: %d", f"X-RateLimit-Limit: {quota}", "X-RateLimit-Remaining: 0"]
    lines.append("X-RateLimit-Reset: %d")
    if is_storm:
        lines.append("x-should-retry: false")
    return "\r\n".join(lines)


def _is_storm(error: RateLimited) -> bool:
    return error.retry_after_us > STORM_AFTER_S * 1_000_000


def _waits(error: RateLimited, jitter: float) -> tuple[int, int, int]:
    """Return what to wait in seconds and in milliseconds, and the seconds until a place is free, exactly.

    Never less than exactly; more by `JITTER` at most, and then rounded up. What an SDK would obey stays so.
    """
    exact_us = error.retry_after_us
    told_us = int(exact_us * (1 + JITTER * jitter))
    if not _is_storm(error):
        told_us = min(told_us, STORM_AFTER_S * 1_000_000)
    return _ceil(told_us, 1_000_000), _ceil(told_us, 1000), _ceil(exact_us, 1_000_000)


def _challenge(error: TokenError) -> str:
    """RFC 6750 §3: no error code where the request carried no token at all."""
    if isinstance(error, TokenMissing):
        return 'Bearer realm="gateway"'
    return f'Bearer realm="gateway", error="invalid_token", error_description="{error.title}"'


def _ceil(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
