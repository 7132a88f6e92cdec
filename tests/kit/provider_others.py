"""The other shapes: OpenAI's responses, Anthropic's messages, Gemini. See `provider_shapes`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from tests.kit.billing import Tokens, count_messages
from tests.kit.provider_jobs import Job, Unreadable, word
from tests.kit.provider_shapes import (
    CREATED,
    Chat,
    Completions,
    Embeddings,
    Shape,
    cached,
    data,
    limit_of,
    model_of,
    named,
    openai_error,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kit.provider_jobs import Memory, Wishes


class Responses:
    """OpenAI's responses. What a response continues is part of its prompt, though the request has only its name."""

    id_field = "x-request-id"
    error = staticmethod(openai_error)

    def read(self, job_id: str, _path: str, content: dict[str, Any], wishes: Wishes, memory: Memory) -> Job:
        """See `Shape.read`."""
        given = content.get("input", "")
        asked = [content.get("instructions"), *(given if isinstance(given, list) else [given]), content.get("tools")]
        before = memory.kept(content.get("previous_response_id") or "")
        tokens = cached(asked, count_messages(asked, wishes.seed, dense=wishes.dense) + before, memory)
        job = Job(
            job_id,
            content,
            model_of(content),
            wishes,
            tokens,
            limit_of(content, "max_output_tokens"),
            stream=bool(content.get("stream")),
            usage=wishes.usage,
            user=content.get("user") or wishes.user,
        )
        memory.keep(f"resp_{job_id}", tokens.input + job.total)
        return job

    def whole(self, job: Job) -> dict[str, Any]:
        """See `Shape.whole`."""
        status = "incomplete" if job.is_short else "completed"
        message = self._message(job, status, [self._part(job.text(0))])
        return self._response(job, status, [message], self._usage(job) if job.usage else None)

    def opening(self, job: Job) -> Iterator[bytes]:
        """See `Shape.opening`."""
        begun = self._response(job, "in_progress", [], None)
        yield self._event(0, "response.created", response=begun)
        yield self._event(1, "response.in_progress", response=begun)
        item = self._message(job, "in_progress", [])
        yield self._event(2, "response.output_item.added", output_index=0, item=item)
        yield self._event(3, "response.content_part.added", **self._at(job), part=self._part(""))

    def word(self, job: Job, number: int) -> bytes:
        """See `Shape.word`."""
        text = word(number)
        return self._event(4 + number, "response.output_text.delta", **self._at(job), delta=text, logprobs=[])

    def closing(self, job: Job) -> Iterator[bytes]:
        """See `Shape.closing`."""
        after, whole = 4 + job.total - job.hidden, self.whole(job)
        text = job.text(0)
        yield self._event(after, "response.output_text.done", **self._at(job), text=text, logprobs=[])
        yield self._event(after + 1, "response.content_part.done", **self._at(job), part=self._part(text))
        yield self._event(after + 2, "response.output_item.done", output_index=0, item=whole["output"][0])
        yield self._event(after + 3, f"response.{whole['status']}", response=whole)

    def _response(self, job: Job, status: str, output: list[Any], usage: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "id": f"resp_{job.id}",
            "object": "response",
            "created_at": CREATED,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": job.content.get("instructions"),
            "max_output_tokens": job.limit,
            "model": job.told,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "metadata": {},
            "usage": usage,
        }

    @staticmethod
    def _usage(job: Job) -> dict[str, Any]:
        return {
            "input_tokens": job.prompt.input,
            "input_tokens_details": {"cached_tokens": job.prompt.cached},
            "output_tokens": job.total,
            "output_tokens_details": {"reasoning_tokens": job.hidden},
            "total_tokens": job.prompt.input + job.total,
        }

    @staticmethod
    def _message(job: Job, status: str, parts: list[Any]) -> dict[str, Any]:
        return {"id": f"msg_{job.id}", "type": "message", "status": status, "role": "assistant", "content": parts}

    @staticmethod
    def _part(text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    @staticmethod
    def _at(job: Job) -> dict[str, Any]:
        return {"item_id": f"msg_{job.id}", "output_index": 0, "content_index": 0}

    @staticmethod
    def _event(number: int, kind: str, **more: Any) -> bytes:
        return named({"type": kind, "sequence_number": number, **more})


class Messages:
    """Anthropic's messages. What lies before the last `cache_control` is written into the cache, and then read."""

    id_field = "request-id"

    def read(self, job_id: str, _path: str, content: dict[str, Any], wishes: Wishes, memory: Memory) -> Job:
        """See `Shape.read`."""
        messages, system = content.get("messages"), content.get("system", "")
        if not isinstance(messages, list):
            raise Unreadable("messages: Field required")
        limit = limit_of(content, "max_tokens")
        if limit is None:
            raise Unreadable("max_tokens: Field required")
        blocks = [*content.get("tools", ()), *(system if isinstance(system, list) else [system])]
        for message in messages:
            said = message["content"]
            blocks += said if isinstance(said, list) else [said]
        user = (content.get("metadata") or {}).get("user_id") or wishes.user
        return Job(
            job_id,
            content,
            model_of(content),
            wishes,
            self._tokens(blocks, wishes, memory),
            limit,
            stream=bool(content.get("stream")),
            usage=wishes.usage,
            user=user,
        )

    def whole(self, job: Job) -> dict[str, Any]:
        """See `Shape.whole`."""
        usage = {"usage": {**self._input(job), "output_tokens": job.total}} if job.usage else {}
        return {**self._message(job), "content": [{"type": "text", "text": job.text(0)}], **self._stop(job), **usage}

    def opening(self, job: Job) -> Iterator[bytes]:
        """See `Shape.opening`."""
        usage = {"usage": {**self._input(job), "output_tokens": 1}} if job.usage else {}
        begun = {**self._message(job), "content": [], "stop_reason": None, "stop_sequence": None, **usage}
        yield named({"type": "message_start", "message": begun})
        yield named({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
        yield named({"type": "ping"})

    def word(self, _job: Job, number: int) -> bytes:
        """See `Shape.word`."""
        delta = {"type": "text_delta", "text": word(number)}
        return named({"type": "content_block_delta", "index": 0, "delta": delta})

    def closing(self, job: Job) -> Iterator[bytes]:
        """See `Shape.closing`."""
        yield named({"type": "content_block_stop", "index": 0})
        usage = {"usage": {"output_tokens": job.total}} if job.usage else {}
        yield named({"type": "message_delta", "delta": self._stop(job), **usage})
        yield named({"type": "message_stop"})

    def error(self, status: int, message: str) -> dict[str, Any]:
        """See `Shape.error`."""
        kinds = {400: "invalid_request_error", 404: "not_found_error", 429: "rate_limit_error", 529: "overloaded_error"}
        return {"type": "error", "error": {"type": kinds.get(status, "api_error"), "message": message}}

    @staticmethod
    def _tokens(blocks: list[Any], wishes: Wishes, memory: Memory) -> Tokens:
        total = count_messages(blocks, wishes.seed, dense=wishes.dense)
        marked = [index for index, block in enumerate(blocks) if isinstance(block, dict) and block.get("cache_control")]
        if not marked:
            return Tokens(total)
        prefix = blocks[: marked[-1] + 1]
        size = count_messages(prefix, wishes.seed, dense=wishes.dense)
        if memory.has(prefix):
            return Tokens(total, size)
        for_an_hour = prefix[-1]["cache_control"].get("ttl") == "1h"
        return Tokens(total, written=size, written_1h=size if for_an_hour else 0)

    @staticmethod
    def _input(job: Job) -> dict[str, Any]:
        prompt = job.prompt
        made = {
            "ephemeral_5m_input_tokens": prompt.written - prompt.written_1h,
            "ephemeral_1h_input_tokens": prompt.written_1h,
        }
        return {
            "input_tokens": prompt.input - prompt.cached - prompt.written,
            "cache_creation_input_tokens": prompt.written,
            "cache_read_input_tokens": prompt.cached,
            "cache_creation": made,
            "service_tier": "standard",
        }

    @staticmethod
    def _message(job: Job) -> dict[str, Any]:
        return {"id": f"msg_{job.id}", "type": "message", "role": "assistant", "model": job.told}

    @staticmethod
    def _stop(job: Job) -> dict[str, Any]:
        return {"stop_reason": "max_tokens" if job.is_short else "end_turn", "stop_sequence": None}


class Gemini:
    """Gemini's generateContent; a stream is events with `alt=sse`, a JSON array without. What it thought is hidden."""

    id_field = ""

    def read(self, job_id: str, path: str, content: dict[str, Any], wishes: Wishes, memory: Memory) -> Job:
        """See `Shape.read`."""
        contents = content.get("contents")
        if not isinstance(contents, list):
            raise Unreadable("contents is not specified")
        options = content.get("generationConfig") or {}
        asked = [content.get("systemInstruction"), *contents, content.get("tools")]
        name, _, way = path.partition("?")[0].rpartition("/")[2].partition(":")
        streams = way == "streamGenerateContent"
        return Job(
            job_id,
            content,
            name,
            wishes,
            cached(asked, count_messages(asked, wishes.seed, dense=wishes.dense), memory),
            limit_of(options, "maxOutputTokens"),
            options.get("candidateCount") or 1,
            streams,
            wishes.usage,
            (content.get("labels") or {}).get("user") or wishes.user,
            as_array=streams and "alt=sse" not in path.partition("?")[2].split("&"),
        )

    def whole(self, job: Job) -> dict[str, Any]:
        """See `Shape.whole`."""
        candidates = [self._candidate(job, index, job.text(index), ends=True) for index in range(job.choices)]
        return self._answer(job, candidates, job.total)

    def opening(self, job: Job) -> Iterator[bytes]:
        """See `Shape.opening`."""
        if job.as_array:
            yield b"["

    def word(self, job: Job, number: int) -> bytes:
        """See `Shape.word`."""
        candidate = self._candidate(job, number % job.choices, word(number // job.choices), ends=False)
        return self._event(job, self._answer(job, [candidate], job.hidden + number + 1)) + (b",\r\n" * job.as_array)

    def closing(self, job: Job) -> Iterator[bytes]:
        """See `Shape.closing`."""
        candidates = [self._candidate(job, index, "", ends=True) for index in range(job.choices)]
        yield self._event(job, self._answer(job, candidates, job.total)) + b"]" * job.as_array

    def error(self, status: int, message: str) -> dict[str, Any]:
        """See `Shape.error`."""
        names = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}
        return {"error": {"code": status, "message": message, "status": names.get(status, "INTERNAL")}}

    @staticmethod
    def _candidate(job: Job, index: int, text: str, *, ends: bool) -> dict[str, Any]:
        reason = {"finishReason": "MAX_TOKENS" if job.is_short else "STOP"} if ends else {}
        return {"content": {"parts": [{"text": text}], "role": "model"}, "index": index, **reason}

    @staticmethod
    def _answer(job: Job, candidates: list[Any], made: int) -> dict[str, Any]:
        answer = {"candidates": candidates, "modelVersion": job.told, "responseId": job.id}
        if not job.usage:
            return answer
        shown = made - job.hidden
        usage = {"promptTokenCount": job.prompt.input, "candidatesTokenCount": shown}
        usage |= {"thoughtsTokenCount": job.hidden} if job.hidden else {}
        usage |= {"cachedContentTokenCount": job.prompt.cached} if job.prompt.cached else {}
        return {**answer, "usageMetadata": {**usage, "totalTokenCount": job.prompt.input + made}}

    @staticmethod
    def _event(job: Job, answer: dict[str, Any]) -> bytes:
        # Its lines end with CRLF, unlike the others'.
        return json.dumps(answer).encode() if job.as_array else data(answer).replace(b"\n", b"\r\n")


_SHAPES: Final[tuple[tuple[str, Shape], ...]] = (
    ("/chat/completions", Chat()),
    ("/completions", Completions()),
    ("/responses", Responses()),
    ("/embeddings", Embeddings()),
    ("/messages", Messages()),
    (":generateContent", Gemini()),
    (":streamGenerateContent", Gemini()),
)


def shape_of(path: str) -> Shape | None:
    """Return the shape that is spoken at a path, its query left out; None: nobody does."""
    return next((shape for end, shape in _SHAPES if path.endswith(end)), None)
