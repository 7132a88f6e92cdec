"""`/metrics`: the counts of all workers in Prometheus's text, by the official client.

Label values are names of targets, the gateway's error codes, classes of statuses, units and marks of costs: none that a
client could choose.
The client library is loaded when the first scrape comes: it costs a process 3.5 MB.
"""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from gateway.budgets.budget import COUNTED, NANO
from gateway.counts import BOUNDS_US, COST, REFUSED, SETTLED
from gateway.metrics import LINES_DROPPED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

    from gateway.shared_counts import Told

PREFIX: Final = "gateway_"
RESULTS: Final = {"passed": "passed", "upstream_errors": "upstream_error", "failed": "failed"}
"""The values of `result`, by count; `refused` is the sum of the refusals."""

_SHOWN: Final = [place for place, bound in enumerate(BOUNDS_US) if str(bound)[0] in "125" and str(bound)[1:2] != "5"]
"""The buckets that are shown: three in each power of ten, from 50 µs on. To Prometheus, each is a series."""


class _Collector:
    """Gives the counts to the client library, at a scrape.

    Args:
        targets: As `SharedCounts.all` has them.
    """

    def __init__(self, targets: Mapping[str, Told]) -> None:
        self._targets = targets

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        core: Any = import_module("prometheus_client.core")

        def counter(name: str, meaning: str, *labels: str) -> Any:  # noqa: ANN401 - the library's, loaded late
            return core.CounterMetricFamily(PREFIX + name, meaning, labels=["target", *labels])

        def histogram(name: str, meaning: str) -> Any:  # noqa: ANN401 - likewise
            return core.HistogramMetricFamily(PREFIX + name, meaning, labels=["target"])

        requests = counter("requests", "Requests that are over, by what became of them.", "result")
        refused = counter("refused_requests", "Requests that the gateway refused, by error code.", "reason")
        answers = counter("answers", "Answers, the gateway's own included, by class of status.", "status")
        retries = counter("retried_requests", "Refused or failed requests that an SDK had sent again.")
        received = counter("received_bytes", "Bytes of the bodies that clients sent.")
        sent = counter("sent_bytes", "Bytes of the bodies that clients got.")
        own = histogram("own_seconds", "The gateway's own share of the time to the answer's head.")
        upstream = histogram("upstream_seconds", "The upstream's share of the time to the answer's head.")
        cost = counter("cost", "What requests cost, in US dollars or what the unit says.", "unit")
        settled = counter("settled_requests", "Requests whose cost was settled, by how sure it is.", "mark")
        in_flight = core.GaugeMetricFamily(
            PREFIX + "requests_in_flight", "Requests that are not over.", labels=["target"]
        )
        for name, told in self._targets.items():
            counts = told["counts"]
            reasons = _under(REFUSED, counts)
            for unit, atoms in _under(COST, counts).items():
                cost.add_metric([name, unit], atoms if unit in COUNTED else atoms / NANO)
            for mark, count in _under(SETTLED, counts).items():
                settled.add_metric([name, mark], count)
            for key, result in RESULTS.items():
                requests.add_metric([name, result], counts.get(key, 0))
            requests.add_metric([name, "refused"], sum(reasons.values()))
            for reason, count in reasons.items():
                refused.add_metric([name, reason], count)
            for digit in range(1, 6):
                answers.add_metric([name, f"{digit}xx"], told["statuses"][digit])
            retries.add_metric([name], counts.get("retries", 0))
            received.add_metric([name], counts.get("bytes_in", 0))
            sent.add_metric([name], counts.get("bytes_out", 0))
            in_flight.add_metric([name], told["in_flight"])
            own.add_metric([name], _cumulative(told["own"]), told["own_s"])
            upstream.add_metric([name], _cumulative(told["upstream"]), told["upstream_s"])
        lost = core.CounterMetricFamily(
            PREFIX + "access_log_dropped_lines",
            "Lines of the access log that stdout did not take.",
            value=sum(told["counts"].get(LINES_DROPPED, 0) for told in self._targets.values()),
        )
        yield from (lost, requests, refused, answers, retries, received, sent, in_flight, own, upstream, cost, settled)


def _under(kind: str, counts: Mapping[str, int]) -> dict[str, int]:
    return {name.removeprefix(kind): count for name, count in sorted(counts.items()) if name.startswith(kind)}


def _cumulative(buckets: list[int]) -> list[tuple[str, int]]:
    sums = list(accumulate(buckets))
    return [*((repr(BOUNDS_US[place] / 1e6), sums[place]) for place in _SHOWN), ("+Inf", sums[-1])]


async def scraped(targets: Mapping[str, Told]) -> tuple[str, bytes]:
    """Return a content type and the text.

    Args:
        targets: As `SharedCounts.all` has them.
    """
    if "prometheus_client.core" not in sys.modules:  # which takes longer than requests should wait
        await asyncio.to_thread(import_module, "prometheus_client.core")
    client: Any = import_module("prometheus_client")
    registry = client.CollectorRegistry(auto_describe=False)
    registry.register(_Collector(targets))
    return client.CONTENT_TYPE_LATEST, client.generate_latest(registry)
