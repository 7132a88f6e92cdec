"""The book of usage in Redis, shared by all gateways on it; see `usage`.

What an instance has counted leaves in one pipelined batch, between the checks; of many tokens, in several with pauses,
for a check that waits behind a batch waits for all of it. Each key is written by one script call, which Redis does or
does not: what it surely did not do is sent again with the next batch. The keys are documented in the README.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections import Counter
from datetime import UTC, datetime
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import hiredis

from gateway.counts import add_up
from gateway.metrics import MAX_TOKENS
from gateway.stores.link import KEY_TROUBLE, NOBODY, pack
from gateway.stores.redis_plan import key_of
from gateway.stores.replies import error_code, expect
from gateway.stores.usage import MAX_TOKENS_TOLD, Overview, Used

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

    from gateway.counts import Counts
    from gateway.metrics import Delta
    from gateway.stores.link import Link
    from gateway.stores.pipeline import Connection

USAGE_SCRIPT: Final = resources.files("gateway.stores").joinpath("usage.lua").read_text("utf-8")
BUSIEST_SCRIPT: Final = resources.files("gateway.stores").joinpath("busiest.lua").read_text("utf-8")

USAGE_LIVES_S: Final = 7 * 86_400
"""How long usage is known after the last request."""
BATCH: Final = 64
"""Tokens in one batch: about a millisecond of Redis's time, and less than fills a connection's buffer."""
PAUSE_S: Final = 0.02
"""Between two batches, of a few tokens."""
SPREAD_S: Final = 0.4
"""In about which time all batches are under way, of up to some 10,000 tokens."""
LEAST_PAUSE_S: Final = 0.003
"""Of more: what is asked meanwhile waits for two thirds of the time for nothing of this."""
CLOSE_S: Final = 2.0
"""How long a stop waits for Redis, whatever `STORE_TIMEOUT` says."""
INSTANCE_LIVES_S: Final = 5
"""For a killed instance's requests in flight to be known to be over; it is entered anew every second."""

TARGETS_KEY: Final = "gateway:{global}:usage"
_INSTANCES_KEY: Final = "gateway:{global}:usage-instances"
_BUSIEST_KEPT: Final = 10_000
_BUSIEST_LIVES_S: Final = 3 * 86_400
_TEXTS: Final = frozenset(("name", "limits", "targets", "above", "budgets", "above_budgets"))


class RedisUsage:
    """What was counted, on its way to Redis and back.

    Args:
        link_of: Finds the way to a key.
        ask_of: Sends commands about a key to wherever it is by now, and returns the replies.
        now_s: Seconds since the epoch.
    """

    __slots__ = (
        "_ask_of",
        "_id",
        "_link_of",
        "_now_s",
        "_pause",
        "_pause_s",
        "_targets",
        "_tokens",
        "_unanswered",
        "dropped",
    )

    def __init__(
        self,
        link_of: Callable[[str], Link],
        ask_of: Callable[..., Awaitable[list[object]]],
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._link_of = link_of
        self._ask_of = ask_of
        self._now_s = now_s
        self.dropped = 0
        self._id = os.urandom(8).hex()
        self._pause: asyncio.TimerHandle | None = None
        self._pause_s = PAUSE_S
        # Not sent yet, or sent in vain.
        self._tokens: dict[str, tuple[Counts, Mapping[str, str]]] = {}
        self._targets: Counts = Counter()
        # Sent, and given up by the connection's watch: the answer may still come, as long as there is the connection.
        self._unanswered: dict[_Sent, Connection] = {}

    def add(self, delta: Delta) -> None:
        """Send what was counted, as far as Redis can be reached; the rest goes with the next batch."""
        for token_id, (counts, about) in delta.tokens.items():
            self.restore(token_id, counts, about)
        for name, counts in delta.targets.items():
            self._targets.update({f"{name}:{field}": count for field, count in counts.items()})
        for sent in [sent for sent, connection in self._unanswered.items() if connection.end_reason is not None]:
            del self._unanswered[sent]
            sent.restore()
        live = _usable(self._link_of(TARGETS_KEY))
        if live is not None:
            counts, self._targets = self._targets, Counter()
            _Sent(self, None, counts, {}).send(live)
            here = {"targets": delta.target_flights, "tokens": dict(list(delta.token_flights.items())[:MAX_TOKENS])}
            live.send(pack("SET", _instance_key(self._id), json.dumps(here), "EX", INSTANCE_LIVES_S), NOBODY)
            live.send(pack("ZADD", _INSTANCES_KEY, int(self._now_s()), self._id), NOBODY)
            live.send(pack("PEXPIRE", _INSTANCES_KEY, USAGE_LIVES_S * 1000), NOBODY)
        self._pause_s = max(LEAST_PAUSE_S, min(PAUSE_S, SPREAD_S * BATCH / max(len(self._tokens), 1)))
        if self._pause is None:
            self._send_some()

    def wait_for(self, sent: _Sent, connection: Connection) -> None:
        """Restore what was sent if the connection ends without an answer to it."""
        self._unanswered[sent] = connection

    def on_answer(self, sent: _Sent) -> None:
        """Take note that the answer came all the same."""
        self._unanswered.pop(sent, None)

    def restore(self, token_id: str | None, counts: Counts, about: Mapping[str, str]) -> None:
        """Keep counts for the next batch; those of the targets, where there is no token."""
        if token_id is None:
            self._targets.update(counts)
            return
        self.dropped += add_up(self._tokens, token_id, counts, about, MAX_TOKENS)

    async def of(self, token_id: str) -> Used:
        """Return one token's usage; see `UsageBook`.

        Raises:
            StoreUnavailable: Redis did not answer, or refused.
        """
        self._send((token_id,) if token_id in self._tokens else ())
        (reply,) = await self._ask_of(usage_key(token_id), ("HGETALL", usage_key(token_id)))
        expect(reply, "HGETALL")
        counts, about = _read(reply)
        others = await self._others(await self._instances())
        return Used(counts, about, sum(one["tokens"].get(token_id, 0) for one in others))

    async def overview(self, most: int = MAX_TOKENS_TOLD) -> Overview:
        """Return all usage; see `UsageBook`.

        Raises:
            StoreUnavailable: Redis did not answer, or refused.
        """
        days = [("ZREVRANGE", self._busiest_key(ago), 0, most - 1, "WITHSCORES") for ago in (0, 1)]
        told, *ranked = await self._ask_of(TARGETS_KEY, ("HGETALL", TARGETS_KEY), *days)
        others = await self._others(await self._instances())
        scores: Counter[str] = Counter()
        for one in others:
            scores.update(one["tokens"])
        for reply in ranked:
            expect(reply, "ZREVRANGE")
            pairs: Iterator[bytes] = iter(reply if isinstance(reply, list) else ())
            scores.update({token_id.decode(): int(float(score)) for token_id, score in zip(pairs, pairs, strict=True)})
        expect(told, "HGETALL")
        targets = {name: Used(counts, {}) for name, counts in _by_target(_read(told)[0]).items()}
        for one in others:
            for name, count in one["targets"].items():
                known = targets.get(name) or Used(Counter(), {})
                targets[name] = known._replace(in_flight=known.in_flight + count)
        tokens = await self._read_tokens([token_id for token_id, _ in scores.most_common(most)])
        for token_id, used in tokens.items():
            tokens[token_id] = used._replace(in_flight=sum(one["tokens"].get(token_id, 0) for one in others))
        return Overview(len(others), targets, tokens)

    async def close(self) -> None:
        """Send what is left, and leave the list of instances; see `UsageBook`."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        links = {self._link_of(usage_key(token_id)) for token_id in self._tokens}
        self._send(tuple(self._tokens))
        leaving = (("GETDEL", _instance_key(self._id)), ("ZREM", _INSTANCES_KEY, self._id))
        # Replies come in order: when these are there, so are those to all that was sent before.
        asked = [self._link_of(TARGETS_KEY).ask(*leaving), *(link.ask(("PING",)) for link in links)]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), CLOSE_S)

    # Sending

    def _send_some(self) -> None:
        self._pause = None
        self._send(tuple(self._tokens)[:BATCH])
        reachable = any(_usable(self._link_of(usage_key(token_id))) for token_id in list(self._tokens)[:1])
        if self._tokens and reachable:
            self._pause = asyncio.get_running_loop().call_later(self._pause_s, self._send_some)

    def _send(self, token_ids: Iterable[str]) -> None:
        busiest: list[str | int] = []
        for token_id in token_ids:
            live = _usable(self._link_of(usage_key(token_id)))
            if live is not None:
                counts, about = self._tokens.pop(token_id)
                _Sent(self, token_id, counts, about).send(live)
                busiest += (token_id, counts["requests"])
            else:  # behind the others, whose nodes may be there
                self._tokens[token_id] = self._tokens.pop(token_id)
        live = _usable(self._link_of(TARGETS_KEY))
        if busiest and live is not None:
            key = self._busiest_key(0)
            live.send(pack("EVAL", BUSIEST_SCRIPT, 1, key, _BUSIEST_LIVES_S * 1000, _BUSIEST_KEPT, *busiest), NOBODY)

    def _busiest_key(self, days_ago: int) -> str:
        day = datetime.fromtimestamp(self._now_s() - days_ago * 86_400, UTC).date()
        return f"gateway:{{global}}:usage-busiest:{day.isoformat()}"

    # Reading

    async def _instances(self) -> list[str]:
        """Return the ids of the other instances, perhaps with some that are no more."""
        (reply,) = await self._ask_of(_INSTANCES_KEY, ("ZRANGE", _INSTANCES_KEY, 0, -1))
        expect(reply, "ZRANGE")
        ids = {one.decode() for one in reply} if isinstance(reply, list) else set()
        return sorted(ids - {self._id})

    async def _others(self, ids: list[str]) -> list[dict[str, dict[str, int]]]:
        """Return what the other instances have in flight; those that are no more are struck off the list."""
        if not ids:
            return []
        (reply,) = await self._ask_of(_INSTANCES_KEY, ("MGET", *map(_instance_key, ids)))
        expect(reply, "MGET")
        told = dict(zip(ids, reply if isinstance(reply, list) else (), strict=False))
        gone = [one for one, text in told.items() if text is None]
        live = _usable(self._link_of(_INSTANCES_KEY))
        if gone and live is not None:
            live.send(pack("ZREM", _INSTANCES_KEY, *gone), NOBODY)
        return [json.loads(text) for text in told.values() if text is not None]

    async def _read_tokens(self, token_ids: list[str]) -> dict[str, Used]:
        keys = map(usage_key, token_ids)
        replies = await asyncio.gather(*(self._ask_of(key, ("HGETALL", key)) for key in keys))
        pairs = zip(token_ids, (reply for (reply,) in replies), strict=True)
        return {
            token_id: Used(*_read(reply))
            for token_id, reply in pairs
            if reply and not isinstance(reply, hiredis.ReplyError)
        }


class _Sent:
    """Counts that are on their way to one key, and the recipient of the reply.

    Args:
        book: Takes them back.
        token_id: Whose they are; None: the targets'.
        counts: What to add.
        about: Texts to put beside them.
    """

    __slots__ = ("_about", "_book", "_counts", "_token_id")

    def __init__(self, book: RedisUsage, token_id: str | None, counts: Counts, about: Mapping[str, str]) -> None:
        self._book = book
        self._token_id = token_id
        self._counts = counts
        self._about = about

    def send(self, connection: Connection) -> None:
        """Send them."""
        counts, about = self._counts, self._about
        if not counts and not about:
            return
        key = TARGETS_KEY if self._token_id is None else usage_key(self._token_id)
        pairs: list[Any] = [word for pair in (*counts.items(), *about.items()) for word in pair]
        connection.send(pack("EVAL", USAGE_SCRIPT, 1, key, USAGE_LIVES_S * 1000, len(counts), *pairs), self)

    def restore(self) -> None:
        """Keep them for the next batch."""
        self._book.restore(self._token_id, self._counts, self._about)

    def on_reply(self, context: object, reply: object) -> None:
        """Keep them for the next batch, if they were refused for a reason that may pass."""
        del context
        if isinstance(reply, hiredis.ReplyError) and error_code(reply) not in KEY_TROUBLE:
            self.restore()

    def on_loss(self, connection: Connection, context: object, reason: str) -> None:
        """Keep them for the next batch, if there is no connection any more that they could still arrive on."""
        del context, reason
        if connection.end_reason is not None:
            self.restore()
        else:
            self._book.wait_for(self, connection)

    def on_late_reply(self, connection: Connection, reply: object) -> None:
        """See `on_reply`."""
        del connection
        self._book.on_answer(self)
        self.on_reply(None, reply)


def usage_key(token_id: str) -> str:
    """Return the key of a token's usage."""
    return key_of(token_id, "usage")


def _instance_key(instance: str) -> str:
    return f"gateway:{{global}}:usage-instance:{instance}"


def _usable(link: Link) -> Connection | None:
    live = link.live
    return None if live is None or live.congested else live


def _read(reply: object) -> tuple[Counts, dict[str, str]]:
    """Read the reply to HGETALL; what is no count and no text of ours is somebody else's."""
    words: Iterator[bytes] = iter(reply if isinstance(reply, list) else ())
    fields = {name.decode("utf-8", "replace"): value for name, value in zip(words, words, strict=True)}
    about = {name: fields.pop(name).decode("utf-8", "replace") for name in _TEXTS & fields.keys()}
    return Counter({name: int(value) for name, value in fields.items() if value.isdigit()}), about


def _by_target(counts: Counts) -> dict[str, Counts]:
    targets: dict[str, Counts] = {}
    for name, count in counts.items():
        target, _, field = name.partition(":")
        targets.setdefault(target, Counter())[field] = count
    return targets
