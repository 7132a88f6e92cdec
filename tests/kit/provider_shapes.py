"""The shapes that providers of language models speak: reads what is asked, writes answers and events. No I/O.

A *shape* reads a request into a `Job`, and says how its answer looks: whole, or as an opening, words, and a closing.
"""

from __future__ import annotations

import base64
import json
import struct
from typing import TYPE_CHECKING, Any, Final, Protocol

from tests.kit.billing import Tokens, count_json, count_messages
from tests.kit.provider_jobs import Job, Unreadable, word

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kit.provider_jobs import Memory, Wishes

CREATED: Final = 1_750_000_000
_CACHED_FROM: Final = 1024
_CACHED_BY: Final = 128


class Shape(Protocol):
    """One provider's way to ask and to answer."""

    id_field: str
    """The field of an answer that has the request's id; "": only its content has."""

    def read(self, job_id: str, path: str, content: dict[str, Any], wishes: Wishes, memory: Memory) -> Job:
        """Read a request.

        Raises:
            Unreadable: It is not one.
        """
        ...

    def whole(self, job: Job) -> dict[str, Any]:
        """Return the answer without a stream."""
        ...

    def opening(self, job: Job) -> Iterator[bytes]:
        """Yield the events before the first word."""
        ...

    def word(self, job: Job, number: int) -> bytes:
        """Return the event with a word."""
        ...

    def closing(self, job: Job) -> Iterator[bytes]:
        """Yield the events after the last word."""
        ...

    def error(self, status: int, message: str) -> dict[str, Any]:
        """Return the content of an error."""
        ...


def data(event: object) -> bytes:
    """Return a server-sent event without a name."""
    return b"data: %b\n\n" % json.dumps(event, separators=(",", ":")).encode()


def named(event: dict[str, Any]) -> bytes:
    """Return a server-sent event named after its type."""
    return b"event: %b\n%b" % (str(event["type"]).encode(), data(event))


def model_of(content: dict[str, Any]) -> str:
    """Return the model that a request names.

    Raises:
        Unreadable: None.
    """
    model = content.get("model")
    if not isinstance(model, str) or not model:
        raise Unreadable("you must provide a model parameter")
    return model


def limit_of(content: dict[str, Any], *names: str) -> int | None:
    """Return the first of these that is there.

    Raises:
        Unreadable: It is not a positive integer.
    """
    for name in names:
        limit = content.get(name)
        if limit is not None:
            if not isinstance(limit, int) or limit < 1:
                raise Unreadable(f"{name} has to be a positive integer")
            return limit
    return None


def cached(content: Any, tokens: int, memory: Memory) -> Tokens:
    """Return a prompt's tokens, those cached that were seen before; nobody has to ask for that."""
    if tokens < _CACHED_FROM or not memory.has(content):
        return Tokens(tokens)
    return Tokens(tokens, tokens // _CACHED_BY * _CACHED_BY)


def openai_error(status: int, message: str) -> dict[str, Any]:
    """Return an error of OpenAI's."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


class Chat:
    """OpenAI's chat completions."""

    id_field = "x-request-id"
    error = staticmethod(openai_error)

    def read(self, job_id: str, _path: str, content: dict[str, Any], wishes: Wishes, memory: Memory) -> Job:
        """See `Shape.read`."""
        messages = content.get("messages")
        if not isinstance(messages, list):
            raise Unreadable("messages is missing")
        asked = [*messages, *content.get("tools", ())]
        tokens = cached(asked, count_messages(asked, wishes.seed, dense=wishes.dense), memory)
        options = content.get("stream_options") or {}
        return Job(
            job_id,
            content,
            model_of(content),
            wishes,
            tokens,
            limit_of(content, "max_completion_tokens", "max_tokens"),
            content.get("n") or 1,
            bool(content.get("stream")),
            wishes.usage and bool(options.get("include_usage")),
            content.get("user") or wishes.user,
        )

    def whole(self, job: Job) -> dict[str, Any]:
        """See `Shape.whole`."""
        choices = [
            {"index": index, "message": {"role": "assistant", "content": job.text(index)}, **_ended(job)}
            for index in range(job.choices)
        ]
        usage = {"usage": chat_usage(job)} if job.wishes.usage else {}
        return {**self._common(job, "chat.completion"), "choices": choices, **usage}

    def opening(self, job: Job) -> Iterator[bytes]:
        """See `Shape.opening`."""
        for index in range(job.choices):
            yield self._chunk(job, index, {"role": "assistant", "content": ""})

    def word(self, job: Job, number: int) -> bytes:
        """See `Shape.word`."""
        return self._chunk(job, number % job.choices, {"content": word(number // job.choices)})

    def closing(self, job: Job) -> Iterator[bytes]:
        """See `Shape.closing`."""
        for index in range(job.choices):
            yield self._chunk(job, index, {}, **_ended(job))
        if job.usage:
            yield data({**self._common(job, "chat.completion.chunk"), "choices": [], "usage": chat_usage(job)})
        yield b"data: [DONE]\n\n"

    def _chunk(self, job: Job, index: int, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": None} if job.usage else {}
        return data({**self._common(job, "chat.completion.chunk"), "choices": [choice], **usage})

    def _common(self, job: Job, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{job.id}", "object": kind, "created": CREATED, "model": job.told}


class Completions:
    """OpenAI's completions, the older kind: a text, or several."""

    id_field = "x-request-id"
    error = staticmethod(openai_error)

    def read(self, job_id: str, _path: str, content: dict[str, Any], wishes: Wishes, _memory: Memory) -> Job:
        """See `Shape.read`."""
        prompt = content.get("prompt", "")
        several = isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list)
        options = content.get("stream_options") or {}
        limit = limit_of(content, "max_tokens")
        return Job(
            job_id,
            content,
            model_of(content),
            wishes,
            Tokens(count_json(prompt, wishes.seed, dense=wishes.dense)),
            16 if limit is None else limit,
            (len(prompt) if several else 1) * (content.get("n") or 1),
            bool(content.get("stream")),
            wishes.usage and bool(options.get("include_usage")),
            content.get("user") or wishes.user,
        )

    def whole(self, job: Job) -> dict[str, Any]:
        """See `Shape.whole`."""
        choices = [{"index": index, "text": job.text(index), **_ended(job)} for index in range(job.choices)]
        usage = {"usage": chat_usage(job)} if job.wishes.usage else {}
        return {**self._common(job), "choices": choices, **usage}

    def opening(self, _job: Job) -> Iterator[bytes]:
        """See `Shape.opening`."""
        yield from ()

    def word(self, job: Job, number: int) -> bytes:
        """See `Shape.word`."""
        return self._chunk(job, number % job.choices, word(number // job.choices))

    def closing(self, job: Job) -> Iterator[bytes]:
        """See `Shape.closing`."""
        for index in range(job.choices):
            yield self._chunk(job, index, "", **_ended(job))
        if job.usage:
            yield data({**self._common(job), "choices": [], "usage": chat_usage(job)})
        yield b"data: [DONE]\n\n"

    def _chunk(self, job: Job, index: int, text: str, finish_reason: str | None = None) -> bytes:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}
        return data({**self._common(job), "choices": [choice], **({"usage": None} if job.usage else {})})

    def _common(self, job: Job) -> dict[str, Any]:
        return {"id": f"cmpl-{job.id}", "object": "text_completion", "created": CREATED, "model": job.told}


class Embeddings:
    """OpenAI's embeddings."""

    id_field = "x-request-id"
    error = staticmethod(openai_error)

    def read(self, job_id: str, _path: str, content: dict[str, Any], wishes: Wishes, _memory: Memory) -> Job:
        """See `Shape.read`."""
        tokens = Tokens(count_json(content.get("input", ""), wishes.seed, dense=wishes.dense))
        user = content.get("user") or wishes.user
        return Job(job_id, content, model_of(content), wishes, tokens, limit=0, user=user)

    def whole(self, job: Job) -> dict[str, Any]:
        """See `Shape.whole`."""
        given = job.content.get("input", "")
        vector = [0.25, -0.5, 1.0]
        in_base64 = job.content.get("encoding_format") == "base64"
        shown = base64.b64encode(struct.pack("<3f", *vector)).decode() if in_base64 else vector
        count = len(given) if isinstance(given, list) and given and isinstance(given[0], str | list) else 1
        tokens = job.prompt.input
        usage = {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}} if job.wishes.usage else {}
        rows = [{"object": "embedding", "index": index, "embedding": shown} for index in range(count)]
        return {"object": "list", "data": rows, "model": job.told, **usage}

    def opening(self, _job: Job) -> Iterator[bytes]:
        """See `Shape.opening`; there are no streams."""
        yield from ()

    def word(self, _job: Job, _number: int) -> bytes:
        """See `Shape.word`; likewise."""
        return b""

    def closing(self, _job: Job) -> Iterator[bytes]:
        """See `Shape.closing`; likewise."""
        yield from ()


def chat_usage(job: Job) -> dict[str, Any]:
    """Return usage as OpenAI's chat tells it."""
    return {
        "prompt_tokens": job.prompt.input,
        "completion_tokens": job.total,
        "total_tokens": job.prompt.input + job.total,
        "prompt_tokens_details": {"cached_tokens": job.prompt.cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": job.hidden, "audio_tokens": 0},
    }


def _ended(job: Job) -> dict[str, str]:
    return {"finish_reason": "length" if job.is_short else "stop"}
