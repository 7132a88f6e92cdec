"""`gateway run -- COMMAND…`, with real commands: what they find, what reaches them, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from gateway.config import Config
from gateway.running import environment, paths_for
from tests.kit.api import Api, running_api
from tests.kit.printed import printed
from tests.kit.redis import running_redis

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT_S = 20.0
KEY = "sk-7Vx2Wb9Lm4Rz-run"
SECRETS = {
    "TARGET_API_KEY": KEY,
    "TOKEN_SECRET": "Bq7Xw2Kd9Vm4Rt6Yz1Np8Hc3Lf5Js0Ga",
    "ADMIN_KEY": "Uq8Zw3Xe5Cr7Vt1By9Nu2Mi4Lo6Kp0Jh",
}

NO_REQUEST = "gateway: 0 requests went through, 0 refused, 0 failed\n"


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with running_api() as running:
        yield running


def settings(api: Api, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    printed.keep_settings_secret({name.lower(): value for name, value in more.items()})
    return {**kept, "TARGET_API_URL": f"{api.url}/v1", "TARGET_API_KEY": KEY, **more}


def run(api: Api, *command: str, given: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", "gateway", "run", "--", *command],
        env=settings(api, **more),
        input=given,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    printed.note(result.stderr)
    return result


def python(api: Api, script: str, **more: str) -> subprocess.CompletedProcess[str]:
    return run(api, sys.executable, "-c", script, **more)


@contextlib.contextmanager
def started(api: Api, script: str) -> Iterator[subprocess.Popen[str]]:
    """Start a script, up to its first line, which has to be `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "run", "--", sys.executable, "-uc", script],
        env=settings(api),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


# --- what it finds ----------------------------------------------------------------------------------------------------

SHOW = "import json, os; print(json.dumps(dict(os.environ)))"

ASK = """
import http.client, os, sys
from urllib.parse import urlsplit
url = urlsplit(os.environ["GATEWAY_URL"])
for path in sys.argv[1:]:
    connection = http.client.HTTPConnection(url.netloc)
    connection.request("GET", url.path + path, headers={"Authorization": "Bearer " + os.environ["GATEWAY_TOKEN"]})
    answer = connection.getresponse()
    try:
        answer.read()
        print(answer.status)
    except http.client.HTTPException, ConnectionError:
        print("cut")
""".replace("except http.client.HTTPException, ConnectionError", "except (http.client.HTTPException, ConnectionError)")


def test_no_secret_is_in_its_environment(api: Api) -> None:
    more = {
        **SECRETS,
        "MY_KEY": KEY,
        "AUTH": f"Authorization: Bearer {KEY}",
        "ANTHROPIC_AUTH_TOKEN": "another",
        "OPENAI_API_KEY": "another-real-one",
        "MINE": "kept",
    }
    result = python(api, SHOW, **more)
    assert result.returncode == 0
    shown = json.loads(result.stdout)
    for name in (*SECRETS, "MY_KEY", "AUTH", "ANTHROPIC_AUTH_TOKEN", "REDIS_URL"):
        assert name not in shown
    for secret in (*SECRETS.values(), "another"):
        assert secret not in result.stdout
    assert shown["MINE"] == "kept"
    assert shown["OPENAI_API_KEY"] == shown["ANTHROPIC_API_KEY"] == shown["GATEWAY_TOKEN"]
    assert shown["GATEWAY_TOKEN"].startswith("gw_")


def test_nor_is_a_key_of_another_target(api: Api, tmp_path: Path) -> None:
    key, file = "sk-9Qe3Tn6Yk1Wb-maps", tmp_path / "gateway.toml"
    file.write_text('[targets.maps]\nurl = "https://maps.example.com"\nkey_env = "MAPS_KEY"\n', encoding="utf-8")
    printed.keep_secret(key)
    result = python(api, SHOW, GATEWAY_CONFIG=str(file), MAPS_KEY=key, HEADER=f"x-api-key: {key}", MINE="kept")
    assert json.loads(result.stdout).keys() & {"MAPS_KEY", "HEADER", "MINE"} == {"MINE"}
    assert key not in result.stdout


def test_the_gateways_own_environment_is_closed_to_it(api: Api) -> None:
    """Root reads everything, so both give up what lets it."""
    setpriv = ["setpriv", "--bounding-set=-sys_ptrace,-perfmon,-sys_admin"] if os.geteuid() == 0 else []
    script = "import os; open(f'/proc/{os.getppid()}/environ').read()"
    result = subprocess.run(
        [*setpriv, sys.executable, "-m", "gateway", "run", "--", sys.executable, "-c", script],
        env=settings(api),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert result.returncode == 1
    assert "PermissionError" in result.stderr


def test_the_openai_sdk_unchanged(api: Api) -> None:
    script = (
        "from openai import OpenAI\n"
        "answer = OpenAI().chat.completions.create(model='mock', messages=[{'role': 'user', 'content': 'Hello?'}])\n"
        "print(answer.choices[0].message.content)"
    )
    result = python(api, script)
    assert (result.returncode, result.stdout) == (0, "Hello.\n")
    assert result.stderr == "gateway: 1 requests went through, 0 refused, 0 failed\n"
    line, fields = api.got[-1]
    assert line == "POST /v1/chat/completions"
    assert fields.get_all("Authorization") == [f"Bearer {KEY}"]


@pytest.mark.parametrize("path", ["", "/v1"])
def test_the_anthropic_sdk_unchanged(api: Api, path: str) -> None:
    script = (
        "from anthropic import Anthropic\n"
        "answer = Anthropic().messages.create(\n"
        "    model='mock', max_tokens=8, messages=[{'role': 'user', 'content': 'Hello?'}])\n"
        "print(answer.content[0].text)"
    )
    more = {"TARGET_API_URL": api.url + path, "TARGET_API_AUTH": "header:x-api-key"}
    result = python(api, script, **more)
    assert (result.returncode, result.stdout) == (0, "Hello.\n"), result.stderr
    line, fields = api.got[-1]
    assert line == "POST /v1/messages"
    assert fields.get_all("x-api-key") == [KEY]
    assert fields.get_all("Authorization") is None


@pytest.mark.parametrize(
    ("target", "openai", "anthropic", "own"),
    [
        ("https://api.openai.com/v1", "/api/v1", "/api", "/api/v1"),
        ("https://api.anthropic.com", "/api/v1", "/api", "/api"),
        ("https://api.anthropic.com/", "/api/v1", "/api", "/api"),
        ("https://openrouter.ai/api/v1", "/api/v1", "/api", "/api/v1"),
        ("https://gemini.example/v1beta/openai", "/api", "/api", "/api"),
    ],
)
def test_where_sdks_find_the_api(target: str, openai: str, anthropic: str, own: str) -> None:
    made = environment({}, Config(target_api_url=target), "http://127.0.0.1:1", "gw_x")
    assert made["OPENAI_BASE_URL"] == f"http://127.0.0.1:1{openai}"
    assert made["ANTHROPIC_BASE_URL"] == f"http://127.0.0.1:1{anthropic}"
    assert made["GATEWAY_URL"] == f"http://127.0.0.1:1{own}"
    assert paths_for(Config(target_api_url=target).settings.target.base_path.decode()).prefix == own


def test_nothing_above_the_targets_path_is_reached(api: Api) -> None:
    before = len(api.got)
    result = run(
        api, sys.executable, "-c", ASK.replace("url.path +", "'/api' +"), "/other", "/v1/../other", "/v1x", "/"
    )
    assert result.stdout.split() == ["404", "400", "404", "404"]
    assert len(api.got) == before


REGISTER = """
import http.client, os
from urllib.parse import urlsplit
for method, path in (("POST", "/register"), ("GET", "/admin/tokens"), ("POST", "/tokens"), ("GET", "/usage")):
    connection = http.client.HTTPConnection(urlsplit(os.environ["GATEWAY_URL"]).netloc)
    connection.request(method, path, headers={"Authorization": "Bearer " + os.environ["GATEWAY_TOKEN"]})
    print(connection.getresponse().status)
"""


def test_it_gets_no_token_that_its_own_does_not_give(api: Api) -> None:
    """It is on this machine, where /register asks for no more: with a token of it, it would be under no limit."""
    assert python(api, REGISTER).stdout.split() == ["403", "403", "201", "200"]


def test_a_proxy_of_the_environments_is_not_in_the_way() -> None:
    config = Config(target_api_url="https://api.example.com")
    made = environment({"HTTP_PROXY": "http://proxy:1", "NO_PROXY": "corp"}, config, "http://127.0.0.1:1", "gw_x")
    assert made["NO_PROXY"] == made["no_proxy"] == "corp,127.0.0.1"
    assert "NO_PROXY" not in environment({"HTTPS_PROXY": "http://proxy:1"}, config, "http://127.0.0.1:1", "gw_x")


def test_a_short_key_is_no_reason_to_lose_variables() -> None:
    config = Config(target_api_url="https://api.example.com", target_api_key="key")
    assert environment({"A": "a key", "B": "key"}, config, "http://h:1", "gw_x").keys() & {"A", "B"} == {"A"}


# --- what it does -----------------------------------------------------------------------------------------------------


def test_its_streams_and_arguments_are_its_own(api: Api) -> None:
    script = "import sys; print(sys.stdin.read().upper(), sys.argv[1:]); print('told', file=sys.stderr)"
    result = run(api, sys.executable, "-c", script, "--", "--rate-limit", "5", "", given="said")
    assert result.stdout == "SAID ['--', '--rate-limit', '5', '']\n"
    assert result.stderr == f"told\n{NO_REQUEST}"


def test_the_line_at_the_end_counts(api: Api) -> None:
    paths = ["/a", "/b", "/cut", "/../../climbs", "/c", "/refused", "/refused"]
    result = run(api, sys.executable, "-c", ASK, *paths, RATE_LIMIT="4/hour")
    assert result.stdout.split() == ["200", "200", "cut", "400", "200", "429", "429"]
    assert result.stderr == "gateway: 3 requests went through, 3 refused, 1 failed\n"


def test_an_api_that_is_not_there_is_a_failure_of_the_request(api: Api) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        result = run(api, sys.executable, "-c", ASK, "/a", TARGET_API_URL=url)
    assert (result.returncode, result.stdout) == (0, "502\n")
    assert result.stderr.endswith("gateway: 0 requests went through, 0 refused, 1 failed\n")


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "unix:/nonexistent/x.sock"])
def test_it_listens_on_a_free_port_whatever_the_settings_say(api: Api, listen: str) -> None:
    result = run(api, sys.executable, "-c", ASK, "/a", GATEWAY_LISTEN=listen)
    assert result.stdout == "200\n"


# --- how it ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_its_exit_code_is_passed_through(api: Api, code: int) -> None:
    result = python(api, f"raise SystemExit({code})")
    assert (result.returncode, result.stderr) == (code, NO_REQUEST)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGABRT", "SIGPIPE"])
def test_the_signal_it_died_of_is_in_the_exit_code(api: Api, name: str) -> None:
    number = getattr(signal, name)
    assert run(api, "sh", "-c", f"kill -{number} $$").returncode == 128 + number


@pytest.mark.parametrize(
    ("command", "code"), [("no-such-command", 127), ("/no/such", 127), ("/", 126), (__file__, 126)]
)
def test_what_cannot_be_started(api: Api, command: str, code: int) -> None:
    result = run(api, command)
    assert result.returncode == code
    assert re.fullmatch(rf"gateway: {re.escape(command)}: .+\n", result.stderr)


@pytest.mark.parametrize(
    "words", [["run"], ["run", "--"], ["run", "--", ""], ["run", "python"], ["run", "--rate-limit", "x", "--", "true"]]
)
def test_bad_usage(api: Api, words: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "gateway", *words], env=settings(api), capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)


def test_an_ignored_sigchld_does_not_lose_the_exit_code(api: Api) -> None:
    script = f"trap '' CHLD; exec {sys.executable} -m gateway run -- sh -c 'exit 7'"
    assert subprocess.run(["sh", "-c", script], env=settings(api), timeout=TIMEOUT_S, check=False).returncode == 7


def test_its_token_ends_with_it_on_every_gateway(api: Api) -> None:
    ask = ASK + "\nprint(os.environ['GATEWAY_TOKEN'])"
    with running_redis() as redis:
        ran = run(api, sys.executable, "-c", ask, "/a", REDIS_URL=redis.url, STORE_TIMEOUT="10s")
        status, token = ran.stdout.split()
        assert (status, ran.stderr) == ("200", "gateway: 1 requests went through, 0 refused, 0 failed\n")
        looked = subprocess.run(
            [sys.executable, "-m", "gateway", "token", "inspect", "-"],
            env=settings(api, REDIS_URL=redis.url),
            input=token,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert (looked.returncode, looked.stdout.splitlines()[-1].split(maxsplit=1)[1]) == (1, "bad: revoked")


# --- signals ----------------------------------------------------------------------------------------------------------

HEAR = """
import signal, sys
heard = []
for number in (1, 2, 3, 10, 12, 28):
    signal.signal(number, lambda number, _: (heard.append(number), print("heard", number)))
signal.signal(signal.SIGTERM, lambda *_: (print(*heard), sys.exit(9)))
print("ready")
while True:
    signal.pause()
"""


def test_signals_are_passed_on_once_each(api: Api) -> None:
    with started(api, HEAR) as process:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH):
            process.send_signal(number)
            assert process.stdout is not None
            assert process.stdout.readline() == f"heard {number:d}\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out.splitlines()[-1], err) == (9, "1 2 3 10 12 28", NO_REQUEST)


def test_a_signal_that_it_does_not_handle_ends_it(api: Api) -> None:
    with started(api, "print('ready')\nimport time\ntime.sleep(60)") as process:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, err) == (128 + signal.SIGTERM, NO_REQUEST)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # exec follows
def test_at_a_terminal_ctrl_c_reaches_it_once_and_so_does_a_new_size(api: Api) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(  # noqa: S606 - a terminal of its own is what is wanted
            sys.executable,
            [sys.executable, "-m", "gateway", "run", "--", sys.executable, "-uc", HEAR],
            settings(api),
        )
    told = b""

    def until(text: bytes) -> None:
        nonlocal told
        while text not in told:
            assert select.select([terminal], [], [], TIMEOUT_S)[0], told
            told += os.read(terminal, 4096)

    try:
        until(b"ready\r\n")
        # Held still, the gateway would pass a signal on when the command has long taken the first.
        os.kill(pid, signal.SIGSTOP)
        os.write(terminal, b"\x03")
        until(b"heard 2\r\n")
        subprocess.run(["stty", "rows", "50"], stdin=terminal, check=True)
        until(b"heard 28\r\n")
        os.kill(pid, signal.SIGCONT)
        # What is passed on comes in the order of its number.
        os.kill(pid, signal.SIGHUP)
        until(b"heard 1\r\n")
        os.kill(pid, signal.SIGTERM)
        until(b"failed\r\n")
        _, status = os.waitpid(pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 9
    assert b"\r\n2 28 1\r\n" in told
