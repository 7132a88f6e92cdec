"""What a language model's API charges beside tokens, for tools of its own, and does not say in its usage.

The calls are counted in the answer. Prices are list prices, so the cost is marked as an estimate.

Source: https://platform.openai.com/docs/pricing#built-in-tools, https://ai.google.dev/gemini-api/docs/pricing,
https://platform.claude.com/docs/en/about-claude/pricing#code-execution-tool
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from gateway.metering.shapes import Shape

if TYPE_CHECKING:
    from gateway.metering.readers import Reader, Said

CALLS_NANO: Final = {
    b"web_search_call": 10_000_000,
    b"file_search_call": 2_500_000,
    b"code_interpreter_call": 30_000_000,
    b"image_generation_call": 250_000_000,
    b"code_execution": 4_200_000,
    b"bash_code_execution": 4_200_000,
}
"""Nano-USD of each call. A container is paid once, but whose it is cannot be told; Anthropic's is for five minutes."""
PREVIEW_NANO: Final = 25_000_000
"""Of a search in the web by the older tool."""
_PREVIEW: Final = b"web_search_preview"
ANSWER_NANO: Final = {Shape.CHAT: 30_000_000, Shape.GEMINI: 35_000_000}
"""Of an answer: chat completions that may search do so, and Gemini's say that they have."""
CALLS: Final = 10
"""How many calls of a tool are reserved for; of one that is not paid by the search, a single one."""
TOLD: Final = 3
"""In a stream, a call is told of when it begins, when it has ended, and in the whole response."""

_CALL: Final = re.compile(
    rb'"(?:type|name)"[ \t\r\n]*:[ \t\r\n]*"('
    rb'(?:web_search|file_search|code_interpreter|image_generation)_call|web_search_preview|(?:bash_)?code_execution)"'
    rb'|"(groundingMetadata)"'
)
_TOOL: Final = re.compile(rb'"(web_search_preview|web_search|file_search|code_interpreter|image_generation)')
_TOOLS: Final = frozenset((_PREVIEW, b"file_search", b"code_interpreter", b"image_generation"))
_LONGEST: Final = 64
"""Bytes of what is looked for, with some space in it."""


def most_nano(shape: Shape, body: bytes) -> int:
    """Return what is reserved for the calls that an answer may take, in nano-USD.

    Args:
        shape: Of a request that may be billed for them.
        body: The request's.
    """
    if shape in ANSWER_NANO:
        return ANSWER_NANO[shape]
    if shape.of_anthropic:
        return CALLS * CALLS_NANO[b"code_execution"]
    hides = b"\\u00" in body  # a name may be spelled so that it is not found
    tools = _TOOLS if hides else frozenset(_TOOL.findall(body))
    nano = sum(CALLS_NANO[b"%b_call" % one] * (CALLS if one.endswith(b"search") else 1) for one in tools - {_PREVIEW})
    return nano + (CALLS * PREVIEW_NANO if _PREVIEW in tools else 0)


class FeeReader:
    """See `Reader`: counts calls as well.

    Args:
        reader: Reads all else.
        shape: Of the answer.
        is_stream: Whether it comes as events.
    """

    __slots__ = ("_calls", "_carried", "_divisor", "_reader", "_shape")

    def __init__(self, reader: Reader, shape: Shape, *, is_stream: bool) -> None:
        self._reader = reader
        self._shape = shape
        self._divisor = TOLD if is_stream and not shape.of_anthropic else 1
        self._carried = b""
        self._calls: dict[bytes, int] = {}

    def feed(self, content: bytes) -> bytes:
        """See `Meter`."""
        seen, end = self._carried + content, 0
        for found in _CALL.finditer(seen):
            name, end = found[1] or found[2], found.end()
            self._calls[name] = self._calls.get(name, 0) + 1
        self._carried = seen[max(end, len(seen) - _LONGEST) :]
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
            return ANSWER_NANO[self._shape] if calls else 0
        paid = {**CALLS_NANO, **({b"web_search_call": PREVIEW_NANO} if b"web_search_preview" in calls else {})}
        nano = sum(-(-count // divisor) * paid.get(name, 0) for name, count in calls.items())
        return nano + ANSWER_NANO.get(self._shape, 0)
