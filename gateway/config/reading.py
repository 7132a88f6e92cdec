"""Reads the settings one after the other: what is wrong with one becomes a `ConfigError` in the user's own words."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from gateway.config.table import SETTINGS
from gateway.config.values import kind_of, without_example
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.config.settings import Config

_T = TypeVar("_T")


class Spelling(NamedTuple):
    """How the user wrote a setting.

    Args:
        name: For the start of a message: `RATE_LIMIT`, `--rate-limit`, `rate_limit in gateway.toml`.
        line: A line that sets it, with `{}` for the value.
    """

    name: str
    line: str

    def example(self, value: str) -> str:
        """Return a line with that value, which can be copied: what a shell would cut at spaces is in quotes."""
        quoted = '"' in self.line
        if quoted and value.startswith("$("):
            value = f"WHAT {value[2:-1]} PRINTS"
        return self.line.format(f'"{value}"' if " " in value and not quoted else value)


class Reader:
    """Reads one setting after the other, and turns what is wrong with a value into a ConfigError."""

    __slots__ = ("_config", "_spelled")

    def __init__(self, config: Config, spelled: Mapping[str, Spelling]) -> None:
        self._config = config
        self._spelled = spelled

    def __call__(self, name: str, parse: Callable[[str], _T]) -> _T:
        """Parse a setting that has a value, or a default."""
        value = getattr(self._config, name)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.error(name, f"is {kind_of(value)}, not a text or a number")
        try:
            return parse(str(value))
        except ValueError as error:
            # Not chained: a traceback through the parsers could show a value that is a secret.
            raise self.error(name, without_example(error)) from None

    def optional(self, name: str, parse: Callable[[str], _T]) -> _T | None:
        """Parse a setting that may have no value: then None."""
        return None if getattr(self._config, name) is None else self(name, parse)

    def given(self, name: str) -> object:
        """Return a setting as it is: a table, perhaps."""
        return getattr(self._config, name)

    def where(self, name: str) -> str:
        """Return what names of places in a table end in: ` in gateway.toml`."""
        spelling = self._spelled.get(name)
        return "" if spelling is None else spelling.name.removeprefix(name)

    def error(self, name: str, problem: str, mend: str = "") -> ConfigError:
        """Return the error that says what is wrong with a setting and what would be right.

        Args:
            name: The setting's.
            problem: What is wrong.
            mend: A line that mends it; none: one with the setting's example.
        """
        setting = SETTINGS[name]
        spelling = self._spelled.get(name) or Spelling(name, f'{name}="{{}}"')
        example = spelling.example(setting.example) if setting.example else "without it"
        return ConfigError(spelling.name, problem, setting.takes, mend or example)
