"""`SPEND_GUARD`: a token that spends many times its usual is told of, then slowed, then stopped, and opens again."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from gateway.budgets.budget import NANO
from gateway.budgets.pace import HISTORY_US, SpendGuard
from gateway.budgets.spending import Entry
from gateway.errors import StoreUnavailable
from gateway.metering.costs import CostTable, FixedPrice
from gateway.proxy.paces import Paces
from gateway.proxy.pacing import MAX_TOKENS, Pacing
from tests.proxy.test_children import child_of
from tests.test_config import config

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Playbook

CENT = NANO // 100
FIXED = CostTable(fixed=(FixedPrice(b"*", b"/cent", {"USD": CENT}), FixedPrice(b"*", b"/free", {})))
GUARD = SpendGuard(10, 300 * 1_000_000)


@pytest.fixture
def play(make_play: Callable[..., Playbook]) -> Playbook:
    """One whose token spent a cent in each window of the last hours: 10 cents are too many, 15 far, 20 by far."""
    quiet = {"upstream_idle": "30d", "keepalive_timeout": "30d"}
    play = make_play(cost=FIXED, spend_guard="10x/5m", rate_limit="10000/minute", **quiet)
    spend(play, *([(CENT, 300)] * 48))
    return play


def pacing(play: Playbook) -> Pacing:
    found = play.context.paces.now
    assert found is not None
    return found


def token(play: Playbook) -> str:
    return play.admission.authenticate(play.token, play.context.clock.wall_s).id


def spend(play: Playbook, *steps: tuple[int, float]) -> None:
    """Let the token spend, and time pass behind it."""
    for atoms, pause_s in steps:
        pacing(play).spent(token(play), atoms)
        play.loop.take_long(pause_s)
    play.loop.settle()


def asks(play: Playbook, path: bytes = b"/cent") -> None:
    play.client.sends(play.request(b"GET", b"/api" + path))


def answered(play: Playbook) -> int:
    play.upstream.request()
    play.upstream.answers()
    return play.client.answer().status


def told(play: Playbook) -> dict[str, Any]:
    other = play.connect()
    other.sends(play.request(b"GET", b"/usage"))
    found: dict[str, Any] = json.loads(other.answer().body)["spend_guard"]
    other.ends()
    return found


def test_the_usual_pace_passes_and_is_told(play: Playbook) -> None:
    for _ in range(5):
        asks(play)
        assert answered(play) == 200
    assert told(play) == {
        "level": "usual",
        "window": 300,
        "unit": "USD",
        "spent": "0.05",
        "usual": "0.0102",
        "reset": 0,
    }


def test_ten_times_the_usual_is_logged_once_and_passes(play: Playbook, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "gateway.guards"):
        for _ in range(14):
            asks(play)
            assert answered(play) == 200
    (line,) = caplog.messages
    assert line == (
        f"token {token(play)} spends fast, 0.11 USD in 300 s where 0.0102 USD are usual (SPEND_GUARD): "
        "it is only told of"
    )
    assert told(play)["level"] == "warn"


def test_more_than_that_waits_and_holds_nothing_meanwhile(play: Playbook) -> None:
    spend(play, (17 * CENT, 0))
    asks(play)
    play.pass_time(1.5)
    assert play.upstreams == []
    assert play.used() == 0, "it is not charged before it goes on"
    assert play.loop.run_until_complete(play.store.ledger.open()) == []
    play.pass_time(1.5)
    assert answered(play) == 200
    assert told(play)["level"] == "slow"


def test_nobody_waits_longer_than_five_seconds(play: Playbook) -> None:
    spend(play, (19 * CENT + CENT // 2, 0))
    clients = [play.connect() for _ in range(3)]
    for client in clients:
        client.sends(play.request(b"GET", b"/api/free"))
    play.pass_time(4)
    assert play.upstreams == []
    play.pass_time(1.5)
    assert len(play.upstreams) == 3
    for upstream in play.upstreams:
        upstream.request()
        upstream.answers()
    assert [client.answer().status for client in clients] == [200] * 3


def test_who_hangs_up_while_it_waits_is_sent_nowhere(play: Playbook) -> None:
    spend(play, (17 * CENT, 0))
    asks(play)
    play.client.resets()
    play.pass_time(6)
    assert play.upstreams == []
    play.client = play.connect()
    assert play.used() == 0


def test_a_stop_that_comes_while_one_waits_holds_for_it_too(play: Playbook) -> None:
    spend(play, (17 * CENT, 0))
    asks(play)
    spend(play, (10 * CENT, 0))
    play.pass_time(5.5)
    play.client.problem(429, "spend_guard")
    assert play.upstreams == []


def test_twenty_times_the_usual_is_stopped_and_opens_when_it_says(play: Playbook) -> None:
    for _ in range(3):
        spend(play, (9 * CENT, 25))
    asks(play)
    refusal = play.client.problem(429, "spend_guard")
    assert play.upstreams == []
    reset_s = told(play)["reset"]
    assert 200 < reset_s < 300
    assert json.loads(refusal.body)["detail"] == (
        "This token has spent 0.27 USD in 300 seconds, where 0.0101 USD are usual for it; it is stopped at 0.2028 USD, "
        f"and passes again in {reset_s:.1f} seconds."
    )
    seconds = b"%d" % -(-reset_s // 1)
    assert (refusal.value(b"x-should-retry"), refusal.value(b"retry-after")) == (b"false", seconds)
    assert refusal.value(b"ratelimit-policy") == b'"minute";q=10000;w=60'
    assert refusal.value(b"ratelimit") == b'"spend-guard";r=0;t=' + seconds
    limits = [refusal.value(b"x-ratelimit-" + name) for name in (b"limit", b"remaining", b"reset")]
    assert limits == [b"0.2028", b"0", seconds]
    play.pass_time(reset_s - 0.5)
    asks(play)
    play.client.problem(429, "spend_guard")
    play.pass_time(1)
    asks(play)
    play.pass_time(6)
    assert answered(play) == 200


def test_within_a_minute_clients_may_wait(play: Playbook) -> None:
    spend(play, (27 * CENT, 260))
    asks(play)
    refusal = play.client.problem(429, "spend_guard")
    assert refusal.values(b"x-should-retry") == []
    assert 0 < int(refusal.value(b"retry-after") or 0) <= 60


def test_each_step_is_logged_once_and_anew_after_it_was_usual(play: Playbook, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "gateway.guards"):
        spend(play, *([(CENT, 0)] * 30), (0, 300))
        assert told(play)["level"] == "usual"
        spend(play, *([(CENT, 0)] * 40))
    steps = [line.rpartition(": ")[2] for line in caplog.messages]
    assert steps[:3] == ["it is only told of", "its requests wait for up to 5 s", "its requests are refused"]
    assert steps[3:] == steps[:3]


def test_one_token_is_no_other(play: Playbook) -> None:
    spend(play, (100 * CENT, 0))
    play.token = play.admission.issue(play.context.clock.wall_s)[0].encode()
    for _ in range(50):
        asks(play)
        assert answered(play) == 200
    assert told(play)["usual"] is None, "nothing is known of it yet"


def test_who_is_stopped_does_not_get_away_by_making_other_tokens(play: Playbook) -> None:
    parent = play.token
    play.token, _ = child_of(play, parent)
    spend(play, (30 * CENT, 0))
    for token_ in (play.token, child_of(play, parent)[0], parent):
        play.token = token_
        asks(play, b"/free")
        answer = play.client.answer()
        assert (answer.status, b"spend_guard" in answer.body, b"has spent 0.3 USD" in answer.body) == (429, True, True)
    assert play.upstreams == []


def test_off_means_off(make_play: Callable[..., Playbook]) -> None:
    play = make_play(cost=FIXED)
    assert told(play) is None
    asks(play)
    assert answered(play) == 200


class Pages:
    """A ledger that tells its entries a few at a time, or breaks."""

    def __init__(self, entries: list[Entry]) -> None:
        self.left = entries
        self.breaks = False

    async def entries(self, since_us: int, token: str | None = None, limit: int | None = None) -> list[Entry]:
        assert (token, limit is None) == (None, False)
        if self.breaks:
            raise StoreUnavailable("Redis is out.")
        return [entry for entry in self.left if entry.at_us >= since_us][:7]


def entries(now_us: int) -> list[Entry]:
    found = [
        Entry(f"r-{at}", token="t", target="api", cost={"USD": CENT, "tokens": 9}, at_us=now_us - at * 300 * 1_000_000)
        for at in range(400, 0, -1)
    ]
    return [*found, found[-1]._replace(cost={"credits": 5}), found[-1]._replace(at_us=now_us + 1)]


async def test_what_the_ledger_knows_of_the_last_day_is_known_from_the_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s = 1_800_000_000.0
    known = Pacing(GUARD, lambda: now_s)
    ledger: Any = Pages(entries(int(now_s * 1e6)))
    await known.seed(ledger)
    assert float(known.told("t")["usual"]) == pytest.approx(0.01, rel=0.02)
    half = Pacing(GUARD, lambda: now_s)
    await half.seed(ledger, 0.5)
    assert float(half.told("t")["usual"]) == pytest.approx(0.005, rel=0.02)
    ledger.breaks = True
    await Pacing(GUARD).seed(ledger)
    assert "the ledger cannot be read (SPEND_GUARD): Redis is out." in caplog.text
    assert GUARD.history_us == HISTORY_US


async def test_another_guard_begins_with_the_ledger_and_the_same_goes_on() -> None:
    paces = Paces()
    store: Any = SimpleNamespace(ledger=Pages(entries(time.time_ns() // 1000)))

    async def renew(guard: str) -> Pacing | None:
        paces.renew(config(spend_guard=guard).settings, store)
        for _ in range(100):
            await asyncio.sleep(0)
        return paces.now

    assert await renew("off") is None
    assert paces.told("t") is None
    first = await renew("10x/5m")
    assert first is not None
    assert float(first.told("t")["usual"]) == pytest.approx(0.01, rel=0.05)
    assert await renew("10x/5m") is first
    second = await renew("11x/10m")
    assert second is not None
    assert float(second.told("t")["usual"]) == pytest.approx(0.02, rel=0.05)
    assert await renew("off") is None


def test_tokens_are_bounded() -> None:
    known = Pacing(GUARD, lambda: 1_800_000_000.0)
    for number in range(MAX_TOKENS + 5):
        known.spent(f"t{number}", CENT)
    assert len(known._tokens) == MAX_TOKENS
    assert known.told("t0")["spent"] == "0"
    assert known.told(f"t{MAX_TOKENS + 4}")["spent"] == "0.01"
