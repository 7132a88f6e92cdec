"""The settings by name: what each takes, in words, for messages and for `--help`."""

from __future__ import annotations

from typing import NamedTuple


class Setting(NamedTuple):
    """One row of the settings table.

    Args:
        name: The environment's name in lower case, which is also its key in a file and its field in `Config`.
        takes: What it takes, for "it takes …".
        example: A value that would work.
        meaning: What it is for, in a few words.
        secret: Whether its value is never shown.
    """

    name: str
    takes: str
    example: str
    meaning: str
    secret: bool = False

    @property
    def environment(self) -> str:
        """Its name in the environment: `RATE_LIMIT`."""
        return self.name.upper()

    @property
    def option(self) -> str:
        """Its name on the command line: `--rate-limit`."""
        return "--" + self.name.replace("_", "-")


_DURATION = "a duration in ms, s, m, h or d"
_LIMITS = "N/second, N/minute, N/hour, N/day or N/30s, each perhaps with ;bucket or ;shadow, several joined by commas"
_IN_FLIGHT = "a whole number from 1 to 1000000, perhaps with ;shadow"
_BUDGETS = (
    "AMOUNT UNIT/WINDOW with day, week, month, minute or like 60s and 24h for the window, several joined by commas"
)
_PEM = "the path of a readable PEM file"

SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting(
            "target_api_url",
            "the API's base URL, http:// or https://",
            "https://api.openai.com/v1",
            "base URL of the API; required",
        ),
        Setting(
            "target_api_key",
            "the API's key, printable ASCII",
            "YOUR_KEY",
            "the API's key; clients never see it",
            secret=True,
        ),
        Setting(
            "target_api_auth",
            "bearer, header:NAME, query:NAME or basic",
            "header:x-api-key",
            "how the key goes upstream (default: bearer)",
        ),
        Setting("rate_limit", _LIMITS, "60/minute", "requests per token (default: 60/minute)"),
        Setting("global_rate_limit", _LIMITS, "1000/minute", "requests of all tokens together"),
        Setting("concurrency_limit", _IN_FLIGHT, "10", "requests in flight per token (default: none)"),
        Setting("global_concurrency_limit", _IN_FLIGHT, "200", "requests in flight in all (default: none)"),
        Setting(
            "rate_limit_mode",
            "enforce or shadow",
            "shadow",
            "shadow: limits only tell what they would refuse (default: enforce)",
        ),
        Setting("budget", _BUDGETS, "5 USD/day", "what the requests of a token may cost (default: no budget)"),
        Setting("global_budget", _BUDGETS, "100 USD/month", "what those of all tokens together may cost"),
        Setting(
            "budget_timezone",
            "the IANA name of a time zone",
            "Europe/Berlin",
            "where the days, weeks and months of budgets begin (default: UTC)",
        ),
        Setting(
            "budget_clamp",
            "on or off",
            "on",
            "lower a request's output tokens to what there is money for (default: off)",
        ),
        Setting("budget_cut", "on or off", "on", "end a stream that costs more than was reserved (default: off)"),
        Setting(
            "on_disconnect",
            "cancel or drain:DURATION",
            "drain:10s",
            "when the client of an answer that costs leaves: end it, or read on for its cost (default: cancel)",
        ),
        Setting(
            "loop_guard",
            "off, or one of N/second, N/minute, N/hour, N/day or N/30s",
            "20/minute",
            "how often a token may send the same request (default: off)",
        ),
        Setting(
            "spend_guard",
            "off, or Nx/WINDOW with N from 2 to 1000 and a window from 1m to 24h",
            "10x/5m",
            "warns, slows, then stops a token that spends so many times its usual (default: off)",
        ),
        Setting(
            "state_file",
            "the path of a file, in a directory that can be written to",
            "/var/lib/gateway/state.db",
            "keeps budgets over a restart, without REDIS_URL (default: none)",
        ),
        Setting(
            "redis_url",
            "redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://",
            "redis://127.0.0.1:6379/0",
            "shares limits between instances (default: none, in-process)",
            secret=True,
        ),
        Setting(
            "on_store_loss",
            "deny, local or allow",
            "local",
            "when Redis does not answer in time: deny (503), local limits, or allow (default: deny)",
        ),
        Setting("store_timeout", _DURATION, "100ms", "the longest a request waits for Redis (default: 100ms)"),
        Setting(
            "gateway_listen",
            "host:port, [v6]:port or unix:/path, several joined by commas",
            "127.0.0.1:3000",
            "where to listen (default: 127.0.0.1:3000)",
        ),
        Setting("gateway_tls_cert", _PEM, "/etc/gateway/cert.pem", "certificate for clients (default: none, no TLS)"),
        Setting("gateway_tls_key", _PEM, "/etc/gateway/key.pem", "its key (default: in the certificate's file)"),
        Setting(
            "gateway_workers",
            "a whole number from 1 to 256, or auto for one for each usable CPU",
            "1",
            "processes sharing the port; more than one needs REDIS_URL (default: 1)",
        ),
        Setting(
            "token_secret",
            "printable ASCII without spaces, 32 characters or more; 'new,old' while rotating",
            "$(openssl rand -hex 32)",
            "signs tokens (default: made at start, or shared through Redis)",
            secret=True,
        ),
        Setting("token_ttl", f"{_DURATION}; 0 for no end", "30d", "how long a token is good (default: 30d)"),
        Setting(
            "admin_key",
            "printable ASCII without spaces, 32 characters or more",
            "$(openssl rand -hex 32)",
            "guards /register and /admin/ (default: loopback peers only)",
            secret=True,
        ),
        Setting("access_log", "off, json or common", "json", "a line per request on stdout (default: off)"),
        Setting("log_level", "debug, info, warning or error", "info", "the program's own log (default: info)"),
        Setting(
            "max_body",
            "a number of bytes, or kB, MB, GB, KiB, MiB, GiB",
            "10MB",
            "a longer request body gets 413 (default: none)",
        ),
        Setting("connect_timeout", _DURATION, "5s", "connecting upstream (default: 5s)"),
        Setting("response_timeout", _DURATION, "600s", "to the first byte of the answer (default: 600s)"),
        Setting("idle_timeout", _DURATION, "600s", "between two bytes of a body (default: 600s)"),
        Setting("header_timeout", _DURATION, "10s", "for a client's whole head (default: 10s)"),
        Setting("keepalive_timeout", _DURATION, "75s", "an idle client connection (default: 75s)"),
        Setting("drain_timeout", f"{_DURATION}, or 0", "30s", "how long a stop waits (default: 30s)"),
        Setting(
            "upstream_pool",
            "a whole number from 1 to 65535",
            "256",
            "connections kept per upstream (default: 256)",
        ),
        Setting("upstream_idle", _DURATION, "10s", "how long one of them may idle (default: 10s)"),
        Setting(
            "target_ca_file",
            _PEM,
            "/etc/ssl/certs/ca-certificates.crt",
            "trusted roots for the upstream (default: the system's)",
        ),
        Setting("target_client_cert", _PEM, "/etc/gateway/client.pem", "certificate for the upstream (default: none)"),
        Setting("target_client_key", _PEM, "/etc/gateway/client.key", "its key (default: in the certificate's file)"),
        Setting(
            "target_cost",
            "llm or an amount like 0.005 USD; in a file also a table like [targets.NAME.cost]",
            "llm",
            "what requests to TARGET_API_URL cost (default: nobody counts it)",
        ),
    )
}
