"""What a configuration resolves to, in words that hold no secret."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.budgets.budget import amount_of
from gateway.budgets.grammar import written
from gateway.config.table import SETTINGS
from gateway.limits import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gateway.budgets.budget import Budget
    from gateway.config.settings import Config
    from gateway.config.target import KeyPair, Target
    from gateway.config.targets import TargetSettings
    from gateway.limits import Policy
    from gateway.metering.costs import CostTable
    from gateway.stores.address import StoreAddress


def describe(config: Config) -> list[tuple[str, str]]:
    """Return every setting's environment name and what it resolves to.

    No secret is in it, nor part of one: of keys there is the length, of `REDIS_URL` all but the credentials.
    """
    resolved = _resolved(config)
    targets = config.settings.targets
    before = [("TARGET_API_URL", config.settings.target), *((f"targets.{one.name}", one.keyed[0]) for one in targets)]
    return [
        (setting.environment, resolved.get(name) or _as_written(getattr(config, name)))
        for name, setting in SETTINGS.items()
    ] + [
        *(pair for index, target in enumerate(targets) for pair in _target(target, before[: index + 1])),
        *((f"prices.{model}", _prices(table)) for model, table in config.prices.items()),
    ]


def _target(target: TargetSettings, before: Sequence[tuple[str, Target]]) -> list[tuple[str, str]]:
    """Describe another target: of its keys the number and the lengths, of the fields that it adds the names.

    Args:
        target: That target.
        before: Those that come before it in the configuration, with what they are called there.
    """
    one = target.keyed[0]
    first = next((name for name, other in before if one.shares_urls(other)), None)
    note = "" if first is None else f" (in the proxy form, {first} comes first: they have the same URLs)"
    key = ", ".join(_length(key) for key in target.keys) or "not set: requests go upstream without a key"
    timeouts = {name: getattr(target, name + "_s") for name in ("connect_timeout", "response_timeout", "idle_timeout")}
    words = {
        "prefix": one.prefix.decode(),
        "url": one.url + note,
        "key": key,
        "auth": target.auth,
        "rate_limit": _limits(target.limits) or "none of its own",
        "concurrency_limit": _limits(filter(None, [target.concurrency_limit])) or "none of its own",
        **{name: "the gateway's" if seconds is None else f"{seconds} s" for name, seconds in timeouts.items()},
        "ca_file": one.ca_file or "the system's roots",
        "cost": _cost(target.cost),
        "add_headers": ", ".join(line.partition(b":")[0].decode() for line in one.added) or "none",
        "remove_headers": ", ".join(sorted(name.decode() for name in one.removed)) or "none",
    }
    return [(f"targets.{target.name}.{name}", word) for name, word in words.items()]


def _resolved(config: Config) -> dict[str, str]:
    settings = config.settings
    durations = (name.removesuffix("_s") for name in type(settings).__slots__ if name.endswith("_s"))
    words = {name: f"{getattr(settings, name + '_s')} s" for name in durations}
    words |= {
        "target_api_url": settings.target.url,
        "target_api_key": _length(config.target_api_key) or "not set: requests go upstream without a key",
        "rate_limit": _limits(settings.limits),
        "global_rate_limit": _limits(settings.global_limits),
        "concurrency_limit": _limits(filter(None, [settings.concurrency_limit])) or "no limit",
        "global_concurrency_limit": _limits(filter(None, [settings.global_concurrency_limit])) or "no limit",
        "budget": _budgets(settings.budgets.each, settings.idle_budgets),
        "global_budget": _budgets(settings.budgets.together, settings.idle_budgets),
        "on_disconnect": f"read on for {drain_s} s" if (drain_s := settings.disconnect_drain_s) else "cancel",
        "loop_guard": _loop_guard(settings.loop_guard),
        "spend_guard": _spend_guard(config),
        "state_file": _state_file(config),
        "redis_url": _redis(settings.redis),
        "on_store_loss": settings.on_store_loss + ("" if settings.redis else " (no matter without REDIS_URL)"),
        "gateway_listen": ", ".join(map(str, settings.listen)),
        "gateway_workers": str(settings.workers),
        "token_secret": _token_secret(config),
        "token_ttl": "no end" if settings.token_ttl_s is None else f"{settings.token_ttl_s} s",
        "admin_key": _length(config.admin_key) or "not set: /register and /admin/ answer loopback peers only",
        "max_body": "no limit" if settings.max_body is None else f"{settings.max_body} bytes",
        "target_ca_file": config.target_ca_file or "the system's roots",
        "gateway_tls_cert": config.gateway_tls_cert or "not set: clients speak plain HTTP",
        "gateway_tls_key": _key_file(settings.tls),
        "target_client_cert": config.target_client_cert or "not set: none is shown to the API",
        "target_client_key": _key_file(settings.target.client),
        "target_cost": _cost(settings.target_cost),
    }
    return words


def _key_file(pair: KeyPair | None) -> str:
    if pair is None:
        return "not set"
    from gateway.certificates import is_open_to_others  # only here: ssl takes 10 ms to load

    path = pair.key_file
    return f"{path} (too open: chmod 600 {path})" if is_open_to_others(path) else path


def _loop_guard(guard: Policy | None) -> str:
    return "off" if guard is None else f"of the same request {_limit(guard)}"


def _spend_guard(config: Config) -> str:
    guard = config.settings.spend_guard
    if guard is None:
        return "off"
    window_s, times = guard.window_us / 1e6, guard.times
    words = f"in {window_s:g} s warns at {times} times the usual, slows at {times * 1.5:g}, stops at {times * 2}"
    note = " (holds nothing: no target's requests have a cost in USD)"
    return words + ("" if "USD" in config.settings.cost_units else note)


def _state_file(config: Config) -> str:
    if config.state_file is not None:
        return config.state_file
    return "not set: " + ("Redis has it" if config.settings.redis is not None else "budgets end with the process")


def _redis(address: StoreAddress | None) -> str:
    if address is None:
        return "not set: the embedded store"
    roots = f", roots of {address.ca_file}" if address.ca_file is not None else ""
    return f"{address}, password {_length(address.password) or 'not set'}{roots}"


def _token_secret(config: Config) -> str:
    lengths = [_length(secret.decode()) for secret in config.settings.token_secrets]
    if lengths:
        return ", then ".join(lengths)
    if config.settings.redis is not None:
        return "not set: shared through Redis, made by the first instance"
    return "not set: made at start, so tokens end with the process"


def _length(secret: object) -> str:
    return f"set ({len(str(secret))} characters)" if secret else ""  # in a file it may be a number


def _limits(policies: Iterable[Policy]) -> str:
    return ", ".join(map(_limit, policies))


def _limit(policy: Policy) -> str:
    if policy.kind is Kind.LEASE:
        words = f"{policy.quota} in flight"
    elif policy.kind is Kind.BUCKET:
        words = f"{policy.quota} at once, then one each {policy.interval_us / 1e6:g} s"
    else:
        words = f"{policy.quota} in {policy.window_s} s"
    return f"{words} (shadow: never refuses)" if policy.shadow else words


def _budgets(budgets: Sequence[Budget], idle: Sequence[Budget]) -> str:
    note = " (holds nothing: no target's requests have a cost in {})"
    words = [written(one) + (note.format(one.unit) if one in idle else "") for one in budgets]
    return ", ".join(words) or "no budget"


def _cost(table: CostTable | None) -> str:
    """Describe what requests cost, in the order in which it is looked for."""
    if table is None:
        return "not set: nobody counts it, and budgets are not asked"
    words = [f"{one.method.decode()} {one.path.decode()} {amount_of(one.price)}" for one in table.fixed]
    if table.llm:
        words.append(f"a language model's tokens, {table.max_output} of output where a request sets no limit")
    measured = table.measured
    if measured is not None:
        unit, atoms, per = measured.price
        of = f"of {measured.kind} {measured.place}" if measured.place else measured.kind
        words.append(f"{amount_of({unit: atoms})} for {per} {of}")
    if table.reserve is not None:
        words.append(f"reserved where it is unknown {amount_of(table.reserve)}")
    unknown = {"deny": "refused", "default": amount_of(table.default or {}), "warn": "free, and told in the log"}
    return "; ".join([*words, f"without a price {unknown[table.unknown_price]}"])


def _prices(table: Mapping[str, object]) -> str:
    listed = ", ".join(f"{name} {price}" for name, price in table.items())
    return f"{listed} (USD for a million tokens; request and search: for one)"


def _as_written(value: object) -> str:
    return "not set" if value is None else str(value)
