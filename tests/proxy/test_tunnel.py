"""Upgrades: what is asked of the upstream, when a tunnel begins, and that it carries every byte and end untouched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.proxy.client import MAX_PIPELINED_BYTES
from tests.kit.playbook import KEY, unmeasured

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Client, Playbook

WISH = (b"Connection: Upgrade", b"Upgrade: websocket")
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
LOOKS_LIKE_HTTP = b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
EVERY_BYTE = bytes(range(256))
PIECE = EVERY_BYTE * 40
PIECES = 100
TOTAL = len(PIECE) * PIECES
BOUND = 200_000  # a high-water mark, and a piece or two
IDLE_S = 30.0


def ask(play: Playbook, *lines: bytes, early: bytes = b"", version: bytes = b"1.1") -> None:
    play.client.sends(play.request(b"GET", b"/api/live", *(lines or WISH), version=version) + early)


@pytest.fixture
def joined(play: Playbook) -> Playbook:
    """Return a play whose client and upstream have switched."""
    switch(play)
    return play


def switch(play: Playbook) -> None:
    ask(play)
    play.upstream.head()
    play.upstream.sends(SWITCH)
    assert play.client.head().status == 101


# --- what goes up ----------------------------------------------------------------------------------------------------


def test_a_handshake_goes_up_with_the_key_and_its_101_comes_down_with_the_limits(play: Playbook) -> None:
    ask(play, b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", *WISH, b"Sec-WebSocket-Version: 13")
    play.upstream.got(
        b"GET /v1/live HTTP/1.1\r\nHost: api.test:8080\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n\r\n"
    )
    play.client.got_nothing()
    play.upstream.sends(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nConnection: upgrade, X-Hop\r\nX-Hop: 1\r\n"
        b"Content-Length: 5\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nKeep-Alive: timeout=1\r\n\r\n"
    )
    assert unmeasured(play.client.unread) == (
        b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"Connection: Upgrade\r\nUpgrade: WebSocket\r\n"
        b'RateLimit-Policy: "minute";q=60;w=60\r\nRateLimit: "minute";r=59;t=61\r\n'
        b"Server-Timing: gateway;dur=MS, upstream;dur=MS\r\n\r\n"
    )


@pytest.mark.parametrize(
    "lines",
    [
        (b"Connection: upgrade", b"Upgrade: websocket"),
        (b"UPGRADE: websocket", b"CONNECTION: UPGRADE"),
        (b"Connection: keep-alive, Upgrade", b"Upgrade: websocket"),
        (b"Connection: , X-Mine ,upgrade,", b"Upgrade: websocket", b"X-Mine: 1"),
        (b"Connection: keep-alive", b"Upgrade: websocket", b"Connection: upgrade"),
        (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c, websocket,HTTP/2.0", b"HTTP2-Settings: AAMAAABk"),
        (b"Connection: Upgrade", b"Upgrade: h2c", b"Upgrade: , websocket ,"),
        (b"Connection: Upgrade", b"Upgrade: websocket, not a protocol, a/b/c, \xff"),
        (b"Connection:upgrade", b"Upgrade:   websocket", b"Content-Length:0"),
    ],
)
def test_a_wish_to_upgrade_is_passed_on_in_the_gateways_words(play: Playbook, lines: tuple[bytes, ...]) -> None:
    ask(play, *lines)
    request = play.upstream.request()
    assert request.values(b"connection") == [b"Upgrade"]
    assert request.values(b"upgrade") == [b"websocket"]
    assert not {b"x-mine", b"http2-settings", b"keep-alive"} & {name.lower() for name in request.names}
    play.upstream.sends(SWITCH)
    assert play.client.head().status == 101


def test_the_protocols_offered_are_passed_on_as_they_are_spelled(play: Playbook) -> None:
    ask(play, b"Upgrade: WebSocket, foo/2", b"Connection: Upgrade", b"Upgrade: IRC/6.9")
    assert play.upstream.request().values(b"upgrade") == [b"WebSocket, foo/2, IRC/6.9"]
    play.upstream.sends(SWITCH.replace(b"websocket", b"irc/6.9, FOO/2"))
    assert play.client.head().values(b"upgrade") == [b"irc/6.9, FOO/2"]
    play.client.sends(b"NICK x")
    play.upstream.got(b"NICK x")


ORDINARY = {
    "HTTP/1.0": (b"1.0", b"", WISH),
    "without the connection option": (b"1.1", b"", (b"Upgrade: websocket",)),
    "with another connection option": (b"1.1", b"", (b"Connection: keep-alive, upgrades", b"Upgrade: websocket")),
    "the option alone": (b"1.1", b"", (b"Connection: upgrade",)),
    "with a length": (b"1.1", b"body", (*WISH, b"Content-Length: 4")),
    "chunked": (b"1.1", b"4\r\nbody\r\n0\r\n\r\n", (*WISH, b"Transfer-Encoding: chunked")),
    "chunked, of no content": (b"1.1", b"0\r\n\r\n", (*WISH, b"Transfer-Encoding: chunked")),
    "no protocol": (b"1.1", b"", (b"Connection: upgrade", b"Upgrade: ,")),
    "no name of a protocol": (b"1.1", b"", (b"Connection: upgrade", b"Upgrade: web socket, /1, a//1")),
} | {
    protocol.decode(): (b"1.1", b"", (b"Connection: upgrade, HTTP2-Settings", b"Upgrade: " + protocol))
    for protocol in (
        *(b"h2c", b"H2C", b"h2", b"h2-14", b"h2c-17", b"h2c/1", b"h3", b"h3-29"),
        *(b"HTTP/2.0", b"http/2", b"HTTP/1.1", b"http", b"HTTPS", b"SHTTP/1.3", b"SPDY/3.1", b"TLS/1.0", b"tls"),
    )
}


@pytest.mark.parametrize("case", ORDINARY)
def test_a_request_that_may_not_switch_is_an_ordinary_one(play: Playbook, case: str) -> None:
    version, body, lines = ORDINARY[case]
    ask(play, *lines, early=body, version=version)
    request = play.upstream.request()
    assert not {b"connection", b"upgrade", b"http2-settings"} & {name.lower() for name in request.names}
    play.upstream.answers()
    assert play.client.answer().body == b"hi"


@pytest.mark.parametrize("case", ORDINARY)
def test_a_switch_that_nobody_asked_for_is_no_answer(play: Playbook, case: str) -> None:
    version, body, lines = ORDINARY[case]
    ask(play, *lines, early=body, version=version)
    play.upstream.request()
    protocol = next((line[9:] for line in lines if line.startswith(b"Upgrade: ")), b"websocket")
    play.upstream.sends(SWITCH.replace(b"websocket", protocol) + b"bytes")
    play.client.problem(502, "upstream_protocol")
    assert play.upstream.state == "aborted"
    play.client.sends(b"GET /healthz")
    play.upstream.got_nothing()


@pytest.mark.parametrize(
    "head",
    [
        SWITCH.replace(b"websocket", b"h2c"),
        SWITCH.replace(b"websocket", b"websocket, h2c"),
        SWITCH.replace(b"websocket", b"websocket/13"),
        SWITCH.replace(b"websocket", b","),
        SWITCH.replace(b"Upgrade: websocket\r\n", b""),
        SWITCH.replace(b"Connection: Upgrade\r\n", b""),
        SWITCH.replace(b"Connection: Upgrade", b"Connection: keep-alive"),
        SWITCH.replace(b"HTTP/1.1", b"HTTP/1.0"),
        SWITCH.replace(b"Upgrade: websocket", b"Upgrade : websocket"),
    ],
)
def test_a_switch_to_something_else_is_no_answer(play: Playbook, head: bytes) -> None:
    ask(play, early=b"early")
    play.upstream.head()
    play.upstream.sends(head + b"bytes")
    play.client.problem(502, "upstream_protocol")
    assert play.upstream.state == "aborted"
    play.upstream.got_nothing()


def test_a_switch_written_in_a_way_that_is_legal_but_rare_counts(play: Playbook) -> None:
    ask(play)
    play.upstream.sends(b"HTTP/1.1 101\r\nUpgrade:websocket\r\nCONNECTION:\tx , UPGRADE\t\r\n\r\n")
    assert play.client.head().value(b"upgrade") == b"websocket"
    play.client.sends(b"up")
    play.upstream.head()
    play.upstream.got(b"up")


def test_the_key_in_a_101s_url_is_cut_out(make_play: Callable[..., Playbook]) -> None:
    play = make_play(target_api_auth="query:key")
    ask(play)
    assert play.upstream.head().start == b"GET /v1/live?key=" + KEY.encode() + b" HTTP/1.1"
    play.upstream.sends(SWITCH.replace(b"\r\n\r\n", b"\r\nLink: </v1/live?key=" + KEY.encode() + b">\r\n\r\n"))
    assert play.client.head().value(b"link") == b"</v1/live>"


# --- counted once ----------------------------------------------------------------------------------------------------


def test_a_tunnel_is_counted_once_whatever_it_carries(joined: Playbook) -> None:
    for _ in range(5):
        joined.client.sends(LOOKS_LIKE_HTTP)
        joined.upstream.sends(LOOKS_LIKE_HTTP)
    joined.upstream.got(LOOKS_LIKE_HTTP * 5)
    joined.client.got(LOOKS_LIKE_HTTP * 5)
    assert joined.used() == 1


def test_a_handshake_beyond_the_limit_is_refused_and_sent_nowhere(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="1/minute")
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers()
    play.client.answer()
    play.upstream.request()
    ask(play)
    play.client.problem(429, "rate_limited")
    play.upstream.got_nothing()
    assert (play.dials, play.client.state) == (1, "open")


def test_a_handshake_without_a_token_is_refused_and_sent_nowhere(play: Playbook) -> None:
    play.client.sends(b"GET /api/live HTTP/1.1\r\nHost: h\r\n" + b"\r\n".join(WISH) + b"\r\n\r\n")
    play.client.problem(401, "token_missing")
    assert play.dials == 0


def test_an_endpoint_of_the_gateways_own_switches_to_nothing(play: Playbook) -> None:
    play.client.sends(b"GET /healthz HTTP/1.1\r\nHost: h\r\n" + b"\r\n".join(WISH) + b"\r\n\r\n")
    answer = play.client.answer()
    assert (answer.status, answer.value(b"connection"), answer.value(b"upgrade")) == (200, b"keep-alive", None)


def test_a_handshake_on_a_connection_that_was_closed_meanwhile_is_sent_again_and_counted_once(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers()
    play.client.answer()
    stale = play.upstream
    stale.stops_reading()
    ask(play)
    stale.resets()
    assert play.upstream is not stale
    assert play.upstream.head().value(b"upgrade") == b"websocket"
    play.upstream.sends(SWITCH)
    assert play.client.head().status == 101
    assert play.used() == 2


# --- until the 101 ---------------------------------------------------------------------------------------------------


def test_what_comes_early_waits_for_the_101(play: Playbook) -> None:
    ask(play, early=b"early, ")
    play.client.sends(b"earlier ", b"than it may")
    play.upstream.head()
    play.upstream.got_nothing()
    play.upstream.sends(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
    play.upstream.got_nothing()
    play.upstream.sends(SWITCH + b"at once")
    play.upstream.got(b"early, earlier than it may")
    assert [play.client.head().status for _ in range(3)] == [103, 100, 101]
    play.client.got(b"at once")


def test_what_comes_early_is_bounded(play: Playbook) -> None:
    ask(play)
    play.client.sends(*[PIECE] * PIECES)
    assert play.client.transport.untaken_bytes > TOTAL - MAX_PIPELINED_BYTES - 2 * len(PIECE)
    play.upstream.sends(SWITCH)
    play.upstream.head()
    play.upstream.got(PIECE * PIECES)
    assert play.client.transport.untaken_bytes == 0


def test_what_comes_early_fills_an_upstream_that_does_not_read(play: Playbook) -> None:
    ask(play)
    play.upstream.head()
    play.upstream.stops_reading()
    play.client.sends(*[PIECE] * PIECES)
    play.upstream.sends(SWITCH)
    assert play.upstream.transport.get_write_buffer_size() < BOUND
    assert play.client.transport.untaken_bytes > TOTAL - BOUND
    play.upstream.reads_on()
    play.upstream.got(PIECE * PIECES)


@pytest.mark.parametrize("start", [b"200 OK", b"401 Unauthorized", b"426 Upgrade Required", b"500 Oops"])
def test_an_answer_in_place_of_the_101_makes_what_came_early_the_next_request(play: Playbook, start: bytes) -> None:
    ask(play, early=play.request(b"GET", b"/api/next"))
    play.upstream.head()
    play.upstream.got_nothing()
    assert play.used() == 1
    play.upstream.answers(b"no", start, b"Upgrade: websocket", b"Connection: Upgrade")
    answer = play.client.answer()
    assert (answer.start, answer.body) == (b"HTTP/1.1 " + start, b"no")
    assert (answer.value(b"connection"), answer.value(b"upgrade")) == (None, None)
    next_request = play.upstream.request()
    assert next_request.start == b"GET /v1/next HTTP/1.1"
    assert next_request.value(b"connection") is None
    assert (play.used(), play.dials) == (2, 1)
    play.upstream.answers(b"next")
    assert play.client.answer().body == b"next"


def test_an_answer_in_place_of_the_101_makes_early_bytes_that_are_no_request_a_bad_one(play: Playbook) -> None:
    ask(play, early=b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58\r\n\r\n")
    play.upstream.head()
    play.upstream.answers()
    assert play.client.answer().status == 200
    play.client.problem(400, "bad_request")
    assert play.client.is_ended
    play.upstream.got_nothing()


def test_a_101_that_never_comes_is_a_504(play: Playbook) -> None:
    ask(play, early=b"early")
    play.pass_time(21)
    play.client.problem(504, "upstream_timeout")
    assert play.upstream.state == "aborted"


def test_a_client_that_leaves_before_the_101_takes_its_upstream_along(play: Playbook) -> None:
    ask(play, early=b"early")
    play.upstream.head()
    play.client.resets()
    assert play.upstream.state == "aborted"
    play.upstream.got_nothing()


def test_a_client_that_ends_its_side_before_the_101_is_asked_only_until_then(play: Playbook) -> None:
    ask(play, early=b"all I have")
    play.client.ends()
    play.pass_time(1)
    play.upstream.sends(SWITCH)
    assert [play.client.head().status for _ in range(2)] == [100, 101]
    play.upstream.head()
    play.upstream.got(b"all I have")
    assert play.upstream.state == "half-closed"
    play.pass_time(5)
    play.client.got_nothing()
    play.upstream.sends(b"all you get")
    play.upstream.ends()
    play.client.got(b"all you get")
    assert (play.client.state, play.upstream.state) == ("closed", "closed")


def test_a_client_that_ends_its_side_just_before_the_101_is_asked_nothing(play: Playbook) -> None:
    ask(play)
    play.client.ends()
    play.upstream.sends(SWITCH)
    assert play.client.head().status == 101
    play.pass_time(5)
    play.client.got_nothing()
    assert play.client.state == "open"


UP = b"\x81\x05early" + EVERY_BYTE
DOWN = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + SWITCH + b"\x82\x02hi" + EVERY_BYTE


def check_split(play: Playbook, client: Client, sent: list[bytes], answered: list[bytes]) -> None:
    client.sends(*sent)
    upstream = play.upstream
    assert upstream.head().value(b"upgrade") == b"websocket"
    upstream.got_nothing()
    upstream.sends(*answered)
    assert [client.head().status for _ in range(2)] == [103, 101]
    client.got(b"\x82\x02hi" + EVERY_BYTE)
    upstream.got(UP)
    client.resets()
    assert upstream.state == "aborted"


def test_handshakes_split_at_every_byte(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="1000000")
    whole = play.request(b"GET", b"/api/live", *WISH) + UP
    for at in range(1, len(whole)):
        check_split(play, play.connect(), [whole[:at], whole[at:]], [DOWN])
    for at in range(1, len(DOWN)):
        check_split(play, play.connect(), [whole], [DOWN[:at], DOWN[at:]])


def test_handshakes_byte_by_byte(play: Playbook) -> None:
    whole = play.request(b"GET", b"/api/live", *WISH) + UP
    each_byte = ([data[at : at + 1] for at in range(len(data))] for data in (whole, DOWN))
    check_split(play, play.client, *each_byte)


# --- bytes -----------------------------------------------------------------------------------------------------------


def test_bytes_pass_both_ways_untouched_and_at_once(joined: Playbook) -> None:
    for piece in (EVERY_BYTE, b"\r\n\r\n", b"\x00", LOOKS_LIKE_HTTP, b"HTTP/1.1 101 Again\r\n\r\n", SWITCH, PIECE * 20):
        joined.client.sends(piece)
        joined.upstream.got(piece)
        joined.upstream.sends(piece)
        joined.client.got(piece)
    joined.client.dribbles(EVERY_BYTE)
    joined.upstream.dribbles(EVERY_BYTE)
    joined.upstream.got(EVERY_BYTE)
    joined.client.got(EVERY_BYTE)


def test_a_slow_upstream_slows_the_client_down_and_nothing_else(joined: Playbook) -> None:
    joined.upstream.stops_reading()
    joined.client.sends(*[PIECE] * PIECES)
    assert joined.upstream.transport.get_write_buffer_size() < BOUND
    assert joined.client.transport.untaken_bytes > TOTAL - BOUND
    joined.upstream.sends(PIECE)
    joined.client.got(PIECE)
    joined.upstream.reads_on()
    joined.upstream.got(PIECE * PIECES)
    assert joined.client.transport.untaken_bytes == 0
    joined.client.transport.socket.error = 104
    joined.pass_time(1)
    assert joined.client.state == "open"  # it is read again: nobody else looks for its end


def test_a_slow_client_slows_the_upstream_down_and_nothing_else(joined: Playbook) -> None:
    joined.client.stops_reading()
    joined.upstream.sends(*[PIECE] * PIECES)
    assert joined.client.transport.get_write_buffer_size() < BOUND
    assert joined.upstream.transport.untaken_bytes > TOTAL - BOUND
    joined.client.sends(PIECE)
    joined.upstream.got(PIECE)
    joined.client.reads_on()
    joined.client.got(PIECE * PIECES)
    assert joined.upstream.transport.untaken_bytes == 0


def test_a_client_that_does_not_read_its_101_slows_the_upstream_down(play: Playbook) -> None:
    ask(play)
    play.client.stops_reading()
    play.upstream.sends(SWITCH + PIECE * 10, *[PIECE] * PIECES)
    assert play.client.transport.get_write_buffer_size() < BOUND
    play.client.reads_on()
    assert play.client.head().status == 101
    play.client.got(PIECE * (PIECES + 10))


def test_a_client_full_of_interims_slows_the_upstream_down_from_the_101_on(play: Playbook) -> None:
    ask(play)
    play.client.stops_reading()
    play.upstream.sends(*[b"HTTP/1.1 103 Early Hints\r\nLink: " + b"x" * 9000 + b"\r\n\r\n"] * 10, SWITCH)
    play.upstream.sends(*[PIECE] * PIECES)
    assert play.client.transport.get_write_buffer_size() < BOUND
    play.client.reads_on()
    assert [play.client.head().status for _ in range(11)] == [*[103] * 10, 101]
    play.client.got(PIECE * PIECES)


# --- ends ------------------------------------------------------------------------------------------------------------


def test_a_client_that_ends_its_side_still_gets_what_the_upstream_sends(joined: Playbook) -> None:
    joined.client.sends(b"last")
    joined.client.ends()
    joined.upstream.got(b"last")
    assert (joined.client.state, joined.upstream.state) == ("open", "half-closed")
    joined.pass_time(IDLE_S - 2)  # nobody takes it for a hang-up, and nothing is asked in the middle of its bytes
    joined.client.got_nothing()
    joined.upstream.sends(b"one", b"more")
    joined.client.got(b"onemore")
    joined.upstream.ends()
    assert (joined.client.state, joined.upstream.state) == ("closed", "closed")


def test_an_upstream_that_ends_its_side_still_gets_what_the_client_sends(joined: Playbook) -> None:
    joined.upstream.sends(b"last")
    joined.upstream.ends()
    joined.client.got(b"last")
    assert (joined.client.state, joined.upstream.state) == ("half-closed", "open")
    joined.pass_time(IDLE_S - 2)
    joined.client.sends(b"one", b"more")
    joined.upstream.got(b"onemore")
    joined.client.ends()
    assert (joined.client.state, joined.upstream.state) == ("closed", "closed")


def test_an_end_waits_for_what_was_sent_before_it(joined: Playbook) -> None:
    joined.client.stops_reading()
    joined.upstream.stops_reading()
    joined.client.sends(PIECE)
    joined.client.ends()
    joined.upstream.sends(PIECE * 2)
    joined.upstream.ends()
    assert not joined.client.transport.lost
    assert not joined.upstream.transport.lost
    joined.client.reads_on()
    joined.client.got(PIECE * 2)
    joined.upstream.reads_on()
    joined.upstream.got(PIECE)
    assert (joined.client.state, joined.upstream.state) == ("closed", "closed")


def test_an_end_comes_through_when_the_slower_side_has_caught_up(joined: Playbook) -> None:
    joined.upstream.stops_reading()
    joined.client.sends(*[PIECE] * PIECES)
    joined.client.ends()
    joined.upstream.reads_on()
    joined.upstream.got(PIECE * PIECES)
    assert joined.upstream.state == "half-closed"
    joined.client.stops_reading()
    joined.upstream.sends(*[PIECE] * PIECES)
    joined.upstream.ends()
    joined.client.reads_on()
    joined.client.got(PIECE * PIECES)
    assert (joined.client.state, joined.upstream.state) == ("closed", "closed")


def test_an_upstream_that_ends_right_behind_its_101(play: Playbook) -> None:
    ask(play)
    play.upstream.sends(SWITCH + b"bye")
    play.upstream.ends()
    assert play.client.head().status == 101
    play.client.got(b"bye")
    play.client.ends()
    assert (play.client.state, play.upstream.state) == ("closed", "closed")


@pytest.mark.parametrize("quiet", [True, False])
def test_a_client_that_breaks_breaks_its_upstream(joined: Playbook, *, quiet: bool) -> None:
    if not quiet:
        joined.upstream.stops_reading()
        joined.client.sends(PIECE)
    joined.client.resets()
    assert joined.upstream.state == "aborted"


def test_an_upstream_that_breaks_breaks_its_client(joined: Playbook) -> None:
    joined.upstream.sends(b"half of a")
    joined.upstream.resets()
    assert joined.client.state == "aborted"


def test_a_client_that_has_ended_and_then_breaks_breaks_its_upstream(joined: Playbook) -> None:
    joined.client.ends()
    joined.client.resets()
    assert joined.upstream.state == "aborted"


def test_an_upstream_that_breaks_behind_a_clients_end_breaks_the_client(joined: Playbook) -> None:
    joined.client.ends()
    joined.upstream.resets()
    assert joined.client.state == "aborted"


def test_what_an_upstream_sent_before_its_end_reaches_the_client_though_it_then_breaks(joined: Playbook) -> None:
    joined.client.stops_reading()
    joined.upstream.sends(b"goodbye")
    joined.upstream.ends()
    joined.upstream.resets()  # it has closed, and the client still sends to it
    joined.client.sends(b"not read by anybody")
    joined.client.reads_on()
    joined.client.got(b"goodbye")
    assert joined.client.state == "half-closed"
    joined.client.ends()
    assert joined.client.state == "closed"


def test_what_had_come_before_a_write_failed_reaches_the_client(joined: Playbook) -> None:
    joined.upstream.transport.socket.holds(b"goodbye")
    joined.upstream.resets()
    joined.client.got(b"goodbye")
    assert joined.client.state == "aborted"


def test_a_client_that_breaks_unread_is_found_out(joined: Playbook) -> None:
    joined.upstream.stops_reading()
    joined.client.sends(*[PIECE] * PIECES)
    joined.client.transport.socket.error = 104
    joined.pass_time(0.5)
    assert (joined.client.state, joined.upstream.state) == ("aborted", "aborted")


def test_a_client_that_breaks_behind_its_end_is_found_out(joined: Playbook) -> None:
    joined.client.ends()
    joined.client.transport.socket.error = 104
    joined.pass_time(0.5)
    assert (joined.client.state, joined.upstream.state) == ("aborted", "aborted")


def test_a_connection_that_switched_is_never_used_for_another_request(joined: Playbook) -> None:
    used = joined.upstream
    other = joined.connect()
    other.sends(joined.request(b"GET", b"/api/x"))
    assert joined.upstream is not used
    joined.upstream.answers()
    assert other.answer().body == b"hi"
    used.got_nothing()
    used.ends()
    joined.client.ends()
    other.sends(joined.request(b"GET", b"/api/y"))
    assert other.transport.lost is False
    assert joined.dials == 2  # the second one was kept, the first was not
    used.got_nothing()


# --- time ------------------------------------------------------------------------------------------------------------


def test_a_tunnel_without_a_byte_ends_for_both_sides(joined: Playbook) -> None:
    joined.pass_time(IDLE_S - 1)
    assert joined.client.state == joined.upstream.state == "open"
    joined.pass_time(2)
    assert joined.client.state == joined.upstream.state == "aborted"


@pytest.mark.parametrize("who", ["client", "upstream", "both"])
def test_a_byte_from_either_side_keeps_a_tunnel(joined: Playbook, who: str) -> None:
    for _ in range(10):
        joined.pass_time(IDLE_S - 1)
        if who != "upstream":
            joined.client.sends(b"x")
        if who != "client":
            joined.upstream.sends(b"x")
    assert joined.client.state == joined.upstream.state == "open"
    joined.pass_time(IDLE_S + 1)
    assert joined.client.state == joined.upstream.state == "aborted"


@pytest.mark.parametrize("who", ["client", "upstream"])
def test_a_half_closed_tunnel_without_a_byte_ends_for_both_sides(joined: Playbook, who: str) -> None:
    (joined.client if who == "client" else joined.upstream).ends()
    joined.pass_time(IDLE_S + 1)
    assert joined.client.state == joined.upstream.state == "aborted"


def test_the_time_before_the_101_is_the_answers_and_then_the_tunnels(play: Playbook) -> None:
    ask(play)
    play.upstream.head()
    play.pass_time(19)
    play.upstream.sends(SWITCH)
    assert play.client.head().status == 101
    play.pass_time(IDLE_S - 1)
    assert play.client.state == play.upstream.state == "open"


def test_an_upstream_that_is_only_slow_is_not_idle(joined: Playbook) -> None:
    joined.upstream.stops_reading()
    joined.client.sends(*[PIECE] * 10)
    for _ in range(10):
        joined.pass_time(IDLE_S - 1)
        joined.upstream.reads(1000)
    assert joined.upstream.state == joined.client.state == "open"
    joined.pass_time(3 * IDLE_S)
    assert joined.upstream.state == joined.client.state == "aborted"


def test_a_client_that_is_only_slow_is_not_idle(joined: Playbook) -> None:
    joined.client.stops_reading()
    joined.upstream.sends(*[PIECE] * 10)
    for _ in range(10):
        joined.pass_time(IDLE_S - 1)
        joined.client.reads(1000)
    assert joined.upstream.state == joined.client.state == "open"
    joined.pass_time(3 * IDLE_S)
    assert joined.upstream.state == joined.client.state == "aborted"


def test_an_upstream_that_is_only_slow_with_a_little_is_not_idle(joined: Playbook) -> None:
    for _ in range(3):
        joined.upstream.stops_reading()
        joined.client.sends(PIECE)
        for _ in range(5):
            joined.pass_time(IDLE_S - 1)
            joined.upstream.reads(1000)
        assert joined.upstream.state == joined.client.state == "open"
        joined.upstream.reads_on()
        joined.upstream.got(PIECE)


@pytest.mark.parametrize("who", ["client", "upstream"])
def test_the_time_without_a_byte_begins_when_the_last_one_is_taken(joined: Playbook, who: str) -> None:
    sender, reader = (joined.upstream, joined.client) if who == "client" else (joined.client, joined.upstream)
    reader.stops_reading()
    sender.sends(PIECE * 7)
    joined.pass_time(IDLE_S - 1)
    reader.reads_on()
    joined.pass_time(IDLE_S - 1)
    assert joined.client.state == joined.upstream.state == "open"
    joined.pass_time(2)
    assert joined.client.state == joined.upstream.state == "aborted"


def test_an_upstream_that_does_not_take_the_rest_behind_both_ends_is_left(joined: Playbook) -> None:
    joined.upstream.stops_reading()
    joined.client.sends(PIECE)
    joined.client.ends()
    joined.upstream.ends()
    assert not joined.upstream.transport.lost
    joined.pass_time(3 * IDLE_S)
    assert joined.client.transport.lost
    assert joined.upstream.state == "aborted"


# --- stopping --------------------------------------------------------------------------------------------------------


def drain(play: Playbook) -> None:
    """Do what the gateway does when it is told to stop."""
    play.context.draining = True
    for connection in tuple(play.context.connections):
        play.loop.act(connection.drain)


def test_a_tunnel_is_in_flight_while_the_gateway_stops(joined: Playbook) -> None:
    drain(joined)
    joined.client.sends(b"up")
    joined.upstream.got(b"up")
    joined.upstream.sends(b"down")
    joined.client.got(b"down")
    joined.client.ends()
    joined.upstream.ends()
    assert not joined.context.connections


def test_a_handshake_under_way_still_becomes_a_tunnel_while_the_gateway_stops(play: Playbook) -> None:
    ask(play)
    drain(play)
    play.upstream.head()
    play.upstream.sends(SWITCH)
    assert play.client.head().values(b"connection") == [b"Upgrade"]
    play.client.sends(b"up")
    play.upstream.got(b"up")
