"""What a request may cost, and what it cost, read out of its answer as that passes. Pure: no I/O, no clock.

`pricing.pricing_of` makes the `Pricing` of a target from its `costs.CostTable`. Of each request it makes a `Quote`: the
most that the request can cost, as `budgets.Ask` has it, and the body to send. Of the answer to it, the quote makes a
`Meter`: all content of the answer goes through `Meter.feed`, which never holds more of it than one line of an event
stream, and when the answer is over, `Meter.result` says the `Cost`. Amounts are atoms by unit, as everywhere in
`budgets`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.budgets.spending import Mark

MAX_READ_BYTES: Final = 1 << 20
"""How long a request's body may be to be read: for a longer one, the target's default reservation is made."""


class Cost(NamedTuple):
    """What a request cost.

    Args:
        cost: Atoms by unit; empty: nothing.
        mark: `EXACT` or `ESTIMATED`.
        units: What was counted by kind: `input`, `cached`, `cache_write`, `output`, `bytes`, `ms`.
        model: As the answer, or else the request, names it; "" where there is none.
        upstream_id: The upstream's name for the request: of a field of the answer, else of its content; "" if none.
    """

    cost: Mapping[str, int]
    mark: Mark
    units: Mapping[str, int] = {}
    model: str = ""
    upstream_id: str = ""


class Meter(Protocol):
    """Reads out of one answer what it cost. To be made when the answer's head has come, once."""

    def feed(self, content: bytes) -> bytes:
        """Take what has come of the content, without its transfer coding; return what to forward.

        That is the same object, unless something is taken out. b"" where all of it is held back for now.
        """
        ...

    def finish(self) -> bytes:
        """Return what was held back. To be called at the content's end, whether it is whole or not, once."""
        ...

    def running(self, elapsed_ms: int) -> Mapping[str, int]:
        """Return what has been spent so far, in atoms by unit: an estimate on the safe side.

        Args:
            elapsed_ms: Since the request was sent.
        """
        ...

    def result(self, *, whole: bool, elapsed_ms: int) -> Cost:
        """Return what the request cost.

        Args:
            whole: Whether the answer came to its end.
            elapsed_ms: From when the request was sent until now.
        """
        ...

    def cut_event(self) -> bytes | None:
        """Return what ends this stream early, as the provider would say it; b"" where nothing could be read as that.

        None: not here; it is to be asked for again behind the next piece. What was held back is dropped else, and
        neither `feed` nor `finish` is called after it.
        """
        ...


class Quote(Protocol):
    """The most that one request can cost.

    Attributes:
        model: As the request names it; "" where it names none.
        fixed: Atoms by unit, whatever comes back: as of `budgets.Ask`, like the next three.
        each: Atoms of one output token by unit; empty where the answer's length does not matter.
        most: Output tokens.
        least: Output tokens; `most` where the request must not be changed.
        accepts: The codings in which its answer can be read, as `Accept-Encoding` has them; b"": it need not be.
        notice: What to log, once for each model: its price is not known; "" else.
        limited: To how many output tokens `body` has limited each answer; 0: to none but the request's own.
    """

    model: str
    fixed: Mapping[str, int]
    each: Mapping[str, int]
    most: int
    least: int
    accepts: bytes
    notice: str
    limited: int

    def body(self, granted: int) -> bytes | None:
        """Return the body to send; the very object that was quoted where nothing is to be changed.

        Args:
            granted: Output tokens, from `least` to `most`.

        Raises:
            BadRequest: It cannot be changed.
        """
        ...

    def meter(
        self, granted: int, status: int, lines: Sequence[bytes], form: bytes = b"", content: bytes = b""
    ) -> Meter:
        """Return what reads the answer's cost.

        Args:
            granted: As of `body`.
            status: The answer's, 200 or more.
            lines: Its field lines; an element may hold several, joined.
            form: As of `http1.message.AnswerHead`.
            content: All of it, where that is here already; it is to be fed all the same. b"" where it is not.
        """
        ...

    def unanswered(self, granted: int, elapsed_ms: int) -> Cost:
        """Return what the request is held to have cost where it was sent, and no answer's head came."""
        ...


class Pricing(Protocol):
    """What requests to one target cost.

    Attributes:
        needs_body: Whether `quote` has to see the request's body.
    """

    needs_body: bool

    def quote(self, method: bytes, path: bytes, lines: Sequence[bytes], body: bytes | None, now_s: float) -> Quote:
        """Say what a request can cost.

        Args:
            method: The request's.
            path: What follows the target's prefix; a query may be behind it.
            lines: The request's field lines; an element may hold several, joined.
            body: All of it, b"" for none; None if it is longer than `MAX_READ_BYTES`, or was not read because
                `needs_body` is False.
            now_s: Seconds since the epoch: some prices have times.

        Raises:
            PriceUnknown: Nobody has said what this request costs, and `unknown_price` is `deny`.
        """
        ...
