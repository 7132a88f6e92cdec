"""The official SDKs, for tests to import from here: each is imported where it is first used.

Both together take two seconds, which each of the suite's processes would spend, though few run one of their tests.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import anthropic as anthropic  # noqa: PLC0414 - told to be for others
    import openai as openai  # noqa: PLC0414 - likewise
else:

    class _Later:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):  # pytest looks at what a module has, and must find nothing
                raise AttributeError(name)
            return getattr(importlib.import_module(self._name), name)

    anthropic, openai = _Later("anthropic"), _Later("openai")
