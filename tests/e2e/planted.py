"""The program with the defect that `PLANTED` names, for tests of what has to find it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from gateway.cli import main
from gateway.http1.chunked import ChunkedBody
from gateway.http1.message import IDEMPOTENT
from gateway.proxy import exchange, upstream
from gateway.stores.leases import Leases

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY: Final = 20


def leak_a_descriptor() -> None:
    """One more with each connection to the upstream that ends."""
    end = upstream.UpstreamConnection.connection_lost

    def connection_lost(self: upstream.UpstreamConnection, exc: Exception | None) -> None:
        os.dup(0)
        end(self, exc)

    replace(upstream.UpstreamConnection, "connection_lost", connection_lost)


def swallow_a_byte() -> None:
    """One of a chunked body, now and then."""
    feed = ChunkedBody.feed
    count = 0

    def swallowing(self: ChunkedBody, data: bytes) -> tuple[bytes, bytes]:
        nonlocal count
        forward, rest = feed(self, data)
        count += 1
        # Not of what looks like framing: an answer that does not end is another defect.
        if count % EVERY == 0 and len(forward) > 1000:
            forward = forward[:500] + forward[501:502] + forward[501:]
        return forward, rest

    replace(ChunkedBody, "feed", swallowing)


def send_twice() -> None:
    """What was not answered, be it idempotent or not."""
    replace(exchange, "IDEMPOTENT", IDEMPOTENT | {b"POST"})


def keep_places() -> None:
    """Those of requests that are over."""
    replace(Leases, "let_go", lambda _self, _lease: None)


def replace(place: Any, name: str, planted: object) -> None:
    setattr(place, name, planted)


DEFECTS: Final[dict[str, Callable[[], None]]] = {
    "leak": leak_a_descriptor,
    "swallow": swallow_a_byte,
    "twice": send_twice,
    "places": keep_places,
}

if __name__ == "__main__":
    DEFECTS[os.environ.pop("PLANTED")]()
    sys.exit(main())
