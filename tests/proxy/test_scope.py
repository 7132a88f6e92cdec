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
