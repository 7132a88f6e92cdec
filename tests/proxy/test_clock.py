"""The clock's sweep: what is past its deadline is told so, whatever becomes of the others."""

from __future__ import annotations

import pytest

from gateway.proxy.clock import NEVER, TICK_S, Clock
from tests.kit.script import ScriptLoop


class Watched:
    def __init__(self, clock: Clock, error: Exception | None = None) -> None:
        self.deadline_s = clock.now_s
        self.told = 0
        self._error = error
        clock.watched.add(self)

    def on_deadline(self) -> None:
        self.told += 1
        if self._error is not None:
            raise self._error
        self.deadline_s = NEVER


def test_one_that_fails_keeps_none_of_the_others_from_its_deadline() -> None:
    loop = ScriptLoop()
    clock = Clock(loop)
    fine = [Watched(clock) for _ in range(20)]
    broken = [Watched(clock, OSError(f"defect {number}")) for number in range(3)]
    clock.start()
    with pytest.raises(OSError, match="defect"):  # the kit raises what the loop's exception handler was told of
        loop.pass_time(2 * TICK_S)
    clock.stop()
    assert [one.told for one in (*fine, *broken)] == [1] * 23
    assert {str(failure["exception"]) for failure in loop.failures} == {f"defect {number}" for number in range(3)}
    loop.close()
