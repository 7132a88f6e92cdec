"""What `gateway verify` says of a run, and what a program can read of it."""

from __future__ import annotations

import json

from gateway.verify.faults import Outage
from gateway.verify.judge import Seen
from gateway.verify.report import Result, as_json, as_text, conclude, progress
from gateway.verify.tally import Tally

SECOND_US = 1_000_000


def tally(*bursts_us: int, each: int, refused: int = 7) -> Tally:
    made = Tally(policies={'"second";q=3;w=1'})
    for at_us in bursts_us:
        for _ in range(each):
            made.note("admitted", at_us, at_us + 2000)
    for _ in range(refused):
        made.note("rate_limited", 0, 9000)
    made.asked = len(bursts_us) * each + refused
    return made


def result(counts: Tally, *outages: Outage, undecided_us: tuple[int, ...] = ()) -> Result:
    return conclude(counts, outages, list(undecided_us), 4.0, is_cut=False)


def line(text: str, name: str) -> str:
    (found,) = [line for line in text.splitlines() if line.startswith(name)]
    return found[16:]


def test_a_limit_that_held() -> None:
    text = as_text(result(tally(0, SECOND_US, 2 * SECOND_US, each=3)))
    assert line(text, "asked") == "16 requests in 4.0 s"
    assert line(text, "admitted") == "9"
    assert line(text, "refused") == "7"
    assert line(text, "neither") == "0"
    assert line(text, "limit second") == "3 in 1 s; in the worst window 3"
    assert line(text, "over-admission") == "0"
    assert line(text, "usable") == "100.0% of the limit"
    assert line(text, "slowest answer") == "9 ms (refused), 2 ms (admitted)"
    assert line(text, "verdict") == "no limit was exceeded"


def test_a_limit_that_did_not_hold() -> None:
    found = result(tally(0, each=5))
    assert found.over == 2
    assert line(as_text(found), "verdict") == "EXCEEDED by 2"
    told = json.loads(as_json(found))
    assert told["over_admission"] == 2
    assert told["limits"] == [{"name": "second", "quota": 3, "window_s": 1, "worst_window": 5, "over_admission": 2}]


def test_a_redis_that_forgot_is_named_as_the_cause() -> None:
    outage = Outage("killed", 100, 200, kept_data=False)
    text = as_text(result(tally(0, each=5), outage))
    assert line(text, "verdict").startswith("EXCEEDED by 2; Redis came back without its data")
    assert "without its data" in line(text, "redis killed")


def test_how_long_requests_went_on_undecided_after_each_outage() -> None:
    pause = Outage("paused", 1 * SECOND_US, 2 * SECOND_US, kept_data=True)
    kill = Outage("killed", 5 * SECOND_US, 6 * SECOND_US, kept_data=True)
    # Within an outage is no recovery; nor is what belongs to the one after.
    undecided_us = (1_500_000, 2_040_000, 5_500_000)
    found = result(tally(0, each=1), pause, kill, undecided_us=undecided_us)
    assert found.recovered_us == (40_000, 0)
    assert "40 ms after" in line(as_text(found), "redis paused")


def test_without_refusals_nothing_is_known_of_what_was_usable() -> None:
    assert result(tally(0, SECOND_US, each=3, refused=0)).usable is None
    assert result(tally(0, SECOND_US, each=3)).usable is not None


def test_counts_are_told_and_added_up_without_loss() -> None:
    counts = tally(0, SECOND_US, each=2)
    counts.note("store_unavailable", 0, 123)
    counts.note("unanswered", 0, 10)
    assert Tally.from_json(counts.to_json()) == counts
    total = Tally()
    total.add(counts)
    total.add(Tally())
    assert total == counts
    total.add(counts)
    assert total.asked == 2 * counts.asked
    assert total.admissions == 2 * [
        Seen(0, 2000),
        Seen(0, 2000),
        Seen(SECOND_US, 1_002_000),
        Seen(SECOND_US, 1_002_000),
    ]
    assert progress(counts, 1.5) == "  1.5 s  asked 11  admitted 4  refused 7  neither 2"
