"""What a run does, found good before anything is sent."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

from gateway.config import values
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.stores.address import RedisAddress

URL_EXAMPLE: Final = "gateway verify http://127.0.0.1:3000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one worker sends.

    Args:
        urls: Base URLs of instances; connections are dealt out to them in turns.
        token: Whose limits are tried.
        path: What is asked for, on the gateway: `/api/…`.
        connections: How many, each with one request at a time.
        first: The number of the first of them, so that workers begin at different instances.
        most: How many requests at most.
    """

    urls: tuple[str, ...]
    token: str = field(repr=False)
    path: str
    connections: int
    first: int
    most: int

    def to_json(self) -> str:
        """Write it on one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "urls": tuple(fields["urls"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What Redis goes through meanwhile.

    Args:
        address: Which Redis.
        pause: Stop it from answering anybody, by `CLIENT PAUSE`.
        kill: End its process as `kill -9` does.
        outage_s: How long each of them lasts.
        restart: The command that starts it again, as its words; empty where a supervisor does.
        pid: Its process; None: the one that it says itself.
    """

    address: RedisAddress
    pause: bool
    kill: bool
    outage_s: float
    restart: tuple[str, ...] = ()
    pid: int | None = None

    def announce(self) -> list[str]:
        """Say, in a sentence for each, what will be done to Redis."""
        said: list[str] = []
        if self.pause:
            said.append(f"All clients of {self.address} will wait for {self.outage_s:g} s (CLIENT PAUSE).")
        if self.kill:
            again = f"started again with: {shlex.join(self.restart)}" if self.restart else "for a supervisor to restart"
            said.append(f"The process of {self.address} will be killed (-9) and, {self.outage_s:g} s later, {again}.")
        return said


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole run.

    Args:
        urls: Base URLs of the instances, without a path.
        path: What is asked for.
        processes: How many workers.
        connections: How many each of them has.
        seconds: How long requests are sent.
        most: How many requests at most, in all.
        limits: What the token's limits are to be; empty: the gateway's own. Takes the admin key.
        admin_key: Of the deployment, or None.
        token: An existing token to use in place of one that is made for the run, or None.
        faults: What Redis goes through, or None.
    """

    urls: tuple[str, ...]
    path: str
    processes: int
    connections: int
    seconds: float
    most: int
    limits: tuple[str, ...]
    admin_key: str | None = field(repr=False)
    token: str | None = field(repr=False)
    faults: Faults | None

    @property
    def is_local(self) -> bool:
        """Whether all that is touched is on this machine."""
        redis = self.faults and self.faults.address
        return all(map(is_loopback, (urlsplit(url).hostname or "" for url in self.urls))) and (
            not redis or is_local_redis(redis)
        )

    @property
    def needs_consent(self) -> bool:
        """Whether it may cost something to somebody else than the one who typed the command."""
        return not self.is_local or (self.faults is not None and self.faults.kill)

    def announce(self) -> list[str]:
        """Say what is about to be done, and what it may cost."""
        asked = f"at most {self.most:,} requests, GET {self.path}"
        return [
            f"Admitted requests reach the API behind {', '.join(self.urls)} and may cost money: {asked}.",
            *(self.faults.announce() if self.faults else ()),
        ]

    def loads(self, token: str) -> list[Load]:
        """Deal the load out to the workers."""
        share, rest = divmod(self.most, self.processes)
        return [
            Load(
                urls=self.urls,
                token=token,
                path=self.path,
                connections=self.connections,
                first=number * self.connections,
                most=share + (number < rest),
            )
            for number in range(self.processes)
        ]


def is_loopback(host: str) -> bool:
    """Whether a host's name or literal address means this machine."""
    return host in {"localhost", "::1"} or (host.startswith("127.") and values.is_ipv4(host))


def is_local_redis(address: RedisAddress) -> bool:
    """Whether Redis runs on this machine."""
    return address.unix_path is not None or is_loopback(address.host)


def base_url(text: str) -> str:
    """Read the address of an instance: http or https, a host, perhaps a port, and nothing behind.

    Raises:
        ConfigError: It is not one.
    """
    try:
        url = urlsplit(text)
        good = url.scheme in {"http", "https"} and url.hostname and url.port != 0 and not url.username
    except ValueError:
        good = False
    if not good or url.path not in {"", "/"} or url.query or url.fragment:
        raise ConfigError("URL", "is not an instance's address", "http:// or https://, a host and a port", URL_EXAMPLE)
    return f"{url.scheme}://{url.netloc}"
