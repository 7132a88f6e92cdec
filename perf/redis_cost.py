"""What limits cost Redis: `python -m perf.redis_cost`, with a `redis-server` of its own and redis-benchmark.

Four tables: CPU of the server for each check, and for each request that is reserved and settled; bytes for each
reservation and each entry of the ledger, and for each token and limit; and what idle tokens leave behind.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if not __package__:  # run as a file: `perf` and `gateway` are in the directory above
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import hiredis

from gateway.budgets.budget import Budget
from gateway.budgets.spending import Ask, Entry, Mark, Settlement
from gateway.limits import Policy, parse_concurrency, parse_limits
from gateway.stores.address import RedisAddress
from gateway.stores.redis import CHECK_SCRIPT, RedisStore
from gateway.stores.redis_ledger import REMEMBERED
from perf.lab import which
from perf.parts import LastVerdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# The script's clock moves on by a segment of a minute at each call: the list is full, and each segment a new one.
_STEPPING: Final = CHECK_SCRIPT.replace("call('TIME')", "{0, call('INCRBY', 'clock', '1000000')}")
_ANY: Final = "__rand_int__"
_CHECKS: Final[tuple[tuple[str, str, str, str, str | None], ...]] = (
    ("one window, one token", CHECK_SCRIPT, "1000000000/minute", "x", None),
    ("one window, many tokens", CHECK_SCRIPT, "1000000/minute", _ANY, None),
    ("one window, worst case", _STEPPING, "1000000000/minute", "x", None),
    ("one window, refused", CHECK_SCRIPT, "1/31d", "x", None),
    ("one bucket", CHECK_SCRIPT, "10000/second;bucket", "x", None),
    ("three windows, one token", CHECK_SCRIPT, "1000000/second,1000000000/minute,1000000000/day", "x", None),
    ("three windows, many tokens", CHECK_SCRIPT, "1000000/second,1000000/minute,1000000/day", _ANY, None),
    ("window and bucket and place", CHECK_SCRIPT, "1000000000/minute,10000/second;bucket", "x", "1000000"),
)
_DAY: Final = Budget(unit="USD", amount=10**15, calendar="day")
_MONTH: Final = replace(_DAY, calendar="month")
_BUDGETS: Final[tuple[tuple[str, str, tuple[Budget, ...]], ...]] = (
    ("no budget, one window", "1000000000/minute", ()),
    ("a budget a day, one window", "1000000000/minute", (_DAY,)),
    ("a budget an hour, one window", "1000000000/minute", (replace(_DAY, calendar=None, window_us=3_600_000_000),)),
    (
        "three budgets, one window",
        "1000000000/minute",
        (_DAY, replace(_DAY, calendar="month"), replace(_DAY, shared=True)),
    ),
)
_IDLE: Final = ("9/2s", "9/40s")
"""In a short run, else: long enough for a million tokens to be there together, short enough to wait for."""
_LETTERS: Final = {"window": "w", "bucket": "b", "lease": "l"}


class _Redis:
    """A server on a unix socket, gone with the block."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._reader = hiredis.Reader()

    def call(self, *command: str | int) -> Any:  # noqa: ANN401 - whatever Redis answers
        pack: Any = hiredis.pack_command
        self._socket.sendall(pack(command))
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(65536))
        return reply

    def number(self, section: str, name: str) -> float:
        info: str = self.call("INFO", section).decode()
        return float(info.split(f"{name}:")[1].split(maxsplit=1)[0])

    def cpu_s(self) -> float:
        return self.number("cpu", "used_cpu_user") + self.number("cpu", "used_cpu_sys")

    def close(self) -> None:
        self._socket.close()


def _connected(path: str) -> _Redis | None:
    # The file is there a moment before anybody listens.
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        return _Redis(path)
    return None


@contextlib.contextmanager
def _redis(binary: str) -> Iterator[_Redis]:
    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        path = f"{directory}/redis.sock"
        command = [binary, "--port", "0", "--unixsocket", path, "--save", "", "--dir", directory]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while (redis := _connected(path)) is None and process.poll() is None:
                time.sleep(0.01)
            if redis is None:
                raise RuntimeError(f"redis-server ended with {process.returncode}")
            yield redis
            redis.close()
        finally:
            process.kill()
            process.wait()


def _cpu_us(redis: _Redis, script: str, policies: Sequence[Policy], token: str, count: int) -> float:
    """Return the server's CPU for each check, in µs: its own, and that of reading commands and writing replies."""
    redis.call("FLUSHALL")
    keys = [f"gateway:{{{token}}}:revoked", *(f"gateway:{{{token}}}:{policy.counter}" for policy in policies)]
    numbers = [number for policy in policies for number in (policy.quota, policy.unit_us or 25_000_000)]
    kinds = "".join(_LETTERS[policy.kind.value] for policy in policies)
    words = ["EVALSHA", redis.call("SCRIPT", "LOAD", script).decode(), len(keys), *keys, kinds, _ANY, *numbers]
    before = redis.cpu_s()
    command = ["redis-benchmark", "-s", redis.path, "-n", str(count), "-P", "32", "-c", "8", "-r", "10000", "-q"]
    subprocess.run([*command, *map(str, words)], stdout=subprocess.DEVNULL, check=True)
    return (redis.cpu_s() - before) / count * 1e6


async def _fill(redis: _Redis, limits: str, tokens: int, checks: int, *, clock_step_us: int = 0) -> float:
    """Let so many tokens make so many checks each, and return the bytes that each token takes in Redis."""
    redis.call("FLUSHALL")
    script = CHECK_SCRIPT.replace("call('TIME')", "{0, call('GET', 'clock')}") if clock_step_us else CHECK_SCRIPT
    store = RedisStore(RedisAddress(host="", unix_path=redis.path), timeout_s=60, script=script)
    redis.call("SET", "clock", 10**15)
    await store.start()
    before = redis.number("memory", "used_memory")
    waiter, policies = LastVerdict(), parse_limits(limits)
    for turn in range(checks):
        redis.call("SET", "clock", 10**15 + turn * clock_step_us)
        for number in range(tokens):
            store.check(store.plan(f"{number:022}", policies), waiter)
            if number % 500 == 499:
                await store.ping()
        await store.ping()
    taken = (redis.number("memory", "used_memory") - before) / tokens
    await store.close()
    return taken


async def _spend(redis: _Redis, limits: str, budgets: Sequence[Budget], count: int) -> tuple[float, float, float]:
    """Reserve and settle so often.

    Returns:
        The server's CPU for each, in µs; the bytes of a reservation, and of an entry of the ledger.
    """
    redis.call("FLUSHALL")
    store = RedisStore(RedisAddress(host="", unix_path=redis.path), timeout_s=60)
    await store.start()
    plan, waiter = store.spend_plan("x" * 22, parse_limits(limits), budgets), LastVerdict()
    began, used = redis.cpu_s(), redis.number("memory", "used_memory")
    held = kept = 0.0
    for start in range(0, count, 500):
        asks = [_ask(number) for number in range(start, min(start + 500, count))]
        for ask in asks:
            store.reserve(plan, ask, waiter)
        await store.ping()
        held = held or (redis.number("memory", "used_memory") - used) / len(asks)
        for ask in asks:
            store.ledger.settle(plan, ask, 0, Settlement({"USD": 12_345}, Mark.EXACT, ask.about))
        await store.ping()
    for _ in range(REMEMBERED):
        store.ledger.forget()
    await store.ping()
    cpu_us = (redis.cpu_s() - began) / count * 1e6
    kept = (redis.number("memory", "used_memory") - used) / count
    await store.close()
    return cpu_us, held, kept


def _ask(number: int) -> Ask:
    """Return what a request of a language model asks for."""
    reserved, units = {"USD": 23_456, "tokens": 5_000}, {"input": 1_200, "cached": 800, "output": 345}
    about = Entry(
        f"{number:022}",
        1_700_000_000_000_000 + number,
        "x" * 22,
        "openai",
        model="gpt-5-mini",
        method="POST",
        path="/v1/chat/completions",
        reserved=reserved,
        cost={"USD": 12_345, "tokens": 1_545},
        units=units,
        status=200,
        upstream_id=f"chatcmpl-{number:029}",
    )
    return Ask(about.id, reserved, about=about.text())


def _idle(redis: _Redis, limits: str, tokens: int) -> tuple[int, int, float]:
    """Let so many tokens make one check under a short window; return keys then, keys after it, and the seconds."""
    asyncio.run(_fill(redis, limits, tokens, 1))
    before, began = redis.call("DBSIZE"), time.monotonic()
    # Redis looks for what has expired ten times a second, harder the more it finds.
    while (left := redis.call("DBSIZE")) > 1 and time.monotonic() - began < 60:
        time.sleep(0.05)
    return before, left - 1, time.monotonic() - began


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print.

    Returns:
        0; 1 when something is missing, or idle tokens left keys behind.
    """
    parser = argparse.ArgumentParser(description="What limits cost Redis: CPU, memory, what idle tokens leave.")
    parser.add_argument("--short", action="store_true", help="a hundredth of everything")
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="of each check; the least counts (default: 3)"
    )
    options = parser.parse_args(arguments)
    binary = which("redis-server")
    if binary is None or which("redis-benchmark") is None:
        print(
            "redis_cost: redis-server and redis-benchmark: not found; Debian: redis-server, redis-tools",
            file=sys.stderr,
        )
        return 1
    share = 100 if options.short else 1
    with _redis(binary) as redis:
        print(f"{'CPU of Redis per check':<32} {'µs':>8}")
        for name, script, limits, token, places in _CHECKS:
            policies = (*parse_limits(limits), *((parse_concurrency(places),) if places else ()))
            rounds = 1 if options.short else options.rounds
            least = min(_cpu_us(redis, script, policies, token, 200_000 // share) for _ in range(rounds))
            print(f"{name:<32} {least:>8.1f}")
        print(f"\n{'CPU of Redis, reserve and settle':<32} {'µs':>8}")
        for name, limits, budgets in _BUDGETS:
            rounds = 1 if options.short else options.rounds
            figures = [asyncio.run(_spend(redis, limits, budgets, 20_000 // share)) for _ in range(rounds)]
            print(f"{name:<32} {min(figures)[0]:>8.1f}")
        print(f"\n{'memory of a request that costs':<32} {'bytes':>8}")
        print(f"{'reserved, under three budgets':<32} {figures[0][1]:>8.0f}")
        print(f"{'settled, in the ledger':<32} {figures[0][2]:>8.0f}")
        print(f"\n{'memory per token and limit':<32} {'bytes':>8}")
        tokens = 20_000 // share
        for name, limits, checks, step_us in (
            ("window, one request", "60/minute", 1, 1),
            ("window, a request in each segment", "61/minute", 61, 1_000_000),
            ("bucket", "60/minute;bucket", 2, 1),
        ):
            print(f"{name:<32} {asyncio.run(_fill(redis, limits, tokens, checks, clock_step_us=step_us)):>8.0f}")
        limits = _IDLE[0 if options.short else 1]
        before, left, took_s = _idle(redis, limits, 1_000_000 // share)
        print(f"\n{before - 1} idle tokens under {limits} left {left} keys after {took_s:.1f} s")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
