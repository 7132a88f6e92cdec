"""What became of the requests so far, as plain integers: counting must cost a request next to nothing."""

from __future__ import annotations


class Tally:
    """Counts of a gateway's.

    Attributes:
        passed: The API answered, and its answer was not cut. A client that left in the middle of one is among them.
        refused: The gateway answered with a status below 500: a token that is not good, a limit, a malformed request, a
            path of nobody's. Nothing was sent to the API, or not all of it.
        failed: No answer could be had, or only a part of one; or the client left before there was any.
    """

    __slots__ = ("failed", "passed", "refused")

    def __init__(self) -> None:
        self.passed = 0
        self.refused = 0
        self.failed = 0

    def on_error(self, status: int) -> None:
        """The gateway answered with an error of its own."""
        if status < 500:
            self.refused += 1
        else:
            self.failed += 1

    def on_cut(self, *, passed: bool) -> None:
        """A request ended without the end of an answer; `passed`: the client left in the middle of one."""
        if passed:
            self.passed += 1
        else:
            self.failed += 1
