"""Files whose change is a reason to read the configuration again: looked at by the clock, so nothing else is needed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gateway.proxy.clock import Clock

POLL_S: Final = 1.0

_Stamp = tuple[int, int, int] | None


class FileWatch:
    """Looks at files once a second. The clock's `Watched`.

    A change is told of when it has stood still for one look: an editor may be in the middle of it.

    Args:
        paths: The files; they need not exist. May be replaced.
        clock: The process's coarse time.
        on_change: Called after a change.
    """

    def __init__(self, paths: Sequence[Path], clock: Clock, on_change: Callable[[], None]) -> None:
        self._clock = clock
        self._on_change = on_change
        self.deadline_s = 0.0
        self.watch(paths)

    def watch(self, paths: Sequence[Path]) -> None:
        """Look at these from now on; as they are now, they are known."""
        self._paths = tuple(paths)
        self._known = self._seen = self._stamps()

    def on_deadline(self) -> None:
        """See `clock.Watched`."""
        self.deadline_s = self._clock.now_s + POLL_S
        before, self._seen = self._seen, self._stamps()
        if self._seen == before and self._seen != self._known:
            self._known = self._seen
            self._on_change()

    def _stamps(self) -> list[_Stamp]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> _Stamp:
    try:
        status = os.stat(path)  # noqa: PTH116 - links are followed: what is mounted as a secret is changed by a link
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
