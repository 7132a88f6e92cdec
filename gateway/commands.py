"""The commands of `gateway`, their options, and what the ones do that are not a server.

A command's own modules are imported when it is run, so that `gateway healthcheck` does not load a server.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gateway.config import SETTINGS, UnixAddress, exposed, listen_address, load
from gateway.config.describing import describe
from gateway.errors import ConfigError
from gateway.exit_codes import FAILURE, FINE, INTERRUPTED, USAGE
from gateway.ledger.options import add_ledger, add_reconcile, add_simulate
from gateway.serving import named_file, serve
from gateway.token_options import add_actions
from gateway.verify.options import EPILOG, add_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.config import Config, Settings

_ANY_TARGET = "http://target.invalid"
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (where a check connects, not a listener)

_SECRETS_HELP = (
    "Give keys and secrets in the environment or a file, not as options: every user of a machine can read "
    "the command lines of its processes. Precedence: options, then the environment, then the file."
)


def run(words: list[str]) -> int:
    """Run a command.

    Args:
        words: Its name and its arguments.

    Returns:
        The exit code.

    Raises:
        ConfigError, GatewayError, OSError: It failed.
        SystemExit: With 2 when the arguments cannot be read, with 0 after `--help` or `--version`.
    """
    options = _parse(words)
    chosen: Callable[[argparse.Namespace], int] = options.run
    return chosen(options)


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is told in one line that repeats no value: it could be a key."""

    def error(self, message: str) -> NoReturn:
        harmless = "no such command" if "invalid choice" in message else message
        self.exit(USAGE, f"gateway: {harmless}; see {self.prog} --help\n")


def _parse(words: list[str]) -> argparse.Namespace:
    parser = _parser()
    words, ran = _split(words)
    options, unknown = parser.parse_known_args(words)
    options.ran = ran
    if unknown and words[0] == "run" and not ran and not unknown[0].startswith("--"):
        raise _nothing_to_run()
    if unknown:
        name = unknown[0].partition("=")[0]
        parser.error(f"unknown option {name}" if name.startswith("--") else "unexpected argument")
    return options


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Cut off what `run` runs: argparse would take its options for the gateway's."""
    if words[0] != "run" or "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _parser() -> _Parser:
    parser = _Parser(
        prog="gateway",
        description="A rate-limiting gateway in front of a costly HTTP API.",
        epilog=_SECRETS_HELP,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], summary: str, epilog: str = "") -> _Parser:
        added = commands.add_parser(name, help=summary, description=summary, epilog=epilog, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    for name, run, summary in (
        ("serve", _serve, "run in the foreground until SIGTERM or SIGINT (the default command)"),
        ("run", _run, "run a command behind a gateway of its own: gateway run [settings] -- COMMAND ..."),
        ("check-config", _check_config, "validate the configuration and print what it resolves to"),
    ):
        _add_settings(command(name, run, summary, _SECRETS_HELP))
    check = command("healthcheck", _healthcheck, "exit 0 if a gateway on this machine answers /healthz, else 1")
    check.add_argument("--url", help="its address (default: from GATEWAY_LISTEN)")
    _add_file(check)
    add_actions(command("token", _token, "issue, inspect and revoke tokens", _SECRETS_HELP))
    usage = command("usage", _usage, "print what became of requests, by token and target", _SECRETS_HELP)
    usage.add_argument(
        "--watch", action="store_true", help="once a second: a table, or lines where there is no terminal"
    )
    usage.add_argument("--json", action="store_true", help="as JSON, as GET /admin/usage has it")
    usage.add_argument("--url", help="ask the gateway there (default: from GATEWAY_LISTEN; if none answers, Redis)")
    _add_file(usage)
    add_ledger(command("ledger", _ledger, "print what requests cost, and release what is reserved", _SECRETS_HELP))
    add_reconcile(command("reconcile", _reconcile, "compare a provider's invoice with the ledger", _SECRETS_HELP))
    add_simulate(command("simulate", _simulate, "replay the ledger against other limits and budgets", _SECRETS_HELP))
    command("demo", _demo, "send 8 requests through a gateway with RATE_LIMIT=5 to a mock API; needs nothing")
    proof = command(
        "verify", _verify, "send all that a running deployment takes, and prove that its limits hold", EPILOG
    )
    add_options(proof)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    _add_file(parser)
    group = parser.add_argument_group("settings")
    for name, setting in SETTINGS.items():
        group.add_argument(setting.option, dest=name, metavar="VALUE", default=None, help=setting.meaning)


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="a TOML file of settings (default: GATEWAY_CONFIG)")


class _Version(argparse.Action):
    """Looks the version up only when asked: the package metadata takes 15 ms to import."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version  # see above

        print(f"gateway {version('rate-limiting-gateway')}")
        parser.exit(FINE)


def _file(options: argparse.Namespace) -> Path | None:
    return Path(options.config) if options.config else named_file(os.environ)


def _arguments(options: argparse.Namespace) -> dict[str, str]:
    arguments = {name: value for name in SETTINGS if (value := getattr(options, name)) is not None}
    for name in arguments:
        setting = SETTINGS[name]
        if setting.secret:
            print(
                f"gateway: warning: every user of this machine can read {setting.option} in the process "
                f"list; give it as {setting.environment} in the environment",
                file=sys.stderr,
            )
    return arguments


def _load(options: argparse.Namespace) -> Config:
    file = _file(options)
    config = load(arguments=_arguments(options), environ=os.environ, file=file)
    if warning := exposed(file):
        print(f"gateway: warning: {warning}", file=sys.stderr)
    return config


def _serve(options: argparse.Namespace) -> int:
    return serve(_arguments(options), _file(options))


def _run(options: argparse.Namespace) -> int:
    if not options.ran or not options.ran[0]:
        raise _nothing_to_run()
    options.gateway_listen = "127.0.0.1:0"
    config = _load(options)
    from gateway.running import run_command  # loads the server

    return run_command(config, options.ran)


def _nothing_to_run() -> ConfigError:
    return ConfigError("run", "has nothing to run", "a command behind --", "gateway run -- python app.py")


def _check_config(options: argparse.Namespace) -> int:
    described = describe(_load(options))
    width = max(len(name) for name, _ in described) + 1
    for name, resolved in described:
        print(f"{name:<{width}}{resolved}")
    return FINE


def _healthcheck(options: argparse.Namespace) -> int:
    from gateway.healthcheck import ask  # loads an HTTP client

    problem = ask(options.url or _local_url(options))
    if problem:
        print(f"gateway: {problem}", file=sys.stderr)
    return FAILURE if problem else FINE


def _local_url(options: argparse.Namespace) -> str:
    address, tls = listen_address(environ=os.environ, file=_file(options))
    if isinstance(address, UnixAddress):
        return str(address)
    return f"{'https' if tls else 'http'}://{address._replace(host=_WILDCARDS.get(address.host, address.host))}"


def _settings(options: argparse.Namespace) -> Settings:
    """Read the settings of what is the same whatever the target, so that it need not be known here."""
    return load(arguments={"target_api_url": _ANY_TARGET}, environ=os.environ, file=_file(options)).settings


def _token(options: argparse.Namespace) -> int:
    from gateway.token_command import run  # loads a store

    return run(options, _settings(options), _local_url(options))


def _usage(options: argparse.Namespace) -> int:
    from gateway.usage_command import run  # loads a store

    return run(options, _settings(options), _local_url(options))


def _ledger(options: argparse.Namespace) -> int:
    from gateway.ledger.command import run  # loads a store, as the two below

    return run(options, _settings(options), _local_url(options))


def _reconcile(options: argparse.Namespace) -> int:
    from gateway.ledger.reconcile import run

    return run(options, _settings(options), _local_url(options))


def _simulate(options: argparse.Namespace) -> int:
    from gateway.ledger.simulate import run

    return run(options, _settings(options), _local_url(options))


def _demo(_: argparse.Namespace) -> int:
    from gateway.demo import run_demo  # loads the server

    return run_demo()


def _verify(options: argparse.Namespace) -> int:
    import asyncio  # as the rest of these: loaded where there is something to prove

    from gateway.verify.options import read_plan
    from gateway.verify.report import as_json, as_text
    from gateway.verify.run import TOKEN_VARIABLE, verify

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    plan = read_plan(options, os.environ, TOKEN_VARIABLE)
    for line in plan.announce():
        say(line)
    try:
        result = asyncio.run(verify(plan, say))
    except asyncio.CancelledError:
        return INTERRUPTED
    print(as_json(result) if options.json else as_text(result), end="\n" if options.json else "")
    return FAILURE if result.over else FINE
