"""The Redis store: one script call per request, over one multiplexed connection per process.

While Redis cannot answer, checks are lost at once, and `fallback` decides on them; `link` looks for a new
connection. A check that was answered too late is given back on the connection that answered it. One whose
connection broke may have been charged; that place comes free when it leaves the window.
"""

from __future__ import annotations

import hashlib
import logging
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from gateway.errors import StoreUnavailable
from gateway.stores import Verdict
from gateway.stores.address import SentinelAddress
from gateway.stores.fallback import Deny
from gateway.stores.link import NOBODY, Link, at, error_code, expect, pack
from gateway.stores.sentinel import find_master

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.limits import Policy
    from gateway.stores import Plan, Waiter
    from gateway.stores.address import RedisAddress
    from gateway.stores.fallback import LossPolicy
    from gateway.stores.instances import Instances
    from gateway.stores.link import Command, Locate
    from gateway.stores.pipeline import Connection

log = logging.getLogger("gateway.store")

CHECK_SCRIPT: Final = resources.files("gateway.stores").joinpath("sliding_window.lua").read_text("utf-8")
REFUND_SCRIPT: Final = resources.files("gateway.stores").joinpath("sliding_window_refund.lua").read_text("utf-8")

SECRET_LIVES_S: Final = 400 * 86_400
"""Renewed at each start: a deployment that rests for a year still knows its tokens."""

_SECRET_KEY: Final = b"gateway:{global}:secret"
_PROBE_KEY: Final = b"gateway:{global}:probe"
_KEY_TROUBLE: Final = frozenset({"ERR", "WRONGTYPE"})
"""Errors that come from the value of one key. They must not stop the checks of everybody else."""
_NO_LIMITS: Final = Verdict(admitted=True, policy=-1, remaining=0, reset_us=0, at_us=0)
_verdict: Final = tuple.__new__
"""Makes a Verdict in half the time that its constructor takes."""


class _Plan:
    """The commands of one subject's policies, and the recipient of the replies to its checks."""

    __slots__ = ("_keys", "_numbers", "_store", "known", "link", "local", "packed", "policies", "slot", "subject")

    def __init__(self, store: RedisStore, subject: str, policies: Sequence[Policy]) -> None:
        self._store = store
        self.link = store.link
        self.slot = 0  # of a cluster's
        # For the day that Redis is lost: see `fallback.LostPlan`.
        self.subject = subject
        self.policies = policies
        self.known: list[Verdict | None] = [None] * len(policies)
        self.local: Plan | None = None
        self._keys = [f"gateway:{{{policy.owner(subject)}}}:limit:{policy.name}" for policy in policies]
        self._numbers = [number for policy in policies for number in (policy.quota, policy.segment_us)]
        self.packed = self._pack("EVALSHA", store.script_sha) if policies else b""

    def pack_with_script(self) -> bytes:
        """Return the check as a command that brings the script along, and leaves it with Redis."""
        return self._pack("EVAL", self._store.script)

    def pack_refund(self, at_us: int) -> bytes:
        """Return the command that gives back a charge made at `at_us`."""
        segments_us = self._numbers[1::2]
        return pack("EVAL", REFUND_SCRIPT, len(self._keys), *self._keys, at_us, *segments_us)

    def on_reply(self, waiter: Waiter, reply: object) -> None:
        """Tell the verdict."""
        if type(reply) is list and len(reply) == 5:
            self.link.losses = 0
            reply[0] = reply[0] == 1
            self.known[reply[1]] = verdict = _verdict(Verdict, reply)
            try:
                waiter.on_verdict(verdict)
            except Exception:
                # A defect in one request must not take along the replies to all the others that are under way.
                log.exception("a request failed when its limits were known")
                waiter.on_store_loss(StoreUnavailable("Something went wrong in the gateway."))
        else:
            self._store.on_error(self, waiter, reply)

    def on_loss(self, connection: Connection, waiter: Waiter, reason: str) -> None:
        """Tell the loss."""
        self.link.on_trouble(connection, reason)
        self._store.lose(self, waiter, reason)

    def on_late_reply(self, connection: Connection, reply: object) -> None:
        """Give back what was charged for a request that has had its answer."""
        if type(reply) is list and len(reply) == 5 and reply[0] == 1:
            connection.send(self.pack_refund(reply[4]), NOBODY)

    def _pack(self, command: str, script: str) -> bytes:
        return pack(command, script, len(self._keys), *self._keys, *self._numbers)


class RedisStore:
    """Checks and charges limits in one Redis, together with every other gateway on it.

    Args:
        address: Where Redis is, or who knows.
        loss: Decides on what Redis does not decide on in time; None: such a check is lost (`deny`).
        instances: The list to keep this instance in, for a policy that has to know how many there are.
        timeout_s: `STORE_TIMEOUT` in seconds, more than 0: a check without an answer by then is a loss. (Twice
            that, if Redis had lost the script meanwhile.)
        script: The text of the check script. Tests pass one that reads a clock of theirs.
    """

    __slots__ = ("_instances", "_loss", "_timeout_s", "link", "script", "script_sha")

    def __init__(
        self,
        address: RedisAddress | SentinelAddress,
        *,
        timeout_s: float,
        loss: LossPolicy | None = None,
        instances: Instances | None = None,
        script: str = CHECK_SCRIPT,
    ) -> None:
        self._loss = loss or Deny()
        self._instances = instances
        self._timeout_s = timeout_s
        self.script = script
        self.script_sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        locate = partial(find_master, address) if isinstance(address, SentinelAddress) else at(address)
        self.link = self._link(str(address), locate, moves=isinstance(address, SentinelAddress))

    def _link(self, name: str, locate: Locate, *, probe_key: bytes = _PROBE_KEY, **more: Any) -> Link:  # noqa: ANN401
        """Return a link that is not started yet; see `Link`."""
        # The probe is a check like any other: what would refuse those refuses it.
        rehearsal = (("SCRIPT", "LOAD", self.script), ("EVALSHA", self.script_sha, 1, probe_key, 10**9, 16_667))
        consequence = self._loss.consequence
        return Link(name, locate, timeout_s=self._timeout_s, rehearsal=rehearsal, consequence=consequence, **more)

    def plan(self, subject: str, policies: Sequence[Policy]) -> _Plan:
        """Prepare the complete command of this subject's checks; see `Store.plan`.

        Raises:
            ValueError: The subject is not one that limits can be counted for (`Policy.owner`).
        """
        return _Plan(self, subject, policies)

    def check(self, plan: Plan, waiter: Waiter) -> None:
        """Check all policies and charge 1 to each, or charge none; call `waiter` back when Redis has answered."""
        packed: bytes = plan.packed  # type: ignore[attr-defined]  # opaque to others, but this store's own
        link: Link = plan.link  # type: ignore[attr-defined]  # see above
        connection = link.live
        if not packed:
            waiter.on_verdict(_NO_LIMITS)
        elif connection is None:
            self.lose(plan, waiter, link.outage)  # type: ignore[arg-type]  # see above
        elif connection.congested:
            self.lose(plan, waiter, "Redis does not read what it is sent.")  # type: ignore[arg-type]  # see above
        else:
            connection.send(packed, plan, waiter)  # type: ignore[arg-type]  # see above

    def refund(self, plan: Plan, at_us: int) -> None:
        """Give back a charge of 1 made at `at_us` (a `Verdict`'s), where its segment is still counted.

        While Redis is out of reach the charge stays, until it leaves the window.
        """
        if at_us <= 0:
            self._loss.refund(plan, at_us)  # type: ignore[arg-type]  # see below
            return
        packed: bytes = plan.packed  # type: ignore[attr-defined]  # opaque to others, but this store's own
        connection = plan.link.live  # type: ignore[attr-defined]  # see above
        if packed and connection is not None and not connection.congested:
            connection.send(plan.pack_refund(at_us), NOBODY)  # type: ignore[attr-defined]  # see above

    async def start(self) -> None:
        """Connect, log in and load the script.

        Raises:
            StoreUnavailable: Redis could not be reached, refused the login, or cannot run the script.
        """
        await self.link.start()
        if self._instances is not None:
            await self._instances.start(self.ask)

    async def ask(self, *commands: Command) -> list[object]:
        """Send commands that are about no subject; see `Link.ask`."""
        return await self.link.ask(*commands)

    async def ping(self) -> None:
        """Return when Redis answers; raise StoreUnavailable, with what that means, when it does not in time."""
        try:
            (reply,) = await self.ask(("PING",))
            expect(reply, "PING")
        except StoreUnavailable as error:
            raise StoreUnavailable(f"{error.detail} {self._loss.consequence()}") from error

    async def agree_secret(self, candidate: bytes) -> bytes:
        """Return the signing secret that all instances on this Redis share; `candidate` if there is none yet.

        Raises:
            StoreUnavailable: Redis did not answer, or refused.
        """
        made, agreed = await self.ask(
            ("SET", _SECRET_KEY, candidate, "NX", "EX", SECRET_LIVES_S),
            ("GETEX", _SECRET_KEY, "EX", SECRET_LIVES_S),
        )
        expect(made, "SET")
        expect(agreed, "GETEX")
        if not isinstance(agreed, bytes) or not agreed:
            raise StoreUnavailable("Redis has lost the signing secret just agreed on.")
        return agreed

    async def close(self) -> None:
        """End all connections. Checks in flight end with `on_store_loss`, and so does every later one."""
        self._loss = Deny()
        if self._instances is not None:
            await self._instances.close()
        await self.link.close()

    # What plans and connections report

    def on_error(self, plan: _Plan, waiter: Waiter, reply: object) -> None:
        """Take the reply to a check that is no verdict."""
        code, link = error_code(reply), plan.link
        if code == "NOSCRIPT" and link.live is not None:
            link.live.send(plan.pack_with_script(), plan, waiter)
            return
        reason = f"Redis answered {code}."
        if code not in _KEY_TROUBLE and link.live is not None:
            link.on_trouble(link.live, reason)
        self.lose(plan, waiter, reason)

    def lose(self, plan: _Plan, waiter: Waiter, reason: str) -> None:
        """Have the loss policy decide on a check."""
        self._loss.decide(plan, waiter, StoreUnavailable(reason))
