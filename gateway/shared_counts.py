"""The counts of all workers of one machine, each in a file of its own, so that any of them can tell all.

A worker has a place: a number, whose file is its own as long as it holds the lock beside it. One that starts takes the
lowest place that is free, and goes on from the counts that it finds there: what a dead worker counted stays counted.
Without a directory there is but one worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from typing import TYPE_CHECKING, Any, Final

from gateway.counts import BUCKETS

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.metrics import Metrics
    from gateway.tally import TargetUsage

Told = dict[str, Any]
"""What a target's counts are in a file: numbers, lists and objects of numbers, all of which can be added up."""

MAX_PLACES: Final = 4096

_log = logging.getLogger("gateway")


class SharedCounts:
    """What this process has counted, and what the other workers have.

    Args:
        metrics: This process's.
        directory: Where all workers have their files; None: there are no others.
    """

    def __init__(self, metrics: Metrics, directory: Path | None = None) -> None:
        self._metrics = metrics
        self._directory = directory
        self._lock: int | None = None
        self._place = 0
        self._before: dict[str, Told] = {}
        self._fails = False

    def open(self) -> None:
        """Take a place."""
        if self._directory is None:
            return
        try:
            for place in range(MAX_PLACES):
                lock = os.open(self._directory / f"worker-{place}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(lock)
                    continue
                self._lock, self._place = lock, place
                break
        except OSError as error:
            _log.warning("/metrics has the counts of this process alone: %s", error)
        else:
            self._before = _read(self._file(self._place), is_dead=True)
            self.write()

    def write(self) -> None:
        """Let the other workers know."""
        if self._lock is None:
            return
        file = self._file(self._place)
        new = file.with_suffix(".new")
        try:
            new.write_text(json.dumps(self._own()), encoding="utf-8")
            new.replace(file)
        except OSError as error:
            if not self._fails:
                _log.warning("the other workers do not know this one's counts: %s", error)
            self._fails = True
        else:
            self._fails = False

    def all(self) -> dict[str, Told]:
        """Return the counts of all workers, by target; what was for none of them is under ""."""
        self.write()
        told = self._own()
        if self._lock is not None and self._directory is not None:
            own = self._file(self._place)
            for file in sorted(self._directory.glob("worker-*.json")):
                if file != own:
                    told = _sum(told, _read(file, is_dead=_is_free(file.with_suffix(".lock"))))
        return told

    def close(self) -> None:
        """Leave the place, and the counts in it."""
        self.write()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _file(self, place: int) -> Path:
        assert self._directory is not None  # noqa: S101 - nobody has a place without it
        return self._directory / f"worker-{place}.json"

    def _own(self) -> dict[str, Told]:
        metrics = self._metrics
        metrics.gather()
        own = {usage.name: _told(usage) for usage in (metrics.nowhere, *metrics.targets.values())}
        summed: dict[str, Told] = _sum(own, self._before)
        return summed


def _told(usage: TargetUsage) -> Told:
    return {
        "counts": dict(usage.totals),
        "statuses": list(usage.statuses),
        "own": list(usage.own.buckets),
        "own_s": usage.own.sum_s,
        "upstream": list(usage.upstream.buckets),
        "upstream_s": usage.upstream.sum_s,
        "in_flight": usage.in_flight,
    }


def _is_free(file: Path) -> bool:
    """Say whether nobody holds a lock."""
    with contextlib.suppress(OSError):
        lock = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(lock)
        return True
    return False


def _read(file: Path, *, is_dead: bool) -> dict[str, Told]:
    """Read a worker's file; one that another version of the gateway wrote counts for nothing."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        told: dict[str, Told] = json.loads(file.read_text(encoding="utf-8"))
        if all(len(one["own"]) == len(one["upstream"]) == BUCKETS for one in told.values()):
            for one in told.values():
                one["in_flight"] *= not is_dead
            return told
    return {}


def _sum(one: Any, other: Any) -> Any:  # noqa: ANN401 - numbers, or lists and objects of them, of the same shape
    if isinstance(one, dict):
        both = one.keys() & other.keys()
        return one | other | {key: _sum(one[key], other[key]) for key in both}
    if isinstance(one, list):
        return [_sum(*pair) for pair in zip(one, other, strict=True)]
    return one + other
