"""What is sent to Redis for a request that costs something: one command that checks and reserves, and its recipient."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import hiredis

from gateway.budgets.budget import MAX_ATOMS
from gateway.budgets.spending import LEASE_US, Entry, settled_text, with_granted
from gateway.errors import StoreUnavailable
from gateway.stores.ledger import SpendVerdict
from gateway.stores.link import pack
from gateway.stores.redis_plan import LEASE_TO_BE, RedisPlan, key_of
from gateway.stores.replies import error_code

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.budgets.budget import Budget
    from gateway.budgets.spending import Ask, Settlement
    from gateway.limits import Policy
    from gateway.stores import Verdict, Waiter
    from gateway.stores.pipeline import Connection
    from gateway.stores.redis import RedisStore

log = logging.getLogger("gateway.store")

REDIRECTS: Final = 3
"""How often one command is sent on. More would be nodes that do not agree: they will, but not in time for this one."""
_FAMILY: Final = ("open", "open:ends", "open:settled", "open:assumed", "ledger")
_STRIDE: Final = 8
"""Numbers of one budget in a command."""
_NO_STARTS: Final = (0, 0, 0, 0)
_MOST_TOKENS: Final = MAX_ATOMS - 1


class RedisSpendPlan(RedisPlan):
    """The limits and budgets of one subject whose keys are in one slot.

    Args:
        store: Whose plan it is.
        subject: Whose limits and budgets.
        policies: In the order that verdicts count.
        budgets: Likewise, behind them.
        tag: The family whose keys are told what is open, if not the subject's: then it has no entries in the ledger.
    """

    __slots__ = ("_budget_keys", "_starts", "_static", "budgeted", "budgets", "family", "family_keys")

    def __init__(
        self,
        store: RedisStore,
        subject: str,
        policies: Sequence[Policy],
        budgets: Sequence[Budget],
        *,
        tag: str | None = None,
    ) -> None:
        super().__init__(store, subject, policies, tag=tag)
        self.budgets = tuple(budgets)
        self.budgeted = bool(budgets)
        """Whether there are any, here or in another slot: then nothing passes unless Redis says so."""
        self.family = subject.partition(".")[0] if tag in {None, subject} else ""
        """Whose ledger it is entered in; "": in none."""
        self.family_keys = family_keys(self.family or str(tag))
        keys = [key_of(budget.owner(subject), budget.counter) for budget in budgets]
        self._budget_keys = [key for one in keys for key in (one, f"{one}:held", f"{one}:assumed")]
        self._starts: list[tuple[int, ...]] = [_NO_STARTS] * len(self.budgets)
        self._static = _bulks(*self._words_before(store.spends.reserve.sha, self._lease_of(LEASE_TO_BE))).split(
            LEASE_TO_BE
        )

    def pack_reserve(self, ask: Ask, lease: bytes, now_s: float) -> bytes:
        """Return the whole command that reserves for a request.

        Args:
            ask: What it asks for.
            lease: The id of the places in flight that it takes, where it takes any.
            now_s: Seconds since the epoch.
        """
        words = self._words_of(ask, now_s)
        count = 2 + 1 + len(self._keys) + 3 * len(self.budgets) + 3 + 2 + len(self._numbers) + len(words)
        return b"*%d\r\n%b%b" % (count, lease.join(self._static), _bulks(*words))

    def pack_reserve_with_script(self, ask: Ask, lease: bytes, now_s: float) -> bytes:
        """Return the same as a command that brings the script along."""
        before = self._words_before(self.store.spends.reserve.text, self._lease_of(lease), "EVAL")
        return pack(*before, *self._words_of(ask, now_s))

    def settle_words(self, ask: Ask, granted: int, settlement: Settlement, now_s: float) -> tuple[str | int, ...]:
        """Return the words of a command that settles, behind the script; `granted` is -1 where it is not known."""
        cost, mark, entry = settlement
        if cost and not entry:
            entry = _least(self.subject, ask)
        keys = (*self._budget_keys, *self.family_keys)
        spent = (max(0, min(cost.get(one.unit, 0), MAX_ATOMS - 1)) for one in self.budgets)
        numbers = self._numbers_of(now_s, zip((ask.fixed.get(one.unit, 0) for one in self.budgets), spent, strict=True))
        numbers[::_STRIDE] = [ask.each.get(one.unit, 0) for one in self.budgets]
        entered = settled_text(entry) if self.family else ""
        return (len(keys), *keys, len(self.budgets), ask.id, LEASE_US, mark, entered, granted, *numbers)

    def renew_words(self, batch: Iterable[Reservation], now_s: float) -> tuple[str | int, ...]:
        """Return the words of a command that renews reservations of this plan, behind the script."""
        keys = (*self._budget_keys, *self.family_keys)
        words: list[str | int] = []
        for one in batch:
            words += (one.ask.id, with_granted(self.about(one.ask), one.granted))
            words += (one.ask.amount(budget.unit, one.granted) for budget in self.budgets)
        return (len(keys), *keys, *self._leased(now_s), *words)

    def standings_words(self, now_s: float) -> tuple[str | int, ...]:
        """Return the words of a command that says how the budgets stand, behind the script."""
        return (len(self._budget_keys), *self._budget_keys, *self._leased(now_s))

    def about(self, ask: Ask) -> str:
        """Return what the ledger is told of a request that nobody settled."""
        return (with_granted(ask.about, 0) or _least(self.subject, ask)) if self.family else ""

    def spend_parts(self) -> tuple[tuple[RedisSpendPlan, Sequence[int]], ...]:
        """Return this plan, and which budgets are its."""
        return ((self, range(len(self.budgets))),)

    def _lease_of(self, lease: bytes) -> bytes:
        return lease if self.places else b""

    def _leased(self, now_s: float) -> tuple[int, ...]:
        return (len(self.budgets), LEASE_US, *self._numbers_of(now_s, ((0, 0) for _ in self.budgets)))

    def _words_before(self, script: str, lease: bytes, command: str = "EVALSHA") -> tuple[str | bytes | int, ...]:
        keys = (*self._keys, *self._budget_keys, *self.family_keys[:3])
        return (command, script, len(keys), *keys, self._kinds, lease, *self._numbers)

    def _words_of(self, ask: Ask, now_s: float) -> tuple[str | int, ...]:
        fixed, each = ask.fixed, ask.each
        numbers = self._numbers_of(now_s, ((fixed.get(one.unit, 0), each.get(one.unit, 0)) for one in self.budgets))
        most, least = min(ask.most, _MOST_TOKENS), min(ask.least, _MOST_TOKENS)
        return (len(self.budgets), ask.id, LEASE_US, most, least, self.about(ask), *numbers)

    def _numbers_of(self, now_s: float, pairs: Iterable[tuple[int, int]]) -> list[int]:
        numbers: list[int] = []
        for index, (budget, pair) in enumerate(zip(self.budgets, pairs, strict=True)):
            starts = self._starts[index]
            if budget.calendar is not None and not starts[1] <= now_s < starts[2]:
                starts = self._starts[index] = budget.starts(now_s)
            numbers += (budget.amount, budget.segment_us, *starts, *pair)
        return numbers


class Reservation:
    """One request's, from its asking until it is settled; the recipient of the reply to its asking.

    Args:
        plan: Under which.
        ask: What was asked for.
        waiter: Whom to tell.
    """

    __slots__ = ("_asked_lease", "_left", "ask", "granted", "plan", "waiter")

    def __init__(self, plan: RedisSpendPlan, ask: Ask, waiter: Waiter) -> None:
        self.plan = plan
        self.ask = ask
        self.waiter: Waiter | None = waiter
        self.granted = -1  # not known
        self._left = REDIRECTS
        self._asked_lease = b""

    def on_reply(self, context: object, reply: object) -> None:
        """Tell the verdict."""
        del context
        plan, store = self.plan, self.plan.store
        if type(reply) is not list or len(reply) < 5:
            self._on_error(reply)
            return
        verdict = self._read(reply)
        plan.note(verdict)
        if verdict.admitted:
            self.granted = verdict.granted
            store.ledger.hold(self)
        plan.link.losses = 0
        self._tell(verdict)

    def on_loss(self, connection: Connection, context: object, reason: str) -> None:
        """Tell the loss; should it be reserved all the same, it is given back."""
        del context
        if self._asked_lease:
            self.plan.store.leases.owe(self._asked_lease, self.plan.places_taken(0))
        self.plan.link.on_trouble(connection, reason)
        self.lose(reason)

    def on_late_reply(self, connection: Connection, reply: object) -> None:
        """Give back what was charged to limits. What was reserved has been given back, or is an admitted request's."""
        if type(reply) is list and len(reply) > 5 and reply[0] == 1:
            self.plan.give_back_late(connection, reply[4], reply[5], reply[6])

    def lose(self, reason: str, *, sent: bool = True) -> None:
        """Decide without Redis: nothing passes under a budget.

        Args:
            reason: A sentence.
            sent: Whether Redis may have been asked all the same.
        """
        plan = self.plan
        lost = Lost(self, sent=sent)
        if plan.budgeted:
            lost.on_store_loss(StoreUnavailable(reason))
        else:
            plan.store.lose(plan, lost, reason)

    def pack(self) -> bytes:
        """Return the command."""
        store = self.plan.store
        return self.plan.pack_reserve(self.ask, self._lease(), store.now_s())

    def send_on(self, reply: object) -> bool:
        """Ask the node of a cluster that another one named; return whether that is possible."""
        self._left -= 1
        plan, store = self.plan, self.plan.store
        packed = plan.pack_reserve_with_script(self.ask, self._lease(), store.now_s())
        return self._left >= 0 and store.send_on_to(reply, packed, self, plan)

    def _lease(self) -> bytes:
        if self.plan.places:
            self._asked_lease = self.plan.store.leases.next_id()
        return self._asked_lease

    def _read(self, reply: list[Any]) -> SpendVerdict:
        verdict = SpendVerdict(reply[0] == 1, *reply[1:7])
        if len(reply) > 7:
            verdict.granted = reply[7]
            verdict.used = tuple(reply[8:])
        return verdict

    def _on_error(self, reply: object) -> None:
        code, plan, store = error_code(reply), self.plan, self.plan.store
        if code == "NOSCRIPT" and plan.link.live is not None:
            plan.link.live.send(plan.pack_reserve_with_script(self.ask, self._lease(), store.now_s()), self)
        elif code in {"MOVED", "ASK"} and isinstance(reply, hiredis.ReplyError):
            if not self.send_on(reply):
                self.lose("The nodes of the cluster do not agree who has the keys.", sent=False)
        else:
            self.lose(store.on_refused(plan.link, code), sent=False)

    def _tell(self, verdict: SpendVerdict) -> None:
        waiter, self.waiter = self.waiter, None
        assert waiter is not None  # noqa: S101 - a reply comes once
        try:
            waiter.on_verdict(verdict)
        except Exception:
            # A defect in one request must not take along the replies to all the others that are under way.
            log.exception("a request failed when its budgets were known")
            waiter.on_store_loss(StoreUnavailable("Something went wrong in the gateway."))
            self.plan.store.ledger.let_end(self)


class Lost:
    """Whom a policy for lost checks tells, in place of a request that costs something."""

    __slots__ = ("_reservation", "_sent")

    def __init__(self, reservation: Reservation, *, sent: bool) -> None:
        self._reservation = reservation
        self._sent = sent

    def on_verdict(self, verdict: Verdict) -> None:
        """Pass on what the policy decided: everything that was asked for."""
        one = self._reservation
        told = SpendVerdict(*verdict)
        if verdict.admitted:
            told.granted = one.granted = one.ask.most
            one.plan.store.ledger.hold(one)
        elif self._sent:
            one.plan.store.ledger.give_back(one)
        assert one.waiter is not None  # noqa: S101 - it is told once
        one.waiter.on_verdict(told)

    def on_store_loss(self, error: StoreUnavailable) -> None:
        """Pass on the loss."""
        one = self._reservation
        if self._sent:
            one.plan.store.ledger.give_back(one)
        assert one.waiter is not None  # noqa: S101 - it is told once
        one.waiter.on_store_loss(error)


def family_keys(family: str) -> tuple[str, ...]:
    """Return the keys of what is open in a family, and of its ledger."""
    return tuple(key_of(family, what) for what in _FAMILY)


def _least(subject: str, ask: Ask) -> str:
    """Return an entry for a request that nobody has described."""
    return Entry(ask.id, 0, subject, "").text()


def _bulks(*words: str | bytes | int) -> bytes:
    """Return words as they are in a command, without its head."""
    return pack(*words).partition(b"\r\n")[2]
