"""Files whose change is a reason to read the configuration again: looked at by the clock, so nothing else is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.stamps import stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from gateway.proxy.clock import Clock
    from gateway.stamps import Stamp

POLL_S: Final = 1.0


class FileWatch:
    """Looks at files once a second. The clock's `Watched`.

    A change is reported when nothing more has changed until the next look: an editor may be in the middle of it.

    Args:
        known: The files, which need not exist, as they were before they were read. May be replaced.
        clock: The process's coarse time.
        on_change: Called after a change.
    """

    def __init__(self, known: Mapping[Path, Stamp | None], clock: Clock, on_change: Callable[[], None]) -> None:
        self._clock = clock
        self._on_change = on_change
        self.deadline_s = 0.0
        self.watch(known)

    def watch(self, known: Mapping[Path, Stamp | None]) -> None:
        """Look at these from now on."""
        self._known = self._seen = dict(known)

    def look(self) -> None:
        """Take all files for known as they are now: they are about to be read, whatever comes of it."""
        self._known = self._seen = self._stamps()

    def on_deadline(self) -> None:
        """See `clock.Watched`."""
        self.deadline_s = self._clock.now_s + POLL_S
        before, self._seen = self._seen, self._stamps()
        if self._seen == before and self._seen != self._known:
            self._known = self._seen
            self._on_change()

    def _stamps(self) -> dict[Path, Stamp | None]:
        return {path: stamp(path) for path in self._known}
