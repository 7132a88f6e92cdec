"""Server-Timing: whose time was whose, by a clock that only the test moves."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from gateway.proxy import account, exchange, heads

if TYPE_CHECKING:
    from tests.kit.playbook import Client, Playbook


class Stopwatch:
    """What the gateway measures with."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def passes(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    watch = Stopwatch()
    for module in (exchange, heads, account):
        monkeypatch.setattr(module, "perf_counter", watch)
    return watch


def shares_ms(client: Client) -> tuple[float, float]:
    """Read an answer; return the gateway's share of its time, and the upstream's."""
    timing = client.answer().value(b"server-timing")
    assert timing is not None
    found = re.fullmatch(rb"gateway;dur=([0-9.]+), upstream;dur=([0-9.]+)", timing)
    assert found is not None
    return float(found[1]), float(found[2])


def test_the_time_before_the_request_leaves_is_the_gateways(play: Playbook, watch: Stopwatch) -> None:
    play.store.holds = True
    play.client.sends(play.request(b"GET", b"/api/x"))
    watch.passes(0.25)
    play.store.decide()
    watch.passes(2)
    play.upstream.answers()
    assert shares_ms(play.client) == pytest.approx((250, 2000), abs=0.01)


@pytest.mark.parametrize("before_s", [0.0, 0.25])
def test_the_time_of_an_upstream_that_failed_is_not_the_gateways(
    play: Playbook, watch: Stopwatch, before_s: float
) -> None:
    play.client.sends(play.request(b"GET", b"/api/warm"))
    play.upstream.request()
    play.upstream.answers()
    play.client.answer()
    play.store.holds = True
    play.client.sends(play.request(b"GET", b"/api/x"))
    watch.passes(before_s)
    play.store.decide()
    stale = play.upstream
    stale.request()
    watch.passes(5)
    stale.ends()
    assert play.dials == 2
    play.upstream.request()
    watch.passes(1)
    play.upstream.answers()
    gateway_ms, upstream_ms = shares_ms(play.client)
    assert gateway_ms == pytest.approx(before_s * 1000, abs=0.01)
    assert upstream_ms == pytest.approx(1000, abs=0.01) or upstream_ms == pytest.approx(6000, abs=0.01)


def test_the_next_request_on_the_connection_begins_at_nothing(play: Playbook, watch: Stopwatch) -> None:
    for upstream_s in (3, 1):
        watch.passes(60)
        play.client.sends(play.request(b"GET", b"/api/x"))
        watch.passes(upstream_s)
        play.upstream.answers()
        assert shares_ms(play.client) == pytest.approx((0, upstream_s * 1000), abs=0.01)
