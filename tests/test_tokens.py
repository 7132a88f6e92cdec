"""Tokens: what is issued verifies, and nothing that differs from it by a single bit does."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re

import pytest
from itsdangerous import Signer

from gateway.errors import TokenExpired, TokenInvalid
from gateway.tokens import TOKEN_LIMIT_BYTES, Claims, TokenSigner, new_token_id

OLD, NEW = b"o" * 32, b"n" * 32
NOW_S = 1_800_000_000.0
CLAIMS = Claims(
    id="Zm9vYmFyYmF6cXV4MTIzNA",
    name="worker",
    issued_at_s=1_799_999_000,
    expires_at_s=1_800_000_060,
    limits=("10/second", "600/hour"),
    targets=("api",),
    methods=("GET", "POST"),
    paths=("/v1/chat", "/v1/models/"),
)


@pytest.fixture
def signer() -> TokenSigner:
    return TokenSigner([NEW])


@pytest.fixture
def token(signer: TokenSigner) -> bytes:
    return signer.issue(CLAIMS).encode()


def sign_by_hand(payload: bytes, secret: bytes = NEW) -> bytes:
    """Return a token with a good signature over any payload, well formed or not."""
    signer = Signer(secret, salt=b"gateway.tokens", key_derivation="hmac", digest_method=hashlib.sha256)
    return signer.sign(b"gw_" + payload)


def encoded(data: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=")


def refused(signer: TokenSigner, token: bytes) -> str:
    with pytest.raises(TokenInvalid) as caught:
        signer.verify(token, now_s=NOW_S)
    return caught.value.detail


def test_what_was_issued_is_what_verifies(signer: TokenSigner, token: bytes) -> None:
    assert re.fullmatch(rb"gw_[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{43}", token)
    assert signer.verify(token, now_s=NOW_S) == CLAIMS


def test_the_least_claims_verify_too(signer: TokenSigner) -> None:
    claims = Claims(id=new_token_id(), issued_at_s=0)
    assert signer.verify(signer.issue(claims).encode(), now_s=NOW_S) == claims


def test_the_mac_is_hmac_sha256_over_all_before_the_dot(token: bytes) -> None:
    signed, _, mac = token.rpartition(b".")
    key = hmac.digest(NEW, b"gateway.tokens", "sha256")
    assert base64.urlsafe_b64decode(mac + b"=") == hmac.digest(key, signed, "sha256")


def test_the_payload_is_readable_json(token: bytes) -> None:
    payload = token[3:].partition(b".")[0]
    assert json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4))) == {
        "id": CLAIMS.id,
        "name": "worker",
        "iat": CLAIMS.issued_at_s,
        "exp": CLAIMS.expires_at_s,
        "limits": ["10/second", "600/hour"],
        "targets": ["api"],
        "methods": ["GET", "POST"],
        "paths": ["/v1/chat", "/v1/models/"],
    }


def test_budgets_are_in_it_where_there_are_some(signer: TokenSigner) -> None:
    claims = Claims(
        id="a.b.c",
        issued_at_s=0,
        budgets=("5 USD/day", "9 tokens/minute"),
        above=(None, ("1/day",)),
        above_budgets=(("7 USD/month",), None),
    )
    token = signer.issue(claims).encode()
    assert signer.verify(token, now_s=NOW_S) == claims
    payload = token[3:].partition(b".")[0]
    assert json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4))) == {
        "id": "a.b.c",
        "iat": 0,
        "budgets": ["5 USD/day", "9 tokens/minute"],
        "above": [None, ["1/day"]],
        "above_budgets": [["7 USD/month"], None],
    }
    assert claims.budgets_by_generation() == (("5 USD/day", "9 tokens/minute"), None, ("7 USD/month",))


def test_a_token_of_before_there_were_budgets_says_nothing_of_them(signer: TokenSigner) -> None:
    old = sign_by_hand(encoded({"id": "a.b", "iat": 0, "above": [["1/day"]], "limits": ["1/hour"]}))
    claims = signer.verify(old, now_s=NOW_S)
    assert claims.budgets_by_generation() == (None, None)
    # And one that has none is as short as it ever was.
    assert b"budgets" not in base64.urlsafe_b64decode(signer.issue(claims)[3:].partition(".")[0] + "==")


@pytest.mark.parametrize("budgets", [[["5 USD/day"]], [None, None, None], [1, None], "x"])
def test_budgets_of_tokens_it_was_not_made_from_are_refused(signer: TokenSigner, budgets: object) -> None:
    fields = {"id": "a.b.c", "iat": 0, "above": [None, None], "above_budgets": budgets}
    assert "claims" in refused(signer, sign_by_hand(encoded(fields)))


def test_a_name_of_any_script_stays_ascii_in_the_token(signer: TokenSigner) -> None:
    claims = Claims(id="a", name="Zoë 🦊", issued_at_s=0)
    assert signer.verify(signer.issue(claims).encode("ascii"), now_s=NOW_S) == claims


def test_a_name_that_is_no_text_is_refused_where_it_is_given_and_where_it_was_signed(signer: TokenSigner) -> None:
    with pytest.raises(ValueError, match="name"):
        Claims(id="a", name="\ud800", issued_at_s=0)
    assert "claims" in refused(signer, sign_by_hand(encoded({"id": "a", "name": "\ud800", "iat": 0})))


def test_every_single_bit_flip_is_refused(signer: TokenSigner, token: bytes) -> None:
    for position in range(len(token)):
        for bit in range(8):
            changed = bytearray(token)
            changed[position] ^= 1 << bit
            refused(signer, bytes(changed))


def test_every_truncation_is_refused(signer: TokenSigner, token: bytes) -> None:
    for length in range(len(token)):
        refused(signer, token[:length])
        refused(signer, token[length + 1 :])


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token + b"=",
        lambda token: token + b"==",
        lambda token: token.replace(b".", b"=."),
        lambda token: token.replace(b".", b"%2E"),
        lambda token: token.replace(b".", b".."),
        lambda token: token.upper(),
        lambda token: token.lower(),
        lambda token: token.swapcase(),
        lambda token: b"GW_" + token[3:],
        lambda token: token[3:],
        lambda token: b" " + token,
        lambda token: token + b" ",
        lambda token: token + b"\n",
        lambda token: b"\t" + token + b"\r\n",
        lambda token: token.replace(b".", b" ."),
        lambda token: token + b"\x00",
        lambda token: token + b"\xff",
        lambda token: "é".encode() + token,
        lambda token: token.replace(b".", "․".encode()),  # noqa: RUF001 (one dot leader, U+2024)
        lambda token: token + b"." + token.rpartition(b".")[2],
        lambda token: token + token,
        lambda token: b"",
        lambda token: b".",
        lambda token: b"gw_.",
        lambda token: b"gw_." + b"A" * 43,
        lambda token: b"gw_" + token,
    ],
)
def test_other_spellings_are_refused(signer: TokenSigner, token: bytes, change: object) -> None:
    assert callable(change)
    refused(signer, change(token))


def test_other_base64_alphabets_are_refused(signer: TokenSigner) -> None:
    """Some of these tokens have `-` or `_` in both halves; spelled with `+` and `/`, none passes."""
    respelled = 0
    for number in range(64):
        token = signer.issue(Claims(id=f"t{number}", name="~~~???>>>", issued_at_s=0)).encode()
        other = token[:3] + token[3:].replace(b"-", b"+").replace(b"_", b"/")
        if other != token:
            respelled += 1
            refused(signer, other)
    assert respelled > 32


def test_a_mac_with_other_unused_bits_is_refused(signer: TokenSigner, token: bytes) -> None:
    """43 base64 characters hold 258 bits: two of the last one's are not the mac's and could be anything."""
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    same_bytes = [
        other
        for character in alphabet
        if (other := token[:-1] + bytes([character])) != token
        and base64.urlsafe_b64decode(other.rpartition(b".")[2] + b"=")
        == base64.urlsafe_b64decode(token.rpartition(b".")[2] + b"=")
    ]
    assert len(same_bytes) == 3
    for other in same_bytes:
        refused(signer, other)


def test_rotation_signs_with_the_first_and_verifies_with_all() -> None:
    before, during, after = TokenSigner([OLD]), TokenSigner([NEW, OLD]), TokenSigner([NEW])
    old_token, new_token = before.issue(CLAIMS).encode(), during.issue(CLAIMS).encode()
    assert during.verify(old_token, now_s=NOW_S) == CLAIMS
    assert during.verify(new_token, now_s=NOW_S) == CLAIMS
    assert after.verify(new_token, now_s=NOW_S) == CLAIMS
    refused(after, old_token)
    refused(before, new_token)


def test_another_gateways_token_is_refused(signer: TokenSigner) -> None:
    refused(signer, TokenSigner([b"somebody else's secret"]).issue(CLAIMS).encode())


def test_a_signature_made_for_another_purpose_is_refused(signer: TokenSigner, token: bytes) -> None:
    signed = token.rpartition(b".")[0]
    for other in (
        Signer(NEW, digest_method=hashlib.sha256, key_derivation="hmac"),
        Signer(NEW, salt=b"gateway.tokens", key_derivation="hmac"),
        Signer(NEW, salt=b"gateway.tokens", key_derivation="none", digest_method=hashlib.sha256),
    ):
        refused(signer, other.sign(signed))


def test_unsigned_payloads_are_refused(signer: TokenSigner, token: bytes) -> None:
    payload = encoded({"id": "me", "iat": 0, "limits": ["1000000/second"]})
    mac = token.rpartition(b".")[2]
    jwt = encoded({"alg": "none"}) + b"." + payload + b"."
    for forged in (
        b"gw_" + payload,
        b"gw_" + payload + b".",
        b"gw_" + payload + b"." + mac,
        jwt,
        b"gw_" + jwt,
    ):
        refused(signer, forged)


def test_expiry_is_the_first_instant_that_is_refused(signer: TokenSigner, token: bytes) -> None:
    assert CLAIMS.expires_at_s is not None
    assert signer.verify(token, now_s=CLAIMS.expires_at_s - 0.001) == CLAIMS
    for now_s in (CLAIMS.expires_at_s, CLAIMS.expires_at_s + 0.001, CLAIMS.expires_at_s + 1e9):
        with pytest.raises(TokenExpired):
            signer.verify(token, now_s=now_s)


def test_a_token_of_the_future_is_refused_but_for_what_clocks_differ(signer: TokenSigner, token: bytes) -> None:
    assert signer.verify(token, now_s=CLAIMS.issued_at_s - 60.0) == CLAIMS
    with pytest.raises(TokenInvalid, match="in the future"):
        signer.verify(token, now_s=CLAIMS.issued_at_s - 60.001)


def test_a_forged_token_is_never_called_expired(signer: TokenSigner, token: bytes) -> None:
    with pytest.raises(TokenInvalid):
        signer.verify(token[:-1] + bytes([token[-1] ^ 1]), now_s=NOW_S * 2)


class NeverRead(bytes):
    """Bytes that only their length may be asked of."""

    def rpartition(self, sep: object, /) -> tuple[bytes, bytes, bytes]:
        raise AssertionError("an overlong token was read")


def test_an_overlong_token_costs_a_length_check(signer: TokenSigner, token: bytes) -> None:
    refused(signer, NeverRead(token + b"A" * 1_000_000))
    refused(signer, NeverRead(b"gw_" + b"." * 1_000_000))


def test_the_longest_token_verifies_and_a_longer_one_is_not_issued(signer: TokenSigner) -> None:
    def claims(limits: int) -> Claims:
        return Claims(id="a", issued_at_s=0, limits=("1/second",) * limits)

    longest = max(count for count in range(200) if len(encoded({"limits": ["1/second"] * count})) < 1900)
    while True:
        try:
            token = signer.issue(claims(longest)).encode()
        except ValueError:
            break
        assert len(token) <= TOKEN_LIMIT_BYTES
        assert signer.verify(token, now_s=NOW_S) == claims(longest)
        longest += 1


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"!!!!",
        b"A",
        encoded([]),
        encoded("me"),
        encoded({}),
        encoded({"id": "a"}),
        encoded({"iat": 1}),
        encoded({"id": "a", "iat": 1, "cidr": ["10.0.0.0/8"]}),
        encoded({"id": "a", "iat": 1, "paths": ["v1"]}),
        encoded({"id": "a", "iat": 1, "paths": []}),
        encoded({"id": "a", "iat": 1, "paths": "/v1"}),
        encoded({"id": "a", "iat": 1, "methods": ["get"]}),
        encoded({"id": "a", "iat": 1, "targets": [7]}),
        encoded({"id": "a{b}", "iat": 1}),
        encoded({"id": "", "iat": 1}),
        encoded({"id": 7, "iat": 1}),
        encoded({"id": "a", "iat": True}),
        encoded({"id": "a", "iat": 1.5}),
        encoded({"id": "a", "iat": 1, "exp": "never"}),
        encoded({"id": "a", "iat": 1, "exp": 1}),
        encoded({"id": "a", "iat": 1, "limits": "60"}),
        encoded({"id": "a", "iat": 1, "limits": [60]}),
        encoded({"id": "a", "iat": 1, "name": "n" * 129}),
        base64.urlsafe_b64encode(b"\xff\xfe"),
        base64.urlsafe_b64encode(b"[" * 1200),
    ],
)
def test_a_signed_payload_that_is_no_claims_is_refused(signer: TokenSigner, payload: bytes) -> None:
    refused(signer, sign_by_hand(payload))


def test_details_never_contain_the_token(signer: TokenSigner, token: bytes) -> None:
    tampered = token[:-4] + b"AAAA"
    details = [refused(signer, text) for text in (tampered, token[:40], token + b"x" * 4096, b"gw_secretish")]
    with pytest.raises(TokenExpired) as caught:
        signer.verify(token, now_s=NOW_S * 2)
    details.append(caught.value.detail)
    for detail in details:
        for start in range(len(token) - 8):
            assert token[start : start + 8].decode() not in detail
        assert "secretish" not in detail


@pytest.mark.parametrize(
    ("secrets", "reason"),
    [([], "needs a secret"), ([b"x" * 15], "16 bytes"), ([NEW, b""], "16 bytes"), ([NEW, OLD, NEW], "twice")],
)
def test_secrets_that_protect_nothing_are_refused(secrets: list[bytes], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TokenSigner(secrets)


def test_new_ids_are_22_plain_characters_and_differ() -> None:
    ids = {new_token_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22}", token_id) for token_id in ids)


@pytest.mark.parametrize("drawn", [b"\xf8", b"\xfc", b"\xff", b"\0"])
def test_no_new_id_looks_like_an_option(monkeypatch: pytest.MonkeyPatch, drawn: bytes) -> None:
    monkeypatch.setattr("os.urandom", lambda count: drawn * count)
    assert new_token_id()[0].isalpha()
