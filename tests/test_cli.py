"""The `gateway` command as a shell sees it: exit codes, what it prints, and what it never prints."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import io
import json
import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from gateway import cli, workers
from gateway.config import SETTINGS
from tests.kit.printed import printed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from gateway.config import Config

URL = "https://api.example.com/v1"
TIMEOUT_S = 20.0
CANARIES = {
    "TARGET_API_KEY": "sk-canary-upstream-0123456789",
    "TOKEN_SECRET": "canary-token-secret-0123456789abcdef,canary-token-former-0123456789abcdef",
    "ADMIN_KEY": "canary-admin-key-0123456789abcdef",
    "REDIS_URL": "redis://canary-user:canary-phrase@127.0.0.1:1/0",
}

BROKEN_PEM = b"-----BEGIN CERTIFICATE-----\nbm8gY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n"


def environment(**settings: str) -> dict[str, str]:
    """Return this process's environment with no setting but these."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    return {**kept, **settings}


def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    printed.keep_settings_secret({name.lower(): value for name, value in settings.items()})
    result = subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    printed.note(result.stdout)
    printed.note(result.stderr)
    return result


def refused(result: subprocess.CompletedProcess[str], code: int) -> str:
    """Return the one line that a failed command has on stderr."""
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith("gateway: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def assert_no_canary(text: str) -> None:
    assert "canary" not in text
    assert "sk-" not in text
    for secret in re.findall(r"[\w-]*canary[\w-]*", " ".join(CANARIES.values())):
        for start in range(len(secret) - 7):
            assert secret[start : start + 8] not in text


@contextlib.contextmanager
def answering(status: int) -> Iterator[str]:
    """Serve `status` for any GET on a port of its own; yield the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """Yield a port that nobody listens on and nobody else can take meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_with_nothing_set_it_says_what_to_set_and_what_needs_nothing() -> None:
    message = refused(run(), 2)
    assert "TARGET_API_URL: is not set" in message
    assert "./tools/run demo" in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["sk-canary"],
        ["serve", "--rate-limits", "sk-canary"],
        ["serve", "--rate-limits=sk-canary"],
        ["serve", "sk-canary"],
        ["--rate-limit"],
        ["check-config", "--rate", "5"],
        ["demo", "--rate-limit", "5"],
        ["serve", "--rate-limit", "many"],
        ["serve", "--config", "/nonexistent/gateway.toml"],
        ["token"],
        ["usage", "--url", "ftp://h"],
        ["usage", "--url", "http://a..b:3000"],
        ["ledger", "--url", "ftp://h"],
        ["ledger", "--csv", "--json"],
        ["ledger", "release"],
        ["reconcile"],
        ["simulate"],
        ["healthcheck", "--url", "ftp://127.0.0.1"],
        ["healthcheck", "--url", "unix:gateway.sock"],
        ["healthcheck", "--url", "localhost"],
        ["healthcheck", "--url", "http://h:sk-canary"],
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments: list[str]) -> None:
    assert_no_canary(refused(run(*arguments, TARGET_API_URL=URL), 2))


@pytest.mark.parametrize("arguments", [["run"], ["run", "--"], ["run", "app"], ["run", "python", "-c", "1"]])
def test_run_says_where_its_command_goes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert "it takes a command behind --, e.g. gateway run -- python app.py" in capsys.readouterr().err


def test_what_verify_is_not_told_it_asks_for() -> None:
    assert "URL" in refused(run("verify"), 2)
    assert refused(run("verify", "http://10.0.0.1:3000"), 2).startswith("gateway: --yes: is missing. Admitted requests")


def test_every_setting_is_an_option_and_help_warns_of_secrets() -> None:
    result = run("serve", "--help")
    assert result.returncode == 0
    for setting in SETTINGS.values():
        assert setting.option in result.stdout
    assert "in the environment or a file, not as options" in " ".join(result.stdout.split())


def test_version() -> None:
    result = run("--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"gateway \d+\.\d+\.\d+\n", result.stdout)


def test_check_config_prints_what_it_resolves_to() -> None:
    result = run("check-config", "--rate-limit", "10/second", TARGET_API_URL=URL + "/", MAX_BODY="1kB")
    assert (result.returncode, result.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert (lines["TARGET_API_URL"], lines["RATE_LIMIT"], lines["MAX_BODY"]) == (URL, "10 in 1 s", "1000 bytes")
    assert lines["GATEWAY_LISTEN"] == "127.0.0.1:3000"
    assert list(lines) == [setting.environment for setting in SETTINGS.values()]


def test_check_config_prints_long_names_apart_from_what_they_resolve_to(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f'[targets.geocoding]\nurl = "{URL}"\n', encoding="utf-8")
    told = run("check-config", "--config", str(file), TARGET_API_URL=URL).stdout
    assert re.search(r"(?m)^targets\.geocoding\.concurrency_limit +none of its own$", told)


def test_check_config_reads_the_file_of_the_option_before_that_of_the_environment(tmp_path: Path) -> None:
    files = {quota: tmp_path / f"{quota}.toml" for quota in (7, 8)}
    for quota, file in files.items():
        file.write_text(f'target_api_url = "{URL}"\nrate_limit = {quota}\n', encoding="utf-8")
    assert "7 in 60 s" in run("check-config", GATEWAY_CONFIG=str(files[7])).stdout
    assert "8 in 60 s" in run("check-config", "--config", str(files[8]), GATEWAY_CONFIG=str(files[7])).stdout


def test_nothing_printed_holds_a_secret() -> None:
    good = run("check-config", TARGET_API_URL=URL, **CANARIES)
    assert good.returncode == 0
    assert_no_canary(good.stdout + good.stderr)
    for name, value in CANARIES.items():
        for wrong in (value + "\u00e9", value + "\x01", value.replace("-", "\n")):
            bad = run("check-config", **{"TARGET_API_URL": URL, **CANARIES, name: wrong})
            assert_no_canary(refused(bad, 2))


def test_a_secret_as_an_option_gets_a_warning_that_does_not_repeat_it() -> None:
    result = run("check-config", "--target-api-key", CANARIES["TARGET_API_KEY"], TARGET_API_URL=URL)
    assert result.returncode == 0
    assert "--target-api-key" in result.stderr
    assert "TARGET_API_KEY in the environment" in result.stderr
    assert_no_canary(result.stdout + result.stderr)


def test_check_config_warns_of_a_file_with_secrets_that_others_may_read(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    secrets = f'admin_key = "{CANARIES["ADMIN_KEY"]}"\nredis_url = "redis://:sk-canary@127.0.0.1"\n'
    maps = f'[targets.maps]\nurl = "{URL}"\n'
    for content, mode, named in (
        (f'{secrets}{maps}keys = ["sk-canary-a", "sk-canary-b"]', 0o644, "admin_key, redis_url, targets.maps.keys"),
        (f'{maps}key = "sk-canary-a"', 0o620, "targets.maps.key"),
        (f'{secrets}{maps}key = "sk-canary-a"', 0o640, ""),
        (f'redis_url = "redis://127.0.0.1"\n{maps}key_env = "MAPS_KEY"', 0o644, ""),
    ):
        file.write_text(content, encoding="ascii")
        file.chmod(mode)
        result = run("check-config", "--config", str(file), TARGET_API_URL=URL, MAPS_KEY="sk-canary-a")
        assert result.returncode == 0
        assert_no_canary(result.stderr)
        assert result.stderr.count("\n") == bool(named)
        if named:
            assert f"gateway: warning: {file} has secrets in it ({named}) and mode {mode:o}: " in result.stderr
            assert f"chmod 600 {file}" in result.stderr


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1)])
def test_healthcheck(status: int, code: int) -> None:
    with answering(status) as address:
        assert cli.main(["healthcheck", "--url", f"http://{address}"]) == code
        assert cli.main(["healthcheck", "--url", f"http://{address}/"]) == code


def test_healthcheck_finds_the_address_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GATEWAY_CONFIG", raising=False)
    with answering(200) as address:
        monkeypatch.setenv("GATEWAY_LISTEN", f"{address},127.0.0.1:1")
        assert cli.main(["healthcheck"]) == 0
        monkeypatch.setenv("GATEWAY_LISTEN", address.replace("127.0.0.1", "0.0.0.0"))
        assert cli.main(["healthcheck"]) == 0
        monkeypatch.delenv("GATEWAY_LISTEN")
        file = tmp_path / "gateway.toml"
        file.write_text(f'gateway_listen = "{address}"\n', encoding="utf-8")
        assert cli.main(["healthcheck", "--config", str(file)]) == 0


def test_healthcheck_over_a_unix_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    monkeypatch.setenv("GATEWAY_LISTEN", f"unix:{path};mode=660,127.0.0.1:1")
    assert str(path) in refused(run("healthcheck", GATEWAY_LISTEN=f"unix:{path}"), 1)
    with socketserver.UnixStreamServer(str(path), OverUnix) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            assert cli.main(["healthcheck"]) == 0
            assert cli.main(["healthcheck", "--url", f"unix:{path}"]) == 0
        finally:
            server.shutdown()
            thread.join()


class OverUnix(socketserver.StreamRequestHandler):
    """Answers 200 to whoever asks for /healthz."""

    def handle(self) -> None:
        line = self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        status = b"200 OK" if line == b"GET /healthz HTTP/1.1\r\n" else b"404 Not Found"
        self.wfile.write(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status)


def test_healthcheck_of_nobody_is_a_failure() -> None:
    with free_port() as port:
        assert f"127.0.0.1:{port}" in refused(run("healthcheck", GATEWAY_LISTEN=f"127.0.0.1:{port}"), 1)


def test_healthcheck_does_not_load_a_server() -> None:
    code = "from gateway import cli; cli.main(['healthcheck', '--url', 'http://127.0.0.1:1'])"
    listed = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    ).stderr
    imported = {line.rpartition("|")[2].strip() for line in listed.splitlines()}
    assert "gateway.config" in imported
    assert "http.client" in imported
    assert not {"asyncio", "uvloop", "gateway.server", "gateway.demo", "tomllib"} & imported


def test_a_server_does_not_load_what_only_other_commands_need() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = environment(TARGET_API_URL=URL, GATEWAY_LISTEN=f"127.0.0.1:{taken.getsockname()[1]}")
        command = [sys.executable, "-X", "importtime", "-m", "gateway"]
        ended = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ended.returncode == 1, ended.stderr[-500:]
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "gateway.server" in imported
    others = {"argparse", "gateway.commands", "gateway.config.describing", "gateway.supervisor.crew", "tomllib"}
    assert not {*others, "hiredis", "rich", "prometheus_client"} & imported


def test_a_port_in_use_is_a_failure_at_run_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        told = refused(run(TARGET_API_URL=URL, GATEWAY_LISTEN=address), 1)
    said = f"cannot listen on {address} (GATEWAY_LISTEN): Address already in use; another program listens there already"
    assert said in told


def test_redis_that_does_not_answer_at_start_is_a_failure_at_run_time() -> None:
    with free_port() as port:
        redis = f"redis://canary-user:canary-phrase@127.0.0.1:{port}/0"
        assert_no_canary(refused(run(TARGET_API_URL=URL, GATEWAY_LISTEN="127.0.0.1:0", REDIS_URL=redis), 1))


@pytest.mark.parametrize("command", ["serve", "check-config"])
@pytest.mark.parametrize("host", ["a..b", "." + "a" * 8, "a" * 64])
def test_a_redis_host_that_is_no_name_is_bad_usage(command: str, host: str) -> None:
    redis = f"redis://canary-user:canary-phrase@{host}:6379/0"
    message = refused(run(command, TARGET_API_URL=URL, GATEWAY_LISTEN="127.0.0.1:0", REDIS_URL=redis), 2)
    assert "REDIS_URL" in message
    assert_no_canary(message)


@pytest.mark.parametrize("content", [b"", b"no certificate", b"\x30\x82\x03\xff\x00", b"\xff\xfe", BROKEN_PEM])
@pytest.mark.parametrize("command", ["serve", "check-config"])
def test_roots_that_are_no_pem_are_bad_usage(tmp_path: Path, command: str, content: bytes) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_bytes(content)
    result = run(command, TARGET_API_URL=URL, GATEWAY_LISTEN="127.0.0.1:0", TARGET_CA_FILE=str(roots))
    assert "TARGET_CA_FILE" in refused(result, 2)


@pytest.mark.parametrize(("number", "closed"), [(signal.SIGTERM, ""), (signal.SIGINT, "<&- >&-")])
def test_serve_runs_until_a_signal_and_exits_0(number: signal.Signals, closed: str) -> None:
    """Also where nobody has left it a stdin and stdout: no socket gets their numbers."""
    settings = {"TARGET_API_URL": URL, "GATEWAY_LISTEN": "127.0.0.1:0", "ACCESS_LOG": "json" if closed else "off"}
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$0" -m gateway {closed}', sys.executable],
        env=environment(**settings, TARGET_API_KEY=CANARIES["TARGET_API_KEY"]),
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"listening on http://(127\.0\.0\.1:\d+)", line):
                break
        else:
            pytest.fail("".join(lines))
        connection = http.client.HTTPConnection(found[1], timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("POST", "/register")
            answer = connection.getresponse()
            assert (answer.status, set(json.load(answer))) == (201, {"token", "id", "expires_at"})
        process.send_signal(number)
        assert process.wait(TIMEOUT_S) == 0
        told = "".join(lines) + process.stderr.read()
        printed.note(told)
        assert_no_canary(told)


def test_serve_takes_the_secrets_out_of_its_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    served: list[Config] = []

    def serve(config: Config, reread: Callable[[], Config], environ: Mapping[str, str], warning: str) -> int:
        assert warning == ""
        served.extend((config, reread()))  # which has them still
        assert list(config.files) == [tmp_path / "gateway.toml"]
        assert environ["TARGET_API_KEY"] == CANARIES["TARGET_API_KEY"]  # for those that take this one's place
        return 0

    (tmp_path / "gateway.toml").write_text(
        '[targets.maps]\nurl = "http://maps.test"\nkey_env = "MAPS_KEY"\n', encoding="ascii"
    )
    monkeypatch.setenv("MAPS_KEY", "sk-canary-maps")

    monkeypatch.setattr(workers, "serve", serve)
    monkeypatch.setenv("TARGET_API_URL", URL)
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["serve", "--config", str(tmp_path / "gateway.toml")]) == 0
    for config in served:
        assert config.target_api_key == CANARIES["TARGET_API_KEY"]
        assert config.settings.targets[0].keys == ("sk-canary-maps",)
    assert not (CANARIES.keys() | {"MAPS_KEY"}) & os.environ.keys()
    assert os.environ["TARGET_API_URL"] == URL


def test_an_interrupt_before_there_is_a_handler_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "serve", interrupted)
    assert cli.main(["serve", "--target-api-url", URL]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("words", [["check-config"], ["--version"], ["token", "--help"]])
@pytest.mark.parametrize(("place", "code", "told"), [(None, 0, ""), ("/dev/full", 1, "gateway: [Errno 28]")])
def test_output_that_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    place: str | None,
    code: int,
    told: str,
) -> None:
    """What ends `gateway … | head` is not its reader's business; a full disk is."""
    monkeypatch.setenv("TARGET_API_URL", URL)
    reading, writing = os.pipe() if place is None else (os.open(os.devnull, os.O_RDONLY), os.open(place, os.O_WRONLY))
    os.close(reading)
    with os.fdopen(writing, "w", encoding="ascii") as output:
        monkeypatch.setattr(sys, "stdout", output)
        try:
            found: object = cli.main(words)
        except SystemExit as ended:  # `--help`
            found = ended.code
        assert found == code
    err = capsys.readouterr().err
    assert err.startswith(told) if told else not err
    # It is closed without an error: nothing is left that Python would fail to write as it exits.


def test_what_the_encoding_of_stdout_has_no_letters_for_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARGET_API_URL", URL)
    monkeypatch.setenv("STATE_FILE", "\u00fcn\udcff")
    monkeypatch.setattr(sys, "stdout", output := io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert cli.main(["check-config"]) == 0
    output.seek(0)
    assert re.search(r"^STATE_FILE +\\xfcn\\udcff$", output.read(), re.MULTILINE)


def test_demo_passes_five_and_refuses_three() -> None:
    result = run("demo")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[-1] == "5 passed, 3 refused"
    requests = [line for line in lines if line.startswith("request ")]
    assert [line.split()[2] for line in requests] == ["200"] * 5 + ["429"] * 3
    assert all('RateLimit: "minute";r=' in line for line in requests)
    assert ["Retry-After: " in line for line in requests] == [False] * 5 + [True] * 3


def test_a_signal_for_a_gateway_that_runs_does_not_end_one_that_starts() -> None:
    code = (
        "import os, signal\nfrom gateway.errors import ConfigError\nfrom gateway.serving import serve\n"
        "try:\n    serve({}, None)\nexcept ConfigError:\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n    os.kill(os.getpid(), signal.SIGUSR2)\n    print('goes on')"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "goes on\n"), result.stderr
