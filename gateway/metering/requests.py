"""Reads what a request to a language model asks for, and writes it again with less.

What cannot be read as one thing only is written as it was read: whoever answers reads it so as well.
"""

from __future__ import annotations

import json
import re
from json.scanner import make_scanner
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gateway.errors import BadRequest
from gateway.metering.brings import OPEN_KEYS, brought, brought_by_gemini, grows, object_of
from gateway.metering.hosts import is_anthropics
from gateway.metering.shapes import Shape, tier_of_gemini, usual_is_none
from gateway.tuples import new

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_OUTPUTS: Final = 10_000_000
"""Output tokens that are reserved at most for one choice: no model writes as many."""
MAX_CHOICES: Final = 100_000
"""Answers to one prompt: no server gives as many."""
LEAST_OUTPUT: Final = 16
"""Fewer output tokens are not asked for: the responses API takes no lower limit."""
# An honest writer of JSON has no reason to escape what names are made of; one who hides a name has.
_HIDDEN: Final = re.compile(rb"\\u00(?:2[dD]|3[0-9]|[46][1-9a-fA-F]|[57][0-9aA]|5[fF])")

LIMITS: Final[Mapping[Shape, tuple[str, ...]]] = {
    Shape.CHAT: ("max_completion_tokens", "max_tokens"),
    Shape.COMPLETIONS: ("max_tokens",),
    Shape.RESPONSES: ("max_output_tokens",),
    Shape.MESSAGES: ("max_tokens",),
    Shape.GEMINI: ("maxOutputTokens",),
}
"""The members that limit the output, by shape; others have none."""
MAX_MODEL_CHARACTERS: Final = 256
"""How long a model's name may be: it is written to the ledger."""
_READ_IN_ANY_CASE: Final = frozenset(
    (
        *("model", "models", "fallbacks", "stream", "stream_options", "n", "best_of", "prompt", "service_tier"),
        *("speed", "thinking", "tools", "functions", "prediction", "reasoning", "reasoning_effort", "background"),
        "inference_geo",
        *(name for names in (*LIMITS.values(), *OPEN_KEYS.values()) for name in names),
    )
)
"""What is looked at here. Some servers take `MODEL` for `model` (Go's encoding/json), and a Kelvin sign for a k."""
_LIMITED: Final = frozenset(name for names in LIMITS.values() for name in names)
_NOT_LOOKED_AT: Final = frozenset(
    (
        *("messages", "input", "instructions", "system", "temperature", "top_p", "top_k", "stop", "stop_sequences"),
        *("seed", "user", "metadata", "store", "response_format", "frequency_penalty", "presence_penalty"),
        *("logit_bias", "tool_choice", "parallel_tool_calls"),
    )
)
_USUAL: Final = (_NOT_LOOKED_AT - _READ_IN_ANY_CASE) | _LIMITED | {"model", "stream"}
"""Most requests have no other members."""


class Wanted(NamedTuple):
    """What a request asks for.

    Args:
        members: The JSON object of its body.
        model: As it names it; "" if it does not.
        limit: Output tokens of one choice, as it limits them; None: it does not.
        choices: How many answers it asks for in one.
        streams: Whether as events.
        open: Whether it can bring more input tokens than it has bytes, pictures aside.
        grows: Whether it can bring more of them than the begin of its answer says: by what the provider's tools find.
        fees: Whether something may be billed that no usage tells of.
        pictures: How many there are in it.
        tools: Whether it brings functions to call.
        predicts: Whether it brings what its answer will be like.
        unseen: Whether it asks for output that does not show in its stream, or goes on when that is left.
        thinking_tokens: How many tokens of its output are for that, at the least.
        tier, speed, geo: Its `service_tier`, `speed` and `inference_geo`; "" if it leaves them to the provider.
        ambiguous: Whether it has two members of one name: others may read the first of them.
    """

    members: dict[str, Any]
    model: str
    limit: int | None
    choices: int
    streams: bool
    open: bool
    grows: bool
    fees: bool
    pictures: int
    tools: bool
    predicts: bool
    unseen: bool
    thinking_tokens: int
    tier: str
    speed: str
    geo: str
    ambiguous: bool


def read(shape: Shape, body: bytes) -> Wanted | None:
    """Read a request's body; None if it is not a JSON object in UTF-8, or one that others read otherwise."""
    try:
        # Objects are read as tuples of pairs: only so is one that has two members of a name told from any other.
        text = body.decode()
        if not text.startswith("{"):
            text = text.lstrip(_SPACE)
        pairs, end = _scan(text, 0)
        if not isinstance(pairs, tuple) or (end != len(text) and text[end:].strip(_SPACE)):
            return None
        members: dict[str, Any] = dict(pairs)
        ambiguous = len(members) != len(pairs)
        # A byte is found at once, by its number; and of text it is known at once whether it has a word.
        if ambiguous or (_BACKSLASH in body and b"\\u00" in body and _HIDDEN.search(body) is not None):
            ambiguous = True  # further down, names may be there twice as well
            members = json.loads(body)
            text = json.dumps(members)
            body = text.encode()
        if members.keys() <= _USUAL and not ambiguous and shape is not Shape.GEMINI:
            return _wanted_usually(shape, members, body, has_types='"type"' in text)
        names = "".join(members)
        if not (names.isascii() and names.islower()) and any(map(_is_misspelled, members)):
            return None
        return _wanted(shape, members, body, ambiguous=ambiguous)
    except (ValueError, RecursionError, TypeError, OverflowError, StopIteration):
        return None


def spelled_out(body: bytes, wanted: Wanted) -> bytes:
    """Return a request's body, or what is sent in its place if it hides names: all are in it as they are spelled."""
    return json.dumps(wanted.members).encode() if wanted.ambiguous else body


def _is_misspelled(name: str) -> bool:
    return name not in _READ_IN_ANY_CASE and name.casefold() in _READ_IN_ANY_CASE


_scan: Final = make_scanner(json.JSONDecoder(object_pairs_hook=tuple))  # type: ignore[arg-type]  # typeshed errs
_SPACE: Final = " \t\n\r"
_BACKSLASH: Final = 0x5C


def _wanted_usually(shape: Shape, members: dict[str, Any], body: bytes, *, has_types: bool) -> Wanted:
    """See `_wanted`, in a third of the time: of what is looked at there, no more than this can be in it."""
    model, limit = members.get("model"), 0
    for name in LIMITS.get(shape, ()):
        if name in members:
            limit = max(limit, _number(members[name]) or 0)
    if not isinstance(model, str) or len(model) > MAX_MODEL_CHARACTERS:
        model = ""
    limited = min(limit, MAX_OUTPUTS) if limit else _no_output(shape, model, members)
    streams = members.get("stream") is True
    is_open = fees = False
    pictures = 0
    if has_types or shape is Shape.RESPONSES or "audio" in model:
        is_open, fees, pictures = brought(shape, members, body, is_open=False)
    # fmt: off
    asked = (
        members, model, limited, 1, streams, is_open, False, fees, pictures, False, False, False, 0, "", "", "", False,
    )
    # fmt: on
    return new(Wanted, asked)


def _no_output(shape: Shape, model: str, members: Mapping[str, Any]) -> int | None:
    """Return the limit of a request that has none above 0: None, but 0 where Anthropic is only to fill its cache.

    Some servers of other APIs, or of other models, take it for no limit.
    """
    limit = members.get("max_tokens") if shape.of_anthropic and is_anthropics(model) else None
    return 0 if type(limit) is int and limit == 0 else None


def _wanted(shape: Shape, members: dict[str, Any], body: bytes, *, ambiguous: bool) -> Wanted:
    get = members.get
    model, tier, speed = get("model"), get("service_tier"), get("speed")
    if shape is Shape.GEMINI:
        limit, choices = _of_gemini(members)
        (is_open, fees), pictures = brought_by_gemini(body), 0
        tier = tier_of_gemini(tier or get("serviceTier"))
    else:
        limit, choices = 0, 1
        for name in LIMITS.get(shape, ()):
            if name in members:
                limit = max(limit, _number(members[name]) or 0)
        if "n" in members or "best_of" in members:
            choices = min(max(_number(get("n")) or 1, _number(get("best_of")) or 1), MAX_CHOICES)
        if shape is Shape.COMPLETIONS and isinstance(prompts := get("prompt"), list):
            choices *= sum(not isinstance(prompt, int) for prompt in prompts) or 1
        is_open = not OPEN_KEYS.get(shape, _NO_KEYS).isdisjoint(members)
        is_open, fees, pictures = brought(shape, members, body, is_open=is_open)
        fees = fees or (shape is Shape.RESPONSES and bool(get("prompt")))  # a stored prompt may have tools
    thinking, streams = get("thinking"), get("stream") is True
    if streams:
        object_of(get("stream_options"))
    # Of several models, nobody knows which one it will be; `fallbacks` are Anthropic's, each with a limit of its own.
    if not isinstance(model, str) or len(model) > MAX_MODEL_CHARACTERS or get("models") or get("fallbacks"):
        model = ""
    return Wanted(
        members,
        model,
        min(limit, MAX_OUTPUTS) if limit else _no_output(shape, model, members),
        choices,
        streams,
        is_open,
        is_open and shape.of_anthropic and grows(members),
        fees,
        pictures,
        "tools" in members or "functions" in members,
        "prediction" in members,
        choices > 1 or bool(thinking or get("reasoning") or get("reasoning_effort") or get("background")),
        0 if thinking is None else _number(object_of(thinking).get("budget_tokens")) or 0,
        usual_is_none(tier) if tier else "",
        usual_is_none(speed) if speed else "",
        str(get("inference_geo") or ""),
        ambiguous,
    )


def _of_gemini(members: dict[str, Any]) -> tuple[int, int]:
    """Return the limit (0: none), and how many choices.

    Raises:
        ValueError: Its settings are there twice.
    """
    for one, other in (("generationConfig", "generation_config"), ("serviceTier", "service_tier")):
        if one in members and other in members:
            raise ValueError("two members are one")
    config = object_of(members.get("generationConfig", members.get("generation_config"))).get
    limit = max(_number(config("maxOutputTokens")) or 0, _number(config("max_output_tokens")) or 0)
    choices = min(max(_number(config("candidateCount")) or 1, _number(config("candidate_count")) or 1), MAX_CHOICES)
    return limit, choices


_NO_KEYS: Final = frozenset[str]()


def _number(value: object) -> int | None:
    """Read a number as leniently as any server may: 16, 16.0, "16"; None for what is no number, or not above 0."""
    if type(value) is not int:
        try:
            value = int(float(value)) if isinstance(value, str | float) else 0
        except (ValueError, OverflowError):
            return None
    return value if value > 0 else None


class Changes(NamedTuple):
    """What a request is sent with.

    Args:
        limit: The name of its limit, where it has none.
        output: Output tokens of one choice, 1 or more; 0: its limit stays.
        asks_usage: Whether its stream shall say its usage.
    """

    limit: str
    output: int
    asks_usage: bool


def rewritten(shape: Shape, body: bytes, wanted: Wanted, changes: Changes) -> bytes:
    """Return the body with changes: what is new is put in front; to change anything else means writing it all again.

    Raises:
        BadRequest: It is nested so deep that it can be read, but not be written.
    """
    members = _changed(shape, wanted.members, changes)
    if not wanted.ambiguous:
        if not members:
            return body
        if wanted.members.keys().isdisjoint(members):
            at = body.index(b"{") + 1
            added = json.dumps(members, separators=(",", ":")).encode()[1:-1]
            return b"%b%b%b%b" % (body[:at], added, b"," if wanted.members else b"", body[at:])
    try:
        whole = json.loads(body)
        return json.dumps(whole | _changed(shape, whole, changes), separators=(",", ":")).encode()
    except RecursionError:
        raise BadRequest("The JSON of the body is nested too deep.") from None


def _changed(shape: Shape, members: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    if changes.asks_usage:
        changed["stream_options"] = {**object_of(members.get("stream_options")), "include_usage": True}
    if not changes.output:
        return changed
    if shape is Shape.GEMINI:
        key = "generation_config" if "generation_config" in members else "generationConfig"
        config = object_of(members.get(key))
        present = [name for name in ("maxOutputTokens", "max_output_tokens") if name in config] or [changes.limit]
        return changed | {key: {**config, **dict.fromkeys(present, changes.output)}}
    present = [name for name in LIMITS[shape] if members.get(name) is not None] or [changes.limit]
    return changed | {name: min(changes.output, _number(members.get(name)) or changes.output) for name in present}


def asks_usage(wanted: Wanted) -> bool:
    """Whether a stream is asked to say its usage."""
    return object_of(wanted.members.get("stream_options")).get("include_usage") is True
