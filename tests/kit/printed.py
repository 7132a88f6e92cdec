"""What the program printed while the suite ran, and the secrets that must be nowhere in it; a pytest plugin.

Recorded are: what gateway processes and commands print (by whoever runs them: `printed.note`), what the package logs in
the test's own process, at every level and with tracebacks, what is left of captured output, and the gateway's own
error answers that the clients of the kit read. The secrets are those of every `Config` that is made, of every process
that is started, and of every token that is issued. At the end, none of them may be found, whole, in a usual encoding,
or in pieces; a leak fails the run.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import json
import logging
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

import pytest

from gateway.config import Config
from gateway.tokens import TokenSigner

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from _pytest.terminal import TerminalReporter

PIECE = 8
"""So many characters of a secret in a row are a leak."""

SHORTEST = 10
"""Tests of other things use keys like `sk-1`, which is also in words."""

SECRETS = ("target_api_key", "token_secret", "admin_key", "redis_url")
_RANDOM = re.compile(r"(?=.*[a-z])(?=.*[A-Z])(?=.*[0-9])")


class Printed:
    """A record of texts, and the secrets to look for in it."""

    def __init__(self) -> None:
        self._texts = io.StringIO()
        self._secrets: set[str] = set()
        self._signatures: set[str] = set()

    def note(self, text: str | bytes, *shown: str) -> None:
        """Record what the program printed.

        Args:
            text: All of it, or a part of it that ends with a line.
            shown: What it had to print although it is secret: a token, to whoever asked for one.
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8", "backslashreplace")
        for part in shown:
            text = text.replace(part, "(shown)")
        self._texts.write(text + "\n")

    def keep_secret(self, *secrets: str) -> None:
        """Look for these as well."""
        self._secrets.update(secret for secret in secrets if len(secret) >= SHORTEST)

    def keep_settings_secret(self, settings: Mapping[str, object]) -> None:
        """Look for the secrets among these settings, by their lower-case names."""
        key, tokens, admin, redis = (str(settings.get(name) or "") for name in SECRETS)
        self.keep_secret(key, *tokens.split(","), admin)
        with contextlib.suppress(ValueError):  # it is no URL, as a test may want it
            password = urlsplit(redis).password or ""
            self.keep_secret(password, unquote(password))

    def keep_token_secret(self, token: str) -> None:
        """Look for a token's signature: the rest is no secret, and its id is in answers."""
        self._signatures.add(token.rpartition(".")[2])

    def note_answer(self, status: int, fields: object, content: bytes, *, is_error: bool) -> None:
        """Record an error answer of the gateway's own; keep secret the token of one to `/register`."""
        if is_error:
            self.note(f"{status} {fields}")
            self.note(content)
        elif status == 201:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # it is the upstream's
                self.keep_token_secret(json.loads(content)["token"])

    def leaks(self) -> list[str]:
        """Say which secrets were printed, and where."""
        lines = set(self._texts.getvalue().split("\n"))
        forms = {form: secret for secret in self._secrets for form in disguises(secret)}
        pieces = {piece: secret for form, secret in forms.items() for piece in random_pieces(form)}
        # Tokens are very many: of each, every eighth piece, so that any fifteen characters hold a whole one.
        pieces |= {piece: text for text in self._signatures for piece in random_pieces(text, step=PIECE)}
        # Those that have no such piece are looked for as a whole, by their beginnings: there are too many to try each.
        begins: dict[str, list[str]] = {}
        for form in forms:
            begins.setdefault(form[:PIECE], []).append(form)
        found = set()
        sought = pieces.keys() | begins.keys()
        for line in lines:
            windows = [line[at : at + PIECE] for at in range(len(line) - PIECE + 1)]
            if sought.isdisjoint(windows):  # in half the time that a look at each takes: there are thirty million
                continue
            for at, window in enumerate(windows):
                if window in pieces:
                    found.add((pieces[window], line))
                if window in begins:
                    found.update((forms[form], line) for form in begins[window] if line.startswith(form, at))
        return sorted(f"{secret!r} in {line!r}" for secret, line in found)

    def measure(self) -> tuple[int, int]:
        """Return how many bytes were looked at, and for how many secrets."""
        size = len(self._texts.getvalue().encode("utf-8", "backslashreplace"))
        return size, len(self._secrets) + len(self._signatures)


class Found:
    """What was looked at and found in one run, over all of its processes."""

    def __init__(self) -> None:
        self.size = 0
        self.secrets = 0
        self.leaks: list[str] = []

    def add(self, size: int, secrets: int, leaks: list[str]) -> None:
        self.size += size
        self.secrets += secrets
        self.leaks += leaks


_FOUND = pytest.StashKey[Found]()


def disguises(secret: str) -> Iterator[str]:
    """List the spellings in which a secret could be printed."""
    raw = secret.encode()
    yield from (secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1], repr(secret)[1:-1])
    yield from (raw.hex(), raw.hex().upper(), binascii.b2a_hex(raw, ":").decode())
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        # Behind 0, 1 or 2 other bytes; without the characters that these, or what follows, have a share in.
        for before in range(3):
            encoded = encode(b"\0" * before + raw).decode().rstrip("=")
            yield encoded[before + (before > 0) : len(encoded) - 1]


def random_pieces(text: str, step: int = 1) -> Iterator[str]:
    """List the pieces that no word, path or number would have by chance."""
    for at in range(0, len(text) - PIECE + 1, step):
        piece = text[at : at + PIECE]
        if _RANDOM.match(piece):
            yield piece


printed = Printed()


class _Handler(logging.Handler):
    """Records what the package logs, and what the loop says of exceptions in it."""

    def emit(self, record: logging.LogRecord) -> None:
        printed.note(self.format(record))


def secrets_made(patch: pytest.MonkeyPatch) -> None:
    """Keep secret what every `Config` holds and every `TokenSigner` issues, from now on."""
    check, issue = Config.__post_init__, TokenSigner.issue

    def checking(self: Config, *given: Any) -> None:
        printed.keep_settings_secret({name: getattr(self, name) for name in SECRETS})
        check(self, *given)

    def issuing(self: TokenSigner, claims: Any) -> str:
        token = issue(self, claims)
        printed.keep_token_secret(token)
        return token

    patch.setattr(Config, "__post_init__", checking)
    patch.setattr(TokenSigner, "issue", issuing)


@pytest.fixture(scope="session", autouse=True)
def _recorded() -> Iterator[None]:
    handler = _Handler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("gateway", "asyncio")]
    with pytest.MonkeyPatch.context() as patch:
        secrets_made(patch)
        level = loggers[0].level
        loggers[0].setLevel(logging.DEBUG)
        for logger in loggers:
            logger.addHandler(handler)
        yield
        for logger in loggers:
            logger.removeHandler(handler)
        loggers[0].setLevel(level)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if not hasattr(report, "node"):  # else a worker of pytest-xdist has noted it already
        for _, content in report.sections:
            printed.note(content)


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    found = config.stash.setdefault(_FOUND, Found())
    found.add(*printed.measure(), printed.leaks())
    worker = getattr(config, "workeroutput", None)
    if worker is not None:  # pytest-xdist: this one has a controller to tell
        worker["printed"] = [found.size, found.secrets, found.leaks]
    elif found.leaks and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of pytest-xdist has ended; one that crashed tells nothing, and fails the run."""
    found = node.config.stash.setdefault(_FOUND, Found())
    found.add(*getattr(node, "workeroutput", {}).get("printed", (0, 0, [])))


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    found = terminalreporter.config.stash.setdefault(_FOUND, Found())
    terminalreporter.write_line(
        f"secrets: {found.size} bytes printed by the program, {found.secrets} secrets, {len(found.leaks)} leaks"
    )
    for leak in found.leaks:
        terminalreporter.write_line(f"leaked: {leak}", red=True)
