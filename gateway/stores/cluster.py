"""The Redis store on a cluster: one link to each master, and checks that go to whoever has their slot.

All keys of a token are in one slot, by their hash tag, and those that all tokens share in another. So a check of
both takes two steps: the token's limits, then the shared ones. If the second refuses or is lost, the first is given
back. Until then it counts, so no limit is ever exceeded; a request may be refused that would have passed otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from gateway.errors import StoreUnavailable
from gateway.stores.link import BACK_OFF_S, CONNECT_S, NOBODY, START_S, ask, at, log_in, pack
from gateway.stores.pipeline import dial
from gateway.stores.redirects import Follower, SentOn, first_answer
from gateway.stores.redis import RedisStore
from gateway.stores.redis_plan import RedisPlan
from gateway.stores.redis_spend import REDIRECTS, RedisSpendPlan
from gateway.stores.replies import error_code, expect, why
from gateway.stores.slots import SLOTS, key_slot, probe_tag, read_redirect, read_shares
from gateway.stores.two_spends import SpendSteps, TwoSpends, TwoSpendVerdicts, of_slot
from gateway.stores.two_steps import TwoPlans, TwoSteps, TwoVerdicts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.budgets.budget import Budget
    from gateway.budgets.spending import Ask
    from gateway.limits import Policy
    from gateway.stores import Plan, Standing, Verdict, Waiter
    from gateway.stores.address import ClusterAddress, RedisAddress
    from gateway.stores.ledger import SpendPlan
    from gateway.stores.link import Command, Link
    from gateway.stores.pipeline import Connection, Recipient
    from gateway.stores.slots import Redirect, Share

AnyPlan = TypeVar("AnyPlan", bound=RedisPlan)
NEWS_S: Final = 5.0
"""How long the node that was named knows better than the others: by then they have heard, or it may be cut off."""

_GLOBAL: Final = "global"
_GLOBAL_SLOT: Final = key_slot(b"{global}")
_REHEARSED: Final = frozenset({"MOVED", "ASK", "TRYAGAIN"})
"""What a node may answer to the probe: it is up, and its share has changed since the probe's key was chosen."""
_ASKING: Final = pack("ASKING")


class ClusterStore(RedisStore):
    """Checks and charges limits in a Redis Cluster.

    Args:
        address: Some of its nodes.
        more: As for `RedisStore`.
    """

    __slots__ = ("_cluster", "_follower", "_left", "_links", "_named", "_named_s", "_owners", "_refreshing")

    def __init__(self, address: ClusterAddress, **more: Any) -> None:  # noqa: ANN401 - as RedisStore has them
        self._follower = Follower(self)
        super().__init__(address.seeds[0], **more)
        self._cluster = address
        self._links: dict[RedisAddress, Link] = {}
        self._owners: list[Link | None] = [None] * SLOTS
        self._left: list[Link] = []
        # Who a node last named as having a slot. He knows; the others may tell of the one before him for a while.
        self._named: RedisAddress | None = None
        self._named_s = 0.0
        self._refreshing: asyncio.Task[None] | None = None

    def plan(self, subject: str, policies: Sequence[Policy]) -> Any:  # noqa: ANN401 - opaque, one of two kinds
        """Prepare the commands of this subject's checks; see `Store.plan`.

        Raises:
            ValueError: The subject is not one that limits can be counted for (`Policy.owner`).
        """
        own, shared = (
            self._placed(RedisPlan(self, subject, [one for one in policies if one.shared is of_all], tag=tag), tag)
            for of_all, tag in ((False, subject), (True, _GLOBAL))
        )
        return TwoPlans(own, shared, policies) if shared.policies else own

    def check(self, plan: Plan, waiter: Waiter) -> None:
        """Check all policies and charge 1 to each, or charge none; see `Store.check`."""
        if isinstance(plan, TwoPlans):
            self.check_one(plan.own, TwoSteps(self, plan, waiter))
        else:
            self.check_one(cast("RedisPlan", plan), waiter)

    def check_one(self, plan: RedisPlan, waiter: Waiter) -> None:
        """Check the policies of one slot."""
        self._reroute(plan)
        super().check(plan, waiter)

    def spend_plan(self, subject: str, policies: Sequence[Policy], budgets: Sequence[Budget]) -> Any:  # noqa: ANN401
        """Prepare what every reservation of this subject needs; see `SpendStore.spend_plan`.

        Raises:
            ValueError: The subject is not one that can be counted for.
        """
        own, shared = (
            self._placed(RedisSpendPlan(self, subject, *of_slot(policies, budgets, shared=of_all), tag=tag), tag)
            for of_all, tag in ((False, subject), (True, _GLOBAL))
        )
        own.budgeted = shared.budgeted = bool(budgets)
        return TwoSpends(own, shared, policies, budgets) if shared.policies or shared.budgets else own

    def reserve(self, plan: SpendPlan, ask: Ask, waiter: Waiter) -> None:
        """Check all, and charge and reserve under all or none; see `SpendStore.reserve`."""
        if isinstance(plan, TwoSpends):
            self.reserve_one(plan.own, ask, SpendSteps(self, plan, ask, waiter))
        else:
            self.reserve_one(cast("RedisSpendPlan", plan), ask, waiter)

    def reserve_one(self, plan: RedisSpendPlan, ask: Ask, waiter: Waiter) -> None:
        """Check and reserve in one slot."""
        self._reroute(plan)
        super().reserve(plan, ask, waiter)

    def refund(self, plan: Plan, verdict: Verdict) -> None:
        """Give back a charge and places; see `Store.refund`."""
        if isinstance(plan, TwoPlans | TwoSpends):
            assert isinstance(verdict, TwoVerdicts | TwoSpendVerdicts)  # noqa: S101 - it came of this plan
            self.refund(plan.own, verdict.own)
            self.refund(plan.shared, verdict.shared)
        else:
            self._reroute(cast("RedisPlan", plan))
            super().refund(plan, verdict)

    def release(self, plan: Plan, verdict: Verdict) -> None:
        """Give back places in flight; see `Store.release`."""
        if isinstance(plan, TwoPlans | TwoSpends):
            assert isinstance(verdict, TwoVerdicts | TwoSpendVerdicts)  # noqa: S101 - it came of this plan
            self.release(plan.own, verdict.own)
            self.release(plan.shared, verdict.shared)
        else:
            super().release(plan, verdict)

    async def look(self, plan: Plan) -> list[Standing] | None:
        """Say how each policy stands; see `Store.look`.

        Raises:
            StoreUnavailable: A node did not answer, or the keys are on their way: then it is found out who has them.
        """
        try:
            if not isinstance(plan, TwoPlans | TwoSpends):
                return await super().look(plan)
            own, shared = await self.look(plan.own), await self.look(plan.shared)
        except StoreUnavailable:
            self._refresh()
            raise
        if own is None or shared is None:
            return None
        # Behind the policies there may be budgets, which have no standing here.
        placed = [*zip(plan.own_at, own, strict=False), *zip(plan.shared_at, shared, strict=False)]
        return [standing for _, standing in sorted(placed)]

    def link_of(self, key: str) -> Link:
        """Return the way to the master that has a key's slot."""
        return self._owners[key_slot(key.encode())] or self.link

    async def ask_of(self, key: str, *commands: Command) -> list[object]:
        """Send commands about what is in the slot of a key, to wherever that is by now; see `Link.ask`."""
        replies = await super().ask_of(key, *commands)
        return [await self._settled(command, reply) for command, reply in zip(commands, replies, strict=True)]

    async def _settled(self, command: Command, reply: object) -> object:
        """Return the reply to a command; if it was another node's name, that node's."""
        for _ in range(REDIRECTS):
            redirect = read_redirect(str(reply))
            if redirect is None:
                break
            self._link_to(redirect)
            asking = () if redirect.for_good else (("ASKING",),)
            *_, reply = await self._ask_at(self._place_of(redirect), CONNECT_S, *asking, command)
        return reply

    async def start(self) -> None:
        """Learn who has which slots, and connect to each.

        Raises:
            StoreUnavailable: No node could be reached, or one of the masters could not.
        """
        try:
            self._take_over(*await self._learn(self._cluster.seeds, START_S))
        except StoreUnavailable as error:
            raise StoreUnavailable(f"Redis at {self._cluster}: {error.detail}") from error
        await asyncio.gather(*(link.start() for link in self._links.values()))
        if self._instances is not None:
            await self._patiently(partial(self._instances.start, self.ask))

    async def ping(self) -> None:
        """Return when all masters can check limits; raise StoreUnavailable, with what that means, when one cannot."""
        try:
            await asyncio.gather(*(link.probe() for link in self._links.values()))
        except StoreUnavailable as error:
            raise StoreUnavailable(f"{error.detail} {self._loss.consequence()}") from error

    async def close(self) -> None:
        """End all connections. Checks in flight end with `on_store_loss`, and so does every later one."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        await super().close()
        for link in (*self._links.values(), *self._left):
            await link.close()

    # What plans report

    def on_error(self, plan: RedisPlan, waiter: Waiter, reply: object) -> None:
        """Take the reply to a check that is no verdict."""
        code = error_code(reply)
        if code in {"MOVED", "ASK"}:
            self.send_on(plan, waiter, reply, REDIRECTS)
        else:
            super().on_error(plan, waiter, reply)

    def on_refused(self, link: Link, code: str) -> str:
        """Take an error that a node answered with; return what it means, in a sentence."""
        if code == "TRYAGAIN":
            # The slot is on its way to another node, some of its keys here and some there: no trouble for others.
            return "Redis is moving the keys to another node."
        return super().on_refused(link, code)

    def send_on_to(self, reply: object, packed: bytes, recipient: Recipient, plan: RedisPlan | None = None) -> bool:
        """Send a command to the node that another one named; return whether that is possible."""
        redirect = read_redirect(str(reply))
        if redirect is None:
            self._refresh()
            return False
        link = self._link_to(redirect)
        if redirect.for_good and plan is not None:
            plan.link = link
        connection = link.live
        if connection is None or connection.congested:
            return False
        if not redirect.for_good:
            connection.send(_ASKING, NOBODY)
        connection.send(packed, recipient)
        return True

    def send_on(self, plan: RedisPlan, waiter: Waiter, reply: object, left: int) -> None:
        """Send a check to the node that another one named."""
        redirect = read_redirect(str(reply))
        if redirect is None or not left:
            self._refresh()
            self.lose(plan, waiter, "The nodes of the cluster do not agree who has the keys.")
            return
        link = self._link_to(redirect)
        if redirect.for_good:
            plan.link = link
        connection = link.live
        if connection is None or connection.congested:
            self.lose(plan, waiter, link.outage)
            return
        lease = self.leases.next_id()
        packed = plan.packed or plan.pack_for(lease)
        if not redirect.for_good:
            # With the script, for what that node answers is not looked at for NOSCRIPT: it would not be asked again.
            packed = plan.pack_with_script(lease)
            connection.send(_ASKING, NOBODY)
        connection.send(packed, SentOn(self, plan, lease, left - 1), waiter)

    def send_away(self, connection: Connection, packed: bytes) -> None:
        """Send a command whose reply nobody waits for, to wherever its keys are by now."""
        connection.send(packed, self._follower, packed)

    # Who has which slots

    def _placed(self, plan: AnyPlan, tag: str) -> AnyPlan:
        plan.slot = key_slot(f"{{{tag.partition('.')[0]}}}".encode())
        plan.link = self._owners[plan.slot] or plan.link
        return plan

    def _reroute(self, plan: RedisPlan) -> None:
        if plan.link.live is None:
            plan.link = self._owners[plan.slot] or plan.link

    def _place_of(self, redirect: Redirect) -> RedisAddress:
        return self._cluster.node(redirect.host or self._cluster.seeds[0].host, redirect.port)

    def _link_to(self, redirect: Redirect) -> Link:
        """Return the link to the node that has a slot; one that was not known is connected to."""
        place = self._place_of(redirect)
        link = self._links.get(place)
        if link is None:
            link = self._new_link(place, 0, SLOTS - 1)
            link.begin()
        if redirect.for_good:
            self._owners[redirect.slot] = link
            self._named, self._named_s = place, asyncio.get_running_loop().time()
            self._refresh()
        return link

    def _new_link(self, place: RedisAddress, first: int, last: int) -> Link:
        tag = probe_tag(first, last)
        link = self._link(str(place), at(place), probe_tag=tag, accepts=_REHEARSED, on_out=self._refresh)
        self._links[place] = link
        return link

    def _take_over(self, shares: Sequence[Share], said_by: RedisAddress) -> set[RedisAddress]:
        """Make the shares those that checks go by; return the masters that are new."""
        places = {share: self._cluster.node(share.host or said_by.host, share.port) for share in shares}
        new: set[RedisAddress] = set()
        owners: list[Link | None] = [None] * SLOTS
        for share, place in places.items():
            if place not in self._links:
                new.add(place)
                self._new_link(place, share.first, share.last)
            owners[share.first : share.last + 1] = [self._links[place]] * (share.last + 1 - share.first)
        self._owners = owners
        self.leases.tell_again()
        self.ledger.tell_again()
        for place in self._links.keys() - set(places.values()):
            left = self._links.pop(place)
            left.leave("The node is no master of the cluster any more.")
            self._left.append(left)
        self._left = [link for link in self._left if not link.done]
        self.link = owners[_GLOBAL_SLOT] or self.link
        return new

    def _refresh(self) -> None:
        """See to it that the shares are learnt anew, soon."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.get_running_loop().create_task(self._learn_until_well())

    async def _learn_until_well(self) -> None:
        # Until every master is connected: one that is down has a replica that may take over, at another address.
        for delay_s in chain(BACK_OFF_S, iter(lambda: BACK_OFF_S[-1], None)):
            await asyncio.sleep(delay_s)
            with contextlib.suppress(StoreUnavailable):
                shares, said_by = await self._learn_anew()
                if self._named not in {None, said_by}:
                    continue  # this is the state before another node was named, who knows better
                for place in self._take_over(shares, said_by):
                    self._links[place].begin()
                if all(link.live is not None for link in self._links.values()):
                    self._named = None
                    return

    async def _learn_anew(self) -> tuple[list[Share], RedisAddress]:
        named = self._named
        if named is not None and asyncio.get_running_loop().time() < self._named_s + NEWS_S:
            with contextlib.suppress(StoreUnavailable):
                return await self._learn((named,), CONNECT_S)
        if self._named == named:  # nobody else was named meanwhile
            self._named = None
        return await self._learn((*self._links, *self._cluster.seeds), CONNECT_S)

    async def _learn(self, places: Sequence[RedisAddress], within_s: float) -> tuple[list[Share], RedisAddress]:
        """Ask all of these nodes at once who has which slots, and take the first answer."""
        return await first_answer([self._ask_shares(place, within_s) for place in dict.fromkeys(places)], within_s)

    async def _ask_shares(self, place: RedisAddress, within_s: float) -> tuple[list[Share], RedisAddress]:
        (reply,) = await self._ask_at(place, within_s, ("CLUSTER", "SLOTS"))
        expect(reply, "CLUSTER SLOTS: one that is no cluster takes redis://")
        try:
            return read_shares(reply), place
        except ValueError as error:
            raise StoreUnavailable(f"{place.host_port}: {error}.") from error

    async def _ask_at(self, place: RedisAddress, within_s: float, *commands: Command) -> list[object]:
        """Ask one node, over a connection for this alone if none is live."""
        link = self._links.get(place)
        if link is not None and link.live is not None:
            return await link.ask(*commands)
        connection: Connection | None = None
        try:
            async with asyncio.timeout(within_s):
                connection = await dial(place, within_s, lambda _connection, _reason: None)
                expect(await log_in(connection, place), "AUTH")
                return await ask(connection, *commands)
        except OSError as error:
            raise StoreUnavailable(f"Redis cannot be reached: {why(error)}") from error
        finally:
            if connection is not None:
                connection.end("The node was asked.")
