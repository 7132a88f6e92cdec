"""What a request brings beside its bytes: pictures, what is found elsewhere, tools, and what is paid for these."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from gateway.metering.hosts import is_anthropics
from gateway.metering.shapes import Shape

if TYPE_CHECKING:
    from collections.abc import Mapping

PICTURE_TOKENS: Final = 50_000
"""What one picture can cost at most: gpt-4o-mini counts 2833 and 5667 for each of up to 8 tiles."""
ANTHROPICS_PICTURE_TOKENS: Final = 10_000
"""Likewise with a model of Anthropic's: 4784 of the largest."""
TOOLS_TOKENS: Final = 1024
"""What a provider may add to a prompt so that the model knows how to call functions: 200 to 700 tokens."""

_HARMLESS: Final = (
    "text|input_text|output_text|message|function|function_call|function_call_output|tool_use|tool_result|thinking|"
    "redacted_thinking|reasoning|summary_text|reasoning_text|ephemeral|json_schema|json_object|enabled|disabled|adaptive|"
    "auto|any|tool|none|custom|refusal|object|string|number|integer|boolean|array|null|content|grammar|allowed_tools|"
    "custom_tool_call|custom_tool_call_output|query|document_text|base64|url|"
    # Tools that the client runs, and what these have said.
    "(?:local_)?shell|(?:local_)?shell_call|(?:local_)?shell_call_output|local|exec|exit|timeout|apply_patch|apply_patch_call|"
    "apply_patch_call_output|create_file|update_file|delete_file|namespace|(?:bash|text_editor|memory|computer)_20[0-9]{6}"
)
_HARMLESS_TYPE: Final = re.compile(_HARMLESS)
# Each of Anthropic's puts a description of its own into the prompt, of up to 1200 tokens.
_CLIENT_TOOL: Final = re.compile(rb'"(?:bash|text_editor|memory|computer)_20[0-9]{6}"')
_PICTURES: Final = "image_url|input_image|image"
# A part, a tool or an item of any other type can bring more tokens than it has bytes.
_OPEN_TYPE: Final = re.compile(rf'"type"\s*:\s*"(?!(?:{_HARMLESS}|{_PICTURES})")'.encode())
_PICTURE: Final = re.compile(rf'"type"\s*:\s*"(?:{_PICTURES})"'.encode())
# What a provider takes money for beside its tokens, and does not say in its usage.
_FEES: Final = re.compile(
    rb'"(?:web_search|file_search|code_interpreter|image_generation|computer|code_execution|mcp|google_?search|x_search|'
    rb"container_auto|google_?maps|(?:enterprise_?web|parallel_?ai|exa_?ai)_?search|search_context|search_parameters)",
    re.IGNORECASE,
)
_SAID_FEES: Final = re.compile(rb'"(?:web_search_20[0-9]*|web_search)"')
"""Those of Anthropic's that its usage does say."""
_STORED_SOUND: Final = re.compile(rb'"audio"\s*:\s*\{[^{}]*"id"')
"""An answer of before, which has no type: the seconds of it are tokens."""
OPEN_KEYS: Final = {
    # The last ones are Azure's, x.ai's and Alibaba's: what is found goes into the prompt.
    Shape.CHAT: frozenset(
        ("web_search_options", "plugins", "mcp_servers", "data_sources", "search_parameters", "enable_search")
    ),
    Shape.COMPLETIONS: frozenset[str](),
    Shape.RESPONSES: frozenset(("previous_response_id", "conversation", "prompt")),
    Shape.MESSAGES: frozenset(("mcp_servers", "container")),
}
_GROWING: Final = frozenset(("mcp_servers", "context_management"))
_OPEN_OF_GEMINI: Final = re.compile(
    rb'"(?:inline_?data|file_?data|google_?search\w*|code_?execution|url_?context|cached_?content|'
    rb"google_?maps|file_?search|computer_?use|executable_?code|(?:enterprise_?web|parallel_?ai|exa_?ai)_?search|"
    rb'retrieval)"\s*:',
    re.IGNORECASE,
)


def brought(shape: Shape, members: Mapping[str, Any], body: bytes, *, is_open: bool) -> tuple[bool, bool, int]:
    """Return what `Wanted` has as `open`, `fees` and `pictures`.

    Args:
        shape: Not Gemini's.
        members: Of the request's body.
        body: That.
        is_open: Whether a member of it says so already.
    """
    pictures = 0
    if shape is Shape.RESPONSES:
        is_open = is_open or _refers(members.get("input"))
    elif b'"audio"' in body:
        is_open = is_open or _STORED_SOUND.search(body) is not None
    if b'"type"' in body:
        is_open = is_open or _OPEN_TYPE.search(body) is not None
        pictures = len(_PICTURE.findall(body))
    return is_open, is_open and _has_fees(shape, body), pictures


def _refers(items: object) -> bool:
    """Whether a conversation only names a stored item in place of one: a reference needs no type."""
    return isinstance(items, list) and any(
        not isinstance((of := object_of(one)).get("type"), str) and "role" not in of for one in items
    )


def _has_fees(shape: Shape, body: bytes) -> bool:
    return _FEES.search(_SAID_FEES.sub(b"", body) if shape.of_anthropic else body) is not None


def brought_by_gemini(body: bytes) -> tuple[bool, bool]:
    """Return what `Wanted` has as `open` and `fees`."""
    is_open = _OPEN_OF_GEMINI.search(body) is not None
    return is_open, is_open and _has_fees(Shape.GEMINI, body)


def grows(members: Mapping[str, Any]) -> bool:
    """Whether what a request of Anthropic's shape brings may be more than the begin of its answer says.

    Raises:
        ValueError: A tool has two members of a name.
    """
    tools = members.get("tools")
    kinds = [object_of(tool).get("type") for tool in tools] if isinstance(tools, list) else []
    return not _GROWING.isdisjoint(members) or any(kind and not _HARMLESS_TYPE.fullmatch(str(kind)) for kind in kinds)


def pictures_tokens(shape: Shape, model: str, members: Mapping[str, Any], pictures: int) -> tuple[int, int]:
    """Return what the pictures of a request can cost at most, and how many of its bytes they are: these are no text.

    Only those count that are where a picture is read: elsewhere, what looks like one is text, and paid by the byte.
    """
    each = ANTHROPICS_PICTURE_TOKENS if shape.of_anthropic and is_anthropics(model) else PICTURE_TOKENS
    messages = members.get("input" if shape is Shape.RESPONSES else "messages")
    try:
        return pictures * each, sum(map(_data_bytes, messages)) if isinstance(messages, list) else 0
    except (ValueError, RecursionError):  # a member is there twice: who knows which one is read
        return pictures * each, 0


def _data_bytes(item: object) -> int:
    """Return how many bytes of a message, or of a part of one, are pictures."""
    of = object_of(item)
    kind, url, source = of.get("type"), of.get("image_url"), object_of(of.get("source"))
    if kind == "image":
        data = source.get("data") if source.get("type") == "base64" else None
        return len(data) if isinstance(data, str) else 0
    if kind in ("image_url", "input_image"):  # no set: what is no text may have no hash
        url = object_of(url).get("url") if kind == "image_url" else url
        return len(url) if isinstance(url, str) and url.startswith("data:image/") else 0  # some take a PDF, too
    inner = of.get("content") if kind != "function_call_output" else of.get("output")
    return sum(map(_data_bytes, inner)) if isinstance(inner, list) else 0


def tools_tokens(shape: Shape, body: bytes) -> int:
    """Return how many tokens tools may put into a prompt beside their own."""
    typed = len(_CLIENT_TOOL.findall(body)) if shape.of_anthropic else 0
    return TOOLS_TOKENS * (1 + 2 * typed)


def object_of(value: object) -> Mapping[str, Any]:
    """Return an object's members, whichever way it was read; none if it is no object.

    Raises:
        ValueError: It has two of a name.
    """
    if isinstance(value, tuple):
        members = dict(value)
        if len(members) != len(value):
            raise ValueError("two members have one name")
        return members
    return value if isinstance(value, dict) else {}
