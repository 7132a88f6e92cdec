"""`gateway run -- COMMAND…`: a gateway for one command, which finds it through its environment.

The command stays in this process's group, so what the terminal sends (Ctrl-C, Ctrl-Z, a new size) reaches it from the
kernel, once. What somebody sends to this process alone is passed on; siginfo tells the two apart (sigaction(2),
SI_KERNEL). The main thread waits for signals, the end of the command among them; the gateway has a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import resource
import secrets
import signal
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.config import SETTINGS
from gateway.errors import StoreUnavailable, TokenError
from gateway.exit_codes import DIED_OF_SIGNAL, NOT_EXECUTABLE, NOT_FOUND
from gateway.names import Loop
from gateway.server import Gateway
from gateway.supervisor.stderr import LogStream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.config import Config
    from gateway.metrics import Metrics

_PASSED_ON: Final = frozenset(
    getattr(signal, name) for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH")
)
_WATCHED: Final = _PASSED_ON | {signal.SIGCHLD}
_SI_KERNEL: Final = 0x80
_PR_SET_DUMPABLE: Final = 4
_LONG_KEY: Final = 8
"""A key of so many characters is in no variable by chance."""

_log = logging.getLogger("gateway")


def run_command(config: Config, command: list[str]) -> int:
    """Run a command behind a gateway of its own, and say at the end what became of its requests.

    Args:
        config: What the gateway does, but for where it listens: on a free port of 127.0.0.1, without TLS.
        command: Its name and its arguments, at least the name.

    Returns:
        The command's exit code; 128 + N if signal N ended it; 127 if there is no such command, 126 if it cannot be run.

    Raises:
        GatewayError, OSError: The gateway could not start.
    """
    level = "warning" if config.log_level == "info" else config.log_level  # stderr is the command's
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=level.upper(), format=form, stream=LogStream())
    paths = paths_for(config.settings.target.base_path.decode())
    # Registering is for the machine's programs, this one among them: it would get itself more than its token allows.
    admin_key = config.admin_key or secrets.token_urlsafe()
    config = replace(
        config, gateway_listen="127.0.0.1:0", gateway_tls_cert=None, gateway_tls_key=None, admin_key=admin_key
    )
    _hide()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as some parents leave it, the exit code would be lost
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    embedded = _Embedded(config.at_prefix(paths.prefix.encode()))
    try:
        url, token = embedded.start()
        environ = environment(os.environ, config, url, token)
        try:
            # Nothing of ours runs between fork and exec: not even the signals that Python ignores stay so.
            pid = os.posix_spawnp(
                command[0], command, environ, setsigmask=mask, setsigdef=(signal.SIGPIPE, signal.SIGXFSZ)
            )
        except OSError as error:
            print(f"gateway: {command[0]}: {error.strerror}", file=sys.stderr)
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        # A core dump would hold the real key; the command keeps the limit that it was given.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = _wait(pid)
    finally:
        metrics = embedded.stop()
        while signal.sigtimedwait(_WATCHED, 0) is not None:
            pass  # what came behind the command's end is for nobody
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    with contextlib.suppress(OSError):  # the terminal has gone
        print(f"gateway: {describe(metrics)}", file=sys.stderr, flush=True)
    return code


def describe(metrics: Metrics) -> str:
    """Say what became of the requests, in one line."""
    return f"{metrics.passed} requests went through, {metrics.refused} refused, {metrics.failed} failed"


def _hide() -> None:
    """Keep /proc/PID/environ and this process's memory, with the real key, from the command: it is the same user's."""
    with contextlib.suppress(OSError, AttributeError):  # there is no prctl, and no /proc, on other systems
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _wait(pid: int) -> int:
    """Pass signals on until the command has ended; return its exit code as a shell would."""
    while True:
        info = signal.sigwaitinfo(_WATCHED)
        if info.si_signo != signal.SIGCHLD:
            # It is not waited for yet, so its number is still its own.
            if info.si_code != _SI_KERNEL:
                with contextlib.suppress(PermissionError):  # it runs as somebody else now
                    os.kill(pid, info.si_signo)
            continue
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else DIED_OF_SIGNAL - code


class _Embedded:
    """A gateway in a thread with a loop of its own: the main thread waits for signals."""

    def __init__(self, config: Config) -> None:
        self._gateway = Gateway(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._started = threading.Event()
        self._found: tuple[str, str] | BaseException = RuntimeError("the gateway did not start")
        self._thread = threading.Thread(target=self._run, name="gateway")

    def start(self) -> tuple[str, str]:
        """Return its address and a token for it.

        Raises:
            GatewayError, OSError: It could not start.
        """
        self._thread.start()
        self._started.wait()
        if isinstance(self._found, BaseException):
            raise self._found
        return self._found

    def stop(self) -> Metrics:
        """End it now; return its counts."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread.ident is not None:
            self._thread.join()
        return self._gateway.metrics

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=Loop) as runner:
            try:
                runner.run(self._serve())
            except BaseException as error:  # noqa: BLE001 - the main thread raises it
                self._found = error
            finally:
                self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with self._gateway as gateway:
            token = gateway.issue_token(name="run")
            self._found = gateway.url, token
            self._started.set()
            await self._stopping.wait()
            try:  # other gateways on the same Redis would take it as long as it lasts
                with contextlib.suppress(TokenError):  # it has ended already
                    await gateway.revoke_token(token)
            except StoreUnavailable as error:
                _log.warning("the command's token is good until it expires: %s", error)


class Paths(NamedTuple):
    """Below what paths of the embedded gateway things are.

    Args:
        prefix: The target's base URL.
        openai: What an OpenAI SDK takes for its base URL.
        anthropic: What an Anthropic SDK does.
    """

    prefix: str
    openai: str
    anthropic: str


def paths_for(base_path: str) -> Paths:
    """Say where SDKs find the API below `base_path` of its host: `/v1`, say.

    OpenAI's default base URL ends in the version (`https://api.openai.com/v1`), Anthropic's does not
    (`https://api.anthropic.com`): its SDKs add `/v1/…` themselves. A target without a path is taken to be written as
    for Anthropic, one that ends in `/v1` as for OpenAI, any other path to be what either SDK would be given. A `/v1` is
    a part of the prefix too, so that an SDK that adds it finds the same place and nothing above it.
    """
    if not base_path:
        return Paths("/api", "/api/v1", "/api")
    if base_path.endswith("/v1"):
        return Paths("/api/v1", "/api/v1", "/api")
    return Paths("/api", "/api", "/api")


def _holds(value: str, key: str) -> bool:
    return value == key or (len(key) >= _LONG_KEY and key in value)


def environment(environ: Mapping[str, str], config: Config, url: str, token: str) -> dict[str, str]:
    """Return the command's environment: that of this process without secrets, and with what leads to the gateway.

    Args:
        environ: This process's.
        config: Has the secrets.
        url: The gateway's, without a path.
        token: For it.
    """
    keys = {key for target in config.settings.targets for key in target.keys}
    if config.target_api_key is not None:
        keys.add(config.target_api_key)
    secret = {setting.environment for setting in SETTINGS.values() if setting.secret}
    # With both, Anthropic's SDK would send the other one as well, and the gateway would take it for the token.
    secret.add("ANTHROPIC_AUTH_TOKEN")
    made = {
        name: value
        for name, value in environ.items()
        if name not in secret and not any(_holds(value, key) for key in keys)
    }
    paths = paths_for(config.settings.target.base_path.decode())
    made |= {
        "OPENAI_BASE_URL": url + paths.openai,
        "OPENAI_API_KEY": token,
        "ANTHROPIC_BASE_URL": url + paths.anthropic,
        "ANTHROPIC_API_KEY": token,
        "GATEWAY_URL": url + paths.prefix,
        "GATEWAY_TOKEN": token,
    }
    if any(made.get(name) for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")):
        past = [made.get("no_proxy") or made.get("NO_PROXY") or "", "127.0.0.1"]
        made["no_proxy"] = made["NO_PROXY"] = ",".join(filter(None, past))
    return made
