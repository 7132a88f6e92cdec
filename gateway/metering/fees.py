"""What a language model's API charges beside tokens, for tools of its own, and does not say in its usage.

The calls are counted in the answer. Prices are list prices, so the cost is marked as an estimate.

Source: https://platform.openai.com/docs/pricing#built-in-tools, https://ai.google.dev/gemini-api/docs/pricing,
https://platform.claude.com/docs/en/about-claude/pricing#code-execution-tool
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from gateway.metering.shapes import Shape

if TYPE_CHECKING:
    from gateway.metering.readers import Reader, Said

CALLS_NANO: Final = {
    b"web_search_call": 10_000_000,
    b"file_search_call": 2_500_000,
    b"image_generation_call": 250_000_000,
    b"x_search_call": 5_000_000,
    b"code_execution": 4_200_000,
    b"bash_code_execution": 4_200_000,
}
"""Nano-USD of each call. Anthropic's container is paid for five minutes at the least."""
CONTAINER_NANO: Final = 30_000_000
"""Of OpenAI's container, for each GB of it: paid once for an answer, unless it was there before, which is not told."""
PREVIEW_NANO: Final = 25_000_000
"""Of a search in the web by the older tool."""
_PREVIEW: Final = b"web_search_preview"
ANSWER_NANO: Final = {Shape.CHAT: 30_000_000, Shape.GEMINI: 35_000_000}
"""Of an answer: chat completions that may search do so, and Gemini's say that they have."""
QUERY_NANO: Final = 14_000_000
"""Of each search of Gemini 3 and later, which do not pay for the answer."""
CALLS: Final = 10
"""How many searches are reserved for, unless the request allows more; of other tools, a single call."""
MAX_CALLS: Final = 10_000
"""No answer has as many."""
TOLD: Final = 3
"""In a stream, a call is told of when it begins, when it has ended, and in the whole response."""

_MEMORY: Final = re.compile(rb'"memory_limit"[ \t\r\n]*:[ \t\r\n]*"([0-9]{1,3})g"')
_CALL: Final = re.compile(
    rb'"(?:type|name)"[ \t\r\n]*:[ \t\r\n]*"('
    rb"(?:web_search|file_search|code_interpreter|image_generation|x_search|shell)_call|web_search_preview|"
    rb'container_(?:auto|reference)|(?:bash_)?code_execution)"|"(groundingMetadata)"|' + _MEMORY.pattern
)
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"')
_QUERIES: Final = re.compile(rb'"webSearchQueries"[ \t\r\n]*:[ \t\r\n]*\[((?:[^\]"]|' + _STRING.pattern + rb")*+)")
_TOOL: Final = re.compile(
    rb'"(web_search_preview|web_search|file_search|code_interpreter|container_auto|image_generation|x_search)'
)
_TOOLS: Final = frozenset((_PREVIEW, b"file_search", b"code_interpreter", b"image_generation"))
_MOST: Final = re.compile(rb'"max_(?:uses|tool_calls)"[ \t\r\n]*:[ \t\r\n]*([0-9]{1,9})')
_SEARCHES: Final = re.compile("-search-(?:preview|api)")
"""Models that search the web for each answer."""
_LONGEST: Final = 64
"""Bytes of what is looked for, with some space in it."""
_LONGEST_LIST: Final = 4096
"""Likewise of Gemini's searches."""


def most_nano(shape: Shape, body: bytes, *, stored: bool) -> int:
    """Return what is reserved for the calls that an answer may take, in nano-USD.

    Args:
        shape: Of a request that may be billed for them.
        body: The request's.
        stored: Whether it has a stored prompt: that may have any tools.
    """
    if shape.of_gemini:
        return CALLS * QUERY_NANO
    if shape in ANSWER_NANO:
        return ANSWER_NANO[shape]
    if shape.of_anthropic:
        return CALLS * CALLS_NANO[b"code_execution"]
    tools = _TOOLS if stored else frozenset(_TOOL.findall(body))
    searches = most_searches(body)
    paid = {b"%b_call" % one: searches if one.endswith(b"search") else 1 for one in tools}
    nano = sum(CALLS_NANO.get(name, 0) * calls for name, calls in paid.items())
    if not tools.isdisjoint((b"code_interpreter", b"container_auto")):
        nano += CONTAINER_NANO * max(map(int, _MEMORY.findall(body)), default=1)
    return nano + (searches * PREVIEW_NANO if _PREVIEW in tools else 0)


def most_searches(body: bytes) -> int:
    """Return how many searches are reserved for."""
    return max(CALLS, min(max(map(int, _MOST.findall(body)), default=0), MAX_CALLS))


@lru_cache(maxsize=1024)
def bills_searches(model: str) -> bool:
    """Whether a model of this name searches the web, at a price of its own."""
    return _SEARCHES.search(model) is not None


class FeeReader:
    """See `Reader`: counts calls as well.

    Args:
        reader: Reads all else.
        shape: Of the answer.
        is_stream: Whether it comes as events.
    """

    __slots__ = ("_calls", "_carried", "_divisor", "_gigabytes", "_longest", "_queries", "_reader", "_shape")

    def __init__(self, reader: Reader, shape: Shape, *, is_stream: bool) -> None:
        self._reader = reader
        self._shape = shape
        self._divisor = TOLD if is_stream and not shape.of_anthropic else 1
        self._longest = _LONGEST_LIST if shape.of_gemini else _LONGEST
        self._carried = b""
        self._calls: dict[bytes, int] = {}
        self._gigabytes = 1
        self._queries = 0

    def feed(self, content: bytes) -> bytes:
        """See `Meter`."""
        seen, end = self._carried + content, 0
        for found in _CALL.finditer(seen):
            end = found.end()
            if found[3]:  # an answer tells of its tools, those of a stored prompt as well
                self._gigabytes = max(self._gigabytes, int(found[3]))
            else:
                name = found[1] or found[2]
                self._calls[name] = self._calls.get(name, 0) + 1
        if self._shape.of_gemini:  # each of its events may tell of all that were made so far
            for queries in _QUERIES.findall(seen):
                self._queries = max(self._queries, len(_STRING.findall(queries)))
        self._carried = seen[max(end, len(seen) - self._longest) :]
        return self._reader.feed(content)

    def finish(self) -> bytes:
        """See `Meter`."""
        return self._reader.finish()

    def said(self) -> Said:
        """See `Reader`."""
        return self._reader.said()

    def cut_event(self) -> bytes | None:
        """See `Meter`."""
        return self._reader.cut_event()

    def nano(self, *, whole: bool) -> int:
        """Return what the calls cost that were told of so far, in nano-USD.

        Args:
            whole: Whether the answer came to its end.
        """
        divisor, calls = self._divisor if whole else 1, self._calls
        if self._shape is Shape.GEMINI:
            return max(ANSWER_NANO[self._shape], self._queries * QUERY_NANO) if calls else 0
        paid = {**CALLS_NANO, **({b"web_search_call": PREVIEW_NANO} if b"web_search_preview" in calls else {})}
        nano = sum(-(-count // divisor) * paid.get(name, 0) for name, count in calls.items())
        is_hosted = b"container_auto" in calls or b"container_reference" in calls  # a shell may be the client's own
        if b"code_interpreter_call" in calls or (b"shell_call" in calls and is_hosted):
            nano += CONTAINER_NANO * self._gigabytes
        return nano + ANSWER_NANO.get(self._shape, 0)
