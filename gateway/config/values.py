"""Readers of single values: text in, typed value out, ValueError with half a sentence for what is wrong.

The half-sentence follows the setting's name in a ConfigError, so it carries no name of its own.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_DURATION = re.compile(r"([0-9]{1,10}(?:\.[0-9]{1,6})?)(ms|s|m|h|d|)")
_SECONDS = {"ms": 0.001, "s": 1, "": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION_LIMIT_S = 10 * 366 * 86400  # ten years: beyond that it is a slip, and timers overflow not far off

_SIZE = re.compile(r"([0-9]{1,15})(b|kb|mb|gb|kib|mib|gib|)")
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}

_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_ADDRESS = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})")

_SOCKET_PATH = re.compile(r"/[^\x00-\x1f\x7f]*[^\x00-\x1f\x7f/]")
_SOCKET_PATH_BYTES = 107  # sockaddr_un has 108, with a zero byte behind the path (unix(7))
_MODE = re.compile(r"mode=0?([0-7]{3})")

_EXAMPLE = re.compile(r"[;,] e\.g\. ")

SECRET_MIN_CHARACTERS = 32
MAX_WORKERS: Final = 256
"""Beyond the cores of any machine that one would give to this; more is a slip."""


class Address(NamedTuple):
    """Where the gateway listens.

    Args:
        host: A name, an IPv4 literal or an IPv6 literal without brackets.
        port: 0 to 65535; 0 lets the kernel choose.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixAddress(NamedTuple):
    """A unix socket that the gateway listens on.

    Args:
        path: Absolute, without control characters; at most 107 bytes.
        mode: Its file's permission bits. Whoever may write to it may connect.
    """

    path: str
    mode: int = 0o600

    def __str__(self) -> str:
        return f"unix:{self.path};mode={self.mode:03o}"


def duration_s(text: str) -> float:
    """Read `5s`, `100ms`, `2m`, `1h`, `30d` or a number of seconds: more than 0, at most ten years."""
    seconds = duration_or_zero_s(text)
    if not seconds:
        raise ValueError("must be more than 0")
    return seconds


def duration_or_zero_s(text: str) -> float:
    """Read a duration as `duration_s` does, or 0."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{quoted(text)} is not a duration")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > _DURATION_LIMIT_S:
        raise ValueError(f"{quoted(text)} is longer than ten years")
    return seconds


def lifetime_s(text: str) -> int | None:
    """Read a duration of whole seconds; 0, which stands for no end, gives None."""
    seconds = duration_or_zero_s(text)
    if seconds != int(seconds):
        raise ValueError(f"{quoted(text)} is not a whole number of seconds")
    return int(seconds) or None


def size_bytes(text: str) -> int:
    """Read a number of bytes, plain, in kB, MB, GB (powers of 1000) or KiB, MiB, GiB (of 1024): 1 or more."""
    match = _SIZE.fullmatch(text.lower())
    if match is None:
        raise ValueError(f"{quoted(text)} is not a size")
    size = int(match[1]) * _BYTES[match[2]]
    if not size:
        raise ValueError("must be at least 1 byte")
    return size


def count(text: str) -> int:
    """Read a whole number from 1 to 65535."""
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ValueError(f"{quoted(text)} is not a whole number from 1 to 65535")
    return int(text)


def workers(text: str) -> int:
    """Read a whole number from 1 to 256, or `auto`: as many as there are CPUs to use."""
    if text == "auto":
        from gateway.cpus import usable_cpus  # looks at files

        return min(MAX_WORKERS, usable_cpus())
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= MAX_WORKERS:
        raise ValueError(f"{quoted(text)} is neither auto nor a whole number from 1 to {MAX_WORKERS}")
    return int(text)


def one_of(*names: str) -> Callable[[str], str]:
    """Return a reader for a setting that takes one of these names, as they are spelled here."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"{quoted(text)} is not one of its values")
        return text

    return parse


def log_level(text: str) -> str:
    """Read a level of the program's own log, in either case."""
    level = text.lower()
    if level not in {"debug", "info", "warning", "error"}:
        raise ValueError(f"{quoted(text)} is not a log level")
    return level


def limit_mode(text: str) -> str:
    """Read what limits do: `enforce` or `shadow`."""
    if text not in {"enforce", "shadow"}:
        raise ValueError(f"{quoted(text)} is neither enforce nor shadow")
    return text


def addresses(text: str) -> tuple[Address | UnixAddress, ...]:
    """Read `host:port`, `[v6]:port` and `unix:/path`, several joined by commas, none of them twice."""
    found = tuple(_address(part.strip()) for part in text.split(","))
    fixed = [address[0] if isinstance(address, UnixAddress) else address for address in found if address[1]]
    if len(set(fixed)) != len(fixed):
        raise ValueError("the same address is there twice")
    return found


def _address(text: str) -> Address | UnixAddress:
    if text.startswith("unix:"):
        return _unix_address(text.removeprefix("unix:"))
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError(f"{quoted(text)} is not host:port")
    host, port = match["v6"] if match["v6"] is not None else match["host"].lower(), int(match["port"])
    if match["v6"] is None:
        check_host(host)
    elif not is_ipv6(host.partition("%")[0]):  # a zone, as in fe80::1%eth0
        raise ValueError(f"{quoted(text)} has no IPv6 address in its brackets")
    if port > 65535:
        raise ValueError(f"{quoted(text)} has a port over 65535")
    return Address(host, port)


def _unix_address(text: str) -> UnixAddress:
    path, semicolon, option = text.partition(";")
    if not _SOCKET_PATH.fullmatch(path):
        raise ValueError(f"{quoted('unix:' + path)} has no absolute path of a file behind 'unix:'")
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        raise ValueError(f"{quoted(path)} is longer than the {_SOCKET_PATH_BYTES} bytes that a socket's path may have")
    if not semicolon:
        return UnixAddress(path)
    match = _MODE.fullmatch(option)
    if match is None:
        raise ValueError(f"{quoted(option)} is not a mode like mode=660")
    return UnixAddress(path, int(match[1], 8))


def secrets(text: str) -> tuple[bytes, ...]:
    """Read secrets joined by commas: printable ASCII without spaces, 32 characters or more, all different."""
    found = tuple(secret(part.strip()) for part in text.split(","))
    if len(set(found)) != len(found):
        raise ValueError("the same secret is there twice")
    return found


def secret(text: str) -> bytes:
    """Read one secret: printable ASCII without spaces, 32 characters or more."""
    if not re.fullmatch(r"[!-~]*", text):
        raise ValueError("the value (masked) has spaces, control characters or characters outside ASCII")
    if len(text) < SECRET_MIN_CHARACTERS:
        raise ValueError(f"the value (masked) has {len(text)} characters, which is too short to be safe")
    return text.encode()


def check_host(host: str) -> None:
    """Raise ValueError unless `host` is an IPv4 literal or a name in lower-case ASCII."""
    if not _HOST_NAME.fullmatch(host):
        raise ValueError(f"{quoted(host)} is not a host name")
    # Resolvers read '127.1' and '2130706433' as addresses too, each in its own way.
    if host.rpartition(".")[2].isdigit() and not is_ipv4(host):
        raise ValueError(f"{quoted(host)} is not an IPv4 address")


def is_ipv4(text: str) -> bool:
    """Whether `text` is an IPv4 literal of four decimal numbers."""
    return _is_literal(socket.AF_INET, text)


def is_ipv6(text: str) -> bool:
    """Whether `text` is an IPv6 literal without brackets and zone."""
    return _is_literal(socket.AF_INET6, text)


def _is_literal(family: int, text: str) -> bool:
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):
        return False
    return True


def readable_file(text: str) -> str:
    """Read the path of a file that this process can read."""
    from pathlib import Path  # see `serving.named_file`

    path = Path(text)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for its writer
            raise ValueError(f"{quoted(text, 200)} is not a file")
        with path.open("rb"):
            return text
    except OSError as error:
        raise ValueError(f"{quoted(text, 200)} cannot be read: {error.strerror}") from None


def without_example(error: ValueError) -> str:
    """Return what a reader says is wrong, without the example it may end with: a ConfigError has one of its own."""
    return _EXAMPLE.split(str(error))[0]


def quoted(text: str, most: int = 60) -> str:
    """Return `text` for a message: quoted, on one line, cut when it has more than `most` characters."""
    return repr(text if len(text) <= most else text[: most - 3] + "…")


def printable(text: str) -> str:
    """Return a text without what a terminal would obey."""
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)


def kind_of(value: object) -> str:
    """Say what a value is that is of the wrong kind, as TOML calls it."""
    names = {bool: "a boolean", list: "an array", tuple: "an array", dict: "a table", type(None): "not set"}
    names |= {int: "a number", float: "a number", str: "a text"}
    return names.get(type(value), f"a {type(value).__name__}")
