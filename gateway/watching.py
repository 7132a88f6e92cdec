"""Files whose change is a reason to read the configuration again: looked at by the clock, so nothing else is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.stamps import stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from gateway.proxy.clock import Clock
    from gateway.stamps import Stamp

POLL_S: Final = 1.0


class FileWatch:
    """Looks at files once a second. The clock's `Watched`.

    A change is told of when it has stood still for one look: an editor may be in the middle of it.

    Args:
        paths: The files; they need not exist. May be replaced.
        clock: The process's coarse time.
        on_change: Called after a change.
        known: The stamps of files before they were read; the others are known as they are now.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        clock: Clock,
        on_change: Callable[[], None],
        known: Mapping[Path, Stamp | None] | None = None,
    ) -> None:
        self._clock = clock
        self._on_change = on_change
        self.deadline_s = 0.0
        self._begin(paths, known or {})

    def watch(self, paths: Sequence[Path]) -> None:
        """Look at these from now on.

        Those looked at before are known as they were last seen, for they may have changed while they were read.
        """
        self._begin(paths, dict(zip(self._paths, self._seen, strict=True)))

    def _begin(self, paths: Sequence[Path], known: Mapping[Path, Stamp | None]) -> None:
        self._paths = tuple(paths)
        self._known = self._seen = [known[path] if path in known else stamp(path) for path in self._paths]

    def on_deadline(self) -> None:
        """See `clock.Watched`."""
        self.deadline_s = self._clock.now_s + POLL_S
        before, self._seen = self._seen, self._stamps()
        if self._seen == before and self._seen != self._known:
            self._known = self._seen
            self._on_change()

    def _stamps(self) -> list[Stamp | None]:
        return [stamp(path) for path in self._paths]
