"""Clients that want too much before anybody knows who they are: little of it is kept, and little is done for it."""

from __future__ import annotations

import gc
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from gateway.http1.message import MAX_HEAD_BYTES
from gateway.proxy.client import MAX_PIPELINED_BYTES, REQUESTS_A_TURN
from gateway.proxy.lingering import MAX_LINGER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kit.playbook import Playbook

READS = [1000, 256 * 1024]  # a small segment, and the most that one read of a loop's transport brings
ENOUGH_BYTES = 3 * MAX_LINGER_BYTES
START = b"GET /api/x HTTP/1.1\r\nHost: h\r\n"
UPLOAD = b"POST /api/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer gw_stolen\r\n"
REGISTER = b"POST /register HTTP/1.1\r\nHost: h\r\n"
FOREIGN = b"POST http://other.test/ HTTP/1.1\r\nHost: other.test\r\n"
UPGRADE = b"Connection: upgrade\r\nUpgrade: "
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"

ENDLESS: dict[str, tuple[bytes, bytes, int, str]] = {
    "a request line": (b"GET /", b"x", 414, "target_too_long"),
    "a method": (b"", b"GET", 414, "target_too_long"),
    "a field line": (START + b"A: ", b"x", 431, "fields_too_large"),
    "field lines": (START, b"A: b\r\n", 431, "fields_too_large"),
    "long field lines": (START, b"A: " + b"x" * 10_000 + b"\r\n", 431, "fields_too_large"),
    "folds": (START + b"A: b\r\n", b" c\r\n", 431, "fields_too_large"),
    "empty lines": (b"", b"\r\n", 400, "bad_request"),
    "text": (b"", b"to be or not to be, ", 414, "target_too_long"),
    "a body behind a bad token": (UPLOAD + b"Content-Length: 999999999999\r\n\r\n", b"x", 401, "token_invalid"),
    "a chunk behind a bad token": (UPLOAD + CHUNKED + b"fffffffff\r\n", b"x", 401, "token_invalid"),
    "chunks behind a bad token": (UPLOAD + CHUNKED, b"1\r\nx\r\n", 401, "token_invalid"),
    "a body to an endpoint": (
        b"POST /register HTTP/1.1\r\nHost: h\r\nContent-Length: 999999999999\r\n\r\n",
        b"x",
        413,
        "body_too_large",
    ),
    "chunks to no endpoint": (b"POST /x HTTP/1.1\r\nHost: h\r\n" + CHUNKED, b"1\r\nx\r\n", 413, "body_too_large"),
}


def held_bytes(play: Playbook) -> int:
    """Count the bytes that the gateway's own objects keep for its only client."""
    (connection,) = play.context.connections
    seen = {id(play.context)}
    found: list[object] = [connection]
    count = 0
    while found:
        item = found.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, bytes | bytearray):
            count += len(item)
        elif type(item).__module__.startswith("gateway.") or isinstance(item, list | tuple | dict | set):
            found += gc.get_referents(item)
    return count


def pieces(first: bytes, again: bytes, size: int) -> Iterator[bytes]:
    """Cut an endless stream in pieces of a size."""
    data = first + again * (size // len(again) + 2)
    while True:
        yield data[:size]
        data = data[size:]
        data += again * ((size - len(data)) // len(again) + 2)


@pytest.mark.parametrize("read_bytes", READS)
@pytest.mark.parametrize("case", ENDLESS)
def test_what_has_no_end_is_answered_and_closed_and_not_kept(
    play: Playbook, case: str, read_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Behind a request 64 times as much is dropped, which would take as many times as long: see test_admission.py.
    monkeypatch.setattr("gateway.proxy.lingering.MAX_UPLOAD_LINGER_BYTES", MAX_LINGER_BYTES)
    first, again, status, code = ENDLESS[case]
    stream = pieces(first, again, read_bytes)
    sent_bytes = most_bytes = taken_bytes = 0
    while not play.client.transport.is_closing() and sent_bytes < ENOUGH_BYTES:
        play.client.sends(next(stream))
        sent_bytes += read_bytes
        most_bytes = max(most_bytes, held_bytes(play) if play.context.connections else 0)
        if not play.client.unread:
            taken_bytes = sent_bytes
    refusal = play.client.problem(status, code)
    assert refusal.value(b"connection") == b"close"
    # No more was read than could still have become something; what is read behind the answer is dropped.
    assert taken_bytes <= MAX_HEAD_BYTES + read_bytes
    assert most_bytes <= MAX_HEAD_BYTES + len(first)
    assert sent_bytes <= MAX_LINGER_BYTES + MAX_HEAD_BYTES + 2 * read_bytes
    assert play.client.state == "closed"
    assert (play.dials, play.used()) == (0, 0)


def test_refusals_that_nobody_reads_do_not_pile_up(play: Playbook) -> None:
    play.client.stops_reading()
    for piece in pieces(b"", b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n", 10_000):
        play.client.sends(piece)
        if not play.client.transport.is_reading():
            break
    assert held_bytes(play) <= MAX_PIPELINED_BYTES + 10_000
    assert play.client.transport.get_write_buffer_size() < 200_000
    play.pass_time(200)
    assert play.client.transport.lost


COUNT = 1000
NO_TOKEN = b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n"


def test_refusals_of_one_read_are_spread_over_turns_of_the_loop(play: Playbook) -> None:
    answered = [0]

    def look() -> None:
        answered.append(play.client.unread.count(b"HTTP/1.1 401 "))
        if answered[-1] < COUNT and len(answered) < COUNT:
            play.loop.call_soon(look)

    def send() -> None:
        play.client.transport.peer_sends(NO_TOKEN * COUNT)
        look()

    play.loop.act(send)
    assert answered[-1] == COUNT
    assert max(later - before for before, later in pairwise(answered)) <= REQUESTS_A_TURN
    assert play.client.state == "open"


@pytest.mark.parametrize("cut", [1, 3])
def test_a_client_that_ends_its_side_behind_many_requests_gets_all_their_answers(play: Playbook, cut: int) -> None:
    sent = NO_TOKEN * (COUNT // 10)

    def send() -> None:
        for at in range(0, len(sent), len(sent) // cut + 1):
            play.client.transport.peer_sends(sent[at : at + len(sent) // cut + 1])
        play.client.transport.peer_ends()

    play.loop.act(send)
    assert play.client.unread.count(b"HTTP/1.1 401 ") == COUNT // 10
    assert play.client.state == "closed"


def test_so_does_one_that_reads_them_late(play: Playbook) -> None:
    play.client.stops_reading()
    play.client.sends(NO_TOKEN * COUNT)
    play.client.ends()
    assert play.client.transport.get_write_buffer_size() < 200_000
    play.client.reads_on()
    assert play.client.unread.count(b"HTTP/1.1 401 ") == COUNT
    assert play.client.state == "closed"


def test_one_that_leaves_among_many_requests_is_gone(play: Playbook) -> None:
    def send() -> None:
        play.client.transport.peer_sends(NO_TOKEN * COUNT)
        play.client.transport.peer_resets()

    play.loop.act(send)
    assert play.client.transport.lost
    assert not play.context.connections


def test_a_stop_among_many_requests_is_told_to_their_client(play: Playbook) -> None:
    def send() -> None:
        play.client.transport.peer_sends(NO_TOKEN * COUNT)
        play.context.draining = True
        for connection in tuple(play.context.connections):
            connection.drain()

    play.loop.act(send)
    assert play.client.is_ended
    answers = play.client.unread.split(b"HTTP/1.1 401 ")[1:]
    assert len(answers) == REQUESTS_A_TURN + 1
    assert [b"Connection: close" in answer for answer in answers] == [False] * REQUESTS_A_TURN + [True]


# --- work ------------------------------------------------------------------------------------------------------------


def lines(count: int) -> bytes:
    return b"".join(b"A%d: b\r\n" % number for number in range(count))


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


BOMBS: dict[str, tuple[int, Callable[[int], list[bytes]]]] = {
    "a request line in single bytes": (6000, lambda size: cut(b"GET /" + b"x" * size, 1)),
    "a field in single bytes": (6000, lambda size: cut(START + lines(80) + b"X: " + b"x" * size, 1)),
    "field lines in single bytes": (500, lambda count: cut(START + lines(count), 1)),
    "a head of many lines": (10_000, lambda count: [START + lines(count) + b"\r\n"]),
    "many folds": (10_000, lambda count: [START + b"A: b\r\n" + b" c\r\n" * count + b"\r\n"]),
    "many options": (1500, lambda count: [START + b"Connection: " + b"a," * count + b"b\r\n" + lines(90) + b"\r\n"]),
    "many protocols": (1500, lambda count: [START + UPGRADE + b"a," * count + b"b\r\n\r\n"]),
    "many codings": (1500, lambda count: [START + b"TE: " + b"a;q=0," * count + b"b\r\n\r\n"]),
    "many dot segments": (2000, lambda count: [b"GET /api/" + b"a/../" * count + b"x HTTP/1.1\r\nHost: h\r\n\r\n"]),
    "many empty lines": (10_000, lambda count: [b"\r\n" * count]),
    "many requests": (1000, lambda count: cut(b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n" * count, 60_000)),
    "many requests in single bytes": (100, lambda count: cut(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n" * count, 1)),
    "tiny chunks": (20_000, lambda count: cut(b"1\r\nx\r\n" * count, 60_000)),
    "tiny chunks in single bytes": (1000, lambda count: cut(b"1\r\nx\r\n" * count, 1)),
    "long chunk lines in single bytes": (5, lambda count: cut((b"1;" + b"a=b;" * 200 + b"c\r\nx\r\n") * count, 1)),
    "trailers in single bytes": (3000, lambda size: cut(b"0\r\n" + lines(80) + b"X: " + b"x" * size, 1)),
}


def work(play: Playbook, sent: list[bytes], *, upload: bool) -> int:
    """Count the calls, into Python and into C, that the gateway makes for what a client sends."""
    calls = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    def send() -> None:
        for piece in sent:
            play.client.transport.peer_sends(piece)

    if upload:
        play.client.sends(play.request(b"POST", b"/api/x", b"Transfer-Encoding: chunked"))
    before = sys.getprofile()
    play.loop.call_soon(send)
    sys.setprofile(count)
    try:
        play.loop.settle()
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize("bomb", BOMBS)
def test_twice_as_much_is_at_most_twice_the_work(make_play: Callable[..., Playbook], bomb: str) -> None:
    size, make = BOMBS[bomb]
    upload = "chunk" in bomb or "trailers" in bomb
    once, twice = (work(make_play(), make(factor * size), upload=upload) for factor in (1, 2))
    assert twice <= 2.1 * once + 100
    # And it is as little as that: a few calls for each thing that has to be looked at.
    things = len(make(size)) + (size if "single bytes" not in bomb else 0)
    assert once <= 100 * things + 1000


@pytest.mark.parametrize("start", [UPLOAD, REGISTER, FOREIGN])
def test_tiny_chunks_of_a_stranger_are_little_work(play: Playbook, start: bytes) -> None:
    """As many as fit into one read: to find out where each of them ends would hold everybody else up."""
    calls = work(play, [start + CHUNKED + b"1\r\nx\r\n" * 40_000 + b"0\r\n\r\n"], upload=False)
    assert calls < 1500
    play.client.head()
    assert play.client.is_ended
