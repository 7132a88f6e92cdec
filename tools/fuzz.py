#!/usr/bin/env python3
"""Feeds the parsers of `gateway.http1` what nobody would send, and compares what they read with what others read.

    python tools/fuzz.py all --minutes 60
    python tools/fuzz.py heads --engine random --runs 5000 --seed 7
    python tools/fuzz.py chunks --input found-chunks-1f3a.bin

`heads` are request heads, `answers` answer heads, `chunks` chunked bodies; `tools/fuzz_targets.py` says what is
compared. The engine `atheris` (pip install atheris) is guided by coverage; `random` needs nothing and is not. With
`all`, the targets share the time. Exit status: 0 nothing found, 1 something found, 2 bad usage.

A finding is made smaller, written to a file, and printed as a bytes literal with the command that shows it again.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, Protocol, cast

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from tools.fuzz_targets import Target

NAMES: Final = ("heads", "answers", "chunks")
REPORT_EVERY_S: Final = 60.0
REDUCE_FOR_S: Final = 60.0
LOOK_EVERY: Final = 64  # executions between two looks at the clock
KEPT_INPUTS: Final = 2000


class Atheris(Protocol):
    """What is used of the module of that name, which need not be there."""

    def instrument_imports(self, *, include: Sequence[str]) -> AbstractContextManager[object]:
        """Count what is run of the packages that are imported meanwhile."""
        ...

    def Setup(  # noqa: N802 - its own spelling
        self, arguments: list[str], once: Callable[[bytes], None], *, custom_mutator: Callable[[bytes, int, int], bytes]
    ) -> list[str]:
        """Take libFuzzer's arguments, and what it calls."""
        ...

    def Fuzz(self) -> None:  # noqa: N802 - its own spelling
        """Run until the process ends."""
        ...

    def Mutate(self, data: bytes, max_size: int) -> bytes:  # noqa: N802 - its own spelling
        """Change an input in libFuzzer's ways."""
        ...


class Run:
    """One target, and how often it was run.

    Args:
        name: Of the target.
        make: Makes what is run; another one, without a memory, makes findings smaller.
        seconds: For how long; None: no bound.
        runs: How many times at most; None: no bound.
        folder: Where a finding is written to; None: nowhere, it came from a file.
    """

    def __init__(
        self, name: str, make: Callable[[], Target], seconds: float | None, runs: int | None, folder: Path | None
    ) -> None:
        self._name = name
        self._make = make
        self._target = make()
        self._folder = folder
        self._runs = runs
        self._began_s = self._reported_s = time.monotonic()
        self._ends_s = None if seconds is None else self._began_s + seconds
        self.executions = 0
        self.taken = 0

    def once(self, data: bytes) -> bool:
        """Run the target once; say whether it found nothing."""
        self.executions += 1
        try:
            self.taken += self._target(data)
        except Exception as error:  # noqa: BLE001 - any is a finding
            self._show(data, error)
            return False
        return True

    @property
    def is_over(self) -> bool:
        """Whether it was run long, or often, enough."""
        if self._runs is not None and self.executions >= self._runs:
            return True
        if self.executions % LOOK_EVERY:
            return False
        now_s = time.monotonic()
        if now_s - self._reported_s >= REPORT_EVERY_S:
            self._reported_s = now_s
            self.report()
        return self._ends_s is not None and now_s >= self._ends_s

    def report(self) -> None:
        """Say how often it was run."""
        took_s = max(time.monotonic() - self._began_s, 1e-9)
        print(
            f"{self._name}: {self.executions} executions in {took_s:.0f} s, {self.executions / took_s:.0f} a second; "
            f"{self.taken} messages were taken",
            flush=True,
        )

    def _show(self, data: bytes, error: Exception) -> None:
        self.report()
        print(f"\n{self._name}: found by execution {self.executions}\n")
        traceback.print_exception(error, file=sys.stdout)
        sys.stdout.flush()
        if self._folder is None:
            return
        small = reduce(self._make, getattr(error, "data", None) or data, type(error))
        path = self._folder / f"found-{self._name}-{zlib.crc32(small):08x}.bin"
        path.write_bytes(small)
        command = f"python tools/fuzz.py {self._name} --input {path}"
        print(f"\ninput: {small!r}\nin: {path}\nagain: {command}", flush=True)


def reduce(make: Callable[[], Target], data: bytes, error: type[Exception]) -> bytes:
    """Cut pieces out of an input, ever smaller ones, as long as it still fails in the same way.

    Args:
        make: Makes what fails. What it has seen in other inputs must not count.
        data: The input.
        error: How.
    """

    def fails(candidate: bytes) -> bool:
        try:
            make()(candidate)
        except Exception as again:  # noqa: BLE001 - any is a finding
            return type(again) is error
        return False

    ends_s = time.monotonic() + REDUCE_FOR_S
    size = len(data) // 2
    while size:
        at = 0
        while at < len(data) and time.monotonic() < ends_s:
            shorter = data[:at] + data[at + size :]
            if fails(shorter):
                data = shorter
            else:
                at += size
        size //= 2
    return data


def run_random(run: Run, seeds: Sequence[bytes], words: Sequence[bytes], seed: int) -> bool:
    """Mutate seeds, and what became of them; say whether nothing was found."""
    from tools.fuzz_inputs import mutate

    dice = random.Random(seed)  # noqa: S311 - no secret comes of it
    inputs = list(seeds)
    for data in seeds:
        if run.is_over or not run.once(data):
            break
    else:
        while not run.is_over:
            taken = run.taken
            data = mutate(dice, dice.choice(inputs), dice.choice(inputs), words)
            if not run.once(data):
                return False
            # What is read is a better start than what is refused at its first byte.
            if run.taken > taken:
                if len(inputs) < KEPT_INPUTS:
                    inputs.append(data)
                else:
                    inputs[dice.randrange(len(inputs))] = data
    return run.is_over


def run_atheris(atheris: Atheris, run: Run, seeds: Sequence[bytes], words: Sequence[bytes], seed: int) -> NoReturn:
    """Let libFuzzer choose what to mutate; ends the process, with the exit status."""
    from tools.fuzz_inputs import MAX_INPUT_BYTES, mutate

    folder = Path(tempfile.mkdtemp(prefix="gateway-fuzz-"))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    dictionary = folder / "words"
    dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in words), encoding="ascii")

    def leave(status: int) -> NoReturn:
        # libFuzzer runs until its process ends, and nothing above this frame would be told.
        shutil.rmtree(folder, ignore_errors=True)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def once(data: bytes) -> None:
        if not run.once(data):
            leave(1)
        if run.is_over:
            run.report()
            leave(0)

    def custom_mutator(data: bytes, max_size: int, number: int) -> bytes:
        dice = random.Random(number)  # noqa: S311 - no secret comes of it
        if dice.random() < 0.25:
            return bytes(atheris.Mutate(data, max_size))
        return mutate(dice, data, dice.choice(seeds), words)[:max_size]

    flags = [f"-max_len={MAX_INPUT_BYTES}", f"-dict={dictionary}", f"-seed={seed}", f"-artifact_prefix={folder}/"]
    # On a busy machine, whatever runs is slow.
    flags += ["-timeout=600", "-report_slow_units=600", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], once, custom_mutator=custom_mutator)
    atheris.Fuzz()
    leave(1)


def _escaped(word: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in word[:64])


def find_atheris(engine: str) -> Atheris | None:
    """Import atheris, if it is wanted and there.

    Returns:
        The module; None if the engine is `random`, or none was asked for and there is no atheris.

    Raises:
        ModuleNotFoundError: It was asked for and is not there.
    """
    if engine == "random":
        return None
    try:
        return cast("Atheris", importlib.import_module("atheris"))
    except ImportError:
        if engine == "atheris":
            raise ModuleNotFoundError("atheris is not installed: pip install atheris, or --engine random") from None
        print("atheris is not installed (pip install atheris): going on with --engine random, which sees no coverage")
        return None


def _load(atheris: Atheris | None) -> Callable[[str], Target]:
    """Import the targets, instrumented if there is somebody to look at it."""
    if atheris is None:
        from tools import fuzz_targets
    else:
        with atheris.instrument_imports(include=["gateway"]):
            from tools import fuzz_targets
    return lambda name: fuzz_targets.TARGETS[name]()


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=[*NAMES, "all"])
    parser.add_argument("--minutes", type=float, help="for how long, in all; default 1 where --runs is not given")
    parser.add_argument("--runs", type=int, help="how many executions at most, of each target")
    parser.add_argument("--engine", choices=["auto", "atheris", "random"], default="auto")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 1 << 31))
    parser.add_argument(
        "--seeds", type=Path, action="append", default=[], metavar="FOLDER", help="more inputs to begin with"
    )
    parser.add_argument("--input", type=Path, help="run the target once, on this file")
    parser.add_argument("--found", type=Path, default=Path(), metavar="FOLDER", help="where findings are written to")
    chosen = parser.parse_args(arguments)
    if chosen.minutes is None and chosen.runs is None:
        chosen.minutes = 1.0
    if chosen.input is not None and chosen.target == "all":
        parser.error("--input takes one target")
    return chosen


def _run_all(chosen: argparse.Namespace) -> int:
    """Run each target in a process of its own, for coverage is counted in a process."""
    shared = ["--engine", chosen.engine, "--seed", str(chosen.seed), "--found", str(chosen.found)]
    shared += [part for folder in chosen.seeds for part in ("--seeds", str(folder))]
    if chosen.runs is not None:
        shared += ["--runs", str(chosen.runs)]
    if chosen.minutes is not None:
        shared += ["--minutes", str(chosen.minutes / len(NAMES))]
    return max(subprocess.run([sys.executable, __file__, name, *shared], check=False).returncode for name in NAMES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return the exit status."""
    chosen = _arguments(arguments)
    if chosen.target == "all":
        return _run_all(chosen)
    try:
        atheris = find_atheris("random" if chosen.input is not None else chosen.engine)
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    make = _load(atheris)
    from tools.fuzz_inputs import WORDS, seeds
    from tools.fuzz_targets import small_bounds

    seconds = None if chosen.minutes is None else chosen.minutes * 60
    words = WORDS[chosen.target]
    with small_bounds():
        folder = None if chosen.input is not None else chosen.found
        run = Run(chosen.target, lambda: make(chosen.target), seconds, chosen.runs, folder)
        if chosen.input is not None:
            return 0 if run.once(chosen.input.read_bytes()) else 1
        engine = "random" if atheris is None else "atheris"
        print(f"{chosen.target}: engine {engine}, seed {chosen.seed}", flush=True)
        first = seeds(chosen.target, chosen.seeds)
        if atheris is not None:
            run_atheris(atheris, run, first, words, chosen.seed)
        if not run_random(run, first, words, chosen.seed):
            return 1
        run.report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
