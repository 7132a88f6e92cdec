"""What limits cost Redis: the script runs, and no idle token leaves anything behind."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from perf import redis_cost
from tests.kit.programs import program

if TYPE_CHECKING:
    import pytest


def test_a_short_run_measures_everything_and_finds_nothing_left(capsys: pytest.CaptureFixture[str]) -> None:
    program("redis-server")
    program("redis-benchmark")
    assert redis_cost.main(["--short"]) == 0
    printed = capsys.readouterr().out
    figures = re.findall(r"^(\S.*?) +([\d.]+)$", printed, re.MULTILINE)
    assert len(figures) == len(redis_cost._CHECKS) + len(redis_cost._BUDGETS) + 5
    assert all(float(figure) > 0 for _, figure in figures)
    # On a busy machine the first windows end while the last tokens still come.
    assert re.search(r"^[1-9]\d{3,4} idle tokens under 9/2s left 0 keys", printed, re.MULTILINE)
