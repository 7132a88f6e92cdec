"""What a supervisor is started with, and how it and its workers are started."""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)
"""What a supervisor listens to."""

PROGRAM = (sys.executable, "-IS", f"{os.path.dirname(os.path.abspath(__file__))}/__main__.py")
"""The supervisor's command, without its arguments."""

START_TIMEOUT_S = 60.0
"""A worker that does not serve by then never will: its own timeouts are far below."""

STOPPING = "stopping"
"""A file in the workers' directory: all of them stop, and nobody else has the listening sockets."""


class Plan:
    """What the program is started with.

    Args:
        command: What a worker is: the path of a program, and its arguments.
        sockets: The descriptors of the listening sockets.
        lifeline: Both ends of the pipe, the reading one first.
        signals: The same of another one, into which the number of each signal is written; what is in it is still to be
            heard. A mask alone would not do: it is a thread's, and another thread may be given the signal.
        shared: A directory for the workers, to be removed at the end.
        files: What to remove when listening ends, each as `DEVICE:INODE:PATH`.
        exclusive: The sockets were opened for this program: whoever started it does not have them.
        level: The least important that is logged.
        wanted, serving, leaving, stops: See `Supervisor`.
    """

    __slots__ = (
        "command",
        "exclusive",
        "files",
        "leaving",
        "level",
        "lifeline",
        "serving",
        "shared",
        "signals",
        "sockets",
        "stops",
        "wanted",
    )

    def __init__(
        self,
        command: Sequence[str],
        *,
        sockets: Sequence[int],
        lifeline: tuple[int, int],
        signals: tuple[int, int],
        shared: str,
        files: Sequence[str] = (),
        exclusive: bool = False,
        level: str = "info",
        wanted: int = 0,
        serving: Sequence[int] = (),
        leaving: Sequence[int] = (),
        stops: int = 0,
    ) -> None:
        self.command = list(command)
        self.sockets = list(sockets)
        self.lifeline = lifeline
        self.signals = signals
        self.shared = shared
        self.files = list(files)
        self.exclusive = exclusive
        self.level = level
        self.wanted = wanted
        self.serving = list(serving)
        self.leaving = list(leaving)
        self.stops = stops

    def as_arguments(self) -> list[str]:
        """Write it as `read` reads it."""
        numbers = {
            "sockets": self.sockets,
            "lifeline": self.lifeline,
            "signals": self.signals,
            "wanted": (self.wanted,),
            "serving": self.serving,
            "leaving": self.leaving,
            "stops": (self.stops,),
            "exclusive": (int(self.exclusive),),
        }
        return [
            *(f"{key}={','.join(map(str, values))}" for key, values in numbers.items()),
            f"shared={self.shared}",
            f"level={self.level}",
            *(f"file={file}" for file in self.files),
            "--",
            *self.command,
        ]

    @staticmethod
    def read(arguments: Sequence[str]) -> Plan:
        """Read a command line.

        Raises:
            ValueError: `as_arguments` has not written it.
        """
        at = arguments.index("--")
        pairs = [argument.partition("=")[::2] for argument in arguments[:at]]
        given = dict(pairs)

        def numbers(key: str) -> list[int]:
            return [int(word) for word in given.get(key, "").split(",") if word]

        def pair(key: str) -> tuple[int, int]:
            reading, writing = numbers(key)
            return reading, writing

        return Plan(
            arguments[at + 1 :],
            sockets=numbers("sockets"),
            lifeline=pair("lifeline"),
            signals=pair("signals"),
            shared=given["shared"],
            files=[value for key, value in pairs if key == "file"],
            exclusive=bool(sum(numbers("exclusive"))),
            level=given["level"],
            wanted=sum(numbers("wanted")),
            serving=numbers("serving"),
            leaving=numbers("leaving"),
            stops=sum(numbers("stops")),
        )

    def stop_listening(self) -> None:
        """Close the sockets, and let workers that are told to stop next know if nobody but them has these now."""
        while self.sockets:
            os.close(self.sockets.pop())
        if self.exclusive:
            try:
                os.close(os.open(f"{self.shared}/{STOPPING}", os.O_CREAT | os.O_WRONLY, 0o600))
            except OSError:
                return  # so they do not know

    def keep_back(self) -> None:
        """Keep what is the supervisor's own from its workers."""
        for descriptor in (self.lifeline[1], *self.signals):
            os.set_inheritable(descriptor, False)

    def execute(self, environ: Mapping[str, str]) -> NoReturn:
        """Become a supervisor. Signals that come meanwhile are there when it is ready for them.

        Raises:
            OSError: This process cannot be replaced, and is as it was.
        """
        descriptors = [*self.sockets, *self.lifeline, *self.signals]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            for descriptor in descriptors:
                os.set_inheritable(descriptor, True)
            os.execve(sys.executable, [*PROGRAM, *self.as_arguments()], environ)
        finally:
            self.keep_back()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def signal_pipe() -> tuple[int, int]:
    """Make the pipe for `Plan.signals`."""
    reading, writing = os.pipe()
    for descriptor in (reading, writing):
        os.set_blocking(descriptor, False)
    return reading, writing


def spawn_worker(plan: Plan, index: int, environ: Mapping[str, str]) -> tuple[int, int]:
    """Start a worker.

    Args:
        plan: Says how.
        index: Which of the workers it is, from 0.
        environ: Its environment, to which its place is added.

    Returns:
        Its process's number, and a descriptor to read from it how many workers there should be.

    Raises:
        OSError: It cannot be started.
    """
    reading, writing = os.pipe()
    try:
        for descriptor in (writing, plan.lifeline[0], *plan.sockets):
            os.set_inheritable(descriptor, True)
        place = f"{index}:{','.join(map(str, plan.sockets))}:{writing}:{plan.lifeline[0]}"
        made = {**environ, "GATEWAY_WORKER": place, "GATEWAY_SHARED_DIR": plan.shared}
        # Ctrl-C is the supervisor's to hear of; a worker not far enough yet to ignore it would end with a traceback.
        pid = os.posix_spawn(plan.command[0], plan.command, made, setsigmask=(signal.SIGINT,))
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return pid, reading


def remove_shared_directory(path: str) -> None:
    """Remove the directory and what workers have left there.

    Raises:
        OSError: Something of it stays.
    """
    for name in os.listdir(path):
        os.unlink(f"{path}/{name}")
    os.rmdir(path)


def make_shared_directory(environ: Mapping[str, str]) -> str:
    """Make a directory that no other user can look into.

    Raises:
        OSError: There is no place for one.
    """
    places = [environ.get("TMPDIR", ""), "/tmp", "/var/tmp", "/dev/shm"]  # noqa: S108 - the name is not to be guessed
    for place in filter(os.path.isdir, places):
        path = f"{place}/gateway-{os.urandom(8).hex()}"
        try:
            os.mkdir(path, 0o700)
        except OSError:
            continue
        return path
    raise OSError("no directory for temporary files can be written to; TMPDIR may name one")
