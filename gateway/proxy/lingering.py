"""A client that was answered before it had sent all: what still comes is dropped, so that its answer is not lost.

To close a connection on bytes that nobody has read would reset it (RFC 9112 §9.6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gateway.proxy.clock import NEVER

LINGER_S: Final = 2.0
MAX_UPLOAD_LINGER_S: Final = 30.0
"""As nginx's `lingering_time`; but whoever has a good token may be on a slow line."""
MAX_LINGER_BYTES: Final = 1024 * 1024
MAX_UPLOAD_LINGER_BYTES: Final = 64 * MAX_LINGER_BYTES
"""Behind a request: many clients read no answer before they have sent all, and fail where they cannot."""


@dataclass(slots=True)
class Lingering:
    """What a client may still send.

    Attributes:
        left_bytes: So much; then its connection ends.
        end_s: Likewise, on the clock's time line; `NEVER` behind a good token. Each byte buys `LINGER_S` until then.
    """

    left_bytes: int
    end_s: float

    def hurry(self, soon_s: float) -> None:
        """The gateway is stopping, which no stranger may hold up."""
        if self.end_s < NEVER:
            self.end_s = min(self.end_s, soon_s + LINGER_S)
