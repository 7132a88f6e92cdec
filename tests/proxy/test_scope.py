"""Narrow tokens over the wire: what they do not allow is a 403, sent nowhere and counted nowhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from gateway.scope import Scope
from tests.proxy.test_endpoints import ADMIN, ADMIN_KEY, ask, minted

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Playbook


def narrow(play: Playbook, **lists: list[str]) -> None:
    play.token = play.admission.issue(time.time(), scope=Scope(**lists))[0].encode()


def test_what_it_allows_passes_as_ever(play: Playbook) -> None:
    narrow(play, paths=["/chat"], methods=["POST"], targets=["api"])
    play.client.sends(play.request(b"POST", b"/api/chat/completions?x=/../y", body=b"{}"))
    assert play.upstream.request().start == b"POST /v1/chat/completions?x=/../y HTTP/1.1"
    play.upstream.answers()
    assert play.client.answer().status == 200


@pytest.mark.parametrize(
    ("method", "target", "what"),
    [
        (b"GET", b"/api/chat", b"only POST"),
        (b"HEAD", b"/api/chat", b""),
        (b"POST", b"/api/chatx", b"only /chat and"),
        (b"POST", b"/api", b"only /chat and"),
        (b"POST", b"/api?/chat", b"only /chat and"),
        (b"POST", b"/api/x/chat", b"only /chat and"),
        (b"POST", b"/api/chat/x/../../models", b"two ways"),
        (b"POST", b"/api/chat/%2e%2e/chat", b"two ways"),
        (b"POST", b"/api/chat//x", b"two ways"),
        (b"POST", b"/api/chat/x%2f..", b"two ways"),
    ],
)
def test_what_it_does_not_is_a_403_that_names_it(play: Playbook, method: bytes, target: bytes, what: bytes) -> None:
    narrow(play, paths=["/chat"], methods=["POST"])
    play.client.sends(play.request(method, target, body=b"" if method == b"HEAD" else b"body"))
    if method == b"HEAD":
        assert play.client.head().status == 403
    else:
        assert what in play.client.problem(403, "not_allowed").body
    assert (play.dials, play.used()) == (0, 0)
    assert play.client.state == "open"


OTHER_METHOD = [b"X-HTTP-Method-Override: DELETE", b"x-http-method:DELETE", b"X-Method-Override: GET, DELETE",
                b"X_HTTP_METHOD_OVERRIDE: DELETE", b"X-Http-Method-Override:"]  # fmt: skip
OTHER_PATH = [b"X-Original-URL: /admin", b"x-rewrite-url: /chat", b"X_Original_URL: /admin", b"SCRIPT_NAME: /chat",
              b"X-Script-Name: /chat"]  # fmt: skip


@pytest.mark.parametrize("line", [*OTHER_METHOD, *OTHER_PATH])
def test_what_a_field_names_in_their_place_is_looked_at_too(play: Playbook, line: bytes) -> None:
    """Many servers take the method, some the path, from such a field."""
    narrow(play, paths=["/chat"], methods=["POST", "GET"])
    for lines in ((b"Accept: */*", line, b"X-Last: 1"), (line,)):
        play.client.sends(play.request(b"POST", b"/api/chat", *lines, body=b"body"))
        assert b"a field" in play.client.problem(403, "not_allowed").body
    first = b"POST /api/chat HTTP/1.1\r\n%b\r\nHost: h\r\nX-Api-Key: %b\r\nContent-Length: 0\r\n\r\n"
    play.client.sends(first % (line, play.token))
    play.client.problem(403, "not_allowed")
    assert (play.dials, play.used(), play.client.state) == (0, 0, "open")


@pytest.mark.parametrize("query", [b"_method=DELETE", b"a=b&%5Fmeth%6fd=put", b"x;_Method=", b".method=DELETE"])
def test_so_is_a_method_in_the_query(play: Playbook, query: bytes) -> None:
    narrow(play, methods=["POST", "GET"])
    play.client.sends(play.request(b"POST", b"/api/chat?" + query))
    assert b"the query names another" in play.client.problem(403, "not_allowed").body
    assert (play.dials, play.used(), play.client.state) == (0, 0, "open")
    for harmless in (b"_method=GET", b"the_method=DELETE", b"method=DELETE", b"a=_method=DELETE"):
        play.client.sends(play.request(b"POST", b"/api/chat?" + harmless))
        assert play.upstream.request().start == b"POST /v1/chat?%b HTTP/1.1" % harmless
        play.upstream.answers()
        assert play.client.answer().status == 200


@pytest.mark.parametrize(
    ("lists", "line"),
    [
        ({"methods": ["POST", "GET"]}, b"X-HTTP-Method-Override: GET"),
        ({"methods": ["POST"]}, OTHER_PATH[0]),
        ({"paths": ["/chat"]}, OTHER_METHOD[0]),
        ({"methods": ["POST"]}, b"X-Note: X-HTTP-Method-Override: DELETE"),
        ({"targets": ["api"]}, OTHER_METHOD[0]),
    ],
)
def test_a_field_that_names_what_is_allowed_passes(play: Playbook, lists: dict[str, list[str]], line: bytes) -> None:
    narrow(play, **lists)
    play.client.sends(play.request(b"POST", b"/api/chat", line, body=b"body"))
    assert line in b"\r\n".join(name + b": " + value for name, value in play.upstream.request().fields)


def test_a_token_for_another_target(play: Playbook) -> None:
    narrow(play, targets=["other"])
    play.client.sends(play.request(b"GET", b"/api/x"))
    assert b"only for other" in play.client.problem(403, "not_allowed").body
    assert play.dials == 0


def test_it_shows_in_usage_as_denied(play: Playbook) -> None:
    narrow(play, methods=["POST"])
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.problem(403, "not_allowed")
    play.client.sends(play.request(b"GET", b"/usage"))
    assert b'"by_reason": {"not_allowed": 1}' in play.client.answer().body


def test_an_admin_makes_them(make_play: Callable[..., Playbook]) -> None:
    play = make_play(admin_key=ADMIN_KEY.decode())
    body = b'{"targets": ["api"], "methods": ["GET"], "paths": ["/models"]}'
    ask(play.client, b"POST", b"/register", ADMIN, body=body)
    play.token = minted(play.client.answer())["token"].encode()
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.client.problem(403, "not_allowed")
    play.client.sends(play.request(b"GET", b"/api/models"))
    play.upstream.answers()
    assert play.client.answer().status == 200


@pytest.mark.parametrize(
    "body", [b'{"methods": ["get"]}', b'{"paths": "/x"}', b'{"paths": ["x"]}', b'{"targets": []}', b'{"path": ["/x"]}']
)
def test_what_is_no_scope_is_a_400(make_play: Callable[..., Playbook], body: bytes) -> None:
    play = make_play(admin_key=ADMIN_KEY.decode())
    ask(play.client, b"POST", b"/register", ADMIN, body=body)
    play.client.problem(400, "bad_request")
