"""The limits alone, for programs that send their requests themselves: `await admission.admit("worker-7")`.

A *subject* is whoever the limits are for, by a name that the program chooses; a *grant* is a place that it was given,
until it is settled. Counts are under the same keys as those of the gateway's tokens: a subject that has a token's id
for its name shares that token's places.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self

from gateway.admission import MAX_SUBJECTS
from gateway.config import Config
from gateway.errors import RateLimited
from gateway.finishing import to_the_end
from gateway.stores.choice import make_store
from gateway.subject import Subject
from gateway.tokens import Claims

if TYPE_CHECKING:
    from gateway.errors import StoreUnavailable
    from gateway.stores import Store, Verdict

_NO_TARGET: Final = "http://target.invalid"
"""`Config` wants to know where requests go. Here it is nobody's business, and this name is no host's (RFC 2606 §2)."""
_STARTED: Final = "it was started already"


class Grant:
    """A place that was given; `async with` settles it at the end, as used."""

    __slots__ = ("_of", "_settled", "_store", "_verdict")

    def __init__(self, store: Store, of: Subject, verdict: Verdict) -> None:
        self._store = store
        self._of = of
        self._verdict = verdict
        self._settled = False

    @property
    def subject(self) -> str:
        """Whose it is."""
        return self._of.id

    @property
    def limit(self) -> str | None:
        """The name of the limit nearest its end, as in `RateLimit-Policy`; None where none was counted."""
        policy = self._verdict.policy
        return self._of.policies[policy].label if policy >= 0 else None

    @property
    def remaining(self) -> int:
        """What is left of that limit."""
        return self._verdict.remaining

    @property
    def reset_s(self) -> float:
        """In how many seconds its next place comes free."""
        return self._verdict.reset_us / 1e6

    @property
    def limit_fields(self) -> list[tuple[str, str]]:
        """`RateLimit-Policy` and `RateLimit` as the gateway would send them."""
        return _fields(self._of, self._verdict)

    def settle(self, *, used: bool = True) -> None:
        """See `Admission.settle`."""
        if not self._settled:
            self._settled = True
            _end(self._store, self._of, self._verdict, used=used)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        # Used, even if it failed: what was sent may have cost something. One that knows better has settled already.
        self.settle()


class Admission:
    """Limits that are checked before a request is sent; `async with` starts and stops it.

    Args:
        config: A gateway's configuration: the limits and the store are taken from it.
        settings: In place of it, those of `Config` that are about limits and their store, as keywords:
            `rate_limit`, `global_rate_limit`, `concurrency_limit`, `global_concurrency_limit`, `rate_limit_mode`,
            `redis_url`, `store_timeout`, `on_store_loss`.

    Raises:
        ConfigError: A value that nothing can run with.
        TypeError: A keyword that is no setting, or both a configuration and settings.
    """

    def __init__(self, config: Config | None = None, /, **settings: str | float | None) -> None:
        if config is None:
            config = Config(target_api_url=_NO_TARGET, **settings)  # type: ignore[arg-type]  # it checks them itself
        elif settings:
            raise TypeError("Admission takes a Config or settings, not both")
        self._settings = config.settings
        self._store: Store | None = None
        self._subjects: dict[str, Subject] = {}

    async def start(self) -> None:
        """Connect to the store.

        Raises:
            StoreUnavailable: Redis does not answer.
            RuntimeError: It was started already.
        """
        if self._store is not None:
            raise RuntimeError(_STARTED)
        store = make_store(replace(self._settings, state_file=None))
        try:
            await store.start()
            if self._store is not None:  # by somebody else meanwhile
                raise RuntimeError(_STARTED)
        except BaseException:
            await to_the_end(store.close)()
            raise
        self._store = store

    @to_the_end
    async def close(self) -> None:
        """Let go of the store. What waits for a place then gets StoreUnavailable."""
        store, self._store = self._store, None
        self._subjects.clear()
        if store is not None:
            await store.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def admit(self, subject: str) -> Grant:
        """Take a place under all limits, or raise; settle the grant when the request is over.

        Args:
            subject: 1 to 64 letters, digits, `-` and `_`, and not `global`.

        Returns:
            The place. If the caller is cancelled meanwhile, nothing stays taken.

        Raises:
            RateLimited, ConcurrencyLimited: There is none; its `retry_after_s` says when. Nothing was counted.
            TokenRevoked: The subject's name is the id of a token that was revoked.
            StoreUnavailable: Redis did not decide within `store_timeout`.
            ValueError: The subject is not made of such characters.
            RuntimeError: It is not started.
        """
        store = self._store
        if store is None:
            raise RuntimeError("not started: use 'async with Admission(...) as admission'")
        known = self._subjects.get(subject) or self._remember(subject, store)
        waiter = _Waiter(store, known)
        store.check(known.plan, waiter)
        verdict = await waiter.verdict()
        if not verdict.admitted:
            refusal = known.refusal(verdict)
            if isinstance(refusal, RateLimited):
                refusal.limit_fields = _fields(known, verdict)
            raise refusal
        return Grant(store, known, verdict)

    def settle(self, grant: Grant, *, used: bool = True) -> None:
        """Say that a request is over; only the first time counts.

        Args:
            grant: What `admit` returned.
            used: Whether something was sent. If not, the place is given back at once, as if never taken.
        """
        grant.settle(used=used)

    def _remember(self, subject: str, store: Store) -> Subject:
        if "." in subject:
            raise ValueError("a subject has no '.' in it: that is how the ids of tokens made from tokens are spelled")
        settings = self._settings
        policies = (*settings.limits, *settings.common_limits)
        if settings.shadow:
            policies = tuple(replace(policy, shadow=True) for policy in policies)
        plan = store.plan(subject, policies)
        if len(self._subjects) >= MAX_SUBJECTS:
            self._subjects.clear()
        known = self._subjects[subject] = Subject(Claims(id=subject, issued_at_s=0), policies, plan)
        return known


class _Waiter:
    """Turns a store's call into something to await."""

    __slots__ = ("_future", "_store", "_subject")

    def __init__(self, store: Store, subject: Subject) -> None:
        self._store = store
        self._subject = subject
        self._future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()

    def on_verdict(self, verdict: Verdict) -> None:
        """See `stores.Waiter`."""
        if not self._future.done():
            self._future.set_result(verdict)
        elif verdict.admitted:
            _end(self._store, self._subject, verdict, used=False)

    def on_store_loss(self, error: StoreUnavailable) -> None:
        """See `stores.Waiter`."""
        if not self._future.done():
            self._future.set_exception(error)

    async def verdict(self) -> Verdict:
        """Wait for it."""
        future = self._future
        try:
            return await future
        except asyncio.CancelledError:
            # The verdict and the cancellation may come in the same turn of the loop.
            if not future.cancelled() and future.exception() is None and future.result().admitted:
                _end(self._store, self._subject, future.result(), used=False)
            raise


def _end(store: Store, subject: Subject, verdict: Verdict, *, used: bool) -> None:
    """Give back what is to be given back of a place, where it was taken: its store may be closed by now."""
    if not used:
        store.refund(subject.plan, verdict)
    elif verdict.lease:
        store.release(subject.plan, verdict)


def _fields(subject: Subject, verdict: Verdict) -> list[tuple[str, str]]:
    lines = subject.limit_lines(verdict).decode().split("\r\n")
    return [(name, value) for name, _, value in (line.partition(": ") for line in lines) if name]
