"""Clients of the invoice proof: requests of random cost to random gateways, and hang-ups at random moments."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

MODELS: Final = ("small", "large-thinking")
"""The second makes tokens that nobody sees."""
TIMEOUT_S: Final = 40.0
"""For any one answer: longer than any that the provider gives."""
HANG_UPS: Final = 0.12
"""Which share of the clients leave before they have the whole answer."""

_WAITS_S: Final = {"503": 0.1, "429": 0.05}
"""How long a client waits that was refused: without that, most requests would be such."""
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3})")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ERROR: Final = re.compile(rb"\r\nx-gateway-error: *(\S+)", re.IGNORECASE)
_REQUEST: Final = re.compile(rb"\r\nx-gateway-request: *(\S+)", re.IGNORECASE)


class _Left(Exception):
    """The client has hung up, as it meant to."""


@dataclass
class Crowd:
    """Clients that send until there were enough.

    Args:
        ports: Of the gateways that run; changes meanwhile.
        tokens: By the name of their user.
        most: Requests.
        seed: Of what they ask.
        tally: What became of them.
        ids: The gateways' ids of requests, as answers told them.
    """

    ports: list[int]
    tokens: dict[str, str]
    most: int
    seed: int
    tally: Counter[str] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)

    @property
    def sent(self) -> int:
        """How many requests have ended."""
        return self.tally.total()

    async def run(self, clients: int) -> None:
        """Send with so many clients at once."""
        self._left = self.most
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._client(random.Random(self.seed * 1000 + number)))

    async def _client(self, rng: random.Random) -> None:
        connections: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        while self._left > 0:
            self._left -= 1
            port = rng.choice(self.ports)
            outcome = await self._one(rng, port, connections)
            self.tally[outcome] += 1
            await asyncio.sleep(_WAITS_S.get(outcome[:3], 0.0))
            for gone in connections.keys() - set(self.ports):
                connections.pop(gone)[1].transport.abort()
        for _, writer in connections.values():
            writer.close()

    async def _one(
        self,
        rng: random.Random,
        port: int,
        connections: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]],
    ) -> str:
        """Send one request; return what became of it."""
        user = rng.choice(list(self.tokens))
        sent = _request(rng, user, self.tokens[user])
        leaves = rng.choice(("head", "body", "sent", "soon", "answer")) if rng.random() < HANG_UPS else ""
        connection = connections.pop(port, None)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if connection is None:
                    connection = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
                reader, writer = connection
                await _send(rng, writer, sent, leaves)
                outcome, keeps = await self._answer(reader, leaves)
        except _Left:
            outcome, keeps = f"left ({leaves})", False
        except TimeoutError:
            outcome, keeps = "no answer in time", False
        except (OSError, EOFError):
            outcome, keeps = "broken", False
            await asyncio.sleep(0.001)
        if connection is not None:
            if keeps:
                connections[port] = connection
            else:
                connection[1].transport.abort()
        return outcome

    async def _answer(self, reader: asyncio.StreamReader, leaves: str) -> tuple[str, bool]:
        head = await reader.readuntil(b"\r\n\r\n")
        status, length, error = _STATUS.match(head), _LENGTH.search(head), _ERROR.search(head)
        if status is None:
            raise ConnectionError("the answer is no HTTP/1.1")
        if named := _REQUEST.search(head):
            self.ids.append(named[1].decode())
        if leaves == "answer":
            raise _Left
        if length is not None:
            await reader.readexactly(int(length[1]))
        elif b"chunked" in head.lower():
            while size := int(await reader.readuntil(b"\r\n"), 16):
                await reader.readexactly(size + 2)
            await reader.readexactly(2)
        else:
            await reader.read()
            return status[1].decode(), False
        name = f"{status[1].decode()} {error[1].decode() if error else ''}".strip()
        return name, b"connection: close" not in head.lower()


async def _send(rng: random.Random, writer: asyncio.StreamWriter, sent: tuple[bytes, bytes], leaves: str) -> None:
    head, body = sent
    if leaves in {"head", "body"}:
        cut = rng.randrange(len(head)) if leaves == "head" else len(head) + rng.randrange(len(body))
        writer.write((head + body)[:cut])
        await writer.drain()
        await asyncio.sleep(rng.random() * 0.005)
        raise _Left
    writer.write(head + body)
    await writer.drain()
    if leaves in {"sent", "soon"}:
        if leaves == "soon":
            await asyncio.sleep(rng.random() * 0.05)
        raise _Left


def _request(rng: random.Random, user: str, token: str) -> tuple[bytes, bytes]:
    """Return the head and the body of a request of any shape, size and price."""
    streams = rng.random() < 0.4
    prompt = "What does it cost? " * rng.randrange(1, 30)
    is_long, model = rng.random() < 0.05, rng.choice(MODELS)
    limit = None if rng.random() < 0.1 else rng.randrange(1, 600 if is_long else 120)
    content: dict[str, object] = {"model": model, "stream": streams}
    shape = rng.choice(("chat", "chat", "responses", "messages"))
    path = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}[shape]
    messages = [{"role": "user", "content": prompt}]
    if shape == "chat":
        content |= {"messages": messages, "n": rng.choice((1, 1, 1, 2))}
        content |= {"stream_options": {"include_usage": True}} if streams and rng.random() < 0.3 else {}
        content |= {rng.choice(("max_tokens", "max_completion_tokens")): limit} if limit else {}
    elif shape == "responses":
        content |= {"input": prompt} | ({"max_output_tokens": limit} if limit else {})
    else:
        content |= {"messages": messages, "max_tokens": limit or 200}
    body = json.dumps(content).encode()
    fields = [
        f"POST /api{path} HTTP/1.1",
        "Host: lab",
        f"Authorization: Bearer {token}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"X-Mock: {_wishes(rng, user, is_long=is_long, thinks=model == MODELS[1])}",
    ]
    if rng.random() < 0.3:
        fields.append("Accept-Encoding: gzip")
    return "\r\n".join((*fields, "", "")).encode(), body


def _wishes(rng: random.Random, user: str, *, is_long: bool, thinks: bool) -> str:
    wishes = [f"user={user}", f"output={rng.randrange(100, 500) if is_long else rng.randrange(1, 100)}", "gzip=1"]
    # What takes a while is made as quickly as the quickest make it, and goes on for a while when it is left.
    wishes += [f"delay_ms={1 + rng.random():.2f}"] if is_long else []
    for chance, wish in (
        (0.2, f"delay_ms={1 + rng.random():.2f}"),
        (0.1, f"head_ms={rng.random() * 30:.1f}"),
        (0.3 * thinks, f"reasoning={rng.randrange(200)}"),
        (0.1, "dense=1"),
        (0.3, f"lag_ms={rng.random() * 200:.0f}"),
        (0.03, "usage=0"),
        (0.03, f"break_at={rng.randrange(40)}"),
        (0.02, f"fail_at={rng.randrange(40)}"),
        (0.03, f"status={rng.choice((400, 429, 500, 503))}"),
    ):
        if rng.random() < chance:
            wishes.append(wish)
    return ",".join(wishes)
