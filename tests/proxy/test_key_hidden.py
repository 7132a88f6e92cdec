"""A key that goes upstream stays there, and stays the only one: nothing of an answer brings it back to the client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kit.playbook import KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Playbook
    from tests.kit.wire import Message

PAIR = b"key=" + KEY.encode()


@pytest.fixture
def keyed(make_play: Callable[..., Playbook]) -> Playbook:
    return make_play(target_api_auth="query:key")


def redirected(play: Playbook, target: bytes, *lines: bytes) -> Message:
    """Ask, let the upstream answer with these lines, and see that the key is in none of what the client gets."""
    play.client.sends(play.request(b"GET", target))
    play.upstream.answers(b"", b"301 Moved Permanently", *lines)
    assert KEY.encode() not in play.client.unread
    return play.client.answer()


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        (b"/v1/x/?%b", b"/v1/x/"),
        (b"/v1/x/?a=1&%b", b"/v1/x/?a=1"),
        (b"/v1/x/?a=1&%b&b=2", b"/v1/x/?a=1&b=2"),
        (b"/v1/x/?%b&b=2", b"/v1/x/?b=2"),
        (b"/v1/x/?%b#top", b"/v1/x/#top"),
        (b"http://api.test:8080/v1/x/?a=1&%b#top", b"http://api.test:8080/v1/x/?a=1#top"),
        (b"?%b", b""),
        (b"/v1/x/?key=another&%b", b"/v1/x/?key=another"),
    ],
)
def test_a_redirect_to_where_the_request_went_has_no_key(keyed: Playbook, location: bytes, shown: bytes) -> None:
    answer = redirected(keyed, b"/api/x?a=1", b"X-One: 1", b"Location: " + location % PAIR, b"X-Two: 2")
    assert answer.status == 301
    found = answer.value(b"location")
    assert found is not None
    # A '?' or '&' that is left with nothing behind it does no harm.
    assert found.replace(b"?&", b"?").rstrip(b"?&") == shown or found == shown
    assert (answer.value(b"x-one"), answer.value(b"x-two")) == (b"1", b"2")
    assert keyed.client.state == keyed.upstream.state == "open"


@pytest.mark.parametrize("name", [b"Location", b"Content-Location", b"Link", b"Refresh", b"X-Request-Url", b"location"])
def test_no_field_has_the_key(keyed: Playbook, name: bytes) -> None:
    value = b'<http://api.test:8080/v1/x?page=2&%b>; rel="next", <?page=9&%b>; rel="last"' % (PAIR, PAIR)
    answer = redirected(keyed, b"/api/x?page=1", name + b": " + value)
    assert answer.value(name) == b'<http://api.test:8080/v1/x?page=2>; rel="next", <?page=9>; rel="last"'


def test_neither_has_an_interim_answer(keyed: Playbook) -> None:
    keyed.client.sends(keyed.request(b"GET", b"/api/x"))
    assert PAIR in keyed.upstream.request().start
    keyed.upstream.sends(b"HTTP/1.1 103 Early Hints\r\nLink: </v1/x.css?a=1&%b>; rel=preload\r\n\r\n" % PAIR)
    assert keyed.client.head().value(b"link") == b"</v1/x.css?a=1>; rel=preload"


@pytest.mark.parametrize("framing", [b"Transfer-Encoding: chunked", b"X-Until: close", b"Content-Length: 9"])
def test_nor_has_the_head_of_an_answer_that_streams(keyed: Playbook, framing: bytes) -> None:
    keyed.client.sends(keyed.request(b"GET", b"/api/x"))
    keyed.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Location: /v1/x?%b\r\n" % PAIR + framing + b"\r\n\r\n")
    assert KEY.encode() not in keyed.client.unread
    assert keyed.client.head().value(b"content-location") in {b"/v1/x", b"/v1/x?"}


@pytest.mark.parametrize("left", [0, 1, 9, 20])
def test_no_trailer_has_the_key(keyed: Playbook, left: int) -> None:
    keyed.client.sends(keyed.request(b"GET", b"/api/x"))
    body = b"2\r\nhi\r\n0\r\nX-Sum: 1\r\nX-Url: /v1/x?a=1&%b#top\r\nX-Other: ?%b\r\n\r\n" % (PAIR, PAIR)
    edge = len(body) - left
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    keyed.upstream.sends(*filter(None, (head + body[:edge], body[edge:])))
    assert KEY.encode() not in keyed.client.unread
    answer = keyed.client.answer()
    assert answer.body == b"hi"
    assert answer.trailers == [(b"X-Sum", b"1"), (b"X-Url", b"/v1/x?a=1#top"), (b"X-Other", b"")]
    assert keyed.client.state == keyed.upstream.state == "open"


@pytest.mark.parametrize("status", [b"103", b"301"])
def test_no_reason_phrase_has_the_key(keyed: Playbook, status: bytes) -> None:
    keyed.client.sends(keyed.request(b"GET", b"/api/x"))
    keyed.upstream.sends(b"HTTP/1.1 %b See /v1/x?%b\r\nContent-Length: 0\r\n\r\n" % (status, PAIR))
    assert b"See /v1/x" in keyed.client.unread
    assert KEY.encode() not in keyed.client.unread
    assert keyed.client.state == "open"


@pytest.mark.parametrize("name", [b"X-Secret", b"x-secret", b"X-SECRET", b"x_Secret"])
def test_a_client_has_no_say_in_the_field_of_the_key(make_play: Callable[..., Playbook], name: bytes) -> None:
    """Neither in the head nor in a trailer, which some merge into it (RFC 9110 §6.5.1); nor by a name of CGI's."""
    play = make_play(target_api_auth="header:X-Secret")
    line = name + b": mine"
    body = b"2\r\nhi\r\n0\r\nX-Sum: 1\r\n" + line + b"\r\nX-Secret-2: other\r\n\r\n"
    play.client.sends(play.request(b"POST", b"/api/x", line, b"Transfer-Encoding: chunked", body=body))
    request = play.upstream.request()
    assert request.values(b"x-secret") == [KEY.encode()]
    assert b"mine" not in [value for _, value in request.fields]
    assert request.body == b"hi"
    assert request.trailers == [(b"X-Sum", b"1"), (b"X-Secret-2", b"other")]


def test_without_a_key_in_that_field_a_trailer_of_its_name_passes(play: Playbook) -> None:
    body = b"0\r\nX-Secret: mine\r\n\r\n"
    play.client.sends(play.request(b"POST", b"/api/x", b"Transfer-Encoding: chunked", body=body))
    assert play.upstream.request().trailers == [(b"X-Secret", b"mine")]


def test_a_key_that_is_percent_encoded_is_cut_as_it_went(make_play: Callable[..., Playbook]) -> None:
    play = make_play(target_api_auth="query:api-key", target_api_key="a/b+c=d&e")
    play.client.sends(play.request(b"GET", b"/api/x?a=1"))
    path = play.upstream.request().start.split(b" ")[1]
    start, _, pair = path.rpartition(b"&")
    assert start == b"/v1/x?a=1"
    play.upstream.answers(b"", b"308 Permanent Redirect", b"Location: " + path.replace(b"/x?", b"/x/?"))
    assert pair not in play.client.unread
    assert play.client.answer().value(b"location") == b"/v1/x/?a=1"


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        (b"/v1/x/?a=1&api-key=a/b+c=d&e&b=2", b"/v1/x/?a=1&b=2"),
        (b"/v1/x/?api-key=a%2fb%2bc%3dd%26e", b"/v1/x/"),
        (b"/v1/x/?api%2Dkey=%61%2Fb+c=d%26e&b=2", b"/v1/x/?b=2"),
        (b"/login?next=%2Fx%3Fapi-key%3Da%252Fb%252Bc%253Dd%2526e%26b%3D2", b"/login?next=%2Fx%3Fapi-key%3D%26b%3D2"),
        (b"/x/;api-key=a%2Fb%2Bc%3Dd%26e", b"/x/;api-key="),
    ],
)  # fmt: skip
def test_a_key_that_the_api_spells_anew_is_cut_too(
    make_play: Callable[..., Playbook], location: bytes, shown: bytes
) -> None:
    play = make_play(target_api_auth="query:api-key", target_api_key="a/b+c=d&e")
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers(b"", b"302 Found", b"Location: " + location)
    assert play.client.answer().value(b"location") == shown


def test_a_key_in_a_url_within_a_url_is_cut(keyed: Playbook) -> None:
    location = b"/login?next=%2Fv1%2Fx%3Fkey%3D" + KEY.encode() + b"&a=1"
    assert redirected(keyed, b"/api/x", b"Location: " + location).value(b"location") == (
        b"/login?next=%2Fv1%2Fx%3Fkey%3D&a=1"
    )


def test_a_short_key_is_cut_only_where_it_is_the_key(make_play: Callable[..., Playbook]) -> None:
    play = make_play(target_api_auth="query:key", target_api_key="abc")
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers(b"", b"302 Found", b"Location: /abc?key=abc&x=abc")
    assert play.client.answer().value(b"location") == b"/abc?x=abc"


def test_what_only_looks_like_the_key_is_let_be(keyed: Playbook) -> None:
    location = b"/v1/x/?key=mine&monkey=1"
    assert redirected(keyed, b"/api/x?key=mine", b"Location: " + location).value(b"location") == location


def test_without_a_key_in_the_query_nothing_is_cut(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers(b"", b"301 Moved Permanently", b"Location: /v1/x/?key=mine")
    assert play.client.answer().value(b"location") == b"/v1/x/?key=mine"


def test_a_body_is_the_apis_and_is_not_searched(keyed: Playbook) -> None:
    """To find a key in it, however it is coded, it would have to be decoded, and held up: see BEHAVIOUR.md."""
    keyed.client.sends(keyed.request(b"GET", b"/api/x"))
    content = b'{"next": "http://api.test:8080/v1/x?page=2&%b"}' % PAIR
    keyed.upstream.answers(content)
    assert keyed.client.answer().body == content
