"""Uploads to an upstream that reads slower than the client sends: what rests meanwhile, and who is still there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Playbook, Upstream

PIECE = bytes(range(250)) * 40  # 10 kB
TOTAL = 1_000_000
READ = 256 * 1024  # what one read of a loop's transport may bring
FIRST = (PIECE * 30)[:READ]
REST = [PIECE] * 20


def warm(play: Playbook) -> Upstream:
    """Leave a connection in the pool; return its far end."""
    play.client.sends(play.request(b"GET", b"/api/warm"))
    play.upstream.request()
    play.upstream.answers()
    assert play.client.answer().status == 200
    return play.upstream


def stuck_upload(play: Playbook, size: int = TOTAL) -> Upstream:
    """Leave an upload whose first piece has filled the upstream; nothing of it was read."""
    play.dial_slow = True
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: %d" % size) + FIRST)
    return play.upstream


# --- the first write fills the upstream ------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("connection", ["fresh", "awaited", "pooled", "after a verdict"])
def test_a_first_write_that_fills_the_upstream_pauses_the_client(play: Playbook, connection: str, framing: str) -> None:
    line, first, pieces, end = {
        "length": (b"Content-Length: %d" % (len(FIRST) + len(PIECE) * len(REST)), FIRST, REST, b""),
        "chunked": (
            b"Transfer-Encoding: chunked",
            b"%x\r\n" % len(FIRST) + FIRST + b"\r\n",
            [b"%x\r\n" % len(PIECE) + PIECE + b"\r\n"] * len(REST),
            b"0\r\n\r\n",
        ),
    }[framing]
    if connection == "pooled":
        warm(play).stops_reading()
    play.dial_slow = True
    play.dial_waits = connection == "awaited"
    play.store.holds = connection == "after a verdict"
    play.client.sends(play.request(b"POST", b"/api/x", line) + first)
    if connection == "awaited":
        assert not play.client.transport.is_reading()
        play.dial_now()
    elif connection == "after a verdict":
        assert not play.client.transport.is_reading()
        play.store.decide()
    upstream = play.upstream
    assert not play.client.transport.is_reading()
    filled_bytes = upstream.transport.get_write_buffer_size()
    assert filled_bytes > len(first)  # the head and what was held, in one write
    play.client.sends(*pieces)
    assert play.client.transport.untaken_bytes == sum(map(len, pieces))
    assert upstream.transport.get_write_buffer_size() == filled_bytes
    if end:
        play.client.sends(end)

    upstream.reads_on()
    assert play.client.transport.is_reading()
    assert play.client.transport.untaken_bytes == 0
    assert upstream.head().start == b"POST /v1/x HTTP/1.1"
    upstream.got(first + b"".join(pieces) + end)
    upstream.answers()
    assert play.client.answer().body == b"hi"
    assert play.client.state == upstream.state == "open"
    assert play.dials == 1


def test_a_first_write_that_the_upstream_takes_pauses_nobody(play: Playbook) -> None:
    play.dial_waits = True
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: %d" % TOTAL) + FIRST)
    assert not play.client.transport.is_reading()
    play.dial_now()
    assert play.client.transport.is_reading()
    play.client.sends(*REST)
    play.upstream.head()
    play.upstream.got(FIRST + PIECE * len(REST))


def test_reading_that_rests_for_a_full_pipe_is_not_resumed_by_the_upload_before_it(play: Playbook) -> None:
    upstream = warm(play)
    upstream.stops_reading()
    body = PIECE * 10
    pipelined = [play.request(b"GET", b"/api/%d" % number) for number in range(500)]
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: %d" % len(body)))
    play.client.sends(body + b"".join(pipelined))  # one read: the upload is whole, and more than enough behind it
    assert not play.client.transport.is_reading()
    play.client.sends(*REST)
    upstream.reads_on()
    assert upstream.request().body == body
    assert not play.client.transport.is_reading()
    assert play.client.transport.untaken_bytes == len(PIECE) * len(REST)
    play.client.resets()
    assert upstream.state == "aborted"


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_client_whose_whole_upload_waited_for_a_verdict_is_heard_when_it_leaves(play: Playbook, framing: str) -> None:
    play.store.holds = True
    if framing == "length":
        play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: %d" % len(FIRST)), FIRST)
    else:
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(FIRST), FIRST)
        play.client.sends(play.request(b"POST", b"/api/x", b"Transfer-Encoding: chunked") + chunks)
    play.store.decide()
    play.upstream.request()
    play.client.ends()
    play.client.transport.socket.error = 32  # it has closed: its machine resets what it is sent
    play.pass_time(1)
    assert play.client.transport.lost
    assert play.upstream.state == "aborted"


# --- the client leaves meanwhile -------------------------------------------------------------------------------------


@pytest.mark.parametrize("answered", [False, True])
def test_a_client_that_breaks_while_nothing_is_read_from_it_is_found_out(play: Playbook, *, answered: bool) -> None:
    upstream = stuck_upload(play)
    if answered:
        upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        play.client.head()
        play.client.got(b"half")
    play.pass_time(1)
    assert upstream.state == "open"
    play.client.transport.socket.error = 104  # nobody reads, so only the socket knows
    play.pass_time(1)
    assert play.client.transport.lost
    assert upstream.state == "aborted"
    play.client.got_nothing()
    assert play.used() == 1  # some of it was sent


def test_a_client_that_is_there_is_asked_nothing_while_its_upload_rests(play: Playbook) -> None:
    upstream = stuck_upload(play, len(FIRST) + len(PIECE))
    play.pass_time(10)
    play.client.got_nothing()
    assert play.client.state == upstream.state == "open"
    upstream.reads_on()
    play.client.sends(PIECE)
    assert upstream.request().body == FIRST + PIECE
    upstream.answers()
    assert play.client.answer().interims == []
    assert play.client.state == upstream.state == "open"
    # It is watched no longer: what its socket says is its next read's business.
    play.client.transport.socket.error = 104
    play.pass_time(1)
    assert play.client.state == "open"


def test_a_client_that_is_paused_again_is_watched_again(play: Playbook) -> None:
    upstream = stuck_upload(play)
    upstream.reads_on()
    upstream.stops_reading()
    play.client.sends(*REST)
    assert not play.client.transport.is_reading()
    play.client.transport.socket.error = 104
    play.pass_time(1)
    assert play.client.transport.lost
    assert upstream.state == "aborted"


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_an_upload_whose_last_piece_fills_the_upstream_leaves_nobody_deaf(play: Playbook, how: str) -> None:
    upstream = warm(play)
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: %d" % (2 * len(FIRST))), FIRST)
    upstream.stops_reading()
    play.client.sends(FIRST)
    assert upstream.transport.get_write_buffer_size() == len(FIRST)
    upstream.reads_on()
    assert upstream.request().body == FIRST * 2
    assert play.client.transport.is_reading()
    # So its hang-up is heard while the answer is awaited.
    if how == "FIN":
        play.client.ends()
        play.client.transport.socket.error = 32
        play.pass_time(1)
    else:
        play.client.resets()
    assert play.client.transport.lost
    assert upstream.state == "aborted"


def test_an_upload_whose_last_piece_fills_the_upstream_is_watched_until_then(play: Playbook) -> None:
    upstream = warm(play)
    upstream.stops_reading()
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: %d" % len(FIRST)), FIRST)
    upstream.reads_on()
    upstream.request()
    upstream.answers()
    assert play.client.answer().body == b"hi"
    play.client.transport.socket.error = 104
    play.pass_time(1)
    assert play.client.state == "open"


def test_an_answer_ends_the_watch_of_an_upload_that_the_upstream_never_took(play: Playbook) -> None:
    upstream = warm(play)
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: %d" % (2 * len(FIRST))), FIRST)
    upstream.stops_reading()
    play.client.sends(FIRST)
    upstream.answers()
    play.client.head()
    assert upstream.state == "aborted"
    assert play.client.transport.is_reading()
    play.client.transport.socket.error = 104
    play.pass_time(1)
    assert play.client.state == "open"


# --- a FIN that was there before the answer, and is read after it ----------------------------------------------------


def half_closed_behind_its_upload(play: Playbook) -> Upstream:
    """Leave a client that ended its side behind a whole upload, most of which is not read yet."""
    upstream = stuck_upload(play, len(FIRST) + len(PIECE) * len(REST))
    play.client.sends(*REST)
    play.client.ends()
    assert play.client.transport.untaken_bytes == len(PIECE) * len(REST)
    return upstream


@pytest.mark.parametrize("early", [True, False])
def test_a_fin_behind_a_resting_upload_is_no_hang_up(play: Playbook, *, early: bool) -> None:
    upstream = half_closed_behind_its_upload(play)
    if early:  # the answer begins while the upload rests
        upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234")
        assert play.client.head().status == 200
        play.client.got(b"01234")
    upstream.reads_on()
    assert upstream.request().body == FIRST + PIECE * len(REST)
    if not early:
        upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234")
        play.client.head()
        play.client.got(b"01234")
    play.pass_time(5)
    assert play.client.state == upstream.state == "open"
    upstream.sends(b"56789")
    play.client.got(b"56789")
    assert play.client.is_ended
    assert not play.client.transport.aborted


def test_a_client_that_closed_behind_a_resting_upload_is_still_found_out(play: Playbook) -> None:
    upstream = half_closed_behind_its_upload(play)
    upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234")
    upstream.reads_on()
    play.client.transport.socket.error = 32  # its machine resets what the answer brings
    play.pass_time(1)
    assert play.client.transport.lost
    assert upstream.state == "aborted"


# --- an answer before the upstream has the request -------------------------------------------------------------------


@pytest.mark.parametrize("read", [0, 90_000])
@pytest.mark.parametrize("size", [50_000, 100_000])  # below and above what pauses a transport
@pytest.mark.parametrize("pieces", [0, 1, 2])
def test_a_connection_that_has_not_sent_its_request_is_not_kept(
    play: Playbook, size: int, read: int, pieces: int
) -> None:
    upstream = warm(play)
    upstream.stops_reading()
    if pieces:
        part = b"x" * (size // pieces)
        play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: %d" % size), *[part] * pieces)
    else:
        play.client.sends(play.request(b"POST", b"/api/x", body=b"x" * size))
    if read:
        upstream.reads(min(read, size - 1000))
    assert upstream.transport.get_write_buffer_size() > 0
    upstream.answers(b"early")
    answer = play.client.answer()
    assert (answer.status, answer.body) == (200, b"early")
    assert upstream.state == "aborted"
    other = play.connect()
    other.sends(play.request(b"GET", b"/api/y"))
    assert play.dials == 2
    assert play.upstream.request().start == b"GET /v1/y HTTP/1.1"


def test_a_connection_that_has_sent_it_in_the_end_is_kept(play: Playbook) -> None:
    upstream = warm(play)
    upstream.stops_reading()
    play.client.sends(play.request(b"POST", b"/api/x", body=b"x" * 100_000))
    upstream.reads(90_000)
    upstream.reads_on()
    assert len(upstream.request().body) == 100_000
    upstream.answers()
    assert play.client.answer().status == 200
    assert warm(play) is upstream
    assert play.dials == 1


# --- an answer that has come and is not read yet, while more of the request comes ------------------------------------

LARGE = b"HTTP/1.1 413 Large\r\nContent-Length: 5\r\n\r\nlarge"


def begun_upload(play: Playbook) -> Upstream:
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: 9") + b"abc")
    assert play.upstream.unread.endswith(b"\r\n\r\nabc")
    return play.upstream


@pytest.mark.parametrize("sent", range(len(LARGE) + 1))
@pytest.mark.parametrize("rest", [b"", b"def", b"defghi"])
def test_what_had_come_before_a_write_failed_is_an_answer_as_far_as_it_goes(
    play: Playbook, rest: bytes, sent: int
) -> None:
    upstream = begun_upload(play)
    if rest:
        play.client.sends(rest)
    upstream.transport.socket.holds(LARGE[:sent])
    upstream.resets()
    if sent < LARGE.index(b"large"):
        play.client.problem(502, "upstream_unreachable")
    elif sent < len(LARGE):
        assert play.client.head().status == 413
        play.client.got(LARGE[LARGE.index(b"large") : sent])
        assert play.client.state == "aborted"
    else:
        assert play.client.answer().body == b"large"
    other = play.connect()
    other.sends(play.request(b"GET", b"/api/y"))
    assert play.dials == 2  # what broke is not kept


def test_an_answer_that_its_connection_ends_is_cut_where_a_write_failed(play: Playbook) -> None:
    upstream = begun_upload(play)
    upstream.transport.socket.holds(b"HTTP/1.1 413 Large\r\n\r\nlarge")
    upstream.resets()
    assert play.client.head().status == 413
    assert play.client.state == "aborted"


def test_nothing_is_read_on_behind_a_mistake_in_the_gateway(play: Playbook) -> None:
    """Bytes before it may be missing: what comes then must not pass for the rest."""
    upstream = begun_upload(play)
    upstream.transport.socket.holds(LARGE)
    play.loop.act(upstream.transport.breaks, RuntimeError())
    play.client.problem(502, "upstream_unreachable")


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_what_came_on_a_kept_connection_before_a_request_that_could_not_be_sent_is_no_answer(
    play: Playbook, method: bytes
) -> None:
    upstream = warm(play)
    upstream.transport.socket.holds(b"HTTP/1.1 408 Late\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    play.client.sends(play.request(method, b"/api/x", body=b"{}"))
    upstream.resets()
    if method == b"POST":
        play.client.problem(502, "upstream_unreachable")
    else:
        assert play.upstream.request().body == b"{}"
        play.upstream.answers()
        assert play.client.answer().status == 200


@pytest.fixture
def over_tls(make_play: Callable[..., Playbook]) -> Playbook:
    return make_play(target_api_url="https://api.test:8080/v1")


def test_what_waits_for_an_upstream_over_tls_to_be_heard_is_sent_to_its_last_byte(over_tls: Playbook) -> None:
    play = over_tls
    upstream = begun_upload(play)
    client, before = play.client.transport, upstream.unread
    seen: list[bytes] = []

    def heard_in(turns: int) -> None:
        seen.append(upstream.unread)
        if turns:
            play.loop.call_soon(heard_in, turns - 1)
        else:
            upstream.transport.socket.close()
            upstream.transport.peer_sends(b"HTTP/1.1 103 Early Hints\r\n\r\n")

    def crossing() -> None:
        upstream.transport.socket.holds(b"what was said, in TLS")
        client.peer_sends(b"defghi" + play.request(b"GET", b"/api/next"))
        client.peer_ends()
        play.loop.call_soon(heard_in, 2)

    play.loop.act(crossing)
    assert set(seen) == {before}
    assert upstream.request().body == b"abcdefghi"
    upstream.answers(b"first")
    answer = play.client.answer()
    assert ([interim.status for interim in answer.interims], answer.body) == ([103], b"first")
    assert play.upstream.request().start == b"GET /v1/next HTTP/1.1"
    play.upstream.answers(b"second")
    assert play.client.answer().body == b"second"
    assert play.client.is_ended


def test_what_waits_for_an_upstream_over_tls_to_be_heard_goes_nowhere_if_that_refuses_it(over_tls: Playbook) -> None:
    play = over_tls
    upstream = begun_upload(play)
    before = upstream.unread

    def crossing() -> None:
        upstream.transport.socket.holds(b"what was said, in TLS")
        play.client.transport.peer_sends(b"def")
        play.loop.call_soon(upstream.transport.peer_sends, LARGE)

    play.loop.act(crossing)
    upstream.got(before)
    assert upstream.state == "aborted"
    answer = play.client.answer()
    assert (answer.status, answer.body) == (413, b"large")
    play.client.sends(b"ghi")
    play.pass_time(3)
    assert play.client.is_ended
    assert not play.client.transport.aborted


def test_an_answer_over_tls_that_flows_all_the_time_does_not_hold_up_its_request(over_tls: Playbook) -> None:
    upstream = begun_upload(over_tls)
    upstream.transport.socket.holds(b"what never ends, in TLS")
    over_tls.client.sends(b"defghi")
    assert upstream.request().body == b"abcdefghi"
    upstream.answers()
    assert over_tls.client.answer().status == 200
