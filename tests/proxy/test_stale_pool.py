"""A kept upstream connection that ends under its second request, at every byte of the request and of the answer.

What both sides saw is one `Seen` for each byte; a test states them all.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from tests.kit.playbook import Incomplete, Playbook, Upstream
from tests.kit.wire import Message, read_body, read_head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIN: Final = "FIN"
RST: Final = "RST"
ENDS = [FIN, RST]
IDEMPOTENT = [b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"]
OTHERS = [b"POST", b"PATCH", b"LOCK", b"get"]

NO_BODY = b"\r\n\r\n"
LENGTH = b"\r\nContent-Length: 7\r\n\r\nabcdefg"
CHUNKED = b"\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\nX-Sum: 7\r\n\r\n"
BODIES = pytest.mark.parametrize("body", [NO_BODY, LENGTH, CHUNKED], ids=["no body", "length", "chunked"])
HOW = pytest.mark.parametrize("how", ENDS)

ANSWERS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nX-Sum: 5\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\nX-Request-Id: 1\r\n\r\n",
    "empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "interim": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
}
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nX-Request-Id: 1\r\n\r\nhello"


class Seen(NamedTuple):
    """What became of one request."""

    client: str
    """`the new answer`, `the old answer`, `502`, or `reset` in the middle of an answer."""
    dials: int
    """How many connections were made for it."""
    copies: int
    """On how many connections any of it was received."""
    charged: int


SENT_AGAIN = Seen("the new answer", dials=1, copies=2, charged=1)
SENT_LATER = Seen("the new answer", dials=1, copies=1, charged=1)
LOST = Seen("502", dials=0, copies=1, charged=1)
LOST_UNSENT = Seen("502", dials=0, copies=0, charged=1)
CUT = Seen("reset", dials=0, copies=1, charged=1)
WHOLE = Seen("the old answer", dials=0, copies=1, charged=1)


def spell(play: Playbook, method: bytes, body: bytes) -> bytes:
    return play.request(method, b"/api/x").removesuffix(NO_BODY) + body


def warm(play: Playbook) -> Upstream:
    """Use a connection once, of a client that is there; it is kept."""
    if play.client.state != "open":
        play.client = play.connect()
    play.client.sends(play.request(b"GET", b"/api/warm"))
    play.upstream.request()
    play.upstream.answers(b"warm")
    assert play.client.answer().body == b"warm"
    return play.upstream


def end(upstream: Upstream, how: str) -> None:
    if how == FIN:
        upstream.ends()
    else:
        upstream.resets()


@functools.cache
def as_sent(method: bytes, body: bytes) -> bytes:
    """What an upstream in good health gets."""
    with contextlib.closing(Playbook()) as play:
        upstream = warm(play)
        play.client.sends(spell(play, method, body))
        return upstream.unread


@pytest.fixture
def play() -> Iterator[Playbook]:
    """One for all bytes of a test: what an exchange leaves over shows in the next one, the last one's in a last."""
    with contextlib.closing(Playbook(rate_limit="1000000/minute")) as playing:
        yield playing
        warm(playing)


def reuse(
    play: Playbook, method: bytes, body: bytes, ending: Callable[[Upstream], None], *, later: bytes = b""
) -> Seen:
    """Send a request on a kept connection, let its upstream do `ending`, and read what comes of it.

    Args:
        play: What was played before is over; its client's connection is used again if it is there.
        method: Of the request.
        body: The end of its head, and what the client sends at first of its body.
        ending: What the upstream does. It reads only what it says.
        later: What the client still sends when the upstream has ended.
    """
    stale = warm(play)
    dials, used = play.dials, play.used()
    stale.stops_reading()
    request = spell(play, method, body)
    play.client.sends(request)
    ending(stale)
    assert stale.transport.lost
    received = stale.unread
    if later and not play.client.transport.lost:
        play.client.sends(later)
    dialled = play.dials - dials
    whole = as_sent(method, body)
    assert whole.startswith(received)
    if dialled:
        play.upstream.got(whole)
        play.upstream.answers(b"" if method == b"HEAD" else b"again", b"201 Created")
    return Seen(client_saw(play, method), play.dials - dials, bool(received) + dialled, play.used() - used)


def client_saw(play: Playbook, method: bytes) -> str:
    client = play.client
    if client.transport.aborted:
        assert not reads_whole(client.unread, method), "a cut answer looks whole"
        return "reset"
    message = client.answer(method)
    client.got_nothing()
    if message.status == 502:
        assert message.value(b"x-gateway-error") == b"upstream_unreachable"
        return "502"
    if message.status == 201:
        assert message.body == (b"" if method == b"HEAD" else b"again")
        return "the new answer"
    assert message.status in {200, 204}
    return "the old answer"


def reads_whole(data: bytes, method: bytes, *, ended: bool = False) -> bool:
    """Whether these bytes are a whole final answer. `ended`: an orderly end of the connection is behind them."""
    try:
        message, data = final_head(data)
        if method != b"HEAD" and message.status != 204:
            read_body(message, data, until_close=ended)
    except Incomplete:
        return False
    return True


def final_head(data: bytes) -> tuple[Message, bytes]:
    message, data = read_head(data)
    while message.status < 200:
        message, data = read_head(data)
    return message, data


# --- it ends while it reads the request ------------------------------------------------------------------------------


def after_reading(size: int, how: str) -> Callable[[Upstream], None]:
    def ending(upstream: Upstream) -> None:
        upstream.reads(size)
        end(upstream, how)

    return ending


def at_every_byte(play: Playbook, method: bytes, body: bytes, how: str, *, later: bytes = b"") -> dict[int, Seen]:
    size = len(as_sent(method, body))
    return {read: reuse(play, method, body, after_reading(read, how), later=later) for read in range(size + 1)}


@HOW
@BODIES
@pytest.mark.parametrize("method", IDEMPOTENT)
def test_an_idempotent_request_is_sent_again_whole_whatever_was_read_of_it(
    play: Playbook, method: bytes, body: bytes, how: str
) -> None:
    seen = at_every_byte(play, method, body, how)
    assert seen == {**dict.fromkeys(seen, SENT_AGAIN), 0: SENT_LATER}


@HOW
@BODIES
@pytest.mark.parametrize("method", OTHERS)
def test_any_other_request_is_never_sent_again_once_a_byte_of_it_has_left(
    play: Playbook, method: bytes, body: bytes, how: str
) -> None:
    seen = at_every_byte(play, method, body, how)
    # After a reset the transport has dropped its buffer: nobody can say that nothing had left.
    nothing_left = SENT_LATER if how == FIN else LOST_UNSENT
    assert seen == {**dict.fromkeys(seen, LOST), 0: nothing_left}


@HOW
@pytest.mark.parametrize("method", [b"PUT", b"POST", b"DELETE", b"GET"])
@pytest.mark.parametrize(
    ("body", "later"),
    [(b"\r\nContent-Length: 7\r\n\r\nabc", b"defg"), (CHUNKED[:-14], CHUNKED[-14:])],
    ids=["length", "chunked"],
)
def test_a_request_that_is_still_coming_is_never_sent_again(
    play: Playbook, method: bytes, body: bytes, later: bytes, how: str
) -> None:
    seen = at_every_byte(play, method, body, how, later=later)
    assert seen == {**dict.fromkeys(seen, LOST), 0: LOST_UNSENT}


@HOW
def test_a_request_that_no_buffer_holds_is_sent_again_from_its_first_byte(play: Playbook, how: str) -> None:
    content = bytes(range(256)) * 1024
    body = b"\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    for read in (1, 65_536, 200_000, len(content)):
        assert reuse(play, b"PUT", body, after_reading(read, how)) == SENT_AGAIN
        assert reuse(play, b"POST", body, after_reading(read, how)) == LOST


@HOW
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_a_new_connection_is_no_reason_to_send_again(method: bytes, how: str) -> None:
    for read in range(len(as_sent(method, LENGTH)) + 1):
        with contextlib.closing(Playbook()) as play:
            play.dial_slow = True
            play.client.sends(spell(play, method, LENGTH))
            after_reading(read, how)(play.upstream)
            play.client.problem(502, "upstream_unreachable")
            assert (play.dials, play.used()) == (1, 1)


@HOW
def test_nothing_is_sent_a_third_time_whatever_was_read_of_the_second(how: str) -> None:
    request = as_sent(b"PUT", LENGTH)
    for read in range(len(request) + 1):
        with contextlib.closing(Playbook()) as play:
            stale = warm(play)
            play.dial_slow = True
            play.client.sends(spell(play, b"PUT", LENGTH))
            end(stale, how)
            play.upstream.reads(read)
            play.upstream.got(request[:read])
            end(play.upstream, how)
            play.client.problem(502, "upstream_unreachable")
            assert (play.dials, play.used()) == (2, 2)


@HOW
@pytest.mark.parametrize("first", ["the end", "the body"])
def test_the_end_and_the_rest_of_the_body_in_one_turn(first: str, how: str) -> None:
    for method in (b"PUT", b"POST"):
        with contextlib.closing(Playbook()) as play:
            stale = warm(play)
            play.client.sends(spell(play, method, LENGTH)[:-3])
            acts: list[Callable[[], None]] = [
                stale.transport.peer_ends if how == FIN else stale.transport.peer_resets,
                functools.partial(play.client.transport.peer_sends, LENGTH[-3:]),
            ]
            for act in acts if first == "the end" else reversed(acts):
                play.loop.call_soon(act)
            play.loop.settle()
            play.client.problem(502, "upstream_unreachable")
            assert as_sent(method, LENGTH).startswith(stale.unread)
            assert (play.dials, play.used()) == (1, 2)


@HOW
def test_what_was_pipelined_behind_it_waits_for_its_second_try(how: str) -> None:
    for read in range(len(as_sent(b"GET", NO_BODY)) + 1):
        with contextlib.closing(Playbook()) as play:
            stale = warm(play)
            stale.stops_reading()
            play.client.sends(spell(play, b"GET", NO_BODY) + play.request(b"POST", b"/api/y", body=b"once"))
            after_reading(read, how)(stale)
            assert play.upstream.request().start == b"GET /v1/x HTTP/1.1"
            play.upstream.got_nothing()
            play.upstream.answers(b"first")
            assert play.upstream.request().body == b"once"
            play.upstream.answers(b"second")
            assert [play.client.answer().body, play.client.answer().body] == [b"first", b"second"]
            assert (play.dials, play.used()) == (2, 3)


# --- it ends while it answers ----------------------------------------------------------------------------------------


def after_sending(answer: bytes, how: str, *, byte_by_byte: bool = False) -> Callable[[Upstream], None]:
    """Read the request, send this much of an answer, and end."""

    def ending(upstream: Upstream) -> None:
        upstream.reads_on()
        if byte_by_byte:
            upstream.dribbles(answer)
        elif answer:
            upstream.sends(answer)
        end(upstream, how)

    return ending


def expected(method: bytes, sent: bytes, *, ended: bool = False) -> Seen:
    if not sent:
        return SENT_AGAIN if method in IDEMPOTENT else LOST
    if reads_whole(sent, method, ended=ended):
        return WHOLE
    try:
        final_head(sent)
    except Incomplete:
        return LOST
    return CUT


@HOW
@pytest.mark.parametrize("byte_by_byte", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT", b"POST", b"DELETE"])
@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_cut_at_any_byte_never_looks_whole(
    play: Playbook,
    kind: str,
    method: bytes,
    byte_by_byte: bool,  # noqa: FBT001
    how: str,
) -> None:
    answer = ANSWERS[kind]
    if method == b"HEAD":
        answer = answer[: answer.rindex(b"\r\n\r\n") + 4] if kind != "chunked" else answer[: answer.index(b"2\r\nhe")]
    body = LENGTH if method in {b"PUT", b"POST"} else NO_BODY
    seen, right = {}, {}
    for size in range(len(answer) + 1):
        seen[size] = reuse(play, method, body, after_sending(answer[:size], how, byte_by_byte=byte_by_byte))
        right[size] = expected(method, answer[:size])
    assert seen == right
    assert set(right.values()) >= {WHOLE, LOST}


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_an_answer_that_its_connection_ends_is_whole_only_after_an_orderly_end(play: Playbook, method: bytes) -> None:
    head_end = len(UNTIL_CLOSE) - len(b"hello")
    for size in range(len(UNTIL_CLOSE) + 1):
        sent = UNTIL_CLOSE[:size]
        assert reuse(play, method, NO_BODY, after_sending(sent, FIN)) == expected(method, sent, ended=size >= head_end)
        assert reuse(play, method, NO_BODY, after_sending(sent, RST)) == expected(method, sent)


@HOW
@pytest.mark.parametrize("method", [b"PUT", b"POST"])
def test_an_answer_to_a_request_that_is_still_coming_is_whole_or_cut_or_a_502(
    play: Playbook, method: bytes, how: str
) -> None:
    answer = ANSWERS["length"]
    body = b"\r\nContent-Length: 7\r\n\r\nabc"
    seen, right = {}, {}
    for size in range(len(answer) + 1):
        seen[size] = reuse(play, method, body, after_sending(answer[:size], how), later=b"defg")
        right[size] = expected(method, answer[:size]) if size else LOST
    assert seen == right


# --- it ends before it is used ---------------------------------------------------------------------------------------


@HOW
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_one_that_ends_right_before_a_request_is_not_used_for_it(method: bytes, how: str) -> None:
    with contextlib.closing(Playbook()) as play:
        stale = warm(play)
        request = spell(play, method, LENGTH)
        # In one turn of the loop: the request comes before the transport has told of the end.
        play.loop.call_soon(stale.transport.peer_ends if how == FIN else stale.transport.peer_resets)
        play.loop.call_soon(play.client.transport.peer_sends, request)
        play.loop.settle()
        stale.got_nothing()
        assert play.upstream.request().body == b"abcdefg"
        play.upstream.answers()
        assert play.client.answer().status == 200
        assert (play.dials, play.used()) == (2, 2)
