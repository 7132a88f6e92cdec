"""Secrets stay where they belong when something fails that never should, and whoever looks at the process.

(What the whole suite made the program print is searched at its end: `tests/kit/printed.py`. What an operator can make
it print is in `test_process.py` and `tests/test_cli.py`.)
"""

from __future__ import annotations

import asyncio
import gc
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway import Config, Gateway
from gateway.endpoints import Endpoints
from gateway.proxy import own
from gateway.proxy.exchange import Exchange
from gateway.proxy.local import LocalExchange
from gateway.proxy.pool import UpstreamPool
from gateway.proxy.relay import Relay
from gateway.proxy.upstream import UpstreamConnection
from tests.e2e import CUT_SHORT, Client, connected, fetch, request
from tests.e2e.test_process import CANARIES, assert_hidden, register
from tests.kit.process import gateway_process
from tests.kit.redis import running_redis
from tests.kit.upstream import Call, Upstream, answering, chunk, head

if TYPE_CHECKING:
    from collections.abc import Iterable

KEY = CANARIES["TARGET_API_KEY"]
BODY = "Jw7Rt3Yk9Pz5Dm"
"""What a request says is nobody's business either."""


# --- what never should fail ------------------------------------------------------------------------------------------


class Defect(Exception):
    """What a mistake in the gateway raises."""


def fail(*_: object, **__: object) -> None:
    raise Defect("as a mistake would")


async def tell(client: Client, data: bytes) -> int | None:
    """Ask; return the status of the answer, or None for an end without one, or within one."""
    try:
        client.write(data)
        answer = await client.answer()
    except CUT_SHORT:
        return None
    assert_hidden(KEY, str(answer))
    assert answer.status != 200 or answer.content == b"onetwo"
    return answer.status


def known_to(program: str, *secrets: str) -> None:
    for secret in (KEY, CANARIES["ADMIN_KEY"], BODY, *secrets):
        assert_hidden(secret, program)


async def streamed(call: Call) -> None:
    """Answer in pieces that come one after the other."""
    await call.content()
    await call.send(head("200 OK", "Transfer-Encoding: chunked"))
    for piece in (b"one", b"two", b""):
        await asyncio.sleep(0)
        await call.send(chunk(piece))


PLACES: dict[str, tuple[object, str, set[int | None]]] = {
    "before it is known whose it is": (Exchange, "begin", {None}),
    "reading the body": (Exchange, "start", {None}),
    "looking for a connection": (UpstreamPool, "take", {None}),
    "having connected": (Exchange, "on_connected", {500}),
    "sending": (UpstreamConnection, "begin", {500}),
    "reading the answer's head": (UpstreamConnection, "_find_head", {502}),
    "answering": (Exchange, "on_answer", {502}),
    "relaying": (Relay, "feed", {None, 502}),
    # Here the client may have had the whole of its answer before.
    "finishing": (Exchange, "_finish", {None, 200}),
    "giving the connection back": (UpstreamPool, "give_back", {None, 200}),
    "refusing": (own, "send_error", {None}),
    "beginning an endpoint": (LocalExchange, "begin", {None}),
    "in an endpoint": (Endpoints, "_register", {500}),
}


@pytest.mark.parametrize("place", PLACES)
async def test_a_defect_ends_its_request_tells_no_secret_and_hurts_nobody_else(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    owner, name, outcomes = PLACES[place]
    upstream.paths = {b"/v1/stream": streamed}
    admin = CANARIES["ADMIN_KEY"]
    config = Config(target_api_url=upstream.url, target_api_key=KEY, admin_key=admin)
    async with Gateway(config) as gateway, connected(gateway.url) as bystander:
        token = gateway.issue_token()
        signature = token.rpartition(".")[2]
        assert (await bystander.ask(request("/api/x", token))).status == 200
        sent = {
            "in an endpoint": request("/register", admin, method="POST"),
            "beginning an endpoint": request("/healthz", admin),
            "refusing": request("/api/x", f"{token}x"),
        }.get(place, request("/api/stream", token, f"X-Said: {BODY}", method="POST", body=BODY.encode()))
        if place in {"having connected", "sending"}:  # on a connection that is new
            upstream.default = answering(b"", "200 OK", "Connection: close")
            assert (await bystander.ask(request("/api/x", token))).status == 200
            upstream.default = answering()
        with monkeypatch.context() as broken:
            broken.setattr(owner, name, fail)
            async with connected(gateway.url) as client:
                status = await tell(client, sent)
                assert status in outcomes
                if status is None:
                    assert await ended(client)
        # Somebody else, on another connection, notices nothing; and so does the next on a new one.
        assert (await bystander.ask(request("/api/x", token))).status == 200
        assert (await fetch(gateway.url, request("/api/stream", token))).content == b"onetwo"
    assert "as a mistake would" in caplog.text
    assert "Traceback" in caplog.text
    assert any(record.levelname == "ERROR" for record in caplog.records)
    known_to(caplog.text, signature)


async def ended(client: Client) -> bool:
    try:
        return await client.at_end()
    except ConnectionError:
        return True


async def test_a_defect_at_a_verdict_of_redis_hurts_no_other_check_of_its_batch(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_verdict = Exchange.on_verdict
    failed: list[Exchange] = []

    def failing_once(self: Exchange, verdict: Any) -> None:
        if not failed:
            failed.append(self)
            fail()
        on_verdict(self, verdict)

    with running_redis() as redis:
        config = Config(target_api_url=upstream.url, target_api_key=KEY, redis_url=redis.url, store_timeout="10s")
        async with Gateway(config) as gateway:
            token = gateway.issue_token()
            monkeypatch.setattr(Exchange, "on_verdict", failing_once)
            answers = await asyncio.gather(*(fetch(gateway.url, request("/api/x", token)) for _ in range(5)))
    statuses = sorted(answer.status for answer in answers)
    assert statuses[:4] == [200] * 4
    assert statuses[4] >= 500
    assert "as a mistake would" in caplog.text
    assert "is out" not in caplog.text  # Redis is not
    known_to(caplog.text, token.rpartition(".")[2])


def parts(root: object) -> Iterable[object]:
    """List what a gateway consists of: its own objects, and what these refer to."""
    seen: dict[int, object] = {}
    found = [root]
    while found:
        item = found.pop()
        if id(item) not in seen:
            seen[id(item)] = item
            if type(item).__module__.startswith(("gateway.", "builtins")) and not callable(item):
                found += gc.get_referents(item)
    return [item for item in seen.values() if type(item).__module__.startswith("gateway.")]


async def test_no_object_of_a_gateway_shows_a_secret_in_its_repr(upstream: Upstream) -> None:
    secrets = {name.lower(): value for name, value in CANARIES.items()}
    config = Config(target_api_url=upstream.url, **secrets)  # type: ignore[arg-type]  # names of settings
    async with Gateway(config) as gateway, connected(gateway.url) as client:
        assert (await client.ask(request("/api/x", gateway.issue_token()))).status == 200
        objects = [*parts(gateway), *parts(config)]
    names = {type(item).__name__ for item in objects}
    assert names >= {"Gateway", "Config", "Settings", "Target", "ProxyContext", "UpstreamPool"}
    for item in objects:
        for value in CANARIES.values():
            for secret in value.split(","):
                assert_hidden(secret, repr(item), str(item))


# --- the log ---------------------------------------------------------------------------------------------------------

FORGED = "2026-01-01 00:00:00,000 CRITICAL gateway: forged"
BREAKS = ["\r\n", "\n", "\r", "\x1b[2J", "\x00", "\x85", "\u2028", "%0d%0a", "%1b"]
LINE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8},[0-9]{3} [A-Z]+ gateway[a-z.]*: [\x20-\x7e]+\n")


async def test_nobody_can_forge_a_line_of_the_log(upstream: Upstream) -> None:
    upstream.paths = {
        b"/v1/answer": sends(b"HTTP/1.1 200 \x1b[2J\r\n\r\n"),
        b"/v1/field": sends(b"HTTP/1.1 200 OK\r\nX: a\n" + FORGED.encode() + b"\r\n\r\n"),
        b"/v1/none": sends(b"\r\n" + FORGED.encode() + b"\r\n\r\n"),
    }
    settings = {"TARGET_API_URL": upstream.url, "LOG_LEVEL": "debug", "RATE_LIMIT": "10000"}
    async with gateway_process(**settings) as program:
        token = await register(program.url)
        for text in (f"{broken}{FORGED}" for broken in BREAKS):
            for sent in (
                request(f"/api/{text}", token),
                request(f"/{text}"),
                request("/api/x", token, f"X-Said: {text}"),
                request("/api/x", token, f"{text}: x"),
                request("/api/x", text),
                request("/api/x", token, method=text),
                request("/register", None, method="POST", body=f'{{"name": "{text}"}}'.encode()),
                request("/api/x", token, "Transfer-Encoding: chunked", method="POST") + text.encode(),
            ):
                async with connected(program.url) as client:
                    client.write(sent)
                    client.writer.write_eof()
                    assert b"forged" not in await client.reader.read()
        for path in ("answer", "field", "none"):
            answer = await fetch(program.url, request(f"/api/{path}", token))
            assert (answer.status, b"forged" in answer.content) == (502, False)
        upstream.default = answering(b"fine")
        assert (await fetch(program.url, request("/api/x", token))).status == 200
        lines = program.printed.splitlines(keepends=True)
        assert "forged" not in program.printed
    assert len(lines) >= 2
    for line in lines:
        assert LINE.fullmatch(line), line


def sends(data: bytes) -> Any:
    async def handler(call: Call) -> None:
        await call.content()
        await call.send(data)
        call.keep_alive = False

    return handler


# --- the process -----------------------------------------------------------------------------------------------------


async def test_who_lists_processes_sees_no_secret(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f'target_api_key = "{KEY}"\n', encoding="utf-8")
    file.chmod(0o600)
    in_environment = {name: value for name, value in CANARIES.items() if name != "TARGET_API_KEY"}
    settings = {"TARGET_API_URL": upstream.url, "GATEWAY_CONFIG": str(file), **in_environment}
    async with gateway_process(**settings) as program:
        token = await register(program.url, CANARIES["ADMIN_KEY"])
        assert (await fetch(program.url, request("/api/x", token))).status == 200
        assert upstream.requests[0].field(b"authorization") == f"Bearer {KEY}".encode()
        place = Path(f"/proc/{program.process.pid}")
        world_readable = [name for name in ("cmdline", "comm", "stat", "status") if is_world_readable(place / name)]
        assert "cmdline" in world_readable
        for name in world_readable:
            text = (place / name).read_text(encoding="utf-8")
            for value in CANARIES.values():
                assert_hidden(value, text)
        # What a process was started with, root and its own user can always read; nobody else can.
        assert not is_world_readable(place / "environ")
        # A core dump would hold the key, and so would what a debugger of another user sees.
        limits = (place / "limits").read_text(encoding="ascii")
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)


def is_world_readable(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IROTH)
