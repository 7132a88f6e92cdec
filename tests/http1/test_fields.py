"""What single fields mean: hosts, lists, connection options, credentials."""

from __future__ import annotations

from base64 import b64encode

import pytest

from gateway.http1.fields import credential, is_host, list_members, remove_named


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
