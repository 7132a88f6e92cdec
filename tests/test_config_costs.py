"""What requests cost: `TARGET_COST`, `[targets.NAME.cost]`, `[prices."MODEL"]`, and what is refused of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from gateway.budgets.budget import NANO
from gateway.config import Config, load
from gateway.config.describing import describe
from gateway.errors import ConfigError
from gateway.metering.costs import CostTable, FixedPrice, Measured, UnitPrice
from gateway.metering.rates import Rates, rates_of
from tests.test_config_targets import MAPS, URL, from_file, only, refusal

if TYPE_CHECKING:
    from pathlib import Path

MICRO = NANO // 1_000_000
WITH_DEFAULT = '[targets.maps.cost]\nunknown_price = "default"\ndefault_price = "2 USD"\n'
MANY = ",".join(f'"GET /{number}" = "1 USD"' for number in range(257))


def costs(folder: Path, cost: str) -> CostTable:
    table = only(from_file(folder, f"[targets.maps]\n{MAPS}{cost}")).cost
    assert table is not None
    return table


def test_none_unless_it_is_said(tmp_path: Path) -> None:
    config = from_file(tmp_path, f"[targets.maps]\n{MAPS}")
    assert (only(config).cost, config.settings.target_cost) == (None, None)


@pytest.mark.parametrize(
    ("cost", "table"),
    [
        ('cost = "llm"', CostTable(llm=True)),
        ('cost = "0.005 USD"', CostTable(fixed=(FixedPrice(b"*", b"/*", {"USD": 5000 * MICRO}),))),
        ("[targets.maps.cost]\nllm = true\nmax_output = 100", CostTable(llm=True, max_output=100)),
        (
            '[targets.maps.cost]\nllm = true\nreserve = "0.50 USD,2000 tokens"\nunknown_price = "warn"',
            CostTable(llm=True, reserve={"USD": NANO // 2, "tokens": 2000}, unknown_price="warn"),
        ),
        (
            '[targets.maps.cost]\nfixed = "1 USD, 2 credits"',
            CostTable(fixed=(FixedPrice(b"*", b"/*", {"USD": NANO, "credits": 2 * NANO}),)),
        ),
        (
            f"{WITH_DEFAULT}[targets.maps.cost.fixed]\n\"GET /geocode\" = '1 USD'\n\"* /tiles/*\" = '0 USD'",
            CostTable(
                fixed=(FixedPrice(b"GET", b"/geocode", {"USD": NANO}), FixedPrice(b"*", b"/tiles/*", {"USD": 0})),
                unknown_price="default",
                default={"USD": 2 * NANO},
            ),
        ),
        (
            'cost.json = { pointer = "/usage/total~1all", price = "2 USD/1000" }\ncost.reserve = "1 USD"',
            CostTable(
                measured=Measured(kind="json", price=UnitPrice("USD", 2 * NANO, 1000), place="/usage/total~1all"),
                reserve={"USD": NANO},
            ),
        ),
        (
            'cost.header = { name = "X-Cost", unit = "USD" }\ncost.reserve = "1 USD"',
            CostTable(
                measured=Measured(kind="header", price=UnitPrice("USD", NANO), place="x-cost"), reserve={"USD": NANO}
            ),
        ),
        (
            'cost.header = { name = "X-Tokens", unit = "tokens" }\ncost.reserve = "9 tokens"',
            CostTable(
                measured=Measured(kind="header", price=UnitPrice("tokens", 1), place="x-tokens"), reserve={"tokens": 9}
            ),
        ),
        (
            'cost.bytes = "0.09 USD/GB"\ncost.reserve = "1 USD"\ncost.fixed = { "* /ping" = "0 USD" }',
            CostTable(
                fixed=(FixedPrice(b"*", b"/ping", {"USD": 0}),),
                measured=Measured(kind="bytes", price=UnitPrice("USD", 90_000 * MICRO, 10**9)),
                reserve={"USD": NANO},
            ),
        ),
        (
            'cost.seconds = "0.36 USD/hour"\ncost.reserve = "1 USD"',
            CostTable(
                measured=Measured(kind="seconds", price=UnitPrice("USD", 360_000 * MICRO, 3600)), reserve={"USD": NANO}
            ),
        ),
        (
            'cost.seconds = "0.0001 USD"\ncost.reserve = "1 USD"',
            CostTable(measured=Measured(kind="seconds", price=UnitPrice("USD", 100 * MICRO)), reserve={"USD": NANO}),
        ),
    ],
)
def test_what_a_table_means(tmp_path: Path, cost: str, table: CostTable) -> None:
    assert costs(tmp_path, cost) == table


def test_of_the_environments_target(tmp_path: Path) -> None:
    environ = {"TARGET_API_URL": URL, "TARGET_COST": "0.005 USD"}
    each = CostTable(fixed=(FixedPrice(b"*", b"/*", {"USD": 5000 * MICRO}),))
    assert load(arguments={}, environ=environ, file=None).settings.target_cost == each
    table = '[target_cost]\nseconds = "1 USD/minute"\nreserve = "2 USD"\n'
    assert from_file(tmp_path, table).settings.target_cost == CostTable(
        measured=Measured(kind="seconds", price=UnitPrice("USD", NANO, 60)), reserve={"USD": 2 * NANO}
    )
    # As a whole, the environment's stands in for the file's.
    assert from_file(tmp_path, table, {"TARGET_COST": "0.005 USD"}).settings.target_cost == each
    hash(from_file(tmp_path, table))


def test_own_prices_are_those_of_every_language_model(tmp_path: Path) -> None:
    config = from_file(
        tmp_path,
        f'target_cost = "llm"\n[targets.maps]\n{MAPS}cost = "1 USD"\n[targets.other]\n{MAPS}cost = "llm"\n'
        '[prices."my-model"]\ninput = 2.5\ncached_input = 1.25\noutput = 10\n[prices."local/*"]\ninput = 0\n',
    )
    search = 10_000_000_000
    prices = {"my-model": Rates(2_500_000, 10_000_000, 1_250_000, search=search), "local/*": Rates(0, 0, search=search)}
    first, maps, other = config.settings.target_cost, *(target.cost for target in config.settings.targets)
    assert [table and table.prices for table in (first, maps, other)] == [prices, None, prices]
    same = Config(target_api_url=URL, target_cost="llm", prices={"my-model": {"input": 2.5, "output": 10}})
    assert same.settings.target_cost == CostTable(llm=True, prices={"my-model": rates_of({"input": 2.5, "output": 10})})


COST = "[targets.maps.cost]\n"


@pytest.mark.parametrize(
    ("cost", "place", "reason"),
    [
        ("cost = 5", "cost", "is a number, not a table or a text; it takes a table with one of fixed, llm"),
        ('cost = "free"', "cost", "'free' is neither llm nor an amount"),
        ('cost = "5 EUR"', "cost", "'EUR' is not a unit: prices are in USD"),
        ('cost = "5"', "cost", "'5' has no unit"),
        ('cost = "5 USD,6 USD"', "cost", "has two amounts in USD"),
        (COST, "cost", "says nothing of what a request costs"),
        (COST + "llm = false", "cost", "says nothing of what a request costs"),
        (COST + 'reserve = "1 USD"', "cost", "says nothing of what a request costs"),
        (COST + 'llm = "yes"', "cost.llm", "is a text, not true"),
        (COST + 'fixd = "1 USD"', "cost.fixd", "is not a setting of a cost; did you mean fixed?"),
        (COST + 'Max-Output = "1 USD"', "cost.Max-Output", "did you mean max_output?"),
        (COST + "colour = 1", "cost.colour", "is not a setting of a cost; it takes fixed, llm"),
        (COST + "fixed = 1", "cost.fixed", "is a number, not a text"),
        (COST + 'fixed = { "/geocode" = "1 USD" }', "cost.fixed", "'/geocode' is not like \"GET /geocode\""),
        (COST + 'fixed = { "get /geocode" = "1 USD" }', "cost.fixed", "is not like"),
        (COST + 'fixed = { "GET geocode" = "1 USD" }', "cost.fixed", "is not like"),
        (COST + 'fixed = { "GET /a/*/b" = "1 USD" }', "cost.fixed", "perhaps with one '*' at its end"),
        (COST + 'fixed = { "GET /a?b" = "1 USD" }', "cost.fixed", "is not a path without a query"),
        (COST + 'fixed = { "GET /a" = 1 }', "cost.fixed", "the price of 'GET /a' is a number, not a text"),
        (COST + 'fixed = { "GET /a" = "1" }', "cost.fixed", "'1' has no unit"),
        (
            COST + "fixed = {" + ",".join(f'"GET /{n}" = "1 USD"' for n in range(257)) + "}",
            "cost.fixed",
            "257 patterns",
        ),
        (COST + 'llm = true\nbytes = "1 USD/GB"', "cost.bytes", "is there together with llm"),
        (COST + 'seconds = "1 USD"\nbytes = "1 USD/GB"', "cost.seconds", "is there together with bytes"),
        (COST + 'bytes = "1 USD/GB"', "cost.reserve", "has no amount in USD, and nobody knows beforehand"),
        (COST + 'bytes = "1 USD/GB"\nreserve = "1 credits"', "cost.reserve", "has no amount in USD"),
        (COST + 'bytes = "1 USD/GB"\nreserve = "0 USD"', "cost.reserve", "has no amount in USD"),
        (COST + 'llm = true\nreserve = "9 tokens"', "cost.reserve", "has no amount in USD, in which"),
        (COST + 'bytes = "1 USD"', "cost.bytes", "'' behind '/' is not one of B, kB, MB"),
        (COST + 'bytes = "1 USD/gb"', "cost.bytes", "'gb' behind '/' is not one of B, kB, MB"),
        (COST + 'seconds = "1 USD/day"', "cost.seconds", "'day' behind '/' is not one of second, minute, hour"),
        (COST + "seconds = 1", "cost.seconds", "is a number, not a text"),
        (COST + "json = 1", "cost.json", "is a number, not a table"),
        (COST + 'json = { pointer = "usage", price = "1 USD" }', "cost.json", "'usage' is not a JSON pointer"),
        (COST + 'json = { pointer = "/a~2", price = "1 USD" }', "cost.json", "is not a JSON pointer"),
        (COST + 'json = { pointer = "/a" }', "cost.json", "has one of price and unit"),
        (COST + 'json = { pointer = "/a", price = "1 USD", unit = "USD" }', "cost.json", "has one of price and unit"),
        (COST + 'json = { pointer = "/a", price = "1 USD/k" }', "cost.json", "'k' behind '/' is not a whole number"),
        (COST + 'json = { path = "/a", price = "1 USD" }', "cost.json", "'path' is not one of pointer, price and unit"),
        (COST + 'header = { name = "a b", unit = "USD" }', "cost.header", "'a b' is not a field's name"),
        (COST + 'header = { name = "x", unit = "EUR" }', "cost.header", "prices are in USD"),
        (COST + 'header = { name = "x", unit = 1 }', "cost.header", "unit is a number, not a text"),
        (COST + 'llm = true\nunknown_price = "free"', "cost.unknown_price", "'free' is not one of its values"),
        (COST + 'llm = true\nunknown_price = "default"', "cost.default_price", "is not set"),
        (COST + 'llm = true\ndefault_price = "1 USD"', "cost.default_price", "is of no use"),
        (COST + "llm = true\nmax_output = 0", "cost.max_output", "'0' is not such a number"),
        (COST + "llm = true\nmax_output = true", "cost.max_output", "is not such a number"),
        (COST + 'fixed = "1 USD"\nmax_output = 1', "cost.max_output", "is of no use"),
        (COST + "llm = true\nreserve = 1", "cost.reserve", "is a number, not a text"),
    ],
)
def test_what_is_refused(tmp_path: Path, cost: str, place: str, reason: str) -> None:
    message = refusal(tmp_path, f"[targets.maps]\n{MAPS}{cost}")
    assert message.startswith(f"targets.maps.{place} in ")
    assert reason in message


@pytest.mark.parametrize(
    ("tables", "place", "reason"),
    [
        ("prices = 1", "prices", "is a number, not a table of tables"),
        ("[prices]\nx = 1", "prices.x", "is a number, not a table"),
        ("[prices.x]\noutput = 1", "prices.x", "'input' is missing"),
        ('[prices.x]\ninput = "cheap"', "prices.x", "input is not a number"),
        ("[prices.x]\ninput = 1\noutptu = 2", "prices.x", "'outptu' is not one of"),
        ("[prices.x]\ninput = -1", "prices.x", "input is not between"),
        ('[prices."a*b"]\ninput = 1', "prices.a*b", "is not a model's name"),
        ('[prices.""]\ninput = 1', "prices.", "is not a model's name"),
        ("[target_cost]\nllm = 1", "target_cost.llm", "is a number, not true"),
        ('target_cost = "free"', "target_cost", "'free' is neither llm nor an amount"),
        ("target_cost = 5", "target_cost", "'5' has no unit"),
        ("target_cost = [5]", "target_cost", "is an array"),
        ("[price.x]\ninput = 1", "price", "did you mean prices?"),
    ],
)
def test_what_is_refused_beside(tmp_path: Path, tables: str, place: str, reason: str) -> None:
    message = refusal(tmp_path, tables)
    assert message.startswith(f"{place} in ")
    assert reason in message


def test_a_language_model_needs_prices_from_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    with pytest.raises(ConfigError, match=r"^target_cost: llm needs the package genai-prices"):
        Config(target_api_url=URL, target_cost="llm")
    assert Config(target_api_url=URL, target_cost="llm", prices={"*": {"input": 1}}).settings.target_cost is not None


def test_they_are_shown(tmp_path: Path) -> None:
    shown = dict(
        describe(
            from_file(
                tmp_path,
                f'target_cost = "llm"\n[targets.maps]\n{MAPS}cost.fixed = {{ "GET /geocode" = "0.005 USD" }}\n'
                f'[targets.a]\n{MAPS}cost.bytes = "0.09 USD/GB"\ncost.reserve = "1 USD"\n[targets.b]\n{MAPS}'
                '[prices."my-model"]\ninput = 2.5\noutput = 10\n',
            )
        )
    )
    assert shown["TARGET_COST"] == (
        "a language model's tokens, 4096 of output where a request sets no limit; without a price refused"
    )
    assert shown["targets.maps.cost"] == "GET /geocode 0.005 USD; without a price refused"
    assert shown["targets.a.cost"] == (
        "0.09 USD for 1000000000 bytes; reserved where it is unknown 1 USD; without a price refused"
    )
    assert shown["targets.b.cost"] == "not set: nobody counts it, and budgets are not asked"
    assert shown["prices.my-model"] == "input 2.5, output 10 (USD for a million tokens; request and search: for one)"
