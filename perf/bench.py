"""What a case sets up, and how it says that it does not do what it claims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Loop = Callable[[Sequence[Any]], object]
    """Goes once through a round's inputs."""


ROUND: Final = 1000
"""Operations in a round of most cases: long enough that its ends do not count."""
SLOW_ROUND: Final = 200
LARGE_BODIES: Final = 16
EVENT_BODIES: Final = 4
EXCHANGES: Final = 1024
"""A multiple of every number that is in flight."""


class CheckError(Exception):
    """A case does not do what it says, so its figure would mean nothing."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Bench:
    """A case, set up and ready to be measured: `fresh`, then `twin` and `run` in any order, then perhaps `check`.

    Args:
        fresh: Makes a round's inputs, unlike all before, and forgets the last round's results. Not measured.
        run: Does the case's operations, one for each input or as many as the case says. Uses the inputs up.
        twin: The same loop over the same inputs with nothing in it; its cost is not the case's.
        check: Raises CheckError unless the last round, or an operation more, did what the case says.
        close: Ends what was set up.
    """

    fresh: Callable[[], Sequence[Any]]
    run: Loop
    twin: Loop
    check: Callable[[], None]
    close: Callable[[], None] = _nothing

    def once(self) -> None:
        """Go through one round, checked and not measured: what is learnt on the first inputs is known then."""
        inputs = self.fresh()
        self.twin(inputs)
        self.run(inputs)
        self.check()


def each(fresh: Callable[[], Sequence[Any]], operation: Callable[[Any], object], check: Callable[[], None]) -> Bench:
    """Make a Bench that calls `operation` with each input."""

    def run(inputs: Sequence[Any]) -> None:
        for one in inputs:
            operation(one)

    return Bench(fresh, run, twin, check)


def twin(inputs: Sequence[Any]) -> None:
    """Go through the inputs and do nothing."""
    for _ in inputs:
        pass


def expect(what: str, got: object, expected: object) -> None:
    """Raise CheckError unless `got` equals `expected`."""
    if got != expected:
        raise CheckError(f"{what} is {got!r}, not {expected!r}")
