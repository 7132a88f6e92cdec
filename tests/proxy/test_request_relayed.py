"""What the upstream is sent: the key swapped, the target's path, and everything else as it came."""

from __future__ import annotations

import base64
import time
from typing import TYPE_CHECKING

import pytest

from tests.kit.playbook import KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Playbook


def basic(user: bytes, password: bytes) -> bytes:
    return b"Authorization: Basic " + base64.b64encode(user + b":" + password)


def ask(play: Playbook, *lines: bytes, target: bytes = b"/api/x") -> None:
    """Send a GET with exactly these fields."""
    play.client.sends(b"\r\n".join((b"GET " + target + b" HTTP/1.1", *lines, b"", b"")))


WAYS: dict[str, Callable[[bytes], bytes]] = {
    "bearer": lambda token: b"Authorization: Bearer " + token,
    "bearer in lower case": lambda token: b"authorization: bearer " + token,
    "x-api-key": lambda token: b"X-Api-Key: " + token,
    "api-key": lambda token: b"api-key: " + token,
    "x-goog-api-key": lambda token: b"X-Goog-Api-Key: " + token,
    "basic user": lambda token: basic(token, b"ignored"),
    "basic password": lambda token: basic(b"", token),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_token_is_read_however_it_comes_and_goes_no_further(play: Playbook, way: str) -> None:
    ask(play, b"Host: gateway.test", b"Accept: */*", WAYS[way](play.token))
    request = play.upstream.request()
    assert request.fields == [
        (b"Host", b"api.test:8080"),
        (b"Accept", b"*/*"),
        (b"Authorization", b"Bearer " + KEY.encode()),
    ]
    play.upstream.answers(b"yours")
    answer = play.client.answer()
    assert answer.body == b"yours"
    assert KEY.encode() not in b"".join(value for _, value in answer.fields)


def test_every_credential_is_taken_out_whichever_counted(play: Playbook) -> None:
    names = [b"X-Api-Key: ", b"Api-Key: ", b"X-Goog-Api-Key: ", b"Authorization: Bearer "]
    ask(play, b"Host: h", *(name + play.token for name in names), b"Proxy-Authorization: Basic eA==")
    assert play.upstream.request().fields == [
        (b"Host", b"api.test:8080"),
        (b"Authorization", b"Bearer " + KEY.encode()),
    ]
    play.upstream.answers()
    assert play.client.answer().status == 200


STYLES = {
    "bearer": (b"Authorization: Bearer sk-7Vx2Wb9Lm4Rz", b"/v1/x?a=b"),
    "basic": (b"Authorization: Basic " + base64.b64encode(b"sk-7Vx2Wb9Lm4Rz:"), b"/v1/x?a=b"),
    "header:X-Api-Key": (b"X-Api-Key: sk-7Vx2Wb9Lm4Rz", b"/v1/x?a=b"),
    "header:X-Vendor-Key": (b"X-Vendor-Key: sk-7Vx2Wb9Lm4Rz", b"/v1/x?a=b"),
    "query:key": (None, b"/v1/x?a=b&key=sk-7Vx2Wb9Lm4Rz"),
}


@pytest.mark.parametrize("style", STYLES)
def test_the_key_goes_upstream_once_in_the_style_configured(make_play: Callable[..., Playbook], style: str) -> None:
    play = make_play(target_api_auth=style)
    line, target = STYLES[style]
    mine = [b"X-Vendor-Key: mine", b"x-vendor-key: mine too"]
    ask(play, b"Host: h", b"Authorization: Bearer " + play.token, *mine, target=b"/api/x?a=b")
    request = play.upstream.request()
    assert request.start == b"GET " + target + b" HTTP/1.1"
    lines = [name + b": " + value for name, value in request.fields]
    expected = [b"Host: api.test:8080"] + ([] if "Vendor" in style else mine) + ([line] if line else [])
    assert sorted(lines) == sorted(expected)
    play.upstream.answers()
    assert play.client.answer().status == 200


def test_a_query_key_begins_a_query_where_there_is_none(make_play: Callable[..., Playbook]) -> None:
    play = make_play(target_api_auth="query:key")
    play.client.sends(play.request(b"GET", b"/api/x"))
    assert play.upstream.request().start == b"GET /v1/x?key=sk-7Vx2Wb9Lm4Rz HTTP/1.1"


def test_without_a_key_nothing_takes_its_place(make_play: Callable[..., Playbook]) -> None:
    play = make_play(target_api_key=None)
    ask(play, b"Host: h", b"Authorization: Bearer " + play.token, b"X-Api-Key: " + play.token)
    assert play.upstream.request().fields == [(b"Host", b"api.test:8080")]


def test_order_case_and_duplicates_of_fields_are_kept(play: Playbook) -> None:
    lines = [
        b"Cookie: a=1",
        b"x-CASE: MiXed  inner   spaces",
        b"Cookie: b=2",
        b"Accept-Encoding: gzip",
        b"Empty:",
        b"X-Utf8: \xc3\xa9\xff",
        b"Accept-Encoding: br",
        b"User-Agent: me",
        b"X-Forwarded-For: 1.2.3.4",
    ]
    play.client.sends(play.request(b"GET", b"/api/x", *lines))
    request = play.upstream.request()
    assert request.fields[1:-1] == [
        (name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)
    ]
    play.upstream.answers()
    assert play.client.answer().status == 200


def test_nothing_is_added_that_names_the_client_or_the_gateway(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    assert [name.lower() for name in play.upstream.request().names] == [b"host", b"authorization"]


def test_connection_specific_fields_stay_here(play: Playbook) -> None:
    play.client.sends(
        play.request(
            b"GET",
            b"/api/x",
            b"Connection: keep-alive, X-Mine, , te",
            b"Keep-Alive: timeout=5",
            b"Proxy-Connection: keep-alive",
            b"TE: gzip",
            b"Trailer: X-T",
            b"Upgrade: h2c",
            b"HTTP2-Settings: AAA",
            b"X-Mine: 1",
            b"x-mine: 2",
            b"X-Kept: 3",
            b"Connection: X-Also",
            b"x-also: 4",
        )
    )
    assert [name for name in play.upstream.request().names if name.startswith(b"X")] == [b"X-Kept"]
    play.upstream.answers()
    assert play.client.answer().value(b"connection") is None
    assert play.client.state == "open"


@pytest.mark.parametrize("name", [b"Host", b"Authorization", b"Content-Length", b"content-type", b"X-Api-Key"])
def test_no_client_can_name_our_fields_in_connection(play: Playbook, name: bytes) -> None:
    lines = (b"Connection: close, " + name, b"Content-Type: text/plain")
    play.client.sends(play.request(b"POST", b"/api/x", *lines, body=b"body"))
    request = play.upstream.request()
    assert request.body == b"body"
    assert request.value(b"host") == b"api.test:8080"
    assert request.value(b"authorization") == b"Bearer " + KEY.encode()
    assert request.value(b"content-type") == b"text/plain"


def test_no_client_can_name_the_coding_in_connection(play: Playbook) -> None:
    lines = (b"Transfer-Encoding: chunked", b"Connection: Transfer-Encoding")
    play.client.sends(play.request(b"POST", b"/api/x", *lines, body=b"4\r\nbody\r\n0\r\n\r\n"))
    assert play.upstream.request().body == b"body"


PATHS = {
    b"/api/x": b"/v1/x",
    b"/api": b"/v1",
    b"/api/": b"/v1/",
    b"/api?a": b"/v1?a",
    b"/api//x//y/": b"/v1//x//y/",
    b"/api/a%2Fb%2fc": b"/v1/a%2Fb%2fc",
    b"/api/%00%zz%": b"/v1/%00%zz%",
    b"/api/x?": b"/v1/x?",
    b"/api/x??a;b&&c=%26+d&e": b"/v1/x??a;b&&c=%26+d&e",
    b"/api/x?next=/../../y": b"/v1/x?next=/../../y",
    b"/api/a/../b": b"/v1/a/../b",
    b"/api/a%2f..%2fb/../c": b"/v1/a%2f..%2fb/../c",
    b"/api/a%2fb/c/../..": b"/v1/a%2fb/c/../..",
    b"/api/a/./b/%2E%2e/c": b"/v1/a/./b/%2E%2e/c",
    b"/api/...": b"/v1/...",
    b"/api/a..b/.c": b"/v1/a..b/.c",
    b'/api/{x}|\\^`"<>': b'/v1/{x}|\\^`"<>',
    b"/api/models:generate@1,2;v=3": b"/v1/models:generate@1,2;v=3",
}


@pytest.mark.parametrize("target", PATHS)
def test_path_and_query_are_kept_byte_for_byte(play: Playbook, target: bytes) -> None:
    play.client.sends(play.request(b"GET", target))
    assert play.upstream.request().start == b"GET " + PATHS[target] + b" HTTP/1.1"
    play.upstream.answers()
    assert play.client.answer().status == 200


def test_a_target_without_a_path_keeps_the_slash(make_play: Callable[..., Playbook]) -> None:
    play = make_play(target_api_url="http://api.test")
    for target, expected in ((b"/api", b"/"), (b"/api?q", b"/?q"), (b"/api/x", b"/x")):
        play.client.sends(play.request(b"GET", target))
        request = play.upstream.request()
        assert request.start == b"GET " + expected + b" HTTP/1.1"
        assert request.value(b"host") == b"api.test"
        play.upstream.answers()
        assert play.client.answer().status == 200


@pytest.mark.parametrize(
    "path",
    [
        b"/..",
        b"/../x",
        b"/a/../../x",
        b"/%2e%2e/x",
        b"/.%2E/x",
        b"/a/%2e./%2e%2E",
        b"/..%2fx",
        b"/..%5cx",
        b"/..\\x",
        b"/a%2f..%2f..%2fx",
        b"/a%2Fb/../../x",
        b"/a%5Cb/%2e%2e/../x",
        b"/a\\b/../../x",
        b"/..;p=1/x",
        b"/./../x",
        b"//../../x",
        b"/..?q",
        b"/%u002e%U002E/x",
        b"/a%u002f..%u005c..",
        b"/a" * 257 + b"/../x",  # in which some server might read more of them, and to find out would take long
    ],
)
def test_a_path_that_climbs_out_of_the_target_is_refused_and_not_counted(play: Playbook, path: bytes) -> None:
    play.client.sends(play.request(b"GET", b"/api" + path))
    refusal = play.client.problem(400, "bad_request")
    assert refusal.value(b"connection") == b"close"
    assert play.client.state == "closed"
    assert (play.dials, play.used()) == (0, 0)


@pytest.mark.parametrize(
    "target", [b"/apix", b"/ap", b"/API/x", b"//api/x", b"/x/api/y", b"/%61pi/x", b"/./api/x", b"/"]
)
def test_only_the_prefix_itself_leads_to_the_target(play: Playbook, target: bytes) -> None:
    play.client.sends(play.request(b"GET", target))
    play.client.problem(404, "not_found")
    assert (play.dials, play.used()) == (0, 0)


@pytest.mark.parametrize(
    "method", [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"PROPFIND", b"get"]
)
@pytest.mark.parametrize("body", [b"", b"body"])
def test_any_method_with_or_without_a_body(play: Playbook, method: bytes, body: bytes) -> None:
    play.client.sends(play.request(method, b"/api/x", body=body))
    request = play.upstream.request()
    assert request.start == method + b" /v1/x HTTP/1.1"
    assert request.body == body
    play.upstream.got_nothing()
    play.upstream.answers(b"" if method == b"HEAD" else b"hi")
    assert play.client.answer(method).status == 200
    assert play.client.state == "open"


def test_trace_would_show_the_key(play: Playbook) -> None:
    play.client.sends(play.request(b"TRACE", b"/api/x"))
    refusal = play.client.problem(405, "method_not_allowed")
    assert b"TRACE" not in (refusal.value(b"allow") or b"TRACE")
    assert (play.dials, play.used()) == (0, 0)


def test_connect_is_refused_with_advice(play: Playbook) -> None:
    play.client.sends(b"CONNECT api.test:8080 HTTP/1.1\r\nHost: api.test:8080\r\n\r\n")
    refusal = play.client.problem(501, "not_implemented")
    assert b"base URL" in refusal.body
    assert play.client.state == "closed"
    assert play.dials == 0


@pytest.mark.parametrize("target", [b"http://evil.test/api/x", b"https://evil.test/", b"http://evil.test"])
def test_an_absolute_form_of_anyone_else_is_not_allowed(play: Playbook, target: bytes) -> None:
    play.client.sends(play.request(b"GET", target))
    play.client.problem(403, "not_allowed")
    assert (play.dials, play.used()) == (0, 0)


def test_an_asterisk_is_no_path_of_the_target(play: Playbook) -> None:
    play.client.sends(play.request(b"OPTIONS", b"*"))
    play.client.problem(404, "not_found")
    assert play.dials == 0


def test_an_http_1_0_request_goes_on_as_1_1_with_the_targets_host(play: Playbook) -> None:
    play.client.sends(b"GET /api/x HTTP/1.0\r\nX-Api-Key: " + play.token + b"\r\n\r\n")
    request = play.upstream.request()
    assert request.start == b"GET /v1/x HTTP/1.1"
    assert request.value(b"host") == b"api.test:8080"


def test_a_length_goes_on_in_its_one_spelling(play: Playbook) -> None:
    play.client.sends(play.request(b"POST", b"/api/x", b"Content-Length: 004") + b"body")
    request = play.upstream.request()
    assert (request.value(b"content-length"), request.body) == (b"4", b"body")


def test_chunk_extensions_and_unwanted_trailers_go_no_further(play: Playbook) -> None:
    body = b'4;ext="a;b"\r\nbody\r\n0\r\nX-Kept: 1\r\nAuthorization: Bearer x\r\nContent-Length: 9\r\n\r\n'
    play.client.sends(play.request(b"POST", b"/api/x", b"Transfer-Encoding: chunked", body=body))
    request = play.upstream.request()
    assert (request.body, request.trailers) == (b"body", [(b"X-Kept", b"1")])
    play.upstream.got_nothing()
    play.upstream.answers()
    assert play.client.answer().status == 200
    assert play.client.state == "open"


# --- many requests alike: what the parser remembers of the others must not show ---------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_like_requests_of_two_clients_are_kept_apart(make_play: Callable[..., Playbook], style: str) -> None:
    play = make_play(target_api_auth=style, rate_limit="20/minute")
    tokens = [play.token, play.admission.issue(time.time())[0].encode()]
    for number in range(20):
        token = tokens[number % 2]
        lines = (b"X-Id: %d" % number, b"X-Vendor-Key: mine", b"Authorization: Bearer " + token)
        ask(play, b"Host: h", *lines, target=b"/api/%d" % number)
        request = play.upstream.request()
        assert request.start.split(b" ")[1].startswith(b"/v1/%d" % number)
        assert request.value(b"x-id") == b"%d" % number
        sent = b"\r\n".join(name + b": " + value for name, value in request.fields)
        assert token not in sent
        assert (request.start + sent).count(KEY.encode()) + sent.count(STYLES["basic"][0] or b"-") == 1
        assert request.values(b"x-vendor-key") == ([KEY.encode()] if "Vendor" in style else [b"mine"])
        play.upstream.answers(b"%d" % number, b"200 OK", b"X-Id: %d" % number)
        answer = play.client.answer()
        assert (answer.body, answer.value(b"x-id")) == (b"%d" % number, b"%d" % number)
        assert answer.value(b"ratelimit") == b'"minute";r=%d;t=61' % (19 - number // 2)


def test_a_like_request_without_a_good_token_is_refused(play: Playbook) -> None:
    for number in range(6):
        ask(play, b"Host: h", b"X-Id: %d" % number, b"Authorization: Bearer " + play.token)
        play.upstream.request()
        play.upstream.answers()
        assert play.client.answer().status == 200
        ask(play, b"Host: h", b"X-Id: %d" % number, b"Authorization: Bearer gw_forged.%d" % number)
        play.client.problem(401, "token_invalid")
        ask(play, b"Host: h", b"X-Id: %d" % number)
        play.client.problem(401, "token_missing")
    assert play.used() == 6


def test_connection_specific_fields_stay_here_however_often_they_come(play: Playbook) -> None:
    for number in range(6):
        ask(
            play,
            b"Host: h",
            b"X-Api-Key: " + play.token,
            b"Connection: X-Mine",
            b"X-Mine: %d" % number,
            b"X-Kept: %d" % number,
        )
        request = play.upstream.request()
        assert request.fields[1:-1] == [(b"X-Kept", b"%d" % number)]
        play.upstream.answers(b"hi", b"200 OK", b"Connection: X-Hop", b"X-Hop: %d" % number, b"X-Kept: %d" % number)
        answer = play.client.answer()
        assert (answer.value(b"x-hop"), answer.value(b"x-kept")) == (None, b"%d" % number)
