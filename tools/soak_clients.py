"""The clients of a soak: each sends one request after another, and looks at every byte that it gets.

A request's *outcome* is one word for what became of it: `whole`; `refused` (401, 429), `unavailable` (503) and
`failed` (502, 504), which are errors of the gateway's own; `broken` (reset, or cut short so that it shows); `left` (the
client hung up). Anything else is a *violation*.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from tools.soak_upstream import BAD_FRAMINGS, Wish, chunked, content, read_chunked

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

ANSWER_TIMEOUT_S: Final = 60.0
"""For a whole answer, fast or slow: far longer than the gateway's own timeouts and any fault."""
KEPT_VIOLATIONS: Final = 20
SLOW_PIECE_BYTES, SLOW_PAUSE_S = 16_384, 0.01
BAD_TOKEN: Final = "no-token-of-this-gateway"  # noqa: S105 (that is the point)

_REFUSALS: Final = {401, 429}
_FAILURES: Final = {502, 503, 504}

_FRAMINGS: Final[tuple[Literal["length"], Literal["chunked"]]] = ("length", "chunked")
Outcome = Literal["whole", "refused", "unavailable", "failed", "broken", "left"]
NOT_SENT: Final = {"refused", "unavailable"}
"""Outcomes of which the upstream may have heard nothing."""


@dataclass
class Tally:
    """What became of all requests, and what should not have."""

    outcomes: dict[str, tuple[str, Outcome]] = field(default_factory=dict)
    """By name: the kind of the request, and its outcome."""
    kinds: collections.Counter[tuple[str, Outcome]] = field(default_factory=collections.Counter)
    codes: collections.Counter[str] = field(default_factory=collections.Counter)
    """Of the gateway's own answers."""
    never_whole: set[str] = field(default_factory=set)
    """Requests whose last byte was never sent."""
    unexpected: collections.Counter[str] = field(default_factory=collections.Counter)
    examples: list[str] = field(default_factory=list)
    calm: bool = False
    """Nothing is out, so nothing may fail or break."""

    def end(self, kind: str, name: str, outcome: Outcome, *, calm: bool) -> None:
        """Note what became of a request that was begun in a calm, or not."""
        self.outcomes[name] = kind, outcome
        self.kinds[kind, outcome] += 1
        if calm and outcome in {"unavailable", "failed", "broken"}:
            self.violation(f"{outcome} though nothing is out", f"{kind} {name}")

    def violation(self, what: str, detail: str = "") -> None:
        """Note something that may not be.

        Args:
            what: Few words, the same ones each time.
            detail: Of this one.
        """
        self.unexpected[what] += 1
        if len(self.examples) < KEPT_VIOLATIONS:
            self.examples.append(f"{what}: {detail}" if detail else what)

    def by_outcome(self) -> collections.Counter[str]:
        """Count the requests by outcome."""
        counts: collections.Counter[str] = collections.Counter()
        for (_, outcome), count in self.kinds.items():
            counts[outcome] += count
        return counts


@dataclass(frozen=True)
class Plan:
    """A request, and how its client behaves.

    Args:
        kind: For the summary.
        wish: What it asks for.
        method: Its method.
        chunked: How its content is framed.
        token: Which token it has.
        slow: The client reads slower than the upstream sends.
        leave: Where the client hangs up; None: nowhere.
    """

    kind: str
    wish: Wish
    method: str = "GET"
    chunked: bool = False
    token: Literal["free", "tight", "bad"] = "free"  # noqa: S105 (a name)
    slow: bool = False
    leave: Literal["head", "upload", "wait", "answer"] | None = None


def plan(name: str, chance: random.Random) -> Plan:
    """Choose what a request shall be."""
    size = chance.choice((1, 5_000, 70_000, 400_000, 2_000_000))
    framing = _FRAMINGS[chance.random() < 0.5]
    small = Wish(name, size=chance.randrange(2000), pause_ms=chance.choice((0, 0, 20)))
    makers: dict[str, tuple[int, Callable[[], Plan]]] = {
        "small GET": (30, lambda: Plan("small GET", small)),
        "small POST": (25, lambda: Plan("small POST", Wish(name, upload=300, size=900), "POST")),
        "download": (10, lambda: Plan("download", Wish(name, size=size, framing=framing))),
        "upload": (
            10,
            lambda: Plan("upload", Wish(name, upload=size), "POST", chunked=framing == "chunked"),
        ),
        "slow reader": (4, lambda: Plan("slow reader", Wish(name, size=size, framing=framing), slow=True)),
        "events": (8, lambda: Plan("events", Wish(name, size=chance.randrange(40), framing="events", pause_ms=25))),
        "API error": (4, lambda: Plan("API error", Wish(name, status=chance.choice((400, 429, 500, 503))), "POST")),
        "cut by the API": (2, lambda: Plan("cut by the API", Wish(name, size=50_000, framing="cut"))),
        "dropped by the API": (
            3,
            lambda: Plan("dropped by the API", Wish(name, framing="dropped"), chance.choice(("GET", "POST"))),
        ),
        "bad token": (6, lambda: Plan("bad token", Wish(name, upload=chance.choice((0, 300))), "POST", token="bad")),  # noqa: S106
        "tight token": (8, lambda: Plan("tight token", Wish(name, upload=300), "POST", token="tight")),  # noqa: S106
        "hang-up": (8, lambda: _hang_up(name, chance)),
    }
    (kind,) = chance.choices(list(makers), [weight for weight, _ in makers.values()])
    return makers[kind][1]()


def _hang_up(name: str, chance: random.Random) -> Plan:
    match chance.choice(("head", "upload", "wait", "answer")):
        case "head":
            return Plan("hang-up", Wish(name), "POST", leave="head")
        case "upload":
            return Plan("hang-up", Wish(name, upload=100_000), "POST", chunked=chance.random() < 0.5, leave="upload")
        case "wait":
            return Plan("hang-up", Wish(name, pause_ms=300), "POST", leave="wait")
        case _:
            wish = Wish(name, size=chance.choice((50, 1_000_000)), framing=chance.choice(("chunked", "events")))
            return Plan("hang-up", wish, leave="answer")


class Client:
    """One client on one gateway; its connection is made anew where the one before has ended.

    Args:
        port: The gateway's.
        tokens: By the names that plans have.
        tally: What it notes in.
        chance: Decides all that it does.
        label: What its requests' names begin with.
    """

    def __init__(self, port: int, tokens: dict[str, str], tally: Tally, chance: random.Random, label: str) -> None:
        self._port = port
        self._tokens = tokens
        self._tally = tally
        self._chance = chance
        self._label = label
        self._count = 0
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._buffer_bytes = 1 << 20

    async def run(self, is_over: asyncio.Event, pause_s: float) -> None:
        """Send requests until it is over.

        Args:
            is_over: Looked at between two requests.
            pause_s: How long it waits between two, on the average.
        """
        outcome: Outcome = "whole"
        while not is_over.is_set():
            # One who is turned away comes back later: else there would be little else in an outage.
            waits_s = self._chance.expovariate(1 / pause_s) * (5 if outcome in {"unavailable", "broken"} else 1)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(is_over.wait(), waits_s)
            self._count += 1
            outcome = await self._once(plan(f"{self._label}-{self._count}", self._chance))
        self.close()

    def close(self) -> None:
        """End the connection."""
        if self._writer is not None:
            self._writer.transport.abort() if self._chance.random() < 0.5 else self._writer.close()
        self._reader = self._writer = None

    async def _once(self, wanted: Plan) -> Outcome:
        outcome: Outcome
        calm = self._tally.calm and wanted.wish.framing not in BAD_FRAMINGS
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                outcome = await self._ask(wanted)
        except TimeoutError:
            self._tally.violation("no answer", f"{wanted.kind} {wanted.wish.name}")
            outcome, calm = "broken", False
        except (OSError, EOFError):
            outcome = "left" if wanted.leave else "broken"
        except ValueError as error:
            self._tally.violation("a wrong answer", f"{wanted.kind} {wanted.wish.name}: {error}")
            outcome, calm = "broken", False
        if outcome in {"broken", "left"} or wanted.slow or self._chance.random() < 0.05:
            self.close()
        self._tally.end(wanted.kind, wanted.wish.name, outcome, calm=calm)
        return outcome

    async def _ask(self, wanted: Plan) -> Outcome:
        if self._writer is not None and self._writer.is_closing():
            self.close()
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 16)
        reader, writer = self._reader, self._writer
        if wanted.leave in {"head", "upload"}:
            self._tally.never_whole.add(wanted.wish.name)
        sent = b"".join(_message(wanted, self._tokens[wanted.token], self._chance))
        if wanted.leave == "head":
            await _send(writer, sent[: self._chance.randrange(sent.index(b"\r\n\r\n"))])
            return "left"
        if wanted.leave == "upload":
            await _send(writer, sent[: self._chance.randrange(sent.index(b"\r\n\r\n") + 4, len(sent))])
            await asyncio.sleep(self._chance.choice((0, 0.02)))
            return "left"
        sending = asyncio.ensure_future(_send(writer, sent))
        try:
            if wanted.leave == "wait":
                await sending
                await asyncio.sleep(self._chance.choice((0, 0.02, 0.1)))
                return "left"
            outcome = await self._read(wanted, reader)
        finally:
            if not sending.done():
                sending.cancel()
                self.close()
            # What the answer did not say already is of no account.
            await asyncio.gather(sending, return_exceptions=True)
        return outcome

    async def _read(self, wanted: Plan, reader: asyncio.StreamReader) -> Outcome:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ")[1])
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        if wanted.leave == "answer":
            await reader.read(self._chance.choice((1, 1000, 100_000)))
            return "left"
        if "transfer-encoding" in fields:
            body = await read_chunked(reader)
        else:
            body = await _read_length(reader, int(fields["content-length"]), slow=wanted.slow)
        if fields.get("connection") == "close":
            self.close()
        if code := fields.get("x-gateway-error"):
            return self._own(wanted, status, code, body)
        if wanted.token == "bad":  # noqa: S105 (a name)
            raise ValueError(f"{status} for a token that is none")
        if wanted.wish.framing in BAD_FRAMINGS:
            raise ValueError(f"a whole answer that the API never gave ({wanted.wish.framing})")
        if status != wanted.wish.status:
            raise ValueError(f"{status} in place of {wanted.wish.status}")
        if body != wanted.wish.answer():
            raise ValueError(f"{len(body)} bytes that are not the {len(wanted.wish.answer())} of this request")
        return "whole"

    def _own(self, wanted: Plan, status: int, code: str, body: bytes) -> Outcome:
        """Judge an answer of the gateway's own."""
        self._tally.codes[f"{status} {code}"] += 1
        if json.loads(body)["status"] != status:
            raise ValueError(f"{status}, but its body says something else")
        if (status == 401) != (wanted.token == "bad") or status not in _REFUSALS | _FAILURES:  # noqa: S105 (a name)
            raise ValueError(f"{status} {code}")
        if status in _REFUSALS:
            return "refused"
        return "unavailable" if status == 503 else "failed"


def _message(wanted: Plan, token: str, chance: random.Random) -> Sequence[bytes]:
    data = content(wanted.wish.name, wanted.wish.upload)
    head = f"{wanted.method} /api{wanted.wish.target} HTTP/1.1\r\nHost: soak\r\nAuthorization: Bearer {token}\r\n"
    if wanted.chunked:
        return (f"{head}Transfer-Encoding: chunked\r\n\r\n".encode(), *chunked(data, chance))
    length = f"Content-Length: {len(data)}\r\n" if wanted.method == "POST" else ""
    return (f"{head}{length}\r\n".encode(), data)


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    for at in range(0, len(data), 1 << 16):
        if writer.is_closing():  # uvloop raises where asyncio says nothing
            raise ConnectionResetError
        writer.write(data[at : at + (1 << 16)])
        await writer.drain()


async def _read_length(reader: asyncio.StreamReader, length: int, *, slow: bool) -> bytes:
    if not slow:
        return await reader.readexactly(length)
    pieces = []
    while length:
        piece = await reader.read(min(length, SLOW_PIECE_BYTES))
        if not piece:
            raise EOFError
        pieces.append(piece)
        length -= len(piece)
        await asyncio.sleep(SLOW_PAUSE_S)
    return b"".join(pieces)
