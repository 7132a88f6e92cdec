"""What the program exits with: the README's table of exit codes says when."""

from __future__ import annotations

from typing import Final

FINE: Final = 0
FAILURE: Final = 1
USAGE: Final = 2
NOT_EXECUTABLE: Final = 126
"""As shells have it, and so the next two: of `gateway run`, whose command has codes of its own."""
NOT_FOUND: Final = 127
DIED_OF_SIGNAL: Final = 128
"""To which the signal's number is added."""
INTERRUPTED: Final = 130
"""128 + SIGINT; `serve` handles the signal itself and ends with 0."""
