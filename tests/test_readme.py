"""What README and CONTRIBUTING say is true: every command block is run, every table, link and path is checked.

A block is known by its first line. One that is new has to be added to `RUN` here, together with a test that runs it.
The commands are run as they stand, but for what `runnable` substitutes: `./tools/run` (which would install; its own
tests are in test_tools.py), addresses, and keys.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import http.server
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from gateway import errors
from gateway.access_lines import JsonLines, Record
from gateway.budgets.spending import Mark
from gateway.budgets.told import OPEN
from gateway.config import SETTINGS, Config, load
from gateway.config.costs import KEYS as COST_KEYS
from gateway.config.loading import DEFAULT_LISTEN
from gateway.config.targets import KEYS
from gateway.http1 import writer
from gateway.running import environment as environment_of
from tests.kit.ledger import morning, serving_ledger
from tests.kit.printed import printed as record
from tests.kit.redis import running_redis

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import Message

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DOCUMENTS = {
    "README.md": README,
    "CONTRIBUTING.md": CONTRIBUTING,
    "CHANGELOG.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
}
TIMEOUT_S = 20.0

DEMO = "$ ./tools/run demo"
SERVE = "TARGET_API_URL=https://api.openai.com/v1 TARGET_API_KEY=sk-… ./tools/run\n"
REGISTER = "export TOKEN=$(./tools/run token issue)"
OPENAI = "import os"
SERVE_ANTHROPIC = "TARGET_API_URL=https://api.anthropic.com TARGET_API_KEY=sk-ant-…"
MESSAGES = "curl http://127.0.0.1:3000/api/v1/messages"
FROM_FILE = "TARGET_API_KEY=sk-… ./tools/run check-config --config gateway.toml"
REGISTER_AS_ADMIN = 'curl -X POST http://127.0.0.1:3000/register -H "Authorization: Bearer $ADMIN_KEY"'
CHILD = 'curl -X POST http://127.0.0.1:3000/tokens -H "Authorization: Bearer $TOKEN"'
TOKENS = "TOKEN=$(./tools/run token issue --name"
INSTANCES = "export TARGET_API_URL=https://api.openai.com/v1 TARGET_API_KEY=sk-… REDIS_URL=redis://"
LIBRARY = "import asyncio\nimport os"
LIMITS_ALONE = "import asyncio\n\nfrom gateway import Admission"
TARGETS = "[targets.maps]\n"
COSTS = "[targets.maps.cost]"
AS_A_PROXY = "curl -x http://$TOKEN:x@"
HEALTHCHECK = "./tools/run healthcheck"
VERIFY = "./tools/run verify"
PROOF = "$ python -m perf.proof"
SOAK = "$ python tools/soak.py"
SERVE_A_DOLLAR = 'TARGET_API_URL=https://api.openai.com/v1 TARGET_API_KEY=sk-… TARGET_COST=llm BUDGET="1 USD/day"'
AGENT = "$ OPENAI_BASE_URL=http://127.0.0.1:3000/api OPENAI_API_KEY=$TOKEN python tools/examples/agent_in_a_loop.py"
RECONCILE_AGENT = "$ ./tools/run reconcile agent.csv"
SIMULATE_AGENT = "$ ./tools/run simulate --since 24h"
LEDGER = "$ ./tools/run ledger --since"
RELEASE = "./tools/run ledger release $REQUEST"
COST_OF = "curl http://127.0.0.1:3000/usage/requests/"
RECONCILE = "$ ./tools/run reconcile invoice.csv"
SIMULATE = "$ ./tools/run simulate --budget"
RUN_COMMAND = "TARGET_API_URL=https://api.openai.com/v1 TARGET_API_KEY=sk-… ./tools/run run -- "
RUN = (
    DEMO,
    SERVE,
    REGISTER,
    OPENAI,
    SERVE_ANTHROPIC,
    MESSAGES,
    AS_A_PROXY,
    FROM_FILE,
    REGISTER_AS_ADMIN,
    TOKENS,
    CHILD,
    INSTANCES,
    LIBRARY,
    LIMITS_ALONE,
    HEALTHCHECK,
    VERIFY,
    PROOF,
    SOAK,
    RUN_COMMAND,
    SERVE_A_DOLLAR,
    AGENT,
    RECONCILE_AGENT,
    SIMULATE_AGENT,
    LEDGER,
    RELEASE,
    COST_OF,
    RECONCILE,
    SIMULATE,
)

PIP = "pip install ."
DOCKER = "docker build -t rate-limiting-gateway ."
CHECKED_OTHERWISE = (PIP, DOCKER)
"""A container engine and a package index are not to be had in a test: these are held against the files they use."""

PROXIED = "RateLimit-Policy:"
REFUSED = "HTTP/1.1 429 Too Many Requests"
SHOWN = (PROXIED, REFUSED)
LOG_LINE = '{"time":'
ENTRY = '{"request": '


class Block(NamedTuple):
    language: str
    text: str


BLOCKS = [
    Block(match[1], match[2]) for match in re.finditer(r"^```(\S*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
]


def block(start: str) -> str:
    """Return the one block that begins so."""
    (found,) = (text for _, text in BLOCKS if text.startswith(start))
    return found


def rows(heading: str, document: str = README) -> list[list[str]]:
    """Return the cells of the first table under a heading, without its head."""
    section = re.split(rf"^#+ {re.escape(heading)}$", document, maxsplit=1, flags=re.MULTILINE)[1]
    lines = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def names(cell: str) -> list[str]:
    return re.findall("`([^`]+)`", cell)


# --- running things --------------------------------------------------------------------------------------------------


def environment(**settings: str) -> dict[str, str]:
    """Return this process's environment with no setting but these; `python3` is this interpreter."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), **settings}


def runnable(text: str, *, api: str = "", gateway: str = "") -> str:
    """Return a block with what a test cannot have replaced: an installation, the network, a port of its choice."""
    text = text.replace("./tools/run", f'"{sys.executable}" -m gateway')
    text = re.sub("sk-(?:ant-)?…", "sk-real-key", text)
    text = text.replace("http://api.openai.com", api).replace("@127.0.0.1:3000", f"@{gateway.removeprefix('http://')}")
    text = text.replace("https://api.openai.com", api).replace("https://api.anthropic.com", api)
    text = re.sub(r"GATEWAY_LISTEN=127\.0\.0\.1:\d+", "GATEWAY_LISTEN=127.0.0.1:0", text)
    return text.replace("http://127.0.0.1:3000", gateway)


def run(command: list[str], *, cwd: Path, **settings: str) -> str:
    """Run a command that must succeed and return its standard output."""
    result = subprocess.run(
        command, cwd=cwd, env=environment(**settings), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_sh(script: str, *, cwd: Path, **settings: str) -> str:
    return run(["sh", "-eu", "-c", script], cwd=cwd, **settings)


@contextlib.contextmanager
def serving(script: str, cwd: Path, *, instances: int = 1, **settings: str) -> Iterator[tuple[list[str], str]]:
    """Run a script that starts gateways; yield their addresses, and what was printed until all of them listened.

    (`kit.process` runs one gateway without a shell; here the shell's reading of the README is what is tested.)
    """
    process = subprocess.Popen(
        ["sh", "-eu", "-c", f"{script}\nwait"],
        cwd=cwd,
        env=environment(GATEWAY_LISTEN="127.0.0.1:0", **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a group of its own, which is ended as a whole
    )
    with process:
        assert process.stdout is not None
        urls: list[str] = []
        printed = ""
        failsafe = threading.Timer(TIMEOUT_S, os.killpg, (process.pid, signal.SIGKILL))
        failsafe.start()
        try:
            while len(urls) < instances:
                line = process.stdout.readline()
                assert line, printed
                printed += line
                record.note(line)
                urls += re.findall(r"listening on (http://127\.0\.0\.1:\d+),", line)
            failsafe.cancel()
            yield urls, printed
        finally:
            failsafe.cancel()
            os.killpg(process.pid, signal.SIGTERM)
            printed += process.stdout.read()  # until all of them have ended
    assert "Traceback" not in printed
    assert "sk-real-key" not in printed


class Api:
    """A mock of the APIs in the README; `requests` has what it was sent, as (request line, fields, content)."""

    def __init__(self) -> None:
        requests: list[tuple[str, Message, bytes]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                requests.append((self.requestline, self.headers, content))
                answer, kind = answer_to(self.path)
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_GET  # noqa: N815 (the base class's name)

            def log_message(self, *_: object) -> None:
                pass

        self.requests = requests
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def answer_to(path: str) -> tuple[bytes, str]:
    if path == "/v1/chat/completions":
        delta = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "mock"}
        chunks = [{**delta, "choices": [{"index": 0, "delta": {"content": word}}]} for word in ("Hel", "lo.")]
        events = [json.dumps(chunk) for chunk in chunks] + ["[DONE]"]
        return "".join(f"data: {event}\n\n" for event in events).encode(), "text/event-stream"
    assert path in {"/v1/models", "/v1/messages"}
    return b'{"data": []}\n', "application/json"


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    mock = Api()
    thread = threading.Thread(target=mock.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield mock
    finally:
        mock.server.shutdown()
        thread.join()
        mock.server.server_close()


@pytest.fixture(scope="module")
def gateway(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The README's first gateway."""
    with serving(runnable(block(SERVE), api=api.url), tmp_path_factory.mktemp("serve")) as ((url,), _):
        yield url


def request(url: str, method: str, path: str, token: str = "") -> tuple[int, list[tuple[str, str]], bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request(method, path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()


def register(url: str) -> dict[str, Any]:
    status, _, content = request(url, "POST", "/register")
    assert status == 201
    answer: dict[str, Any] = json.loads(content)
    return answer


# --- the blocks ------------------------------------------------------------------------------------------------------


def test_every_block_is_covered() -> None:
    """A new block needs a test here, and its first line in `RUN`."""
    covered = {"sh": RUN + CHECKED_OTHERWISE, "python": RUN, "console": RUN, "http": SHOWN, "text": ("  client",)}
    covered["json"] = (LOG_LINE, ENTRY)
    covered["toml"] = ("target_api_url = ", TARGETS, COSTS)
    for language, text in BLOCKS:
        assert language in covered, f"a block of an unknown language: {language!r}"
        assert text.startswith(covered[language]), f"no test runs this block: {text}"
    for start in RUN + CHECKED_OTHERWISE + SHOWN:
        block(start)


def test_the_demo(tmp_path: Path) -> None:
    command, *shown = block(DEMO).splitlines()
    printed = run_sh(runnable(command.removeprefix("$ ")), cwd=tmp_path).splitlines()

    def without_chance(line: str) -> str:
        line = re.sub(r"(port |127\.0\.0\.1:)\d+", r"\1PORT", line)
        return re.sub(r"(t=|Retry-After: )6[0-4]\b", r"\1WAIT", line)

    assert [without_chance(line) for line in printed] == [without_chance(line) for line in shown]


def test_a_token_and_curl(gateway: str, api: Api, tmp_path: Path) -> None:
    script = runnable(block(REGISTER), gateway=gateway) + 'env | grep -q "^TOKEN=gw_"\n'  # the SDK's example reads it
    printed = run_sh(script, cwd=tmp_path, GATEWAY_LISTEN=gateway.removeprefix("http://"))
    head, _, content = printed.replace("\r\n", "\n").partition("\n\n")
    assert head.startswith("HTTP/1.1 200 OK\n")
    assert 'RateLimit: "minute";r=59;' in head
    assert json.loads(content) == {"data": []}
    line, fields, _ = api.requests[-1]
    assert line == "GET /v1/models HTTP/1.1"
    assert fields.get_all("Authorization") == ["Bearer sk-real-key"]


def test_as_a_proxy(gateway: str, api: Api, tmp_path: Path) -> None:
    script = runnable(block(AS_A_PROXY), api=api.url, gateway=gateway)
    assert json.loads(run_sh(script, cwd=tmp_path, TOKEN=register(gateway)["token"])) == {"data": []}
    line, fields, _ = api.requests[-1]
    assert line == "GET /v1/models HTTP/1.1"
    assert fields.get_all("Authorization") == ["Bearer sk-real-key"]


def test_the_openai_sdk(gateway: str, api: Api, tmp_path: Path) -> None:
    script = runnable(block(OPENAI), gateway=gateway)
    assert run([sys.executable, "-c", script], cwd=tmp_path, TOKEN=register(gateway)["token"]) == "Hello.\n"
    line, fields, content = api.requests[-1]
    assert line == "POST /v1/chat/completions HTTP/1.1"
    assert fields.get_all("Authorization") == ["Bearer sk-real-key"]
    assert json.loads(content)["stream"] is True


def test_anthropic(api: Api, tmp_path: Path) -> None:
    with serving(runnable(block(SERVE_ANTHROPIC), api=api.url), tmp_path) as ((url,), _):
        printed = run_sh(runnable(block(MESSAGES), gateway=url), cwd=tmp_path, TOKEN=register(url)["token"])
    assert json.loads(printed) == {"data": []}
    line, fields, _ = api.requests[-1]
    assert line == "POST /v1/messages HTTP/1.1"
    assert fields.get_all("x-api-key") == ["sk-real-key"]
    assert fields.get_all("Authorization") is None
    assert fields["anthropic-version"] == "2023-06-01"


def test_answers_look_as_shown(gateway: str, api: Api, tmp_path: Path) -> None:
    token = register(gateway)["token"]
    status, fields, _ = request(gateway, "GET", "/api/models", token)
    assert status == 200
    added = [line.partition(": ")[0] for line in block(PROXIED).splitlines()]
    assert [name for name, _ in fields if name in added] == added

    with serving(runnable(block(SERVE), api=api.url), tmp_path, RATE_LIMIT="1/30s") as ((url,), _):
        token = register(url)["token"]
        assert request(url, "GET", "/api/models", token)[0] == 200
        status, fields, content = request(url, "GET", "/api/models", token)
    head, _, shown = block(REFUSED).partition("\n\n")
    assert status == 429
    assert [name for name, _ in fields] == [line.partition(": ")[0] for line in head.splitlines()[1:]]

    def shape(content: bytes | str) -> str:
        return re.sub(r"[\d.]+ (requests|seconds)|'\w+'", "N", json.dumps(json.loads(content)))

    assert shape(content) == shape(shown)


def test_a_line_of_the_access_log_has_what_is_shown() -> None:
    shown = json.loads(block(LOG_LINE))
    lines = JsonLines(time.time)
    lines.add(Record(None, None, "id", "api", "", 200, 81, 310, writer.TIMING % (0.071, 412.771), None))
    made, _ = lines.take()
    assert list(json.loads(made)) == list(shown)
    assert {name: json.loads(made)[name] for name in ("gateway_ms", "upstream_ms", "bytes_in", "bytes_out")} == {
        name: shown[name] for name in ("gateway_ms", "upstream_ms", "bytes_in", "bytes_out")
    }


def test_settings_from_a_file(api: Api, tmp_path: Path) -> None:
    key_file = tmp_path / "maps"
    key_file.write_text("sk-real-key-of-maps\n", encoding="ascii")
    key_file.chmod(0o600)
    content = "\n".join(text for language, text in BLOCKS if language == "toml")
    content = content.replace("https://api.openai.com", api.url).replace("https://maps.example.com/v2", f"{api.url}/v1")
    content = content.replace("/run/secrets/maps", str(key_file))
    (tmp_path / "gateway.toml").write_text(content, encoding="utf-8")
    with serving(runnable(block(FROM_FILE)), tmp_path) as ((url,), printed):
        assert re.search(r"^RATE_LIMIT +10 in 1 s, 1000 in 86400 s$", printed, re.MULTILINE)
        assert re.search(r"^DRAIN_TIMEOUT +10\.0 s$", printed, re.MULTILINE)
        assert re.search(r"^targets\.maps\.key +set \(19 characters\)$", printed, re.MULTILINE)
        assert re.search(r"^targets\.maps\.cost +GET /geocode 0\.005 USD; ", printed, re.MULTILINE)
        assert re.search(r"^prices\.my-model +input 2\.5, ", printed, re.MULTILINE)
        token = register(url)["token"]
        _, fields, _ = request(url, "GET", "/api/models", token)
        status, of_maps, _ = request(url, "GET", "/maps/models", token)
    limits = '"second";q=10;w=1, "day";q=1000;w=86400, "global-day";q=5000;w=86400'
    assert dict(fields)["RateLimit-Policy"] == limits
    assert status == 200
    assert dict(of_maps)["RateLimit-Policy"] == limits + ', "maps-second";q=10;w=1, "maps-day";q=1000;w=86400'
    assert api.requests[-1][1].get_all("x-api-key") == ["sk-real-key-of-maps"]


def test_the_keys_of_a_target() -> None:
    listed = [name for row in rows("Several targets") for name in names(row[0])]
    assert sorted(listed) == sorted(KEYS)


def test_the_keys_of_a_cost() -> None:
    listed = [name for row in rows("What requests cost") for name in names(row[0])]
    assert sorted(listed) == sorted(COST_KEYS)


def test_registering_as_admin(api: Api, tmp_path: Path) -> None:
    key = "an-admin-key-of-32-characters-or-more"
    with serving(runnable(block(SERVE), api=api.url), tmp_path, ADMIN_KEY=key) as ((url,), _):
        assert request(url, "POST", "/register")[0] == 403
        answer = json.loads(run_sh(runnable(block(REGISTER_AS_ADMIN), gateway=url), cwd=tmp_path, ADMIN_KEY=key))
        assert answer.keys() == {"token", "id", "expires_at"}
        _, fields, _ = request(url, "GET", "/api/models", answer["token"])
    assert dict(fields)["RateLimit-Policy"] == '"second";q=10;w=1, "day";q=500;w=86400'


def test_tokens_on_the_command_line(api: Api, tmp_path: Path) -> None:
    key = "an-admin-key-of-32-characters-or-more"
    with serving(runnable(block(SERVE), api=api.url), tmp_path, ADMIN_KEY=key) as ((url,), _):
        here = {"ADMIN_KEY": key, "GATEWAY_LISTEN": url.removeprefix("http://")}
        printed = run_sh(runnable(block(TOKENS)), cwd=tmp_path, **here)
        assert re.search(r"^limits +10/second, 500/day$", printed, re.MULTILINE)
        (token_id,) = re.findall(r"^revoked (\S+)$", printed, re.MULTILINE)
        (listed,) = json.loads(request(url, "GET", "/admin/tokens", key)[2])["tokens"]
        assert (listed["id"], listed["name"], listed["revoked"]) == (token_id, "nightly", True)


def test_a_token_from_a_token(gateway: str, tmp_path: Path) -> None:
    token = register(gateway)
    script = runnable(block(CHILD), gateway=gateway)
    child = json.loads(run_sh(script, cwd=tmp_path, TOKEN=token["token"]))
    assert child["id"].startswith(token["id"] + ".")
    _, fields, _ = request(gateway, "GET", "/api/models", child["token"])
    policies = dict(fields)["RateLimit-Policy"]
    assert policies == '"minute";q=5;w=60, "parent-minute";q=60;w=60'
    assert request(gateway, "GET", "/api/other", child["token"])[0] == 403


def test_instances_on_one_redis(api: Api, tmp_path: Path) -> None:
    with running_redis() as redis:
        script = runnable(block(INSTANCES), api=api.url).replace("redis://127.0.0.1:6379/0", redis.url)
        limits = {
            "RATE_LIMIT": "1/30s,60/hour;bucket",
            "GLOBAL_RATE_LIMIT": "100,100/hour;bucket",
            "TARGET_COST": "0.005 USD",
            "BUDGET": "5 USD/day",
            "GLOBAL_BUDGET": "90 USD/month",
            "LOOP_GUARD": "20/hour",
        }
        with serving(script, tmp_path, instances=2, ON_STORE_LOSS="local", **limits) as ((first, second), _):
            token = register(first)
            assert request(first, "GET", "/api/models", token["token"])[0] == 200
            assert request(second, "GET", "/api/models", token["token"])[0] == 429
            for one in (first, second):  # which enters what it has counted
                assert request(one, "GET", "/usage", token["token"])[0] == 200
            listed = redis.call("KEYS", "*")
            assert isinstance(listed, list)
            keys = {key.decode() for key in listed if b":rights-" not in key}  # they may pass before they are looked at
            lives_s = {key: redis.call("TTL", key) for key in keys}
        documented = {name for row in rows("Redis keys") for name in names(row[0])}
        spelled = {key.replace(token["id"], "TOKEN_ID") for key in keys}
        spelled = {re.sub("{register-[0-9-]+}", "{register-ADDRESS}", key) for key in spelled}
        spelled = {re.sub(":limit:loop-[0-9a-f]{32}-", ":limit:loop-HASH-", key) for key in spelled}
        spelled = {re.sub(":limit:(?!loop-)[^-]*", ":limit:WINDOW", key) for key in spelled}
        spelled = {re.sub(":budget:.*", ":budget:WINDOW-UNIT", key) for key in spelled}
        spelled = {re.sub(":usage-instance:[0-9a-f]+", ":usage-instance:ID", key) for key in spelled}
        spelled = {re.sub(":usage-busiest:[0-9-]+", ":usage-busiest:DAY", key) for key in spelled}
        # The first two expire soon, perhaps before the keys are listed; the last is `gateway verify`'s.
        passing = {"gateway:{global}:probe", "gateway:{global}:rights-N", "gateway:{global}:verify"}
        # Nothing is in flight any more, nobody is revoked, no token was made from another, and this is no cluster.
        absent = {"gateway:{TOKEN_ID}:inflight", "gateway:{global}:inflight", "gateway:{TOKEN_ID}:revoked"}
        absent |= {f"gateway:{{global}}:tokens-{which}" for which in ("made", "revoked")}
        absent.add("gateway:{tokens-ADDRESS}:limit:WINDOW")
        absent.add("gateway:{TOKEN_ID}:inflight:TARGET-concurrency")
        absent |= {f"gateway:{{TOKEN_ID}}:open{which}" for which in ("", ":ends", ":assumed")}
        absent |= {name for name in documented if ":CHILD:" in name}
        assert spelled | passing | absent | {"gateway:{probe-N}:probe"} == documented
        for key in keys - passing:
            left_s = lives_s[key]
            assert isinstance(left_s, int)
            assert left_s > 0


def test_verify(api: Api, tmp_path: Path) -> None:
    with running_redis() as redis:
        script = runnable(block(INSTANCES), api=api.url).replace("redis://127.0.0.1:6379/0", redis.url)
        with serving(script, tmp_path, instances=2, RATE_LIMIT="20/second") as ((first, second), _):
            script = runnable(block(VERIFY), gateway=first).replace("http://127.0.0.1:3001", second)
            before = len(api.requests)
            printed = run_sh(f"{script.strip()} --path /api/models", cwd=tmp_path)
    assert re.search(r"^limit second +20 in 1 s; in the worst window (1\d|20)$", printed, re.MULTILINE)
    assert re.search(r"^over-admission +0$", printed, re.MULTILINE)
    assert re.search(rf"^admitted +{len(api.requests) - before}$", printed, re.MULTILINE)


def test_the_proof() -> None:
    command, *shown = block(PROOF).splitlines()
    # For half as long: it sends all that the machine takes.
    printed = run([sys.executable, *command.split()[2:], "--seconds", "5s"], cwd=ROOT).splitlines()

    def labels(lines: list[str]) -> list[str]:
        return [line[:16].strip() for line in lines]

    assert labels(printed) == labels(shown)
    for lines in (printed, shown):
        assert lines[-1].endswith("no limit was exceeded")


def test_the_soak() -> None:
    command, *shown = block(SOAK).splitlines()
    # Servers that were killed may have to be waited for; tests/test_soak.py has a longer one.
    short = [sys.executable, *command.split()[2:], "--seconds", "5", "--workers", "1", "--clients", "16"]
    done = subprocess.run(short, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=True)
    printed = done.stdout.splitlines()

    def labels(lines: list[str]) -> list[str]:
        found = [re.sub("[0-9,]+", "N", line.partition(":")[0]) for line in lines]
        return [label for label in found if label != "N workersN at rest"]

    assert labels(printed) == labels(shown)
    for lines in (printed, shown):
        assert lines[-1] == "violations: none"


def transcript(start: str, code: int, cwd: Path, url: str) -> tuple[str, str]:
    """Run a command of the README, which ends with this code; return what it printed, and what the README shows."""
    command, _, shown = block(start).partition("\n")
    script = runnable(command.removeprefix("$ "))
    environ = environment(GATEWAY_LISTEN=urlsplit(url).netloc)
    done = subprocess.run(
        ["sh", "-c", script], cwd=cwd, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert (done.returncode, done.stderr) == (code, "")
    return done.stdout, shown


def test_the_ledger(tmp_path: Path) -> None:
    ledger = morning()
    with serving_ledger(ledger) as url:
        printed, shown = transcript(LEDGER, 0, tmp_path, url)
        assert printed == shown
        here = {"GATEWAY_LISTEN": urlsplit(url).netloc, "REQUEST": ledger.reserved[0].id}
        printed = run_sh(runnable(block(RELEASE)), cwd=tmp_path, **here)
    assert printed.startswith(f"released {here['REQUEST']}: ")
    assert not ledger.reserved
    head = (tmp_path / "ledger.csv").read_text(encoding="utf-8").splitlines()[0]
    assert f"`{head}`" in README.replace("\n", "")
    marks = [name for row in rows("The ledger") for name in names(row[0])]
    assert marks == [*Mark, OPEN]


def test_what_a_request_cost(api: Api, tmp_path: Path) -> None:
    serve = runnable(block(SERVE), api=api.url)
    with serving(serve, tmp_path, TARGET_COST="0.005 USD", BUDGET="1 USD/hour") as ((url,), _):
        token = register(url)["token"]
        _, fields, _ = request(url, "GET", "/api/models", token)
        here = {"TOKEN": token, "REQUEST": dict(fields)["X-Gateway-Request"]}
        told = json.loads(run_sh(runnable(block(COST_OF), gateway=url), cwd=tmp_path, **here))
        (budget,) = json.loads(request(url, "GET", "/usage", token)[2])["budgets"]
    assert list(told) == list(json.loads(block(ENTRY)))
    assert told["cost"] == {"USD": "0.005"}
    section = README.partition("### The cost of one request\n")[2].partition("\n#")[0]
    for name in ("limit", "spent", "held", "remaining", "reset"):
        assert name in budget
        assert f"`{name}`" in section


def test_an_invoice(tmp_path: Path) -> None:
    lines = ["request_id,cost_usd", "req_7d1,0.0123", "req_7d2,0.0031", "req_7d3,0.0005"]
    (tmp_path / "invoice.csv").write_text("\n".join(lines), encoding="utf-8")
    with serving_ledger(morning()) as url:
        printed, shown = transcript(RECONCILE, 1, tmp_path, url)
    assert printed == shown


def test_a_simulation(tmp_path: Path) -> None:
    with serving_ledger(morning()) as url:
        printed, shown = transcript(SIMULATE, 0, tmp_path, url)
    assert printed == shown


def test_an_agent_in_a_loop(tmp_path: Path) -> None:
    def alike(text: str) -> str:
        """Leave out what another day, another token or other prices would change."""
        text = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z", "TIME", text)
        return re.sub(r" +", " ", re.sub(r"\d[\d.]*", "N", re.sub(r"^[\w-]{22} ", "TOKEN ", text, flags=re.MULTILINE)))

    def shell(start: str) -> tuple[str, str]:
        command, _, shown = block(start).partition("\n")
        command = runnable(command.removeprefix("$ "), gateway=url).replace(
            "tools/examples", str(ROOT / "tools/examples")
        )
        environ = environment(GATEWAY_LISTEN=urlsplit(url).netloc, TOKEN=token, PYTHONWARNINGS="ignore")
        done = subprocess.run(
            ["sh", "-eu", "-c", command],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=6 * TIMEOUT_S,  # the agent has some seventy turns
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, shown

    with (
        running_provider() as provider,
        serving(runnable(block(SERVE_A_DOLLAR), api=provider), tmp_path) as ((url,), _),
    ):
        token = register(url)["token"]
        stopped, shown = shell(AGENT)
        assert alike(stopped) == alike(shown)
        status, _, invoice = request(provider, "GET", "/invoice.csv")
        assert status == 200
        (tmp_path / "agent.csv").write_bytes(invoice)
        printed, shown = shell(RECONCILE_AGENT)
        assert alike(printed) == alike(shown)
        turns = len(invoice.splitlines()) - 1
        assert printed.startswith(f"{turns} requests agree, 0 do not\n")
        assert stopped.startswith(f"Stopped after {turns} turns: ")
        printed, shown = shell(SIMULATE_AGENT)
        assert alike(printed) == alike(shown)


@contextlib.contextmanager
def running_provider() -> Iterator[str]:
    """Run the mock that bills; yield its address."""
    command = [sys.executable, "-m", "tests.kit.provider"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def test_the_library(tmp_path: Path) -> None:
    printed = run([sys.executable, "-W", "error", "-c", block(LIBRARY)], cwd=tmp_path, TARGET_API_KEY="sk-real-key")
    assert re.fullmatch(r"base URL http://127\.0\.0\.1:\d+/api, key gw_\S+\n", printed)


def test_the_limits_alone(tmp_path: Path) -> None:
    printed = run([sys.executable, "-W", "error", "-c", block(LIMITS_ALONE)], cwd=tmp_path)
    sent = "request 1: sent, 1 left\nrequest 2: sent, 0 left\n"
    assert re.fullmatch(rf"{sent}request 3: none left for 6[01] s\n", printed)


def test_the_health_check(gateway: str, tmp_path: Path) -> None:
    assert run_sh(runnable(block(HEALTHCHECK)), cwd=tmp_path, GATEWAY_LISTEN=urlsplit(gateway).netloc) == ""


def test_one_command(api: Api, tmp_path: Path) -> None:
    app = block(OPENAI).replace('base_url="http://127.0.0.1:3000/api", api_key=os.environ["TOKEN"]', "")
    (tmp_path / "app.py").write_text(app, encoding="utf-8")
    assert run_sh(runnable(block(RUN_COMMAND), api=api.url), cwd=tmp_path) == "Hello.\n"
    line, fields, _ = api.requests[-1]
    assert line == "POST /v1/chat/completions HTTP/1.1"
    assert fields.get_all("Authorization") == ["Bearer sk-real-key"]


def test_one_commands_addresses_are_as_the_table_says() -> None:
    for target, *addresses in rows("One command"):
        url = names(target)[0].replace("HOST", "api.example").replace("…", "some") if "`" in target else "http://h/x"
        made = environment_of({}, Config(target_api_url=url), "http://127.0.0.1:PORT", "token")
        wanted = (made["GATEWAY_URL"], made["OPENAI_BASE_URL"], made["ANTHROPIC_BASE_URL"])
        assert tuple(names(cell)[0] for cell in addresses) == wanted


def test_pip_has_what_it_installs() -> None:
    """Checked otherwise: installing takes an index and half a minute; CI's tools/test does it."""
    assert block(PIP).splitlines() == ["pip install .", "gateway demo"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"gateway": "gateway.cli:main"}
    assert (ROOT / project["readme"]).exists()


def test_docker_names_what_the_image_has() -> None:
    """Checked otherwise: there is no container engine here."""
    build, start = re.sub(r"\\\n\s+", "", block(DOCKER)).splitlines()
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    *options, image = start.split()
    assert build.split() == ["docker", "build", "-t", image, "."]
    assert options[:2] == ["docker", "run"]
    assert "--read-only" in options
    (port,) = re.findall(r"^EXPOSE (\d+)$", dockerfile, re.MULTILINE)
    assert options[options.index("-p") + 1] == f"127.0.0.1:{port}:{port}"
    assert f'GATEWAY_LISTEN="0.0.0.0:{port}"' in dockerfile
    assert f"`0.0.0.0:{port}`" in README
    passed = [after.partition("=") for option, after in itertools.pairwise(options) if option == "-e"]
    environ = {name: value or "a-secret-of-32-characters-or-more" for name, _, value in passed}
    assert environ.keys() <= {setting.environment for setting in SETTINGS.values()}
    config = load(arguments={}, environ=environ, file=None)
    assert int(options[options.index("--stop-timeout") + 1]) > config.settings.drain_timeout_s


# --- the tables ------------------------------------------------------------------------------------------------------


def test_the_settings_table_has_the_settings_that_the_program_takes() -> None:
    listed = [names(row[0])[0] for row in rows("Settings")]
    assert listed == [setting.environment for setting in SETTINGS.values()]


def test_the_settings_table_has_the_defaults() -> None:
    defaults = {field.name.upper(): field.default for field in dataclasses.fields(Config)}
    defaults["GATEWAY_LISTEN"] = DEFAULT_LISTEN
    for name_cell, default, _ in rows("Settings"):
        (name,) = names(name_cell)
        value = defaults[name]
        missing = "required" if value is dataclasses.MISSING else "none"
        assert default == (f"`{value}`" if isinstance(value, str | int) else missing), name


def test_the_error_table_has_every_error() -> None:
    bases = {errors.GatewayError, errors.Stopped}
    made = {
        (kind.status, kind.code)
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.GatewayError) and kind not in bases
    }
    table = re.findall(r"^\| (\d{3}(?:, \d{3})*) \| (.*) \|$", README, re.MULTILINE)
    for status, code in made:
        assert any(str(status) in statuses and f"`{code}`" in codes for statuses, codes in table), (status, code)


def test_the_commands_are_those_of_the_program(tmp_path: Path) -> None:
    printed = run([sys.executable, "-m", "gateway", "--help"], cwd=tmp_path)
    commands = set(re.findall(r"^    (\S+)", printed, re.MULTILINE)) - {"COMMAND"}
    documented = {name for row in rows("Commands") for name in re.findall(r"`gateway ([a-z][a-z-]*)[` ]", row[0])}
    assert documented == commands


def test_contributing_has_a_reason_for_each_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for heading, wanted in (
        ("At run time", project["dependencies"]),
        ("For the tests", project["optional-dependencies"]["test"]),
    ):
        listed = [name for row in rows(heading, CONTRIBUTING) for name in names(row[0])]
        assert sorted(listed) == sorted(requirement.partition(">=")[0] for requirement in wanted)


def test_the_examples_are_those_that_there_are() -> None:
    listed = [name for row in rows("Examples") for name in names(row[0])]
    files = [path for path in (ROOT / "tools" / "examples").iterdir() if path.is_file()]
    # Whoever follows the Compose file has secrets there, which git does not take.
    assert sorted(listed) == sorted(path.name for path in files if path.suffix != ".env")


# --- links and paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_paths_lead_somewhere(document: str) -> None:
    text = DOCUMENTS[document]
    headings = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if "://" not in link:
            assert not path or (ROOT / path).exists(), link
            assert not anchor or anchor in headings, link
    in_tree = r"(?:gateway|tests|tools|perf|\.ci)/[\w./-]*\w|[\w-]+\.md|pyproject\.toml"
    paths = re.findall(rf"(?<![\w./-])(?:\./)?({in_tree})", text)
    for path in paths:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_nothing_names_a_place_that_does_not_ship(document: str) -> None:
    for line in DOCUMENTS[document].splitlines():
        assert not re.search(r"/work\b|\.\./|INTERFACE\.md|DESIGN\.md|STYLE\.md", line), line
