"""Whose API a target's URL is, or whose a model, where that changes what is asked of it or read out of its answers."""

from __future__ import annotations

import re
from typing import Final

_OPENAI: Final = re.compile(
    r"(?i)https?://(?:[^/]*\.)?(?:openai\.com|openai\.azure\.com|cognitiveservices\.azure\.com)[:/]"
)
_MISTRAL: Final = re.compile(r"(?i)https?://(?:[^/]*\.)?mistral\.ai[:/]")
_TELLING: Final = re.compile(r"(?i)https?://(?:[^/]*\.)?(?:openrouter\.ai|x\.ai|perplexity\.ai)[:/]")
# Names of a place before those of all places.
_REGIONAL: Final = re.compile(r"(?i)https?://[a-z]{2}\.api\.(?:openai\.com|(x\.ai))[:/]")
# Of OpenAI's models, those of March 2026 and later.
_DEARER: Final = re.compile(r"(?:^|[:/])gpt-(?:5\.(?:[4-9]|[1-9][0-9])|[6-9]|[1-9][0-9])")
# Those that refuse `max_tokens`, as other gateways and clouds call them, too.
_OF_OPENAI: Final = re.compile(r"(?:^|/)(?:gpt-[5-9]|o[1-9](?:-|$))")


def is_openai(url: str) -> bool:
    """Whether it has a name of its own for the limit of chat completions: its newer models refuse the common one."""
    return _OPENAI.match(f"{url}/") is not None


def is_of_openai(model: str) -> bool:
    """Whether it is such a model by its name: it may be had by way of others."""
    return _OF_OPENAI.search(model) is not None


def is_anthropics(model: str) -> bool:
    """Whether it is Anthropic's by its name: others are had by an API like Anthropic's, too."""
    return "claude" in model.lower()


def is_mistral(url: str) -> bool:
    """Whether it refuses members that it does not know, and says the usage of a stream unasked."""
    return _MISTRAL.match(f"{url}/") is not None


def tells_cost(url: str) -> bool:
    """Whether its answers say what they cost.

    OpenRouter has a model answered by one of many, at very different prices, as the client may choose. x.ai and
    Perplexity search, at prices that depend on how and how often they do.
    """
    return _TELLING.match(f"{url}/") is not None


def regional_percent(url: str, model: str) -> int:
    """Return what of its listed price a model's tokens cost, as it runs in one place only.

    Source: https://developers.openai.com/api/docs/guides/data-residency,
    https://docs.x.ai/developers/advanced-api-usage/regions
    """
    found = _REGIONAL.match(f"{url}/")
    return 110 if found is not None and (found[1] or _DEARER.search(model)) else 100
