"""One case as callgrind sees it: `python -m perf.one CASE ROUNDS`; counts.py runs it under valgrind.

Each round's twin and run are called through `PyRun_SimpleString`, which in every CPython calls `COUNTED`, and nothing
else here does: callgrind counts inside that function alone (`--toggle-collect`), and writes what it counted each time
it is left (`--dump-after`). So start-up, set-up and the making of inputs are not counted.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if not __package__:  # run as a file: `perf` and `gateway` are in the directory above
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from perf.cases import chosen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COUNTED: Final = "PyRun_SimpleStringFlags"
WARM_ROUNDS: Final = 1


def main(name: str, rounds: int) -> None:
    """Run `rounds` rounds of a case, after some that are not counted.

    Raises:
        CheckError: The case did not do what it says.
        RuntimeError: The counted part failed; its traceback was printed.
    """
    (case,) = chosen([name])
    bench = case.set_up()
    # Not even a round beyond those warm ones brings the collector in: its pace is not the case's.
    gc.collect()
    gc.freeze()
    gc.disable()
    for _ in range(WARM_ROUNDS):
        bench.once()
    for _ in range(rounds):
        inputs = bench.fresh()
        _counted(bench.twin, inputs)
        _counted(bench.run, inputs)
    bench.check()
    bench.close()


def _counted(loop: Callable[[Sequence[Any]], object], inputs: Sequence[Any]) -> None:
    sys.modules["__main__"].__dict__["_call"] = lambda: loop(inputs)
    if ctypes.pythonapi.PyRun_SimpleString(b"_call()"):
        raise RuntimeError("the counted part failed")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
