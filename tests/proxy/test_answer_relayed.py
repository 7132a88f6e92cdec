"""What the client gets of the upstream's answer: everything but the framing of the connection it came on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from gateway.http1.message import MAX_HEAD_BYTES
from tests.kit.playbook import unmeasured

if TYPE_CHECKING:
    from tests.kit.playbook import Playbook

CHUNKS = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"


def get(play: Playbook, method: bytes = b"GET", version: bytes = b"1.1", *lines: bytes) -> None:
    """Ask, and let the upstream have the request."""
    play.client.sends(play.request(method, b"/api/x", *lines, version=version))
    play.upstream.request()


def test_an_answer_in_full(play: Playbook) -> None:
    get(play)
    play.upstream.sends(
        b"HTTP/1.1 201 Created here\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nServer: up\r\nSet-Cookie: a=1\r\n"
        b"set-cookie: b=2\r\nx-ratelimit-remaining: 7\r\nRetry-After: 3\r\nLocation: http://api.test:8080/v1/y\r\n"
        b"Content-Encoding: gzip\r\nEmpty:\r\nX-Utf8: \xc3\xa9\r\nContent-Length: 5\r\n\r\nhello"
    )
    head, _, body = unmeasured(play.client.unread).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[:12] == [
        b"HTTP/1.1 201 Created here",
        b"Date: NOW",
        b"Server: up",
        b"Set-Cookie: a=1",
        b"set-cookie: b=2",
        b"x-ratelimit-remaining: 7",
        b"Retry-After: 3",
        b"Location: http://api.test:8080/v1/y",
        b"Content-Encoding: gzip",
        b"Empty:",
        b"X-Utf8: \xc3\xa9",
        b"Content-Length: 5",
    ]
    assert sorted(lines[12:]) == [
        b'RateLimit-Policy: "minute";q=60;w=60',
        b'RateLimit: "minute";r=59;t=61',
        b"Server-Timing: gateway;dur=MS, upstream;dur=MS",
    ]
    assert body == b"hello"
    assert play.client.state == play.upstream.state == "open"


def test_server_timing_stands_behind_the_upstreams_own(play: Playbook) -> None:
    get(play)
    play.upstream.answers(b"", b"200 OK", b"Server-Timing: db;dur=1", b"Server-Timing: cpu;dur=2")
    timings = play.client.answer().values(b"server-timing")
    assert timings[:2] == [b"db;dur=1", b"cpu;dur=2"]
    assert re.fullmatch(rb"gateway;dur=[0-9]+\.[0-9]{3}, upstream;dur=[0-9]+\.[0-9]{3}", timings[2])
    assert len(timings) == 3


def test_connection_specific_fields_stay_behind(play: Playbook) -> None:
    get(play)
    play.upstream.answers(
        b"",
        b"200 OK",
        b"Connection: X-Hop, keep-alive",
        b"Keep-Alive: timeout=9",
        b"Proxy-Authenticate: Basic",
        b"Upgrade: h2c",
        b"X-Hop: 1",
        b"x-hop: 2",
        b"X-Kept: 3",
    )
    answer = play.client.answer()
    assert [name for name in answer.names if name.lower() in {b"connection", b"keep-alive", b"upgrade", b"x-hop"}] == []
    assert answer.value(b"proxy-authenticate") is None
    assert answer.value(b"x-kept") == b"3"
    get(play)
    assert play.dials == 1


def test_an_upstream_cannot_name_our_fields_in_connection(play: Playbook) -> None:
    get(play)
    play.upstream.answers(b"hi", b"200 OK", b"Connection: RateLimit, Server-Timing, Content-Length, Date")
    answer = play.client.answer()
    assert answer.body == b"hi"
    assert answer.value(b"ratelimit") is not None
    assert answer.value(b"server-timing") is not None


def test_a_connection_that_the_upstream_closes_is_not_kept_but_the_clients_is(play: Playbook) -> None:
    get(play)
    play.upstream.answers(b"hi", b"200 OK", b"Connection: close")
    assert play.client.answer().value(b"connection") is None
    assert play.upstream.state == "aborted"
    get(play)
    assert play.dials == 2
    play.upstream.answers()
    assert play.client.answer().status == 200


@pytest.mark.parametrize("pieces", [1, 3, 100])
def test_a_chunked_answer_goes_on_as_it_comes(play: Playbook, pieces: int) -> None:
    get(play)
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    head = play.client.head()
    assert head.value(b"transfer-encoding") == b"chunked"
    step = -(-len(CHUNKS) // pieces)
    for at in range(0, len(CHUNKS), step):
        play.upstream.sends(CHUNKS[at : at + step])
    play.client.got(CHUNKS)
    get(play)
    assert play.dials == 1


def test_every_event_of_a_stream_leaves_as_it_arrives(play: Playbook) -> None:
    get(play)
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert play.client.head().value(b"content-type") == b"text/event-stream"
    for number in range(5):
        event = b"data: %d\n\n" % number
        chunk = b"%x\r\n" % len(event) + event + b"\r\n"
        play.upstream.sends(chunk)
        play.client.got(chunk)
    play.upstream.sends(b"0\r\n\r\n")
    play.client.got(b"0\r\n\r\n")


def test_trailers_of_the_upstream_reach_the_client_but_for_those_that_frame(play: Playbook) -> None:
    get(play)
    trailers = b"X-Sum: 1\r\nContent-Length: 5\r\nSet-Cookie: a=b\r\n"
    play.upstream.sends(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhi\r\n0\r\n" + trailers + b"\r\n"
    )
    answer = play.client.answer()
    assert (answer.body, answer.trailers) == (b"hi", [(b"X-Sum", b"1")])
    assert play.upstream.state == "open"


def test_an_answer_without_framing_ends_with_both_connections(play: Playbook) -> None:
    get(play)
    play.upstream.sends(b"HTTP/1.1 200 OK\r\n\r\none")
    head = play.client.head()
    assert head.value(b"connection") == b"close"
    play.client.got(b"one")
    play.upstream.sends(b"two")
    play.client.got(b"two")
    assert play.client.state == "open"
    play.upstream.ends()
    assert play.client.state == "closed"
    play.client.got_nothing()


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_an_answer_of_a_1_0_upstream(play: Playbook, version: bytes) -> None:
    get(play, b"GET", version)
    play.upstream.sends(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    answer = play.client.answer()
    assert answer.start == b"HTTP/1.1 200 OK"
    assert answer.body == b"hi"
    assert play.upstream.state == "aborted"  # no keep-alive was said


def test_a_1_0_upstream_may_keep_its_connection(play: Playbook) -> None:
    get(play)
    play.upstream.sends(b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nhi")
    assert play.client.answer().body == b"hi"
    get(play)
    assert play.dials == 1


# --- bodiless answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", [b"Content-Length: 500", b"Transfer-Encoding: chunked", b"X-No: framing"])
@pytest.mark.parametrize(
    ("method", "status"), [(b"HEAD", b"200 OK"), (b"GET", b"204 No Content"), (b"GET", b"304 Not Modified")]
)
def test_an_answer_that_has_no_body_whatever_its_fields_say(
    play: Playbook, method: bytes, status: bytes, framing: bytes
) -> None:
    get(play, method)
    play.upstream.sends(b"HTTP/1.1 " + status + b"\r\n" + framing + b"\r\n\r\n")
    answer = play.client.answer(method)
    assert answer.start == b"HTTP/1.1 " + status
    play.client.got_nothing()
    if b"304" in status or method == b"HEAD":
        assert framing in [name + b": " + value for name, value in answer.fields]
    # The next answer is read from where it begins. Behind a 204 that announces a body, one may come all the same.
    get(play)
    play.upstream.answers(b"next")
    assert play.client.answer().body == b"next"
    assert play.dials == (2 if b"204" in status and not framing.startswith(b"X") else 1)


def test_205_has_the_body_that_it_says(play: Playbook) -> None:
    get(play)
    play.upstream.sends(b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n")
    assert play.client.answer().status == 205
    get(play)
    assert play.dials == 1


def test_a_body_behind_an_answer_to_head_ends_the_upstream_connection(play: Playbook) -> None:
    get(play, b"HEAD")
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    play.client.answer(b"HEAD")
    play.client.got_nothing()
    assert play.upstream.state == "aborted"
    assert play.client.state == "open"


# --- interim answers -------------------------------------------------------------------------------------------------


def test_interim_answers_are_passed_on_with_their_fields(play: Playbook) -> None:
    get(play)
    play.upstream.sends(b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nConnection: x\r\nX: 1\r\n\r\n")
    play.client.got(b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n")
    play.upstream.sends(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 \r\nA: b\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
    answer = play.client.answer()
    assert [interim.start for interim in answer.interims] == [b"HTTP/1.1 102 Processing", b"HTTP/1.1 103 "]
    assert answer.interims[1].fields == [(b"A", b"b")]
    assert answer.status == 204


def test_a_100_of_the_upstream_is_what_the_client_gets(play: Playbook) -> None:
    play.client.sends(play.request(b"PUT", b"/api/x", b"Expect: 100-continue", b"Content-Length: 4"))
    assert play.upstream.head().value(b"expect") == b"100-continue"
    play.client.got_nothing()
    play.upstream.dribbles(b"HTTP/1.1 100 Continue\r\n\r\n")
    play.client.got(b"HTTP/1.1 100 Continue\r\n\r\n")
    play.client.sends(b"body")
    play.upstream.got(b"body")
    play.upstream.answers()
    assert play.client.answer().status == 200
    assert play.client.state == play.upstream.state == "open"


def test_a_refusal_in_place_of_100_costs_no_upload_and_ends_the_upstream_connection(play: Playbook) -> None:
    play.client.sends(play.request(b"PUT", b"/api/x", b"Expect: 100-continue", b"Content-Length: 4"))
    play.upstream.head()
    play.upstream.answers(b"no", b"417 Expectation Failed")
    answer = play.client.answer()
    assert (answer.status, answer.value(b"connection"), answer.body) == (417, b"close", b"no")
    assert play.upstream.state == "aborted"  # a body that is not sent could swallow the next request
    play.client.sends(b"GET ")
    play.upstream.got_nothing()


def test_interim_answers_are_not_for_1_0_clients(play: Playbook) -> None:
    get(play, b"GET", b"1.0", b"Expect: 100-continue")
    play.upstream.sends(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
    play.client.got_nothing()
    play.upstream.answers()
    assert play.client.answer().interims == []


@pytest.mark.parametrize("status", [b"101 Switching Protocols", b"100 Continue"])
def test_interim_answers_that_never_end_or_switch_are_no_answer(play: Playbook, status: bytes) -> None:
    get(play)
    many = 1 if status.startswith(b"101") else 1000
    play.upstream.sends(b"HTTP/1.1 " + status + b"\r\n\r\n" + b"HTTP/1.1 100 Continue\r\n\r\n" * many)
    while play.client.unread.startswith(b"HTTP/1.1 100"):
        play.client.head()
    play.client.problem(502, "upstream_protocol")
    assert play.upstream.state == "aborted"


# --- HTTP/1.0 clients ------------------------------------------------------------------------------------------------


def test_a_chunked_answer_is_decoded_for_a_1_0_client(play: Playbook) -> None:
    get(play, b"GET", b"1.0", b"Connection: keep-alive")
    body = b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nT: u\r\n\r\n"
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    head = play.client.head()
    assert (head.value(b"transfer-encoding"), head.value(b"connection")) == (None, b"close")
    play.upstream.dribbles(body)
    play.client.got(b"hello world")
    assert play.client.state == "closed"
    assert play.upstream.state == "open"  # the upstream's end was seen


def test_a_1_0_client_may_keep_its_connection(play: Playbook) -> None:
    for _ in range(2):
        get(play, b"GET", b"1.0", b"Connection: keep-alive")
        play.upstream.answers()
        assert play.client.answer().value(b"connection") == b"keep-alive"
    get(play, b"GET", b"1.0")
    play.upstream.answers()
    assert play.client.answer().value(b"connection") == b"close"
    assert play.client.state == "closed"


# --- extra bytes, and answers that are none --------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    "body", [b"Content-Length: 2\r\n\r\nhi", b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"]
)
def test_bytes_behind_an_answer_end_the_upstream_connection(play: Playbook, body: bytes, *, at_once: bool) -> None:
    get(play)
    extra = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
    answer = b"HTTP/1.1 200 OK\r\n" + body
    if at_once:
        play.upstream.sends(answer + extra)
    else:
        play.upstream.sends(answer[:-1], answer[-1:] + extra)
    assert play.client.answer().body == b"hi"
    play.client.got_nothing()
    assert play.upstream.state == "aborted"
    get(play)
    assert play.dials == 2
    play.upstream.answers(b"clean")
    assert play.client.answer().body == b"clean"


MALFORMED = {
    "not HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "HTTP/0.9": b"<html>hello</html>\r\n\r\n",
    "HTTP/2": b"HTTP/2 200 OK\r\n\r\n",
    "two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status 600": b"HTTP/1.1 600 Odd\r\n\r\n",
    "status 099": b"HTTP/1.1 099 Odd\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi\r\n\r\n",
    "LF in a field": b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\nContent-Length: 2\r\n\r\nhi",
    "CR in a field": b"HTTP/1.1 200 OK\r\nA: b\rSet-Cookie: x\r\nContent-Length: 2\r\n\r\nhi",
    "CR in the reason": b"HTTP/1.1 200 O\rK\r\nContent-Length: 2\r\n\r\nhi",
    "NUL": b"HTTP/1.1 200 OK\r\nA: \x00\r\nContent-Length: 2\r\n\r\nhi",
    "fold": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\nhi",
    "space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nhi",
    "no colon": b"HTTP/1.1 200 OK\r\nA\r\nContent-Length: 2\r\n\r\nhi",
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    "a list of lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nhi",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nhi",
    "a hexadecimal length": b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nhi",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhi",
    "two codings": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked in 1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk size that is none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhi\r\n0\r\n\r\n",
    "a huge head": b"HTTP/1.1 200 OK\r\nA: " + b"x" * 40_000,
    "a head without end": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 10_000,
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_what_is_no_answer_is_a_502_and_nothing_of_it_is_passed_on(play: Playbook, case: str, version: bytes) -> None:
    get(play, b"GET", version, b"Connection: keep-alive")
    play.upstream.sends(MALFORMED[case])
    refusal = play.client.problem(502, "upstream_protocol")
    assert refusal.value(b"ratelimit") == b'"minute";r=59;t=61'
    play.client.got_nothing()
    assert play.upstream.state == "aborted"
    assert play.client.state == "open"
    get(play)
    assert play.dials == 2
    play.upstream.answers(b"clean")
    assert play.client.answer().body == b"clean"


def test_broken_chunks_in_the_middle_cut_the_answer(play: Playbook) -> None:
    get(play)
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    play.client.head()
    play.upstream.sends(b"2\r\nhi!\r\n0\r\n\r\n")
    assert play.client.state == play.upstream.state == "aborted"
    assert b"0\r\n\r\n" not in play.client.unread


def head_of(size: int) -> bytes:
    lines = [b"HTTP/1.1 200 OK", b"Content-Length: 2", *(b"X-%d: " % number + b"v" * 10_000 for number in range(4))]
    return b"\r\n".join(lines)[:size] + b"\r\n\r\n"


@pytest.mark.parametrize("left", [1, 2, 3, 4, 5])
def test_a_head_of_the_greatest_length_is_an_answer_wherever_it_is_cut(play: Playbook, left: int) -> None:
    head = head_of(MAX_HEAD_BYTES)
    get(play)
    play.upstream.sends(head[:-left], head[-left:] + b"hi")
    answer = play.client.answer()
    assert (answer.status, answer.body) == (200, b"hi")
    assert play.upstream.state == "open"


@pytest.mark.parametrize("left", [1, 2, 3, 4, 5])
def test_a_head_of_one_byte_more_is_none_wherever_it_is_cut(play: Playbook, left: int) -> None:
    head = head_of(MAX_HEAD_BYTES + 1)
    get(play)
    play.upstream.sends(head[:-left], head[-left:] + b"hi")
    play.client.problem(502, "upstream_protocol")
    assert play.upstream.state == "aborted"
