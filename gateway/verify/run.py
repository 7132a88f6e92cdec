"""A run from its first request, for a token, to its result: starts the workers, hits Redis, gathers what is told."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

from gateway.config import SETTINGS
from gateway.errors import GatewayError
from gateway.verify import faults, report
from gateway.verify.tally import Tally, now_us
from gateway.verify.worker import GRACE_S, READY, TELL_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.verify.faults import Outage
    from gateway.verify.plan import Load, Plan
    from gateway.verify.report import Result

_T = TypeVar("_T")

TOKEN_VARIABLE: Final = "GATEWAY_TOKEN"  # noqa: S105 (its name)
REGISTER_S: Final = 10.0
READY_S: Final = 30.0
"""How long a worker may take to start, on a machine that is busy."""
TOKEN_LIVES_S: Final = 600
"""Beyond the run's own length."""

_LINE_LIMIT_BYTES: Final = 1 << 26
"""A worker tells of all admissions of a quarter of a second in one line: 30 bytes each."""


class VerifyError(GatewayError):
    """The run could not be made, or shows nothing."""


async def verify(plan: Plan, say: Callable[[str], None]) -> Result:
    """Carry out a plan.

    Args:
        plan: What to do.
        say: Takes a line of progress about once a second.

    Raises:
        VerifyError: No token, no worker, or not one answer that tells of a limit.
        ConfigError, StoreUnavailable: Redis cannot be hit as planned.
        CancelledError: SIGINT or SIGTERM came. What it had stopped has been started again.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in one
    # Handlers of its own, and for both: a shell's background jobs ignore SIGINT, and a killed Redis has to come back.
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    pid = await faults.pid_to_kill(plan.faults) if plan.faults and plan.faults.kill else 0
    token = await asyncio.to_thread(_register, plan) if plan.token is None else plan.token
    run = _Run(plan, say)
    workers = [await _start(load) for load in plan.loads(token)]
    try:
        return await run.carry_out(workers, pid)
    finally:
        for worker in workers:
            if worker.returncode is None:
                worker.kill()
            await worker.wait()


class _Run:
    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        self._sum = Tally()
        self._undecided_us: list[int] = []
        self._begin_us = 0

    async def carry_out(self, workers: list[asyncio.subprocess.Process], pid: int) -> Result:
        """Let the workers send, and conclude."""
        for worker in workers:
            if (await _in_time(_line(worker), READY_S)).strip() != READY.encode():
                raise VerifyError("A worker process did not start.")
        self._begin_us = now_us() + 100_000
        until_us = self._begin_us + int(self._plan.seconds * 1e6)
        for worker in workers:
            assert worker.stdin is not None  # noqa: S101 - it was made with a pipe
            worker.stdin.write(f"{self._begin_us} {until_us}\n".encode())
        hitting = asyncio.ensure_future(self._hit_redis(pid))
        telling = asyncio.ensure_future(self._tell_progress())
        try:
            await _in_time(asyncio.gather(*map(self._gather, workers)), self._plan.seconds + GRACE_S + READY_S)
            took_s = min(now_us(), until_us) / 1e6 - self._begin_us / 1e6
            # It may take longer than the load does, and has to be over before anybody goes.
            outages = await hitting
        finally:
            telling.cancel()
            hitting.cancel()
            await asyncio.gather(telling, hitting, return_exceptions=True)
        if len(self._sum.policies) > 1:
            raise VerifyError(
                "the limits were not the same all the time, or on all instances, so nothing can be said: "
                + " and ".join(sorted(self._sum.policies))
            )
        is_cut = self._sum.asked >= self._plan.most
        result = report.conclude(self._sum, outages, self._undecided_us, took_s, is_cut=is_cut)
        if not result.findings:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self._sum.kinds.items()) or "no answers at all"
            raise VerifyError(f"No answer told of a limit, so nothing is shown; there were {kinds}.")
        return result

    async def _gather(self, worker: asyncio.subprocess.Process) -> None:
        while line := await _line(worker):
            tally = Tally.from_json(line)
            self._sum.add(tally)
            if tally.undecided_us:
                self._undecided_us.append(tally.undecided_us)
        if await worker.wait():
            raise VerifyError("A worker process failed.")

    async def _hit_redis(self, pid: int) -> tuple[Outage, ...]:
        hit = self._plan.faults
        if hit is None:
            return ()
        steps = [
            *((lambda: faults.pause(hit),) if hit.pause else ()),
            *((lambda: faults.kill(hit, pid),) if hit.kill else ()),
        ]
        outages: list[Outage] = []
        for number, step in enumerate(steps, 1):
            # Spread over the run, so that there is undisturbed time before, between and behind.
            due_s = self._begin_us / 1e6 + self._plan.seconds * number / (len(steps) + 1)
            await asyncio.sleep(max(0.0, due_s - now_us() / 1e6))
            outages.append(await step())
        return tuple(outages)

    async def _tell_progress(self) -> None:
        while True:
            await asyncio.sleep(1)
            if (passed_us := now_us() - self._begin_us) > TELL_S * 1e6:
                self._say(report.progress(self._sum, passed_us / 1e6))


async def _in_time(awaited: Awaitable[_T], within_s: float) -> _T:
    try:
        async with asyncio.timeout(within_s):
            return await awaited
    except TimeoutError:
        raise VerifyError("The worker processes do not keep up: this machine is too busy.") from None


async def _line(worker: asyncio.subprocess.Process) -> bytes:
    assert worker.stdout is not None  # noqa: S101 - it was made with a pipe
    return await worker.stdout.readline()


async def _start(load: Load) -> asyncio.subprocess.Process:
    secrets = {setting.environment for setting in SETTINGS.values() if setting.secret} | {TOKEN_VARIABLE}
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway.verify.worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name not in secrets},
        limit=_LINE_LIMIT_BYTES,
        # Ctrl-C is for the run, which ends its workers.
        start_new_session=True,
    )
    assert worker.stdin is not None  # noqa: S101 - it was made with a pipe
    worker.stdin.write(load.to_json().encode() + b"\n")
    return worker


def _register(plan: Plan) -> str:
    """Get a token for the run from the first instance."""
    url = urlsplit(plan.urls[0])
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.netloc, timeout=REGISTER_S)
    wishes: dict[str, object] = {"name": "gateway-verify", "ttl": int(plan.seconds) + TOKEN_LIVES_S}
    if plan.limits:
        wishes["limits"] = list(plan.limits)
    fields = {"Content-Type": "application/json"}
    if plan.admin_key is not None:
        fields["Authorization"] = f"Bearer {plan.admin_key}"
    try:
        connection.request("POST", "/register", body=json.dumps(wishes) if plan.admin_key else "", headers=fields)
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise VerifyError(f"No answer from {plan.urls[0]}: {error or type(error).__name__}.") from None
    finally:
        connection.close()
    try:
        told = json.loads(content)
        if answer.status == 201:
            return str(told["token"])
        detail = str(told["detail"])
    except (ValueError, KeyError, TypeError):
        detail = "what came is no answer of a gateway's"
    raise VerifyError(f"{plan.urls[0]} gives no token ({answer.status}): {detail}")
