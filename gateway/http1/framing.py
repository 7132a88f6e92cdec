"""Where a body ends (RFC 9112 §6.3), and walkers that count it down without touching it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from gateway.errors import BadRequest, NotImplementedHere
from gateway.http1.chunked import ChunkedBody
from gateway.http1.fields import list_members, passable_trailers
from gateway.http1.message import CHUNKED, NO_BODY, UNTIL_CLOSE

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.errors import GatewayError
    from gateway.http1.message import AnswerHead


class Body(Protocol):
    """Walks one message body as its bytes arrive."""

    done: bool
    """Whether the last byte of the body has been fed."""
    seen_bytes: int
    """How many bytes of content were fed, chunk framing not counted."""

    @property
    def least_left(self) -> int:
        """How many bytes have still to be fed, at the least."""
        ...

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take bytes; return those to pass on and those that lie behind the body's end.

        Raises:
            GatewayError: The framing is broken; of the class the body was made with.
        """
        ...


class LengthBody:
    """A body of known length: bytes are counted and passed on as the objects they came as."""

    __slots__ = ("done", "least_left", "seen_bytes")

    def __init__(self, length: int) -> None:
        self.least_left = length
        self.done = length == 0
        self.seen_bytes = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """See `Body.feed`."""
        left = self.least_left
        size = len(data)
        if size < left:
            self.least_left = left - size
            self.seen_bytes += size
            return data, b""
        self.least_left = 0
        self.done = True
        self.seen_bytes += left
        if size == left:
            return data, b""
        return data[:left], data[left:]


class UntilCloseBody:
    """A body that ends when its connection does (RFC 9112 §6.3 rule 8)."""

    __slots__ = ("done", "least_left", "seen_bytes")

    def __init__(self) -> None:
        self.done = False
        self.least_left = 0
        self.seen_bytes = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """See `Body.feed`."""
        self.seen_bytes += len(data)
        return data, b""


def request_coding(coding: bytes, length: bytes | None, minor: int) -> int:
    """Say how long a request's body is that has a transfer coding: `CHUNKED`.

    Args:
        coding: The value of its only `Transfer-Encoding`.
        length: That of `Content-Length`, if it is there.
        minor: The request's, of HTTP/1.x.

    Raises:
        BadRequest, NotImplementedHere: It says twice where its body ends, or does not say it in a way that is known
            here (RFC 9112 §6.1, §6.3 rules 3 to 5; stricter).
    """
    if length is not None:
        raise BadRequest("Content-Length and Transfer-Encoding together.")
    if minor == 0:
        raise BadRequest("Transfer-Encoding in an HTTP/1.0 request.")
    if coding.lower() != b"chunked":
        raise other_coding(coding)
    return CHUNKED


def other_coding(value: bytes) -> GatewayError:
    """Say why a coding is refused: without an end (RFC 9112 §6.3 rule 4), or with codings that are not here (§6.1)."""
    *others, last = list_members(value) or [b""]
    if last == b"chunked" and others and b"chunked" not in others:
        return NotImplementedHere("The only transfer coding here is a single 'chunked'.")
    return BadRequest("The request's transfer coding does not end in a single 'chunked'.")


def answer_length(method: bytes, head: AnswerHead) -> int:
    """Say how long an answer's body is, in the order of RFC 9112 §6.3; a 204 that announces one is the last.

    Args:
        method: The request's.
        head: The answer's.

    Returns:
        Bytes, `CHUNKED` or `UNTIL_CLOSE`.
    """
    if method == b"HEAD" or head.status in (204, 304) or head.status < 200:
        if head.status == 204 and head.length not in (NO_BODY, UNTIL_CLOSE):
            head.keep_alive = False  # what it announces may come all the same, and would be read as the next answer
        return NO_BODY
    return head.length


def body(
    length: int,
    error: type[GatewayError],
    *,
    decode: bool = False,
    trailers: Callable[[list[bytes]], list[bytes]] = passable_trailers,
) -> Body:
    """Make the walker for a body.

    Args:
        length: Bytes, `CHUNKED` or `UNTIL_CLOSE`.
        error: What broken chunk framing raises.
        decode: Pass on a chunked body's content without its framing, for an HTTP/1.0 client.
        trailers: Says which trailers of a chunked body go on; see `ChunkedBody`.
    """
    if length == CHUNKED:
        return ChunkedBody(error, decode=decode, trailers=trailers)
    if length == UNTIL_CLOSE:
        return UntilCloseBody()
    return LengthBody(length)
