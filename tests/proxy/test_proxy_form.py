"""A client that takes the gateway for its HTTP proxy: a URL in place of the path, a token for the proxy."""

from __future__ import annotations

import dataclasses
from base64 import b64encode
from typing import TYPE_CHECKING

import pytest

from gateway.config.target import KeyStyle, parse_url, with_key
from gateway.http1.message import RequestHead
from gateway.proxy.routes import Routes
from gateway.proxy.target import TargetRoute
from tests.kit.playbook import KEY, Playbook

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.proxy.context import Destination

URL = b"http://api.test:8080/v1/x?q=%20"


@pytest.fixture
def play() -> Iterator[Playbook]:
    running = Playbook()
    yield running
    running.close()


def basic(user: bytes, password: bytes = b"") -> bytes:
    return b"Basic " + b64encode(user + b":" + password)


def ask(target: bytes, *lines: bytes, method: bytes = b"GET", host: bytes = b"api.test:8080") -> bytes:
    return b"\r\n".join((method + b" " + target + b" HTTP/1.1", b"Host: " + host, *lines, b"", b""))


@pytest.mark.parametrize("scheme", [b"Basic user", b"Basic password", b"Bearer", b"bearer"])
def test_a_url_under_the_targets_goes_there_with_the_key(play: Playbook, scheme: bytes) -> None:
    token = play.token
    sent = {
        b"Basic user": basic(token, b"x"),
        b"Basic password": basic(b"", token),
    }.get(scheme, scheme + b" " + token)
    play.client.sends(ask(URL, b"Proxy-Authorization: " + sent, b"Proxy-Connection: Keep-Alive", b"X-Kept: 1"))
    request = play.upstream.request()
    assert request.start == b"GET /v1/x?q=%20 HTTP/1.1"
    assert request.value(b"host") == b"api.test:8080"
    assert request.value(b"authorization") == b"Bearer " + KEY.encode()
    assert request.value(b"x-kept") == b"1"
    assert request.value(b"proxy-authorization") is None
    assert request.value(b"proxy-connection") is None
    assert token not in str(request).encode()
    play.upstream.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    answer = play.client.answer()
    assert (answer.body, answer.value(b"ratelimit")) == (b"hi", b'"minute";r=59;t=61')
    assert play.used() == 1


def test_what_the_app_authenticates_with_is_neither_its_token_nor_passed_on(play: Playbook) -> None:
    apps = (b"Authorization: Bearer sk-of-the-app", b"X-Api-Key: sk-of-the-app")
    play.client.sends(ask(URL, *apps, b"Proxy-Authorization: " + basic(play.token)))
    request = play.upstream.request()
    assert request.value(b"authorization") == b"Bearer " + KEY.encode()
    assert b"sk-of-the-app" not in str(request).encode()


def test_without_a_proxys_token_any_other_field_may_carry_it(play: Playbook) -> None:
    play.client.sends(ask(URL, b"X-Api-Key: " + play.token))
    assert play.upstream.request().start == b"GET /v1/x?q=%20 HTTP/1.1"


def test_a_bad_token_for_the_proxy_is_not_made_good_by_another_field(play: Playbook) -> None:
    play.client.sends(ask(URL, b"Proxy-Authorization: " + basic(b"gw_no"), b"Authorization: Bearer " + play.token))
    play.client.problem(401, "token_invalid")
    assert (play.dials, play.used()) == (0, 0)


@pytest.mark.parametrize("name", [b"Proxy-Authorization: ", b"Authorization: "])
def test_two_tokens_for_the_proxy_are_refused(play: Playbook, name: bytes) -> None:
    line = name + basic(play.token)
    play.client.sends(ask(URL, line, line))
    play.client.problem(401, "token_invalid")
    assert play.dials == 0


def test_without_a_proxys_token_two_that_differ_are_refused(play: Playbook) -> None:
    play.client.sends(ask(URL, b"X-Api-Key: " + play.token, b"Api-Key: sk-of-the-app"))
    play.client.problem(401, "token_invalid")
    assert play.dials == 0


def test_no_token_is_a_401_that_says_how_to_send_one(play: Playbook) -> None:
    play.client.sends(ask(URL))
    refusal = play.client.problem(401, "token_missing")
    assert b"http://TOKEN:x@" in refusal.body
    assert refusal.value(b"www-authenticate") == b'Bearer realm="gateway"'
    assert play.client.state == "open"
    assert play.dials == 0


def test_without_a_token_a_long_upload_is_a_401_that_says_so_as_well(play: Playbook) -> None:
    play.client.sends(ask(URL, b"Transfer-Encoding: chunked") + b"1\r\nx\r\n" * 1000)
    refusal = play.client.problem(401, "token_missing")
    assert b"http://TOKEN:x@" in refusal.body
    assert play.dials == 0


def test_a_token_for_the_proxy_is_none_where_there_is_a_path(play: Playbook) -> None:
    play.client.sends(ask(b"/api/x", b"Proxy-Authorization: " + basic(play.token)))
    play.client.problem(401, "token_missing")
    assert play.dials == 0


def test_the_url_wins_over_the_host_field(play: Playbook) -> None:
    proxy = b"Proxy-Authorization: " + basic(play.token)
    play.client.sends(ask(URL, proxy, host=b"evil.test"))
    assert play.upstream.request().value(b"host") == b"api.test:8080"


def test_a_host_field_of_the_target_brings_no_other_url_there(play: Playbook) -> None:
    play.client.sends(ask(b"http://evil.test/v1/x", b"Proxy-Authorization: " + basic(play.token)))
    play.client.problem(403, "not_allowed")
    assert (play.dials, play.used()) == (0, 0)


@pytest.mark.parametrize("path", [b"/v1/../admin", b"/v1/%2e%2e/admin", b"/v1/x/..%2f../admin"])
def test_dot_segments_do_not_climb_out_of_the_base_path(play: Playbook, path: bytes) -> None:
    play.client.sends(ask(b"http://api.test:8080" + path, b"Proxy-Authorization: " + basic(play.token)))
    play.client.problem(400, "bad_request")
    assert (play.dials, play.used()) == (0, 0)


def test_trace_is_refused_here_too(play: Playbook) -> None:
    play.client.sends(ask(URL, b"Proxy-Authorization: " + basic(play.token), method=b"TRACE"))
    play.client.problem(405, "method_not_allowed")
    assert play.dials == 0


@pytest.mark.parametrize("asked", [b"http://two.test/v1/x", b"https://two.test/v1/x", b"http://two.test:80/v1/x"])
def test_of_two_targets_that_differ_in_their_scheme_alone_the_first_has_the_urls(play: Playbook, asked: bytes) -> None:
    urls = ("http://two.test/v1", "https://two.test/v1")
    to = play.context.routes.find(b"/api")

    def under(url: str) -> Destination:
        assert to is not None
        target = dataclasses.replace(parse_url(url), prefix=url.encode())
        return dataclasses.replace(to, route=TargetRoute(target))

    for first, second in (urls, urls[::-1]):
        found = Routes([under("http://other.test"), under(first), under(second)]).find(asked)
        assert found is not None
        assert found.route.prefix == first.encode()


def start(url: str, target: bytes) -> bytes | None:
    """The path that a target gets of a URL, or None if it is not under the target's own."""
    route = TargetRoute(with_key(parse_url(url), "sk", KeyStyle("bearer")))
    if not route.owns(target):
        return None
    return route.write_head(_head(target), route.start_of(_head(target))).split(b" ")[1]


def _head(target: bytes) -> RequestHead:
    return RequestHead(b"GET", target, 1)


@pytest.mark.parametrize(
    ("url", "target", "path"),
    [
        ("https://api.test/v1", b"http://api.test/v1/x", b"/v1/x"),
        ("https://api.test/v1", b"https://api.test/v1/x", b"/v1/x"),
        ("https://api.test/v1", b"http://api.test:80/v1/x", b"/v1/x"),
        ("https://api.test/v1", b"http://api.test:443/v1/x", b"/v1/x"),
        ("https://api.test/v1", b"https://api.test:443/v1/x", b"/v1/x"),
        ("http://api.test/v1", b"http://api.test:/v1/x", b"/v1/x"),
        ("http://api.test/v1", b"http://api.test:00080/v1/x", b"/v1/x"),
        ("http://api.test:8080/v1", b"HTTP://API.TEST:8080/v1/x", b"/v1/x"),
        ("http://[::1]:8080/v1", b"http://[::1]:8080/v1/x", b"/v1/x"),
        ("http://api.test/v1", b"http://api.test/v1", b"/v1"),
        ("http://api.test/v1", b"http://api.test/v1?q", b"/v1?q"),
        ("http://api.test", b"http://api.test", b"/"),
        ("http://api.test", b"http://api.test?q", b"/?q"),
        ("http://api.test", b"http://api.test/a//b/%41?", b"/a//b/%41?"),
    ],
)
def test_urls_that_are_the_targets(url: str, target: bytes, path: bytes) -> None:
    assert start(url, target) == path


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://api.test/v1", b"http://api.test/v11"),
        ("http://api.test/v1", b"http://api.test/v1;x"),
        ("http://api.test/v1", b"http://api.test/V1/x"),
        ("http://api.test/v1", b"http://api.test/%761/x"),
        ("http://api.test/v1", b"http://api.test//v1/x"),
        ("http://api.test/v1", b"http://api.test/"),
        ("http://api.test/v1", b"http://api.test"),
        ("http://api.test/v1", b"http://api.test?/v1/x"),
        ("http://api.test/v1", b"http://api.test:8080/v1/x"),
        ("http://api.test:8080/v1", b"http://api.test/v1/x"),
        ("http://api.test:8080/v1", b"http://api.test:80/v1/x"),
        ("http://api.test/v1", b"http://api.test./v1/x"),
        ("http://api.test/v1", b"http://api.test.evil.test/v1/x"),
        ("http://api.test/v1", b"http://evil.test/http://api.test/v1/x"),
        ("http://api.test/v1", b"http://a%70i.test/v1/x"),
        ("http://api.test", b"/http://api.test/x"),
        ("http://api.test", b"/api/x"),
        ("http://api.test", b"*"),
    ],
)
def test_urls_that_are_not(url: str, target: bytes) -> None:
    assert start(url, target) is None
