"""The program as a process of its own: started on a free port, measured, signalled, waited for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kit.printed import printed
from tests.kit.upstream import soon

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator, Callable

_ROOT = Path(__file__).parents[2]
_KEPT = ("PATH", "HOME", "LANG", "PYTHONPATH", "VIRTUAL_ENV")
_ESTABLISHED = "01"
_LISTENING = re.compile(r"listening on (?:\S+, )*?(https?://127\.0\.0\.1:\d+), ")


async def until(condition: Callable[[], object]) -> None:
    """Look again and again, for 20 seconds at most, at something that tells nobody when it changes."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


def children(pid: int) -> list[int]:
    """Return the processes that this one has started and that are there, oldest first."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()))


class Program:
    """A running `python -m gateway`.

    Args:
        process: Its process, with both outputs piped.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self.url = ""
        self._lines: list[str] = []
        self._listening = asyncio.Event()
        self._readers = asyncio.gather(self._collect(process.stdout), self._collect(process.stderr))

    @property
    def printed(self) -> str:
        """All that it has printed so far, on stdout and stderr."""
        return "".join(self._lines)

    async def ready(self) -> None:
        """Wait until it listens."""
        listening = asyncio.ensure_future(self._listening.wait())
        await soon(asyncio.wait((listening, self._readers), return_when=asyncio.FIRST_COMPLETED))
        listening.cancel()
        assert self.url, f"the gateway did not start:\n{self.printed}"

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end and the last of its output; return its exit code."""
        code = await soon(self.process.wait())
        await soon(self._readers)
        return code

    async def kill(self) -> None:
        """End it at once, if it still runs."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        await self.ended()

    def memory_bytes(self, line: str = "VmRSS") -> int:
        """Read its resident memory: `VmRSS` now, `VmHWM` the most it ever was."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = re.search(rf"^{line}:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    def children(self) -> list[int]:
        """Return the workers' processes, oldest first."""
        return children(self.process.pid)

    def descriptors(self) -> int:
        """Count the files and sockets that it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))  # noqa: PTH208 - only counted

    def next_descriptor(self) -> int:
        """Return the number that the next one to be opened will have: the lowest that is free."""
        taken = set(map(int, os.listdir(f"/proc/{self.process.pid}/fd")))  # noqa: PTH208 - numbers, not paths
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def sockets(self) -> int:
        """Count its sockets, listening ones among them."""
        count = 0
        for descriptor in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                count += os.readlink(descriptor).startswith("socket:")  # noqa: PTH115 - it is no path
        return count

    def leaves_unread(self) -> bool:
        """Whether it sleeps though bytes wait for it: it does not want them, so all it may write into is full."""
        before = self._scheduled()
        inodes = set()
        for descriptor in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                inodes.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))  # noqa: PTH115
        rows = [row.split() for row in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
        # proc(5): the state, the queues as `sent:received` in hexadecimal, six fields on the inode.
        waiting = [int(row[4].partition(":")[2], 16) for row in rows if row[3] == _ESTABLISHED and row[9] in inodes]
        # What comes wakes it, so it has to have slept all the while.
        return any(waiting) and "S (sleeping)" in before[0] and before == self._scheduled()

    def _scheduled(self) -> list[str]:
        """Its state, and how often it has given the processor away or had to."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return re.findall(r"^(?:State|(?:non)?voluntary_ctxt_switches):.*$", status, re.MULTILINE)

    async def _collect(self, stream: asyncio.StreamReader) -> None:
        async for raw in stream:
            line = raw.decode()
            self._lines.append(line)
            printed.note(line)
            if found := _LISTENING.search(line):
                self.url = found[1]
                self._listening.set()


async def start(*arguments: str, module: str = "gateway", ulimit: str = "", **settings: str) -> Program:
    """Start the program with these settings in its environment, on a free port if they name none.

    The caller has to see to its end: `async with gateway_process` does.

    Args:
        arguments: The program's.
        module: Another one to run instead.
        ulimit: The shell's `ulimit` with these arguments comes first.
        settings: Its environment.
    """
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    printed.keep_settings_secret({name.lower(): value for name, value in settings.items()})
    process = await asyncio.create_subprocess_exec(
        *(("sh", "-c", f'ulimit {ulimit} && exec "$@"', "sh") if ulimit else ()),
        sys.executable,
        "-m",
        module,
        *arguments,
        env={**kept, "GATEWAY_LISTEN": "127.0.0.1:0", **settings},
        cwd=_ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    return Program(process)


@contextlib.asynccontextmanager
async def gateway_process(*, module: str = "gateway", ulimit: str = "", **settings: str) -> AsyncIterator[Program]:
    """Run the program until the block ends, killing it if it has not ended by then; see `start`."""
    program = await start(module=module, ulimit=ulimit, **settings)
    try:
        await program.ready()
        yield program
    finally:
        await program.kill()
