#!/usr/bin/env python3
"""Mixed traffic on real gateways, while the upstream, Redis and workers are killed and paused at random.

    python tools/soak.py --seconds 60 --seed 7
    python tools/soak.py --seconds 600 --workers 2 --json

There is a gateway of one process and, with `--workers 2`, one with a supervisor beside it, on one Redis and one mock
API (`tools/soak_upstream.py`). Every answer is compared byte for byte (`tools/soak_clients.py`): it has to be whole and
right, or visibly broken. What came to the upstream is counted: no POST twice, nothing that was refused, nothing whole
of what was sent in part. Once the faults are over, nothing may fail any more; when the traffic is over, nothing may be
left: descriptors, connections, memory, requests and places in flight. The summary goes to stdout, progress to stderr.
Exit status: 0 nothing wrong, 1 violations, 2 bad usage or no `redis-server`.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import uvloop  # noqa: E402 - the checkout's own modules come first

from perf.client import ADMIN_KEY, request  # noqa: E402
from perf.lab import Lab, Refused, Server  # noqa: E402
from tools.soak_clients import BAD_TOKEN, Client, Tally  # noqa: E402
from tools.soak_faults import Faults  # noqa: E402
from tools.soak_judge import Report, compare, listed  # noqa: E402
from tools.soak_rest import Held, get, held, in_flight, places_in_flight  # noqa: E402
from tools.soak_upstream import KEY, PROBE, Wish  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

POOL: Final = 8
"""Idle connections kept to the upstream: fewer than there are clients."""
GROWTH_BYTES: Final = 16 << 20
"""How much more memory a worker may have at the end than after the warming up: what the allocator keeps differs."""
REST_TIMEOUT_S: Final = 45.0
"""For what is under way to end. A killed worker's places in flight are leases: they come back within 30 seconds."""
DESCRIPTORS_TIMEOUT_S: Final = 10.0
"""For a gateway that has nothing to do any more to close what it has open."""
RECOVERY_TIMEOUT_S: Final = 45.0
"""For everything to be served again once nothing is out: a target that was out is tried after 30 seconds at most."""
RECOVERED_PROBES: Final = 20
"""So many in a row have to be answered on each gateway: whichever worker it is that takes them."""
PAUSE_S: Final = 0.1
"""Between two requests of a client, on the average: a soak waits for time to pass, and is no measurement of speed."""
REPORT_EVERY_S: Final = 10.0
_COMPLAINTS: Final = ("Traceback", "never retrieved", "never awaited", "ResourceWarning")


class Soak:
    """One soak.

    Args:
        lab: Where its servers run.
        options: The command line's.
        say: Prints a line of progress.
    """

    def __init__(self, lab: Lab, options: argparse.Namespace, say: Callable[[str], None]) -> None:
        self.tally = Tally()
        self.report = Report(options.seconds, options.seed)
        self._lab = lab
        self._say = say
        self._options = options
        self._chance = random.Random(options.seed)
        self._ledger = lab.directory / "ledger"
        self._upstream = lab.start(
            "mock API", [sys.executable, "-m", "tools.soak_upstream", "@{port}", str(self._ledger)], cwd=ROOT
        )
        redis = lab.redis()
        if redis is None:
            raise Refused("redis-server is not installed")
        self._redis = redis
        self._workers = {"one process": 1}
        if options.workers > 1:
            self._workers[f"{options.workers} workers"] = options.workers
        self._gateways = {name: self._gateway(name, workers) for name, workers in self._workers.items()}
        limits: dict[str, list[str]] = {"free": ["1000000/minute"], "tight": ["3/second"]}
        self._tokens = {name: self._register(allowed) for name, allowed in limits.items()} | {"bad": BAD_TOKEN}
        shaken = list(zip(self._gateways.values(), self._workers.values(), strict=True))
        self._faults = Faults(self._say_fault, self._upstream, redis, shaken, self._chance)
        self._began_s = time.monotonic()

    def _gateway(self, name: str, workers: int) -> Server:
        settings = {
            "TARGET_API_URL": f"http://127.0.0.1:{self._upstream.port}",
            "TARGET_API_KEY": KEY,
            "REDIS_URL": f"redis://127.0.0.1:{self._redis.port}/0",
            "GATEWAY_LISTEN": "127.0.0.1:@{port}",
            "GATEWAY_WORKERS": str(workers),
            "ADMIN_KEY": ADMIN_KEY,
            # A Redis that has lost its data would have a new one made.
            "TOKEN_SECRET": "a-secret-of-the-soak-of-32-characters",
            "CONCURRENCY_LIMIT": "1000",
            "GLOBAL_CONCURRENCY_LIMIT": str(max(self._options.clients, 4)),
            "RESPONSE_TIMEOUT": "5s",
            # Its own default is for machines with nothing else to do.
            "STORE_TIMEOUT": "1s",
            "UPSTREAM_POOL": str(POOL),
            "UPSTREAM_IDLE": "2s",
            "DRAIN_TIMEOUT": "10s",
            "PYTHONWARNINGS": "always::ResourceWarning",
            "PYTHONPATH": str(ROOT),
            **dict(one.split("=", 1) for one in self._options.set),
        }
        command = [sys.executable, "-m", self._options.module]
        return self._lab.start(f"gateway, {name}", command, environ=settings, cwd=ROOT)

    def _register(self, limits: list[str]) -> str:
        gateway = next(iter(self._gateways.values()))
        body = json.dumps({"limits": limits})
        with gateway.connect() as connection:
            head = f"POST /register HTTP/1.1\r\nHost: soak\r\nAuthorization: Bearer {ADMIN_KEY}\r\n"
            connection.send(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            status, answer = connection.read()
        if status != 201:
            raise Refused(f"/register answered {status}")
        token: str = json.loads(answer)["token"]
        return token

    async def run(self) -> None:
        """Warm up, rest, soak, recover, stay calm, rest; then compare."""
        seconds = self._options.seconds
        warm_s = min(seconds * 0.2, 15.0)
        calm_s = min(seconds * 0.1, 10.0)
        async with self._traffic("warming up"):
            await asyncio.sleep(warm_s)
        before = await self._at_rest({})
        async with self._traffic("faults"):
            await self._faults.run(seconds - warm_s - calm_s)
            await self._recovered()
            self.tally.calm = True
            await asyncio.sleep(calm_s)
        after = await self._at_rest(before)
        for name, then in before.items():
            self.report.at_rest[name] = [asdict(then), asdict(after[name])]
        self._stop()
        compare(self._ledger, self.tally)
        self._sum_up()

    @contextlib.asynccontextmanager
    async def _traffic(self, what: str) -> Any:  # noqa: ANN401 - a context manager's
        is_over = asyncio.Event()
        gateways = list(self._gateways.values())
        label = f"{what[0]}{self.report.seed}"
        clients = [
            Client(
                gateways[number % len(gateways)].port,
                self._tokens,
                self.tally,
                random.Random(f"{label}-{number}"),
                f"{label}-{number}",
            )
            for number in range(self._options.clients)
        ]
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.run(is_over, PAUSE_S))
            reporting = group.create_task(self._report_progress(what))
            yield
            is_over.set()
            reporting.cancel()

    def _say_fault(self, fault: str) -> None:
        if self._options.faults:
            self._say(f"{time.monotonic() - self._began_s:7.1f} s, {fault}")

    async def _report_progress(self, what: str) -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            self._say_how_it_goes(what)

    def _say_how_it_goes(self, what: str) -> None:
        outcomes = self.tally.by_outcome()
        sizes = []
        for name in self._gateways:
            with contextlib.suppress(OSError):
                now = self._held_by(name)
                sizes.append(f"{name}: {now.descriptors} descriptors, {now.rss_bytes / 1e6:.1f} MB")
        at_s = time.monotonic() - self._began_s
        self._say(
            f"{at_s:5.0f} s, {what}: {outcomes.total():,} requests ({listed(outcomes)}), "
            f"{self._faults.done.total()} faults, {self.tally.unexpected.total()} violations; {'; '.join(sizes)}"
        )

    async def _recovered(self) -> None:
        """Wait until every gateway serves again, on fresh connections."""
        for name, gateway in self._gateways.items():
            good, ends_s = 0, time.monotonic() + RECOVERY_TIMEOUT_S
            while good < RECOVERED_PROBES and time.monotonic() < ends_s:
                # In a thread: the clients go on meanwhile.
                is_good = await asyncio.to_thread(self._serves, gateway)
                good = good + 1 if is_good else 0
                await asyncio.sleep(0.02 if is_good else 0.2)
            if good < RECOVERED_PROBES:
                self.tally.violation("does not recover", name)
        await self._until(lambda: bool(self._held()), "workers that do not come back")

    def _serves(self, gateway: Server) -> bool:
        with contextlib.suppress(OSError), gateway.connect() as connection:
            connection.send(request(f"/api{Wish(PROBE).target}", self._tokens["free"]))
            return connection.read()[0] == 200
        return False

    async def _at_rest(self, before: dict[str, Held]) -> dict[str, Held]:
        """Wait until nothing is under way any more, and return what is held.

        Args:
            before: What was held at rest before; empty: this is what later rests are compared with.
        """
        gateways = self._gateways.values()
        await self._until(lambda: all(in_flight(one.port) == 0 for one in gateways), "left: requests in flight")
        await self._until(self._pools_are_small, "more idle connections than UPSTREAM_POOL", DESCRIPTORS_TIMEOUT_S)
        await self._until(lambda: places_in_flight(self._redis.port) == 0, "left: places in flight")
        await self._until(lambda: not any(one.to_upstream for one in self._held().values()), "left: connections")
        await self._until(lambda: all(get(one.port, "/readyz")[0] == 200 for one in gateways), "not ready")
        if not before:
            await self._until(self._is_steady(), "descriptors that come and go")
            return self._held()
        await self._until(lambda: not self._more_descriptors(before), "left: descriptors", DESCRIPTORS_TIMEOUT_S)
        after = self._held()
        for name, then in before.items():
            if after[name].rss_bytes > then.rss_bytes + GROWTH_BYTES:
                grown = (after[name].rss_bytes - then.rss_bytes) / 1e6
                self.tally.violation("left: memory", f"{name}: {grown:.1f} MB more than after the warming up")
        return after

    def _pools_are_small(self) -> bool:
        return all(one.to_upstream <= POOL for one in self._held().values())

    def _held(self) -> dict[str, Held]:
        return {name: self._held_by(name) for name in self._gateways}

    def _held_by(self, name: str) -> Held:
        return held(self._gateways[name], self._workers[name], self._upstream.port)

    def _more_descriptors(self, before: dict[str, Held]) -> bool:
        return any(
            now.descriptors > before[name].descriptors
            or now.supervisor_descriptors > before[name].supervisor_descriptors
            for name, now in self._held().items()
        )

    def _is_steady(self) -> Callable[[], bool]:
        seen: collections.deque[object] = collections.deque(maxlen=5)

        def look() -> bool:
            seen.append([(one.descriptors, one.supervisor_descriptors) for one in self._held().values()])
            return len(seen) == 5 and all(one == seen[0] for one in seen)

        return look

    async def _until(self, condition: Callable[[], bool], what: str, timeout_s: float = REST_TIMEOUT_S) -> None:
        """Look until it is so; a violation if it is not in time."""
        ends_s = time.monotonic() + timeout_s
        seen = ""
        while time.monotonic() < ends_s:
            try:
                if condition():
                    return
                seen = str(self._held())
            except OSError as error:
                seen = str(error)
            await asyncio.sleep(0.1)
        self.tally.violation(what, f"still after {timeout_s:.0f} s: {seen}")

    def _stop(self) -> None:
        """End the gateways in order; look at their exit codes, and at what they have printed."""
        for name, gateway in self._gateways.items():
            gateway.stop()
            if gateway.process.returncode:
                self.tally.violation("does not end with 0", f"{name}: {gateway.process.returncode}")
        for file in self._lab.directory.glob("*.out"):
            text = file.read_text(encoding="utf-8", errors="replace")
            for complaint in _COMPLAINTS:
                if complaint in text:
                    at = text.index(complaint)
                    self.tally.violation("a complaint in a log", text[at : at + 2000])

    def _sum_up(self) -> None:
        report, tally = self.report, self.tally
        report.requests = len(tally.outcomes)
        report.outcomes = dict(tally.by_outcome())
        for (kind, outcome), count in tally.kinds.items():
            report.kinds.setdefault(kind, {})[outcome] = count
        report.codes, report.faults = dict(tally.codes), dict(self._faults.done)
        report.violations, report.examples = dict(tally.unexpected), tally.examples


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="of traffic, 5 at least (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="decides what is sent and what is done (default: any)")
    parser.add_argument("--workers", type=int, default=1, help="of a second gateway; 1: there is none (default: 1)")
    parser.add_argument("--clients", type=int, default=32, help="that send at the same time (default: 32)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--faults", action="store_true", help="print each fault as it is done")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the gateways")
    parser.add_argument("--module", default="gateway", help="run this in place of `python -m gateway`")
    options = parser.parse_args(arguments)
    if options.seconds < 5:
        parser.error("--seconds takes 5 or more")
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1_000_000)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with Lab() as lab:
        try:
            soak = Soak(lab, options, say)
        except Refused as refused:
            print(f"soak: {refused}", file=sys.stderr)
            return 2
        say(f"soak: {options.seconds} s, seed {options.seed}, {options.clients} clients, in {lab.directory}")
        uvloop.run(soak.run())
    print(json.dumps(asdict(soak.report), indent=2) if options.json else soak.report.text())
    return 1 if soak.report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
