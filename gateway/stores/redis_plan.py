"""What is sent to Redis for one subject: its commands, prepared once, and what is made of the replies to its checks."""

from __future__ import annotations

import logging
from importlib import resources
from typing import TYPE_CHECKING, Final

from gateway.errors import StoreUnavailable
from gateway.limits.policy import Kind, check_subject, lineage
from gateway.stores import Verdict
from gateway.stores.link import pack
from gateway.tuples import new

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.limits import Policy
    from gateway.stores import Plan, Waiter
    from gateway.stores.pipeline import Connection
    from gateway.stores.redis import RedisStore

log = logging.getLogger("gateway.store")

REFUND_SCRIPT: Final = resources.files("gateway.stores").joinpath("refund.lua").read_text("utf-8")

_LETTERS: Final = {Kind.WINDOW: "w", Kind.BUCKET: "b", Kind.LEASE: "l"}
_GUARD: Final = "g"
_LOOK: Final = "?"
LEASE_TO_BE: Final = b"id-of-lease-to-be-made!!"
"""Stands for a lease's id in a prepared command, and is as long as one."""


class RedisPlan:
    """The commands of one subject's policies, and the recipient of the replies to its checks.

    Args:
        store: Whose plan it is.
        subject: Whose policies.
        policies: In the order that verdicts count.
        tag: Where the key of the revocation is looked for, if not with the subject's other keys.
    """

    # fmt: off
    __slots__ = (
        "_charged", "_keys", "_kinds", "_numbers", "_parts", "key", "link", "packed", "places", "slot", "store",
        "known", "local", "policies", "subject",
    )
    # fmt: on

    def __init__(self, store: RedisStore, subject: str, policies: Sequence[Policy], *, tag: str | None = None) -> None:
        check_subject(subject)
        self.store = store
        self.link = store.link
        self.slot = 0  # of a cluster's
        # For the day that Redis is lost: see `fallback.LostPlan`.
        self.subject = subject
        self.policies = policies
        self.known: list[Verdict | None] = [None] * len(policies)
        self.local: Plan | None = None
        self.key = revocation_key(tag or subject)  # all the others are in its slot, in a cluster
        self._keys = [self.key]
        self._keys += [key_of(policy.owner(subject), policy.counter) for policy in policies]
        letters = [_LETTERS[policy.kind] for policy in policies]
        self._kinds = "".join(
            _GUARD if policy.guard else letter.upper() if policy.shadow else letter
            for letter, policy in zip(letters, policies, strict=True)
        )
        if tag in {None, subject}:
            self._keys += [revocation_key(parent) for parent in lineage(subject)[:-1]]
        self._numbers: list[int] = []
        for policy in policies:
            self._numbers += (policy.quota, policy.unit_us or store.lease_us)
        self._charged = [
            (1 << index, self._keys[index + 1], letter, self._numbers[2 * index + 1])
            for index, letter in enumerate(letters)
            if letter != "l"
        ]
        self.places = tuple(
            (1 << index, self._keys[index + 1]) for index, letter in enumerate(letters) if letter == "l"
        )
        packed = self._pack("EVALSHA", store.script_sha, LEASE_TO_BE)
        self.packed = b"" if self.places else packed
        """The whole command; b"" where each has a lease's id of its own: see `pack_for`."""
        self._parts = packed.split(LEASE_TO_BE)

    def pack_with_script(self, lease: bytes) -> bytes:
        """Return the check as a command that brings the script along, and leaves it with Redis."""
        return self._pack("EVAL", self.store.script, lease)

    def pack_for(self, lease: bytes) -> bytes:
        """Return the whole command for a request that takes places in flight."""
        return lease.join(self._parts)

    def asked_with(self, lease: bytes) -> RedisPlan | AskedLease:
        """Return the recipient of the reply to a check that was sent with this lease."""
        return AskedLease(self, lease) if self.places else self

    def words_to_look(self) -> tuple[str | bytes | int, ...]:
        """Return what the script is to be run with to look and charge nothing."""
        return self._words(_LOOK)

    def give_back(self, connection: Connection, at_us: int, shadowed: int) -> None:
        """Send what takes the charges of `at_us` back, but for the limits in `shadowed`."""
        charged = [(key, letter, unit_us) for bit, key, letter, unit_us in self._charged if not bit & shadowed]
        if charged:
            keys, letters, units_us = zip(*charged, strict=True)
            packed = pack("EVAL", REFUND_SCRIPT, len(keys), *keys, at_us, "".join(letters), *units_us)
            self.store.send_away(connection, packed)

    def give_back_late(self, connection: Connection, at_us: int, shadowed: int = 0, lease: bytes = b"") -> None:
        """Send what takes back all that a check took that nobody waits for any more."""
        self.give_back(connection, at_us, shadowed)
        self.store.leases.give_back_late(connection, lease, self.places_taken(shadowed))

    def note(self, verdict: Verdict) -> None:
        """Remember what a verdict told of a limit, and hold the places that it took."""
        if 0 <= verdict.policy < len(self.known):
            self.known[verdict.policy] = verdict
        if verdict.lease:
            self.store.leases.hold(verdict.lease, self.places_taken(verdict.shadowed))

    def places_taken(self, shadowed: int) -> tuple[str, ...]:
        """Return the keys of the places that a lease was taken on: those not in `shadowed`."""
        return tuple(key for bit, key in self.places if not bit & shadowed)

    def on_reply(self, waiter: Waiter, reply: object) -> None:
        """Tell the verdict."""
        if type(reply) is list and len(reply) == 5:
            admitted, policy, remaining, reset_us, at_us = reply
            verdict = new(Verdict, (admitted == 1, policy, remaining, reset_us, at_us, 0, b""))
            if policy >= 0:
                self.known[policy] = verdict
        elif type(reply) is list and len(reply) == 7:
            verdict = Verdict(reply[0] == 1, *reply[1:])
            self.note(verdict)
        else:
            self.store.on_error(self, waiter, reply)
            return
        self.link.losses = 0
        try:
            waiter.on_verdict(verdict)
        except Exception:
            # A defect in one request must not take along the replies to all the others that are under way.
            log.exception("a request failed when its limits were known")
            waiter.on_store_loss(StoreUnavailable("Something went wrong in the gateway."))

    def on_loss(self, connection: Connection, waiter: Waiter, reason: str) -> None:
        """Tell the loss."""
        self.link.on_trouble(connection, reason)
        self.store.lose(self, waiter, reason)

    def on_late_reply(self, connection: Connection, reply: object) -> None:
        """Give back what was charged for a request that has had its answer."""
        if type(reply) is list and len(reply) in {5, 7} and reply[0] == 1:
            self.give_back_late(connection, reply[4], *reply[5:])

    def _pack(self, command: str, script: str, lease: bytes) -> bytes:
        return pack(command, script, *self._words(lease if self.places else b""))

    def _words(self, lease: str | bytes) -> tuple[str | bytes | int, ...]:
        return (len(self._keys), *self._keys, self._kinds, lease, *self._numbers)


class AskedLease:
    """The recipient of the reply to a check that takes places in flight: where none comes, they may be taken.

    Args:
        plan: Whose check it is.
        lease: The id of what it takes.
    """

    __slots__ = ("_lease", "_plan")

    def __init__(self, plan: RedisPlan, lease: bytes) -> None:
        self._plan = plan
        self._lease = lease

    def on_reply(self, waiter: Waiter, reply: object) -> None:
        """Tell the verdict."""
        self._plan.on_reply(waiter, reply)

    def on_late_reply(self, connection: Connection, reply: object) -> None:
        """Give back what was charged."""
        self._plan.on_late_reply(connection, reply)

    def on_loss(self, connection: Connection, waiter: Waiter, reason: str) -> None:
        """Tell the loss; have the lease given back, for a late reply may come or not."""
        plan = self._plan
        plan.store.leases.owe(self._lease, plan.places_taken(0))
        plan.on_loss(connection, waiter, reason)


def key_of(owner: str, what: str) -> str:
    """Return the key of something that a subject has; those of a whole family are in one slot of a cluster."""
    first, _, rest = owner.partition(".")
    return f"gateway:{{{first}}}:{rest}:{what}" if rest else f"gateway:{{{first}}}:{what}"


def revocation_key(subject: str) -> str:
    """Return the key that is there if a token is revoked."""
    return key_of(subject, "revoked")
