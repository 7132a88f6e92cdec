"""Who takes part in a world (machine.py), what they have said and heard, and how they spell it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kit.playbook import Client, Upstream
    from tests.kit.wire import Message

PIECE_BYTES: Final = 32 * 1024
"""As much as a peer sends at once."""


@dataclass(eq=False)
class Asked:
    """A request as a client has spelled it.

    Attributes:
        minor: Of HTTP/1.x.
        refused: The status that the gateway must answer with; 0: the upstream gets it.
        begins: The upstream may see it begin: it is refused because of its body.
        local: The gateway answers it itself.
        head_end, end: Where in the client's stream its head, and all of it, ends.
    """

    number: int
    method: bytes
    minor: int = 1
    content: bytes = b""
    refused: int = 0
    begins: bool = True
    local: bool = False
    head_end: int = 0
    end: int = 0
    seen: list[Seen] = field(default_factory=list)


@dataclass(eq=False)
class Given:
    """An answer as an upstream has spelled it.

    Attributes:
        keeps: The connection may be used again.
        broken: It can never be whole.
        until_close: It ends where its connection does.
        sent: All of it has left the upstream, the end of the connection too where that ends it.
    """

    number: int
    asked: Asked
    status: int
    content: bytes
    keeps: bool
    broken: bool
    until_close: bool = False
    sent: bool = False


@dataclass(eq=False)
class Seen:
    """A request as it came to an upstream."""

    asked: Asked
    message: Message
    at: ScriptedUpstream
    first: bool
    whole: bool = False
    given: Given | None = None
    answer_bytes: int = 0


class Glued(bytes):
    """What comes in one piece, for nobody could tell what the rest of it belongs to."""

    __slots__ = ()


class ScriptedClient:
    """A client, and what it has said and heard."""

    def __init__(self, peer: Client) -> None:
        self.peer = peer
        self.out = b""
        self.said_bytes = 0
        self.asked: list[Asked] = []
        self.answers: list[Message] = []
        self.unread = b""
        self.answer: Message | None = None
        self.ended = self.reset = False

    @property
    def may_send(self) -> bool:
        return not (self.ended or self.reset or self.peer.transport.lost)

    @property
    def has_heard_all(self) -> bool:
        """Whether the gateway has ended its side in good order."""
        transport = self.peer.transport
        return not self.reset and (transport.eof_written or (transport.lost and not transport.aborted))

    @property
    def next_asked(self) -> Asked | None:
        return self.asked[len(self.answers)] if len(self.answers) < len(self.asked) else None


class ScriptedUpstream:
    """An upstream's end of one connection, and what it has said and heard."""

    def __init__(self, peer: Upstream) -> None:
        self.peer = peer
        self.out: list[bytes | Given | None] = []  # None is its end; an answer stands where it ends
        self.requests: list[Seen] = []
        self.unread = b""
        self.dirty = self.ended = False
        self.reads = True
        self.may_miss = False  # it has not always read

    @property
    def may_send(self) -> bool:
        return not (self.ended or self.peer.transport.lost)

    @property
    def is_heard(self) -> bool:
        """Whether what it sends comes to the gateway at once."""
        return self.peer.transport.is_reading() and not self.peer.transport.untaken_bytes

    @property
    def asks(self) -> Seen | None:
        """The request that waits for an answer."""
        return self.requests[-1] if self.requests and self.requests[-1].given is None else None


def filled(marker: bytes, size: int) -> bytes:
    return (marker * (size // len(marker) + 1))[:size]


def chunked_body(content: bytes, chunk_bytes: int) -> bytes:
    """Spell a chunked body, with an extension here and there and a trailer field."""
    chunks = []
    chunk_bytes = max(chunk_bytes, len(content) // 100)  # a reader of many would take long
    for at in range(0, len(content), chunk_bytes):
        chunk = content[at : at + chunk_bytes]
        chunks.append(b"%x%b\r\n%b\r\n" % (len(chunk), b";a=b" if at % 2 else b"", chunk))
    return b"".join((*chunks, b"0\r\nX-Sum: 1\r\n\r\n"))


def pieces(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), PIECE_BYTES):
        yield data[at : at + PIECE_BYTES]
