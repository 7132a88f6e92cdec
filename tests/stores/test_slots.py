"""Slots: which one a key is in, and what nodes say of them."""

from __future__ import annotations

import pytest

from gateway.stores.slots import Redirect, Share, key_slot, probe_tag, read_redirect, read_shares


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        # From the cluster specification, and `CLUSTER KEYSLOT` of Redis 7.0.
        (b"123456789", 12739),
        (b"foo", 12182),
        (b"{foo}", 12182),
        (b"gateway:{foo}:limit:minute", 12182),
        (b"a{foo}b{bar}", 12182),
        (b"{}foo", 9500),
        (b"foo{}{bar}", 8363),
        (b"", 0),
    ],
)
def test_the_slot_of_a_key(key: bytes, slot: int) -> None:
    assert key_slot(key) == slot


def test_a_probe_tag_is_in_its_range() -> None:
    for first, last in ((0, 16383), (0, 0), (16383, 16383), (5461, 10922)):
        assert first <= key_slot(f"{{{probe_tag(first, last)}}}".encode()) <= last


def test_shares_are_read() -> None:
    reply = [
        [0, 8000, [b"10.0.0.1", 6379, b"id", []], [b"10.0.0.2", 6379, b"id2", []]],
        [8001, 16383, [b"", 7000, b"id3"]],
        [5, 6, [None, 7000, b"id3", [b"hostname", b"x"]]],
    ]
    assert read_shares(reply) == [Share(0, 8000, "10.0.0.1", 6379), Share(8001, 16383, "", 7000), Share(5, 6, "", 7000)]


@pytest.mark.parametrize(
    "reply", [[], None, b"x", [[]], [[0, 1]], [[0, 1, []]], [[0, 16384, [b"h", 1]]], [["x", 1, [b"h", 1]]]]
)
def test_what_is_no_list_of_shares_is_refused(reply: object) -> None:
    with pytest.raises(ValueError, match="a node does not"):
        read_shares(reply)


@pytest.mark.parametrize(
    ("error", "redirect"),
    [
        ("MOVED 3999 127.0.0.1:6381", Redirect(True, 3999, "127.0.0.1", 6381)),
        ("ASK 3999 node.example:6381", Redirect(False, 3999, "node.example", 6381)),
        ("MOVED 3999 ::1:6381", Redirect(True, 3999, "::1", 6381)),
        ("MOVED 3999 :6381", Redirect(True, 3999, "", 6381)),
        ("MOVED 3999 ?:6381", None),
        ("MOVED 3999", None),
        ("MOVED x y:1", None),
        ("CLUSTERDOWN The cluster is down", None),
    ],
)
def test_redirects_are_read(error: str, redirect: Redirect | None) -> None:
    assert read_redirect(error) == redirect
