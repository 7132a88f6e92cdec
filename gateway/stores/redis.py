"""The Redis store: one script call per request, over one multiplexed connection per process.

While Redis cannot answer, checks are lost at once, and `fallback` decides on them; `link` looks for a new
connection. A check that was answered too late is given back on the connection that answered it. One whose
connection broke may have been charged; that place comes free when it leaves the window, and a lease when it ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, TypeVar

from gateway.errors import StoreUnavailable
from gateway.limits.places import LEASE_US
from gateway.limits.policy import check_subject
from gateway.stores import Standing
from gateway.stores.address import SentinelAddress
from gateway.stores.fallback import Deny
from gateway.stores.leases import Leases
from gateway.stores.link import BACK_OFF_S, KEY_TROUBLE, NOBODY, START_S, Link, at
from gateway.stores.redis_ledger import RedisLedger
from gateway.stores.redis_plan import AskedLease, RedisPlan, key_of, revocation_key
from gateway.stores.redis_spend import RedisSpendPlan, Reservation
from gateway.stores.register import RedisLines
from gateway.stores.replies import CLOCK, error_code, expect, meaning
from gateway.stores.sentinel import Whereabouts
from gateway.stores.spend_scripts import SPEND_SCRIPTS, Script
from gateway.stores.usage_redis import RedisUsage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gateway.budgets.budget import Budget
    from gateway.budgets.spending import Ask
    from gateway.limits import Policy
    from gateway.stores import Plan, Verdict, Waiter
    from gateway.stores.address import RedisAddress
    from gateway.stores.fallback import LossPolicy
    from gateway.stores.instances import Instances
    from gateway.stores.ledger import SpendPlan
    from gateway.stores.lines import Noted
    from gateway.stores.link import Command, Locate
    from gateway.stores.pipeline import Connection, Recipient
    from gateway.stores.spend_scripts import SpendScripts

_T = TypeVar("_T")

log = logging.getLogger("gateway.store")

CHECK_SCRIPT: Final = resources.files("gateway.stores").joinpath("check.lua").read_text("utf-8")
RENEW_SCRIPT: Final = resources.files("gateway.stores").joinpath("renew.lua").read_text("utf-8")
RIGHTS_SCRIPT: Final = resources.files("gateway.stores").joinpath("rights.lua").read_text("utf-8")

SECRET_LIVES_S: Final = 400 * 86_400
"""Renewed at each start: a deployment that rests for a year still knows its tokens."""

QUIET_S: Final = 60.0
"""Between two warnings of the same."""

_SECRET_KEY: Final = "gateway:{global}:secret"  # noqa: S105 - where it is, not what it is
_PROBE_TAG: Final = "global"


class RedisStore:
    """Checks and charges limits in one Redis, together with every other gateway on it.

    Args:
        address: Where Redis is, or who knows.
        loss: Decides on what Redis does not decide on in time; None: such a check is lost (`deny`).
        instances: The list to keep this instance in, for a policy that has to know how many there are.
        timeout_s: `STORE_TIMEOUT` in seconds, more than 0: a check without an answer by then is a loss. (Twice
            that, if Redis had lost the script meanwhile.)
        script: The text of the check script. Tests pass one that reads a clock of theirs.
        renew_script: The text of the script that renews leases; likewise.
        lease_us: How long a place in flight is held without being renewed, in microseconds.
        spends: The scripts of budgets; likewise.
        now_s: Seconds since the epoch: which calendar windows are told to Redis, whose clock picks.
        is_long: Whether there are budgets that Redis should know for longer than it runs.
    """

    __slots__ = (
        "_instances",
        "_is_long",
        "_lines",
        "_loss",
        "_quiet_until_s",
        "_timeout_s",
        "lease_us",
        "leases",
        "ledger",
        "link",
        "now_s",
        "script",
        "script_sha",
        "spends",
        "usage",
    )

    def __init__(
        self,
        address: RedisAddress | SentinelAddress,
        *,
        timeout_s: float,
        loss: LossPolicy | None = None,
        instances: Instances | None = None,
        script: str = CHECK_SCRIPT,
        renew_script: str = RENEW_SCRIPT,
        lease_us: int = LEASE_US,
        spends: SpendScripts = SPEND_SCRIPTS,
        now_s: Callable[[], float] = time.time,
        is_long: bool = False,
    ) -> None:
        self._loss = loss or Deny()
        self._is_long = is_long
        self._instances = instances
        self._quiet_until_s = 0.0
        self._timeout_s = timeout_s
        self.script = script
        self.script_sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        locate = Whereabouts(address) if isinstance(address, SentinelAddress) else at(address)
        self.link = self._link(str(address), locate, moves=isinstance(address, SentinelAddress))
        self.lease_us = lease_us
        self.leases = Leases(self.link_of, self.send_away, self.send_on_to, lease_us, renew_script)
        self.spends = spends
        self.now_s = now_s
        self.ledger = RedisLedger(self)
        self._lines = RedisLines(self.link_of, self.send_away, self.ask_of)
        self.usage = RedisUsage(self.link_of, self.ask_of)

    def _link(self, name: str, locate: Locate, *, probe_tag: str = _PROBE_TAG, **more: Any) -> Link:  # noqa: ANN401
        """Return a link that is not started yet; see `Link`."""
        # The probe is a check like any other: what would refuse those refuses it.
        probed = revocation_key(probe_tag), key_of(probe_tag, "probe")
        probe = ("EVALSHA", self.script_sha, len(probed), *probed, "w", "", 10**9, 16_667)
        rehearsal = (("SCRIPT", "LOAD", self.script), probe)
        more |= {"rehearsal": rehearsal, "consequence": self._loss.consequence, "on_back": self._on_back}
        return Link(name, locate, timeout_s=self._timeout_s, **more)

    def plan(self, subject: str, policies: Sequence[Policy]) -> RedisPlan:
        """Prepare the complete command of this subject's checks; see `Store.plan`.

        Raises:
            ValueError: The subject is not one that limits can be counted for (`Policy.owner`).
        """
        return RedisPlan(self, subject, policies)

    def check(self, plan: Plan, waiter: Waiter) -> None:
        """Check revocation and all policies and charge 1 to each, or none; call `waiter` when Redis has answered."""
        packed: bytes = plan.packed  # type: ignore[attr-defined]  # opaque to others, but this store's own
        link: Link = plan.link  # type: ignore[attr-defined]  # see above
        connection = link.live
        if connection is None:
            self.lose(plan, waiter, link.outage)  # type: ignore[arg-type]  # see above
        elif connection.congested:
            self.lose(plan, waiter, "Redis does not read what it is sent.")  # type: ignore[arg-type]  # see above
        elif packed:
            connection.send(packed, plan, waiter)  # type: ignore[arg-type]  # see above
        else:
            self.leases.tell(link, connection)
            lease = self.leases.next_id()
            asked = AskedLease(plan, lease)  # type: ignore[arg-type]  # see above
            connection.send(plan.pack_for(lease), asked, waiter)  # type: ignore[attr-defined]  # see above

    def spend_plan(self, subject: str, policies: Sequence[Policy], budgets: Sequence[Budget]) -> SpendPlan:
        """Prepare what every reservation of this subject needs; see `SpendStore.spend_plan`.

        Raises:
            ValueError: The subject is not one that can be counted for.
        """
        return RedisSpendPlan(self, subject, policies, budgets)

    def reserve(self, plan: SpendPlan, ask: Ask, waiter: Waiter) -> None:
        """Check all, and charge and reserve under all or none; see `SpendStore.reserve`."""
        assert isinstance(plan, RedisSpendPlan)  # noqa: S101 - opaque to others, but this store's own
        reservation, connection = Reservation(plan, ask, waiter), plan.link.live
        if connection is None:
            reservation.lose(plan.link.outage, sent=False)
        elif connection.congested:
            reservation.lose("Redis does not read what it is sent.", sent=False)
        else:
            if plan.places:
                self.leases.tell(plan.link, connection)
            self.ledger.tell(plan.link, connection)
            connection.send(reservation.pack(), reservation)

    def refund(self, plan: Plan, verdict: Verdict) -> None:
        """Give back what an admitted request was charged, where it still counts, and its places in flight.

        Where no connection is left, the charge stays, until it leaves the window.
        """
        if verdict.at_us <= 0:
            self._loss.refund(plan, verdict)  # type: ignore[arg-type]  # opaque to others, but this store's own
            return
        connection = plan.link.back  # type: ignore[attr-defined]  # see above
        if connection is not None and not connection.congested:
            plan.give_back(connection, verdict.at_us, verdict.shadowed)  # type: ignore[attr-defined]  # see above
        self.release(plan, verdict)

    def release(self, plan: Plan, verdict: Verdict) -> None:
        """Give back the places in flight of an admitted request that is over; its charges stay."""
        if verdict.at_us <= 0:
            self._loss.release(plan, verdict)  # type: ignore[arg-type]  # opaque to others, but this store's own
        elif verdict.lease:
            self.leases.let_go(verdict.lease)

    async def look(self, plan: Plan) -> list[Standing] | None:
        """Say how each policy stands, and charge nothing; None for a subject that is revoked.

        Raises:
            StoreUnavailable: Redis did not answer, or refused.
        """
        assert isinstance(plan, RedisPlan)  # noqa: S101 - opaque to others, but this store's own
        reply = await self.run(plan.key, Script(self.script, self.script_sha), *plan.words_to_look())
        if not isinstance(reply, list):
            raise StoreUnavailable("Redis answered something that is no standing.")
        if len(reply) == 5:
            return None
        numbers = iter(reply[1:])
        return [Standing(*three) for three in zip(numbers, numbers, numbers, strict=True)]

    async def revoke(self, subject: str, lives_s: int) -> None:
        """Refuse this subject from now on, on every instance on this Redis; see `Store.revoke`.

        Raises:
            ValueError: The subject is not one that limits can be counted for.
            StoreUnavailable: Redis did not answer, or refused.
        """
        check_subject(subject)
        key = revocation_key(subject)
        (reply,) = await self.ask_of(key, ("SET", key, "1", "EX", lives_s))
        expect(reply, "SET")
        await self._lines.note_revoked(subject, lives_s)

    def note(self, line: str, ends_s: int, *, is_child: bool = False) -> None:
        """Note a token in the register; see `Store.note`."""
        self._lines.note(line, ends_s, is_child=is_child)

    async def noted(self) -> Noted:
        """Return what the register knows; see `Store.noted`."""
        return await self._lines.noted()

    def send_away(self, connection: Connection, packed: bytes) -> None:
        """Send a command whose reply nobody waits for."""
        connection.send(packed, NOBODY)

    def send_on_to(self, _reply: object, _packed: bytes, _recipient: Recipient, _plan: RedisPlan | None = None) -> bool:
        """Send a command to the node that another one named; return whether that is possible."""
        return False

    def link_of(self, _key: str) -> Link:
        """Return the way to whoever has a key."""
        return self.link

    async def start(self) -> None:
        """Connect, log in and load the script.

        Raises:
            StoreUnavailable: Redis could not be reached, refused the login, or cannot run the script.
        """
        await self.link.start()
        if self._instances is not None:
            await self._patiently(partial(self._instances.start, self.ask))
        if self._is_long:
            await self._look_whether_it_forgets()
            await self._look_for_rights()

    async def _patiently(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask for something at a start, until it is answered, for `START_S`; it may be asked more than once.

        Whoever has connected with that patience must not end because the next reply took longer than `STORE_TIMEOUT`.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + START_S
        while True:
            try:
                return await ask()
            except StoreUnavailable:
                if loop.time() >= end_s:
                    raise
                await asyncio.sleep(BACK_OFF_S[-1])

    async def _look_whether_it_forgets(self) -> None:
        (reply,) = await self._patiently(partial(self.ask, ("CONFIG", "GET", "appendonly")))
        if isinstance(reply, list) and reply[1:] == [b"no"]:
            log.warning(
                "Redis forgets what was spent since its last snapshot when it ends (appendonly no); there are budgets "
                "for a day or longer: set appendonly to yes."
            )

    async def _look_for_rights(self) -> None:
        keys = [key_of(_PROBE_TAG, f"rights-{number}") for number in range(3)]
        (reply,) = await self._patiently(partial(self.ask, ("EVAL", RIGHTS_SCRIPT, len(keys), *keys)))
        if isinstance(reply, list) and reply:
            denied = ", ".join(name.decode() for name in reply)
            log.error("The ACL user in REDIS_URL may not use %s, which budgets and the ledger need.", denied)

    async def ask(self, *commands: Command) -> list[object]:
        """Send commands that are about no subject; see `Link.ask`."""
        return await self.ask_of(_SECRET_KEY, *commands)

    async def ask_of(self, key: str, *commands: Command) -> list[object]:
        """Send commands about what is in the slot of a key; see `Link.ask`."""
        return await self.link_of(key).ask(*commands)

    async def run(self, key: str, script: Script, *words: str | bytes | int) -> object:
        """Run a script that is about what is in the slot of a key, and return what it returns.

        Args:
            key: One of them.
            script: Its text is only sent where Redis does not have it, or has it elsewhere by now.
            words: The number of keys, the keys and the arguments.

        Raises:
            StoreUnavailable: Redis did not answer, or refused.
        """
        (reply,) = await self.link_of(key).ask(("EVALSHA", script.sha, *words))
        if error_code(reply) in {"NOSCRIPT", "MOVED", "ASK"}:
            (reply,) = await self.ask_of(key, ("EVAL", script.text, *words))
        expect(reply, "the script")
        return reply

    async def ping(self) -> None:
        """Return when Redis can check limits; raise StoreUnavailable, with what that means, when it cannot in time."""
        try:
            await self.link.probe()
        except StoreUnavailable as error:
            raise StoreUnavailable(f"{error.detail} {self._loss.consequence()}") from error

    async def agree_secret(self, candidate: bytes) -> bytes:
        """Return the signing secret that all instances on this Redis share; `candidate` if there is none yet.

        Raises:
            StoreUnavailable: Redis did not answer, or refused.
        """
        making = ("SET", _SECRET_KEY, candidate, "NX", "EX", SECRET_LIVES_S)
        made, agreed = await self._patiently(partial(self.ask, making, ("GETEX", _SECRET_KEY, "EX", SECRET_LIVES_S)))
        expect(made, "SET")
        expect(agreed, "GETEX")
        if not isinstance(agreed, bytes) or not agreed:
            raise StoreUnavailable("Redis has lost the signing secret just agreed on.")
        return agreed

    async def close(self) -> None:
        """Give leases back and end all connections. Checks in flight end with `on_store_loss`, and every later one."""
        self._loss = Deny()
        if self._instances is not None:
            await self._instances.close()
        await self.leases.close()
        await self.ledger.close()
        await self.link.close()

    # What plans and connections report

    def on_error(self, plan: RedisPlan, waiter: Waiter, reply: object) -> None:
        """Take the reply to a check that is no verdict."""
        code, link = error_code(reply), plan.link
        if code == "NOSCRIPT" and link.live is not None:
            lease = self.leases.next_id()
            link.live.send(plan.pack_with_script(lease), plan.asked_with(lease), waiter)
            return
        self.lose(plan, waiter, self.on_refused(link, code))

    def on_refused(self, link: Link, code: str) -> str:
        """Take an error that Redis answered to a check with; return what it means, in a sentence."""
        reason = f"Redis answered {code} to the script{meaning(code)}."
        if code == CLOCK:
            self._warn_of_clocks(reason)
        elif code not in KEY_TROUBLE and link.live is not None:
            link.on_trouble(link.live, reason)
        return reason

    def _warn_of_clocks(self, reason: str) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._quiet_until_s:
            self._quiet_until_s = now_s + QUIET_S
            log.error("No request passes under a calendar's budget: %s", reason)

    def lose(self, plan: RedisPlan, waiter: Waiter, reason: str) -> None:
        """Have the loss policy decide on a check."""
        try:
            self._loss.decide(plan, waiter, StoreUnavailable(reason))
        except Exception:
            # A defect in one request must not take along all the others that are lost with it.
            log.exception("a request failed when its limits could not be known")

    def _on_back(self, link: Link) -> None:
        # A Redis that has lost its data would give places away that are taken, and instances that ask nothing new
        # would not tell it.
        if link.live is not None:
            self.leases.tell(link, link.live)
            self.ledger.on_back(link, link.live)
