"""Several keys of one target, and prefixes of several targets: which of them a request gets."""

from __future__ import annotations

import dataclasses
from email.utils import formatdate
from typing import TYPE_CHECKING

import pytest

from gateway.proxy.keys import MOST_REST_S, REST_S, KeyRing
from gateway.proxy.routes import Routes
from gateway.proxy.target import TargetRoute
from tests.kit.playbook import Playbook

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.proxy.context import Destination

KEYS = (b"one", b"two", b"three")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def play() -> Iterator[Playbook]:
    """A target with three keys in place of the usual one."""
    running = Playbook()
    to = running.context.routes.find(b"/api")
    assert to is not None
    target = running.context.settings.target
    keyed = [dataclasses.replace(target, key_line=b"Authorization: Bearer " + key) for key in KEYS]
    destinations = [dataclasses.replace(to, route=TargetRoute(one)) for one in keyed]
    ring = KeyRing("api", destinations, running.context.clock, {})
    running.context.routes = Routes([dataclasses.replace(to, keys=ring)])
    yield running
    running.close()


def ask(play: Playbook, answer: bytes = OK) -> bytes:
    """Send a request and answer it; return the key that it went with."""
    play.client.sends(play.request(b"GET", b"/api/x"))
    request = play.upstream.request()
    play.upstream.sends(answer)
    assert play.client.answer().status == int(answer.split(b" ")[1])
    key = request.value(b"authorization")
    assert key is not None
    return key.removeprefix(b"Bearer ")


def refused(status: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join((b"HTTP/1.1 " + status, *lines, b"Content-Length: 0", b"", b""))


def test_they_are_used_in_turn(play: Playbook) -> None:
    assert [ask(play) for _ in range(6)] == [*KEYS, *KEYS]
    assert play.dials == 1


def test_a_request_without_a_good_token_takes_none(play: Playbook) -> None:
    for key in KEYS:
        play.client.sends(b"GET /api/x HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: Bearer no\r\n\r\n")
        play.client.problem(401, "token_invalid")
        assert ask(play) == key


def test_a_request_over_its_limit_takes_none(play: Playbook) -> None:
    limit = 60
    assert [ask(play) for _ in range(limit)] == [*KEYS] * (limit // len(KEYS))
    for _ in KEYS[1:]:
        play.client.sends(play.request(b"GET", b"/api/x"))
        play.client.problem(429, "rate_limited")
    play.pass_time(62)
    play.client = play.connect()
    assert ask(play) == b"one"


def test_a_request_that_is_refused_for_its_path_takes_none_and_costs_nothing(play: Playbook) -> None:
    for key in KEYS:
        other = play.connect()
        other.sends(play.request(b"GET", b"/api/../x"))
        other.problem(400, "bad_request")
        assert ask(play) == key
    assert play.used() == len(KEYS)


def test_a_client_that_leaves_before_it_is_admitted_takes_none(play: Playbook) -> None:
    for key in KEYS:
        other = play.connect()
        play.store.holds = True
        other.sends(play.request(b"GET", b"/api/x"))
        other.resets()
        play.store.holds = False
        play.store.decide()
        assert ask(play) == key
    assert play.used() == len(KEYS)


def test_what_is_sent_again_has_the_key_that_it_had(play: Playbook) -> None:
    assert ask(play) == b"one"
    play.client.sends(play.request(b"GET", b"/api/x"))
    first = play.upstream.request()
    play.upstream.ends()
    assert play.upstream.request() == first
    assert first.value(b"authorization") == b"Bearer two"
    play.upstream.sends(OK)
    assert play.client.answer().status == 200
    assert ask(play) == b"three"


@pytest.mark.parametrize("status", [b"401 No", b"429 Slow"])
def test_one_that_is_refused_rests_as_long_as_the_api_says(play: Playbook, status: bytes) -> None:
    assert ask(play, refused(status, b"Retry-After: 5")) == b"one"
    assert [ask(play) for _ in range(4)] == [b"two", b"three", b"two", b"three"]
    play.pass_time(4)
    assert b"one" not in [ask(play) for _ in range(3)]
    play.pass_time(2)
    assert b"one" in [ask(play) for _ in range(3)]


def test_any_other_status_is_no_reason_to_rest(play: Playbook) -> None:
    assert ask(play, refused(b"403 No", b"Retry-After: 5")) == b"one"
    assert ask(play, refused(b"503 Later", b"Retry-After: 5")) == b"two"
    assert [ask(play) for _ in range(3)] == [b"three", b"one", b"two"]


@pytest.mark.parametrize(
    ("line", "rest_s"),
    [
        (b"X-Other: 1", REST_S),
        (b"Retry-After: soon", REST_S),
        (b"Retry-After: 99999999", MOST_REST_S),
        (b"Retry-After: 0", 1),
        (b"retry-after: 30", 30),
    ],
)
def test_how_long_it_rests(play: Playbook, line: bytes, rest_s: float) -> None:
    assert ask(play, refused(b"429 Slow", line)) == b"one"
    play.context.clock.now_s += rest_s - 0.1
    assert [ask(play), ask(play)] == [b"two", b"three"]
    play.context.clock.now_s += 0.5
    assert ask(play) == b"one"


def test_a_date_says_so_too(play: Playbook) -> None:
    date = formatdate(play.context.clock.wall_s + 60, usegmt=True).encode()
    assert ask(play, refused(b"429 Slow", b"Retry-After: " + date)) == b"one"
    play.context.clock.now_s += 55
    assert [ask(play), ask(play)] == [b"two", b"three"]
    play.context.clock.now_s += 10
    assert ask(play) == b"one"


def test_if_all_rest_the_one_goes_that_is_first_to_be_over(play: Playbook) -> None:
    waits = (b"30", b"10", b"20")
    assert [ask(play, refused(b"429 Slow", b"Retry-After: " + wait)) for wait in waits] == [*KEYS]
    assert [ask(play), ask(play)] == [b"two", b"two"]


def test_prefixes(play: Playbook) -> None:
    """The longest wins, at the end of a segment."""
    to = play.context.routes.find(b"/api")
    target = play.context.settings.target

    def below(prefix: bytes) -> Destination:
        assert to is not None
        return dataclasses.replace(to, route=TargetRoute(dataclasses.replace(target, prefix=prefix)))

    prefixes = (b"/api", b"/a", b"/a/b", b"/api/v2", b"/a.b")
    for routes in (Routes(list(map(below, prefixes))), Routes(list(map(below, reversed(prefixes))))):

        def found(path: bytes, routes: Routes = routes) -> bytes | None:
            destination = routes.find(path)
            return None if destination is None else destination.route.prefix

        assert {path: found(path) for path in (b"/a", b"/a?x", b"/a/", b"/a/bc", b"/a/b", b"/a/b/c", b"/a/b?")} == {
            b"/a": b"/a",
            b"/a?x": b"/a",
            b"/a/": b"/a",
            b"/a/bc": b"/a",
            b"/a/b": b"/a/b",
            b"/a/b/c": b"/a/b",
            b"/a/b?": b"/a/b",
        }
        assert (found(b"/api/v2/x"), found(b"/api/v22"), found(b"/api")) == (b"/api/v2", b"/api", b"/api")
        assert (found(b"/a.b/"), found(b"/axb/"), found(b"/"), found(b""), found(b"*")) == (b"/a.b", *[None] * 4)
