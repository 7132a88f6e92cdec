"""Prices: the operator's own, and those of `genai-prices`, held to what that package itself calculates."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import genai_prices
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.metering.catalogue import MAX_KNOWN, Catalogue
from gateway.metering.rates import Counts, Rates, Tariff, rates_of

if TYPE_CHECKING:
    from decimal import Decimal

NOW_S = 1_795_000_000.0
OPENAI, ANTHROPIC = "https://api.openai.com/v1", "https://api.anthropic.com"
GOOGLE, DEEPSEEK = "https://generativelanguage.googleapis.com/v1beta", "https://api.deepseek.com/v1"
MODELS = [
    (OPENAI, "gpt-4o"),
    (OPENAI, "gpt-4o-mini-2024-07-18"),
    (OPENAI, "gpt-4.1"),
    (OPENAI, "gpt-5"),
    (OPENAI, "gpt-5-mini"),
    (OPENAI, "o3"),
    (OPENAI, "text-embedding-3-small"),
    (ANTHROPIC, "claude-sonnet-4-20250514"),
    (ANTHROPIC, "claude-3-5-haiku-latest"),
    (ANTHROPIC, "claude-opus-4-1"),
    (GOOGLE, "gemini-2.5-pro"),
    (GOOGLE, "gemini-2.0-flash"),
    (DEEPSEEK, "deepseek-chat"),
    ("https://api.mistral.ai/v1", "mistral-large-latest"),
    ("http://127.0.0.1:8000/v1", "gpt-4o"),
]


def calculated(url: str, model: str, counts: Counts, now_s: float, **context: str) -> Decimal:
    keys = {"input_tokens": counts.input, "output_tokens": counts.output, "cache_read_tokens": counts.cached}
    keys |= {"cache_write_tokens": counts.cache_write, "cache_write_1h_tokens": counts.cache_write_1h}
    usage = genai_prices.Usage(**{name: count for name, count in keys.items() if count or name == "input_tokens"})
    where = {} if "127.0.0.1" in url else {"provider_api_url": url}
    at = datetime.fromtimestamp(now_s, UTC)
    price = genai_prices.calc_price(
        usage,
        model,
        **where,
        genai_request_timestamp=at,
        price_context=context or None,
    )
    return price.total_price * 10**9


@pytest.mark.parametrize(("url", "model"), MODELS)
@given(
    plain=st.integers(0, 500_000),
    output=st.integers(0, 100_000),
    cached=st.integers(0, 300_000),
    written=st.integers(0, 10_000),
    hour=st.integers(0, 10_000),
    now_s=st.floats(NOW_S, NOW_S + 86_400),
)
@settings(max_examples=15, deadline=None)
def test_costs_are_those_of_genai_prices(
    url: str, model: str, plain: int, output: int, cached: int, written: int, hour: int, now_s: float
) -> None:
    if url != ANTHROPIC:
        written = hour = 0
    tariff = Catalogue(url).find(model, "", "", now_s)
    assert tariff is not None
    counts = Counts(plain + cached + written + hour, output, cached, written + hour, hour)
    exact = calculated(url, model, counts, now_s)
    assert 0 <= tariff.nano(counts) - exact < 1


def test_other_tiers_have_their_prices() -> None:
    counts, catalogue = Counts(1000, 100), Catalogue(OPENAI)
    for tier in ("priority", "default", ""):
        tariff = catalogue.find("gpt-4.1", tier, "", NOW_S)
        assert tariff is not None
        assert tariff.nano(counts) == calculated(OPENAI, "gpt-4.1", counts, NOW_S, service_tier=tier)
    assert catalogue.find("gpt-4.1", "priority", "", NOW_S) != catalogue.find("gpt-4.1", "", "", NOW_S)


@pytest.mark.parametrize(
    ("url", "model", "percent"),
    [
        ("https://eu.api.openai.com/v1", "gpt-5.4", 110),
        ("https://US.api.openai.com:443/v1", "gpt-6-sol", 110),
        ("https://eu.api.openai.com/v1", "gpt-5.2", 100),
        ("https://eu.api.openai.com/v1", "gpt-4o", 100),
        ("https://api.openai.com/v1", "gpt-5.4", 100),
        ("https://us.api.x.ai/v1", "grok-4", 110),
    ],
)
def test_to_run_in_one_place_only_costs_more(url: str, model: str, percent: int) -> None:
    anywhere = Catalogue("https://api.x.ai/v1" if "x.ai" in url else OPENAI).find(model, "", "", NOW_S)
    there = Catalogue(url).find(model, "", "", NOW_S)
    assert anywhere is not None
    assert there is not None
    for counts in (Counts(1000, 100, 500), Counts(1_000_000, 1)):
        assert there.nano(counts) == -(-anywhere.nano(counts) * percent // 100)
    assert there.base.search == anywhere.base.search


def test_a_tier_is_for_all_tokens() -> None:
    tariff = Tariff(Rates(1000, 2000), ((100, Rates(3000, 4000)),))
    assert tariff.nano(Counts(100, 1)) == 100 + 2
    assert tariff.nano(Counts(101, 1)) == 303 + 4


@pytest.mark.parametrize("model", ["no-such-model", "", "gpt-4o" + "x" * 300, "whisper-1", "\x00"])
def test_what_is_not_known_has_no_price(model: str) -> None:
    assert Catalogue(OPENAI).find(model, "", "", NOW_S) is None
    assert Catalogue("http://localhost/").find(model, "", "", NOW_S) is None


def test_what_is_remembered_is_bounded() -> None:
    catalogue = Catalogue(OPENAI)
    for number in range(MAX_KNOWN + 10):
        catalogue.find(f"no-such-model-{number}", "", "", NOW_S)
    assert len(catalogue._models) <= MAX_KNOWN


def test_the_package_is_not_loaded_for_own_prices() -> None:
    program = (
        "import sys; from tests.metering.recorded import *; quote('/v1/chat/completions', ASKS);"
        "assert 'genai_prices' not in sys.modules; assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_own_prices_are_in_usd_per_million() -> None:
    rates = rates_of({"input": 2.5, "cached_input": 1.25, "output": 10, "request": 0.001})
    assert rates == Rates(2_500_000, 10_000_000, 1_250_000, request=1_000_000_000, search=10_000_000_000)
    assert Tariff(rates).nano(Counts(10, 1, 4)) == 15_000 + 5_000 + 10_000 + 1_000_000
    assert rates_of({"input": 0.000_000_1}).input == 1  # nothing that costs is rounded to nothing
    # What a search costs, Anthropic says for all models; a price of one's own need not name it.
    assert rates_of({"input": 1, "search": 0.02}).search == 20_000_000_000


@pytest.mark.parametrize(
    ("prices", "wrong"),
    [
        ({"output": 1}, "'input' is missing"),
        ({"input": 1, "ouput": 2}, "'ouput' is not one of"),
        ({"input": -1}, "input is not between 0"),
        ({"input": "2"}, "input is not a number"),
        ({"input": True}, "input is not a number"),
        ({"input": float("nan")}, "input is not between 0"),
        ({"input": 1e9}, "input is not between 0"),
    ],
)
def test_own_prices_that_are_none(prices: dict[str, object], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        rates_of(prices)


@given(
    counts=st.builds(Counts, st.integers(0, 10**6), st.integers(0, 10**6), *[st.integers(0, 10**5) for _ in range(9)]),
    rates=st.builds(Rates, *[st.integers(0, 10**9) for _ in range(12)]),
)
@settings(max_examples=50, deadline=None)
def test_no_cost_is_negative(counts: Counts, rates: Rates) -> None:
    assert Tariff(rates).nano(counts) >= 0


def test_sound_costs_as_sound() -> None:
    rates = Rates(1000, 2000, cached=100, input_audio=5000, cached_audio=50, output_audio=9000)
    counts = Counts(100, 20, cached=30, input_audio=40, cached_audio=10, output_audio=5)
    # 40 of text, 20 of text and 10 of sound from the cache, 30 of sound; 15 of text and 5 of sound said
    assert rates.pico(counts) == 40 * 1000 + 20 * 100 + 10 * 50 + 30 * 5000 + 15 * 2000 + 5 * 9000
