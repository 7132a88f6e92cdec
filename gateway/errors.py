"""What can go wrong, as types: every refusal and failure that a user of the gateway can meet.

Turning one into bytes is `http1.writer`'s work; deciding to raise one is everybody else's.
"""

from __future__ import annotations

from typing import ClassVar, Final


class GatewayError(Exception):
    """A request that the gateway answers itself, with the status and code that clients can rely on.

    Args:
        detail: One sentence for the person who reads the answer. Never a secret, never a client's bytes.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    closes: ClassVar[bool] = False
    """Whether the client connection ends with this answer: what follows on it cannot be trusted."""
    denies: ClassVar[bool] = False
    """Whether it turns away a request of a token that was good: usage counts those."""
    blames_upstream: ClassVar[bool] = False
    """Whether it says that the API gave no answer, or none that could be passed on."""

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.limit_fields: list[tuple[str, str]] = []
        """`RateLimit-Policy` and `RateLimit`, where whoever raised this knows them."""


class BadRequest(GatewayError):
    """The request is not HTTP/1.1 as this gateway accepts it."""

    status, code, title, closes = 400, "bad_request", "Bad request", True


class RequestTimeout(GatewayError):
    """The client did not send its head, or the next bytes of its body, in time."""

    status, code, title, closes = 408, "request_timeout", "Request timeout", True


class BodyTooLarge(GatewayError):
    """The request body is longer than `MAX_BODY`."""

    status, code, title, closes = 413, "body_too_large", "Body too large", True


class TargetTooLong(GatewayError):
    """The request line is longer than the gateway reads."""

    status, code, title, closes = 414, "target_too_long", "Request target too long", True


class FieldsTooLarge(GatewayError):
    """The head has more fields, longer lines or more bytes than the gateway reads."""

    status, code, title, closes = 431, "fields_too_large", "Header fields too large", True


class HttpVersionUnsupported(GatewayError):
    """The request speaks a version other than HTTP/1.0 and HTTP/1.1."""

    status, code, title, closes = 505, "bad_request", "HTTP version not supported", True


class NotImplementedHere(GatewayError):
    """A method or transfer coding that the gateway does not have."""

    status, code, title, closes = 501, "not_implemented", "Not implemented", True


class TokenError(GatewayError):
    """The request carries no token that counts here (RFC 6750 §3)."""

    status, code, title = 401, "token_invalid", "Token invalid"


TWO_TOKENS: Final = b"\0"
"""What stands for the token of a request whose fields name two: nobody's, and nothing that a field can have in it."""


class TokenMissing(TokenError):
    """No field of the request carries a token."""

    code, title = "token_missing", "Token missing"


class TokenInvalid(TokenError):
    """The token was not issued here, or was changed since."""


class TokenExpired(TokenError):
    """The token was issued here and its time is over."""

    code, title = "token_expired", "Token expired"


class TokenRevoked(TokenError):
    """The token was issued here and somebody has ended it."""

    code, title, denies = "token_revoked", "Token revoked", True


class NotAllowed(GatewayError):
    """The caller has no right to this endpoint or target."""

    status, code, title = 403, "not_allowed", "Not allowed"


class OutOfScope(NotAllowed):
    """The token is good, but not for this target, method or path."""

    denies = True


class PriceUnknown(GatewayError):
    """Nobody has said what the request would cost, and what is not known is not free: nothing was sent upstream."""

    status, code, title, denies = 403, "price_unknown", "Price unknown", True


class NotFound(GatewayError):
    """No endpoint and no target has this path."""

    status, code, title = 404, "not_found", "Not found"


class MethodNotAllowed(GatewayError):
    """The endpoint exists, for other methods.

    Args:
        allow: The methods it takes, as the `Allow` field lists them (RFC 9110 §10.2.1).
    """

    status, code, title = 405, "method_not_allowed", "Method not allowed"

    def __init__(self, allow: str) -> None:
        super().__init__(f"This endpoint takes {allow}.")
        self.allow = allow


class RateLimited(GatewayError):
    """A limit has no place left: nothing was sent upstream and nothing was counted.

    Args:
        policy: The limit's name, as in `RateLimit-Policy`.
        quota: How many requests it allows in its window.
        window_s: The window in seconds.
        retry_after_us: Microseconds until a place comes free.
    """

    status, code, title, denies = 429, "rate_limited", "Rate limit exceeded", True

    def __init__(self, policy: str, quota: int, window_s: int, retry_after_us: int) -> None:
        super().__init__(self.sentence(policy, quota, window_s) % (max(retry_after_us, 0) / 1e6))
        self.policy = policy
        self.quota = quota
        self.window_s = window_s
        self.retry_after_us = retry_after_us

    @staticmethod
    def sentence(policy: str, quota: int, window_s: int) -> str:
        """Return the detail, with a place for the seconds."""
        allows = f"The limit '{policy}' allows {quota} requests in {window_s} seconds"
        return allows + "; a place comes free in %.1f seconds."

    @property
    def retry_after_s(self) -> float:
        """Seconds until a place comes free."""
        return self.retry_after_us / 1e6


class ConcurrencyLimited(RateLimited):
    """As many requests are in flight as a limit allows: nothing was sent upstream and nothing was counted.

    `window_s` is 0 and `retry_after_us` a guess: nobody knows when one of them will be over.
    """

    code, title = "concurrency_limited", "Too many requests in flight"

    @staticmethod
    def sentence(policy: str, quota: int, window_s: int) -> str:
        """See `RateLimited`."""
        del window_s
        return f"The limit '{policy}' allows {quota} requests in flight, and so many are; ask again in %.1f seconds."


class Stopped(GatewayError):
    """Something that counts no plain requests has no place left: nothing was sent upstream and nothing was counted.

    Args:
        detail: As of any error.
        by: What refuses, as `RateLimit` names it: `day-USD`, `loop`.
        allows: How much that allows, as people read it, in whatever it counts.
        retry_after_us: Microseconds until there could be room; None: never.
    """

    status, denies = 429, True

    def __init__(self, detail: str, *, by: str, allows: str, retry_after_us: int | None) -> None:
        super().__init__(detail)
        self.by = by
        self.allows = allows
        self.retry_after_us = retry_after_us


class BudgetExceeded(Stopped):
    """A budget has no room for what a request may cost: nothing was sent upstream and nothing was counted.

    Args:
        detail: As of any error, with the amounts as people read them.
        budget: The budget's name: `day-USD`.
        unit: What it is in.
        used: How much of it is spent or held, in the unit.
        limit: How much it allows.
        retry_after_us: Microseconds until there could be room; None: never, the request may cost more than all of it.
        reset: When that is, as RFC 3339 spells it; None likewise.
    """

    code, title = "budget_exceeded", "Budget exceeded"

    def __init__(
        self,
        detail: str,
        *,
        budget: str,
        unit: str,
        used: float,
        limit: float,
        retry_after_us: int | None,
        reset: str | None,
    ) -> None:
        super().__init__(detail, by=budget, allows=str(limit), retry_after_us=retry_after_us)
        self.budget = budget
        self.unit = unit
        self.used = used
        self.limit = limit
        self.reset = reset


class LoopDetected(Stopped):
    """The same request has been sent more often than `LOOP_GUARD` allows: nothing was sent upstream, nothing counted.

    Args:
        quota: How often it may be.
        window_s: In how many seconds.
        retry_after_us: Microseconds until one is let through, to see whether it goes on.
        what: Which one, in printable ASCII without a secret in it.
    """

    code, title = "loop_detected", "Loop detected"

    def __init__(self, quota: int, window_s: int, retry_after_us: int, what: str = "") -> None:
        which = f"The same request, {what}," if what else "The same request"
        often = f"{which} was sent more often than {quota} times in {window_s} seconds"
        next_ = f"one at a time is let through again, the next in {max(retry_after_us, 0) / 1e6:.1f} seconds"
        super().__init__(f"{often}; {next_}.", by="loop", allows=str(quota), retry_after_us=retry_after_us)
        self.quota = quota
        self.window_s = window_s

    def naming(self, what: str) -> LoopDetected:
        """Return the same that says what repeats."""
        return LoopDetected(self.quota, self.window_s, self.retry_after_us or 0, what)


class SpendGuarded(Stopped):
    """The token spends many times what it usually does: nothing was sent upstream and nothing was counted.

    Args:
        detail: As of any error, with the amounts.
        stops_at: At how much it is stopped, as people read it.
        retry_after_us: Microseconds until a request may pass.
    """

    code, title = "spend_guard", "Spending too fast"

    def __init__(self, detail: str, stops_at: str, retry_after_us: int) -> None:
        super().__init__(detail, by="spend-guard", allows=stops_at, retry_after_us=retry_after_us)


class UpstreamUnreachable(GatewayError):
    """No connection to the upstream could be made, or it ended before a byte of the answer."""

    status, code, title, blames_upstream = 502, "upstream_unreachable", "Upstream unreachable", True


class UpstreamShut(UpstreamUnreachable):
    """Attempts to connect have failed one after another: for now, none is made for this request.

    Args:
        retry_after_s: Whole seconds until one may be.
    """

    status = 503

    def __init__(self, retry_after_s: int) -> None:
        wait = "a second" if retry_after_s == 1 else f"{retry_after_s} seconds"
        super().__init__(f"The upstream could not be connected to, several times in a row; ask again in {wait}.")
        self.retry_after_s = retry_after_s


class UpstreamProtocolError(GatewayError):
    """The upstream's answer is not HTTP/1.1 that could be passed on without ambiguity."""

    status, code, title, blames_upstream = 502, "upstream_protocol", "Upstream protocol error", True


class UpstreamTimeout(GatewayError):
    """The upstream did not connect, or did not answer, in time."""

    status, code, title, blames_upstream = 504, "upstream_timeout", "Upstream timeout", True


class StoreUnavailable(GatewayError):
    """The limits could not be checked, so nothing was sent upstream."""

    status, code, title, denies = 503, "store_unavailable", "Limit store unavailable", True
    retry_after_s: ClassVar[int] = 1


class Draining(GatewayError):
    """The instance is stopping and takes no new requests."""

    status, code, title, closes = 503, "draining", "Draining", True
    retry_after_s: ClassVar[int] = 1


class ConfigError(Exception):
    """A setting has a value that the gateway cannot run with.

    Args:
        setting: Its name, as the user wrote it: `RATE_LIMIT`, `--rate-limit` or `rate_limit`.
        problem: What is wrong, with the value (masked when it is a secret).
        takes: What the setting takes.
        example: A line that would work.
    """

    def __init__(self, setting: str, problem: str, takes: str, example: str) -> None:
        # A key of a TOML file may be any text: as it is, it could draw on the reader's terminal, or fill it.
        told = f"{setting}: {problem}"
        said = f"{told if len(told) <= 600 else told[:599] + '…'}; it takes {takes}, e.g. {example}"
        super().__init__("".join(one if one.isprintable() else ascii(one)[1:-1] for one in said))
        self.setting = setting
