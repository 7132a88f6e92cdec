"""The APIs of language models that can be metered, by path, and how each of them spells its usage."""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from gateway.metering.rates import Counts
from gateway.scope import is_ambiguous, names_another
from gateway.tuples import new

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_TOKENS: Final = 1 << 30
"""No answer has as many: what says so is wrong. At any price, what they cost fits in 64 bits, as stores need it."""

MAX_TIER_CHARACTERS: Final = 64
"""It is remembered with its price, or that there is none: it is the client's to choose."""


class Shape(Enum):
    """How requests and answers of an API look."""

    CHAT = "chat completions"
    COMPLETIONS = "legacy completions"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"
    MESSAGES = "Anthropic messages"
    GEMINI = "Gemini"
    GEMINI_EMBEDDINGS = "Gemini embeddings"

    def __init__(self, title: str) -> None:
        self.of_gemini = title.startswith("Gemini")
        self.of_anthropic = title.startswith("Anthropic")

    # There is one of each; `Enum`'s own would hash its name, in Python.
    __hash__ = object.__hash__


_ENDS: Final = {
    b"/chat/completions": Shape.CHAT,
    b"/completions": Shape.COMPLETIONS,
    b"/responses": Shape.RESPONSES,
    b"/embeddings": Shape.EMBEDDINGS,
    b"/messages": Shape.MESSAGES,
}
_VERBS: Final = {
    b":generateContent": Shape.GEMINI,
    b":streamGenerateContent": Shape.GEMINI,
    b":embedContent": Shape.GEMINI_EMBEDDINGS,
    b":batchEmbedContents": Shape.GEMINI_EMBEDDINGS,
}
_PATH: Final = re.compile(
    rb"(?:(/chat/completions|/completions|/responses|/embeddings|/messages)|/models/([^/:]+)(:[A-Za-z]+))\Z"
)
_DEPLOYMENT: Final = re.compile(rb"/openai/deployments/([^/]+)/")
# Without an escape: what some server decodes may be another path.
_FREE: Final = re.compile(
    rb"[\w./:@~-]*(?:/messages/count_tokens|/responses/input_tokens|/moderations|:countTokens|"
    rb"/responses/[\w-]+/cancel)"
)
_READING: Final = frozenset((b"GET", b"HEAD", b"DELETE", b"OPTIONS"))
# What goes on behind an upgrade is not seen.
_UPGRADE: Final = re.compile(rb"(?i)\r\nupgrade:")


@lru_cache(maxsize=1024)
def shape_of(method: bytes, path: bytes) -> tuple[Shape, str] | None:
    """Return a request's shape, and the model that its path names ("" if none); None if it has none of the shapes.

    Args:
        method: The request's.
        path: Its path, without a query.
    """
    match = _PATH.search(path) if method == b"POST" else None
    if match is None:
        return None
    if match[1] is not None:
        deployment = _DEPLOYMENT.search(path)
        return _ENDS[match[1]], "" if deployment is None else unquote(deployment[1].decode("latin-1"))
    shape = _VERBS.get(match[3])
    return None if shape is None else (shape, unquote(match[2].decode("latin-1")))


def is_free(method: bytes, path: bytes, lines: Sequence[bytes]) -> bool:
    """Whether a language model's API takes no money for a request that has none of the shapes."""
    if names_another(lines):
        return False
    if method == b"POST":
        return _FREE.fullmatch(path) is not None and not is_ambiguous(path)
    return method in _READING and not _UPGRADE.search(b"\r\n" + b"\r\n".join(lines))


def usual_is_none(tier: object) -> str:
    """Return a service tier or a speed, "" for the one that prices are made for; the begin of a long one."""
    if not isinstance(tier, str) or tier in {"default", "standard", "auto", "on_demand"}:
        return ""
    return tier[:MAX_TIER_CHARACTERS]


def tier_of_gemini(tier: object) -> str:
    """Return a service tier of Gemini's, a word in any case or the number of an enum, as others spell it."""
    text = "" if tier is None else str(tier)[: 2 * MAX_TIER_CHARACTERS].lower().removeprefix("service_tier_")
    return "standard" if text == "unspecified" else text


def counts_of(shape: Shape, usage: Mapping[str, Any]) -> Counts | None:
    """Read what an answer says of its usage; None if that cannot be.

    Args:
        shape: Of the answer.
        usage: Its `usage`, or Gemini's `usageMetadata`.
    """
    try:
        if shape.of_gemini:
            counts = _of_gemini(usage)
        elif shape.of_anthropic:
            counts = _of_anthropic(usage)
        else:
            counts = _of_openai(usage)
    except (TypeError, ValueError, AttributeError):
        return None
    asked, _, cached, written, hour, _, _, _, _, _, _ = counts
    if max(counts) > MAX_TOKENS or cached + written > asked or hour > written:  # sums of what `_whole` took
        return None
    return counts


def _whole(value: object) -> int:
    """Return a count, 0 for one that is not there.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is below 0, or more than any answer has.
    """
    if type(value) is int:
        if 0 <= value <= MAX_TOKENS:
            return value
        raise ValueError("no answer has as many")
    if value is None:
        return 0
    raise TypeError("a count is a whole number")


def _of_openai(usage: Mapping[str, Any]) -> Counts:
    get = usage.get
    asked, said = get("prompt_tokens"), get("completion_tokens")
    if asked is None:  # of responses
        asked, said = get("input_tokens"), get("output_tokens")
        details, said_details = get("input_tokens_details"), get("output_tokens_details")
    else:
        details, said_details = get("prompt_tokens_details"), get("completion_tokens_details")
    if type(asked) is not int:
        raise TypeError("without a count of its input, it says nothing")
    # Some leave reasoning out of what they call output (x.ai, Gemini by OpenAI's API), but not out of the sum.
    asked, output = _whole(asked), _whole(said)
    total, hits = get("total_tokens"), get("prompt_cache_hit_tokens")  # the latter is DeepSeek's
    if total is not None and (rest := _whole(total) - asked) > output:
        output = rest
    cached = 0 if hits is None else _whole(hits)
    written = heard = drawn = seen = spoken = 0
    if details and any(details.values()):
        of = details.get
        cached, written = _whole(of("cached_tokens")) or cached, _whole(of("cache_write_tokens"))
        heard, seen = _whole(of("audio_tokens")), _whole(of("image_tokens"))
    if said_details and any(said_details.values()):
        of = said_details.get
        spoken, drawn = _whole(of("audio_tokens")), _whole(of("image_tokens"))
    return new(Counts, (asked, output, cached, written, 0, heard, 0, spoken, seen, drawn, 0))


def _of_anthropic(usage: Mapping[str, Any]) -> Counts:
    """See `counts_of`. The sums leave out what a summary of the context took, which is billed.

    Source: https://platform.claude.com/docs/en/build-with-claude/compaction#understanding-usage
    """
    get = usage.get
    said = get("output_tokens")
    if type(said) is not int:
        raise TypeError("without a count of its output, it says nothing")
    said, plain, cached = _whole(said), _whole(get("input_tokens")), _whole(get("cache_read_input_tokens"))
    written, split, tools = _whole(get("cache_creation_input_tokens")), get("cache_creation"), get("server_tool_use")
    hour = _whole(split.get("ephemeral_1h_input_tokens")) if split else 0
    searches = _whole(tools.get("web_search_requests")) if tools else 0
    counts = Counts(plain + cached + written, said, cached, written, hour, searches=searches)
    for one in get("iterations") or ():
        if one.get("type") == "message":
            continue
        if one.get("type") != "compaction":
            raise TypeError("what another model has made has another price")
        counts = Counts(*map(sum, zip(counts, _of_anthropic({**one, "iterations": None}), strict=True)))
    return counts


def _of_gemini(usage: Mapping[str, Any]) -> Counts:
    get = usage.get
    asked = get("promptTokenCount")
    if type(asked) is not int:
        raise TypeError("without a count of its input, it says nothing")
    said = _whole(get("candidatesTokenCount")) + _whole(get("thoughtsTokenCount"))
    asked = _whole(asked) + _whole(get("toolUsePromptTokenCount"))
    output = max(said, _whole(get("totalTokenCount")) - asked)
    heard, seen = _heard_and_seen(get("promptTokensDetails"))
    spoken, drawn = _heard_and_seen(get("candidatesTokensDetails"))
    recalled, _ = _heard_and_seen(get("cacheTokensDetails"))
    cached = _whole(get("cachedContentTokenCount"))
    return new(Counts, (asked, output, cached, 0, 0, heard, recalled, spoken, seen, drawn, 0))


def _heard_and_seen(details: Sequence[Mapping[str, object]] | None) -> tuple[int, int]:
    heard = seen = 0
    for one in details or ():
        kind = one.get("modality")
        if kind == "AUDIO":
            heard += _whole(one.get("tokenCount"))
        elif kind == "IMAGE":
            seen += _whole(one.get("tokenCount"))
    return heard, seen
