"""Finds the target that a request is for, by its request-target."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.proxy.context import Destination

MAX_KNOWN: Final = 1024
MAX_KNOWN_BYTES: Final = 256
"""Of a request-target, to be remembered; with `MAX_KNOWN`, 0.4 MB at most."""


class Routes:
    """The targets of one configuration; never changed, only replaced as a whole.

    Args:
        targets: The environment's first. No two have the same prefix.

    Attributes:
        known: What `find` has found, by the request-target: to look here first takes a call less.
    """

    __slots__ = ("_by_depth", "_by_prefix", "_pattern", "known")

    def __init__(self, targets: Sequence[Destination] = ()) -> None:
        self._by_prefix = {target.route.prefix: target for target in targets}
        # The longest first: that one wins.
        prefixes = sorted(self._by_prefix, key=len, reverse=True)
        self._pattern = re.compile(b"(" + (b"|".join(map(re.escape, prefixes)) or b"(?!)") + b")(?:[/?]|\\Z)")
        # A URL may lie under the base paths of several; there, too, the longest wins.
        self._by_depth = sorted(targets, key=lambda target: target.route.base_size, reverse=True)
        self.known: dict[bytes, Destination] = {}

    def find(self, target: bytes) -> Destination | None:
        """Return where a request goes; None if it is for no target."""
        to = self._look_for(target)
        if to is not None and len(target) <= MAX_KNOWN_BYTES:
            if len(self.known) >= MAX_KNOWN:
                self.known.clear()
            self.known[target] = to
        return to

    def _look_for(self, target: bytes) -> Destination | None:
        if target.startswith(b"/"):
            match = self._pattern.match(target)
            return None if match is None else self._by_prefix[match[1]]
        return next((one for one in self._by_depth if one.route.owns(target)), None)
