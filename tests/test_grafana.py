"""The Grafana dashboard in tools/: by Grafana's own model of dashboards, and of nothing but what `/metrics` has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families

from gateway.budgets.book import NEVER_US
from gateway.budgets.budget import Budget
from gateway.budgets.refusing import exceeded
from gateway.budgets.spending import Mark
from gateway.errors import StoreUnavailable
from gateway.metrics import Metrics
from gateway.prometheus import scraped
from gateway.shared_counts import SharedCounts

DASHBOARD = Path(__file__).parent.parent / "tools" / "grafana-dashboard.json"


@pytest.fixture
def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return read


def left_out(read: Any, kept: Any, where: str = "") -> list[str]:
    """List what is in the one and not, or otherwise, in the other."""
    if isinstance(read, dict) and isinstance(kept, dict):
        return [one for key in read for one in left_out(read[key], kept.get(key, "nothing"), f"{where}.{key}")]
    if isinstance(read, list) and isinstance(kept, list) and len(read) == len(kept):
        pairs = enumerate(zip(read, kept, strict=True))
        return [one for at, pair in pairs for one in left_out(*pair, f"{where}[{at}]")]
    return [] if read == kept else [f"{where}: {read!r} became {kept!r}"]


def test_grafanas_model_takes_all_of_it(dashboard: dict[str, Any]) -> None:
    """What its model does not know is gone when it is written again; what has another type is another."""
    kept = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))
    assert left_out(dashboard, kept) == []


def test_a_field_that_is_none_would_be_seen(dashboard: dict[str, Any]) -> None:
    dashboard["pannels"] = []
    dashboard["templating"]["list"][0]["labell"] = "x"
    kept = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))
    assert len(left_out(dashboard, kept)) == 2


def expressions(dashboard: dict[str, Any]) -> list[str]:
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return found + [one["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"]


async def test_its_expressions_name_what_metrics_has_and_nothing_else(dashboard: dict[str, Any]) -> None:
    metrics = Metrics()
    api = metrics.target("api").strangers
    for refusal in (StoreUnavailable(), exceeded(Budget(unit="USD", amount=1, calendar="day"), 1, NEVER_US, 0)):
        api.on_refused(refusal)
    api.settled.append(({"USD": 1}, Mark.EXACT))
    _, text = await scraped(SharedCounts(metrics).all())
    labels: dict[str, set[str]] = {}
    values: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
            for label, value in sample.labels.items():
                values.setdefault(label, set()).add(value)
    used = set()
    for expression in expressions(dashboard):
        names = re.findall(r"\bgateway_[a-z_]+", expression)
        assert names, expression
        for name in names:
            assert name in labels, f"{name} in {expression}"
        used.update(names)
        for name, matchers in re.findall(r"(gateway_[a-z_]+)\{([^}]*)\}", expression):
            for label, value in re.findall(r'([a-z]+)=~?"([^"]*)"', matchers):
                assert label in labels[name], expression
                assert "$" in value or value in values[label], expression
        for grouped in re.findall(r"by \(([a-z, ]+)\)", expression):
            assert set(grouped.split(", ")) <= labels[names[0]], expression
    shown = {name for name in labels if not name.endswith(("_created", "_count", "_sum"))}
    assert used == shown, "what it does not show"


def test_its_panels_lie_beside_each_other(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
