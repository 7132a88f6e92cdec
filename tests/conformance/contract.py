"""BEHAVIOUR.md as data: what it promises, and which test holds each promise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
BEHAVIOUR: Final = ROOT / "BEHAVIOUR.md"
OVER_STRICT: Final = "Stricter than the RFCs need"

_HELD_BY: Final = re.compile(r"`(tests/[\w/]+\.py)::(\w+)(?:\[([^\]`]+)\])?`")


class Promise(NamedTuple):
    """One line of a table whose last column is `held by`."""

    what: str
    clause: str
    decision: str
    held_by: str

    @property
    def test(self) -> tuple[Path, str, str | None]:
        """The file, the function and the case of the one test that it names."""
        match = _HELD_BY.fullmatch(self.held_by)
        assert match is not None, f"not one test: {self.held_by}"
        return ROOT / match[1], match[2], match[3]


def rows(heading: str, text: str) -> list[list[str]]:
    """Return the cells of the table rows under a heading, up to the next heading, without the table's own head."""
    match = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert match is not None, f"there is no {heading!r}"
    lines = [line for line in match[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def promises() -> list[Promise]:
    """Return the lines of every table in BEHAVIOUR.md that names tests."""
    text = BEHAVIOUR.read_text(encoding="utf-8")
    headings = re.findall(
        r"^#+ ([^\n]+)\n(?=(?:[^#|]*)\| what comes \| clause \| decision \| held by \|)", text, re.MULTILINE
    )
    return [Promise(*row) for heading in headings for row in rows(heading, text)]


def over_strict() -> set[str]:
    """Return the cases of the corpora that expect to be taken and are refused."""
    text = BEHAVIOUR.read_text(encoding="utf-8")
    return {case for row in rows(OVER_STRICT, text) for case in re.findall(r"`([^`]+)`", row[-1])}
