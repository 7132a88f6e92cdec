"""Answers that have no body say nothing of one, but for those that stand for an answer that would have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.kit.playbook import Playbook

FRAMING_FIELDS = {b"content-length", b"transfer-encoding"}
FRAMINGS = [
    b"Content-Length: 0",
    b"content-length: 5",
    b"Transfer-Encoding: chunked",
    b"X-No: framing",
]


def get(play: Playbook, method: bytes = b"GET", version: bytes = b"1.1") -> None:
    play.client.sends(play.request(method, b"/api/x", version=version))
    play.upstream.request()


def next_one_is_read_from_where_it_begins(play: Playbook, dials: int = 1) -> None:
    get(play)
    play.upstream.answers(b"next")
    assert play.client.answer().body == b"next"
    assert play.dials == dials


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("around", [b"", b"X-Kept: 1\r\n"])
def test_a_204_leaves_without_framing(play: Playbook, framing: bytes, around: bytes) -> None:
    get(play)
    play.upstream.sends(b"HTTP/1.1 204 No Content\r\n" + around + framing + b"\r\nX-Last: 2\r\n\r\n")
    answer = play.client.answer()
    assert answer.start == b"HTTP/1.1 204 No Content"
    assert not FRAMING_FIELDS & {name.lower() for name in answer.names}
    assert answer.value(b"x-last") == b"2"
    assert (answer.value(b"x-kept") == b"1") is bool(around)
    assert answer.value(b"ratelimit") is not None
    assert play.client.state == "open"
    # A body that is announced may come all the same: it must find no request to be the answer to.
    announced = framing in (b"content-length: 5", b"Transfer-Encoding: chunked")
    assert play.upstream.state == ("aborted" if announced else "open")
    next_one_is_read_from_where_it_begins(play, dials=2 if announced else 1)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_204_to_head_and_to_a_1_0_client_leaves_without_framing(play: Playbook, framing: bytes) -> None:
    for method, version in ((b"HEAD", b"1.1"), (b"GET", b"1.0")):
        get(play, method, version)
        play.upstream.sends(b"HTTP/1.1 204 No Content\r\n" + framing + b"\r\n\r\n")
        assert not FRAMING_FIELDS & {name.lower() for name in play.client.answer(method).names}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("status", [b"103 Early Hints", b"102 Processing", b"100 Continue"])
def test_an_interim_answer_leaves_without_framing(play: Playbook, status: bytes, framing: bytes) -> None:
    get(play)
    play.upstream.sends(b"HTTP/1.1 " + status + b"\r\nLink: </a>\r\n" + framing + b"\r\n\r\n")
    interim = play.client.head()
    assert interim.start == b"HTTP/1.1 " + status
    assert interim.value(b"link") == b"</a>"
    assert not FRAMING_FIELDS & {name.lower() for name in interim.names}
    play.client.got_nothing()
    play.upstream.answers(b"final")
    assert play.client.answer().body == b"final"
    next_one_is_read_from_where_it_begins(play)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("status", [b"200 OK", b"206 Partial Content", b"404 Not Found"])
def test_an_answer_to_head_says_how_long_it_would_be(play: Playbook, status: bytes, version: bytes) -> None:
    get(play, b"HEAD", version)
    play.upstream.sends(b"HTTP/1.1 " + status + b"\r\nContent-Length: 12345\r\n\r\n")
    answer = play.client.answer(b"HEAD")
    assert answer.value(b"content-length") == b"12345"
    assert answer.value(b"transfer-encoding") is None
    play.client.got_nothing()


@pytest.mark.parametrize(
    ("begins", "status"),
    [
        (b"HEAD /api/x HTTP/1.1\r\n\r\n", 400),
        (b"\r\nHEAD /api/x HTTP/1.1\r\nHost: h\r\nX: \x00", 400),
        (b"HEAD /api/" + b"x" * 17_000, 414),
        (b"HEAD /api/x HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 101, 431),
        (b"HEAD /api/x HTTP/1.2\r\nHost: h\r\n\r\n", 505),
        (b"HEAD /api/x HTTP/1.1\r\nHost: h\r\n", 408),
    ],
)
def test_a_refusal_has_no_content_for_head_though_that_cannot_be_read(
    play: Playbook, begins: bytes, status: int
) -> None:
    play.client.sends(begins)
    if status == 408:
        play.pass_time(11)
    answer = play.client.answer(b"HEAD")
    assert (answer.status, answer.value(b"connection")) == (status, b"close")
    assert answer.value(b"content-length") not in (None, b"0")
    play.client.got_nothing()


def test_a_304_says_how_long_it_would_be(play: Playbook) -> None:
    get(play)
    play.upstream.sends(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 12345\r\n\r\n")
    answer = play.client.answer()
    assert (answer.status, answer.value(b"content-length")) == (304, b"12345")
    next_one_is_read_from_where_it_begins(play)
