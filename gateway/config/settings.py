"""`Config`, what a user writes, and `Settings`, what the program reads."""

from __future__ import annotations

import copy
from dataclasses import InitVar, dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from gateway.budgets.family import GatewayBudgets, is_long
from gateway.budgets.grammar import parse_budgets
from gateway.config import budgets, guards, values
from gateway.config.itself import leads_to
from gateway.config.reading import Reader
from gateway.config.table import SETTINGS
from gateway.config.target import KeyPair, Target, parse_key_style, parse_url, with_key
from gateway.config.targets import TargetReader, TargetSettings
from gateway.config.values import Address
from gateway.limits import parse_concurrency, parse_limits
from gateway.stamps import stamp

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gateway.budgets.budget import Budget
    from gateway.budgets.pace import SpendGuard
    from gateway.config.reading import Spelling
    from gateway.config.values import UnixAddress
    from gateway.limits import Policy
    from gateway.metering.costs import CostTable
    from gateway.stamps import Stamp
    from gateway.stores.address import StoreAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A configuration that has been found good, as typed values. Seconds are floats, sizes are bytes.

    Args:
        target: The upstream API.
        targets: Others beside it, with other prefixes.
        target_cost: What requests to the first cost; None: nobody counts that.
        limits: Per token; all must allow.
        global_limits: All tokens together; all must allow. May be empty.
        concurrency_limit: Requests in flight per token, whatever limits it has of its own.
        global_concurrency_limit: Requests in flight of all tokens together.
        shadow: Limits only tell what they would refuse.
        budgets: What tokens may cost, each and together, and where the days of budgets begin.
        budget_clamp: Requests ask for no more output tokens than there is money for.
        budget_cut: A stream that costs more than was reserved, and can reserve no more, is ended.
        disconnect_drain_s: How long an answer is read on when its client has left, to learn its cost; 0: not at all.
        loop_guard: How often the same request may be sent, as the bucket that each is counted in; None: any.
        spend_guard: How many times its usual pace a token may spend; None: any.
        state_file: Where the embedded store keeps budgets; None: in memory.
        redis: Where the shared store is; None for the embedded one.
        on_store_loss: Who decides when the shared store cannot: `deny`, `local` or `allow`.
        store_timeout_s: The longest a request waits for the shared store.
        listen: One or more addresses, and paths of unix sockets; a port of 0 is chosen by the kernel.
        workers: Processes that share these, 1 to 256; of `gateway serve` alone, for a program has one process.
        tls: The certificate to show to clients on TCP; None for plain HTTP.
        token_secrets: The first signs, all verify; empty when none is configured.
        token_ttl_s: How long an issued token is good; None for no end.
        admin_key: Guards `/register` and `/admin/…`; None: loopback peers only.
        access_log: `off`, `json` or `common`: a line for each request, on stdout.
        log_level: `debug`, `info`, `warning` or `error`.
        max_body: The longest request body, in bytes; None for no limit.
        connect_timeout_s: Connecting upstream, TLS included.
        response_timeout_s: From the request's end to the first byte of its answer.
        idle_timeout_s: Between two bytes of a body.
        header_timeout_s: For a client's whole head.
        keepalive_timeout_s: An idle client connection.
        drain_timeout_s: How long a stop waits for what is in flight; may be 0.
        upstream_pool: Connections kept per upstream, 1 to 65535.
        upstream_idle_s: How long one of them may idle.
    """

    target: Target
    targets: tuple[TargetSettings, ...]
    target_cost: CostTable | None
    limits: tuple[Policy, ...]
    global_limits: tuple[Policy, ...]
    concurrency_limit: Policy | None
    global_concurrency_limit: Policy | None
    shadow: bool
    budgets: GatewayBudgets
    budget_clamp: bool
    budget_cut: bool
    disconnect_drain_s: float
    loop_guard: Policy | None
    spend_guard: SpendGuard | None
    state_file: str | None
    redis: StoreAddress | None = field(repr=False)
    on_store_loss: str
    store_timeout_s: float
    listen: tuple[Address | UnixAddress, ...]
    workers: int
    tls: KeyPair | None
    token_secrets: tuple[bytes, ...] = field(repr=False)
    token_ttl_s: int | None
    admin_key: bytes | None = field(repr=False)
    access_log: str
    log_level: str
    max_body: int | None
    connect_timeout_s: float
    response_timeout_s: float
    idle_timeout_s: float
    header_timeout_s: float
    keepalive_timeout_s: float
    drain_timeout_s: float
    upstream_pool: int
    upstream_idle_s: float

    @property
    def common_limits(self) -> tuple[Policy, ...]:
        """What every token is under, whatever limits it has of its own."""
        own, shared = self.concurrency_limit, self.global_concurrency_limit
        return (*((own,) if own else ()), *self.global_limits, *((shared,) if shared else ()))

    @property
    def sent_to(self) -> str:
        """Where requests go, for the log."""
        others = [f"{target.keyed[0].prefix.decode()} to {target.keyed[0].url}" for target in self.targets]
        return ", ".join([self.target.url, *others])

    @property
    def cost_units(self) -> frozenset[str]:
        """What the requests to any target have a cost in."""
        tables = filter(None, (self.target_cost, *(target.cost for target in self.targets)))
        return frozenset(unit for table in tables for unit in table.units)

    @property
    def idle_budgets(self) -> tuple[Budget, ...]:
        """Those budgets of the gateway's that hold nothing: no target's requests have a cost in their unit."""
        units = self.cost_units
        return tuple(one for one in (*self.budgets.each, *self.budgets.together) if one.unit not in units)

    @property
    def all_limits(self) -> tuple[Policy, ...]:
        """All that a token without limits of its own is under, whichever target it is used at."""
        limits = (*self.limits, *self.common_limits, *(limit for target in self.targets for limit in target.limits))
        return tuple(replace(limit, shadow=True) for limit in limits) if self.shadow else limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A gateway's configuration, one field per setting, each as the user writes it; validated as it is made.

    The README's table says what each setting means. Durations are `"5s"`, `"100ms"`, `"2m"`, `"1h"`, `"30d"`
    or a number of seconds; sizes are `"10MB"`, `"10MiB"` or a number of bytes. Secrets do not show in `repr`.

    Args:
        targets: Other APIs by name, as the tables `[targets.NAME]` of a file, but for `key_env`.
        prices: Prices of language models by their names, as the tables `[prices."MODEL"]` of a file.
        spelled: How each setting was written, for messages; `load` fills it in. None: as keyword arguments.
        read_from: The file that settings are from, as it was before it was read; likewise.

    Attributes:
        files: What was read, as it was just before: if one is another by now, there is a reason to read again.
            Certificates and their keys are not among them: they are looked after where they are used.

    Raises:
        ConfigError: A value that the gateway cannot run with.
    """

    target_api_url: str
    target_api_key: str | None = field(default=None, repr=False)
    target_api_auth: str = "bearer"
    rate_limit: str | int = "60"
    global_rate_limit: str | int | None = None
    concurrency_limit: str | int | None = None
    global_concurrency_limit: str | int | None = None
    rate_limit_mode: str = "enforce"
    budget: str | None = None
    global_budget: str | None = None
    budget_timezone: str = "UTC"
    budget_clamp: str = "off"
    budget_cut: str = "off"
    on_disconnect: str = "cancel"
    loop_guard: str | int = "off"
    spend_guard: str = "off"
    state_file: str | None = None
    redis_url: str | None = field(default=None, repr=False)
    on_store_loss: str = "deny"
    store_timeout: str | float = "100ms"
    gateway_listen: str = "127.0.0.1:0"
    gateway_tls_cert: str | None = None
    gateway_tls_key: str | None = None
    gateway_workers: str | int = 1
    token_secret: str | None = field(default=None, repr=False)
    token_ttl: str | float = "30d"  # noqa: S105 (a duration)
    admin_key: str | None = field(default=None, repr=False)
    access_log: str = "off"
    log_level: str = "info"
    max_body: str | int | None = None
    connect_timeout: str | float = "5s"
    response_timeout: str | float = "600s"
    idle_timeout: str | float = "600s"
    header_timeout: str | float = "10s"
    keepalive_timeout: str | float = "75s"
    drain_timeout: str | float = "30s"
    upstream_pool: str | int = 256
    upstream_idle: str | float = "10s"
    target_ca_file: str | None = None
    target_client_cert: str | None = None
    target_client_key: str | None = None
    target_cost: str | Mapping[str, object] | None = field(default=None, hash=False)
    targets: Mapping[str, Mapping[str, object]] = field(default_factory=dict, repr=False, hash=False)
    prices: Mapping[str, Mapping[str, object]] = field(default_factory=dict, hash=False)
    spelled: InitVar[Mapping[str, Spelling] | None] = None
    read_from: InitVar[Mapping[Path, Stamp | None] | None] = None
    files: Mapping[Path, Stamp | None] = field(init=False, repr=False, compare=False)
    settings: Settings = field(init=False, repr=False, compare=False)

    def __post_init__(
        self, spelled: Mapping[str, Spelling] | None, read_from: Mapping[Path, Stamp | None] | None
    ) -> None:
        named = {}
        if isinstance(self.target_ca_file, str):
            named[self.target_ca_file] = stamp(self.target_ca_file)
        object.__setattr__(self, "settings", _compile(Reader(self, spelled or {})))
        for target in self.settings.targets:
            named.update(target.files)
        object.__setattr__(self, "files", {**(read_from or {}), **_at_paths(named)})

    def at_prefix(self, prefix: bytes) -> Config:
        """Return the same configuration, with its target under another path prefix than `/api`."""
        changed = copy.copy(self)
        target = replace(self.settings.target, prefix=prefix)
        object.__setattr__(changed, "settings", replace(self.settings, target=target))
        return changed


def _compile(read: Reader) -> Settings:
    listen = read("gateway_listen", values.addresses)
    redis = read.optional("redis_url", _redis)
    state_file = _state_file(read, has_redis=redis is not None)
    prices = budgets.read_prices(read.given("prices"), read.where("prices"))
    return Settings(
        target=_target(read, listen),
        targets=TargetReader(read.where("targets"), lambda target: _check_other(target, listen), _ca_file, prices).read(
            read.given("targets")
        ),
        target_cost=budgets.target_cost(read, prices),
        limits=read("rate_limit", parse_limits),
        global_limits=read.optional("global_rate_limit", lambda text: parse_limits(text, shared=True)) or (),
        concurrency_limit=read.optional("concurrency_limit", parse_concurrency),
        global_concurrency_limit=read.optional(
            "global_concurrency_limit", lambda text: parse_concurrency(text, shared=True)
        ),
        shadow=read("rate_limit_mode", values.limit_mode) == "shadow",
        budgets=_budgets(read, forgets=redis is None and state_file is None),
        budget_clamp=read("budget_clamp", values.one_of("on", "off")) == "on",
        budget_cut=read("budget_cut", values.one_of("on", "off")) == "on",
        disconnect_drain_s=read("on_disconnect", budgets.drain_s),
        loop_guard=read("loop_guard", guards.loop_guard),
        spend_guard=read("spend_guard", guards.spend_guard),
        state_file=state_file,
        redis=redis,
        on_store_loss=read("on_store_loss", values.one_of("deny", "local", "allow")),
        store_timeout_s=read("store_timeout", values.duration_s),
        listen=listen,
        workers=_workers(read, has_redis=redis is not None),
        tls=_key_pair(read, "gateway_tls"),
        token_secrets=read.optional("token_secret", values.secrets) or (),
        token_ttl_s=read("token_ttl", values.lifetime_s),
        admin_key=read.optional("admin_key", values.secret),
        access_log=read("access_log", values.one_of("off", "json", "common")),
        log_level=read("log_level", values.log_level),
        max_body=read.optional("max_body", values.size_bytes),
        connect_timeout_s=read("connect_timeout", values.duration_s),
        response_timeout_s=read("response_timeout", values.duration_s),
        idle_timeout_s=read("idle_timeout", values.duration_s),
        header_timeout_s=read("header_timeout", values.duration_s),
        keepalive_timeout_s=read("keepalive_timeout", values.duration_s),
        drain_timeout_s=read("drain_timeout", values.duration_or_zero_s),
        upstream_pool=read("upstream_pool", values.count),
        upstream_idle_s=read("upstream_idle", values.duration_s),
    )


def _state_file(read: Reader, *, has_redis: bool) -> str | None:
    path = read.optional("state_file", budgets.state_file)
    if path is not None and has_redis:
        problem = "is set and REDIS_URL as well, where budgets are kept already"
        raise read.error("state_file", problem, "without one of the two")
    return path


def _budgets(read: Reader, *, forgets: bool) -> GatewayBudgets:
    zone = read("budget_timezone", budgets.time_zone)
    each = read.optional("budget", lambda text: parse_budgets(text, zone=zone))
    together = read.optional("global_budget", lambda text: parse_budgets(text, shared=True, zone=zone))
    for name, found in (("budget", each), ("global_budget", together)):
        if forgets and any(map(is_long, found or ())):
            problem = "a day or longer is forgotten at a restart, unless there is a STATE_FILE or REDIS_URL"
            raise read.error(name, problem, f"with STATE_FILE={SETTINGS['state_file'].example}")
    return GatewayBudgets(each or (), together or (), zone, forgets)


def _workers(read: Reader, *, has_redis: bool) -> int:
    count = read("gateway_workers", values.workers)
    if count > 1 and not has_redis:
        mend = f"with REDIS_URL={SETTINGS['redis_url'].example}"
        raise read.error("gateway_workers", f"{count} processes need a store that they share", mend)
    return count


def _target(read: Reader, listen: tuple[Address | UnixAddress, ...]) -> Target:
    target = read("target_api_url", parse_url)
    try:
        _check_other(target, listen)
    except ValueError as error:
        raise read.error("target_api_url", str(error)) from None
    style = read("target_api_auth", parse_key_style)
    keyed = read.optional("target_api_key", lambda key: with_key(target, key, style))
    client = _key_pair(read, "target_client")
    if client is not None and not target.tls:
        raise read.error("target_client_cert", "is of no use where TARGET_API_URL is http://")
    return replace(keyed or target, ca_file=read.optional("target_ca_file", _ca_file), client=client)


def _key_pair(read: Reader, name: str) -> KeyPair | None:
    """Read `…_cert` and `…_key`, and see whether they belong together."""
    cert, key = read.optional(f"{name}_cert", values.readable_file), read.optional(f"{name}_key", values.readable_file)
    if cert is None:
        if key is not None:
            missing = SETTINGS[f"{name}_cert"]
            mend = f"with {missing.environment}={missing.example}"
            raise read.error(f"{name}_key", f"is set, but {missing.environment} is not", mend)
        return None
    from gateway.certificates import server_context  # only here: ssl takes 10 ms to load

    read(f"{name}_cert" if key is None else f"{name}_key", lambda _: server_context(cert, key))
    return KeyPair(cert, key)


def _at_paths(named: Mapping[str, Stamp | None]) -> dict[Path, Stamp | None]:
    if not named:
        return {}
    from pathlib import Path  # see `serving.named_file`

    return {Path(name): seen for name, seen in named.items()}


def _check_other(target: Target, listen: tuple[Address | UnixAddress, ...]) -> None:
    """Raise ValueError if a target is the gateway itself: a request to it would never end."""
    for address in (one for one in listen if isinstance(one, Address)):
        if address.port == target.port and leads_to(target.host, address.host):
            raise ValueError(f"{target.url} is this gateway itself, which listens on {address}")


def _redis(text: str) -> StoreAddress:
    from gateway.stores.address import parse_redis_url  # the embedded store has none

    address = parse_redis_url(text)
    if address.ca_file is not None:
        _ca_file(address.ca_file)
    return address


def _ca_file(text: str) -> str:
    values.readable_file(text)
    _check_roots(text, stamp(text))
    return text


@lru_cache(maxsize=64)
def _check_roots(path: str, seen: Stamp | None) -> None:
    """Look into a CA file once for each time that it changes: of the system's size, it takes a tenth of a second."""
    del seen
    import ssl  # only here: it takes 10 ms to load

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError(f"{path!r} has no certificate in PEM form in it") from None
