"""A request to the provider that bills: what is asked of it, how a test wishes it answered, what is remembered."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tests.kit.billing import Tokens

_WORDS: Final = ("the ", "loop ", "asks ", "again ", "what ", "it ", "costs ", "and ")
_PROMPTS: Final = ("messages", "prompt", "input", "contents")


class Unreadable(Exception):
    """A request that a provider answers with 400, or 404 if it says so; the message is for people."""

    status = 400


class NoSuchModel(Unreadable):
    """The model has no price here."""

    status = 404


@dataclass(slots=True)
class Wishes:
    """How a request is to be answered: what a test wants of a provider, in the field `X-Mock: name=value, …`.

    Args:
        output: Tokens that it would like to generate, for each choice; -1: by the prompt.
        spread: By the prompt they are 1 to so many.
        reasoning: Of the tokens of all choices, how many are hidden and come first.
        delay_ms: For each token.
        head_ms: Before the answer's head, beside those.
        lag_ms: For how long it does not notice that the client of a stream has left.
        usage: Whether it tells usage at all.
        break_at: The connection breaks after so many words, or in the middle of JSON; -1: it does not.
        fail_at: A stream fails with an event after so many words; -1: it does not.
        status: Of an error that is answered at once; 0: none.
        gzip: It compresses, where that is accepted.
        chunked: JSON comes in chunks, too.
        dense: Each byte of the prompt is a token.
        seed: For what is counted.
        user: For the invoice.
        served: The model that generates, is billed and told; "": the one asked for.
    """

    output: int = -1
    spread: int = 40
    reasoning: int = 0
    delay_ms: float = 0.0
    head_ms: float = 0.0
    lag_ms: float = 0.0
    usage: bool = True
    break_at: int = -1
    fail_at: int = -1
    status: int = 0
    gzip: bool = False
    chunked: bool = False
    dense: bool = False
    seed: int = 0
    user: str = ""
    served: str = ""


_KINDS: Final = {one.name: type(one.default) for one in fields(Wishes)}


@dataclass(slots=True)
class Job:
    """A request that is to be answered.

    Args:
        id: The provider's for it.
        content: The request's JSON.
        model: That is asked for.
        wishes: How.
        prompt: Its tokens.
        limit: Tokens of one choice at most; None: nobody said so.
        choices: How many.
        stream: It wants events.
        usage: Events tell usage.
        user: For the invoice.
        as_array: Events are the elements of a JSON array.
    """

    id: str
    content: dict[str, Any]
    model: str
    wishes: Wishes
    prompt: Tokens
    limit: int | None = None
    choices: int = 1
    stream: bool = False
    usage: bool = True
    user: str = ""
    as_array: bool = False
    each: int = field(init=False)
    """Tokens of each choice."""
    is_short: bool = field(init=False)
    """The limit keeps it from saying all that it would."""

    def __post_init__(self) -> None:
        wanted = self.wishes.output
        if wanted < 0:
            # By the prompt alone: who limits it finds it cut, not another answer.
            asked = json.dumps([self.content.get(name) for name in _PROMPTS]).encode()
            wanted = 1 + zlib.crc32(asked, self.wishes.seed) % self.wishes.spread
        self.is_short = self.limit is not None and wanted > self.limit
        self.each = self.limit if self.limit is not None and self.is_short else wanted

    @property
    def total(self) -> int:
        """Tokens to generate."""
        return self.each * self.choices

    @property
    def hidden(self) -> int:
        """Of them, those that nobody is shown."""
        return min(self.wishes.reasoning, self.total)

    @property
    def told(self) -> str:
        """The model that the answer names."""
        return self.wishes.served or self.model

    def made(self, count: int) -> Tokens:
        """Return what is to be billed after so many tokens."""
        return self.prompt._replace(output=count, reasoning=min(count, self.hidden))

    def text(self, choice: int) -> str:
        """Return the whole text of a choice."""
        shown = range(choice, self.total - self.hidden, self.choices)
        return "".join(word(number // self.choices) for number in shown)


class Memory:
    """What a provider remembers of requests: prompts in its cache, and conversations that it keeps."""

    def __init__(self) -> None:
        self._cached: set[bytes] = set()
        self._kept: dict[str, int] = {}

    def has(self, prefix: Any) -> bool:
        """Tell whether a prompt is in the cache, and put it there."""
        digest = hashlib.blake2b(json.dumps(prefix).encode(), digest_size=16).digest()
        known = digest in self._cached
        self._cached.add(digest)
        return known

    def keep(self, name: str, tokens: int) -> None:
        """Keep a conversation."""
        self._kept[name] = tokens

    def kept(self, name: str) -> int:
        """Return how many tokens a conversation has so far."""
        return self._kept.get(name, 0)


def wished(default: Wishes, text: str) -> Wishes:
    """Return wishes as a request's field has them: `name=value, …`.

    Raises:
        Unreadable: There is no such wish.
    """
    changes: dict[str, Any] = {}
    for pair in filter(None, text.replace(" ", "").split(",")):
        name, _, value = pair.partition("=")
        kind: Any = _KINDS.get(name)
        if kind is None:
            raise Unreadable(f"no such wish: {name}")
        changes[name] = value not in {"0", "off"} if kind is bool else kind(value)
    return replace(default, **changes)


def word(number: int) -> str:
    """Return the text of a token."""
    return _WORDS[number % len(_WORDS)]
