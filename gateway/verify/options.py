"""The command line of `gateway verify`: what is typed, and what comes from the environment, becomes a plan."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from gateway.config import values
from gateway.errors import ConfigError
from gateway.limits import parse_limits
from gateway.stores.address import RedisAddress, parse_redis_url
from gateway.verify.plan import Faults, Plan, base_url, is_local_redis

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping


_T = TypeVar("_T")

EPILOG: Final = (
    "The token is made for the run by POST /register: with the admin key from ADMIN_KEY or --admin-key-file, or "
    "without one on the gateway's own machine. GATEWAY_TOKEN names one to use instead. "
    "ADMITTED REQUESTS REACH THE API AND MAY COST MONEY: choose a --path that is free, and see --most. "
    "Exit code: 0 when no limit was exceeded, 1 when one was or nothing could be shown."
)
_MOST_LIMIT: Final = 100_000_000
_PATH: Final = re.compile(r"/[!-\"$-~]{0,4000}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add = parser.add_argument
    add("urls", nargs="+", metavar="URL", help="an instance, like http://127.0.0.1:3000; several share the load")
    add("--path", default="/api/", help="what is asked for, by GET (default: /api/)")
    add("--limit", action="append", default=[], metavar="N/TIME", help="the token's limits; takes the admin key")
    add("--processes", default="2", metavar="N", help="how many processes send (default: 2)")
    add("--connections", default="8", metavar="M", help="how many connections each has (default: 8)")
    add("--seconds", default="10s", metavar="TIME", help="how long (default: 10s)")
    add("--most", default="100000", metavar="N", help="how many requests in all at most (default: 100000)")
    add("--admin-key-file", metavar="FILE", help="a file with the admin key (default: ADMIN_KEY)")
    add("--yes", action="store_true", help="do it: needed for instances elsewhere, and to kill Redis")
    add("--json", action="store_true", help="print the result as JSON")
    redis = parser.add_argument_group("what Redis goes through meanwhile (it and whoever else uses it)")
    add = redis.add_argument
    add("--redis-url", metavar="URL", help="which Redis (default: REDIS_URL, where a password belongs)")
    add("--pause-redis", action="store_true", help="CLIENT PAUSE: nobody gets an answer from it for a while")
    add("--kill-redis", action="store_true", help="kill its process (-9) on this machine")
    add("--restart-redis", metavar="COMMAND", help="starts it again (default: a supervisor does)")
    add("--redis-pid", metavar="PID", help="its process (default: as it says itself)")
    add("--outage", default="1s", metavar="TIME", help="how long each lasts (default: 1s)")


def read_plan(options: argparse.Namespace, environ: Mapping[str, str], token_variable: str) -> Plan:
    """Make a plan of what was typed.

    Raises:
        ConfigError: It is not one to carry out.
    """
    admin_key = _admin_key(options.admin_key_file, environ)
    limits = tuple(options.limit)
    if limits:
        _read("--limit", ",".join(limits), parse_limits, "limits as in RATE_LIMIT", "100/second")
        if admin_key is None:
            raise ConfigError("--limit", "only an admin may choose", "the admin key in ADMIN_KEY", "ADMIN_KEY=…")
    if not _PATH.fullmatch(options.path):
        raise ConfigError("--path", "is not a path", "what follows the instance's address", "--path /api/models")
    plan = Plan(
        urls=tuple(dict.fromkeys(map(base_url, options.urls))),
        path=options.path,
        processes=_read("--processes", options.processes, values.count, "a number from 1", "4"),
        connections=_read("--connections", options.connections, values.count, "a number from 1", "16"),
        seconds=_read("--seconds", options.seconds, values.duration_s, "a duration", "30s"),
        most=_read("--most", options.most, _most, f"a number from 1 to {_MOST_LIMIT:,}", "100000"),
        limits=limits,
        admin_key=admin_key,
        token=environ.get(token_variable) or None,
        faults=_faults(options, environ),
    )
    if limits and plan.token:
        raise ConfigError("--limit", f"{token_variable} has limits of its own", "one of the two", "--limit 100/second")
    if plan.needs_consent and not options.yes:
        raise ConfigError("--yes", f"is missing. {' '.join(plan.announce())} If you mean that", "no value", "--yes")
    return plan


def _faults(options: argparse.Namespace, environ: Mapping[str, str]) -> Faults | None:
    if not options.pause_redis and not options.kill_redis:
        for name in ("restart_redis", "redis_pid"):
            if getattr(options, name) is not None:
                option = "--" + name.replace("_", "-")
                raise ConfigError(option, "does nothing by itself", "--kill-redis beside it", "--kill-redis")
        return None
    url = options.redis_url or environ.get("REDIS_URL")
    if not url:
        raise ConfigError("REDIS_URL", "is not set", "the Redis to pause or kill", "REDIS_URL=redis://127.0.0.1:6379/0")
    address = _read("REDIS_URL", url, _one_redis, "the URL of one Redis server", "redis://127.0.0.1:6379/0")
    if options.kill_redis and not is_local_redis(address):
        raise ConfigError("--kill-redis", f"{address} is on another machine", "a Redis of this one", "--pause-redis")
    pid = options.redis_pid
    return Faults(
        address=address,
        pause=options.pause_redis,
        kill=options.kill_redis,
        outage_s=_read("--outage", options.outage, values.duration_s, "a duration", "1s"),
        restart=_read("--restart-redis", options.restart_redis or "", _words, "a command", "'redis-server redis.conf'"),
        pid=None if pid is None else _read("--redis-pid", pid, _pid, "a process's number", "4711"),
    )


def _one_redis(url: str) -> RedisAddress:
    address = parse_redis_url(url)
    if not isinstance(address, RedisAddress):
        raise ValueError("names several servers, and this can pause or kill one")  # noqa: TRY004 - no caller's mistake
    return address


def _admin_key(file: str | None, environ: Mapping[str, str]) -> str | None:
    if file is None:
        return environ.get("ADMIN_KEY") or None
    try:
        key = Path(file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError("--admin-key-file", "cannot be read", "a file with the key in it", "admin.key") from None
    return _read("--admin-key-file", key, values.secret, "a file with the key in it", "admin.key").decode()


def _read(option: str, text: str, parse: Callable[[str], _T], takes: str, example: str) -> _T:
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(option, values.without_example(error), takes, f"{option} {example}") from None


def _most(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= _MOST_LIMIT:
        raise ValueError(f"{values.quoted(text)} is not such a number")
    return int(text)


def _pid(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 2:
        raise ValueError(f"{values.quoted(text)} is not the number of a process")
    return int(text)


def _words(text: str) -> tuple[str, ...]:
    return tuple(shlex.split(text))
