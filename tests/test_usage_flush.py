"""Counts on their way to the store: what is lost because there was too much of it is said, once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from gateway import metrics as counting
from gateway import usage
from gateway.metrics import Metrics
from gateway.proxy import clock
from gateway.shared_counts import SharedCounts
from gateway.stores import usage_redis
from gateway.stores.usage_redis import RedisUsage

if TYPE_CHECKING:
    import pytest


async def never(*_: object) -> list[object]:
    raise AssertionError


def count(metrics: Metrics, *names: str) -> None:
    for name in names:
        tallies = metrics.target("api").tallies
        tally = tallies[name] if name in tallies else metrics.target("api").open(name, {})
        tally.begun += 1
        tally.passed.append(3)


class Flushing:
    """Redis is out, all the time."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.metrics = Metrics()
        out = cast("Any", SimpleNamespace(live=None))
        self.book = RedisUsage(lambda _: out, never)
        self._flush = usage.UsageFlush(self.book, self.metrics, SharedCounts(self.metrics), lambda: self.now_s)

    def after(self, seconds: float, *names: str) -> None:
        count(self.metrics, *names)
        self.now_s += seconds
        self._flush.on_deadline()


def test_counts_of_too_many_tokens_that_redis_does_not_take_are_lost_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(usage_redis, "MAX_TOKENS", 3)
    flushing = Flushing()
    flushing.after(1, "a", "b")
    flushing.after(1, "b", "c")
    assert caplog.text == ""
    flushing.after(1, "d", "e")
    assert caplog.text.count("the counts of 2 tokens were lost") == 1
    flushing.after(1, "f")
    assert caplog.text.count("were lost") == 1
    flushing.after(usage.QUIET_S, "g")
    assert caplog.text.count("the counts of 2 tokens were lost") == 2


def test_ten_thousand_tokens_are_under_way_within_a_second_of_their_requests() -> None:
    flushing = Flushing()
    flushing.after(0, *(f"t{number}" for number in range(10_000)))
    pauses = -(-10_000 // usage_redis.BATCH) * flushing.book._pause_s
    assert usage.FLUSH_S + clock.TICK_S + pauses <= 1.0
    flushing.after(1, "a")  # as long as there is a backlog
    assert flushing.book._pause_s < usage_redis.PAUSE_S


def test_so_it_is_when_that_many_tokens_come_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(counting, "MAX_TOKENS", 3)
    Flushing().after(1, "a", "b", "c", "d", "e")
    assert caplog.text.count("the counts of 2 tokens were lost") == 1
