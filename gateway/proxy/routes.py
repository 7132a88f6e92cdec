"""Whose request it is to answer: finds the target of a request-target."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.proxy.context import Destination
    from gateway.proxy.keys import KeyRing


class Routes:
    """The targets of one configuration; never changed, only replaced as a whole.

    Args:
        rings: The keys of each target, the environment's target first. No two have the same prefix.
    """

    __slots__ = ("_by_prefix", "_first", "_first_prefix", "_first_prefixes", "_pattern", "_rings")

    def __init__(self, rings: Sequence[KeyRing] = ()) -> None:
        self._by_prefix = {ring.prefix: ring for ring in rings}
        # The longest first: that one wins.
        prefixes = sorted(self._by_prefix, key=len, reverse=True)
        self._pattern = re.compile(b"(" + (b"|".join(map(re.escape, prefixes)) or b"(?!)") + b")(?:[/?]|\\Z)")
        # A URL may lie under the base paths of several; there, too, the longest wins.
        self._rings = sorted(rings, key=lambda ring: ring.base_size, reverse=True)
        # Where nothing lies below the first prefix, it costs no look-up.
        self._first: Destination | None = None
        self._first_prefix: bytes | None = None
        self._first_prefixes: tuple[bytes, ...] = ()
        if rings:
            begins = (rings[0].prefix + b"/", rings[0].prefix + b"?")
            if not any(prefix.startswith(begins) for prefix in prefixes):
                self._first, self._first_prefix, self._first_prefixes = rings[0].first, rings[0].prefix, begins

    def find(self, target: bytes) -> Destination | None:
        """Return where a request goes; None if it is for no target."""
        if target.startswith(self._first_prefixes) or target == self._first_prefix:
            return self._first
        if target.startswith(b"/"):
            match = self._pattern.match(target)
            return None if match is None else self._by_prefix[match[1]].first
        ring = next((ring for ring in self._rings if ring.owns(target)), None)
        return None if ring is None else ring.first
