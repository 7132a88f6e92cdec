"""The record of what the program prints finds a secret in whatever spelling, and fails the run for it."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.kit.printed import Printed

ROOT = Path(__file__).parent.parent
SECRET = "kV8#tQ2/zX5w+N7rB=4mJ"
PLANTED = "hT5vM9qXc3Lw8Rk"

FORMS = {
    "as it is": SECRET,
    "in quotes": f'"{SECRET}"',
    "the first eight": SECRET[:8],
    "eight from the middle": SECRET[6:14],
    "in a URL": f"http://h/x?key={quote(SECRET, safe='')}&a=b",
    "in base64": base64.b64encode(SECRET.encode()).decode(),
    "in base64 for URLs": base64.urlsafe_b64encode(SECRET.encode()).decode(),
    "as a user name": base64.b64encode(SECRET.encode() + b":").decode(),
    "as a password": base64.b64encode(b"u:" + SECRET.encode()).decode(),
    "behind one more byte": base64.b64encode(b"\xff" + SECRET.encode() + b"\xff").decode(),
    "in hexadecimal": SECRET.encode().hex(),
    "as a repr": repr(SECRET.encode()),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_found(form: str) -> None:
    record = Printed()
    record.keep_secret(SECRET)
    record.note("some line\n")
    assert record.leaks() == []
    record.note(f"INFO gateway: {FORMS[form]}, and more")
    (leak,) = record.leaks()
    assert SECRET in leak
    assert "INFO gateway: " in leak


def test_what_only_looks_alike_is_none() -> None:
    record = Printed()
    record.keep_secret("sk-an-upstream-key-0123456789", "sk-1", SECRET)
    record.note("cannot connect to the upstream, key sk-1, 0123456789, 2026-11-24T01:02:03Z")
    record.note(f"{SECRET[:7]} {SECRET[8:15]} {SECRET[::-1]}")
    assert record.leaks() == []


def test_all_that_a_configuration_holds_is_secret() -> None:
    record = Printed()
    settings = {
        "target_api_key": "a-target-key",
        "admin_key": "an-admin-key",
        "token_secret": "first-secret,second-secret",
        "redis_url": "redis://some-name:pass%2Fphrase@h:1/0",
        "target_api_url": "http://harmless",
    }
    record.keep_settings_secret(settings)
    record.note("http://harmless some-name")
    assert record.leaks() == []
    shown = ["a-target-key", "an-admin-key", "first-secret", "second-secret", "pass/phrase"]
    for count, secret in enumerate(shown, 1):
        record.note(f"{count}: {secret}")
        assert len([leak for leak in record.leaks() if f"{count}: " in leak]) == 1


def test_a_token_may_be_shown_to_who_asked_for_it_and_its_id_to_all() -> None:
    record = Printed()
    token = "gw_eyJpZCI6ICJ4In0.Zm9vYmFyYmF6cXV4Q29ycmVjdEhvcnNlQmF0dGVyeTQy"
    record.keep_token_secret(token)
    record.note(f"{token}\n", token)
    record.note("gw_eyJpZCI6ICJ4In0")
    assert record.leaks() == []
    record.note(token)
    assert record.leaks() != []


LEAKS = {
    "nothing": "pass",
    "a log line": "logging.getLogger('gateway.upstream').debug('key %s', KEY)",
    "a traceback": """
    try:
        raise RuntimeError(KEY)
    except RuntimeError:
        logging.getLogger('gateway').exception('failed')""",
    "what is printed": "print('Bearer', KEY)",
    "what a process prints": """
    command = [sys.executable, '-m', 'gateway', '--target-api-key', KEY, KEY[:9]]
    text = subprocess.run(command, capture_output=True, text=True).stderr
    printed.note(text + KEY)""",
    "what the loop says": """
    async def main():
        asyncio.get_running_loop().call_soon(fail)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    def fail():
        raise RuntimeError(KEY)
    asyncio.run(main())""",
    "an answer": "printed.note_answer(400, [('x', KEY)], b'', is_error=True)",
}


@pytest.mark.parametrize(("leak", "processes"), [*((leak, "") for leak in LEAKS), ("nothing", "2"), ("an answer", "2")])
def test_a_planted_leak_fails_the_run(tmp_path: Path, leak: str, processes: str) -> None:
    (tmp_path / "test_planted.py").write_text(
        f"""
import asyncio, logging, subprocess, sys
from gateway import Config
from tests.kit.printed import printed
KEY = "{PLANTED[:6]}" "{PLANTED[6:]}"
def test_planted():
    Config(target_api_url="http://h", target_api_key=KEY)
    {LEAKS[leak]}
""",
        encoding="utf-8",
    )
    # Only the plugins that it takes: to load all that are installed would take most of the time.
    options = ["-p", "tests.kit.printed", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    if processes:
        options += ["-p", "xdist.plugin", "-n", processes]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "1 passed" in result.stdout, result.stdout + result.stderr
    assert result.returncode == (0 if leak == "nothing" else 1)
    assert ("1 secrets, 0 leaks" in result.stdout) == (leak == "nothing")
    assert (f"leaked: {PLANTED!r} in " in result.stdout) == (leak != "nothing")
