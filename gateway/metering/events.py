"""Reads the usage out of an event stream as its events pass.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream (events end at an empty
line; lines end in CRLF, LF or CR).
"""

from __future__ import annotations

import re
from typing import Any, Final

from gateway.metering.answers import said_of
from gateway.metering.endings import event_ending
from gateway.metering.rates import Counts
from gateway.metering.readers import KEPT_BYTES, Said, parsed
from gateway.metering.scan import Scanner
from gateway.metering.shapes import Shape
from gateway.tuples import new

# Where a piece ends between the CR and the LF of an empty line, the event goes on: the LF would be taken for the next
# one's, and be taken out with it.
_EVENT_END: Final = re.compile(rb"\n(?:\r\n|\n|\r(?!\Z))")
# Where lines end in CR alone; to look for either is ten times slower.
_ANY_END: Final = re.compile(_EVENT_END.pattern + rb"|\r\r\n?")
_USUAL_ENDS: Final = (b"\n\n", b"\r\n\r\n")
_HALF_END: Final = re.compile(rb"[\r\n]{0,2}\Z")

# What a model writes comes in strings of these names.
_TEXTS: Final = {
    Shape.CHAT: b"content|reasoning_content|reasoning|refusal|arguments|name|text",
    Shape.COMPLETIONS: b"text",
    Shape.RESPONSES: b"delta",
    Shape.MESSAGES: b"text|partial_json|thinking|name|signature|data",
    Shape.GEMINI: b"text|code|output|thoughtSignature",
}
# Content of other kinds: all of such an event counts. Events of responses say `"logprobs":[]`, which has none.
_FILLED: Final = frozenset((b"functionCall", b"inlineData", b"audio", b"logprobs"))
# An object of these names says what was used, or what went wrong.
_TELLING: Final = frozenset((b"usage", b"usageMetadata", b"error"))
# Perplexity's chat has a `message` of all that was said so far, before what is new.
_APART: Final = _TELLING | _FILLED | {b"message"}
_OTHERS: Final = {
    Shape.CHAT: b"usage|error|audio|logprobs|message",
    Shape.MESSAGES: b"usage|error",
    Shape.GEMINI: b"usageMetadata|error|functionCall|inlineData",
}
# What goes on in a string: all but quotes, backslashes and line ends. To say what is in it is quicker than what is not.
_RUN: Final = rb"[\x00-\x09\x0b\x0c\x0e-!#-[\]-\xff]*+"
# A key has no backslash in it or before it, so it is not found inside of a string; neither it nor a string spans lines.
# Gemini says its usage in each event, as it spells it here: nothing is looked for in there.
_MEMBER: Final = (
    rb'"(%b)"[ \t]*:[ \t]*'
    rb'(?:"(%b(?:\\[^\r\n]%b)*+)|(\{)(?:(?<="usageMetadata": \{)[^}]*+)?|\[(?![ \t]*\]))'
)


def _members_of(shape: Shape) -> re.Pattern[bytes]:
    """Return what finds an event's members: the name of each, its string, and what opens its object."""
    others = _OTHERS.get(shape, b"usage|error|audio|logprobs")
    names = _TEXTS[shape] + b"|" + others if shape in _TEXTS else others
    return re.compile(_MEMBER % (names, _RUN, _RUN))


_MEMBERS: Final = {shape: _members_of(shape) for shape in Shape}
_NO_CHOICE: Final = re.compile(rb'"choices"[ \t]*:[ \t]*\[[ \t]*\]')
_SEQUENCE: Final = re.compile(rb'"sequence_number"[ \t]*:[ \t]*([0-9]{1,9})')


_LONG_NAMES: Final = frozenset((b"usage", b"usageMetadata", b"model", b"modelVersion", b"id", b"service_tier"))


class EventReader:
    """See `Reader`: passes whole events on, and holds one back that has not come to its end, up to `KEPT_BYTES`.

    Args:
        shape: Of the events.
        strips: Whether the event that only says the usage is to be taken out: the client has not asked for it.
        several: Whether there are several answers in it: where one ends, the others may go on.
    """

    # fmt: off
    __slots__ = (
        "_shape", "_strips", "_several", "_members_of",
        "_head",  # what events begin with that there is nothing in
        "_busy", "_tail", "_scanner", "_line_ends",  # of the event that is not over
        "_first", "_latest", "_begun", "_tells", "_telling",  # what has been read
        "_said", "_text_bytes", "_told_bytes", "_told_all_bytes", "_failed", "_refused",  # and what it says
    )
    # fmt: on

    def __init__(self, shape: Shape, *, strips: bool, several: bool = False) -> None:
        self._shape = shape
        self._strips = strips
        self._several = several
        self._members_of = _MEMBERS[shape].findall
        self._busy = self._failed = self._refused = self._tells = False
        self._tail = self._line_ends = self._head = self._first = self._latest = self._telling = b""
        self._scanner: Scanner | None = None
        self._begun: dict[str, Any] = {}
        self._said: Said | None = None
        self._text_bytes = 0
        self._told_bytes = 0  # those of them that the last usage counts
        self._told_all_bytes = 0  # those that it may count: of its own event, too

    def feed(self, content: bytes) -> bytes:
        """See `Meter`."""
        if self._busy or not content.endswith(_USUAL_ENDS) or len(content) > KEPT_BYTES:
            return self._feed_apart(content)
        if self._tells:
            return self._feed_telling(content)
        text_bytes = 0
        for name, text, _ in self._members_of(content, len(self._head) if content.startswith(self._head) else 0):
            if name in _APART:
                return self._feed_telling(content)
            text_bytes += len(text)
        self._latest = content
        if not self._first:
            head = content[: max(content.find(b'"choices":'), 0)]  # with the colon it is a name, not what a model wrote
            self._head = b"" if self._members_of(head) else head
            self._first, self._said = content, None
        self._text_bytes += text_bytes
        return content

    def _feed_telling(self, content: bytes) -> bytes:
        """Pass on whole events, one of them more than text; if that one tells the usage, the next one may do so too."""
        lines = content.splitlines()
        if lines.index(b"") != len(lines) - 1:  # there are several
            return self._feed_apart(content)
        return b"" if self._read(content) else content

    def finish(self) -> bytes:
        """See `Meter`."""
        tail, self._tail = self._tail, b""
        if self._scanner is not None:
            self._end_long()
        # One that is broken off says nothing, and must not hide what was said before.
        return b"" if tail and data_of(tail) is not None and self._read(tail) else tail

    def said(self) -> Said:
        """See `Reader`."""
        if self._refused and not self._text_bytes and not self._telling:
            return Said(Counts(0, 0), final=True)
        if self._said is None:
            self._said = self._read_out()
        counts, final, _, _, *names = self._said
        text_bytes, failed = self._text_bytes, self._failed
        if counts is not None:
            # A usage with text behind it is not that of all, be the stream whole or not.
            failed = failed or (not final and text_bytes > self._told_all_bytes)
            text_bytes -= self._told_bytes
        return new(Said, (counts, final, text_bytes, failed, *names))

    def cut_event(self) -> bytes:
        """See `Meter`."""
        if self._scanner is not None:  # some of an event has been passed on
            return b""
        last = next(iter(_SEQUENCE.findall(self._latest)[-1:]), b"-1")
        return event_ending(self._shape, int(last) + 1)

    # --- events in pieces ----------------------------------------------------------------------------------------

    def _feed_apart(self, content: bytes) -> bytes:
        """Pass on what has come to its end."""
        passed: list[bytes] = []
        if self._scanner is not None:
            content = self._feed_long(content, passed)
        text, at = self._tail + content, 0
        seen = max(len(self._tail) - 2, 0)  # the last two bytes may be the begin of an end
        for end in _ends_of(text, seen).finditer(text, seen):
            event, at = text[at : end.end()], end.end()
            if not self._read(event):
                passed.append(event)
        self._tail = text[at:]
        if len(self._tail) > KEPT_BYTES:
            passed.append(self._begin_long())
        self._busy = bool(self._tail) or self._scanner is not None
        return b"".join(passed)

    def _begin_long(self) -> bytes:
        """Let go of an event that is too long to be held."""
        event, self._tail = self._tail, b""
        self._scanner = Scanner(_LONG_NAMES, 2 if self._shape is Shape.RESPONSES else 1)
        self._scanner.feed(event)
        self._text_bytes += len(event)
        self._line_ends = _half_end(event)
        return event

    def _feed_long(self, content: bytes, passed: list[bytes]) -> bytes:
        """Return what comes behind the event, if that has ended."""
        scanner = self._scanner
        assert scanner is not None  # noqa: S101 - whoever calls has looked
        seen = self._line_ends + content
        end = _ends_of(seen).search(seen)
        length = len(content) if end is None else end.end() - len(self._line_ends)
        scanner.feed(content[:length])
        self._text_bytes += length
        passed.append(content[:length])
        if end is None:
            self._line_ends = _half_end(seen)
        else:
            self._end_long()
        return content[length:]

    def _end_long(self) -> None:
        assert self._scanner is not None  # noqa: S101 - whoever calls has looked
        members = {name.decode(): parsed(text) for name, text in self._scanner.found.items()}
        self._scanner = None
        if "usage" in members or "usageMetadata" in members:
            self._telling, self._told_all_bytes = b"", self._text_bytes
            self._said = said_of(self._shape, members)._replace(final=self._shape is Shape.RESPONSES)

    # --- one event -----------------------------------------------------------------------------------------------

    def _read(self, event: bytes) -> bool:
        """Take note of what a whole event says; return whether it is to be taken out."""
        if len(event) > KEPT_BYTES:
            self._tail = event
            self._begin_long()
            self._end_long()
            return False
        self._latest = event
        if not self._first:
            self._first, self._said = event, None
        before_bytes = text_bytes = self._text_bytes
        says = is_filled = is_repeated = False
        for name, text, opened in self._members_of(event):
            if name not in _APART:
                text_bytes += len(text)
            elif name in _FILLED:
                is_filled = True
            elif not opened:
                continue
            elif name == b"error":
                self._failed = True
                # As an error's status would say. With other APIs, the model may have thought before its first event.
                self._refused = self._first is event and self._shape.of_anthropic
            elif name == b"message":
                is_repeated = True
            else:
                says = True
        if is_repeated:
            behind = self._members_of(event, max(event.find(b'"delta"'), 0))
            text_bytes = before_bytes + sum(len(text) for name, text, _ in behind if name not in _APART)
        self._text_bytes = before_bytes + len(event.strip(b"\r\n")) if is_filled else text_bytes
        self._tells = says
        if not says:
            return False
        self._said = None
        if self._shape.of_anthropic and b'"message_start"' in event:
            message = (data_of(event) or {}).get("message")
            self._begun = message if isinstance(message, dict) else {}
            return False
        self._telling, self._told_bytes, self._told_all_bytes = event, before_bytes, self._text_bytes
        if not self._strips or _NO_CHOICE.search(event) is None:
            return False
        data = data_of(event)
        return data is not None and data.get("choices") == [] and isinstance(data.get("usage"), dict)

    def _read_out(self) -> Said:
        data = data_of(self._telling) or {}
        if self._shape is Shape.MESSAGES:
            return self._read_messages(data)
        if not data:
            first = data_of(_ends_of(self._first).split(self._first, maxsplit=1)[0]) or {}
            return said_of(self._shape, first.get("response") if self._shape is Shape.RESPONSES else first)
        if self._shape is Shape.RESPONSES:
            return said_of(self._shape, data.get("response"))
        if self._shape is Shape.GEMINI:
            ended = not self._several and _any_has(data.get("candidates"), "finishReason")
        else:
            ended = data.get("choices") == [] or (not self._several and _any_has(data.get("choices"), "finish_reason"))
        return said_of(self._shape, data)._replace(final=ended)

    def _read_messages(self, delta: dict[str, Any]) -> Said:
        """Put together what the first event says of the input, and the last one of the output."""
        first, last = self._begun.get("usage"), delta.get("usage")
        usage = dict(first) if isinstance(first, dict) else {}
        if isinstance(last, dict):
            usage |= {name: value for name, value in last.items() if value is not None}
        return said_of(self._shape, {**self._begun, "usage": usage})._replace(final=isinstance(last, dict))


def data_of(event: bytes) -> dict[str, Any] | None:
    """Return the JSON object that an event carries, if it does."""
    lines = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
    data = parsed(b"\n".join(lines))
    return data if isinstance(data, dict) else None


def _ends_of(text: bytes, start: int = 0) -> re.Pattern[bytes]:
    """Return what finds the ends of events in it."""
    return _EVENT_END if text.find(b"\r\r", start) < 0 else _ANY_END


def _half_end(text: bytes) -> bytes:
    found = _HALF_END.search(text[-2:])
    return b"" if found is None else found[0]


def _any_has(members: object, name: str) -> bool:
    return isinstance(members, list) and any(isinstance(one, dict) and one.get(name) for one in members)
