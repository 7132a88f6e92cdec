"""The scripts of budgets and the ledger, put together when this is loaded.

The rule of limits is written down once, in `check.lua`, and that of budgets in `budgets.lua`: a line of a script that
ends with `-- @NAME` is replaced with `NAME.lua`. In `check.lua` as it is, such a line is right without budgets.
"""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_MARKED: Final = re.compile(r"^.*-- @(\w+)$", re.MULTILINE)


class Script(NamedTuple):
    """A script, and the name that Redis has for it."""

    text: str
    sha: str


class SpendScripts(NamedTuple):
    """See the file of each; `reserve` is `check.lua` with the parts `reserve_*.lua`."""

    reserve: Script
    settle: Script
    renew: Script
    standings: Script
    expire: Script
    release: Script

    @classmethod
    def on_clock(cls, told: Callable[[str], str] = str) -> SpendScripts:
        """Return the scripts.

        Args:
            told: Changes the text of each: tests have one that reads a clock of theirs.
        """
        files = ("check", "settle", "renew_spends", "standings", "expire", "release")
        return cls(*(_script(told(_composed(name))) for name in files))


def _composed(name: str) -> str:
    text = resources.files("gateway.stores").joinpath(f"{name}.lua").read_text("utf-8")
    return _MARKED.sub(lambda marked: _composed(marked[1]), text)


def _script(text: str) -> Script:
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


SPEND_SCRIPTS: Final = SpendScripts.on_clock()
