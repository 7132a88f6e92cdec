"""`gateway token`: tokens are issued, read and revoked from the command line.

Where the signing secret is known (`TOKEN_SECRET`, or the one that the instances agreed on in Redis), a token is made
here. Else a running gateway is asked, as `curl` would.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from gateway.admin_client import AdminClient
from gateway.admission import Admission
from gateway.budgets.grammar import parse_budgets
from gateway.config.values import lifetime_s, printable, without_example
from gateway.errors import ConfigError, GatewayError, TokenError
from gateway.limits import parse_limits
from gateway.scope import Scope
from gateway.stores.choice import make_store
from gateway.stores.memory import MemoryStore
from gateway.tokens import SECRET_MIN_BYTES, TokenSigner, claims_in, is_token_id

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

    from gateway.config import Settings
    from gateway.stores.ledger import SpendStore
    from gateway.tokens import Claims

MAX_STDIN_BYTES: Final = 64 * 1024

_TAKES: Final = "a token, its id, or '-' to read it from stdin"


def run(options: argparse.Namespace, settings: Settings, local_url: str) -> int:
    """Do what was chosen.

    Args:
        options: As `token_options` reads them.
        settings: The gateway's; which target it has does not matter.
        local_url: Where a gateway of this machine would be, if one has to be asked and nobody said where.

    Returns:
        0, or 1 for a token that is not good.

    Raises:
        ConfigError: An option that nothing can be done with.
        GatewayError, OSError: It could not be done.
    """
    if options.action == "issue":
        print(asyncio.run(_issue(options, settings, local_url)))
        return 0
    if options.action == "inspect":
        return asyncio.run(_inspect(_text(options.token), settings))
    print(asyncio.run(_revoke(_text(options.token), options, settings, local_url)))
    return 0


async def _issue(options: argparse.Namespace, settings: Settings, local_url: str) -> str:
    wishes = _wishes(options)
    parent = None if options.parent is None else _text(options.parent).encode()
    if options.url or not (settings.token_secrets or settings.redis):
        if parent is not None:
            return _ask(options.url or local_url, "POST", "/tokens", parent, wishes, told="token")
        if wishes and settings.admin_key is None:
            what = ", ".join(f"--{name.rstrip('s')}" for name in wishes)
            raise ConfigError(what, "is for the holder of the admin key", "ADMIN_KEY, or TOKEN_SECRET", "ADMIN_KEY=…")
        return _ask(options.url or local_url, "POST", "/register", settings.admin_key, wishes, told="token")
    async with _store(settings, offline=bool(settings.token_secrets)) as store:
        token = await _issue_here(parent, wishes, settings, store)
        await store.ping()  # what was noted in the register has then arrived
        return token


async def _issue_here(parent: bytes | None, wishes: dict[str, Any], settings: Settings, store: SpendStore) -> str:
    signer, now_s = await _signer(store, settings), time.time()
    # Who signs without a gateway need not have its state: whether it has, the gateway tells when it sees the token.
    budgets = settings.budgets._replace(forgets=False)
    admission = Admission(store, signer, settings.limits, settings.common_limits, settings.token_ttl_s, budgets=budgets)
    for target in settings.targets:  # of no use here but to tell which token would be under too many limits
        admission.beside(target.name, target.common_limits)
    issue = admission.issue
    if parent is not None:
        try:
            above = admission.authenticate(parent, now_s)
            await admission.look(above)
        except TokenError as error:
            problem = error.detail.removesuffix(".")
            raise ConfigError("--parent", problem, "a token that is good here", "--parent gw_….…") from None
        issue = partial(admission.issue_child, above)
    ttl = wishes.pop("ttl", None)
    ttl_s = None if ttl is None else lifetime_s(ttl) or 0
    scope = Scope(*(wishes.pop(one, None) for one in ("targets", "methods", "paths")))
    try:
        return issue(now_s, ttl_s=ttl_s, scope=scope, **wishes)[0]
    except ValueError as error:
        raise ConfigError("token issue", str(error), "less", "gateway token issue --name worker") from None


def _wishes(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a token is to be like; nothing that was not asked for."""
    wishes: dict[str, Any] = {
        "name": options.name,
        "ttl": options.ttl,
        "limits": options.limit,
        "budgets": options.budget,
        "targets": options.target,
        "methods": options.method,
        "paths": options.path,
    }
    for option, parse, example in (
        ("ttl", lifetime_s, "30d"),
        ("limits", lambda texts: parse_limits(",".join(texts)), "60/minute"),
        ("budgets", lambda texts: parse_budgets(",".join(texts)), '"5 USD/day"'),
        ("targets", lambda names: Scope(targets=names), "api"),
        ("methods", lambda names: Scope(methods=names), "POST"),
        ("paths", lambda names: Scope(paths=names), "/chat"),
    ):
        value = wishes[option]
        try:
            if value is not None:
                parse(value)
        except ValueError as error:
            name = f"--{option.rstrip('s')}"
            raise ConfigError(name, without_example(error), "such a value", f"{name} {example}") from None
    return {name: value for name, value in wishes.items() if value is not None}


async def _inspect(text: str, settings: Settings) -> int:
    """Print a token's claims, and whether they hold as far as that can be told here."""
    try:
        claims = claims_in(text.encode())
    except TokenError as error:
        raise ConfigError("TOKEN", error.detail.removesuffix("."), "a token of a gateway's", "gw_….…") from None
    for name, value in _shown(claims):
        print(f"{name:<10}{printable(value)}")  # anybody can make a token that says anything, and is not good
    verdict, is_good = "not checked: the signing secret is not known here (TOKEN_SECRET, REDIS_URL)", True
    if settings.token_secrets or settings.redis:
        async with _store(settings, offline=settings.redis is None) as store:
            try:
                (await _signer(store, settings)).verify(text.encode(), now_s=time.time())
                verdict = "good: signed here, and not expired"
            except TokenError as error:
                verdict, is_good = f"bad: {error.detail}", False
            if is_good and settings.redis is not None and await store.look(store.plan(claims.id, ())) is None:
                verdict, is_good = "bad: revoked", False
    print(f"{'verdict':<10}{verdict}")
    return 0 if is_good else 1


def _shown(claims: Claims) -> list[tuple[str, str]]:
    own = "none" if claims.above else "the gateway's own"
    limits = own if claims.limits is None else ", ".join(claims.limits)
    above_budgets = claims.budgets_by_generation()[1:]
    return [
        ("id", claims.id),
        ("name", "none" if claims.name is None else json.dumps(claims.name)),
        ("issued", _moment(claims.issued_at_s)),
        ("expires", "never" if claims.expires_at_s is None else _moment(claims.expires_at_s)),
        ("limits", limits),
        ("budgets", own if claims.budgets is None else ", ".join(claims.budgets)),
        *[
            (f"above {number}", f"{_inherited(limits, number)}; budgets: {_inherited(budgets, number)}")
            for number, (limits, budgets) in enumerate(zip(claims.above, reversed(above_budgets), strict=True), start=1)
        ],
        *[
            (kind, "any" if names is None else ", ".join(names))
            for kind, names in (("targets", claims.targets), ("methods", claims.methods), ("paths", claims.paths))
        ],
    ]


def _inherited(texts: tuple[str, ...] | None, number: int) -> str:
    return "the gateway's own" if texts is None and number == 1 else ", ".join(texts or ("none",))


async def _revoke(text: str, options: argparse.Namespace, settings: Settings, local_url: str) -> str:
    claims = None
    if text.startswith("gw_"):
        with contextlib.suppress(TokenError):  # an id may begin so, too
            claims = claims_in(text.encode())
    token_id = text if claims is None else claims.id
    if not is_token_id(token_id):
        raise ConfigError("TOKEN_OR_ID", "is neither", _TAKES, "gateway token revoke -")
    if options.url or settings.redis is None:
        _ask(options.url or local_url, "DELETE", f"/admin/tokens/{token_id}", settings.admin_key, told="id")
    else:
        async with _store(settings) as store:
            admission = Admission(store, TokenSigner([os.urandom(SECRET_MIN_BYTES)]), (), (), None)
            until_s = None if claims is None else claims.expires_at_s
            await admission.revoke(token_id, until_s, now_s=time.time())
    return f"revoked {token_id}"


@contextlib.asynccontextmanager
async def _store(settings: Settings, *, offline: bool = False) -> AsyncIterator[SpendStore]:
    store = MemoryStore() if offline else make_store(settings)
    try:
        await store.start()
        yield store
    finally:
        await store.close()


async def _signer(store: SpendStore, settings: Settings) -> TokenSigner:
    return TokenSigner(settings.token_secrets or [await store.agree_secret(os.urandom(2 * SECRET_MIN_BYTES))])


def _ask(
    url: str, method: str, path: str, key: bytes | None, wishes: dict[str, Any] | None = None, *, told: str
) -> str:
    """Ask a running gateway, and return the member of its answer that is named `told`, a text."""
    with contextlib.closing(AdminClient(url, key)) as gateway:
        status, members = gateway.ask(method, path, wishes or None)
        if status >= 300:
            raise GatewayError(f"{gateway.name} answered {status}: {members.get('detail', 'and does not say why')}")
        if not isinstance(text := members.get(told), str):
            raise gateway.is_no_gateway()
        return text


def _text(argument: str) -> str:
    """Return a token from the command line or, for `-`, from stdin: others can read a process's arguments."""
    text = sys.stdin.read(MAX_STDIN_BYTES).strip() if argument == "-" else argument
    if not text or not text.isascii():
        raise ConfigError("TOKEN", "is not a token", _TAKES, "gateway token inspect -")
    return text


def _moment(second: int) -> str:
    try:
        return datetime.fromtimestamp(second, UTC).isoformat().replace("+00:00", "Z")
    except (OSError, OverflowError, ValueError):
        return f"second {second}, which no calendar has"
