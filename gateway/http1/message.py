"""A parsed head: what the gateway needs to know of a message, and the field lines it passes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gateway.http1.opening import Opening

CRLF: Final = b"\r\n"
HEAD_END: Final = b"\r\n\r\n"

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

NO_BODY: Final = 0
CHUNKED: Final = -1
UNTIL_CLOSE: Final = -2

# RFC 9110 §9.2.2. Only these may be sent a second time when it is not known what became of the first.
IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"))

# TRACE's answer would show the key that went upstream (RFC 9110 §9.3.8); CONNECT has no path to be sent to.
REFUSED_METHODS: Final = frozenset((b"TRACE", b"CONNECT"))
RELAYED_METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

NO_PROTOCOLS: Final[frozenset[bytes]] = frozenset()

MAX_HEAD_BYTES: Final = 32 * 1024
MAX_LINE_BYTES: Final = 16 * 1024
MAX_FIELDS: Final = 100


class RequestHead:
    """The head of a request.

    Attributes:
        method: As sent; case matters (RFC 9110 §9.1).
        target: The request-target, byte for byte.
        minor: 0 or 1, of HTTP/1.x.
        lines: Field lines to pass on, in their order and case, each with a line end before it. Neither
            connection-specific ones nor credentials nor `Host` are among them; a `Content-Length` is, and
            `TE: trailers` or `Upgrade` with its connection option.
        length: Bytes of body (0 to 10^18 - 1), or `CHUNKED`.
        keep_alive: Whether the client would use the connection again (RFC 9112 §9.3).
        host: The value of `Host`; b"" where there is none, which only HTTP/1.0 allows.
        bearer: The text of `Authorization: Bearer`, or `Basic`'s user name, or of the API-key fields; `TWO_TOKENS`
            where they differ. Where `target` is no path and `Proxy-Authorization` has a token, that alone.
        expects_continue: Whether the client waits for 100 before it sends the body (RFC 9110 §10.1.1).
        upgrade: The protocols that the upstream is offered to switch to, in lower case (RFC 9110 §7.8).
        opening: What the next head on the connection may be tried with first, if that is known.
        form: What `lines` has in common with those of other heads: a format, with `%b` in place of each value that
            differs. Whoever has read it knows the fields of all of them. b"": nobody knows.
    """

    # fmt: off
    __slots__ = (
        "method", "target", "minor", "lines", "length", "keep_alive", "host", "bearer", "expects_continue", "upgrade",
        "opening", "form",
    )
    # fmt: on

    def __init__(
        self, method: bytes, target: bytes, minor: int, bearer: bytes | None = None, host: bytes = b""
    ) -> None:
        self.method = method
        self.target = target
        self.minor = minor
        self.host = host
        self.lines = b""
        self.length = NO_BODY
        self.keep_alive = minor == 1
        self.bearer = bearer
        self.expects_continue = False
        self.upgrade = NO_PROTOCOLS
        self.opening: Opening[RequestHead] | None = None
        self.form = b""


class AnswerHead:
    """The head of an answer from upstream.

    Attributes:
        status: 100 to 599.
        start: The status line as it goes to the client, always HTTP/1.1.
        lines: Field lines to pass on; as in `RequestHead`.
        length: Bytes of body as the fields say, `CHUNKED`, or `UNTIL_CLOSE`; `framing.answer_length` says what the
            request's method and the status make of it.
        keep_alive: Whether the upstream would use the connection again.
        upgrade: The protocols that a 101 switches to, in lower case; none if it does not say so as it must.
        dated: Whether it has a `Date` field.
        opening, form: As in `RequestHead`.
    """

    __slots__ = ("dated", "form", "keep_alive", "length", "lines", "opening", "start", "status", "upgrade")

    def __init__(self, status: int, start: bytes, minor: int, dated: bool = False) -> None:  # noqa: FBT001, FBT002
        self.status = status
        self.dated = dated
        self.start = start
        self.lines = b""
        self.length = UNTIL_CLOSE
        self.keep_alive = minor == 1
        self.upgrade = NO_PROTOCOLS
        self.opening: Opening[AnswerHead] | None = None
        self.form = b""
