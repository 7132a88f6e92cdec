"""What `gateway usage` shows of `/admin/usage`: as text, as one line a second, and as a table."""

from __future__ import annotations

import io
import re
from typing import Any, cast
from xml.etree import ElementTree

from rich.console import Console
from rich.screen import Screen

from gateway import usage_command
from gateway.budgets.grammar import atoms_of
from gateway.counts import told
from gateway.usage_table import as_line, as_table, as_text, rows
from tools.usage_image import IMAGE, svg


def limit(name: str = "minute", quota: int = 60, used: int = 0) -> dict[str, Any]:
    return {"name": name, "limit": quota, "used": used, "remaining": quota - used, "shadow": False}


def budget(name: str = "day-USD", spent: str = "0", held: str = "0", amount: str = "5") -> dict[str, Any]:
    return {"name": name, "unit": "USD", "limit": amount, "spent": spent, "held": held}


def token(token_id: str, requests: int, refusals: int = 0, retries: int = 0, **more: Any) -> dict[str, Any]:
    counts = {"requests": requests, "passed": requests - refusals, "retries": retries}
    if refusals:
        counts["refused:rate_limited"] = refusals
    shown = {"id": token_id, "name": None, "revoked": False, "limits": [limit(used=12)], "budgets": []}
    return shown | told(counts, 0) | more


def look(second: int, *tokens: dict[str, Any]) -> dict[str, Any]:
    counts = {"requests": sum(one["requests"] for one in tokens), "latency<=100ms": 1}
    for one in tokens:
        for unit, amount in one["cost"].items():
            counts[f"cost:{unit}"] = counts.get(f"cost:{unit}", 0) + atoms_of(amount, unit)
    counts["passed"] = sum(one["passed"] for one in tokens)
    if counts["requests"] > counts["passed"]:
        counts["refused:rate_limited"] = counts["requests"] - counts["passed"]
    totals = told(counts, 2)
    targets = {"api": totals}
    at = f"2026-11-26T20:13:{second:02}.500Z"
    return {"at": at, "instances": 1, "totals": totals, "targets": targets, "tokens": list(tokens)}


def drawn(before: dict[str, Any] | None, now: dict[str, Any], width: int = 100, trouble: str = "") -> str:
    console = Console(width=width, height=100, file=io.StringIO(), color_system=None)
    console.print(as_table(before, now, trouble))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_report_has_the_totals_the_targets_and_the_tokens() -> None:
    text = as_text(look(0, token("abc", 10, 4, name="worker"), token("def", 1)))
    first, totals, target, worker, other = text.splitlines()
    assert first == "2026-11-26T20:13:00.500Z: 1 instance"
    assert totals.startswith("13 requests: 7 passed, 4 refused (rate_limited 4), 0 upstream errors")
    assert target.startswith("target api: 13 requests")
    assert worker.startswith("token worker: 10 requests: 6 passed, 4 refused")
    assert worker.endswith("minute 12/60")
    assert other.startswith("token def: 1 requests")


def test_who_asks_most_by_the_second_stands_first() -> None:
    before, now = look(0, token("big", 1000), token("new", 10)), look(2, token("big", 1002), token("new", 50))
    assert [(row.label, row.per_s) for row in rows(before, now)] == [("new", 20.0), ("big", 1.0)]
    assert [row.label for row in rows(None, now)] == ["big", "new"]


def test_a_token_that_comes_onto_the_list_and_counts_that_begin_anew_have_no_rate() -> None:
    found = rows(look(0, token("back", 50)), look(1, token("back", 3), token("new", 9)))
    assert [(row.label, row.per_s) for row in found] == [("new", 0.0), ("back", 0.0)]


def test_a_line_says_what_is_new() -> None:
    line = as_line(look(0, token("abc", 10, 0)), look(1, token("abc", 15, 2, name="worker")))
    assert line.startswith("20:13:01 5.0 requests/s, 2.0 refused/s, 2 in flight, p50 ")
    assert line.endswith("busiest: worker 5.0/s")


def test_a_storm_of_retries_is_marked() -> None:
    before, now = look(0, token("abc", 10, 5, 1)), look(1, token("abc", 20, 15, 9))
    assert as_line(before, now).endswith("RETRY STORM: abc")
    assert "RETRY STORM" in drawn(before, now)
    calm = look(1, token("abc", 20, 15, 2))
    assert "STORM" not in as_line(before, calm) + drawn(before, calm)


def test_the_table_has_a_bar_for_each_limit() -> None:
    shown = drawn(
        None,
        look(
            0,
            token(
                "abc",
                10,
                limits=[limit(used=0), limit("hour", 100, 50), limit("day", 100, 100), limit("week", 10, 30)],
            ),
        ),
    )
    bars = dict(re.findall(r"([█░]+) \S+ (minute|hour|day|week)", shown))
    assert {bar.count("█"): name for bar, name in bars.items()}.keys() == {0, 6, 12}
    assert all(len(bar) == 12 for bar in bars)
    assert "50/100 hour" in shown


def test_it_fits_a_narrow_terminal() -> None:
    shown = drawn(None, look(0, token("x" * 40, 10, name="a-very-long-name-of-a-token-indeed")), width=80)
    assert max(map(len, shown.splitlines())) <= 80
    assert "12/60 minute" in shown


def test_on_a_terminal_of_80_columns_names_are_cut_and_numbers_are_not() -> None:
    long = limit("tokens-of-the-big-model", 1_000_000, 123_456)
    named = token("x", 1_234_567, 89_012, name="a-very-long-name-of-a-token-indeed", limits=[long])
    shown = drawn(None, look(0, named), width=80)
    assert max(map(len, shown.splitlines())) <= 80
    assert "a-very-l" in shown
    for whole in ("req/s", "total", "refused", "flight", " 1234567 ", " 89012 ", "123456/1000000"):
        assert whole in shown


def test_on_a_screen_it_ends_with_its_foot_and_says_how_many_tokens_had_no_room() -> None:
    limits = [limit(), limit("hour", 100, 50), limit("day", 100, 100)]
    now = look(0, *(token(f"token-{number:02}", 100 - number, 7, limits=limits) for number in range(30)))
    for columns, lines, found in ((80, 24, 5), (120, 40, 11), (80, 10, 1)):
        console = Console(width=columns, height=lines, file=io.StringIO(), color_system=None)
        console.print(Screen(as_table(None, now)))
        assert isinstance(console.file, io.StringIO)
        shown = console.file.getvalue()
        assert len(re.findall(r"token-\d\d", shown)) == shown.count("50/100 hour") == found
        assert f"refused so far: rate_limited 210   {30 - found} more tokens" in shown


def test_a_name_cannot_write_on_the_terminal() -> None:
    now = look(0, token("abc", 1, name="\x1b[2Jevil\nname"))
    for shown in (as_text(now), as_line(None, now), drawn(None, now)):
        assert "\x1b" not in shown
        assert "evil?name" in shown


def test_why_there_is_no_news_stands_above_what_there_was() -> None:
    text = drawn(None, look(0, token("abc", 10)), trouble="no gateway answers at 127.0.0.1:3000: Connection refused")
    assert text.startswith("no gateway answers at 127.0.0.1:3000: Connection refused")
    assert "abc" in text


def test_nobody_asked_anything_yet() -> None:
    assert "refused so far: none" in drawn(None, look(0))
    assert as_line(None, look(0)).startswith("20:13:00 0.0 requests/s")


def test_the_readmes_picture_is_what_the_program_draws() -> None:
    picture = IMAGE.read_text("utf-8")
    assert picture == svg() + "\n", "run `python -m tools.usage_image`"
    assert len(picture) < 100_000
    ElementTree.fromstring(picture)  # noqa: S314 - our own
    assert "RETRY&#160;STORM" in picture


# --- money -----------------------------------------------------------------------------------------------------------

SPENDER = token(
    "abc", 10, name="agent", budgets=[budget(spent="1.250000001", held="0.5")], cost={"USD": "12.340000001"}
)


def test_a_report_has_budgets_and_money_to_the_last_digit() -> None:
    _, totals, target, agent, other = as_text(look(0, SPENDER, token("def", 1))).splitlines()
    assert totals.endswith("; 12.340000001 USD spent")
    assert target.endswith("; 12.340000001 USD spent")
    assert agent.endswith("minute 12/60, day-USD 1.250000001/5 (0.5 more held); 12.340000001 USD spent")
    assert other.endswith("minute 12/60")


def test_a_line_says_what_was_spent() -> None:
    assert ", 12.34 USD spent; busiest" in as_line(None, look(0, SPENDER))
    assert "spent" not in as_line(None, look(0, token("def", 1)))


def test_a_budget_is_a_bar_of_what_is_spent_and_what_is_held() -> None:
    shown = drawn(None, look(0, SPENDER), width=120)
    assert "███▒░░░░░░░░ 1.25+0.5/5 day-USD" in shown
    full = token("abc", 10, budgets=[budget(spent="5.1"), budget("hour-USD", "0.000000001")])
    shown = drawn(None, look(0, full), width=120)
    assert "████████████ 5.1/5 day-USD" in shown
    assert "░░░░░░░░░░░░ 0.000000001/5 hour-USD" in shown


def test_what_each_token_spent_is_a_column_and_on_a_narrow_terminal_below_its_name() -> None:
    now = look(0, SPENDER, token("def", 1, cost={"USD": "0.000123457", "tokens": "123456"}))
    wide, narrow = drawn(None, now, width=120), drawn(None, now, width=80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "spent so far: 12.34 USD, 123456 tokens   refused so far: none" in wide
    assert "spent" in wide.splitlines()[2]
    assert re.search(r"agent +█\S+ 12/60 minute +12.34 USD +0.0 +10 ", wide)
    assert re.search(r"agent +█\S+ 12/60 minute +0.0 +10 ", narrow)
    for line in ("12.34 USD", "0.0001235 USD", "123456 tokens"):
        assert re.search(rf"^ ?{line} ", narrow, re.MULTILINE), narrow
    assert "spent" not in drawn(None, look(0, token("def", 1)), width=120)


# --- the terminal ----------------------------------------------------------------------------------------------------


class Live:
    """Draws nothing, and says what it was told to. Ctrl-Z comes while it draws, or while it is stopped."""

    def __init__(self, *moments: str) -> None:
        self.moments = moments
        self.done: list[str] = []
        self.screen = usage_command.Screen(cast("Any", self), lambda: self.do("at rest"))

    def do(self, what: str) -> None:
        self.done.append(f"{what} …")
        if what in self.moments:
            self.moments = tuple(moment for moment in self.moments if moment != what)
            self.screen.on_stop()
        self.done[-1:] = [what] if self.done[-1] == f"{what} …" else [self.done[-1], f"{what} was disturbed"]

    def update(self, _: object) -> None:
        self.do("update")

    def start(self, *, refresh: bool = False) -> None:
        self.do("draw anew" if refresh else "start")

    def refresh(self) -> None:
        self.do("refresh")

    def stop(self) -> None:
        self.do("stop")


def test_ctrl_z_waits_for_what_is_drawn() -> None:
    drawing, resting = ["update", "start", "refresh"], ["stop", "at rest", "draw anew"]
    for moments, done in (
        ((), drawing),
        (("update",), drawing + resting),
        (("refresh",), drawing + resting),
        (("refresh", "stop"), drawing + resting + resting),
        (("refresh", "draw anew"), drawing + resting + resting),
    ):
        live = Live(*moments)
        live.screen.show("a table")
        assert live.done == done, moments
    live.screen.on_stop()
    assert live.done == done + resting
    live.screen.close()
    live.screen.on_stop()
    assert live.done == [*done, *resting, "stop"]
