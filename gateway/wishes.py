"""What somebody wants of a new token, and the claims that come of it. Pure: `now` is an argument."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from gateway.limits.policy import MAX_GENERATIONS
from gateway.scope import EVERYTHING
from gateway.tokens import Claims, new_token_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.scope import Scope


class Wishes(TypedDict, total=False):
    """What a new token is to be like; all of it may be left out.

    Args:
        name: For people.
        limits: In `RATE_LIMIT`'s grammar. They stand in for the gateway's own; of a token that is made from another
            one they come on top of that one's. None: none of its own.
        budgets: In `BUDGET`'s grammar, likewise.
        ttl_s: How long it is good, in seconds; 0: without end, or as long as the one that it is made from; None:
            `TOKEN_TTL`, or that one's end.
        scope: What it may be used for; of one that is made from another one, of what this says nothing of, all that
            that one allows.
    """

    name: str | None
    limits: Sequence[str] | None
    budgets: Sequence[str] | None
    ttl_s: int | None
    scope: Scope


def claims_of(wishes: Wishes, now_s: float, default_ttl_s: int | None, parent: Claims | None = None) -> Claims:
    """Return the claims of a new token.

    Args:
        wishes: What it is to be like.
        now_s: Seconds since the epoch.
        default_ttl_s: How long it is good if nobody says; None: without end.
        parent: What the token says that it is made from: then it allows no more, and lasts no longer. None: it is made
            from none.

    Raises:
        ValueError: Something is not as a token may have it, or more than the parent has.
    """
    limits, budgets, ttl_s = wishes.get("limits"), wishes.get("budgets"), wishes.get("ttl_s")
    scope = wishes.get("scope", EVERYTHING)
    if parent is not None:
        if parent.id.count(".") + 1 >= MAX_GENERATIONS:
            raise ValueError(f"tokens are made from tokens for {MAX_GENERATIONS} generations at most")
        scope = parent.scope().narrowed(scope)
    lifetime_s = default_ttl_s if ttl_s is None else ttl_s
    ends_s = int(now_s) + lifetime_s if lifetime_s else None
    latest_s = None if parent is None else parent.expires_at_s
    if latest_s is not None and (ends_s is None or ends_s > latest_s):
        if ttl_s:
            raise ValueError("it would last longer than the token it is made from")
        ends_s = latest_s
    above_budgets = () if parent is None else tuple(reversed(parent.budgets_by_generation()))
    return Claims(
        id=new_token_id(None if parent is None else parent.id),
        name=wishes.get("name"),
        issued_at_s=int(now_s),
        expires_at_s=ends_s,
        limits=None if limits is None else tuple(limits),
        budgets=None if budgets is None else tuple(budgets),
        targets=scope.targets,
        methods=scope.methods,
        paths=scope.paths,
        above=() if parent is None else (*parent.above, parent.limits),
        above_budgets=above_budgets if any(above_budgets) else (),
    )
