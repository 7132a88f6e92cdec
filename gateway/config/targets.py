"""`[targets.NAME]`: more APIs beside the environment's, each with a prefix, keys, limits and timeouts of its own."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from gateway.config.budgets import COST_EXAMPLE, COST_TAKES, cost_of
from gateway.config.target import FIELD_NAME, NOT_FOR_KEYS, Target, parse_key_style, parse_url, with_key
from gateway.config.values import duration_s, kind_of, quoted, without_example
from gateway.errors import ConfigError
from gateway.limits import parse_concurrency, parse_limits
from gateway.stamps import stamp

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.limits import Policy
    from gateway.metering.costs import CostTable
    from gateway.metering.rates import Rates
    from gateway.stamps import Stamp

_T = TypeVar("_T")

_NAME = re.compile("[a-z0-9](?:[a-z0-9_-]{0,30}[a-z0-9])?")
_PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)+")
_FIELD_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_OWN_PREFIX = b"/api"
_ENDPOINTS = frozenset({"register", "usage", "healthz", "readyz", "metrics", "admin", "tokens", "dashboard"})
_MAX_LIMITS = 12
"""With those that a token and the gateway have, no more than a store checks at once."""
_MAX_KEY_FILE_BYTES = 64 * 1024
FORBIDDEN_MODE = stat.S_IWGRP | stat.S_IRWXO
"""Of a file with secrets: whoever is not in its group has no business with it, nor the group with changing it."""


class Key(NamedTuple):
    """One row of what a `[targets.NAME]` table may have: what it takes, in words, and a value that would work."""

    takes: str
    example: str


_DURATION = Key("a duration in ms, s, m, h or d", '"30s"')
KEYS: dict[str, Key] = {
    "prefix": Key("a path of letters, digits and -._~, and no endpoint's", '"/maps"'),
    "url": Key("the API's base URL, http:// or https://", '"https://maps.example.com/v2"'),
    "key": Key("the API's key, printable ASCII", '"YOUR_KEY"'),
    "key_env": Key("the name of an environment variable that has the key", '"MAPS_KEY"'),
    "key_file": Key("the path of a file that has the key, for nobody else to read (chmod 600)", '"/run/secrets/maps"'),
    "keys": Key("an array of keys, all different, used in turn", '["ONE", "ANOTHER"]'),
    "auth": Key("bearer, header:NAME, query:NAME or basic", '"header:x-api-key"'),
    "rate_limit": Key(f"limits as in RATE_LIMIT, {_MAX_LIMITS} at most", '"10/second,1000/day"'),
    "concurrency_limit": Key("a whole number from 1 to 1000000, perhaps with ;shadow", "10"),
    "connect_timeout": _DURATION,
    "response_timeout": _DURATION,
    "idle_timeout": _DURATION,
    "ca_file": Key("the path of a readable PEM file", '"/etc/ssl/certs/ca-certificates.crt"'),
    "cost": Key(COST_TAKES, COST_EXAMPLE),
    "add_headers": Key("a table of texts by field name, none of which frames or routes", '{ X-Team = "search" }'),
    "remove_headers": Key("an array of field names, none of which frames or routes", '["X-Debug"]'),
}
KEY_SOURCES = ("key", "key_env", "key_file", "keys")
TAKES = 'a table [targets.NAME], with NAME of a-z, 0-9, "-" and "_", and not "api" or "global"'
EXAMPLE = '[targets.maps] with url = "https://maps.example.com/v2"'


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSettings:
    """One `[targets.NAME]`, found good.

    Args:
        name: For people, and in the names of its limits.
        keyed: The same target with each of its keys, one or more; or once without a key.
        limits: Of each token at this target, beside the token's others.
        concurrency_limit: Likewise, of its requests in flight there.
        cost: What its requests cost; None: nobody counts that.
        connect_timeout_s, response_timeout_s, idle_timeout_s: None: the gateway's.
        auth: As written.
        keys: As written; for nothing but to tell how long they are.
        files: What else was read for it, the key's file and the CA file, as they were just before.
    """

    name: str
    keyed: tuple[Target, ...]
    limits: tuple[Policy, ...] = ()
    concurrency_limit: Policy | None = None
    cost: CostTable | None = None
    connect_timeout_s: float | None = None
    response_timeout_s: float | None = None
    idle_timeout_s: float | None = None
    auth: str = "bearer"
    keys: tuple[str, ...] = field(default=(), repr=False)
    files: Mapping[str, Stamp | None] = field(default_factory=dict, compare=False)

    @property
    def common_limits(self) -> tuple[Policy, ...]:
        """What every token is under at this target, whatever limits it has of its own."""
        return self.limits if self.concurrency_limit is None else (*self.limits, self.concurrency_limit)


class TargetReader:
    """Reads the tables, and turns what is wrong with one into a ConfigError that names the place.

    Args:
        where: What the places end in: ` in gateway.toml`, or nothing.
        check_url: Raises ValueError if a target is one that requests must not be sent to.
        check_ca_file: Raises ValueError if a file has no roots in it.
        prices: Own prices of language models.
    """

    def __init__(
        self,
        where: str,
        check_url: Callable[[Target], None],
        check_ca_file: Callable[[str], object],
        prices: Mapping[str, Rates] | None,
    ) -> None:
        self._where = where
        self._check_url = check_url
        self._check_ca_file = check_ca_file
        self._prices = prices

    def read(self, tables: object) -> tuple[TargetSettings, ...]:
        """Read all of them.

        Raises:
            ConfigError: One has something that the gateway cannot run with, or two have the same prefix.
        """
        if not isinstance(tables, Mapping):
            raise ConfigError(f"targets{self._where}", "is not a table of tables", TAKES, EXAMPLE)
        found = {_OWN_PREFIX: "the environment's, TARGET_API_URL,"}
        targets = []
        for name, table in tables.items():
            target = self._read_one(name, table)
            prefix = target.keyed[0].prefix
            if prefix in found:
                raise self._error(name, "prefix", f"{prefix.decode()} is that of {found[prefix]} already")
            found[prefix] = f"targets.{name}"
            targets.append(target)
        return tuple(targets)

    def _read_one(self, name: object, table: object) -> TargetSettings:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in {"api", "global"}:
            raise ConfigError(f"targets.{name}{self._where}", "is not a name for a target", TAKES, EXAMPLE)
        if not isinstance(table, Mapping):
            raise ConfigError(f"targets.{name}{self._where}", "is not a table", TAKES, EXAMPLE)
        for key in table:
            if key not in KEYS:
                raise self._unknown(name, str(key))
        table = {key: value for key, value in table.items() if value is not None}  # as keyword arguments have it
        given = [key for key in KEY_SOURCES if key in table]
        if len(given) > 1:
            raise self._error(name, given[1], f"is there together with {given[0]}; one of them is enough")
        if "url" not in table:
            raise self._error(name, "url", "is not set")
        named = [table[source] for source in ("key_file", "ca_file") if source in table]
        files = {path: stamp(path) for path in named if isinstance(path, str)}

        def text(key: str, parse: Callable[[str], _T], default: str | None = None) -> _T | None:
            value = table.get(key, default)
            if value is None:
                return None
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise self._error(name, key, f"is {kind_of(value)}, not a text")
            return self._try(name, key, parse, str(value))

        target = text("url", self._url)
        style = text("auth", parse_key_style, "bearer")
        prefix = text("prefix", _prefix, f"/{name}")
        assert target is not None and style is not None and prefix is not None  # noqa: S101, PT018 - all have a value
        added, removed = self._fields(name, table)
        ca_file = None if "ca_file" not in table else str(table["ca_file"])
        if ca_file is not None:
            self._try(name, "ca_file", self._check_ca_file, ca_file)
        target = replace(target, prefix=prefix, ca_file=ca_file, added=added, removed=removed)
        keys = self._keys(name, table)
        keyed = tuple(self._try(name, given[0], lambda key: with_key(target, key, style), key) for key in keys)
        return TargetSettings(
            name=name,
            keyed=keyed or (target,),
            keys=tuple(keys),
            files=files,
            limits=text("rate_limit", lambda limits: _limits(limits, name)) or (),
            concurrency_limit=text("concurrency_limit", lambda limit: _of_target(parse_concurrency(limit), name)),
            cost=cost_of(f"targets.{name}.cost", self._where, table.get("cost"), self._prices),
            connect_timeout_s=text("connect_timeout", duration_s),
            response_timeout_s=text("response_timeout", duration_s),
            idle_timeout_s=text("idle_timeout", duration_s),
            auth=str(table.get("auth", "bearer")),
        )

    def _url(self, text: str) -> Target:
        target = parse_url(text)
        self._check_url(target)
        return target

    def _keys(self, name: str, table: Mapping[str, object]) -> list[str]:
        if "keys" in table:
            keys = table["keys"]
            if not isinstance(keys, list | tuple) or not keys or not all(isinstance(key, str) for key in keys):
                raise self._error(name, "keys", "is not an array of texts, one or more")
            if len(set(keys)) < len(keys):
                raise self._error(name, "keys", "has the same key (masked) twice")
            return list(keys)
        if "key_env" in table:
            raise self._error(name, "key_env", "is for files: a program passes the key itself, as key")
        for source in ("key", "key_file"):
            if source in table:
                value = table[source]
                if not isinstance(value, str):
                    raise self._error(name, source, f"is {kind_of(value)}, not a text")
                return [value if source == "key" else self._try(name, source, _read_key, value)]
        return []

    def _fields(self, name: str, table: Mapping[str, object]) -> tuple[tuple[bytes, ...], frozenset[bytes]]:
        added = table.get("add_headers", {})
        if not isinstance(added, Mapping):
            raise self._error(name, "add_headers", f"is {kind_of(added)}, not a table")
        removed = table.get("remove_headers", [])
        if not isinstance(removed, list | tuple):
            raise self._error(name, "remove_headers", f"is {kind_of(removed)}, not an array")
        for key, names in (("add_headers", list(added)), ("remove_headers", list(removed))):
            for one in names:
                if not isinstance(one, str) or not FIELD_NAME.fullmatch(one) or one.lower() in NOT_FOR_KEYS:
                    raise self._error(name, key, f"{quoted(str(one))} is no field that it may have")
        for one, value in added.items():
            if not isinstance(value, str) or not _FIELD_VALUE.fullmatch(value):
                raise self._error(name, "add_headers", f"the value of {one} (masked) is not printable ASCII")
        lowered = [one.lower() for one in added]
        style = str(table.get("auth", "bearer"))
        own = style.partition(":")[2].lower() if style.startswith("header:") else "authorization"
        if own in lowered or len(set(lowered)) < len(lowered):
            raise self._error(name, "add_headers", "has a field twice, or that of the key")
        lines = tuple(f"{one}: {value}".encode() for one, value in added.items())
        return lines, frozenset(one.lower().encode() for one in (*lowered, *removed))

    def _try(self, name: str, key: str, parse: Callable[[str], _T], value: str) -> _T:
        try:
            return parse(value)
        except ValueError as error:
            # Not chained: a traceback through the parsers could show a value that is a secret.
            problem = without_example(error).replace("TARGET_API_KEY", "key")
            raise self._error(name, key, problem) from None

    def _error(self, name: str, key: str, problem: str) -> ConfigError:
        row = KEYS[key]
        return ConfigError(f"targets.{name}.{key}{self._where}", problem, row.takes, f"{key} = {row.example}")

    def _unknown(self, name: str, key: str) -> ConfigError:
        import difflib  # only for somebody who mistyped

        near = difflib.get_close_matches(key.lower().replace("-", "_"), KEYS, n=1)
        suggestion = f"; did you mean {near[0]}?" if near else ""
        example = near[0] if near else "url"
        return ConfigError(
            f"targets.{name}.{key}{self._where}",
            f"is not a setting of a target{suggestion}",
            ", ".join(KEYS),
            f"{example} = {KEYS[example].example}",
        )


def with_environment(tables: object, environ: Mapping[str, str], where: str) -> object:
    """Return the tables with each `key_env` replaced by the key; what is no table is left for the reader to refuse.

    Raises:
        ConfigError: There is no such variable, or it is empty.
    """
    if not isinstance(tables, Mapping):
        return tables
    found = {}
    for name, table in tables.items():
        if isinstance(table, Mapping) and "key_env" in table and not table.keys() & {"key", "key_file", "keys"}:
            variable = table["key_env"]
            key = environ.get(variable) if isinstance(variable, str) else None
            if not key:
                row = KEYS["key_env"]
                raise ConfigError(
                    f"targets.{name}.key_env{where}",
                    # Else it may be the key itself.
                    f"the environment has no {quoted(variable) if str(variable).isupper() else 'such variable'}",
                    row.takes,
                    f"key_env = {row.example}",
                )
            rest = {one: value for one, value in table.items() if one != "key_env"}
            found[name] = {**rest, "key": key}
        else:
            found[name] = table
    return found


def _prefix(text: str) -> bytes:
    if not _PREFIX.fullmatch(text):
        raise ValueError(f"{quoted(text)} is not a path with something behind its slashes")
    first = text.split("/")[1]
    if first in _ENDPOINTS:
        raise ValueError(f"{quoted(text)} would hide the endpoint /{first}")
    return text.encode()


def _limits(text: str, name: str) -> tuple[Policy, ...]:
    policies = parse_limits(text)
    if len(policies) > _MAX_LIMITS:
        raise ValueError(f"there are {len(policies)} limits, more than {_MAX_LIMITS}")
    return tuple(_of_target(policy, name) for policy in policies)


def _of_target(policy: Policy, name: str) -> Policy:
    return replace(policy, name=f"{name}-{policy.name}")


def _read_key(text: str) -> str:
    from pathlib import Path  # see `serving.named_file`

    path = Path(text)
    shown = quoted(text) if "/" in text else "the file"  # else it may be the key itself
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{shown} is not a file")
        if status.st_mode & FORBIDDEN_MODE:
            raise ValueError(f"{shown} has mode {stat.S_IMODE(status.st_mode):o}: others can read or replace it")
        with path.open("rb") as file:
            content = file.read(_MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{shown} cannot be read: {error.strerror}") from None
    if len(content) > _MAX_KEY_FILE_BYTES or not content.isascii():
        raise ValueError(f"{shown} has no key in it: it is too long, or has bytes outside ASCII")
    return content.decode().strip()
