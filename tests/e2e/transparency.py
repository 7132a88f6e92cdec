"""What the tests of transparency share: whole messages as their bytes came, on both ends, read by a strict reader."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from tests.e2e import KEY, request
from tests.kit.upstream import answering, soon
from tests.kit.wire import Message, read_body, read_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.e2e import Client
    from tests.kit.upstream import Call, Handler, Received, Upstream


ADDED_BELOW = [b"RateLimit-Policy", b"RateLimit", b"Server-Timing"]
"""What a proxied answer has behind the upstream's fields."""

BODILESS = (204, 304)
Fields = list[tuple[bytes, bytes]]


def fields(*lines: str) -> Fields:
    """Spell field lines as a reader gives them."""
    pairs = (line.encode().partition(b":") for line in lines)
    return [(name, value.strip(b" \t")) for name, _, value in pairs]


# --- what came upstream ----------------------------------------------------------------------------------------------


def as_sent(received: Received) -> Message:
    """Read what the upstream was sent."""
    message, rest = read_head(received.head + b"\r\n\r\n")
    assert not rest
    assert read_body(message, received.raw_body, until_close=None) == b""
    return message


def passed_up(received: Received) -> Fields:
    """Return the fields of a request but for the two that the gateway writes: the target's host, and the key."""
    first, *others = as_sent(received).fields
    assert first[0] == b"Host"
    key = (b"Authorization", f"Bearer {KEY}".encode())
    assert others.count(key) == 1
    return [pair for pair in others if pair != key]


# --- what came down --------------------------------------------------------------------------------------------------


async def read_answer(client: Client, method: str = "GET") -> Message:
    """Read one whole answer, with the interim ones before it.

    Raises:
        CUT_SHORT: It ended before its framing said so.
    """
    interims = []
    while (message := await read_answer_head(client)).status < 200:
        interims.append(message)
    message.interims = interims
    if method != "HEAD" and message.status not in BODILESS:
        assert read_body(message, await _raw_body(client, message), until_close=True) == b""
    return message


async def read_answer_head(client: Client) -> Message:
    """Read one head, be it interim or final."""
    message, rest = read_head(await soon(client.reader.readuntil(b"\r\n\r\n")))
    assert not rest
    return message


async def _raw_body(client: Client, message: Message) -> bytes:
    length = message.value(b"content-length")
    if length is not None:
        return await soon(client.reader.readexactly(int(length)))
    if message.value(b"transfer-encoding") is None:
        return await soon(client.reader.read())
    raw = line = await soon(client.reader.readuntil(b"\r\n"))
    while size := int(line, 16):
        raw += await soon(client.reader.readexactly(size + 2))
        line = await soon(client.reader.readuntil(b"\r\n"))
        raw += line
    while line != b"\r\n":
        line = await soon(client.reader.readuntil(b"\r\n"))
        raw += line
    return raw


def passed_down(answer: Message) -> Fields:
    """Return the fields of an answer but for those that the gateway adds: a `Date` of now, and three that come last."""
    count = len(ADDED_BELOW)
    assert answer.names[-count:] == ADDED_BELOW
    return [pair for pair in answer.fields[:-count] if not is_new_date(pair)]


def is_new_date(pair: tuple[bytes, bytes]) -> bool:
    """Whether a field is one that the gateway has added: no test's upstream sends today's date."""
    if pair[0] != b"Date":
        return False
    return abs(parsedate_to_datetime(pair[1].decode()).timestamp() - time.time()) < 86_400


# --- both ------------------------------------------------------------------------------------------------------------


def sending(*pieces: bytes) -> Handler:
    """Read the request and send these bytes, each piece by itself; the connection stays."""

    async def handler(call: Call) -> None:
        await call.content()
        for piece in pieces:
            await call.send(piece)

    return handler


async def is_in_step(upstream: Upstream, client: Client, token: str, connections: int = 1) -> None:
    """Assert that the next request on this connection is read from where it begins, and so is its answer.

    Args:
        upstream: Answers it.
        client: Sends it.
        token: The client's.
        connections: How many the gateway has made to the upstream in the end.
    """
    upstream.paths[b"/v1/canary"] = answering(b"clean", "200 OK", "X-Canary: 1")
    sent_before = len(upstream.requests)
    client.write(request("/api/canary", token, "X-Canary: 1"))
    answer = await read_answer(client)
    assert (answer.status, answer.body, answer.value(b"x-canary")) == (200, b"clean", b"1")
    (received,) = upstream.requests[sent_before:]
    assert received.start_line == b"GET /v1/canary HTTP/1.1"
    assert passed_up(received) == [(b"X-Canary", b"1")]
    assert len(upstream.connections) == connections


def names(pairs: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """Return the names of fields, in lower case."""
    return [name.lower() for name, _ in pairs]
