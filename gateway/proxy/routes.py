"""Whose request it is to answer: finds the target of a request-target."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.proxy.context import Destination


class Routes:
    """The targets of one configuration; never changed, only replaced as a whole.

    Args:
        targets: The environment's first. No two have the same prefix.
    """

    __slots__ = ("_by_depth", "_by_prefix", "_first", "_first_prefix", "_first_prefixes", "_pattern")

    def __init__(self, targets: Sequence[Destination] = ()) -> None:
        self._by_prefix = {target.route.prefix: target for target in targets}
        # The longest first: that one wins.
        prefixes = sorted(self._by_prefix, key=len, reverse=True)
        self._pattern = re.compile(b"(" + (b"|".join(map(re.escape, prefixes)) or b"(?!)") + b")(?:[/?]|\\Z)")
        # A URL may lie under the base paths of several; there, too, the longest wins.
        self._by_depth = sorted(targets, key=lambda target: target.route.base_size, reverse=True)
        # Where nothing lies below the first prefix, it costs no look-up.
        self._first: Destination | None = None
        self._first_prefix: bytes | None = None
        self._first_prefixes: tuple[bytes, ...] = ()
        if targets:
            prefix = targets[0].route.prefix
            begins = (prefix + b"/", prefix + b"?")
            if not any(other.startswith(begins) for other in prefixes):
                self._first, self._first_prefix, self._first_prefixes = targets[0], prefix, begins

    def find(self, target: bytes) -> Destination | None:
        """Return where a request goes; None if it is for no target."""
        if target.startswith(self._first_prefixes) or target == self._first_prefix:
            return self._first
        if target.startswith(b"/"):
            match = self._pattern.match(target)
            return None if match is None else self._by_prefix[match[1]]
        return next((one for one in self._by_depth if one.route.owns(target)), None)
