"""Where Redis is, be it one server, one that sentinels know of, or a cluster: the parts of `REDIS_URL`.

Read without importing anything that could connect.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

_EXAMPLE = "e.g. redis://127.0.0.1:6379/0, rediss://user:password@host:6380 or unix:///run/redis.sock"
_MANY_EXAMPLE = "e.g. redis+sentinel://one:26379,two:26379/service/0 or redis+cluster://one:6379,two:6379"
_DEFAULT_PORT = 6379
_DEFAULT_SENTINEL_PORT = 26379
_SCHEMES = {"redis", "rediss", "unix"} | {
    f"{base}+{kind}" for base in ("redis", "rediss") for kind in ("sentinel", "cluster")
}
_URL = re.compile(
    r"(?P<scheme>[a-z+]+)://(?:(?P<login>[^/?\[\]]*)@)?(?P<hosts>[^/?]*)(?P<path>/[^?]*)?(?:\?(?P<options>.*))?"
)


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
        return f"{'rediss' if self.tls else 'redis'}://{self.host_port}/{self.db}"

    @property
    def host_port(self) -> str:
        """Host and port as a URL has them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """A Redis that sentinels know the place of.

    Args:
        sentinels: One or more; user and password are those of Redis, and tried on sentinels that ask for one.
        service: What the sentinels call it.
        db: Number of the database, 0 or more.
    """

    sentinels: tuple[RedisAddress, ...]
    service: str
    db: int = 0

    def __str__(self) -> str:
        """Return the address as a person would name it, without user and password."""
        return f"{_authority(self.sentinels, 'sentinel')}/{self.service}/{self.db}"

    @property
    def password(self) -> str | None:
        """The secret, or None where Redis asks for none."""
        return self.sentinels[0].password

    @property
    def ca_file(self) -> str | None:
        """PEM file of the roots trusted with TLS; None for the system's."""
        return self.sentinels[0].ca_file

    def master(self, host: str, port: int) -> RedisAddress:
        """Return the address of the server that the sentinels named."""
        return replace(self.sentinels[0], host=host, port=port, db=self.db)


@dataclass(frozen=True, slots=True)
class ClusterAddress:
    """A Redis Cluster.

    Args:
        seeds: Some of its nodes; the others are learnt from them.
    """

    seeds: tuple[RedisAddress, ...]

    def __str__(self) -> str:
        """Return the address as a person would name it, without user and password."""
        return _authority(self.seeds, "cluster")

    @property
    def password(self) -> str | None:
        """The secret, or None where Redis asks for none."""
        return self.seeds[0].password

    @property
    def ca_file(self) -> str | None:
        """PEM file of the roots trusted with TLS; None for the system's."""
        return self.seeds[0].ca_file

    def node(self, host: str, port: int) -> RedisAddress:
        """Return the address of a node that another one named."""
        return replace(self.seeds[0], host=host, port=port)


StoreAddress: TypeAlias = RedisAddress | SentinelAddress | ClusterAddress


def _authority(servers: tuple[RedisAddress, ...], kind: str) -> str:
    scheme = "rediss" if servers[0].tls else "redis"
    return f"{scheme}+{kind}://" + ",".join(server.host_port for server in servers)


def parse_redis_url(url: str) -> StoreAddress:
    """Read `REDIS_URL`.

    `redis://[user[:password]@]host[:port][/db]`, `unix://[…@]/path[?db=N]`, `redis+sentinel://[…@]host[:port],…/service[/db]`
    or `redis+cluster://[…@]host[:port],…`; with `rediss` in place of `redis` over TLS, where `?ca_file=/path` names
    the trusted roots. User, password, paths and service may be percent-encoded; `redis://:password@host` has a
    password and no user.

    Raises:
        ValueError: One sentence that says what is wrong and gives an example. Never with the password in it.
    """
    # A URL with control characters is a mistake anyway.
    if re.search(r"[\x00-\x20\x7f]", url):
        raise ValueError(f"the URL has a space or control character in it; {_EXAMPLE}")
    parts = _URL.fullmatch(url)
    if parts is None or parts["scheme"] not in _SCHEMES:
        raise ValueError(f"the URL does not begin with redis:// or one of the others; {_EXAMPLE}")
    if "#" in url:
        raise ValueError(f"the URL has a '#' in it, which a password spells '%23'; {_EXAMPLE}")
    base, _, kind = parts["scheme"].partition("+")
    username, _, password = (parts["login"] or "").partition(":")
    path = (parts["path"] or "").removeprefix("/")
    takes = "ca_file" if base == "rediss" else "db" if base == "unix" else ""
    option = _option(parts["options"] or "", takes, parts["scheme"])
    common = RedisAddress(
        username=unquote(username) or None,
        password=unquote(password) or None,
        tls=base == "rediss",
        ca_file=option if base == "rediss" else None,
    )
    if base == "unix":
        if parts["hosts"] or not path:
            raise ValueError(f"a unix:// URL has a path that begins with '/' and no host; {_EXAMPLE}")
        return replace(common, host="", db=_database(option or ""), unix_path="/" + unquote(path))
    if kind == "sentinel":
        service, _, db = path.partition("/")
        if not service:
            raise ValueError(f"the URL names no service that the sentinels know; {_MANY_EXAMPLE}")
        return SentinelAddress(
            _servers(parts["hosts"], common, _DEFAULT_SENTINEL_PORT), unquote(service), _database(db)
        )
    servers = _servers(parts["hosts"], common, _DEFAULT_PORT)
    if kind == "cluster":
        if path not in {"", "0"}:
            raise ValueError(f"a cluster has one database only, 0; {_MANY_EXAMPLE}")
        return ClusterAddress(servers)
    if len(servers) > 1:
        raise ValueError(f"the URL names several hosts, which only +sentinel and +cluster take; {_MANY_EXAMPLE}")
    return replace(servers[0], db=_database(path))


def _servers(hosts: str, common: RedisAddress, default_port: int) -> tuple[RedisAddress, ...]:
    return tuple(_server(host, common, default_port) for host in hosts.split(","))


def _server(text: str, common: RedisAddress, default_port: int) -> RedisAddress:
    try:
        parts = urlsplit("//" + text)
        host, port = parts.hostname, parts.port
    except ValueError:
        # The reason is not passed on: it can quote a part that holds the password.
        raise ValueError(f"the URL's host or port cannot be read; {_EXAMPLE}") from None
    if not host:
        raise ValueError(f"the URL names no host; {_EXAMPLE}")
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError(f"the URL's host is not a host name; {_EXAMPLE}") from None
    if port == 0:
        raise ValueError(f"the URL's port is not from 1 to 65535; {_EXAMPLE}")
    return replace(common, host=host, port=port or default_port)


def _option(text: str, takes: str, scheme: str) -> str | None:
    if not text:
        return None
    options = parse_qsl(text, keep_blank_values=True)
    if not takes:
        raise ValueError(f"the URL has options after '?', which {scheme}:// has none of; {_EXAMPLE}")
    if len(options) != 1 or options[0][0] != takes:
        value = "/path" if takes == "ca_file" else "N"
        raise ValueError(f"the only option of a {scheme}:// URL is ?{takes}={value}; {_EXAMPLE}")
    return options[0][1]


def _database(text: str) -> int:
    if not text:
        return 0
    if re.fullmatch(r"[0-9]{1,6}", text) is None:
        raise ValueError(f"the URL's database is not a number; {_EXAMPLE}")
    return int(text)
