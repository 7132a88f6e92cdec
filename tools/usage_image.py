"""Draw `gateway usage --watch` for the README: `python -m tools.usage_image` writes tools/images/usage-watch.svg.

The numbers are made up; the table is what the program draws of them.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from gateway.budgets.grammar import atoms_of
from gateway.counts import told
from gateway.usage_table import as_table

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGE = Path(__file__).parent / "images" / "usage-watch.svg"
COLUMNS = 116


def svg() -> str:
    """Return the picture."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(as_table(_look(0), _look(1)))
    return console.export_svg(title="gateway usage --watch", unique_id="usage-watch")


def _look(second: int) -> dict[str, Any]:
    tokens = [
        _token("crawler", second, (97, 3, 0), [_limit("minute", 3000, 2210)], [_budget("25", "21.6208", "0.9")]),
        _token(
            "support-bot",
            second,
            (14, 0, 0),
            [_limit("minute", 1000, 310), _limit("concurrency", 8, 3)],
            [_budget("10", "3.07", "0.4")],
        ),
        _token("nightly-batch", second, (9, 6, 6), [_limit("minute", 60, 60)]),
        _token("anna", second, (1, 0, 0), [_limit("minute", 60, 12)]),
    ]
    counts = {"passed": 84_211 + 112 * second, "refused:rate_limited": 1310 + 9 * second, "latency<=300ms": 90}
    counts |= {"cost:USD": sum(_spent(token["budgets"]) for token in tokens)}
    counts |= {"requests": 85_521 + 121 * second, "latency<=1s": 8, "latency<=3s": 2, "retries": 704 + 6 * second}
    at = f"2026-11-26T20:13:{15 + second}.000Z"
    return {"at": at, "instances": 2, "totals": told(counts, 41), "targets": {}, "tokens": tokens}


def _token(
    name: str,
    second: int,
    rates: tuple[int, int, int],
    limits: list[dict[str, Any]],
    budgets: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    per_s, refused_per_s, retries_per_s = rates
    counts = {
        "requests": per_s * (412 + second),
        "passed": (per_s - refused_per_s) * (412 + second),
        "refused:rate_limited": refused_per_s * (412 + second),
        "retries": retries_per_s * (412 + second),
        "latency<=300ms": per_s * 90,
        "latency<=1s": per_s * 8,
        "latency<=3s": per_s * 2,
        **({"cost:USD": _spent(budgets)} if budgets else {}),
    }
    return {
        "id": name,
        "name": name,
        "revoked": False,
        "limits": limits,
        "budgets": budgets,
        **told(counts, per_s // 3),
    }


def _limit(name: str, limit: int, used: int) -> dict[str, Any]:
    return {"name": name, "limit": limit, "used": used, "remaining": limit - used, "shadow": False}


def _budget(limit: str, spent: str, held: str) -> dict[str, Any]:
    return {"name": "day-USD", "unit": "USD", "limit": limit, "spent": spent, "held": held}


def _spent(budgets: Sequence[dict[str, Any]]) -> int:
    return sum(atoms_of(budget["spent"], "USD") for budget in budgets)


if __name__ == "__main__":
    IMAGE.parent.mkdir(exist_ok=True)
    IMAGE.write_text(svg() + "\n", encoding="utf-8")
