"""From command line, environment and file to one `Config`: the first of them that has a setting wins."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.config.reading import Spelling
from gateway.config.settings import Config
from gateway.config.table import SETTINGS
from gateway.config.targets import FORBIDDEN_MODE, with_environment
from gateway.config.values import Address, addresses
from gateway.errors import ConfigError
from gateway.stamps import stamp

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gateway.config.table import Setting
    from gateway.config.values import UnixAddress

DEFAULT_LISTEN = "127.0.0.1:3000"

_FILE_TAKES = "a TOML file with settings by their lower-case names"
_TABLES = ("targets", "prices")
_FILE_EXAMPLE = 'rate_limit = "60/minute"'


class _Given(NamedTuple):
    """The settings that somebody gave a value, and how they wrote each."""

    values: dict[str, object]
    spelled: dict[str, Spelling]


def load(*, arguments: Mapping[str, str], environ: Mapping[str, str], file: Path | None) -> Config:
    """Return the configuration that the three sources make together.

    Args:
        arguments: Settings from the command line, by lower-case name.
        environ: The environment; an empty variable counts as not set, other variables are not looked at.
        file: A TOML file, or None.

    Raises:
        ConfigError: The file cannot be read or has an unknown key, or a value is not one to run with.
    """
    seen = {} if file is None else {file: stamp(file)}
    given = _gather(arguments=arguments, environ=environ, file=file)
    if "target_api_url" not in given.values:
        url = SETTINGS["target_api_url"]
        example = f"{url.environment}={url.example} (and to see it work first: ./tools/run demo needs nothing)"
        raise ConfigError(url.environment, "is not set", url.takes, example)
    if "targets" in given.values:
        where = given.spelled["targets"].name.removeprefix("targets")
        given.values["targets"] = with_environment(given.values["targets"], environ, where)
    # Config checks the types itself: no type checker can see into a file.
    return Config(**{"gateway_listen": DEFAULT_LISTEN, **given.values}, spelled=given.spelled, read_from=seen)  # type: ignore[arg-type]


def listen_address(*, environ: Mapping[str, str], file: Path | None) -> tuple[Address | UnixAddress, bool]:
    """Return where a gateway with these settings listens, the first if at several, and whether it speaks TLS there.

    Whatever else they say.

    Raises:
        ConfigError: The file cannot be read or has an unknown key, or `gateway_listen` has no address in it.
    """
    given = _gather(arguments={}, environ=environ, file=file)
    try:
        first = addresses(str(given.values.get("gateway_listen", DEFAULT_LISTEN)))[0]
    except ValueError as error:
        setting, spelling = SETTINGS["gateway_listen"], given.spelled["gateway_listen"]
        raise ConfigError(spelling.name, str(error), setting.takes, spelling.example(setting.example)) from None
    return first, isinstance(first, Address) and "gateway_tls_cert" in given.values


def exposed(file: Path | None) -> str:
    """Return a sentence that warns of secrets in a file that others may read or change; "" where there is no need to.

    Args:
        file: One that `load` has read, or None.
    """
    if file is None:
        return ""
    mode = file.stat().st_mode
    if not stat.S_ISREG(mode) or not mode & FORBIDDEN_MODE:  # a pipe is there to be read once
        return ""
    content = _read_file(file)
    names = [name for name, value in content.items() if name in SETTINGS and _is_secret(SETTINGS[name], value)]
    tables: Any = content.get("targets", {})
    names += [f"targets.{name}.{key}" for name, table in tables.items() for key in ("key", "keys") if key in table]
    if not names:
        return ""
    return (
        f"{file} has secrets in it ({', '.join(names)}) and mode {stat.S_IMODE(mode):o}: others can read or change it; "
        f"chmod 600 {file}, or keep them out of it (environment, key_file, key_env)"
    )


def _is_secret(setting: Setting, value: object) -> bool:
    return setting.secret and (setting.name != "redis_url" or "@" in str(value))


def _gather(*, arguments: Mapping[str, str], environ: Mapping[str, str], file: Path | None) -> _Given:
    """Return what the three sources say; of a file, the names are checked, the values are not."""
    given = _Given({}, {})
    for name, value in (_read_file(file) if file else {}).items():
        given.values[name] = value
        given.spelled[name] = Spelling(f"{name} in {file}", f'{name} = "{{}}"')
    for name, setting in SETTINGS.items():
        if environ.get(setting.environment):
            given.values[name] = environ[setting.environment]
            given.spelled[name] = Spelling(setting.environment, f"{setting.environment}={{}}")
        if name in arguments:
            given.values[name] = arguments[name]
            given.spelled[name] = Spelling(setting.option, f"{setting.option} {{}}")
    return given


def _read_file(file: Path) -> dict[str, object]:
    import tomllib  # 2 ms of start-up that only a file is worth

    try:
        content = tomllib.loads(file.read_text(encoding="utf-8-sig"))  # some editors put a byte order mark first
    except OSError as error:
        raise ConfigError(str(file), f"cannot be read: {error.strerror}", _FILE_TAKES, _FILE_EXAMPLE) from None
    except UnicodeDecodeError:
        raise ConfigError(str(file), "is not UTF-8", _FILE_TAKES, _FILE_EXAMPLE) from None
    except RecursionError:  # tomllib has no bound of its own
        raise ConfigError(str(file), "is nested too deeply", _FILE_TAKES, _FILE_EXAMPLE) from None
    except ValueError as error:  # a TOMLDecodeError, or a number of more digits than Python reads
        raise ConfigError(str(file), f"is not TOML: {error}", _FILE_TAKES, _FILE_EXAMPLE) from None
    for key in content:
        if key not in SETTINGS and key not in _TABLES:
            raise _unknown_key(key, file)
    return content


def _unknown_key(key: str, file: Path) -> ConfigError:
    import difflib  # only for somebody who mistyped

    near = difflib.get_close_matches(key.lower().replace("-", "_"), [*SETTINGS, *_TABLES], n=1)
    suggestion = f"; did you mean {near[0]}?" if near else ""
    return ConfigError(f"{key} in {file}", f"is not a setting{suggestion}", _FILE_TAKES, _FILE_EXAMPLE)
