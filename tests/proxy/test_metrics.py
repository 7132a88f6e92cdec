"""`/metrics`, read by the official client's own parser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import prometheus_client.core  # noqa: F401 - here, and not in a thread of the gateway's while the script stands still
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.budgets.budget import NANO
from gateway.metering.costs import CostTable, FixedPrice
from tests.proxy.test_endpoints import ADMIN, ADMIN_KEY, ELSEWHERE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Client, Playbook

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
LABELS = {"target", "result", "reason", "status", "le", "unit", "mark"}


def scrape(client: Client, *lines: bytes) -> Samples:
    client.sends(b"\r\n".join((b"GET /metrics HTTP/1.1", b"Host: localhost", *lines, b"", b"")))
    answer = client.answer()
    assert answer.status == 200
    content_type = answer.value(b"content-type")
    assert content_type is not None
    assert content_type.startswith(b"text/plain; version=")
    samples: Samples = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        assert family.documentation
        assert family.type != "unknown"
        for sample in family.samples:
            assert sample.labels.keys() <= LABELS
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, "a series is there twice"
            samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def asks(play: Playbook, *lines: bytes, status: bytes = b"200 OK") -> None:
    play.client.sends(play.request(b"POST", b"/api/x?secret=1", *lines, body=b"abc"))
    play.upstream.request()
    play.upstream.answers(b"hello", status)
    play.client.answer()


def test_counters_are_what_happened(make_play: Callable[..., Playbook]) -> None:
    play = make_play(rate_limit="2/hour")
    asks(play)
    asks(play, status=b"404 Not Found")
    for retry in ("0", "2"):
        play.client.sends(play.request(b"GET", b"/api/x", b"x-stainless-retry-count: " + retry.encode()))
        play.client.problem(429, "rate_limited")
    samples = scrape(play.connect())
    assert value(samples, "gateway_requests_total", target="api", result="passed") == 2
    assert value(samples, "gateway_requests_total", target="api", result="refused") == 2
    assert value(samples, "gateway_requests_total", target="api", result="upstream_error") == 0
    assert value(samples, "gateway_refused_requests_total", target="api", reason="rate_limited") == 2
    assert value(samples, "gateway_retried_requests_total", target="api") == 1
    assert value(samples, "gateway_answers_total", target="api", status="2xx") == 1
    assert value(samples, "gateway_answers_total", target="api", status="4xx") == 3
    assert value(samples, "gateway_received_bytes_total", target="api") == 6
    assert value(samples, "gateway_sent_bytes_total", target="api") == 10
    assert value(samples, "gateway_requests_in_flight", target="api") == 0


def test_costs_are_counted_in_their_units(make_play: Callable[..., Playbook]) -> None:
    price = {"USD": NANO // 100, "credits": 3 * NANO, "tokens": 7}
    play = make_play(cost=CostTable(fixed=(FixedPrice(b"*", b"/*", price),)), budget="0.02 USD/hour")
    assert not any(name.startswith(("gateway_cost", "gateway_settled")) for name, _ in scrape(play.connect()))
    asks(play)
    play.client.sends(play.request(b"POST", b"/api/x", body=b"abc"))
    play.upstream.request()
    play.upstream.resets()
    play.client.problem(502, "upstream_unreachable")
    play.client.sends(play.request(b"GET", b"/api/x"))
    assert play.client.answer().value(b"x-gateway-error") == b"budget_exceeded"
    samples = scrape(play.connect())
    costs = {unit: value(samples, "gateway_cost_total", target="api", unit=unit) for unit in price}
    assert costs == {"USD": 0.02, "credits": 6, "tokens": 14}
    marks = [
        value(samples, "gateway_settled_requests_total", target="api", mark=mark) for mark in ("exact", "estimated")
    ]
    assert marks == [1, 1]
    assert value(samples, "gateway_refused_requests_total", target="api", reason="budget_exceeded") == 1


@pytest.mark.parametrize("name", ["gateway_own_seconds", "gateway_upstream_seconds"])
def test_histograms_begin_at_50_microseconds_and_add_up(play: Playbook, name: str) -> None:
    for _ in range(3):
        asks(play)
    samples = scrape(play.connect())
    buckets = sorted(
        (float(dict(labels)["le"]), count)
        for (one, labels), count in samples.items()
        if one == f"{name}_bucket" and ("target", "api") in labels
    )
    bounds = [bound for bound, _ in buckets]
    assert bounds[:4] == [0.00005, 0.0001, 0.0002, 0.0005]
    assert bounds[-1] == float("inf")
    assert buckets[-1][1] == 3
    assert [count for _, count in buckets] == sorted(count for _, count in buckets)
    assert value(samples, f"{name}_count", target="api") == 3
    assert 0 < value(samples, f"{name}_sum", target="api") < 60


def test_what_is_in_flight_is_a_gauge(play: Playbook) -> None:
    play.client.sends(play.request(b"GET", b"/api/x"))
    play.upstream.request()
    other = play.connect()
    assert value(scrape(other), "gateway_requests_in_flight", target="api") == 1
    play.upstream.answers()
    assert value(scrape(other), "gateway_requests_in_flight", target="api") == 0


def test_counters_never_go_back_and_a_scrape_counts_nothing(play: Playbook) -> None:
    asks(play)
    other = play.connect()
    first = scrape(other)
    assert scrape(other) == first
    asks(play)
    assert value(scrape(other), "gateway_requests_total", target="api", result="passed") == 2


def test_nothing_that_a_client_sends_becomes_a_label(play: Playbook) -> None:
    asks(play)
    other = play.connect()
    before = scrape(other).keys()
    for target in (b"/api/other", b"/api/x?y=z", b"/nowhere", b"/usage/x"):
        client = play.connect()
        client.sends(play.request(b"PURGE", target, b"X-Thing: evil"))
        if target.startswith(b"/api"):
            play.upstream.request()
            play.upstream.answers(b"", b"299 Odd")
        client.answer()
    added = scrape(other).keys() - before
    assert added == {
        ("gateway_refused_requests_total", frozenset({("target", ""), ("reason", "not_found")})),
    }


# --- who may look ----------------------------------------------------------------------------------------------------


def test_a_local_peer_needs_no_key(make_play: Callable[..., Playbook]) -> None:
    scrape(make_play(admin_key=ADMIN_KEY.decode()).client)


def test_from_elsewhere_it_takes_the_admin_key(make_play: Callable[..., Playbook]) -> None:
    play = make_play(admin_key=ADMIN_KEY.decode())
    client = play.connect(ELSEWHERE)
    client.sends(play.request(b"GET", b"/metrics"))
    client.problem(403, "not_allowed")
    scrape(client, ADMIN)


def test_without_a_key_it_is_for_this_machine_alone(play: Playbook) -> None:
    client = play.connect(ELSEWHERE)
    client.sends(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    client.problem(403, "not_allowed")


def test_a_web_page_on_this_machine_is_nobody(play: Playbook) -> None:
    play.client.sends(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.test\r\n\r\n")
    play.client.problem(403, "not_allowed")


def test_it_is_only_read(play: Playbook) -> None:
    play.client.sends(b"POST /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert play.client.problem(405, "method_not_allowed").value(b"allow") == b"GET, HEAD"
