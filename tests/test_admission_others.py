"""Admissions made from another one: all of them know which tokens are revoked, whatever becomes of the store."""

from __future__ import annotations

import tracemalloc

import pytest

from gateway.admission import Admission
from gateway.budgets.family import GatewayBudgets
from gateway.errors import TokenInvalid, TokenRevoked
from gateway.limits import parse_limits
from gateway.stores.memory import MemoryStore
from gateway.tokens import TokenSigner

LIMITS = parse_limits("5/minute")


async def test_a_revoked_token_is_known_to_all_without_the_store() -> None:
    signer = TokenSigner([b"s" * 32])
    first = Admission(MemoryStore(), signer, LIMITS, (), None)
    token, claims = first.issue(0.0)
    before = first.beside("maps", LIMITS)
    assert before.authenticate(token.encode(), 0.0).id == claims.id
    await first.revoke(claims.id, None, now_s=0.0)
    renewed = first.renewed(signer, LIMITS, (), None, shadow=False, budgets=GatewayBudgets())
    for admission in (first, before, first.beside("maps", LIMITS), renewed, renewed.beside("maps", LIMITS)):
        with pytest.raises(TokenRevoked):
            admission.authenticate(token.encode(), 0.0)


def test_without_limits_of_its_own_a_target_needs_no_other() -> None:
    admission = Admission(MemoryStore(), TokenSigner([b"s" * 32]), LIMITS, (), None)
    assert admission.beside("maps", ()) is admission


def test_a_token_issued_elsewhere_under_more_limits_than_are_checked_at_once_is_refused_with_the_reason() -> None:
    signer = TokenSigner([b"s" * 32])
    many = parse_limits(",".join(f"9/{seconds}s" for seconds in range(1, 17)))
    elsewhere = Admission(MemoryStore(), signer, many, (), None)
    root, _ = elsewhere.issue(0.0)
    child = root
    for _ in range(2):
        parent = elsewhere.authenticate(child.encode(), 0.0)
        child, _ = elsewhere.issue_child(parent, 0.0, limits=[f"9/{seconds}s" for seconds in range(1, 17)])
    here = Admission(MemoryStore(), signer, many, (), None)
    at_maps = here.beside("maps", parse_limits("1,2/hour,3/day"))
    assert len(here.authenticate(child.encode(), 0.0).policies) == 48
    with pytest.raises(TokenInvalid, match="more than 50 limits"):
        at_maps.authenticate(child.encode(), 0.0)


def test_tokens_with_many_limits_take_not_much_more_memory_than_those_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has a token makes 60 others a minute of it: 8192 with fifty limits each had 800 MB."""
    monkeypatch.setattr("gateway.admission.MAX_SUBJECTS", 16)
    signer = TokenSigner([b"s" * 32])
    most_bytes = []
    for count in (1, 16):
        admission = Admission(MemoryStore(), signer, LIMITS, (), None)
        limits = [f"9/{seconds}s" for seconds in range(1, count + 1)]
        tokens = [admission.issue(0.0, limits=limits)[0].encode() for _ in range(40)]
        remembered = 0
        tracemalloc.start()
        try:
            for token in tokens:
                admission.authenticate(token, 0.0)
                remembered = max(remembered, len(admission._subjects))
            most_bytes.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert remembered == (16 if count == 1 else 6)
    assert most_bytes[1] < 3.6 * most_bytes[0]
