"""Cases of heads: parsed and written."""

from __future__ import annotations

import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import h11

from gateway.http1 import writer
from gateway.http1.message import HEAD_END
from gateway.http1.parser import AnswerParser, RequestParser
from perf import messages
from perf.bench import ROUND, SLOW_ROUND, Bench, CheckError, each, expect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.proxy.target import TargetRoute

TOKEN: Final = b"gw_" + b"Q" * 98 + b"." + b"m" * 43
_LIMITS: Final = b'\r\nRateLimit-Policy: "minute";q=60;w=60\r\nRateLimit: "minute";r=%d;t=1'
_TIMING: Final = b"\r\nServer-Timing: gateway;dur=0.%03d, upstream;dur=412.771"


def parse_request() -> Bench:
    """Set up: a canonical request head, as nearly all are."""
    return _parse_request(lambda head: head, ROUND, by_h11=False)


def parse_request_again() -> Bench:
    """Set up: a head that begins as the last one on its connection did."""
    parser, numbers = RequestParser(), messages.numbers()

    def fresh() -> list[bytes]:
        return [messages.request(number, TOKEN) for number in islice(numbers, ROUND)]

    head = parser.parse(messages.request_head(next(numbers), TOKEN))
    while head.opening is None:
        head = parser.parse(messages.request_head(next(numbers), TOKEN))
    opening = head.opening

    def check() -> None:
        number = next(numbers)
        block, expected = messages.request_head(number, TOKEN), parser.parse(messages.request_head(number, TOKEN))
        found = opening.read(block + HEAD_END)
        if found is None:
            raise CheckError("the opening does not take the head")
        expect("the lines passed on", found[0].lines, expected.lines)
        expect("the body's length", found[0].length, expected.length)
        expect("the token", found[0].bearer, TOKEN)
        expect("the head's end", found[1], len(block) + len(HEAD_END))

    return each(fresh, opening.read, check)


def parse_request_by_h11() -> Bench:
    """Set up: a field line without the space behind its colon, which is legal and rare."""
    return _parse_request(lambda head: head.replace(b"X-Request-Id: ", b"X-Request-Id:"), SLOW_ROUND, by_h11=True)


def _parse_request(spell: Callable[[bytes], bytes], operations: int, *, by_h11: bool) -> Bench:
    parser, route, numbers = RequestParser(), _route(), messages.numbers()

    def fresh() -> list[bytes]:
        return [spell(messages.request_head(number, TOKEN)) for number in islice(numbers, operations)]

    def check() -> None:
        number = next(numbers)
        block = spell(messages.request_head(number, TOKEN))
        expect("whether h11 was asked", _runs_h11(partial(parser.parse, block)), by_h11)
        head, expected = parser.parse(block), messages.sent_upstream(number)
        expect("the method", head.method, b"POST")
        expect("the target", head.target, b"/api/chat/completions")
        expect("the token", head.bearer, TOKEN)
        expect("the body's length", head.length, len(expected.body))
        expect("whether the connection persists", head.keep_alive, True)
        (written,) = messages.split(route.write_head(head, route.start_of(head)) + expected.body)
        expect("what goes upstream", written, expected)

    return each(fresh, parser.parse, check)


def parse_answer() -> Bench:
    """Set up: an answer head."""
    parser, numbers = AnswerParser(), messages.numbers()

    def fresh() -> list[bytes]:
        return [messages.answer_head(number) for number in islice(numbers, ROUND)]

    def check() -> None:
        number = next(numbers)
        head, expected = parser.parse(messages.answer_head(number)), messages.sent_to_client(number)
        expect("the status", head.status, 200)
        expect("the body's length", head.length, len(expected.body))
        expect("whether the connection persists", head.keep_alive, True)

    return each(fresh, parser.parse, check)


def write_request() -> Bench:
    """Set up: parsed request heads, each to be written once."""
    parser, route, numbers = RequestParser(), _route(), messages.numbers()

    def fresh() -> list[Any]:
        return [parser.parse(messages.request_head(number, TOKEN)) for number in islice(numbers, ROUND)]

    def check() -> None:
        number = next(numbers)
        head, expected = parser.parse(messages.request_head(number, TOKEN)), messages.sent_upstream(number)
        (written,) = messages.split(route.write_head(head, route.start_of(head)) + expected.body)
        expect("what goes upstream", written, expected)

    return each(fresh, lambda head: route.write_head(head, route.start_of(head)), check)


def write_answer() -> Bench:
    """Set up: parsed answer heads, each to be written once, and the lines that the gateway adds to them."""
    parser, numbers = AnswerParser(), messages.numbers()

    def inputs(number: int) -> tuple[Any, bytes, bytes]:
        return parser.parse(messages.answer_head(number)), _LIMITS % (number % 60), _TIMING % (number % 1000)

    def fresh() -> list[Any]:
        return [inputs(number) for number in islice(numbers, ROUND)]

    def run(prepared: Sequence[Any]) -> None:
        for head, limits, timing in prepared:
            writer.answer_head(head, 1, limits, timing, keep_alive=True)

    def idle(prepared: Sequence[Any]) -> None:
        for _head, _limits, _timing in prepared:
            pass

    def check() -> None:
        number = next(numbers)
        head, limits, timing = inputs(number)
        expected = messages.sent_to_client(number)
        (written,) = messages.split(writer.answer_head(head, 1, limits, timing, keep_alive=True) + expected.body)
        added = {*(limits + timing).split(b"\r\n")[1:]}
        expect("what goes to the client", written, expected._replace(fields=expected.fields | added))

    return Bench(fresh, run, idle, check)


def _route() -> TargetRoute:
    from gateway import Config
    from gateway.proxy.target import TargetRoute

    return TargetRoute(Config(target_api_url=messages.TARGET_URL, target_api_key=messages.KEY).settings.target)


def _runs_h11(function: Callable[[], object]) -> bool:
    """Say whether a call ends up in h11's code."""
    home, files = str(Path(h11.__file__).parent), set()
    sys.setprofile(lambda frame, _event, _argument: files.add(frame.f_code.co_filename))
    try:
        function()
    finally:
        sys.setprofile(None)
    return any(file.startswith(home) for file in files)
