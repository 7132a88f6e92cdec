"""What `tools/fuzz.py` runs on each input: the parsers of `gateway.http1`, against h11 and a strict reader.

A target takes bytes and returns how many messages were read out of them. Whatever it raises is a finding; `Finding`
says what two readers disagree about.
"""

from __future__ import annotations

import random
import re
import zlib
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, TypeVar

from gateway.config.target import KeyStyle, parse_url, with_key
from gateway.errors import BadRequest, GatewayError, UpstreamProtocolError
from gateway.http1 import framing, writer
from gateway.http1.chunked import ChunkedBody
from gateway.http1.message import CHUNKED, CRLF, HEAD_END, UNTIL_CLOSE, AnswerHead, RequestHead
from gateway.http1.parser import AnswerParser, RequestParser
from gateway.http1.partial import PartialHead
from gateway.proxy.target import TargetRoute
from tests.kit import wire
from tools.fuzz_readers import (
    CREDENTIALS,
    DROPPED,
    NEVER_NAMED,
    Fields,
    Finding,
    Read,
    agree,
    answer_by_h11,
    as_h11,
    by_h11,
    chunks_by_h11,
    leaves,
    pairs,
    request_by_h11,
    require,
    strictly,
    under,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gateway.http1.opening import Opening

# The memories and bounds as they are would hardly be filled by one input.
SMALL: Final = {
    "MAX_CHUNK_LINE_BYTES": 48,
    "MAX_FIELDS": 12,
    "MAX_HEAD_BYTES": 700,
    "MAX_LINE_BYTES": 400,
    "MAX_LINE_REMEMBERED": 48,
    "MAX_TRAILER_BYTES": 96,
    "MAX_SHAPES": 4,
    "MAX_TEMPLATES": 2,
    "MAX_TRIES": 4,
    "MAX_GAPS": 3,
    "HEADS_A_TEMPLATE": 0,
    "MAX_OPENINGS": 4,
    "_MAX_LINES": 24,
    "_MAX_NAMES": 12,
    "_MAX_VALUES_A_NAME": 2,
    "_MAX_STARTS": 4,
}
_BOUNDED: Final = ("chunked", "gate", "lines", "opening", "parser", "partial", "template")


_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) (/[\x21\x22\x24-\x7e]*) HTTP/1\.1")

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [\t \x21-\x7e\x80-\xff]*")

MEMORY_LASTS_HEADS: Final = 2000
"""A parser is kept over so many heads; with the input that it trips over, all of them have to be written down."""

DONE: Final = "done"

Head = TypeVar("Head", bound=RequestHead | AnswerHead)


class Target(Protocol):
    """Something to feed inputs to."""

    def __call__(self, data: bytes) -> int:
        """Read what is in the input; return how many messages were taken.

        Raises:
            Finding: Something is wrong with how. Any other exception is as bad.
        """
        ...


@contextmanager
def small_bounds() -> Iterator[None]:
    """Make the parsers' memories and bounds so small that inputs reach them."""
    modules = [import_module(f"gateway.http1.{name}") for name in _BOUNDED]
    before = [(module, name, getattr(module, name)) for module in modules for name in SMALL if hasattr(module, name)]
    for module, name, _ in before:
        setattr(module, name, SMALL[name])
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def read_by(parse: Callable[[bytes], Head], block: bytes) -> tuple[Head | None, Read]:
    """Parse a head and spell it so that it can be compared."""
    try:
        head = parse(block)
    except GatewayError as error:
        return None, (("error", type(error).__name__), ("detail", error.detail))
    # How others are read says nothing of this one.
    names = sorted(set(head.__slots__) - {"form", "opening"})
    return head, tuple((name, getattr(head, name)) for name in names)


class _Connection(Generic[Head]):
    """Reads the heads of one connection as the proxy does: by how the last one began, else by the parser."""

    def __init__(self, parse: Callable[[bytes], Head]) -> None:
        self._parse = parse
        self._opening: Opening[Any] | None = None

    def __call__(self, block: bytes) -> Head:
        data = block + HEAD_END
        # A block that ends in CR LF is none that a connection would cut out of its bytes.
        is_cut_here = data.find(HEAD_END) == len(block)
        found = self._opening.read(data) if self._opening is not None and is_cut_here else None
        if found is not None:
            require(found[1] == len(data), f"an opening reads to {found[1]} of {len(data)} bytes")
            head: Head = found[0]
        else:
            head = self._parse(block)
            self._opening = head.opening
        return head


class _Memory(Generic[Head]):
    """A parser that is kept over inputs, and what it has seen since it was made."""

    def __init__(self, make: Callable[[], Callable[[bytes], Head]]) -> None:
        self._make = make
        self._seen: list[bytes] = []
        self._parse = make()

    def check(self, block: bytes, expected: Read) -> None:
        if len(self._seen) >= MEMORY_LASTS_HEADS:
            self._seen.clear()
            self._parse = self._make()
        self._seen.append(block)
        read = read_by(self._parse, block)[1]
        if read != expected:
            seen = HEAD_END.join(self._seen)
            raise Finding(f"what was seen before makes a difference:\n  {expected!r}\n  {read!r}", seen)


class Requests:
    """Request heads, one behind the other with an empty line between them."""

    def __init__(self) -> None:
        self._memory = _Memory(lambda: _Connection(RequestParser().parse))
        target = parse_url("http://api.test:8080/v1")
        self._routes = [
            (TargetRoute(with_key(target, "sk-real", KeyStyle("bearer"))), b"/v1", b"Authorization: Bearer sk-real"),
            (TargetRoute(with_key(target, "sk-real", KeyStyle("header", "X-Own"))), b"/v1", b"X-Own: sk-real"),
            (TargetRoute(with_key(parse_url("http://api.test:8080"), "sk-real", KeyStyle("query", "k"))), b"", b""),
        ]

    def __call__(self, data: bytes) -> int:
        """See `Target`."""
        taken = 0
        kept = _Connection(RequestParser().parse)
        for block in data.split(HEAD_END):
            head, expected = read_by(RequestParser().parse, block)
            agree("a parser that has seen the heads before", expected, read_by(kept, block)[1])
            self._memory.check(block, expected)
            self._in_pieces(block, expected, refused=head is None)
            if head is not None:
                taken += 1
                self._against_h11(block, head)
                for route, base, key in self._routes:
                    self._written(route, base, key, RequestParser().parse(block))
        return taken

    def _in_pieces(self, block: bytes, expected: Read, *, refused: bool) -> None:
        """A head that is taken is taken in pieces too; one that is refused on the way is refused as a whole."""
        if not block or block.startswith(CRLF) or len(block) > SMALL["MAX_HEAD_BYTES"]:
            return
        cuts = random.Random(zlib.crc32(block))  # noqa: S311 - no secret comes of it
        partial, at, whole = PartialHead(), 0, None
        raw = block + HEAD_END
        try:
            while whole is None and at < len(raw):
                step = cuts.choice((1, 1, 2, 3, 40))
                whole = partial.feed(raw[at : at + step])
                at += step
        except GatewayError as error:
            require(refused, f"refused only in pieces ({error.detail}): {expected!r}")
            return
        # An empty line in front of the rest of it is no part of a head.
        agree("a head in pieces", whole, raw[:at] if whole is not None else raw)

    def _against_h11(self, block: bytes, head: RequestHead) -> None:
        message = request_by_h11(block)
        agree("h11 reads another start", (head.method, head.target), (message.method, message.target))
        agree("h11 reads other fields", as_h11(head), by_h11(message, CREDENTIALS | {b"host"}))

    def _written(self, route: TargetRoute, base: bytes, key: bytes, head: RequestHead) -> None:
        """What goes upstream has one reading: the same message, under the base path, with one Host and one key."""
        if not head.target.startswith(b"/"):
            return
        fields = pairs((head.lines,))
        if head.target != b"/api" and not head.target.startswith((b"/api/", b"/api?")):
            head.target = b"/api" + head.target
        try:
            written = route.write_head(head, route.start_of(head))
        except BadRequest:
            require(b".." in head.target or b"%2" in head.target, f"a plain path is refused: {head.target!r}")
            return
        message = strictly(written)
        start = _REQUEST_LINE.fullmatch(message.start)
        if start is None:
            raise Finding(f"not a request line: {message.start!r}")
        require(start[1] == head.method and under(start[2], base), f"{message.start!r} from {head.target!r}")
        require(not leaves(start[2][len(base) :]), f"the path leaves its base: {message.start!r}")
        require(start[2].endswith(b"k=sk-real") is (base == b""), f"the key in the query: {message.start!r}")
        ours = [(b"Host", b"api.test:8080")]
        if head.length == CHUNKED:
            ours.append((b"Transfer-Encoding", b"chunked"))
        ours += pairs([key])
        own = key.partition(b":")[0].lower()
        expected = [(name, value) for name, value in fields if name.lower() != own]
        agree("other fields were written", message.fields, [ours[0], *expected, *ours[1:]])
        lengths = message.values(b"content-length")
        require(lengths in ([], [b"%d" % head.length]), f"another length was written: {written!r}")
        require(lengths or head.length in (0, CHUNKED), f"no length was written: {written!r}")


class Answers:
    """Answer heads, one behind the other with an empty line between them."""

    def __init__(self) -> None:
        self._memory = _Memory(lambda: _Connection(AnswerParser().parse))

    def __call__(self, data: bytes) -> int:
        """See `Target`."""
        taken = 0
        kept = _Connection(AnswerParser().parse)
        for block in data.split(HEAD_END):
            head, expected = read_by(AnswerParser().parse, block)
            require(head or expected[0][1] == "UpstreamProtocolError", f"another error: {expected!r}")
            agree("a parser that has seen the heads before", expected, read_by(kept, block)[1])
            self._memory.check(block, expected)
            if head is not None:
                taken += 1
                self._against_h11(block, head)
                self._written(block)
        return taken

    def _against_h11(self, block: bytes, head: AnswerHead) -> None:
        message = answer_by_h11(block)
        agree("h11 reads another status", head.status, message.status_code)
        agree("h11 reads other fields", as_h11(head), by_h11(message, frozenset()))

    def _written(self, block: bytes) -> None:
        """What goes to the client has one reading, whatever version it speaks."""
        head = AnswerParser().parse(block)
        if head.status < 200:
            expected = _without_length(pairs((head.lines,)))
            if head.status == 101:
                expected += [(b"RateLimit", b"r"), (b"Server-Timing", b"t")]
                message = strictly(writer.switch_head(head, b"\r\nRateLimit: r", b"\r\nServer-Timing: t"))
            else:
                message = strictly(writer.interim_head(head))
            agree("another interim answer", message.fields, expected)
            return
        for minor in (0, 1):
            for asked in (True, False):
                head = AnswerParser().parse(block)
                fields = pairs((head.lines,))
                length = framing.answer_length(b"GET", head)
                keep_alive = asked and length != UNTIL_CLOSE and not (length == CHUNKED and minor == 0)
                written = writer.answer_head(
                    head, minor, b"\r\nRateLimit: r", b"\r\nServer-Timing: t", keep_alive=keep_alive
                )
                message = strictly(written)
                start = _STATUS_LINE.fullmatch(message.start)
                require(start is not None and int(start[1]) == head.status, f"another status line: {message.start!r}")
                if head.status == 204:
                    fields = _without_length(fields)
                elif head.length == CHUNKED and minor == 1:
                    fields.append((b"Transfer-Encoding", b"chunked"))
                if not keep_alive:
                    fields.append((b"Connection", b"close"))
                elif minor == 0:
                    fields.append((b"Connection", b"keep-alive"))
                fields += [(b"RateLimit", b"r"), (b"Server-Timing", b"t")]
                agree("another answer", message.fields, fields)


def _without_length(fields: Fields) -> Fields:
    return [(name, value) for name, value in fields if name.lower() != b"content-length"]


class Walked(NamedTuple):
    """What a walker made of a chunked body; of one that it refused, that it did."""

    passed: bytes
    rest: bytes
    end: str
    size: int


class Chunks:
    """Chunked bodies, and what lies behind them."""

    def __call__(self, data: bytes) -> int:
        """See `Target`."""
        cuts = random.Random(zlib.crc32(data))  # noqa: S311 - no secret comes of it
        at = sorted(cuts.randrange(len(data) + 1) for _ in range(cuts.randrange(1, 6)))
        pieces = [data[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True)]
        bytewise = [data[at : at + 1] for at in range(len(data))]
        passed, decoded = (_walk([data], decode=decode) for decode in (False, True))
        for whole, decode in ((passed, False), (decoded, True)):
            for how, cut in (("byte by byte", bytewise), ("in pieces", pieces)):
                walked = _walk(cut, decode=decode, whole=whole)
                if whole.end == walked.end or DONE in {whole.end, walked.end}:
                    agree(how, whole, walked)
                else:  # one has refused what the other must refuse when no more comes
                    ends = {_walk([*each, HEAD_END], decode=decode).end for each in ([data], cut)}
                    agree(how, ends, {"refused"})
        agree("decoding makes a difference", passed[1:], decoded[1:])
        if passed.end != DONE:
            return 0
        agree("the size of the content", passed.size, len(decoded.passed))
        _check_chunks(passed.passed, decoded.passed, data, passed.rest)
        return 1


def _walk(pieces: Sequence[bytes], *, decode: bool, whole: Walked | None = None) -> Walked:
    """Feed a body; where it is known what it is as a whole, `least_left` must never promise more of it.

    What goes on before an error depends on where the pieces end, so it is left out.
    """
    body = ChunkedBody(UpstreamProtocolError, decode=decode)
    passed = rest = b""
    left = sum(map(len, pieces)) - (len(whole.rest) if whole is not None else 0)
    try:
        for piece in pieces:
            if body.done:
                rest += piece
                continue
            forward, behind = body.feed(piece)
            passed += forward
            rest += behind
            left -= len(piece)
            if whole is not None and whole.end == DONE:
                require(body.least_left <= max(left, 0), f"{body.least_left} bytes at least, but there are {left}")
    except UpstreamProtocolError:
        return Walked(b"", b"", "refused", 0)
    return Walked(passed, rest, DONE if body.done else "unfinished", body.seen_bytes)


def _check_chunks(passed: bytes, content: bytes, data: bytes, rest: bytes) -> None:
    """What is passed on reads alike for a strict reader and for h11, and h11 reads the same out of the input."""
    strict, trailers, behind = wire.read_chunks(passed)
    agree("a strict reader reads another body", (strict, behind), (content, b""))
    names = {name.lower() for name, _ in trailers}
    forbidden = DROPPED | CREDENTIALS | {b"trailer"} | (NEVER_NAMED - {b"date"})
    require(not names & forbidden, f"trailers go on: {trailers!r}")
    trailers = [(name, value.rstrip(b" \t")) for name, value in trailers]
    agree("h11 reads another body", chunks_by_h11(passed), (content, trailers, b""))
    read = chunks_by_h11(data)
    if read is not None:  # it takes no white space before an extension
        agree("h11 reads another input", (read[0], read[2]), (content, rest))


TARGETS: Final[dict[str, type[Requests | Answers | Chunks]]] = {
    "heads": Requests,
    "answers": Answers,
    "chunks": Chunks,
}
