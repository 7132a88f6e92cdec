"""Tokens: claims that only this gateway can have signed. Pure: `now` is an argument.

A token is `gw_<payload>.<mac>`: the payload is compact JSON in base64url without padding, the mac is
HMAC-SHA256 (by itsdangerous' `Signer`) over everything before the dot, prefix included. Nothing of a payload
is decoded before its signature has been found good, so whatever a stranger sends costs one length check or a
few hashes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from itsdangerous import Signer

from gateway.errors import TWO_TOKENS, TokenExpired, TokenInvalid
from gateway.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKEN_LIMIT_BYTES = 2048
"""Far more than the longest token issued, far less than a head may hold."""

SECRET_MIN_BYTES = 16
"""128 bits: a shorter key could be searched for, offline, from one token."""

NAME_LIMIT_CHARACTERS = 128

SKEW_S = 60
"""How far the clock of a gateway that issued a token may be ahead of this one's."""

_T = TypeVar("_T")
_PREFIX = b"gw_"
_SALT = b"gateway.tokens"
_MAC_CHARACTERS = 43  # 32 bytes in base64url without padding
_CLAIMS = frozenset(
    {"above", "above_budgets", "id", "name", "iat", "exp", "limits", "budgets", "targets", "methods", "paths"}
)
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}(?:\.[A-Za-z0-9_-]{1,32}){0,3}")
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell one, a shell's argument too; in Redis there is none
_UNLIKE = "The token does not look like one of this gateway's, which POST /register issues."
_CONTRADICTION = "The request has two tokens, in two fields that differ or in one field twice: send one."
_MISMATCH = "The token was not issued here, or was changed since."


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a token says about its bearer.

    Args:
        id: What limits are counted under: 1 to 64 of letters, digits, `-` and `_` (see `new_token_id`). That of a token
            made from another one is the other's, a dot, and 1 to 32 more; there are four generations at most.
        name: For people, at most 128 characters that UTF-8 can spell; None if nobody gave one.
        issued_at_s: Seconds since the epoch.
        expires_at_s: Seconds since the epoch; the token is good before this instant. None: it has no end.
        limits: Policies of its own in the grammar of `RATE_LIMIT`, which stand in for the gateway's; None for
            the gateway's.
        targets: Names of the targets it is for; None: any. As for the two below, see `Scope`.
        methods: Those that it allows.
        paths: Prefixes of the paths that it allows.
        above: The `limits` of the tokens it was made from, the first one first: they hold for it as well.
        budgets: What it may cost, in the grammar of `BUDGET`, in place of the gateway's; None for the gateway's.
        above_budgets: The `budgets` of the tokens it was made from, the first one first; empty: none of them has any.

    Raises:
        ValueError: A claim is out of its range.
    """

    id: str
    name: str | None = None
    issued_at_s: int
    expires_at_s: int | None = None
    limits: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    paths: tuple[str, ...] | None = None
    above: tuple[tuple[str, ...] | None, ...] = ()
    budgets: tuple[str, ...] | None = None
    above_budgets: tuple[tuple[str, ...] | None, ...] = ()

    def __post_init__(self) -> None:
        if not is_token_id(self.id):
            raise ValueError("a token id is 1 to 64 letters, digits, '-' and '_'")
        if self.name is not None and len(self.name) > NAME_LIMIT_CHARACTERS:
            raise ValueError(f"a token's name has at most {NAME_LIMIT_CHARACTERS} characters")
        if self.name is not None and _SURROGATE.search(self.name):
            raise ValueError("a token's name is text, without half characters")
        if self.expires_at_s is not None and self.expires_at_s <= self.issued_at_s:
            raise ValueError("a token expires after it is issued")
        if len(self.above) != self.id.count("."):
            raise ValueError("a token has the limits of each token that it was made from")
        if self.above_budgets and len(self.above_budgets) != len(self.above):
            raise ValueError("a token has the budgets of each token that it was made from, if any has some")
        self.scope()

    def scope(self) -> Scope:
        """Return what it may be used for."""
        return Scope(self.targets, self.methods, self.paths)

    def budgets_by_generation(self) -> tuple[tuple[str, ...] | None, ...]:
        """Return its own budgets, then those of the token that it was made from, and so on."""
        return (self.budgets, *reversed(self.above_budgets or (None,) * len(self.above)))


def is_token_id(text: str) -> bool:
    """Whether it may be a token's id; `global` is everybody's own name, which nobody's limits may be counted under."""
    return _ID.fullmatch(text) is not None and text.partition(".")[0] != "global"


def new_token_id(parent: str | None = None) -> str:
    """Return a fresh id: 127 random bits as 22 letters, digits, `-` and `_`, the first of them a letter.

    Args:
        parent: The id of the token that it is made from: then that, a dot, and 8 random bytes.
    """
    if parent is not None:
        return f"{parent}.{_encode(os.urandom(8)).decode()}"
    # With six bits from 62 on it would begin with "-", and a command line would take it for an option.
    first, *rest = os.urandom(16)
    return _encode(bytes((first & 0x7F, *rest))).decode()


class TokenSigner:
    """Issues tokens with its first secret and accepts those signed with any of them.

    Args:
        secrets: At least one, each of 16 bytes or more, all different. To rotate, put the new one first and
            drop the old one when the last token signed with it has expired.

    Raises:
        ValueError: There is no secret, or one is too short or there twice.
    """

    __slots__ = ("_signers",)

    def __init__(self, secrets: Sequence[bytes]) -> None:
        if not secrets:
            raise ValueError("signing tokens needs a secret")
        if any(len(secret) < SECRET_MIN_BYTES for secret in secrets):
            raise ValueError(f"a signing secret has at least {SECRET_MIN_BYTES} bytes")
        if len(set(secrets)) != len(secrets):
            raise ValueError("the same signing secret is there twice")
        self._signers = [
            Signer(secret, salt=_SALT, key_derivation="hmac", digest_method=hashlib.sha256) for secret in secrets
        ]

    def issue(self, claims: Claims) -> str:
        """Sign `claims`.

        Returns:
            The token: ASCII, at most 2048 characters, safe in a header, a URL's user name and a shell.

        Raises:
            ValueError: The name and lists do not fit in a token.
        """
        text = json.dumps(_to_json(claims), separators=(",", ":"))
        token = self._signers[0].sign(_PREFIX + _encode(text.encode()))
        if len(token) > TOKEN_LIMIT_BYTES:
            raise ValueError(f"a token has at most {TOKEN_LIMIT_BYTES} bytes: shorten its name or its lists")
        return token.decode()

    def verify(self, token: bytes, *, now_s: float) -> Claims:
        """Return what `token` grants.

        The work is the same whichever secret signed it, and whether one did.

        Args:
            token: As received, not decoded or trimmed.
            now_s: Seconds since the epoch.

        Raises:
            TokenInvalid: It was not signed here, was changed since, or is from the future.
            TokenExpired: It was signed here, and `now_s` is its expiry or later.

        Source: RFC 2104 for the mac; RFC 4648 §5 without padding for the text.
        """
        if len(token) > TOKEN_LIMIT_BYTES:
            raise TokenInvalid(f"The token is longer than {TOKEN_LIMIT_BYTES} bytes.")
        signed, dot, mac = token.rpartition(b".")
        if not dot or not signed.startswith(_PREFIX) or len(mac) != _MAC_CHARACTERS:
            raise TokenInvalid(_CONTRADICTION if token == TWO_TOKENS else _UNLIKE)
        if not self._signed_here(signed, mac):
            raise TokenInvalid(_MISMATCH)
        claims = _from_payload(signed[len(_PREFIX) :])
        if claims.issued_at_s > now_s + SKEW_S:
            raise TokenInvalid("The token was issued in the future: the clock here or there is wrong.")
        if claims.expires_at_s is not None and now_s >= claims.expires_at_s:
            raise TokenExpired("The token has expired; get a new one from /register or whoever issued it.")
        return claims

    def _signed_here(self, signed: bytes, mac: bytes) -> bool:
        # Compared as text: decoding first would let every non-canonical spelling of a good mac pass as well.
        good = False
        for signer in self._signers:
            good |= hmac.compare_digest(signer.get_signature(signed), mac)
        return good


def claims_in(token: bytes) -> Claims:
    """Read what a token says, whoever signed it: for people who look at it. It grants nothing.

    Raises:
        TokenInvalid: There are no claims in it.
    """
    signed, dot, _ = token.rpartition(b".")
    if not dot or not signed.startswith(_PREFIX) or len(token) > TOKEN_LIMIT_BYTES:
        raise TokenInvalid(_UNLIKE)
    return _from_payload(signed[len(_PREFIX) :])


def _encode(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


def _to_json(claims: Claims) -> dict[str, object]:
    fields: dict[str, object] = {"id": claims.id, "iat": claims.issued_at_s}
    if claims.name is not None:
        fields["name"] = claims.name
    if claims.expires_at_s is not None:
        fields["exp"] = claims.expires_at_s
    for name, texts in (
        ("limits", claims.limits),
        ("budgets", claims.budgets),
        ("targets", claims.targets),
        ("methods", claims.methods),
        ("paths", claims.paths),
    ):
        if texts is not None:
            fields[name] = list(texts)
    if claims.above:
        fields["above"] = [limits and list(limits) for limits in claims.above]
    if claims.above_budgets:
        fields["above_budgets"] = [budgets and list(budgets) for budgets in claims.above_budgets]
    return fields


def _from_payload(payload: bytes) -> Claims:
    """Decode a payload whose signature is good; it may still come from another version of this gateway."""
    try:
        return _to_claims(json.loads(urlsafe_b64decode(payload + b"=" * (-len(payload) % 4))))
    except (ValueError, RecursionError):
        raise TokenInvalid("The token's claims cannot be read by this version of the gateway.") from None


def _to_claims(fields: object) -> Claims:
    # A claim unknown here may narrow what the token grants, so it must not be passed over.
    if not isinstance(fields, dict) or not fields.keys() <= _CLAIMS:
        raise ValueError("not the claims known here")
    return Claims(
        above=_texts_of_each(fields, "above"),
        above_budgets=_texts_of_each(fields, "above_budgets"),
        id=_required(fields, "id", str),
        name=_optional(fields, "name", str),
        issued_at_s=_required(fields, "iat", int),
        expires_at_s=_optional(fields, "exp", int),
        limits=_texts(fields, "limits"),
        budgets=_texts(fields, "budgets"),
        targets=_texts(fields, "targets"),
        methods=_texts(fields, "methods"),
        paths=_texts(fields, "paths"),
    )


def _texts_of_each(fields: dict[str, object], name: str) -> tuple[tuple[str, ...] | None, ...]:
    return tuple(_texts({name: texts}, name) for texts in _optional(fields, name, list) or [])


def _texts(fields: dict[str, object], name: str) -> tuple[str, ...] | None:
    texts = _optional(fields, name, list)
    if texts is None:
        return None
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(name)
    return tuple(texts)


def _optional(fields: dict[str, object], name: str, kind: type[_T]) -> _T | None:
    value = fields.get(name)
    # isinstance would take True for the integer 1.
    if value is None or type(value) is kind:
        return value
    raise ValueError(name)


def _required(fields: dict[str, object], name: str, kind: type[_T]) -> _T:
    value = _optional(fields, name, kind)
    if value is None:
        raise ValueError(name)
    return value
