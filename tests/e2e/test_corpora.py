"""Others' hostile requests against the program: none is smuggled, repaired, hung on, or refused without need.

Collected only where the corpora are; see `tests.e2e.corpora.folder`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.conformance.contract import over_strict
from tests.e2e.corpora import MODES, folder, judge_all, summary

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.corpora import Verdict


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Verdict]]:
    corpora = folder()
    assert corpora is not None
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(judge_all(corpora, tmp_path_factory.mktemp("corpora")))


@pytest.mark.parametrize("mode", MODES)
def test_the_corpora(
    mode: str, judged: dict[str, list[Verdict]], record_property: Callable[[str, object], None]
) -> None:
    verdicts = judged[mode]
    record_property("summary", summary(mode, verdicts))
    assert len(verdicts) > 900
    wrong = [verdict for verdict in verdicts if verdict.score not in {"PASS", "OVERSTRICT"}]
    assert not wrong
    # Each of those that BEHAVIOUR.md lists is refused, or the list is not true any more.
    assert {verdict.case for verdict in verdicts if verdict.score == "OVERSTRICT"} == over_strict()
