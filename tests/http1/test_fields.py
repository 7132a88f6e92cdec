"""What single fields mean: hosts, lists, connection options, credentials."""

from __future__ import annotations

from base64 import b64encode

import pytest

from gateway.http1 import fields
from gateway.http1.fields import credential, list_members, remove_named, takes_trailers, tunnelled_protocols
from gateway.http1.gate import is_host


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"a",
        b"a.test",
        b"A.Test:80",
        b"a:",
        b"127.0.0.1:3000",
        b"[::1]",
        b"[::1]:80",
        b"[v1.a:b]",
        b"a_b-c~!$&'()*+,;=",
        b"%41",
    ],
)
def test_a_host(value: bytes) -> None:
    assert is_host(value)


@pytest.mark.parametrize(
    "value",
    [
        b" ",
        b"a b",
        b"a/b",
        b"a?b",
        b"a#b",
        b"u@a",
        b"a:b",
        b"a:80:80",
        b"a:123456",
        b"::1",
        b"[::1",
        b"[::1]x",
        b"[]",
        b"[1.2.3.4]",
        b"[::1::2]",
        b"[:]",
        b"[fe80::1%25eth0]",
        b"a\\b",
        b"\xc3\xa9",
        b"a\x00",
        b"a\n",
        b"%4",
        b"%zz",
        b'"a"',
        b"a,b c",
    ],
)
def test_no_host(value: bytes) -> None:
    assert not is_host(value)


def test_members_of_a_list() -> None:
    assert list_members(b"close") == [b"close"]
    assert list_members(b" Close ,\t,X-A , ,b,") == [b"close", b"x-a", b"b"]
    assert list_members(b"") == list_members(b" , ,") == []


def test_named_lines_are_removed_in_any_case_and_wherever_they_stand() -> None:
    lines = [b"X-A: 1", b"x-a:2", b"X-Ab: 3", b"B: X-A", b"X-A:"]
    assert remove_named(lines, [b"x-a", b"nowhere"]) == [b"X-Ab: 3", b"B: X-A"]


@pytest.mark.parametrize("name", [b"Host", b"Content-Length", b"Transfer-Encoding", b"Authorization", b"Content-Type"])
def test_some_lines_are_never_removed(name: bytes) -> None:
    assert remove_named([name + b": x"], [name.lower()]) == [name + b": x"]


@pytest.mark.parametrize(
    "te", [b"trailers", b"Trailers", b"trailers, deflate;q=0.5", b"gzip,\ttrailers ,", b",trailers", b"x, TRAILERS"]
)
def test_te_that_takes_trailers(te: bytes) -> None:
    assert takes_trailers(te)


@pytest.mark.parametrize(
    "te", [b"", b"gzip", b"trailer", b"trailersx", b"trailers;q=0", b"x trailers", b'x;a=", trailers,"', b"chunked"]
)
def test_te_that_does_not(te: bytes) -> None:
    assert not takes_trailers(te)


@pytest.mark.parametrize(
    ("upgrade", "expected"),
    [
        (b"websocket", [b"websocket"]),
        (b"WebSocket/13", [b"WebSocket/13"]),
        (b" ,a/1 ,\tb,, c ", [b"a/1", b"b", b"c"]),
        (b"", []),
        (b'a b, a/b/c, /1, a/, a;q=1, \xff, "a"', []),
        (b"h2c, websocket, H2C", [b"websocket"]),
        (b"h2, h2-14, h2c-17, h2c/x, h3, h3-29, h10", []),
        (b"HTTP/2.0, http, HTTPS, http/1.1, SHTTP/1.3, HTTP-x", []),
        (b"TLS/1.0, tls, SSL, ssl-3, SPDY/3.1", []),
        (b"h, h2x, httpx, xhttp, tlsx, hc, connect-udp, IRC/6.9", None),
    ],
)
def test_what_an_upstream_may_be_offered(upgrade: bytes, expected: list[bytes] | None) -> None:
    assert tunnelled_protocols(upgrade) == (upgrade.split(b", ") if expected is None else expected)


def basic(text: bytes) -> bytes:
    return b"Basic " + b64encode(text)


@pytest.mark.parametrize(
    ("value", "token"),
    [
        (b"Bearer abc", b"abc"),
        (b"bearer abc", b"abc"),
        (b"BEARER   abc", b"abc"),
        (b"Bearer abc def", b"abc def"),
        (b"Bearer", None),
        (b"Bearer ", None),
        (b"Bearerabc", None),
        (b"", None),
        (b"abc", None),
        (b"Digest abc", None),
        (basic(b"user:password"), b"user"),
        (basic(b"user:"), b"user"),
        (basic(b"user"), b"user"),
        (basic(b":password"), b"password"),
        (basic(b":pass:word"), b"pass:word"),
        (basic(b":"), None),
        (basic(b""), None),
        (b"basic " + b64encode(b"user:x"), b"user"),
        (b"Basic !!!", None),
        (b"Basic YWJ", None),
        (b"Basic \xff", None),
    ],
)
def test_the_token_in_authorization(value: bytes, token: bytes | None) -> None:
    assert credential(value) == token


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [b"Accept-Encoding: gzip"],
        [b"A: 1", b"accept-encoding:", b"B: Accept-Encoding: 2", b"X-Accept-Encoding: 3"],
        [b"ACCEPT-ENCODING: a", b"Accept-Encoding: b", b"C: 1", b"Accept-Encoding: c"],
        [b"A: 1", b"Accept-Encodings: 2"],
    ],
)
def test_a_field_is_dropped_of_lines_that_are_joined(lines: list[bytes]) -> None:
    joined = b"".join(b"\r\n" + line for line in lines)
    kept = b"".join(b"\r\n" + line for line in fields.without(lines, {b"accept-encoding"}))
    assert fields.without_field(joined, b"\r\naccept-encoding:") == kept


def test_a_table_leaves_its_bytes_and_no_other() -> None:
    table = fields.only(b"ba")
    for byte in range(256):
        one = bytes((byte,))
        assert (one.translate(table) == one) is (one in b"ab")
