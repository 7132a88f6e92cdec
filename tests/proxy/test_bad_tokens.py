"""Tokens that are none: one clear refusal each, always the same work, and nothing forwarded."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
from itsdangerous import Signer

from gateway.errors import TokenInvalid
from gateway.http1 import template
from gateway.tokens import TOKEN_LIMIT_BYTES, Claims, TokenSigner

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Playbook

OURS = b"s" * 32
"""The playbook's."""


def encoded(members: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(members).encode()).rstrip(b"=")


def changed(token: bytes, **claims: Any) -> bytes:
    """Return a token with other claims under the old signature."""
    payload, _, mac = token.removeprefix(b"gw_").partition(b".")
    members = json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
    return b"gw_" + encoded({**members, **claims}) + b"." + mac


def alg_none(token: bytes) -> bytes:
    payload = token.removeprefix(b"gw_").partition(b".")[0]
    return encoded({"alg": "none", "typ": "JWT"}) + b"." + payload + b"."


def signed_as(payload: bytes, secret: bytes = OURS) -> bytes:
    signer = Signer(secret, salt=b"gateway.tokens", key_derivation="hmac", digest_method=hashlib.sha256)
    return signer.sign(b"gw_" + payload)


def of_another_gateway(token: bytes) -> bytes:
    del token
    return TokenSigner([b"t" * 32]).issue(Claims(id="abc", issued_at_s=int(time.time()))).encode()


def of_the_future(token: bytes) -> bytes:
    del token
    return TokenSigner([OURS]).issue(Claims(id="abc", issued_at_s=int(time.time()) + 3600)).encode()


BAD: dict[str, Callable[[bytes], bytes]] = {
    "of another gateway": of_another_gateway,
    "of the future": of_the_future,
    "other limits": lambda token: changed(token, limits=["1000000/second"]),
    "a later end": lambda token: changed(token, exp=2**40),
    "another's id": lambda token: changed(token, id="abc"),
    "another parent": lambda token: changed(token, id="abc.def", above=[None]),
    "other paths": lambda token: changed(token, paths=["/"]),
    "alg none": alg_none,
    "alg none, as ours": lambda token: b"gw_" + alg_none(token),
    "no signature": lambda token: token.partition(b".")[0] + b".",
    "signed claims that are unknown": lambda _: signed_as(encoded({"id": "a", "iat": 1, "admin": True})),
    "signed for another generation": lambda _: signed_as(encoded({"id": "a.b", "iat": 1})),
    "signed, five generations": lambda _: signed_as(encoded({"id": "a.b.c.d.e", "iat": 1, "above": [None] * 4})),
    "signed, as everybody": lambda _: signed_as(encoded({"id": "global", "iat": 1})),
    "odd characters": lambda token: token + b"\xff\xfe\x80",
    "quoted": lambda token: b'"' + token + b'"',
    "escaped": lambda token: token.replace(b".", b"%2E"),
    "twice in one field": lambda token: token + b"," + token,
    "a little too long": lambda token: token + b"A" * TOKEN_LIMIT_BYTES,
}


@pytest.mark.parametrize("field", [b"Authorization: Bearer ", b"X-Api-Key: "])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_token_is_one_401_and_sent_nowhere(play: Playbook, bad: Callable[[bytes], bytes], field: bytes) -> None:
    token = bad(play.token)
    play.client.sends(b"GET /api/x HTTP/1.1\r\nHost: h\r\n" + field + token + b"\r\n\r\n")
    refusal = play.client.problem(401, "token_invalid")
    assert (refusal.value(b"www-authenticate") or b"").startswith(b'Bearer realm="gateway", error="invalid_token"')
    assert token[:20] not in refusal.body
    assert (play.dials, play.used(), play.client.state) == (0, 0, "open")


@pytest.mark.parametrize("target", [b"/usage", b"/tokens", b"/api/x"])
def test_it_opens_no_endpoint_either(play: Playbook, target: bytes) -> None:
    method = b"POST" if target == b"/tokens" else b"GET"
    bad = changed(play.token, exp=2**40)
    play.client.sends(method + b" " + target + b" HTTP/1.1\r\nHost: h\r\nX-Api-Key: " + bad + b"\r\n\r\n")
    play.client.problem(401, "token_invalid")
    assert play.dials == 0


def test_a_megabyte_of_token_is_not_read_to_its_end(play: Playbook) -> None:
    play.client.sends(b"GET /api/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer " + b"A" * 1_000_000 + b"\r\n\r\n")
    play.client.problem(431, "fields_too_large")
    assert play.client.is_ended
    assert play.dials == 0


FIELDS = [b"Authorization: Bearer ", b"X-Api-Key: ", b"Api-Key: ", b"X-Goog-Api-Key: ", b"Authorization: Basic "]


def line(field: bytes, token: bytes) -> bytes:
    return field + (base64.b64encode(token + b":") if b"Basic" in field else token)


def ask(play: Playbook, *lines: bytes) -> None:
    play.client.sends(b"\r\n".join((b"GET /api/x HTTP/1.1", b"Host: h", *lines, b"", b"")))


@pytest.mark.parametrize("field", FIELDS)
def test_twice_in_one_field_is_a_401_even_if_it_is_the_same(play: Playbook, field: bytes) -> None:
    ask(play, *[line(field, play.token)] * 2)
    assert b"send one" in play.client.problem(401, "token_invalid").body
    assert (play.dials, play.used(), play.client.state) == (0, 0, "open")


@pytest.mark.parametrize(("first", "second"), list(combinations(FIELDS[:4], 2)))
def test_two_fields_that_differ_are_a_401_and_two_that_agree_pass(play: Playbook, first: bytes, second: bytes) -> None:
    other = play.admission.issue(time.time())[0].encode()
    for bad in (other, changed(play.token, exp=2**40), b"sk-of-the-app"):
        for lines in ((first + bad, second + play.token), (first + play.token, second + bad)):
            ask(play, *lines)
            assert b"send one" in play.client.problem(401, "token_invalid").body
            ask(play, *reversed(lines))
            play.client.problem(401, "token_invalid")
    assert (play.dials, play.used()) == (0, 0)
    ask(play, first + play.token, second + play.token)
    assert play.token not in b" ".join(value for _, value in play.upstream.request().fields)


def test_a_user_name_is_a_token_like_any_other(play: Playbook) -> None:
    ask(play, line(FIELDS[-1], b"alice"), b"X-Api-Key: " + play.token)
    play.client.problem(401, "token_invalid")
    assert play.dials == 0
    ask(play, line(FIELDS[-1], play.token), b"X-Api-Key: " + play.token)
    play.upstream.request()


@pytest.mark.parametrize("none", [b"Authorization: Digest abc", b"Authorization: Bearer", b"Api-Key:"])
def test_a_field_without_a_token_contradicts_none(play: Playbook, none: bytes) -> None:
    ask(play, none, b"X-Api-Key: " + play.token)
    play.upstream.request()


@pytest.mark.parametrize("second", [b"X-Api-Key: ", b"Authorization: Bearer ", b"API-KEY: "])
@pytest.mark.parametrize("where", ["in front", "behind"])
def test_a_second_token_is_seen_on_a_connection_whose_heads_are_known(
    play: Playbook, second: bytes, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parser reads what it has often seen by a shorter way."""
    monkeypatch.setattr(template, "HEADS_A_TEMPLATE", 0)
    for number in range(8):
        good = [b"Authorization: Bearer " + play.token, b"X-Id: %d" % number, b"Accept: */*"]
        ask(play, *good)
        play.upstream.request()
        play.upstream.answers()
        assert play.client.answer().status == 200
        extra = second + b"sk-another"
        ask(play, *([extra, *good] if where == "in front" else [*good, extra]))
        play.client.problem(401, "token_invalid")
        play.upstream.got_nothing()
    assert play.used() == 8


def test_the_work_is_the_same_whatever_is_wrong(play: Playbook, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many hashes for a token that nobody signed as for one that is good: none for what is no token at all."""
    hashes: list[bytes] = []
    make = Signer.get_signature

    def counted(signer: Signer, value: bytes) -> bytes:
        hashes.append(value)
        signature: bytes = make(signer, value)
        return signature

    monkeypatch.setattr(Signer, "get_signature", counted)
    admission = play.admission
    admission._signer = TokenSigner([b"t" * 32, OURS, b"u" * 32])
    counts: dict[str, int] = {}
    for name, bad in {"good": bytes, **BAD}.items():
        token = bad(play.token)
        hashes.clear()
        try:
            admission.authenticate(token, time.time())
        except TokenInvalid:
            assert name != "good"
        counts[name] = sum(value.startswith(b"gw_") for value in hashes)
    unlike = {
        "alg none",
        "alg none, as ours",
        "no signature",
        "odd characters",
        "quoted",
        "escaped",
        "a little too long",
    }
    assert {name: count for name, count in counts.items() if name not in unlike and count != 3} == {}
    assert {counts[name] for name in unlike} == {0}
