"""Costs by pattern, by a number in the answer, by bytes and by seconds."""

from __future__ import annotations

import gzip
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from gateway.budgets.budget import MAX_ATOMS
from gateway.budgets.spending import Mark
from gateway.errors import PriceUnknown
from gateway.metering.costs import CostTable, FixedPrice, Measured, UnitPrice
from gateway.metering.fields import Fields
from gateway.metering.measured import pointed
from gateway.metering.pricing import pricing_of
from tests.metering.recorded import feed

if TYPE_CHECKING:
    from gateway.metering import Cost, Quote

RESERVE = {"USD": 10**9}


def quote(path: bytes = b"/x", method: bytes = b"GET", **table: Any) -> Quote:
    pricing = pricing_of(CostTable(**table), "https://api.example", clamp=False)
    assert not pricing.needs_body
    return pricing.quote(method, path, (), None, 0.0)


def measured(kind: Any, price: UnitPrice, answer: bytes, *lines: bytes, place: str = "", whole: bool = True) -> Cost:
    quoted = quote(measured=Measured(kind=kind, price=price, place=place), reserve=RESERVE)
    assert quoted.fixed == RESERVE
    meter = quoted.meter(0, 200, lines)
    assert feed(meter, answer[:5], answer[5:]) == answer
    return meter.result(whole=whole, elapsed_ms=1500)


def test_the_first_pattern_that_fits_counts() -> None:
    fixed = (
        FixedPrice(b"GET", b"/maps/geocode", {"USD": 5_000_000}),
        FixedPrice(b"*", b"/maps/*", {"credits": 2}),
        FixedPrice(b"GET", b"/*", {}),
    )
    assert quote(b"/maps/geocode?q=x", fixed=fixed).fixed == {"USD": 5_000_000}
    assert quote(b"/maps/geocode", b"POST", fixed=fixed).fixed == {"credits": 2}
    assert quote(b"/", fixed=fixed).fixed == {}
    with pytest.raises(PriceUnknown, match="method and path"):
        quote(b"/x", b"POST", fixed=fixed)
    with pytest.raises(PriceUnknown):
        quote(b"/maps/../x", fixed=fixed)


def test_a_fixed_price_is_exact_and_an_error_is_free() -> None:
    quoted = quote(fixed=(FixedPrice(b"GET", b"/*", {"USD": 5}),))
    meter = quoted.meter(0, 200, [b"X-Request-Id: r1"])
    content = b"abc"
    assert meter.feed(content) is content
    result = meter.result(whole=False, elapsed_ms=1)
    assert (result.cost, result.mark, result.upstream_id) == ({"USD": 5}, Mark.EXACT, "r1")
    assert quoted.meter(0, 404, []).result(whole=True, elapsed_ms=1).cost == {}
    assert (quoted.unanswered(0, 1).cost, quoted.unanswered(0, 1).mark) == ({"USD": 5}, Mark.ESTIMATED)


def test_unknown_prices() -> None:
    assert quote(unknown_price="default", default={"USD": 3}).fixed == {"USD": 3}
    free = quote(unknown_price="warn")
    assert (free.fixed, "is free" in free.notice) == ({}, True)


@pytest.mark.parametrize(
    ("pointer", "text", "cost"),
    [
        ("/usage/cost", b'{"usage":{"cost":0.00123}}', 1_230_000),
        ("/usage/cost", b'{"usage":{"cost":"0.00123"}}', 1_230_000),
        ("/a~1b/0/c~0d", b'{"a/b":[{"c~d":2}]}', 2_000_000_000),
        ("", b"3", 3_000_000_000),
        ("/cost", b'{"cost":0.0000000001}', 1),
        ("/cost", b'{"cost":0}', 0),
    ],
)
def test_a_json_pointer_leads_to_the_cost(pointer: str, text: bytes, cost: int) -> None:
    price = UnitPrice("USD", 10**9)
    told = measured("json", price, text, b"Content-Type: application/json", place=pointer)
    assert (told.cost, told.mark) == ({"USD": cost}, Mark.EXACT)
    coded = gzip.compress(text)
    assert measured("json", price, coded, b"Content-Encoding: gzip", place=pointer).cost == {"USD": cost}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b'{"cost":-1}',
        b'{"cost":true}',
        b'{"cost":null}',
        b'{"cost":NaN}',
        b'{"cost":1e999999999}',
        b'{"cost":"1e99"}',
        b'{"cost":[1]}',
        b"[" * 100_000,
        b'{"cost":1,"pad":"' + b"x" * 300_000 + b'"}',
    ],
)
def test_what_leads_to_no_number_costs_the_reservation(text: bytes) -> None:
    told = measured("json", UnitPrice("USD", 10**9), text, place="/cost")
    assert (told.cost, told.mark) == (RESERVE, Mark.ESTIMATED)


def test_tiny_numbers_take_no_time() -> None:
    assert measured("json", UnitPrice("USD", 10**9), b'{"cost":1e-999999}', place="/cost").cost == {"USD": 1}


def test_a_field_names_the_cost() -> None:
    price = UnitPrice("credits", 10**9)
    told = measured("header", price, b"abc", b"a: b\r\nX-Credits-Used:  2.5 ", place="x-credits-used")
    assert (told.cost, told.mark) == ({"credits": 2_500_000_000}, Mark.EXACT)
    assert measured("header", price, b"abc", b"X-Credits-Used: many", place="x-credits-used").cost == RESERVE
    assert measured("header", price, b"abc", place="x-credits-used").mark is Mark.ESTIMATED
    two = measured("header", price, b"abc", b"X-Credits-Used: 0", b"x-credits-used: 7", place="x-credits-used")
    assert (two.cost, two.mark) == (RESERVE, Mark.ESTIMATED)


def test_an_error_that_says_what_it_cost_is_not_free() -> None:
    quoted = quote(measured=Measured(kind="header", price=UnitPrice("USD", 10**9), place="x-cost"), reserve=RESERVE)
    for line, cost in ((b"X-Cost: 0.25", {"USD": 250_000_000}), (b"X-Cost: much", {}), (b"A: b", {})):
        told = quoted.meter(0, 502, (b"", line)).result(whole=True, elapsed_ms=1)
        assert (told.cost, told.mark) == (cost, Mark.EXACT)


def test_what_no_store_can_count_is_as_much_as_one_can() -> None:
    told = measured("header", UnitPrice("USD", 10**9), b"abc", b"X-Cost: 999999999999999", place="x-cost")
    assert (told.cost, told.mark) == ({"USD": MAX_ATOMS - 1}, Mark.EXACT)


def test_bytes_and_seconds_are_rounded_up() -> None:
    told = measured("bytes", UnitPrice("USD", 90_000_000, 10**9), b"x" * 100)
    assert (told.cost, told.mark, told.units) == ({"USD": 9}, Mark.EXACT, {"bytes": 100})
    assert measured("bytes", UnitPrice("USD", 1, 1000), b"x").cost == {"USD": 1}
    told = measured("seconds", UnitPrice("USD", 1_000_001), b"x", whole=False)
    assert (told.cost, told.mark, told.units) == ({"USD": 1_500_002}, Mark.ESTIMATED, {"ms": 1500})


def test_pointers_that_lead_nowhere() -> None:
    for pointer in ("/01", "/-", "/x", "/1", "/0/a"):
        with pytest.raises((LookupError, ValueError)):
            pointed([Decimal(1)], pointer)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((b"HTTP/1.1 200 OK", b"x-request-ID: req_1", b"request-id: req_2"), "req_1"),
        ((b"cf-ray: 1-FRA\r\nRequest-Id: req_2",), "req_2"),
        ((b"apim-request-id: a",), "a"),
        ((b"x-goog-request-id:g",), "g"),
        ((b"X-Request-Id: ",), ""),
        ((b"X-Request-Id: a b",), ""),
        ((b"X-Request-Id: " + b"a" * 200,), ""),
        ((b"X-Note: x-request-id: no",), ""),
        ((), ""),
    ],
)
def test_the_upstreams_id_is_the_apis(lines: tuple[bytes, ...], expected: str) -> None:
    assert Fields(lines).upstream_id == expected
