"""Which workers there are: decided here, done by somebody else."""

from __future__ import annotations

import signal

from gateway.supervisor.plan import START_TIMEOUT_S

TYPE_CHECKING = False  # typing itself would be a megabyte
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    class Actions(Protocol):
        """What a `Supervisor` has done by somebody else."""

        def now_s(self) -> float:
            """Read a clock that never goes back."""

        def spawn(self, index: int) -> int:
            """Start a worker and return its process's number.

            Args:
                index: Which of the workers it is, from 0.

            Raises:
                OSError: It cannot be started.
            """

        def kill(self, pid: int, number: int) -> None:
            """Send a signal to a worker."""

        def stop_listening(self) -> None:
            """Give up the listening sockets."""

        def renew(self) -> None:
            """Execute this program anew as soon as the supervisor `is_settled`."""

        def log(self, level: str, text: str) -> None:
            """Say something to the operator."""


CALM_S = 60.0
"""A worker that lived for so long did not end because of how the program starts: another one starts at once."""
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 5.0
"""A cause that passes, as a Redis that is out, is over soon; and starting takes 0.2 s of a core."""
QUIT_TIMEOUT_S = 5.0
"""Ending at once takes a few turns of the loop; a worker that takes longer hangs."""


STARTING, SERVING, LEAVING = "starting", "serving", "leaving"


class Worker:
    """A worker's process.

    Args:
        index: Which of the workers it is, from 0: it says which of the sockets are its own.
        began_s: When it was started, on the clock of `Actions`.
        stage: `STARTING`, `SERVING` or `LEAVING`.
        fresh: It is one of those that are to replace the others.

    Attributes:
        reload: It is to reload as soon as it serves: before that, SIGHUP would end it.
    """

    __slots__ = ("began_s", "fresh", "index", "reload", "stage")

    def __init__(self, index: int, began_s: float, stage: str, *, fresh: bool) -> None:
        self.index = index
        self.began_s = began_s
        self.stage = stage
        self.fresh = fresh
        self.reload = False


class Backoff:
    """How long to wait before another worker is started in place of one that has ended."""

    __slots__ = ("_failures",)

    def __init__(self) -> None:
        self._failures = 0

    def wait_s(self, lived_s: float) -> float:
        """Return the wait, given how long the worker lived: none, then doubled each time up to `LONGEST_WAIT_S`."""
        if lived_s >= CALM_S:
            self._failures = 0
        failures, self._failures = self._failures, self._failures + 1
        return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures - 1, 16)) if failures else 0.0


class Supervisor:
    """Decides which workers there are.

    Args:
        actions: Does what is decided.
        wanted: How many workers there should be; of no use before there are any.
        serving: Processes that serve already, by index; 0 where there is none.
        leaving: Processes that are ending.
        stops: How many signals to stop have come already.

    Attributes:
        exit_code: What to exit with; of use when it `is_over`.
    """

    __slots__ = (
        "_actions",
        "_backoff",
        "_coming",
        "_due",
        "_is_due_again",
        "_kill_at_s",
        "exit_code",
        "stops",
        "wanted",
        "workers",
    )

    def __init__(
        self,
        actions: Actions,
        *,
        wanted: int = 0,
        serving: Sequence[int] = (),
        leaving: Sequence[int] = (),
        stops: int = 0,
    ) -> None:
        self._actions = actions
        now_s = actions.now_s()
        self.workers = {pid: Worker(index, now_s, SERVING, fresh=False) for index, pid in enumerate(serving) if pid}
        self.workers |= {pid: Worker(0, now_s, LEAVING, fresh=False) for pid in leaving}
        self.wanted = wanted
        self.stops = stops
        self.exit_code = 0
        self._backoff = Backoff()
        self._is_due_again = False  # the workers are to be replaced when they have been
        self._coming = 0  # how many fresh workers there are to be; not known before the first of them serves
        # When to start which worker in place of one that is not there.
        self._due = [(now_s, index) for index in range(wanted) if not any(serving[index : index + 1])]
        self._kill_at_s = float("inf")

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do."""
        return bool(self.stops) and not self.workers

    @property
    def is_settled(self) -> bool:
        """Whether nothing is under way that the next supervisor would not know of."""
        return not self.stops and not any(one.stage == STARTING for one in self.workers.values())

    @property
    def wake_at_s(self) -> float:
        """When `on_time` has something to do."""
        times = [one.began_s + START_TIMEOUT_S for one in self.workers.values() if one.stage == STARTING]
        if not self._is_replacing and not self.stops:
            times += [at_s for at_s, _ in self._due]
        return min((*times, self._kill_at_s))

    @property
    def _is_replacing(self) -> bool:
        return any(one.fresh for one in self.workers.values())

    def begin(self) -> None:
        """Start workers if there are none, or go on with stopping them."""
        if self.stops:
            self._actions.stop_listening()
            self._tell(signal.SIGTERM)
        elif not self.workers:
            self._replace()

    def on_signal(self, number: int) -> None:
        """Do what a signal asks for."""
        if number in {signal.SIGTERM, signal.SIGINT}:
            self._stop()
        elif number == signal.SIGQUIT:
            for _ in range(max(2 - self.stops, 1)):  # as if it were the second one
                self._stop()
        elif number == signal.SIGHUP:
            for pid, worker in self.workers.items():
                worker.reload = worker.stage == STARTING
                if worker.stage == SERVING:
                    self._actions.kill(pid, signal.SIGHUP)
        elif number == signal.SIGUSR2 and not self.stops:
            # A worker that is starting already may have read what has changed since.
            self._is_due_again = self._is_replacing
            if not self._is_due_again:
                self._actions.log("info", "SIGUSR2: starting the new program beside the old one")
                self._replace()

    def on_ready(self, pid: int, wanted: int) -> None:
        """Hear that a worker serves, and how many there should be of them."""
        worker = self.workers.get(pid)
        if worker is None or worker.stage != STARTING:
            return
        worker.stage = SERVING
        if self.stops:
            return
        if worker.reload:
            self._actions.kill(pid, signal.SIGHUP)
        if not worker.fresh:
            return
        if not self._coming:
            self._coming = wanted
            for index in range(1, wanted):
                if not self._start(index, fresh=True):
                    return
        if sum(one.fresh and one.stage == SERVING for one in self.workers.values()) == self._coming:
            self._change_over()

    def on_end(self, pid: int, code: int) -> None:
        """Hear that a process has ended.

        Args:
            pid: Its number; it need not be a worker's.
            code: Its exit code, or minus the signal that ended it.
        """
        worker = self.workers.pop(pid, None)
        if worker is None:
            return
        how = f"exit status {code}" if code >= 0 else f"killed by signal {-code}"
        if self.stops or worker.stage == LEAVING:
            if code not in {0, -signal.SIGTERM}:  # which ends one that was not far enough yet to drain
                self._actions.log("warning", f"worker {pid} did not end in good order ({how})")
            return
        if worker.fresh:
            self._give_up(f"worker {pid} ended before all of them served ({how})", code)
            return
        wait_s = self._backoff.wait_s(self._actions.now_s() - worker.began_s)
        self._due.append((self._actions.now_s() + wait_s, worker.index))
        self._actions.log("error", f"worker {pid} has ended ({how}): another one starts in {wait_s:g} s")

    def on_time(self) -> None:
        """Do what has become due."""
        now_s = self._actions.now_s()
        for pid, worker in self.workers.items():
            if worker.stage == STARTING and worker.began_s + START_TIMEOUT_S <= now_s:
                self._actions.log("error", f"worker {pid} does not serve after {START_TIMEOUT_S:g} s, and is killed")
                worker.began_s = now_s
                self._actions.kill(pid, signal.SIGKILL)
        if self._kill_at_s <= now_s:
            self._kill_at_s = float("inf")
            self._tell(signal.SIGKILL)
        if self._is_replacing or self.stops:
            return
        due = [index for at_s, index in self._due if at_s <= now_s]
        self._due = [(at_s, index) for at_s, index in self._due if at_s > now_s]
        for index in due:
            self._start(index, fresh=False)

    def _replace(self) -> None:
        self._is_due_again = False
        self._start(0, fresh=True)

    def _start(self, index: int, *, fresh: bool) -> bool:
        """Start a worker; return whether that went well."""
        try:
            pid = self._actions.spawn(index)
        except OSError as error:
            if fresh:
                self._give_up(f"it cannot be started: {error}", -1)
            else:
                wait_s = max(FIRST_WAIT_S, self._backoff.wait_s(0.0))
                self._due.append((self._actions.now_s() + wait_s, index))
                self._actions.log("error", f"a worker cannot be started ({error}): tried again in {wait_s:g} s")
            return False
        self.workers[pid] = Worker(index, self._actions.now_s(), STARTING, fresh=fresh)
        return True

    def _change_over(self) -> None:
        """All the fresh workers serve: the others may go."""
        is_first = all(one.fresh for one in self.workers.values())
        for pid, worker in self.workers.items():
            if worker.fresh:
                worker.fresh = False
            elif worker.stage != LEAVING:
                # One that is still starting need not finish what it was doing.
                self._actions.kill(pid, signal.SIGUSR2 if worker.stage == SERVING else signal.SIGTERM)
                worker.stage = LEAVING
        self.wanted, self._coming = self._coming, 0
        self._due.clear()
        self._backoff = Backoff()
        self._actions.log("info", f"{self.wanted} workers serve" if self.wanted > 1 else "1 worker serves")
        if not is_first:
            self._actions.renew()
        if self._is_due_again:
            self._replace()

    def _give_up(self, reason: str, code: int) -> None:
        """The fresh workers will not do: go on with those before them, or end if there are none."""
        for pid, worker in self.workers.items():
            if worker.fresh:
                worker.fresh = False
                worker.stage = LEAVING
                self._actions.kill(pid, signal.SIGTERM)
        self._coming = 0
        if self.wanted:
            self._actions.log("error", f"not replaced, the old program goes on: {reason}")
            if self._is_due_again:
                self._replace()
            return
        if code < 0:  # else it has said why
            self._actions.log("error", f"stopping: {reason}")
        self.exit_code = code if code > 0 else 1
        self.stops = 1
        self._actions.stop_listening()

    def _stop(self) -> None:
        self.stops += 1
        if self.stops == 1:
            # Nobody accepts here; the last worker to close its own copy ends the listening.
            self._actions.stop_listening()
            self._tell(signal.SIGTERM)
        else:
            self._kill_at_s = min(self._kill_at_s, self._actions.now_s() + QUIT_TIMEOUT_S)
            self._tell(signal.SIGQUIT)

    def _tell(self, number: int) -> None:
        for pid in self.workers:
            self._actions.kill(pid, number)
