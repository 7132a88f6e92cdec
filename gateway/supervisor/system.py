"""What a supervisor does to processes, and how it hears of them."""

from __future__ import annotations

import os
import select
import signal
import time

from gateway.supervisor.crew import LEAVING, SERVING
from gateway.supervisor.plan import PROGRAM, SIGNALS, remove_shared_directory, spawn_worker
from gateway.supervisor.stderr import LogStream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gateway.supervisor.crew import Supervisor
    from gateway.supervisor.plan import Plan

LEVELS = ("debug", "info", "warning", "error")


class System:
    """The operating system, for one supervisor. See `Actions`.

    Args:
        plan: What the program was started with.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._ready: dict[int, int] = {}
        self._is_renewal_due = False
        self._log = LogStream()
        plan.keep_back()
        signal.set_wakeup_fd(plan.signals[1], warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def run(self, supervisor: Supervisor) -> int:
        """Supervise until it is over; return the exit code."""
        supervisor.begin()
        self._reap(supervisor)
        while not supervisor.is_over:
            signals = self._wait(supervisor.wake_at_s - self.now_s())
            for descriptor in tuple(self._ready):
                self._hear(descriptor, supervisor)
            for number in signals:
                supervisor.on_signal(number)
            self._reap(supervisor)
            supervisor.on_time()
            if self._is_renewal_due and supervisor.is_settled:
                self._renew(supervisor)
        self._clean_up()
        return supervisor.exit_code

    def now_s(self) -> float:
        """See `Actions`."""
        return time.monotonic()

    def spawn(self, index: int) -> int:
        """See `Actions`."""
        pid, ready = spawn_worker(self._plan, index, os.environ)
        os.set_blocking(ready, False)
        self._ready[ready] = pid
        return pid

    def kill(self, pid: int, number: int) -> None:
        """See `Actions`. It has not been waited for yet, so its number is still its own."""
        os.kill(pid, number)

    def stop_listening(self) -> None:
        """See `Actions`."""
        for file in self._plan.files:
            device, inode, path = file.split(":", 2)
            try:
                found = os.lstat(path)
                if (found.st_dev, found.st_ino) == (int(device), int(inode)):
                    os.unlink(path)
            except FileNotFoundError:
                continue  # somebody has removed it already
            except OSError as error:
                self.log("warning", f"the socket's file stays: {error}")
        self._plan.files.clear()
        self._plan.stop_listening()

    def renew(self) -> None:
        """See `Actions`."""
        self._is_renewal_due = True

    def log(self, level: str, text: str) -> None:
        """See `Actions`. The form is that of the workers' lines."""
        if LEVELS.index(level) < LEVELS.index(self._plan.level):
            return
        now = time.time()
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
        line = f"{moment},{int(now % 1 * 1000):03d} {level.upper()} gateway.supervisor: {text}\n"
        self._log.write(line)

    def _renew(self, supervisor: Supervisor) -> None:
        """Execute this program anew."""
        self._is_renewal_due = False
        plan = self._plan
        pids = {one.index: pid for pid, one in supervisor.workers.items() if one.stage == SERVING}
        plan.wanted, plan.serving = supervisor.wanted, [pids.get(index, 0) for index in range(supervisor.wanted)]
        plan.leaving = [pid for pid, one in supervisor.workers.items() if one.stage == LEAVING]
        self.log("debug", "executing the supervisor anew")
        try:
            # Takes 30 ms, and there is no way back from what comes then.
            if os.spawnv(os.P_WAIT, PROGRAM[0], [*PROGRAM, "--check"]):
                raise OSError("the new one cannot be started")
            plan.execute(os.environ)
        except OSError as error:
            self.log("warning", f"the workers are new, the supervisor goes on as it was: {error}")

    def _wait(self, longest_s: float) -> bytes:
        """Wait for a signal or a worker's word; return the numbers of signals."""
        poll = select.poll()
        for descriptor in (self._plan.signals[0], *self._ready):
            poll.register(descriptor, select.POLLIN)
        poll.poll(None if longest_s == float("inf") else max(0.0, longest_s * 1000 + 1))
        try:
            return os.read(self._plan.signals[0], 4096)
        except BlockingIOError:
            return b""  # it was something else that woke us

    def _hear(self, descriptor: int, supervisor: Supervisor) -> None:
        try:
            said = os.read(descriptor, 64)
        except BlockingIOError:
            return
        pid = self._ready.pop(descriptor)
        os.close(descriptor)
        if said.strip().isdigit():
            supervisor.on_ready(pid, max(1, int(said)))

    def _reap(self, supervisor: Supervisor) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            supervisor.on_end(pid, os.waitstatus_to_exitcode(status))

    def _clean_up(self) -> None:
        try:
            remove_shared_directory(self._plan.shared)
        except OSError as error:
            self.log("warning", f"the workers' directory stays: {error}")
