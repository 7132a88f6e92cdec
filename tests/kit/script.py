"""What a script plays the gateway's surroundings with: a loop whose time it sets, a store whose verdicts it holds."""

from __future__ import annotations

import asyncio
import selectors
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVarTuple, Unpack

from gateway.errors import StoreUnavailable
from gateway.proxy.clock import TICK_S
from gateway.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextvars import Context

    from gateway.budgets.budget import Budget
    from gateway.budgets.spending import Ask
    from gateway.limits import Policy
    from gateway.stores import Plan, Standing, Verdict, Waiter
    from gateway.stores.ledger import SpendPlan
    from gateway.stores.lines import Noted

_Ts = TypeVarTuple("_Ts")


class _Deaf(selectors.SelectSelector):
    """Looks at no socket: a script has none, and a look at each turn would be a system call."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return []


class ScriptLoop(asyncio.SelectorEventLoop):
    """A loop whose time stands still until it is told; `settle` runs it until there is nothing left to do."""

    def __init__(self) -> None:
        self._now_s = 5_000.0
        self._stirred = False
        self.failures: list[dict[str, Any]] = []
        super().__init__(_Deaf())
        self.set_exception_handler(lambda _, failure: self.failures.append(failure))

    def time(self) -> float:
        return self._now_s

    def call_soon(
        self, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        self._stirred = True
        return super().call_soon(callback, *args, context=context)

    def settle(self) -> None:
        """Run all that is due."""
        self._stirred = True
        while self._stirred:  # by a timer, in the last turn
            self._stirred = False
            super().call_soon(self._turn)
            self.run_forever()
        for failure in self.failures:
            raise failure.get("exception") or AssertionError(failure)

    def _turn(self) -> None:
        """At the end of each turn: go on as long as somebody has something to do. To stop each time takes longer."""
        if self._stirred:
            self._stirred = False
            super().call_soon(self._turn)
        else:
            self.stop()

    def act(self, action: Callable[[Unpack[_Ts]], object], *args: *_Ts) -> None:
        """Do something within the loop, as its transports would, and all that follows from it."""
        self.call_soon(action, *args)
        self.settle()

    def take_long(self, seconds: float) -> None:
        """Let time pass within a callback, as one does that computes for so long."""
        self._now_s += seconds

    def pass_time(self, seconds: float) -> None:
        """Let time pass, a tick of the gateway's clock at a time."""
        end_s = self._now_s + seconds
        while self._now_s < end_s:
            self._now_s = min(self._now_s + TICK_S, end_s)
            self.settle()


class ScriptStore:
    """The embedded store, whose verdicts can be held back, or lost.

    Attributes:
        holds: Verdicts wait for `decide`, or `lose`.
        answers: Whether `ping` is answered.
        asked: How often it was asked for anything but usage, or told of a token.
        refunds: How many charges were given back.
        releases: How many requests gave their places in flight back.
    """

    def __init__(self, loop: ScriptLoop) -> None:
        self._loop = loop
        self._store = MemoryStore(lambda: int(loop.time() * 1e6))
        self.usage = self._store.usage
        self.ledger = self._store.ledger
        self._asked: list[tuple[Callable[[Waiter], None], Waiter]] = []
        self.holds = False
        self.answers = True
        self.asked = 0
        self.refunds = 0
        self.releases = 0

    def plan(self, subject: str, policies: Sequence[Policy]) -> Plan:
        return self._store.plan(subject, policies)

    def check(self, plan: Plan, waiter: Waiter) -> None:
        self._ask(partial(self._store.check, plan), waiter)

    def spend_plan(self, subject: str, policies: Sequence[Policy], budgets: Sequence[Budget]) -> SpendPlan:
        return self._store.spend_plan(subject, policies, budgets)

    def reserve(self, plan: SpendPlan, ask: Ask, waiter: Waiter) -> None:
        self._ask(partial(self._store.reserve, plan, ask), waiter)

    def _ask(self, ask: Callable[[Waiter], None], waiter: Waiter) -> None:
        self.asked += 1
        if self.holds:
            self._asked.append((ask, waiter))
        else:
            ask(waiter)

    def decide(self) -> None:
        """Decide the oldest check that waits."""
        ask, waiter = self._asked.pop(0)
        self._loop.act(ask, waiter)

    def lose(self) -> None:
        """Fail to decide the oldest check that waits."""
        _, waiter = self._asked.pop(0)
        self._loop.act(waiter.on_store_loss, StoreUnavailable("The limit store did not answer in time."))

    def refund(self, plan: Plan, verdict: Verdict) -> None:
        self.refunds += 1
        self._store.refund(plan, verdict)

    def release(self, plan: Plan, verdict: Verdict) -> None:
        self.releases += 1
        self._store.release(plan, verdict)

    async def look(self, plan: Plan) -> list[Standing] | None:
        self.asked += 1
        return await self._store.look(plan)

    async def revoke(self, subject: str, lives_s: int) -> None:
        await self._store.revoke(subject, lives_s)

    def note(self, line: str, ends_s: int, *, is_child: bool = False) -> None:
        self.asked += 1
        self._store.note(line, ends_s, is_child=is_child)

    async def noted(self) -> Noted:
        return await self._store.noted()

    async def start(self) -> None:
        await self._store.start()

    async def ping(self) -> None:
        self.asked += 1
        if not self.answers:
            raise StoreUnavailable("The limit store did not answer in time.")

    async def agree_secret(self, candidate: bytes) -> bytes:
        return await self._store.agree_secret(candidate)

    async def close(self) -> None:
        await self._store.close()


class Verdicts:
    """Remembers what a store decides."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []

    def on_verdict(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)

    def on_store_loss(self, error: StoreUnavailable) -> None:
        raise error
