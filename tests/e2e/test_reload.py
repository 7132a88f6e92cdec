"""Another configuration for a running gateway: nothing is dropped, and a bad one changes nothing."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import ssl
import time
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from gateway import Config, Gateway
from gateway.certificates import ReloadedTls
from gateway.errors import TokenRevoked
from gateway.stores import REVOKED, Verdict
from tests.e2e import connected, fetch, request
from tests.kit.process import Program, start, until
from tests.kit.redis import running_redis
from tests.kit.tls import server_side
from tests.kit.upstream import Upstream, answering, events, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CLIENTS, RELOADS = 9, 20


def config(upstream: Upstream, **changes: Any) -> Config:
    usual = {"target_api_url": upstream.url, "target_api_key": "sk-first", "rate_limit": "100000/hour"}
    return Config(**{**usual, **changes})


def write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


@pytest.fixture
async def other() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        yield running


# --- in a program ----------------------------------------------------------------------------------------------------


async def test_a_reload_under_load_drops_nothing(
    upstream: Upstream, other: Upstream, ca: trustme.CA, ca_file: str
) -> None:
    """Of three targets two change places with each reload, the third has TLS and two keys, and no key is old."""
    asked = 0
    answered = [0] * CLIENTS
    stopping = False
    names = ("api", "two", "three")
    async with Upstream(server_side(ca, "localhost"), "localhost") as third:
        for running in (upstream, other, third):
            running.default = answering(b"ok")

        def turned(turn: int) -> Config:
            one, two = (upstream, other)[:: 1 if turn % 2 == 0 else -1]
            keys = [f"sk-three-{turn}-{letter}" for letter in "ab"]
            targets = {
                "two": {"url": two.url, "key": f"sk-two-{turn}-"},
                "three": {"url": third.url, "ca_file": ca_file, "keys": keys},
            }
            return config(one, target_api_key=f"sk-api-{turn}-", targets=targets)

        async with Gateway(turned(0)) as gateway:
            token = gateway.issue_token()

            async def load(index: int) -> None:
                nonlocal asked
                name = names[index % len(names)]
                async with connected(gateway.url) as client:
                    while not stopping:
                        asked += 1
                        body = b"x" * (index * 1000)
                        answer = await client.ask(request(f"/{name}/of-{name}", token, method="POST", body=body))
                        assert (answer.status, answer.content) == (200, b"ok")
                        answered[index] += 1

            async with asyncio.TaskGroup() as group:
                for index in range(CLIENTS):
                    group.create_task(load(index))
                for turn in range(1, RELOADS + 1):
                    # Of each client, the one that was under way, and three that were not.
                    before = list(answered)
                    await until(lambda: all(now >= then + 4 for now, then in zip(answered, before, strict=True)))  # noqa: B023 - called in this turn only
                    assert gateway.reload(turned(turn)) == []
                stopping = True
            used = (await fetch(gateway.url, request("/usage", token))).content
        assert sum(answered) == asked
        assert json.loads(used)["limits"][0]["used"] == asked
        received = [(place, one) for place in (upstream, other, third) for one in place.requests]
    assert len(received) == asked
    places = {"api": (upstream, other), "two": (other, upstream), "three": (third, third)}
    seen: dict[str, set[str]] = {name: set() for name in names}
    for place, one in received:
        name = one.start_line.split(b" ")[1].decode().removeprefix("/v1/of-")
        _, key, number, letter = str(one.field(b"authorization") or b"", "ascii").split("-")
        assert (key, place) == (name, places[name][int(number) % 2])
        seen[name].add(number + letter)
    # Under each configuration but the last one, which nobody waited for, each key of it was used.
    turns = {str(turn) for turn in range(RELOADS)}
    assert seen["api"] >= turns
    assert seen["two"] >= turns
    assert seen["three"] >= {turn + letter for turn in turns for letter in "ab"}


async def test_what_is_in_flight_ends_as_it_began(upstream: Upstream, other: Upstream) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    upstream.default, other.default = events(queue), answering(b"new")
    async with Gateway(config(upstream)) as gateway, connected(gateway.url) as stream:
        token = gateway.issue_token()
        stream.write(request("/api/stream", token))
        queue.put_nowait(b"before")
        assert (await stream.final_head()).status == 200
        gateway.reload(config(other))
        assert (await fetch(gateway.url, request("/api/x", token))).content == b"new"
        queue.put_nowait(b"after")
        queue.put_nowait(b"")
        pieces = b""
        while piece := await stream.chunk():
            pieces += piece
        assert b"before" in pieces
        assert b"after" in pieces
        # The connection that it was on is not kept for anybody.
        await soon(upstream.connections[0].closed.wait())


async def test_limits_targets_and_the_admin_key_change_counts_stay(upstream: Upstream) -> None:
    upstream.default = answering(b"ok")
    key = "an-admin-key-of-32-characters-or-more"
    async with Gateway(config(upstream, rate_limit="2/hour")) as gateway:
        token = gateway.issue_token()
        statuses = [(await fetch(gateway.url, request("/api/x", token))).status for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert (await fetch(gateway.url, request("/maps/x", token))).status == 404
        changed = config(upstream, rate_limit="5/hour", admin_key=key, targets={"maps": {"url": upstream.url}})
        async with connected(gateway.url) as watching:
            watching.write(request("/admin/usage?stream"))
            assert (await watching.head()).status == 200
            gateway.reload(changed)
            assert (await soon(watching.reader.read())).endswith(b"\r\n0\r\n\r\n")
        answer = await fetch(gateway.url, request("/maps/x", token))
        assert (answer.status, answer["ratelimit"].partition(";t")[0]) == (200, '"hour";r=2')
        assert (await fetch(gateway.url, request("/register", method="POST"))).status == 403
        gateway.reload(config(upstream, rate_limit="5/hour"))
        assert (await fetch(gateway.url, request("/maps/x", token))).status == 404


async def test_a_revoked_token_stays_revoked(upstream: Upstream) -> None:
    async with Gateway(config(upstream)) as gateway:
        token = gateway.issue_token()
        assert gateway._context is not None
        admission = gateway._context.admission
        now_s = time.time()
        await admission.revoke(admission.authenticate(token.encode(), now_s).id, None, now_s=now_s)
        gateway.reload(config(upstream))
        assert (await fetch(gateway.url, request("/api/x", token)))["x-gateway-error"] == "token_revoked"


async def test_what_cannot_change_is_said_and_stays(upstream: Upstream) -> None:
    async with Gateway(config(upstream)) as gateway:
        url, token = gateway.url, gateway.issue_token()
        left = gateway.reload(
            config(
                upstream,
                gateway_listen="127.0.0.1:1",
                redis_url="redis://127.0.0.1:1",
                store_timeout="1s",
                token_secret="s" * 32,
            )
        )
        assert left == ["GATEWAY_LISTEN", "REDIS_URL", "STORE_TIMEOUT", "TOKEN_SECRET"]
        assert gateway.url == url
        upstream.default = answering(b"ok")
        assert (await fetch(gateway.url, request("/api/x", token))).status == 200


async def test_secrets_of_tokens_rotate(upstream: Upstream) -> None:
    upstream.default = answering(b"ok")
    old, new = "o" * 32, "n" * 32
    async with Gateway(config(upstream, token_secret=old)) as gateway:
        first = gateway.issue_token()
        assert gateway.reload(config(upstream, token_secret=f"{new},{old}")) == []
        second = gateway.issue_token()
        assert [(await fetch(gateway.url, request("/api/x", one))).status for one in (first, second)] == [200, 200]
        gateway.reload(config(upstream, token_secret=new))
        assert [(await fetch(gateway.url, request("/api/x", one))).status for one in (first, second)] == [401, 200]


# --- the program -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def file(tmp_path: Path, upstream: Upstream) -> Path:
    upstream.default = answering(b"ok")
    key_file = tmp_path / "key"
    write(key_file, "sk-before")
    key_file.chmod(0o600)
    file = tmp_path / "gateway.toml"
    write(file, settings(upstream, key_file))
    return file


def settings(upstream: Upstream, key_file: Path, rate_limit: str = "50/hour") -> str:
    return (
        f'target_api_url = "{upstream.url}"\nrate_limit = "{rate_limit}"\n'
        f'[targets.maps]\nurl = "{upstream.url}"\nkey_file = "{key_file}"\n'
    )


@pytest.fixture
async def program(file: Path) -> AsyncIterator[Program]:
    running = await start("--config", str(file))
    try:
        await running.ready()
        yield running
    finally:
        await running.kill()


async def printed(program: Program, pattern: str) -> str:
    """Wait until it has printed a line like this; return that line."""
    await until(lambda: re.search(pattern, program.printed))
    found = re.search(f"^.*{pattern}.*$", program.printed, re.MULTILINE)
    assert found is not None
    return found[0]


async def token_of(program: Program) -> str:
    answer = await fetch(program.url, request("/register", method="POST"))
    return str(json.loads(answer.content)["token"])


async def policy(program: Program, token: str) -> str:
    return (await fetch(program.url, request("/maps/x", token)))["ratelimit-policy"]


async def test_sighup_reads_the_file_again(program: Program, file: Path, upstream: Upstream) -> None:
    token = await token_of(program)
    assert await policy(program, token) == '"hour";q=50;w=3600'
    new = settings(upstream, file.with_name("key"), "60/hour")
    write(file, f'log_level = "debug"\n{new}')
    program.signal(signal.SIGHUP)
    await printed(program, "gateway: reloaded")
    assert await policy(program, token) == '"hour";q=60;w=3600'
    assert "LOG_LEVEL has changed, and takes a restart" in await printed(program, "LOG_LEVEL")


async def test_a_bad_file_changes_nothing_and_the_log_says_why(
    program: Program, file: Path, upstream: Upstream
) -> None:
    token = await token_of(program)
    write(file, settings(upstream, file.with_name("key"), "many"))
    program.signal(signal.SIGHUP)
    line = await printed(program, "not reloaded")
    assert f"rate_limit in {file}: 'many' is not a whole number" in line
    assert await policy(program, token) == '"hour";q=50;w=3600'
    await asyncio.to_thread(file.unlink)
    program.signal(signal.SIGHUP)
    await printed(program, "not reloaded.*cannot be read")
    assert await policy(program, token) == '"hour";q=50;w=3600'


@pytest.mark.parametrize("changed", ["file", "key"])
async def test_a_change_of_a_file_is_noticed(program: Program, file: Path, upstream: Upstream, changed: str) -> None:
    token = await token_of(program)
    key_file = file.with_name("key")
    if changed == "file":
        write(file, settings(upstream, key_file, "60/hour"))
    else:
        write(key_file, "sk-afterwards")
    await printed(program, "gateway: reloaded")
    found = await policy(program, token)
    if changed == "file":
        assert found == '"hour";q=60;w=3600'
    else:
        assert upstream.requests[-1].field(b"authorization") == b"Bearer sk-afterwards"
    assert "sk-" not in program.printed


async def test_the_program_drops_nothing_over_sighups(program: Program, file: Path, upstream: Upstream) -> None:
    key_file = file.with_name("key")
    write(file, settings(upstream, key_file, "100000/hour"))
    program.signal(signal.SIGHUP)
    await printed(program, "gateway: reloaded")
    token = await token_of(program)
    answered = 0
    stopping = asyncio.Event()

    async def load() -> None:
        nonlocal answered
        async with connected(program.url) as client:
            while not stopping.is_set():
                answer = await client.ask(request("/maps/x", token))
                assert (answer.status, answer.content) == (200, b"ok")
                answered += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(load())
        for turn in range(5):
            write(key_file, f"sk-{turn}")
            before = program.printed.count("gateway: reloaded")
            program.signal(signal.SIGHUP)
            await until(lambda: program.printed.count("gateway: reloaded") > before)  # noqa: B023 - in this turn only
            seen = answered
            await until(lambda: answered >= seen + 3 * CLIENTS)  # noqa: B023 - as above
        stopping.set()
    assert len(upstream.requests) == answered
    keys = {one.field(b"authorization") for one in upstream.requests}
    assert keys >= {f"Bearer sk-{turn}".encode() for turn in range(5)}
    program.signal(signal.SIGTERM)
    assert await program.ended() == 0


async def test_a_target_behind_tls_is_reloaded_with_its_certificates(ca: trustme.CA, ca_file: str) -> None:
    async with Upstream(server_side(ca, "localhost"), "localhost") as upstream:
        async with Gateway(config(upstream, target_ca_file=ca_file)) as gateway:
            assert gateway._context is not None
            token = gateway.issue_token()
            for _ in range(3):
                gateway.reload(config(upstream, target_ca_file=ca_file))
                assert (await fetch(gateway.url, request("/api/x", token))).status == 200
            # What watched the files of the configurations before is gone.
            assert sum(isinstance(one, ReloadedTls) for one in gateway._context.clock.watched) == 1
            gateway.reload(config(upstream))  # with the system's roots, which do not know this one
            assert (await fetch(gateway.url, request("/api/x", token))).status == 502
        assert len(upstream.requests) == 3


async def test_tls_is_made_anew_only_where_its_files_have_changed(
    ca: trustme.CA, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    roots, others, own, shown = (tmp_path / name for name in ("roots", "others", "own", "shown"))
    ca.cert_pem.write_to_path(str(roots))
    trustme.CA().cert_pem.write_to_path(str(others))
    for file in (own, shown):
        ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(file))
        file.chmod(0o600)
    targets = {
        "one": {"url": "https://one.test", "ca_file": str(roots)},
        "two": {"url": "https://two.test", "ca_file": str(roots)},
        "three": {"url": "https://three.test", "ca_file": str(others)},
        "four": {"url": "https://four.test"},
        "five": {"url": "http://five.test"},
    }
    usual: dict[str, Any] = {
        "target_api_url": "https://api.test",
        "target_ca_file": str(roots),
        "target_client_cert": str(shown),
        "gateway_tls_cert": str(own),
    }
    async with Gateway(Config(**usual, targets=targets)) as gateway:

        def contexts() -> set[object]:
            assert gateway._context is not None
            return {one.context for one in gateway._context.clock.watched if isinstance(one, ReloadedTls)}

        before = contexts()
        assert len(before) == 5  # one for clients; for upstreams, two with the same roots share one
        del targets["five"]
        gateway.reload(Config(**usual, targets=targets))
        assert contexts() == before
        # Of those below, each in its turn.
        for file in (own, shown, others, roots):
            await asyncio.to_thread(file.write_bytes, await asyncio.to_thread(file.read_bytes) + b"\n")
            gateway.reload(Config(**usual, targets=targets))
            after = contexts()
            assert len(after - before) == len(before - after) == (2 if file == roots else 1)
            before = after
        del targets["three"]
        gateway.reload(Config(**usual, targets=targets))
        assert len(contexts()) == 4
        assert contexts() < before
    assert [one for one in caplog.messages if "anew" in one] == [
        "the certificate was read anew: new connections use it"
    ]


async def test_roots_that_were_no_good_meanwhile_are_read_again(ca: trustme.CA, tmp_path: Path) -> None:
    roots = tmp_path / "roots"
    trustme.CA().cert_pem.write_to_path(str(roots))
    async with Upstream(server_side(ca, "localhost"), "localhost") as upstream:
        upstream.default = answering(b"ok")
        good = config(upstream, target_ca_file=str(roots))
        async with Gateway(good) as gateway:
            write(roots, "no PEM")
            gateway.reload_certificates()
            with pytest.raises(ssl.SSLError):
                gateway.reload(good)
            ca.cert_pem.write_to_path(str(roots))
            gateway.reload(good)
            assert (await fetch(gateway.url, request("/api/x", gateway.issue_token()))).status == 200


async def test_who_is_revoked_late_is_so_after_a_reload_too(upstream: Upstream) -> None:
    async with Gateway(config(upstream)) as gateway:
        token, now_s = gateway.issue_token(), time.time()
        assert gateway._context is not None
        before = gateway._context.admission
        subject = before.authenticate(token.encode(), now_s)
        gateway.reload(config(upstream))
        assert (await fetch(gateway.url, request("/api/x", token))).status == 200
        # A request that began before the reload hears of it only now.
        with pytest.raises(TokenRevoked):
            raise before.refusal(subject, Verdict(False, REVOKED, 0, 0, 1))
        assert (await fetch(gateway.url, request("/api/x", token)))["x-gateway-error"] == "token_revoked"
        assert len(upstream.requests) == 1


async def test_what_an_outage_may_let_through_is_told_of_the_limits_there_are_by_now(upstream: Upstream) -> None:
    maps = {"maps": {"url": upstream.url, "prefix": "/maps", "rate_limit": "3/second"}}
    with running_redis() as redis:
        local = {"redis_url": redis.url, "on_store_loss": "local", "store_timeout": "1s"}
        async with Gateway(config(upstream, rate_limit="5/hour,9/day;shadow", targets=maps, **local)) as gateway:

            async def told() -> str:
                answer = await fetch(gateway.url, request("/readyz"))
                assert answer.status == 503
                return str(json.loads(answer.content)["detail"]).partition("Instances seen: ")[2]

            gateway.reload(config(upstream, rate_limit="7/hour,9/day;shadow", targets=maps, **local))
            redis.kill()
            assert await told() == "1; so at worst, one window of 'hour' 7 more than 7, 'maps-second' 3 more than 3."
            gateway.reload(config(upstream, rate_limit="7/hour", rate_limit_mode="shadow", **local))
            assert await told() == "1; no limit refuses anything."
