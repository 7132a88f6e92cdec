"""Where Redis is: the parts of `REDIS_URL`, read without importing anything that could connect."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

_EXAMPLE = "e.g. redis://127.0.0.1:6379/0, rediss://user:password@host:6380 or unix:///run/redis.sock"
_DEFAULT_PORT = 6379


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """One Redis server and how to log in to it.

    Args:
        host: Name or address; empty when `unix_path` is set.
        port: TCP port, 1 to 65535.
        db: Number of the database, 0 or more.
        username: ACL user, or None for the default one.
        password: The secret, or None where Redis asks for none. Kept out of `repr`.
        tls: Whether to speak TLS, with the certificate verified against `host`.
        unix_path: Path of a unix socket, used instead of host and port.
        ca_file: PEM file of the roots trusted with TLS; None for the system's.
    """

    host: str = "127.0.0.1"
    port: int = _DEFAULT_PORT
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    unix_path: str | None = None
    ca_file: str | None = None

    def __str__(self) -> str:
        """Return the address as a person would name it, without user and password."""
        if self.unix_path is not None:
            return f"unix://{self.unix_path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"


def parse_redis_url(url: str) -> RedisAddress:
    """Read `redis://[user[:password]@]host[:port][/db]`, `rediss://…` (TLS) or `unix://[…@]/path[?db=N]`.

    User, password and path may be percent-encoded; `redis://:password@host` has a password and no user.

    Raises:
        ValueError: One sentence that says what is wrong and gives an example. Never with the password in it.
    """
    # urlsplit() quietly drops tabs and line ends; and a URL with control characters is a mistake anyway.
    if re.search(r"[\x00-\x20\x7f]", url):
        raise ValueError(f"the URL has a space or control character in it; {_EXAMPLE}")
    scheme = url.partition("://")[0]
    if scheme in {"redis+sentinel", "redis+cluster"}:
        raise ValueError(f"'{scheme}://' is not available yet; name one server, {_EXAMPLE}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # The reason is not passed on: it can quote the part that holds the password.
        raise ValueError(f"the URL's host or port cannot be read; {_EXAMPLE}") from None
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError(f"the URL does not begin with redis://, rediss:// or unix://; {_EXAMPLE}")
    if parts.fragment:
        raise ValueError(f"the URL has a '#' in it, which a password spells '%23'; {_EXAMPLE}")
    username = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    if parts.scheme == "unix":
        return _unix_address(parts, username, password)
    if not parts.hostname:
        raise ValueError(f"the URL names no host; {_EXAMPLE}")
    try:
        parts.hostname.encode("idna")
    except UnicodeError:
        raise ValueError(f"the URL's host is not a host name; {_EXAMPLE}") from None
    if port == 0:
        raise ValueError(f"the URL's port is not from 1 to 65535; {_EXAMPLE}")
    if parts.query:
        raise ValueError(f"the URL has options after '?', which {parts.scheme}:// has none of; {_EXAMPLE}")
    return RedisAddress(
        host=parts.hostname,
        port=port or _DEFAULT_PORT,
        db=_database(parts.path.removeprefix("/")),
        username=username,
        password=password,
        tls=parts.scheme == "rediss",
    )


def _unix_address(parts: SplitResult, username: str | None, password: str | None) -> RedisAddress:
    if parts.hostname or len(parts.path) < 2:
        raise ValueError(f"a unix:// URL has a path that begins with '/' and no host; {_EXAMPLE}")
    option, _, db = parts.query.partition("=")
    if option not in {"", "db"}:
        raise ValueError(f"the only option of a unix:// URL is ?db=N; {_EXAMPLE}")
    return RedisAddress(host="", db=_database(db), username=username, password=password, unix_path=unquote(parts.path))


def _database(text: str) -> int:
    if not text:
        return 0
    if re.fullmatch(r"[0-9]{1,6}", text) is None:
        raise ValueError(f"the URL's database is not a number; {_EXAMPLE}")
    return int(text)
