"""`gateway usage` as a program: from a running gateway, from Redis, on a terminal and without one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.stores.usage_redis import usage_key
from tests.e2e import connected, fetch, request
from tests.kit.process import gateway_process, until
from tests.kit.redis import free_ports, running_redis
from tests.kit.upstream import soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.kit.process import Program
    from tests.kit.upstream import Upstream

ADMIN_KEY = "an-admin-key-of-32-characters-ok"
CURSOR, SCREEN = b"\x1b[?25h", b"\x1b[?1049l"
"""Show the cursor; leave the screen of one's own."""


@pytest.fixture
async def used(upstream: Upstream) -> AsyncIterator[Program]:
    """A gateway that a token has been used at three times."""
    async with gateway_process(TARGET_API_URL=upstream.url, ADMIN_KEY=ADMIN_KEY) as program:
        await use(program)
        yield program


async def use(program: Program) -> None:
    wish = json.dumps({"name": "worker"}).encode()
    key = f"Authorization: Bearer {ADMIN_KEY}"
    answer = await fetch(program.url, request("/register", None, key, method="POST", body=wish))
    async with connected(program.url) as client:
        for _ in range(3):
            await client.ask(request("/api/x", json.loads(answer.content)["token"]))


async def usage(arguments: tuple[str, ...], settings: dict[str, str], out: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "usage", *arguments),
        env={"PATH": os.environ["PATH"], "TERM": "xterm", "COLUMNS": "100", **settings},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=out,
        stderr=asyncio.subprocess.PIPE,
    )


async def printed(*arguments: str, **settings: str) -> tuple[int, str, str]:
    process = await usage(arguments, settings, asyncio.subprocess.PIPE)
    out, err = await soon(process.communicate())
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_report_of_a_running_gateway(used: Program) -> None:
    code, out, err = await printed("--url", used.url, ADMIN_KEY=ADMIN_KEY)
    assert (code, err) == (0, "")
    assert "3 requests: 3 passed, 0 refused" in out
    assert "token worker: 3 requests" in out
    assert "minute 3/60" in out


async def test_it_finds_the_gateway_of_this_machine_by_the_same_settings(used: Program) -> None:
    address = used.url.removeprefix("http://")
    code, out, _ = await printed("--json", GATEWAY_LISTEN=address, ADMIN_KEY=ADMIN_KEY)
    assert code == 0
    assert json.loads(out)["totals"]["passed"] == 3


async def test_without_the_key_it_says_what_is_missing(used: Program) -> None:
    code, out, err = await printed("--url", used.url)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "ADMIN_KEY" in err


async def test_nobody_there_is_one_line_without_a_password_in_it(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    for url in (f"http://me:hush@127.0.0.1:{port}", f"unix:{tmp_path}/none.sock"):
        code, out, err = await printed("--url", url)
        assert (code, out) == (1, "")
        assert err.startswith("gateway: no gateway answers at ")
        assert "hush" not in err
        assert err.count("\n") == 1


async def test_over_a_unix_socket(upstream: Upstream, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/gateway.sock"
    async with gateway_process(TARGET_API_URL=upstream.url, GATEWAY_LISTEN=f"127.0.0.1:0,{address}"):
        code, out, err = await printed("--url", address)
        assert (code, err) == (0, "")
        assert "0 requests" in out


async def test_where_no_gateway_answers_it_reads_redis_and_goes_on_when_that_comes_back(upstream: Upstream) -> None:
    with running_redis() as redis:
        settings = {"REDIS_URL": redis.url, "STORE_TIMEOUT": "10s", "BUDGET": "1 USD/day"}
        api = {"TARGET_API_URL": upstream.url, "TARGET_COST": "0.005 USD"}
        async with gateway_process(ADMIN_KEY=ADMIN_KEY, **api, **settings) as program:
            await use(program)
            program.signal(signal.SIGTERM)
            assert await program.ended() == 0
        (port,) = free_ports(1)
        code, out, err = await printed("--json", GATEWAY_LISTEN=f"127.0.0.1:{port}", **settings)
        assert (code, err) == (0, "")
        told = json.loads(out)
        assert (told["instances"], told["totals"]["passed"], told["tokens"][0]["name"]) == (0, 3, "worker")
        budget = told["tokens"][0]["budgets"][0]
        assert (budget["name"], budget["spent"], budget["held"], budget["remaining"]) == (
            "day-USD",
            "0.015",
            "0",
            "0.985",
        )
        assert told["tokens"][0]["cost"] == told["totals"]["cost"] == {"USD": "0.015"}
        assert redis.call("HGET", usage_key(told["tokens"][0]["id"]), "cost:USD") == b"15000000"
        settings["GATEWAY_LISTEN"] = f"127.0.0.1:{port}"
        process = await usage(("--watch",), settings, asyncio.subprocess.PIPE)
        assert process.stdout is not None
        assert b"busiest: worker" in await soon(process.stdout.readline())
        redis.kill()
        assert b" Redis c" in await soon(process.stdout.readline())  # closed the connection, cannot be reached
        redis.start()
        while b"requests/s" not in (line := await soon(process.stdout.readline())):  # it comes back
            assert b" Redis " in line
        process.send_signal(signal.SIGINT)
        _, printed_too = await soon(process.communicate())
        assert (process.returncode, printed_too) == (0, b"")


async def test_watching_without_a_terminal_is_a_line_a_second_until_it_is_interrupted(used: Program) -> None:
    arguments, settings = ("--watch", "--url", used.url), {"ADMIN_KEY": ADMIN_KEY}
    process = await usage(arguments, settings, asyncio.subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(2):
        line = (await soon(process.stdout.readline())).decode()
        assert "requests/s" in line
        assert "worker" in line
    process.send_signal(signal.SIGINT)
    _, err = await soon(process.communicate())
    assert (process.returncode, err) == (0, b"")


async def test_watching_outlives_the_worker_that_it_had_asked_and_the_program(upstream: Upstream) -> None:
    settings = {"TARGET_API_URL": upstream.url, "ADMIN_KEY": ADMIN_KEY, "GATEWAY_WORKERS": "2"}
    with running_redis() as redis:
        async with gateway_process(REDIS_URL=redis.url, STORE_TIMEOUT="10s", **settings) as program:
            watching = ("--watch", "--url", program.url)
            process = await usage(watching, {"ADMIN_KEY": ADMIN_KEY}, asyncio.subprocess.PIPE)
            assert process.stdout is not None
            assert b"requests/s" in await soon(process.stdout.readline())
            # Who ends before all have served ends the program: that is no restart.
            await until(lambda: program.printed.count("listening on") == 2)
            assert b"requests/s" in await soon(process.stdout.readline())  # a second later the supervisor knows it, too
            for pid in program.children():
                os.kill(pid, signal.SIGKILL)
            for _ in range(2):
                assert b"requests/s" in await soon(process.stdout.readline())
            workers = program.children()
            await program.kill()  # who watches wants to see whether it comes back
            for pid in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            lines = [await soon(process.stdout.readline()) for _ in range(2)]
            assert b" no gateway answers at 127.0.0.1:" in lines[-1]
            process.send_signal(signal.SIGINT)
            _, err = await soon(process.communicate())
            assert (process.returncode, err) == (0, b"")


@pytest.mark.parametrize("arguments", [("--watch", "--json"), ("--watch",), ()])
async def test_who_has_read_enough_hears_no_complaint(used: Program, arguments: tuple[str, ...]) -> None:
    ours, theirs = os.pipe()
    process = await usage((*arguments, "--url", used.url), {"ADMIN_KEY": ADMIN_KEY}, theirs)
    os.close(theirs)
    os.close(ours)  # as `head` does
    _, err = await soon(process.communicate())
    assert (process.returncode, err) == (0, b"")


async def test_on_a_terminal_it_is_a_table_and_leaves_the_terminal_as_it_was(used: Program) -> None:
    seen = "░".encode()
    (code, shown), (killed, other), (_, dumb) = await asyncio.gather(
        watched(used, "xterm", seen, signal.SIGINT),
        watched(used, "xterm", seen, signal.SIGTERM),
        watched(used, "dumb", b"worker", signal.SIGINT),
    )
    assert (code, killed) == (0, 128 + signal.SIGTERM)
    assert b"3/60 minute" in shown
    assert b"requests/s" in shown
    for one in (shown, other):
        assert one.rindex(CURSOR) > one.rindex(seen)
        assert one.rindex(SCREEN) > one.rindex(seen)
    # One that cannot be drawn on gets lines.
    assert b"busiest: worker" in dumb
    assert b"\x1b" not in dumb


async def watched(program: Program, kind: str, seen: bytes, number: signal.Signals) -> tuple[int, bytes]:
    """Watch on such a terminal until what is to be seen is there; return the exit code and all that was shown."""
    terminal, theirs = pty.openpty()
    arguments, settings = ("--watch", "--url", program.url), {"ADMIN_KEY": ADMIN_KEY, "TERM": kind}
    process = await usage(arguments, settings, theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the other end closes it
        while seen not in shown or b"worker" not in shown:
            shown += await soon(asyncio.to_thread(os.read, terminal, 1 << 16))
    if (kind, number) == ("xterm", signal.SIGINT):  # but first, Ctrl-Z
        process.send_signal(signal.SIGTSTP)
        await until(lambda: " T " in Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii"))
        left = await soon(asyncio.to_thread(os.read, terminal, 1 << 16))
        assert CURSOR in left
        assert SCREEN in left
        process.send_signal(signal.SIGCONT)
        while seen not in (drawn := await soon(asyncio.to_thread(os.read, terminal, 1 << 16))):
            assert drawn
        shown += left + drawn
    process.send_signal(number)
    reading = asyncio.ensure_future(asyncio.to_thread(read_to_the_end, terminal))
    code = await soon(process.wait())
    shown += await soon(reading)
    os.close(terminal)
    return code, shown


def read_to_the_end(descriptor: int) -> bytes:
    read = b""
    with contextlib.suppress(OSError):
        while piece := os.read(descriptor, 1 << 16):
            read += piece
    return read
