"""The programs in tools/examples, each run as it is: what it prints, and what reaches the API instead of its token."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from gateway import Config, Gateway
from tests.e2e import KEY
from tests.kit.api import WORDS, Api, chat_events, message_events, running_api
from tests.kit.held import held
from tests.kit.printed import printed
from tests.kit.programs import node_has_fetch, program, run
from tests.kit.provider import Provider
from tests.kit.provider_jobs import Wishes
from tests.kit.upstream import Call, Upstream, chunk, head, soon

if TYPE_CHECKING:
    from collections.abc import Iterator

ADMIN_KEY = "an-admin-key-of-32-characters-xx"
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "tools" / "examples"

CHAT, MODELS, MESSAGES = "POST /v1/chat/completions", "GET /v1/models", "POST /v1/messages"


class Shown(NamedTuple):
    """What an example prints, as a pattern, and what the API gets of it."""

    output: str
    sent: list[str]


HELLO = r"Hello\.\n"
PYTHON = {
    "openai_sync.py": Shown(HELLO, [CHAT]),
    "openai_async.py": Shown(HELLO * 3, [CHAT] * 3),
    "openai_stream.py": Shown(HELLO, [CHAT]),
    "anthropic_sync.py": Shown(HELLO, [MESSAGES]),
    "anthropic_async.py": Shown(HELLO * 3, [MESSAGES] * 3),
    "anthropic_stream.py": Shown(HELLO, [MESSAGES]),
    "httpx_client.py": Shown(r"mock\n", [MODELS]),
    "aiohttp_client.py": Shown(r'(data: {"id": "c", .*}\n){2}data: \[DONE\]\n', [CHAT]),
}
CLIENTS = {
    **PYTHON,
    "curl.sh": Shown(r'{.*"id": "mock".*}', [MODELS]),
    **({"fetch.mjs": Shown(HELLO, [CHAT])} if node_has_fetch() else {}),
}
STREAMS = ["openai_stream.py", "anthropic_stream.py", "aiohttp_client.py"]
OTHERS = {"agent_in_a_loop.py", "embedded.py", "fetch.mjs", "main.go"}
"""Not a client alone, or not to be run on every machine: `test_clients_go.py` has `main.go`."""


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with running_api() as running:
        yield running


@pytest.fixture
def command(name: str) -> list[str]:
    path = str(EXAMPLES / name)
    if name.endswith(".sh"):
        program("curl")
        return [path]
    return [program("node") if name.endswith(".mjs") else sys.executable, path]


def config(url: str, name: str = "") -> Config:
    if name.startswith("anthropic"):
        return Config(target_api_url=url, target_api_key=KEY, target_api_auth="header:x-api-key")
    return Config(target_api_url=f"{url}/v1", target_api_key=KEY)


def environment(**more: str) -> dict[str, str]:
    """Return what a program needs of this process's environment, and more: no proxy, no key of anybody's."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    # An SDK warns of models that will be gone one day, which is no fault of the gateway's.
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore::DeprecationWarning", **more}


def client_environment(base_url: str, token: str) -> dict[str, str]:
    made = environment()
    for name in ("OPENAI", "ANTHROPIC"):
        made |= {f"{name}_BASE_URL": base_url, f"{name}_API_KEY": token}
    return {**made, "GATEWAY_URL": base_url, "GATEWAY_TOKEN": token}


def came_with_the_key(api: Api, since: int) -> list[str]:
    """Return the requests since then; each has the real key once, and a token nowhere."""
    got = api.got[since:]
    for line, fields in got:
        style, value = ("x-api-key", KEY) if line == MESSAGES else ("Authorization", f"Bearer {KEY}")
        assert fields.get_all(style) == [value]
        assert str(fields).count(KEY) == 1
        assert "gw_" not in f"{line}\n{fields}"
    return [line for line, _ in got]


@pytest.mark.parametrize("name", [name for name in CLIENTS if name not in STREAMS])
async def test_an_example_passes(api: Api, name: str, command: list[str]) -> None:
    before = len(api.got)
    async with Gateway(config(api.url, name)) as gateway:
        token = gateway.issue_token()
        code, out, err = await run(*command, env=client_environment(f"{gateway.url}/api", token))
    assert (code, err) == (0, b"")
    assert re.fullmatch(CLIENTS[name].output, out.decode().replace("\r\n", "\n"))
    assert came_with_the_key(api, before) == CLIENTS[name].sent


@pytest.mark.parametrize("name", STREAMS)
async def test_a_word_is_shown_before_the_next_one_is_made(upstream: Upstream, name: str, command: list[str]) -> None:
    """And it passes: an SDK is not started twice for that."""
    shown = asyncio.Event()

    async def slowly(call: Call) -> None:
        await call.content()
        call.write(head("200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked"))
        for event in message_events() if name.startswith("anthropic") else chat_events():
            if WORDS[1].encode() in event:
                await soon(shown.wait())
            await call.send(chunk(event))
        call.write(chunk(b""))

    upstream.default = slowly
    async with Gateway(config(upstream.url.removesuffix("/v1"), name)) as gateway:
        settings = client_environment(f"{gateway.url}/api", gateway.issue_token())
        piped = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, env=settings, stdout=piped, stderr=piped)
        try:
            assert process.stdout is not None
            out = await soon(process.stdout.readuntil(WORDS[0].encode()))
            shown.set()
            rest, err = await soon(process.communicate())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert (process.returncode, err) == (0, b"")
    assert re.fullmatch(CLIENTS[name].output, (out + rest).decode())
    (request,) = upstream.requests
    style, value = (b"x-api-key", KEY) if name.startswith("anthropic") else (b"authorization", f"Bearer {KEY}")
    assert request.field(style) == value.encode()
    assert (request.head.count(KEY.encode()), request.head.count(b"gw_")) == (1, 0)
    assert [request.start_line.decode()] == [f"{line} HTTP/1.1" for line in CLIENTS[name].sent]


@pytest.mark.parametrize("name", [name for name in CLIENTS if not name.startswith(("openai", "anthropic"))])
async def test_an_example_without_an_sdk_fails_and_says_so(api: Api, name: str, command: list[str]) -> None:
    before = len(api.got)
    async with Gateway(config(api.url, name)) as gateway:
        code, out, err = await run(*command, env=client_environment(f"{gateway.url}/api", "made-up"))
    assert code not in {0, -9}
    assert re.search(rb"401|Unauthorized|token", out + err)
    assert len(api.got) == before


async def test_the_example_with_httpx_says_when_to_come_back(api: Api) -> None:
    async with Gateway(config(api.url)) as gateway:
        token = gateway.issue_token(limits=["1/hour"])
        command = sys.executable, str(EXAMPLES / "httpx_client.py")
        first, second = [await run(*command, env=client_environment(f"{gateway.url}/api", token)) for _ in range(2)]
    assert first == (0, b"mock\n", b"")
    code, out, err = second
    assert (code, out) == (1, b"")
    assert re.fullmatch(rb"the limit is reached; there is a place in 3\d{3} s\n", err)


async def test_the_example_with_curl_comes_back_when_it_is_told_to(api: Api) -> None:
    before = len(api.got)
    program("curl")
    async with Gateway(config(api.url)) as gateway:
        settings = client_environment(f"{gateway.url}/api", gateway.issue_token(limits=["1/second"]))
        for _ in range(2):
            code, _, err = await run(str(EXAMPLES / "curl.sh"), env=settings)
            assert code == 0, err
    assert came_with_the_key(api, before) == [MODELS] * 2


async def test_the_embedded_gateway(api: Api) -> None:
    before = len(api.got)
    settings = environment(TARGET_API_URL=f"{api.url}/v1", TARGET_API_KEY=KEY)
    command = sys.executable, "-W", "always::ResourceWarning", str(EXAMPLES / "embedded.py")
    code, out, err = await run(*command, env=settings)
    assert (code, out, err) == (0, b"Hello.\nHello.\n", b"")
    assert came_with_the_key(api, before) == [CHAT] * 2


async def test_an_agent_in_a_loop_is_stopped_by_its_budget(tmp_path: Path) -> None:
    async with Provider(wishes=Wishes(spread=400)) as provider:
        settings = Config(
            target_api_url=f"{provider.url}/v1",
            target_api_key=KEY,
            target_cost="llm",
            budget="1 USD/day",
            state_file=str(tmp_path / "spent.db"),
            rate_limit="1000/minute",
            admin_key=ADMIN_KEY,
        )
        async with Gateway(settings) as gateway:
            command = sys.executable, str(EXAMPLES / "agent_in_a_loop.py")
            env = client_environment(f"{gateway.url}/api", gateway.issue_token())
            code, out, err = await run(*command, env=env)
            turns = len(provider.invoice.rows)
            entries = await held(gateway.url, ADMIN_KEY, turns)
    assert (code, err) == (0, b"")
    told = re.fullmatch(
        r"Stopped after (\d+) turns: The budget 'day-USD' is 1 USD, and (0\.\d+) USD of it are spent or held: "
        r"too little is left for what this request may cost; it has room again at \d{4}-\d\d-\d\dT00:00:0\dZ\.\n",
        out.decode(),
    )
    assert told is not None, out
    # What was refused never came to the API; what came was billed as it is held, and stopped short of the budget.
    assert int(told[1]) == turns == len(provider.heads)
    assert Decimal("0.7") < Decimal(told[2]) == provider.invoice.total <= 1
    assert sum(entry.cost["USD"] for entry in entries) == provider.invoice.total * 10**9


@pytest.mark.parametrize("name", ["openai_sync.py", "openai_stream.py", "curl.sh"])
async def test_gateway_run(api: Api, name: str, command: list[str], tmp_path: Path) -> None:
    before = len(api.got)
    seen = tmp_path / "environment"
    wrapped = ("sh", "-c", 'env >"$0"; exec "$@"', str(seen), *command)
    settings = environment(TARGET_API_URL=f"{api.url}/v1", TARGET_API_KEY=KEY, OPENAI_API_KEY="sk-another-real-one")
    code, out, err = await run(sys.executable, "-m", "gateway", "run", "--", *wrapped, env=settings)
    printed.note(err)
    assert code == 0
    assert re.fullmatch(CLIENTS[name].output, out.decode())
    assert err == b"gateway: 1 requests went through, 0 refused, 0 failed\n"
    assert came_with_the_key(api, before) == CLIENTS[name].sent
    # The shell's environment became the example's.
    found = seen.read_text(encoding="utf-8")
    assert (KEY in found, "sk-another" in found, "TARGET_API_KEY" in found) == (False, False, False)
    assert re.search(r"^OPENAI_API_KEY=gw_", found, re.MULTILINE)


def test_each_file_is_run_here() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".sh", ".mjs", ".go"}}
    assert files == {*CLIENTS, *OTHERS}


def test_the_examples_are_short() -> None:
    """They are for reading: what does not fit is not the point."""
    for path in EXAMPLES.iterdir():
        if path.suffix in {".py", ".sh", ".mjs", ".go"}:
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 36, path.name
