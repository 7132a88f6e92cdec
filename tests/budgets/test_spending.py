"""Asks, and what the ledger remembers of a request, as text and back."""

from __future__ import annotations

import json

import pytest

from gateway.budgets.spending import Ask, Entry, Mark, with_granted

ENTRY = Entry(
    "r-1",
    1_790_000_000_000_000,
    "a.b",
    "openai",
    model='m"\\\n\u2028é',
    method="POST",
    path="/v1/chat/completions",
    reserved={"USD": 1 << 52, "tokens": 900},
    cost={"USD": 3, "tokens": 700},
    units={"input": 400, "output": 300},
    status=200,
    upstream_id="req_1",
)


def test_an_ask_is_what_is_fixed_and_so_much_for_each_token_granted() -> None:
    ask = Ask("r", {"USD": 10}, {"USD": 3, "tokens": 1}, most=100)
    assert [ask.amount(unit, 5) for unit in ("USD", "tokens", "credits")] == [25, 5, 0]


def test_an_entry_is_read_as_it_was_written_on_one_line() -> None:
    text = ENTRY.text()
    assert len(text.splitlines()) == 1
    assert Entry.read(text, "exact", 7) == ENTRY._replace(mark=Mark.EXACT, at_us=7)
    assert Entry.read(text.encode(), Mark.ESTIMATED, 7).mark is Mark.ESTIMATED


def test_what_nobody_settled_has_cost_what_was_held_for_it() -> None:
    about = ENTRY._replace(cost={}, reserved={"USD": 10, "tokens": 2}, each={"USD": 3, "bytes": 1})
    assumed = Entry.read(with_granted(about.text(), 40), "assumed", 7)
    assert assumed.reserved == assumed.cost == {"USD": 130, "tokens": 2, "bytes": 40}
    assert (assumed.each, assumed.granted, assumed.units) == ({}, 0, ENTRY.units)
    assert Entry.read(with_granted(about.text(), 0), "assumed", 7).cost == {"USD": 10, "tokens": 2, "bytes": 0}
    assert Entry.read(about.text(), "released", 7).cost == {}
    assert with_granted("", 5) == ""


@pytest.mark.parametrize("text", ["", "[]", "{", '{"token":"t"}', '{"id":"r","odd":1}', "null", "7"])
def test_what_is_no_entry(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        Entry.read(text, "exact", 1)


def test_what_is_no_mark() -> None:
    with pytest.raises(ValueError, match="odd"):
        Entry.read(ENTRY.text(), "odd", 1)


def test_an_entry_is_the_json_of_all_that_it_has() -> None:
    odd = ENTRY._replace(
        model='say "hi" \\ 100% \u2028 ü', path="/%s", upstream_id="%d", cost={"100%": 1, 'a"b': 2}, each={"USD": 3}
    )
    for entry in (ENTRY, odd, odd._replace(status=0, granted=7), Entry("r")):
        told = {name: value for name, value in entry._asdict().items() if value and name not in {"mark", "at_us"}}
        assert json.loads(entry.text()) == told


def test_what_an_ask_holds_is_told_of_every_unit() -> None:
    assert Ask("r", {"USD": 10}).amounts(5) == {"USD": 10}
    assert Ask("r", {"USD": 10}, {"USD": 3, "tokens": 1}, most=100).amounts(5) == {"USD": 25, "tokens": 5}
