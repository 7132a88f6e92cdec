"""The public corpora of raw requests, which lie beside the checkout where they are to be had, and their driver.

The driver sends each case to a gateway, plays the upstream behind it, and judges what reached that; see its README.
Most of its time is spent waiting, so the cases are dealt out to several drivers, each of which is a target of its own
of one gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.e2e import fetch, request
from tests.kit.process import gateway_process

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY: Final = "sk-real-key"
MODES: Final = ("whole", "bytes", "lines", "random")
SHARDS: Final = 4
TIMEOUT_S: Final = 240.0
# How long the driver waits for an answer that does not come. Its own default is shorter; a busy machine is slower.
QUIET_S: Final = 0.8
PATIENCE: Final = ("--quiet", str(QUIET_S), "--hard", "20", "--canary-timeout", "10")


class Verdict(NamedTuple):
    """What became of one case.

    Attributes:
        case: Corpus and id.
        score: PASS, or what is wrong with it.
        told: All that the driver says of it.
    """

    case: str
    score: str
    told: dict[str, Any]


def folder() -> Path | None:
    """Find the corpora: in `$GATEWAY_SHARED`, else in `shared` beside the checkout; None if they are not there."""
    shared = os.environ.get("GATEWAY_SHARED")
    corpora = (Path(shared) if shared else Path(__file__).parents[3] / "shared") / "corpora"
    return corpora if (corpora / "drive.py").is_file() else None


def deal(corpora: Path, to: Path) -> list[list[Path]]:
    """Deal the cases out, each corpus to every hand; return the files of each."""
    hands: list[list[Path]] = [[] for _ in range(SHARDS)]
    for corpus in sorted(corpora.glob("*.json")):
        cases = json.loads(corpus.read_bytes())
        for number, hand in enumerate(hands):
            file = to / str(number) / corpus.name
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(cases[number::SHARDS]), encoding="ascii")
            hand.append(file)
    return hands


class Run(NamedTuple):
    """What one driver does, and where.

    Attributes:
        name: Of the target that it plays.
        mode: How it sends.
        files: The cases.
        port: Where it plays the target.
        out: Where it writes its verdicts.
    """

    name: str
    mode: str
    files: list[Path]
    port: int
    out: Path


def targets(runs: list[Run]) -> str:
    """Write the gateway's configuration: all drivers as its targets."""
    return "".join(
        f'[targets.{run.name}]\nurl = "http://127.0.0.1:{run.port}"\nkey_env = "CORPORA_KEY"\n' for run in runs
    )


def read_verdicts(out: Path, printed: str) -> list[Verdict]:
    """Read what a driver has written."""
    assert out.is_file(), f"the driver gave up:\n{printed}"
    told = json.loads(out.read_bytes())["results"]
    return [Verdict(f"{one['file']}/{one['id']}", one.get("score", "ERROR"), one) for one in told]


async def drive(corpora: Path, run: Run, url: str, token: str) -> list[Verdict]:
    """Run the driver, which plays the upstream on its port; return its verdicts."""
    driver = await asyncio.create_subprocess_exec(
        sys.executable,
        str(corpora / "drive.py"),
        "run",
        *("--proxy", url.removeprefix("http://"), "--upstream-port", str(run.port), "--prefix", f"/{run.name}"),
        *("--token", token, "--upstream-key", KEY, "--split", run.mode, "--strict", "--out", str(run.out), *PATIENCE),
        *map(str, run.files),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        printed, _ = await asyncio.wait_for(driver.communicate(), TIMEOUT_S)
    finally:
        if driver.returncode is None:
            driver.kill()
            await driver.wait()
    return read_verdicts(run.out, printed.decode())


async def judge_all(corpora: Path, to: Path) -> dict[str, list[Verdict]]:
    """Drive all cases in all modes, side by side."""
    hands = list(enumerate(deal(corpora, to)))
    with contextlib.ExitStack() as stack:
        runs = [
            Run(name, mode, files, stack.enter_context(upstream_port()), to / f"{name}.out")
            for mode in MODES
            for name, files in ((f"{mode}-{number}", files) for number, files in hands)
        ]
        file = to / "gateway.toml"
        file.write_text(targets(runs), encoding="ascii")
        settings = {"TARGET_API_URL": "http://127.0.0.1:9", "GATEWAY_CONFIG": str(file), "CORPORA_KEY": KEY}
        async with gateway_process(**settings, RATE_LIMIT="100000000") as gateway:
            registered = await fetch(gateway.url, request("/register", method="POST"))
            token = json.loads(registered.content)["token"]
            judged = iter(await asyncio.gather(*(drive(corpora, run, gateway.url, token) for run in runs)))
        assert "Traceback" not in gateway.printed, gateway.printed
    return {mode: [verdict for _ in hands for verdict in next(judged)] for mode in MODES}


def summary(mode: str, verdicts: list[Verdict]) -> str:
    """Say in one line how a mode went."""
    scores = Counter(verdict.score for verdict in verdicts)
    kinds = Counter(verdict.told["verdict"] for verdict in verdicts)
    return (
        f"corpora, sent {mode}: {scores.pop('PASS', 0)} of {len(verdicts)} as the RFCs have it, "
        f"{kinds['SMUGGLED']} smuggled, {kinds['BAD_FORWARD']} not conforming, {kinds['LENIENT']} repaired, "
        f"{kinds['HANG']} hangs, {scores.pop('OVERSTRICT', 0)} over-strict; otherwise {dict(scores) or 'none'}"
    )


@contextlib.contextmanager
def upstream_port() -> Iterator[int]:
    """Hold a port until the block ends, such that the driver can listen there, which takes no port 0."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
