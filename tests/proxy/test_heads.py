"""From bytes to requests: heads in pieces, pipelined requests, and what is no head at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.http1.message import MAX_FIELDS, MAX_LINE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Playbook

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def test_a_request_byte_by_byte_is_one_request(play: Playbook) -> None:
    play.client.dribbles(play.request(b"POST", b"/api/x", b"X-One: 1", body=b"hello"))
    request = play.upstream.request()
    assert request.start == b"POST /v1/x HTTP/1.1"
    assert request.value(b"X-One") == b"1"
    assert request.body == b"hello"
    play.upstream.dribbles(OK)
    assert play.client.answer().body == b"hi"
    assert (play.dials, play.used()) == (1, 1)


@pytest.mark.parametrize("target", [b"/api/x", b"/healthz"])
def test_a_head_cut_anywhere_is_the_same_head(make_play: Callable[..., Playbook], target: bytes) -> None:
    play = make_play(rate_limit="1000/minute")
    request = play.request(b"GET", target, b"X-Odd:no space", b"X-More: 1")
    for cut in range(1, len(request)):
        play.client.sends(request[:cut])
        play.client.got_nothing()
        play.client.sends(request[cut:])
        if target == b"/api/x":
            assert play.upstream.request().names == [b"Host", b"X-Odd", b"X-More", b"Authorization"]
            play.upstream.answers()
        assert play.client.answer().status == 200, f"cut at {cut}: {request[:cut]!r}"


def test_a_head_line_by_line(play: Playbook) -> None:
    play.client.sends(*(line + b"\r\n" for line in play.request(b"GET", b"/api/x").split(b"\r\n")[:-1]))
    assert play.upstream.request().start == b"GET /v1/x HTTP/1.1"
    play.upstream.answers()
    assert play.client.answer().status == 200


def test_pipelined_requests_are_answered_in_order_one_at_a_time(play: Playbook) -> None:
    play.client.sends(b"".join(play.request(b"GET", b"/api/%d" % number) for number in range(3)))
    for number in range(3):
        assert play.upstream.request().start == b"GET /v1/%d HTTP/1.1" % number
        play.upstream.got_nothing()
        play.upstream.answers(b"%d" % number)
        assert play.client.answer().body == b"%d" % number
    assert (play.dials, play.used()) == (1, 3)
    assert play.client.state == "open"


def test_requests_pipelined_behind_bodies(play: Playbook) -> None:
    first = play.request(b"POST", b"/api/1", body=b"one")
    chunks = b"3\r\ntwo\r\n0\r\n\r\n"
    second = play.request(b"POST", b"/api/2", b"Transfer-Encoding: chunked", body=chunks)
    play.client.sends(first + second + play.request(b"GET", b"/api/3"))
    for number, body in ((1, b"one"), (2, b"two"), (3, b"")):
        request = play.upstream.request()
        assert (request.start.split(b" ")[1], request.body) == (b"/v1/%d" % number, body)
        play.upstream.answers(b"%d" % number)
        assert play.client.answer().body == b"%d" % number


def test_endpoints_and_the_target_take_turns(play: Playbook) -> None:
    health = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    play.client.sends(health + play.request(b"GET", b"/api/x") + health)
    assert play.client.answer().body == b'{"status": "ok"}\n'
    play.client.got_nothing()
    play.upstream.answers(b"proxied")
    assert play.client.answer().body == b"proxied"
    assert play.client.answer().body == b'{"status": "ok"}\n'


def test_a_malformed_second_request_does_not_spoil_the_first(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x") + b"GET /api/y HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    play.upstream.request()
    play.client.got_nothing()
    play.upstream.answers(b"first")
    assert play.client.answer().body == b"first"
    refusal = play.client.problem(400, "bad_request")
    assert refusal.value(b"connection") == b"close"
    assert play.client.is_ended
    play.upstream.got_nothing()


def test_what_is_pipelined_too_early_waits_outside(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    one = play.request(b"GET", b"/api/y", b"X-Long: " + b"x" * 7000)
    for _ in range(20):
        play.client.sends(one)
    assert play.client.transport.untaken_bytes > len(one) * 5, "it is all taken into memory"
    play.upstream.request()
    play.upstream.answers()
    assert play.client.answer().status == 200
    for _ in range(20):
        assert play.upstream.request().start == b"GET /v1/y HTTP/1.1"
        play.upstream.answers()
        assert play.client.answer().status == 200
    assert play.client.transport.untaken_bytes == 0


def test_connection_close_is_kept_to_and_nothing_behind_it_is_read(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x", b"Connection: close") + play.request(b"GET", b"/api/y"))
    play.upstream.request()
    play.upstream.answers()
    assert play.client.answer().value(b"connection") == b"close"
    play.upstream.got_nothing()
    assert play.client.is_ended
    assert play.used() == 1


def test_an_empty_line_before_a_request_is_ignored(play: Playbook) -> None:
    play.client.dribbles(b"\r\n" + play.request(b"GET", b"/api/x"))
    assert play.upstream.request().start == b"GET /v1/x HTTP/1.1"
    play.upstream.answers()
    assert play.client.answer().status == 200


def test_empty_lines_without_end_are_refused(play: Playbook) -> None:
    play.client.sends(*[b"\r\n"] * 40)
    assert play.client.problem(400, "bad_request").value(b"connection") == b"close"


H = b"Host: gateway.test\r\n"
MALFORMED: dict[str, tuple[bytes, int]] = {
    "bare LF": (b"GET /api/x HTTP/1.1\n" + H + b"\r\n", 400),
    "bare CR": (b"GET /api/x HTTP/1.1\r\n" + H + b"A: b\rC: d\r\n\r\n", 400),
    "NUL": (b"GET /api/x HTTP/1.1\r\n" + H + b"A: \x00\r\n\r\n", 400),
    "fold": (b"GET /api/x HTTP/1.1\r\n" + H + b"A: b\r\n c\r\n\r\n", 400),
    "fold before the first field": (b"GET /api/x HTTP/1.1\r\n A: b\r\n" + H + b"\r\n", 400),
    "space before the colon": (b"GET /api/x HTTP/1.1\r\n" + H + b"A : b\r\n\r\n", 400),
    "no colon": (b"GET /api/x HTTP/1.1\r\n" + H + b"Ab\r\n\r\n", 400),
    "no name": (b"GET /api/x HTTP/1.1\r\n" + H + b": b\r\n\r\n", 400),
    "no Host": (b"GET /api/x HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (b"GET /api/x HTTP/1.1\r\n" + H + H + b"\r\n", 400),
    "odd Host": (b"GET /api/x HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "Host with a path": (b"GET /api/x HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "Host with a user": (b"GET /api/x HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "two equal lengths": (b"POST /api/x HTTP/1.1\r\n" + H + b"Content-Length: 1\r\n" * 2 + b"\r\nx", 400),
    "a list of lengths": (b"POST /api/x HTTP/1.1\r\n" + H + b"Content-Length: 1, 1\r\n\r\nx", 400),
    "a signed length": (b"POST /api/x HTTP/1.1\r\n" + H + b"Content-Length: +1\r\n\r\nx", 400),
    "a grouped length": (b"POST /api/x HTTP/1.1\r\n" + H + b"Content-Length: 1_0\r\n\r\nx", 400),
    "a huge length": (b"POST /api/x HTTP/1.1\r\n" + H + b"Content-Length: " + b"9" * 19 + b"\r\n\r\nx", 400),
    "no length": (b"POST /api/x HTTP/1.1\r\n" + H + b"Content-Length:\r\n\r\nx", 400),
    "length and chunked": (
        b"POST /api/x HTTP/1.1\r\n" + H + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "chunked in 1.0": (b"POST /api/x HTTP/1.0\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked twice": (b"POST /api/x HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n", 400),
    "another coding": (b"POST /api/x HTTP/1.1\r\n" + H + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "a quoted coding": (b"POST /api/x HTTP/1.1\r\n" + H + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', 400),
    "identity": (b"POST /api/x HTTP/1.1\r\n" + H + b"Transfer-Encoding: identity\r\n\r\n", 400),
    "version 2.0": (b"GET /api/x HTTP/2.0\r\n" + H + b"\r\n", 505),
    "version 1.2": (b"GET /api/x HTTP/1.2\r\n" + H + b"\r\n", 505),
    "version 0.9": (b"GET /api/x\r\n\r\n", 400),
    "lower-case version": (b"GET /api/x http/1.1\r\n" + H + b"\r\n", 400),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "two spaces": (b"GET  /api/x HTTP/1.1\r\n" + H + b"\r\n", 400),
    "a space in the target": (b"GET /api/x y HTTP/1.1\r\n" + H + b"\r\n", 400),
    "a tab for a space": (b"GET\t/api/x HTTP/1.1\r\n" + H + b"\r\n", 400),
    "a space behind the version": (b"GET /api/x HTTP/1.1 \r\n" + H + b"\r\n", 400),
    "a fragment": (b"GET /api/x#y HTTP/1.1\r\n" + H + b"\r\n", 400),
    "raw non-ASCII in the target": (b"GET /api/\xc3\xa9 HTTP/1.1\r\n" + H + b"\r\n", 400),
    "an odd method": (b"GE(T /api/x HTTP/1.1\r\n" + H + b"\r\n", 400),
    "asterisk for GET": (b"GET * HTTP/1.1\r\n" + H + b"\r\n", 400),
    "a target without slash": (b"GET api/x HTTP/1.1\r\n" + H + b"\r\n", 400),
    "a long request line": (b"GET /api/" + b"x" * MAX_LINE_BYTES + b" HTTP/1.1\r\n" + H + b"\r\n", 414),
    "a long field": (b"GET /api/x HTTP/1.1\r\n" + H + b"A: " + b"x" * MAX_LINE_BYTES + b"\r\n\r\n", 431),
    "many fields": (b"GET /api/x HTTP/1.1\r\n" + H + b"A: b\r\n" * MAX_FIELDS + b"\r\n", 431),
    "a head without end": (b"GET /api/x HTTP/1.1\r\n" + H + (b"A: " + b"x" * 1000 + b"\r\n") * 40, 431),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
}
CODES = {
    400: "bad_request",
    414: "target_too_long",
    431: "fields_too_large",
    501: "not_implemented",
    505: "bad_request",
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("how", ["whole", "dribbled"])
def test_what_is_no_request_is_refused_and_the_upstream_sees_nothing_of_it(play: Playbook, case: str, how: str) -> None:
    data, status = MALFORMED[case]
    data = data.replace(H, H + b"X-Api-Key: " + play.token + b"\r\n", 1)
    if how == "dribbled" and len(data) > 2000:
        play.client.sends(*(data[at : at + 700] for at in range(0, len(data), 700)))
    elif how == "dribbled":
        play.client.dribbles(data)
    else:
        play.client.sends(data)
    refusal = play.client.problem(status, CODES[status])
    assert refusal.value(b"connection") == b"close"
    assert play.client.is_ended
    assert play.token not in refusal.body
    # Whatever follows is not taken for a request.
    play.client.sends(play.request(b"GET", b"/api/smuggled"))
    play.client.got_nothing()
    assert (play.dials, play.used()) == (0, 0)


def test_a_line_and_a_head_up_to_the_limit_are_fine(play: Playbook) -> None:
    target = b"/api/" + b"x" * (MAX_LINE_BYTES - len(b"GET /api/ HTTP/1.1"))
    fields = [b"A-%d: " % number + b"x" * (MAX_LINE_BYTES // 4 - len(b"A-%d: " % number)) for number in range(3)]
    play.client.sends(play.request(b"GET", target, *fields))
    request = play.upstream.request()
    assert request.start == b"GET /v1/" + target.removeprefix(b"/api/") + b" HTTP/1.1"
    assert [name + b": " + value for name, value in request.fields[1:-1]] == fields
    play.upstream.answers()
    assert play.client.answer().status == 200


# --- empty lines that are none ---------------------------------------------------------------------------------------


def pieces(data: bytes, cut: str) -> list[bytes]:
    """Cut a request where it may come apart."""
    if cut == "whole":
        return [data]
    if cut == "bytes":
        return [data[at : at + 1] for at in range(len(data))]
    return [data[: int(cut)], data[int(cut) :]]


@pytest.mark.parametrize("cut", ["whole", "bytes", "1", "2", "3"])
@pytest.mark.parametrize(
    "data",
    [
        b"\rX\r\n\r\n",
        b"\rGET /healthz HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\r\r\n\r\n",
        b"\r\n\rX\r\n\r\n",
        b"\r" + b"A" * 10_000,
        b"\rX\r\n\r\n" + b"A" * 200_000,
    ],
)
def test_a_bare_cr_before_a_request_is_refused_at_once(play: Playbook, data: bytes, cut: str) -> None:
    if cut == "bytes":
        data = data[:100]
    play.client.sends(*pieces(data, cut))
    refusal = play.client.problem(400, "bad_request")
    assert refusal.value(b"connection") == b"close"
    assert play.client.is_ended
    assert play.dials == 0
    play.client.sends(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    play.client.got_nothing()


def test_a_bare_cr_behind_a_request_leaves_that_its_answer(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x") + b"\rX\r\n\r\n")
    play.upstream.request()
    play.upstream.answers()
    assert play.client.answer().body == b"hi"
    play.client.problem(400, "bad_request")
    assert play.client.is_ended


@pytest.mark.parametrize("cut", ["whole", "bytes", "1", "2", "3"])
def test_empty_lines_before_a_request_are_still_ignored(play: Playbook, cut: str) -> None:
    play.client.sends(*pieces(b"\r\n\r\nGET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", cut))
    assert play.client.answer().status == 200
    assert play.client.state == "open"
