"""`gateway serve`: finds the configuration, hides what is secret of it, and becomes a server."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from gateway.config import SETTINGS, exposed, load

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gateway.config import Config


def named_file(environ: Mapping[str, str]) -> Path | None:
    """Return the TOML file that the environment names, if any."""
    name = environ.get("GATEWAY_CONFIG")
    if not name:
        return None
    from pathlib import Path  # 0.3 MB that a gateway without files does without, here as elsewhere

    return Path(name)


def serve(arguments: Mapping[str, str], file: Path | None) -> int:
    """Run the gateway in the foreground.

    Args:
        arguments: Settings of the command line, by their names in `Config`.
        file: A TOML file of settings.

    Returns:
        The exit code.

    Raises:
        ConfigError: The configuration is no good.
        GatewayError, OSError: The gateway could not start.
    """
    for number in (signal.SIGHUP, signal.SIGUSR2):
        # Until somebody hears them they would end the program: who restarts it may reload it as quickly.
        signal.signal(number, signal.SIG_IGN)
    environ = dict(os.environ)  # a reload has it again, and nobody else

    def read() -> Config:
        return load(arguments=arguments, environ=environ, file=file)

    config = read()
    # What this process may start has no business with the keys. (/proc/PID/environ keeps them, for the same
    # user and root alone.)
    for setting in SETTINGS.values():
        if setting.secret:
            os.environ.pop(setting.environment, None)
    keys = {key for target in config.settings.targets for key in target.keys}
    for variable in [name for name, value in os.environ.items() if value in keys]:
        del os.environ[variable]
    from gateway.workers import serve as run  # loads the server

    return run(config, read, environ, exposed(file))
