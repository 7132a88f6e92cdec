"""The supervisor as a program. With `--check` it ends at once: then it could be started."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # -I leaves out where this file is, and -S where the package may be installed.
    sys.path.insert(0, os.path.abspath(f"{os.path.dirname(__file__)}/../.."))

from gateway.supervisor.crew import Supervisor
from gateway.supervisor.plan import Plan
from gateway.supervisor.system import System

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Supervise workers; return the exit code."""
    if arguments == ["--check"]:
        return 0
    plan = Plan.read(arguments)
    system = System(plan)
    return system.run(
        Supervisor(system, wanted=plan.wanted, serving=plan.serving, leaving=plan.leaving, stops=plan.stops)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
