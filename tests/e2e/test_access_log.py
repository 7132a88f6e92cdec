"""The access log of the program: on stdout, apart from its own log, and no matter whether anybody reads it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

from tests.e2e import connected, fetch, request
from tests.kit.process import gateway_process

if TYPE_CHECKING:
    from tests.kit.upstream import Upstream


async def test_every_request_has_a_line_when_the_program_has_stopped(upstream: Upstream) -> None:
    async with gateway_process(TARGET_API_URL=upstream.url, ACCESS_LOG="json") as program:
        answer = await fetch(program.url, request("/register", method="POST"))
        token = json.loads(answer.content)["token"]
        async with connected(program.url) as client:
            for _ in range(40):
                assert (await client.ask(request("/api/x?q=secret", token))).status == 200
        program.signal(signal.SIGTERM)
        assert await program.ended() == 0
        printed = program.printed
    logged = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert [one["path"] for one in logged] == ["/register", *["/api/x"] * 40]
    assert token not in printed
    assert "secret" not in printed


async def test_a_pipe_of_both_outputs_that_nobody_reads_holds_up_no_request_and_no_stop(upstream: Upstream) -> None:
    reading, writing = os.pipe()
    environment = {
        "TARGET_API_URL": upstream.url,
        "ACCESS_LOG": "json",
        "GATEWAY_LISTEN": "127.0.0.1:0",
        "RATE_LIMIT": "1000000",
        "PATH": os.environ["PATH"],
    }
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", env=environment, stdout=writing, stderr=writing
    )
    os.close(writing)
    try:
        printed = b""
        while b"sending to" not in printed:
            read = await asyncio.wait_for(asyncio.to_thread(os.read, reading, 4096), 20)
            assert read
            printed += read
        url = printed.split(b"listening on ")[1].split(b",")[0].decode()
        async with connected(url) as client:
            for _ in range(2000):  # some 600 kB of lines: a pipe holds 64
                assert (await client.ask(request("/healthz"))).status == 200
            program.send_signal(signal.SIGHUP)  # the log has something to say of that
            for _ in range(50):
                assert (await client.ask(request("/healthz"))).status == 200
        program.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(program.wait(), 20) == 0
    finally:
        if program.returncode is None:
            program.kill()
        os.close(reading)
