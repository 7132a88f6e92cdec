"""`python -m perf.invoice`: does a provider's invoice ever exceed a budget, and does the ledger agree with it?

Requests of random cost go over four gateways on one Redis to a provider that really bills. Clients hang up at random
moments, gateways are killed with -9 and started again, Redis is paused, and killed and started again. It keeps every
write (`appendfsync always`): a Redis that forgets what it has answered forgets money. At the end, when no lease is
left, the invoice is held against every budget in every window, and the ledger against the invoice, request by request.
Exit code 1 if something is not as it should be. All that it starts has ended when it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import http.client
import json
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import redis
import uvloop

from perf.invoice_judge import NANO, Billed, Finding, Held, Ledgered, judge_budget, judge_ledger, limits_of
from perf.invoice_load import Crowd
from perf.lab import ROOT, Lab, Refused, Server, free_port, which

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

INSTANCES: Final = 4
CLIENTS: Final = 32
RATE: Final = 300
"""Requests in a second, about, by which budgets are made so that they are reached."""
MEAN_USD: Final = Decimal("0.0009")
"""What a request costs, about."""
_MEAN_TOKENS: Final = 250
PAUSE_S: Final = 1.0
SETTLED_WITHIN_S: Final = 90.0
"""Three leases: after one, nothing may be open."""
ZONE: Final = "UTC"
_CONF: Final = """[prices."small"]
input = 1.0
cached_input = 0.25
output = 4.0
[prices."large-thinking"]
input = 5.0
cached_input = 1.25
output = 20.0
"""
_FAULTS: Final = ("gateway", "pause", "gateway", "redis", "gateway", "gateway")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=100_000, help="requests (default: 100000)")
    parser.add_argument("--faults", type=int, default=12, help="how many, one kind after the other (default: 12)")
    parser.add_argument("--seed", type=int, default=1, help="of what is asked (default: 1)")
    parser.add_argument("--short", action="store_true", help="900 requests, 4 faults, leases of 3 s")
    parser.add_argument("--keep", type=str, help="where to put the invoice and the ledger")
    options = parser.parse_args(arguments)
    if options.short:
        options.most, options.faults = 900, 4
    with Lab() as lab:
        try:
            return uvloop.run(_Proof(lab, options).run())
        except Refused as refused:
            print(f"invoice: {refused}", file=sys.stderr)
            return 1


class _Redis:
    """A Redis that forgets nothing when it is killed.

    Args:
        directory: For its files.

    Raises:
        Refused: There is none.
    """

    def __init__(self, directory: Path) -> None:
        binary = which("redis-server")
        if binary is None:
            raise Refused("redis-server is not installed")
        self.port = free_port()
        conf = directory / "redis.conf"
        lines = (f"port {self.port}", "bind 127.0.0.1", f"dir {directory}", 'save ""', "appendonly yes")
        conf.write_text("\n".join((*lines, "appendfsync always", "loglevel warning", "")), encoding="utf-8")
        self._command = [binary, str(conf)]
        self.client: Any = redis.Redis(port=self.port, decode_responses=True, socket_timeout=10.0)

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, start_new_session=True)
        ends_s = time.monotonic() + 15.0
        while time.monotonic() < ends_s:
            with suppress(redis.ConnectionError, redis.BusyLoadingError):
                self.client.ping()
                return
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.01)
        raise Refused("redis-server does not answer")

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.process.kill()
        self.process.wait()

    def keys(self, last: str) -> Iterator[str]:
        """Yield the keys of a kind."""
        yield from self.client.scan_iter(match=f"gateway:{{*}}:{last}", count=1000)


class _Proof:
    """One run."""

    def __init__(self, lab: Lab, options: argparse.Namespace) -> None:
        self._lab = lab
        self._options = options
        self._bill = lab.directory / "invoice.csv"
        self._conf = lab.directory / "gateway.toml"
        self._conf.write_text(_CONF, encoding="utf-8")
        self._admin_key = secrets.token_hex(16)
        self.budgets = budgets_of(options.most, "3s" if options.short else "minute")
        self._gateways: list[Server] = []
        self._ids: dict[str, str] = {}
        """The users by the ids of their tokens."""
        self._faults: list[str] = []
        self._pause_s = PAUSE_S / 4 if options.short else PAUSE_S

    async def run(self) -> int:
        """Run it; return the exit code."""
        self._redis = _Redis(self._lab.directory)
        self._redis.start()
        try:
            command = [sys.executable, "-m", "tests.kit.provider", "--port", "@{port}"]
            command += ["--csv", str(self._bill), "--prices", str(self._conf)]
            self._provider = self._lab.start("provider", command, cwd=ROOT)
            self._gateways = [self._gateway(number) for number in range(INSTANCES)]
            users = [user for user in self.budgets if user != "global"]
            tokens = {user: self._token(user) for user in users}
            ports = [gateway.port for gateway in self._gateways]
            crowd = Crowd(ports, tokens, self._options.most, self._options.seed)
            began_s = time.monotonic()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._fail(crowd))
                group.create_task(crowd.run(CLIENTS))
            took_s = time.monotonic() - began_s
            waited_s = await self._quiet()
            print(self._sent(crowd, took_s, waited_s), flush=True)
            return self._judge()
        finally:
            self._redis.process.send_signal(signal.SIGCONT)
            self._redis.kill()

    # ---- what is run

    def _gateway(self, number: int) -> Server:
        environ = {
            "REDIS_URL": f"redis://127.0.0.1:{self._redis.port}/0",
            "ADMIN_KEY": self._admin_key,
            "GATEWAY_CONFIG": str(self._conf),
            "TARGET_API_URL": f"http://127.0.0.1:{self._provider.port}",
            "TARGET_COST": "llm",
            "GATEWAY_LISTEN": "127.0.0.1:@{port}",
            "PYTHONPATH": str(ROOT),
            "RATE_LIMIT": "1000000/minute",
            "GLOBAL_BUDGET": self.budgets["global"],
            "BUDGET_CLAMP": "on",
            "BUDGET_TIMEZONE": ZONE,
            # Half of them read on for those who left.
            "ON_DISCONNECT": "drain:2s" if number % 2 else "cancel",
            "DRAIN_TIMEOUT": "1s",
        }
        module = "perf.short_leases" if self._options.short else "gateway"
        return self._lab.start(f"gateway {number}", [sys.executable, "-m", module], environ=environ, cwd=ROOT)

    def _token(self, user: str) -> str:
        asked = {"name": user, "budgets": self.budgets[user].split(", ")}
        made = self._call("POST", "/register", asked)
        self._ids[made["id"]] = user
        token: str = made["token"]
        return token

    def _call(self, method: str, path: str, content: object = None) -> Any:  # noqa: ANN401 - JSON
        connection = http.client.HTTPConnection("127.0.0.1", self._gateways[0].port, timeout=30.0)
        try:
            body = None if content is None else json.dumps(content)
            connection.request(method, path, body, {"Authorization": f"Bearer {self._admin_key}"})
            answer = connection.getresponse()
            read = answer.read()
            if answer.status >= 300:
                raise Refused(f"{method} {path}: {answer.status} {read.decode(errors='replace')}")
            return json.loads(read)
        finally:
            connection.close()

    # ---- what goes wrong

    async def _fail(self, crowd: Crowd) -> None:
        for number in range(self._options.faults):
            due = self._options.most * (number + 1) // (self._options.faults + 1)
            while crowd.sent < due:  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0.01)
            kind = _FAULTS[number % len(_FAULTS)]
            self._faults.append(kind)
            if kind == "gateway":
                await self._restart(number % INSTANCES, crowd)
            elif kind == "pause":
                self._redis.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(self._pause_s)
                self._redis.process.send_signal(signal.SIGCONT)
            else:
                self._redis.kill()
                await asyncio.sleep(self._pause_s / 2)
                await asyncio.to_thread(self._redis.start)

    async def _restart(self, number: int, crowd: Crowd) -> None:
        killed = self._gateways[number]
        killed.process.kill()
        crowd.ports.remove(killed.port)
        self._gateways[number] = await asyncio.to_thread(self._gateway, number)
        crowd.ports.append(self._gateways[number].port)

    async def _quiet(self) -> float:
        """Wait until nothing is open; return how long that took, in seconds."""
        began_s = time.monotonic()
        while time.monotonic() < began_s + SETTLED_WITHIN_S:
            # One that Redis was killed under may not have found it again.
            with suppress(Refused):
                if not await asyncio.to_thread(self._open):
                    break
            await asyncio.sleep(0.2)
        return time.monotonic() - began_s

    # ---- what came of it

    def _sent(self, crowd: Crowd, took_s: float, waited_s: float) -> str:
        outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in crowd.tally.most_common())
        kinds = ", ".join(f"{self._faults.count(kind)} {name}" for kind, name in _NAMES.items())
        return (
            f"{crowd.sent:,} requests in {took_s:.0f} s: {outcomes}\n"
            f"faults: {kinds}; {waited_s:.0f} s later nothing was open"
        )

    def _judge(self) -> int:
        entries, opened = self._ledger()
        for server in (*self._gateways, self._provider):
            server.stop()
        bills = list(read_bills(self._bill))
        if self._options.keep:
            self._keep(entries, opened)
        findings = [
            judge_budget(
                user,
                limit,
                [bill for bill in bills if user in {"global", bill.user}],
                ZONE,
                [entry for entry in entries if user in {"global", entry.user}],
            )
            for user, text in self.budgets.items()
            for limit in limits_of(text)
        ]
        ledgered = judge_ledger(entries, bills, opened)
        print(told(findings, ledgered, bills))
        return 1 if ledgered.problems or any(finding.over for finding in findings) else 0

    def _open(self) -> list[str]:
        return [entry["request"] for entry in self._call("GET", "/admin/ledger?open=only")["open"]]

    def _ledger(self) -> tuple[list[Held], list[str]]:
        # Not as the gateway tells it, but as it is: a request that was settled twice would be there twice.
        entries = [
            read_entry(fields, self._ids)
            for key in self._redis.keys("ledger")
            for _, fields in self._redis.client.xrange(key)
        ]
        return entries, self._open()

    def _keep(self, entries: Sequence[Held], opened: Sequence[str]) -> None:
        kept = ROOT / self._options.keep
        kept.mkdir(parents=True, exist_ok=True)
        (kept / "invoice.csv").write_bytes(self._bill.read_bytes())
        content = {"open": list(opened), "entries": [entry._asdict() for entry in entries]}
        (kept / "ledger.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


_NAMES: Final = {"gateway": "gateways killed", "pause": "pauses of Redis", "redis": "kills of Redis"}


def budgets_of(most: int, window: str) -> dict[str, str]:
    """Return budgets that so many requests reach, by user; `global` is everybody's."""
    # What begins slowly, as processes do, has not come far in a few seconds.
    window_s, rate = (60, RATE) if window == "minute" else (int(window[:-1]), RATE // 3)
    total = MEAN_USD * most
    passing = MEAN_USD * rate * window_s
    tokens = _MEAN_TOKENS * rate * window_s
    return {
        "a": f"{_usd(passing / 6)} USD/{window}",
        "b": f"{_usd(total / 12)} USD/day, {_usd(passing / 4)} USD/{window}",
        "c": f"{tokens // 6} tokens/{window}",
        "d": f"{_usd(passing / 6)} USD/{window}, {_MEAN_TOKENS * most // 12} tokens/day",
        "global": f"{_usd(total * 2 / 5)} USD/day, {_usd(passing / 2)} USD/{window}",
    }


def read_entry(fields: Mapping[str, str], users: Mapping[str, str]) -> Held:
    """Read an entry of the stream that the ledger is in Redis.

    Args:
        fields: Its fields.
        users: By the ids of their tokens.
    """
    said, mark = json.loads(fields["entry"]), fields["mark"]
    # Of one that nobody settled: what was reserved whatever comes back, and for each output token that was granted.
    each, granted = said.get("each", {}), said.get("granted", 0)
    reserved = {unit: said.get("reserved", {}).get(unit, 0) + each.get(unit, 0) * granted for unit in ("USD", "tokens")}
    cost = reserved if mark == "assumed" else said.get("cost", {})
    user = users.get(said["token"], said["token"])
    amounts = cost.get("USD", 0), reserved["USD"], cost.get("tokens", 0)
    return Held(said["id"], said.get("upstream_id", ""), user, mark, *amounts)


def read_bills(path: Path) -> Iterator[Billed]:
    """Yield the lines of an invoice."""
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            began, ended = (int(Decimal(row[name]) * 1_000_000) for name in ("time", "ended"))
            tokens = int(row["input_tokens"]) + int(row["output_tokens"])
            yield Billed(row["request_id"], began, ended, row["user"], int(Decimal(row["cost_usd"]) * NANO), tokens)


def told(findings: Sequence[Finding], ledgered: Ledgered, bills: Sequence[Billed]) -> str:
    """Return what came of it, for people."""
    lines = [f"billed: {_spelled(sum(bill.nano for bill in bills), 'USD')} for {len(bills):,} requests"]
    for user, limit, worst, used, held in findings:
        average = "" if used is None else f", on average {used / limit.amount:.1%}"
        average += "" if held is None else f"; {held / limit.amount:.2%} are held"
        whose = "all together" if user == "global" else user
        most = f"{_spelled(worst, limit.unit)} in the worst window"
        lines.append(f"{whose}, {limit.text}: {most}, {worst / limit.amount:.2%}{average}")
    marks = ", ".join(f"{count:,} {mark}" for mark, count in ledgered.marks.most_common())
    lines.append(f"ledger: {marks}")
    surplus, bound = _spelled(ledgered.surplus, "USD"), _spelled(ledgered.bound, "USD")
    lines.append(f"held beyond the bill for what is not exact: {surplus}, of {bound} that were reserved beyond it")
    lines += [f"PROBLEM: {problem}" for problem in ledgered.problems[:20]]
    lines += [f"PROBLEM: {finding.user}, {finding.limit.text} exceeded" for finding in findings if finding.over]
    if len(ledgered.problems) > 20:
        lines.append(f"and {len(ledgered.problems) - 20} more")
    wrong = any(finding.over for finding in findings) or ledgered.problems
    lines.append("verdict: not as it should be" if wrong else "verdict: no budget was exceeded, and every cent is held")
    return "\n".join(lines)


def _spelled(amount: int, unit: str) -> str:
    return f"{Decimal(amount) / NANO:.9f} USD" if unit == "USD" else f"{amount:,} {unit}"


def _usd(amount: Decimal) -> str:
    return f"{amount:.6f}"


if __name__ == "__main__":
    sys.exit(main())
