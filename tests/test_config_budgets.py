"""The settings of budgets: what resolves to what, and what is refused with which words."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from gateway import Gateway
from gateway.budgets.budget import NANO
from gateway.budgets.grammar import written
from gateway.config import load
from gateway.config.describing import describe
from tests.test_config import config, from_file, refusal

if TYPE_CHECKING:
    from pathlib import Path

REDIS = "redis://127.0.0.1"


def test_none_unless_asked_for() -> None:
    settings = config().settings
    assert settings.budgets[:3] == ((), (), "UTC")
    assert (settings.budget_clamp, settings.budget_cut, settings.disconnect_drain_s) == (False, False, 0)


def test_budgets_of_each_token_and_of_all_together() -> None:
    settings = config(
        budget="5 USD/day,100 tokens/minute",
        global_budget="0.5 USD/month",
        budget_timezone="Europe/Berlin",
        redis_url=REDIS,
    ).settings
    assert [written(budget) for budget in settings.budgets.each] == ["5 USD/day", "100 tokens/1m"]
    assert [(one.amount, one.label, one.zone) for one in settings.budgets.together] == [
        (NANO // 2, "global-month-USD", "Europe/Berlin")
    ]
    assert [budget.zone for budget in settings.budgets.each] == ["Europe/Berlin", "UTC"]


def test_from_a_file(tmp_path: Path) -> None:
    settings = from_file(
        tmp_path,
        f'target_api_url = "http://api.test"\nredis_url = "{REDIS}"\nbudget = "5 USD/day"\nbudget_clamp = "on"\n'
        'budget_cut = "on"\non_disconnect = "drain:10s"\n',
    ).settings
    assert [written(budget) for budget in settings.budgets.each] == ["5 USD/day"]
    assert (settings.budget_clamp, settings.budget_cut, settings.disconnect_drain_s) == (True, True, 10)


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("budget", "5 EUR/day", "'EUR' is not a unit: prices are in USD, and so is money; it takes AMOUNT UNIT/WINDOW"),
        ("budget", 5, "'5' has no window behind a '/'; it takes"),
        ("budget", "1,000 USD/day", "it is 1000, not 1,000; it takes"),
        ("global_budget", "5 USD/year", "'year' is no window"),
        ("budget_timezone", "Mars/Olympus", "'Mars/Olympus' is no time zone that is known here"),
        ("budget_timezone", "Europe", "'Europe' is no time zone"),
        ("budget_timezone", "../etc/passwd", "'../etc/passwd' is no time zone"),
        ("budget_timezone", "", "'' is no time zone"),
        ("budget_clamp", "yes", "'yes' is not one of its values; it takes on or off"),
        ("budget_clamp", True, "is a boolean"),
        ("budget_cut", "ON", "'ON' is not one of its values"),
        ("on_disconnect", "drain", "'drain' is neither cancel nor like drain:10s"),
        ("on_disconnect", "drain:0s", "must be more than 0"),
        ("on_disconnect", "drain:soon", "'soon' is not a duration"),
        ("on_disconnect", "wait:10s", "'wait:10s' is neither"),
    ],
)
def test_what_is_refused(setting: str, value: object, problem: str) -> None:
    message = refusal(**{setting: value})
    assert message.startswith(f"{setting}: ")
    assert problem in message


def test_the_setting_is_named_as_it_was_written() -> None:
    with pytest.raises(Exception, match=r'^BUDGET: a budget is missing; it takes .*, e\.g\. BUDGET="5 USD/day"$'):
        load(arguments={}, environ={"TARGET_API_URL": "http://api.test", "BUDGET": ","}, file=None)


def test_they_are_shown() -> None:
    changes = {"budget": "0.50 USD/hour,7 tokens/60s", "on_disconnect": "drain:2s", "target_cost": "llm"}
    shown = dict(describe(config(**changes)))
    assert shown["BUDGET"] == "0.5 USD/1h, 7 tokens/1m"
    assert shown["GLOBAL_BUDGET"] == "no budget"
    assert shown["BUDGET_TIMEZONE"] == "UTC"
    assert (shown["BUDGET_CLAMP"], shown["BUDGET_CUT"], shown["ON_DISCONNECT"]) == ("off", "off", "read on for 2.0 s")


@pytest.mark.parametrize("name", ["budget", "global_budget"])
@pytest.mark.parametrize("budget", ["5 USD/day", "1 USD/minute,5 USD/week", "5 USD/month", "5 USD/24h"])
def test_a_budget_that_a_restart_would_forget_is_refused(name: str, budget: str, tmp_path: Path) -> None:
    told = refusal(**{name: budget})
    assert told.startswith(f"{name}: a day or longer is forgotten at a restart, unless there is a STATE_FILE or REDIS")
    assert told.endswith("with STATE_FILE=/var/lib/gateway/state.db")
    for lasting in ({"state_file": str(tmp_path / "state.db")}, {"redis_url": REDIS}):
        assert not config(**{name: budget}, **lasting).settings.budgets.forgets
    assert config(**{name: "5 USD/23h"}).settings.budgets.forgets


def test_the_file_of_state_is_one_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config(state_file="state.db").settings.state_file == "state.db"
    assert not any(tmp_path.iterdir())
    told = dict(describe(config(state_file="state.db")))["STATE_FILE"]
    assert told == "state.db"
    assert dict(describe(config()))["STATE_FILE"] == "not set: budgets end with the process"
    told = refusal(state_file=str(tmp_path))
    assert told.startswith(f"state_file: {str(tmp_path)!r} is a directory, not a file; it takes")
    for slip in ("", " ", " state.db", "state.db\n", "\x1b[31mstate.db", "state\0db"):
        assert "is empty, begins or ends with a space, or has control characters" in refusal(state_file=slip)
    assert "File name too long" in refusal(state_file="/" + "a" * 5000)
    assert "there is no directory" in refusal(state_file="missing/state.db")
    assert "is set and REDIS_URL as well" in refusal(state_file="state.db", redis_url=REDIS)
    os.mkfifo("pipe")
    assert "is not a file that can be read and written" in refusal(state_file="pipe")


def test_what_holds_nothing_is_told_of() -> None:
    budgets = {"budget": "5 USD/hour,7 credits/hour", "global_budget": "9 tokens/hour"}
    maps = {"url": "https://maps.test", "cost": {"fixed": {"GET /a": "1 USD, 2 credits"}}}
    idle = [
        [budget.label for budget in config(**budgets, **costs).settings.idle_budgets]
        for costs in ({}, {"target_cost": "llm"}, {"targets": {"maps": maps}}, {"target_cost": "1 tokens"})
    ]
    assert idle == [
        ["1h-USD", "1h-credits", "global-1h-tokens"],
        ["1h-credits"],
        ["global-1h-tokens"],
        ["1h-USD", "1h-credits"],
    ]
    shown = dict(describe(config(**budgets, target_cost="llm")))
    note = "(holds nothing: no target's requests have a cost in credits)"
    assert (shown["BUDGET"], shown["GLOBAL_BUDGET"]) == (f"5 USD/1h, 7 credits/1h {note}", "9 tokens/1h")


async def test_and_the_log_says_so_at_the_start_and_after_a_reload(caplog: pytest.LogCaptureFixture) -> None:
    said = "the budget 5 USD/1h holds nothing: no target has a cost in USD"
    async with Gateway(config(budget="5 USD/hour")) as gateway:
        assert said in caplog.messages
        caplog.clear()
        gateway.reload(config(budget="5 USD/hour", target_cost="1 USD"))
        assert said not in caplog.messages
        gateway.reload(config(budget="5 USD/hour", target_cost="1 credits"))
        assert said in caplog.messages
