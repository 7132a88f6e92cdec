"""The gateway's own endpoints, over the wire: who may have a token, and how it does."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import prometheus_client.core  # noqa: F401 - here, and not in a thread of the gateway's while the script stands still
import pytest

from gateway.budgets.budget import NANO
from gateway.readiness import SHARED_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Client, Playbook
    from tests.kit.wire import Message

ADMIN_KEY = b"an-admin-key-of-32-characters-ok"
ADMIN = b"Authorization: Bearer " + ADMIN_KEY
ELSEWHERE = ("203.0.113.7", 40000)


def ask(client: Client, method: bytes, target: bytes, *lines: bytes, body: bytes = b"") -> None:
    fields = [b"Host: localhost", *lines]
    if body:
        fields.append(b"Content-Length: %d" % len(body))
    client.sends(b"\r\n".join((method + b" " + target + b" HTTP/1.1", *fields, b"", body)))


def minted(answer: Message) -> dict[str, Any]:
    assert answer.status == 201, answer
    assert answer.value(b"cache-control") == b"no-store"
    assert answer.value(b"content-type") == b"application/json"
    members: dict[str, Any] = json.loads(answer.body)
    assert members.keys() == {"token", "id", "expires_at"}
    return members


@pytest.fixture
def guarded(make_play: Callable[..., Playbook]) -> Playbook:
    return make_play(admin_key=ADMIN_KEY.decode())


# --- /register -------------------------------------------------------------------------------------------------------


def test_a_local_peer_registers_and_the_token_works(play: Playbook) -> None:
    ask(play.client, b"POST", b"/register")
    members = minted(play.client.answer())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", members["expires_at"])
    assert members["token"] not in (members["id"], None)
    play.token = members["token"].encode()
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    play.upstream.answers()
    assert play.client.answer().value(b"ratelimit") == b'"minute";r=59;t=61'


@pytest.mark.parametrize(
    "peer", [("127.0.0.1", 1), ("127.8.9.10", 1), ("::1", 1, 0, 0), ("::ffff:127.0.0.1", 1, 0, 0), "", b""]
)
def test_local_is_loopback_and_unix_sockets(play: Playbook, peer: object) -> None:
    client = play.connect(peer)
    ask(client, b"POST", b"/register")
    minted(client.answer())


@pytest.mark.parametrize(
    "peer",
    [
        ELSEWHERE,
        None,
        ("10.0.0.1", 1),
        ("192.168.0.1", 1),
        ("2001:db8::1", 1, 0, 0),
        ("fe80::1%eth0", 1, 0, 2),
        ("::ffff:10.0.0.1", 1, 0, 0),
        ("0.0.0.0", 1),
    ],
)
def test_peers_elsewhere_register_nothing(play: Playbook, peer: object) -> None:
    client = play.connect(peer)
    ask(client, b"POST", b"/register")
    refusal = client.problem(403, "not_allowed")
    assert b"gw_" not in refusal.body


@pytest.mark.parametrize(
    "line", [b"X-Forwarded-For: 127.0.0.1", b"X-Real-Ip: 127.0.0.1", b"Forwarded: for=127.0.0.1", b"Host: localhost"]
)
def test_nothing_that_a_client_says_makes_it_local(play: Playbook, line: bytes) -> None:
    client = play.connect(ELSEWHERE)
    host = [] if line.startswith(b"Host") else [b"Host: localhost"]
    client.sends(b"\r\n".join((b"POST /register HTTP/1.1", *host, line, b"", b"")))
    client.problem(403, "not_allowed")


@pytest.mark.parametrize("peer", [("127.0.0.1", 1), ELSEWHERE, ""])
@pytest.mark.parametrize(
    "line",
    [b"X: no key", b"Authorization: Bearer wrong", ADMIN + b"x", ADMIN[:-1], b"Authorization: Digest " + ADMIN_KEY],
)
def test_with_an_admin_key_nobody_registers_without_it(guarded: Playbook, peer: object, line: bytes) -> None:
    client = guarded.connect(peer)
    ask(client, b"POST", b"/register", line)
    refusal = client.problem(403, "not_allowed")
    assert ADMIN_KEY not in refusal.body


PAGES = [
    b"Origin: http://rebound.example:3000",
    b"origin: null",
    b"Sec-Fetch-Site: same-origin",
    b"sec-fetch-site: cross-site",
    b"Origin:",
]


@pytest.mark.parametrize("line", PAGES)
@pytest.mark.parametrize("around", [(), (b"Accept: */*", b"User-Agent: Mozilla/5.0")])
def test_a_web_page_on_this_machine_registers_nothing(play: Playbook, line: bytes, around: tuple[bytes, ...]) -> None:
    ask(play.client, b"POST", b"/register", *around, line, *around[:1])
    refusal = play.client.problem(403, "not_allowed")
    assert b"gw_" not in refusal.body
    assert play.client.state == "open"


GUARDED = [
    (b"POST", b"/register"),
    (b"GET", b"/admin/tokens"),
    (b"DELETE", b"/admin/tokens/none"),
    (b"GET", b"/admin/usage"),
    (b"GET", b"/admin/usage?stream"),
    (b"GET", b"/metrics"),
]


PROXIED = [
    b"X-Forwarded-For: 203.0.113.7",
    b"x-forwarded-proto: https",
    b"X-Real-IP: ::1",
    b"Forwarded: for=_x",
    b"Via: 1.1 x",
]


@pytest.mark.parametrize(("method", "target"), GUARDED)
@pytest.mark.parametrize("line", PROXIED)
def test_who_comes_through_a_proxy_or_a_tunnel_on_this_machine_is_not_local(
    make_play: Callable[..., Playbook], method: bytes, target: bytes, line: bytes
) -> None:
    """Whoever puts one before the gateway would else give everybody tokens, and the list of those that there are."""
    for key, status in (("", 403), (ADMIN_KEY.decode(), 200)):
        play = make_play(admin_key=key or None)
        for client in (play.client, play.connect("")):
            ask(client, method, target, b"Accept: */*", line, *([ADMIN] if key else []))
            answer = client.head() if target.endswith(b"stream") else client.answer()
            assert answer.status in {status, 201 if status == 200 else 403}
            assert (b"gw_" in answer.body) == (target == b"/register" and status == 200)


@pytest.mark.parametrize(("method", "target"), GUARDED)
@pytest.mark.parametrize(
    "host", [b"rebound.example:3000", b"127.0.0.1.rebound.example", b"notlocalhost", b"localhost.example", b"1.2.3"]
)
def test_a_name_that_may_be_a_pages_own_gets_no_answer(
    make_play: Callable[..., Playbook], method: bytes, target: bytes, host: bytes
) -> None:
    request = b"%b %b HTTP/1.1\r\nHost: %b\r\n%b\r\n"
    play = make_play()
    for _ in range(3):  # the later ones are read as the first was
        play.client.sends(request % (method, target, host, b""))
        assert b"ADMIN_KEY" in play.client.problem(403, "not_allowed").body
    guarded = make_play(admin_key=ADMIN_KEY.decode())
    guarded.client.sends(request % (method, target, host, ADMIN + b"\r\n"))
    assert guarded.client.head().status in {200, 201}
    guarded.client.resets()


@pytest.mark.parametrize(
    "host",
    [
        *(b"localhost", b"LocalHost:3000", b"localhost.", b"gateway.localhost:3000", b""),
        *(b"127.0.0.1:3000", b"192.168.7.7", b"[::1]:3000", b"[fe80::1]"),
    ],
)
def test_an_address_and_what_is_always_this_machine_are_nobodys_name(play: Playbook, host: bytes) -> None:
    for _ in range(3):
        play.client.sends(b"POST /register HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        minted(play.client.answer())


def test_programs_without_a_host_and_on_a_unix_socket_are_no_browsers(play: Playbook) -> None:
    old = play.connect()
    old.sends(b"POST /register HTTP/1.0\r\n\r\n")
    minted(old.answer())
    local = play.connect("")
    local.sends(b"POST /register HTTP/1.1\r\nHost: whatever\r\n\r\n")
    minted(local.answer())


@pytest.mark.parametrize("line", PAGES)
def test_a_web_page_registers_with_the_admin_key_and_not_without(guarded: Playbook, line: bytes) -> None:
    ask(guarded.client, b"POST", b"/register", line)
    guarded.client.problem(403, "not_allowed")
    ask(guarded.client, b"POST", b"/register", line, ADMIN)
    minted(guarded.client.answer())


def test_a_field_that_only_looks_like_a_pages_does_not_matter(play: Playbook) -> None:
    ask(
        play.client, b"POST", b"/register", b"X-Origin: a", b"Origin-Trial: b", b"Sec-Fetch-Mode: cors", b"X: Origin: c"
    )
    minted(play.client.answer())


def test_a_clients_token_is_no_admin_key(guarded: Playbook) -> None:
    ask(guarded.client, b"POST", b"/register", b"Authorization: Bearer " + guarded.token)
    guarded.client.problem(403, "not_allowed")


@pytest.mark.parametrize("line", [ADMIN, b"authorization: bearer " + ADMIN_KEY, b"X-Api-Key: " + ADMIN_KEY])
def test_the_admin_registers_from_anywhere(guarded: Playbook, line: bytes) -> None:
    client = guarded.connect(ELSEWHERE)
    ask(client, b"POST", b"/register", line)
    answer = client.answer()
    minted(answer)
    assert ADMIN_KEY not in answer.body


def test_an_admin_may_say_what_a_token_is_like(guarded: Playbook) -> None:
    body = json.dumps({"name": "worker", "ttl": "2h", "limits": ["3/minute", "9/hour"]}).encode()
    ask(guarded.client, b"POST", b"/register", ADMIN, body=body)
    members = minted(guarded.client.answer())
    ends_s = time.mktime(time.strptime(members["expires_at"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert 7000 < ends_s - time.time() <= 7200
    guarded.token = members["token"].encode()
    guarded.client.sends(guarded.request(b"GET", b"/api/x"))
    guarded.upstream.answers()
    answer = guarded.client.answer()
    assert answer.value(b"ratelimit-policy") == b'"minute";q=3;w=60, "hour";q=9;w=3600'


def test_an_admin_may_say_what_a_token_may_cost(make_play: Callable[..., Playbook]) -> None:
    play = make_play(admin_key=ADMIN_KEY.decode(), budget="5 USD/hour", global_budget="9 USD/hour")
    body = json.dumps({"budgets": ["1 USD/minute", "200 tokens/minute"]}).encode()
    ask(play.client, b"POST", b"/register", ADMIN, body=body)
    token = minted(play.client.answer())["token"].encode()
    budgets = play.admission.authenticate(token, time.time()).budgets
    assert [budget.label for budget in budgets] == ["1m-USD", "1m-tokens", "global-1h-USD"]


def test_a_strangers_budget_is_ignored(make_play: Callable[..., Playbook]) -> None:
    play = make_play(budget="5 USD/hour")
    ask(play.client, b"POST", b"/register", body=b'{"budgets": ["1000000 USD/hour"]}')
    token = minted(play.client.answer())["token"].encode()
    budgets = play.admission.authenticate(token, time.time()).budgets
    assert [(budget.label, budget.amount) for budget in budgets] == [("1h-USD", 5 * NANO)]


def test_a_token_without_end(guarded: Playbook) -> None:
    ask(guarded.client, b"POST", b"/register", ADMIN, body=b'{"ttl": 0}')
    assert minted(guarded.client.answer())["expires_at"] is None


@pytest.mark.parametrize("body", [b'{"limits": ["1000000/second"], "ttl": 0}', b"{not json", b"[]", b"\xff\x00"])
def test_the_body_of_anyone_else_is_ignored(play: Playbook, body: bytes) -> None:
    ask(play.client, b"POST", b"/register", body=body)
    members = minted(play.client.answer())
    assert members["expires_at"] is not None
    play.token = members["token"].encode()
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.answers()
    assert play.client.answer().value(b"ratelimit-policy") == b'"minute";q=60;w=60'


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff",
        b'{"nmae": "x"}',
        b'{"name": 1}',
        b'{"name": "%s"}' % (b"x" * 129),
        b'{"ttl": "soon"}',
        b'{"ttl": -1}',
        b'{"ttl": true}',
        b'{"ttl": []}',
        b'{"limits": "60"}',
        b'{"limits": [60]}',
        b'{"limits": ["many"]}',
        b'{"limits": ["0/minute"]}',
        b'{"limits": []}',
        b'{"budgets": "5 USD/day"}',
        b'{"budgets": [5]}',
        b'{"budgets": ["5 EUR/day"]}',
        b'{"budgets": []}',
        b"[" * 4000,
    ],
)
def test_what_an_admin_cannot_wish_for_is_a_400(guarded: Playbook, body: bytes) -> None:
    ask(guarded.client, b"POST", b"/register", ADMIN, body=body)
    refusal = guarded.client.problem(400, "bad_request")
    assert ADMIN_KEY not in refusal.body


def test_a_body_has_4_kb_at_most(play: Playbook) -> None:
    ask(play.client, b"POST", b"/register", body=b"x" * 4096)
    minted(play.client.answer())
    play.client.sends(b"POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4097\r\n\r\n")
    assert play.client.problem(413, "body_too_large").value(b"connection") == b"close"
    assert play.client.is_ended


def test_a_body_in_chunks_has_no_length_to_trust(play: Playbook) -> None:
    play.client.sends(b"POST /register HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    play.client.problem(413, "body_too_large")


def test_a_body_that_comes_slowly_is_waited_for(guarded: Playbook) -> None:
    body = b'{"name": "slow"}'
    head = b"POST /register HTTP/1.1\r\nHost: localhost\r\n" + ADMIN + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
    guarded.client.dribbles(head + body[:-1])
    guarded.client.got_nothing()
    guarded.client.sends(body[-1:] + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    minted(guarded.client.answer())
    assert guarded.client.answer().status == 200


def test_a_body_that_does_not_come_is_a_408(play: Playbook) -> None:
    play.client.sends(b"POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
    play.pass_time(31)
    play.client.problem(408, "request_timeout")
    assert play.client.is_ended


def test_a_client_that_waits_for_100_gets_it(play: Playbook) -> None:
    play.client.sends(
        b"POST /register HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    )
    play.client.got(b"HTTP/1.1 100 Continue\r\n\r\n")
    play.client.sends(b"{}")
    minted(play.client.answer())


@pytest.mark.parametrize(
    "target",
    [
        b"//register",
        b"/register/",
        b"/register?",
        b"/register?x=y",
        b"/%72egister",
        b"/%2fregister",
        b"/register%00",
        b"/REGISTER",
        b"/./register",
        b"/x/../register",
        b"/register;x",
        b"/register%20",
        b"/register/token",
    ],
)
def test_no_other_spelling_of_register_mints_or_leads_upstream(guarded: Playbook, target: bytes) -> None:
    ask(guarded.client, b"POST", target, ADMIN)
    guarded.client.problem(404, "not_found")
    assert guarded.dials == 0


@pytest.mark.parametrize("target", [b"http://h/register", b"http://127.0.0.1:3000/register"])
def test_an_absolute_form_of_register_mints_nothing(guarded: Playbook, target: bytes) -> None:
    ask(guarded.client, b"POST", target, ADMIN)
    answer = guarded.client.answer()
    assert answer.status in {403, 404}
    assert b"gw_" not in answer.body


def test_register_under_the_prefix_is_the_targets(play: Playbook) -> None:
    play.client.sends(play.request(b"POST", b"/api/register"))
    assert play.upstream.request().start == b"POST /v1/register HTTP/1.1"


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"post", b"TRACE"])
def test_registering_takes_a_post(play: Playbook, method: bytes) -> None:
    ask(play.client, method, b"/register")
    if method == b"HEAD":
        head = play.client.head()
        assert (head.status, head.value(b"allow")) == (405, b"POST")
        play.client.got_nothing()
    else:
        assert play.client.problem(405, "method_not_allowed").value(b"allow") == b"POST"
    assert play.client.state == "open"


# --- the others ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "status"), [(b"/healthz", "ok"), (b"/readyz", "ready"), (b"/healthz?probe=1", "ok")]
)
def test_health_and_readiness(play: Playbook, target: bytes, status: str) -> None:
    ask(play.client, b"GET", target)
    answer = play.client.answer()
    assert (answer.status, json.loads(answer.body)) == (200, {"status": status})
    assert answer.value(b"cache-control") == b"no-store"
    length = answer.value(b"content-length")
    ask(play.client, b"HEAD", target)
    head = play.client.answer(b"HEAD")
    assert (head.status, head.value(b"content-length")) == (200, length)
    play.client.got_nothing()
    ask(play.client, b"POST", target)
    assert play.client.problem(405, "method_not_allowed").value(b"allow") == b"GET, HEAD"
    assert play.dials == 0


def test_readiness_fails_with_the_store_and_health_does_not(play: Playbook) -> None:
    play.store.answers = False
    ask(play.client, b"GET", b"/readyz")
    assert play.client.problem(503, "store_unavailable").value(b"retry-after") == b"1"
    ask(play.client, b"GET", b"/healthz")
    assert play.client.answer().status == 200
    play.store.answers = True
    play.pass_time(SHARED_S)
    ask(play.client, b"GET", b"/readyz")
    assert play.client.answer().status == 200


@pytest.mark.parametrize("status", [200, 503])
def test_who_asks_for_readiness_all_the_time_keeps_no_store_busy(play: Playbook, status: int) -> None:
    play.store.answers = status == 200
    asked = play.store.asked
    others = [play.connect(ELSEWHERE) for _ in range(3)]
    for _ in range(10):
        for client in others:
            ask(client, b"GET", b"/readyz")
            assert client.answer().status == status
    assert play.store.asked == asked + 1


OTHERS = [b"/", b"/nowhere", b"/healthz/", b"/health", b"/.env", b"/admin", b"/admin/tokensx", b"/apix"]


@pytest.mark.parametrize("target", OTHERS)
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_anything_else_is_not_found(play: Playbook, method: bytes, target: bytes) -> None:
    ask(play.client, method, target, body=b"body" if method == b"POST" else b"")
    refusal = play.client.problem(404, "not_found")
    assert refusal.value(b"connection") == b"keep-alive"
    assert b"/api/" in refusal.body
    assert play.client.state == "open"


def test_an_answer_of_the_gateways_own_in_full(play: Playbook) -> None:
    ask(play.client, b"GET", b"/healthz", b"Connection: close")
    answer = play.client.answer()
    assert answer.start == b"HTTP/1.1 200 OK"
    assert sorted(answer.names) == [b"Cache-Control", b"Connection", b"Content-Length", b"Content-Type", b"Date"]
    assert answer.value(b"connection") == b"close"
    assert re.fullmatch(rb"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", answer.value(b"date") or b"")
    assert play.client.state == "closed"


def test_a_1_0_client_is_told_that_its_connection_is_kept(play: Playbook) -> None:
    play.client.sends(b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert play.client.answer().value(b"connection") == b"keep-alive"
    play.client.sends(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert play.client.answer().value(b"connection") == b"close"
    assert play.client.state == "closed"


def test_endpoints_need_no_place(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="1/minute")
    for _ in range(5):
        ask(play.client, b"GET", b"/healthz")
        assert play.client.answer().status == 200
    assert play.used() == 0
