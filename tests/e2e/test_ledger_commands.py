"""The ledger's commands as programs, beside a gateway whose target costs: over HTTP, and straight from Redis."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import signal
import sys
from itertools import count
from typing import TYPE_CHECKING

from tests.e2e import connected, fetch, request
from tests.kit.process import gateway_process
from tests.kit.redis import free_ports, running_redis
from tests.kit.upstream import head, soon

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kit.process import Program
    from tests.kit.upstream import Call, Upstream

COST = {"TARGET_COST": "0.005 USD", "STORE_TIMEOUT": "10s"}


async def printed(*arguments: str, **settings: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *arguments),
        env={"PATH": os.environ["PATH"], **settings},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await soon(process.communicate())
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def spend(program: Program, upstream: Upstream, times: int) -> str:
    """Have a token send requests whose answers are named; return its id."""
    numbers = count(1)

    async def answer(call: Call) -> None:
        await call.send(head("200 OK", f"x-request-id: req_{next(numbers)}", "Content-Length: 0"))

    upstream.default = answer
    told = json.loads((await fetch(program.url, request("/register", method="POST"))).content)
    async with connected(program.url) as client:
        for _ in range(times):
            await client.ask(request("/api/x", told["token"]))
    return str(told["id"])


async def test_of_a_running_gateway(upstream: Upstream, tmp_path: Path) -> None:
    async with gateway_process(TARGET_API_URL=upstream.url, **COST) as program:
        token = await spend(program, upstream, 3)
        code, out, err = await printed("ledger", "--url", program.url)
        assert (code, err) == (0, "")
        assert out.count(f"  {token}  api  ") == 3
        assert out.endswith("3 settled: 0.015 USD\n")
        code, out, _ = await printed("ledger", "--csv", "--url", program.url)
        held = [row["upstream_request"] for row in csv.DictReader(io.StringIO(out))]
        assert (code, len(held)) == (0, 3)
        invoice = tmp_path / "invoice.csv"
        invoice.write_text("id,cost\n" + "".join(f"{name},0.005\n" for name in held), encoding="utf-8")
        code, out, err = await printed("reconcile", str(invoice), "--url", program.url)
        assert (code, err, out.splitlines()[0]) == (0, "", "3 requests agree, 0 do not")
        code, out, _ = await printed("simulate", "--budget", "0.01 USD/day", "--json", "--url", program.url)
        members = json.loads(out)
        assert (code, members["refused"], members["saved"]) == (0, 1, {"USD": "0.005"})


async def test_where_no_gateway_answers_they_read_redis(upstream: Upstream) -> None:
    with running_redis() as redis:
        settings = {"REDIS_URL": redis.url, **COST}
        async with gateway_process(TARGET_API_URL=upstream.url, **settings) as program:
            await spend(program, upstream, 2)
            over_http = json.loads((await printed("ledger", "--json", "--url", program.url))[1])
            program.signal(signal.SIGTERM)
            assert await program.ended() == 0
        (port,) = free_ports(1)
        here = {"GATEWAY_LISTEN": f"127.0.0.1:{port}", **settings}
        code, out, err = await printed("ledger", "--json", **here)
        assert (code, err) == (0, "")
        assert json.loads(out) == over_http
        assert len(over_http["entries"]) == 2
        code, out, err = await printed("ledger", "release", "none-1", **here)
        assert (code, out, err) == (1, "", "gateway: no reservation of request 'none-1' is open, or was assumed\n")


async def test_what_a_killed_process_held_is_listed_and_released(upstream: Upstream) -> None:
    asked = asyncio.Event()

    async def never(call: Call) -> None:
        del call
        asked.set()
        await asyncio.Event().wait()

    with running_redis() as redis:
        settings = {"REDIS_URL": redis.url, **COST}
        async with gateway_process(TARGET_API_URL=upstream.url, **settings) as program:
            await spend(program, upstream, 0)
            upstream.default = never
            told = json.loads((await fetch(program.url, request("/register", method="POST"))).content)
            async with connected(program.url) as client:
                client.write(request("/api/x", told["token"]))
                await soon(asked.wait())
                program.signal(signal.SIGKILL)
                await program.ended()
        (port,) = free_ports(1)
        here = {"GATEWAY_LISTEN": f"127.0.0.1:{port}", **settings}
        _, out, _ = await printed("ledger", "--open", "--json", **here)
        (held,) = json.loads(out)["open"]
        assert (held["token"], held["reserved"], held["mark"]) == (told["id"], {"USD": "0.005"}, "open")
        code, out, _ = await printed("ledger", "release", held["request"], **here)
        assert (code, out) == (0, f"released {held['request']}: 0.005 USD of token {told['id']}\n")
        _, out, _ = await printed("ledger", "--json", **here)
        members = json.loads(out)
        assert [(one["mark"], one["cost"]) for one in members["entries"]] == [("released", {})]
        assert members["open"] == []
