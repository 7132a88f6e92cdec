"""The measurements that are made side by side: each script runs once, and refuses what it should."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from perf import compare, figures, measure, overhead, peers, report
from perf.client import request
from perf.lab import Lab, Refused, Server, which
from perf.load import PERCENTILES
from perf.measure import Load, Sample
from perf.upstream import BIG_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = {
    "overhead": ["perf/overhead.py"],
    "compare": ["-m", "perf.compare"],
    "memory": ["perf/memory.py"],
    "scaling": ["-m", "perf.scaling"],
}

pytestmark = pytest.mark.alone

Runs = dict[str, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def runs(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Every script's short run, all at once: what they measure does not matter here."""
    temporary = tmp_path_factory.mktemp("tmp")
    started = {
        name: subprocess.Popen(
            # Both ways to start a script, whatever directory Python then puts on its path.
            [sys.executable, *way, "--short", "--out", str(out)],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, way in SCRIPTS.items()
    }
    ended = {}
    try:
        for name, process in started.items():
            printed, told = process.communicate(timeout=180)
            ended[name] = subprocess.CompletedProcess(process.args, process.returncode, printed, told)
    finally:
        for process in started.values():
            process.terminate()
            process.wait()
    yield ended
    assert list(temporary.glob("gateway-perf-*")) == []
    assert [line for line in command_lines() if str(temporary) in line] == []


def command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue


def rows(printed: str, head: str) -> list[dict[str, str]]:
    """Read the Markdown table whose first line begins so."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    at = next(number for number, line in enumerate(lines) if line.startswith(head))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[at:]]
    assert all(re.fullmatch("-+:?", cell) for cell in cells[1])
    width = len(cells[0])
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:] if len(row) == width]


def number(text: str) -> float:
    return float(text.split(maxsplit=1)[0].replace(",", ""))


def written(out: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / name).read_text(encoding="utf-8"))
    assert content["machine"].keys() >= {"date", "cpu", "kernel", "Python"}
    assert content["short"] is True
    return content


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_short_run_ends_well_and_says_that_it_is_short(runs: Runs, name: str) -> None:
    run = runs[name]
    assert run.returncode == 0, run.stderr
    assert report.SHORT_NOTE in run.stdout


def test_overhead_reports_each_number_of_connections(runs: Runs, out: Path) -> None:
    found = rows(runs["overhead"].stdout, "| connections")
    assert [row["connections"] for row in found] == ["1", "32", "128"]
    assert all(number(row[name]) > 0 for row in found for name in ("req/s", "CPU us/request", "RSS, MB"))
    cells = written(out, "overhead.json")["cells"]
    assert set(cells) == {f"{way} {count}" for way in ("direct", "proxied") for count in (1, 32, 128)}
    for cell in cells.values():
        latencies = [cell["latencies_us"][f"{point:g}"] for point in PERCENTILES]
        assert latencies == sorted(latencies)
        assert all(one["requests"] > 0 for one in cell["rounds"])


def test_overhead_draws_a_picture_or_says_what_it_takes(runs: Runs, out: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        assert "pip install '.[perf]'" in runs["overhead"].stdout
    else:
        assert (out / "overhead.png").read_bytes().startswith(b"\x89PNG")


def test_compare_measures_what_is_installed_and_names_what_is_not(runs: Runs, out: Path) -> None:
    content = written(out, "compare.json")
    lacking = peers.missing()
    for name in (peers.NGINX, peers.HAPROXY, peers.NGINX_LUA):
        assert (name in content["systems"]) != (f"not measured: {name} (Debian: " in runs["compare"].stderr)
        assert (name in lacking) != (name in content["systems"])
    found = {figure["key"]: figure for figure in content["figures"]}
    assert set(found) == {key for kind in compare.MEASUREMENTS for key in kind.keys}
    assert all(set(figure["values"]) == set(content["systems"]) for figure in found.values())
    for key in ("cpu", "rate", "rss", "bulk", "start"):
        assert all(value > 0 for value in found[key]["values"].values()), key
    table = rows((out / "compare.md").read_text(encoding="utf-8"), "|  ")
    assert [row[""] for row in table] == [figure["label"] for figure in content["figures"]]


def test_memory_reports_each_store(runs: Runs, out: Path) -> None:
    found = rows(runs["memory"].stdout, "| RSS")
    stores = [one["store"] for one in written(out, "memory.json")["stores"]]
    assert stores == (["embedded", "Redis"] if which("redis-server") else ["embedded"])
    assert all(number(row[store]) > 5 for row in found if row["RSS"] == "at rest" for store in stores)


def test_scaling_reports_one_worker_and_several(runs: Runs, out: Path) -> None:
    found = rows(runs["scaling"].stdout, "| workers")
    assert [row["workers"] for row in found] == ["1", "2"]
    assert number(found[0]["busiest worker"].rstrip("%")) == 100
    assert 50 <= number(found[1]["busiest worker"].rstrip("%")) < 100
    assert written(out, "scaling.json")["times"] > 0


# ---- what is refused


def seen(**changes: Any) -> Sample:
    """A measurement with nothing wrong."""
    load = Load(20_000, 1.0, {float(point): 100.0 + point for point in PERCENTILES}, "wrk", 0.3)
    plain = Sample(load, 40.0, 30_000_000, {"gateway": 0.8, "upstream": 0.4, "wrk": 0.3}, 0.95)
    if "requests" in changes:
        changes["load"] = replace(load, requests=changes.pop("requests"))
    return replace(plain, **changes)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as running:
        yield running


@pytest.mark.parametrize("seconds", [0.2, 1.0], ids=["own generator", "wrk if there"])
def test_answers_other_than_2xx_are_refused(lab: Lab, seconds: float) -> None:
    upstream = peers.start_event_upstream(lab)
    load = measure.drive(upstream, connections=2, seconds=seconds)
    assert load.requests > 0
    assert load.generator == ("wrk" if seconds >= 1 and which("wrk") else "perf/load.py")
    with pytest.raises(Refused, match="not every answer was 2xx"):
        measure.drive(upstream, connections=2, seconds=seconds, path="/refuse")


def test_a_paced_load_keeps_its_pace(lab: Lab) -> None:
    upstream = peers.start_event_upstream(lab)
    load = measure.drive(upstream, connections=4, seconds=0.5, rate=200)
    # About 100 are due, at random moments that are the same in every run; as fast as it goes would be thousands.
    assert 0 < load.requests < 140


def test_our_own_upstream_sends_a_long_answer_whole_and_then_another(lab: Lab) -> None:
    with peers.start_event_upstream(lab).connect() as connection:
        for _ in range(2):
            connection.send(request("/big", "none"))
            assert connection.read_head() == (200, BIG_BYTES)
            connection.skip(BIG_BYTES)


def test_a_server_that_ends_at_once_is_told_with_its_last_words(lab: Lab) -> None:
    with pytest.raises(Refused, match="it did not start: goodbye"):
        lab.start("it", ["sh", "-c", "echo goodbye; exit 3"])


def test_an_answer_of_somebody_else_is_refused(lab: Lab) -> None:
    redis_like = lab.start("stranger", [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "@{port}"])
    with pytest.raises(Refused, match="not the upstream's answer"):
        measure.check_answer(redis_like)


@pytest.mark.parametrize(
    ("values", "apart"), [([100], 0.0), ([100, 110], 0.1), ([100, 120, 110], 0.1428), ([100, 90, 100, 110], 0.0)]
)
def test_disagreement_is_between_odd_and_even_rounds(values: Sequence[float], apart: float) -> None:
    assert measure.disagreement(values) == pytest.approx(apart, abs=0.001)


def test_a_gateway_with_time_to_spare_is_not_the_bottleneck() -> None:
    assert measure.not_the_bottleneck("gateway", [seen()]) is None
    idle = measure.not_the_bottleneck("gateway", [seen(wanted=0.5)])
    assert idle == "gateway was not the bottleneck: it had work for 50% of the time, not 80%"
    busier = measure.not_the_bottleneck("gateway", [seen(shares={"gateway": 0.8, "upstream": 0.9})])
    assert busier == "gateway was not the bottleneck: it used 80% of a core, upstream 90%"


def test_overhead_doubts_what_it_could_not_vouch_for() -> None:
    gateway: Any = type("Named", (), {"name": "gateway"})
    assert overhead.find_doubts({"proxied 32": [seen(), seen()], "direct 32": [seen()]}, gateway) == []
    # One connection at a time never saturates anything, and does not claim to.
    assert overhead.find_doubts({"proxied 1": [seen(wanted=0.5)]}, gateway) == []
    (doubt,) = overhead.find_doubts({"proxied 32": [seen(wanted=0.5)]}, gateway)
    assert "not the bottleneck" in doubt
    (doubt,) = overhead.find_doubts({"direct 32": [seen(), seen(requests=15_000)]}, gateway)
    assert doubt == "direct on 32 connections: requests per second differ by 33% from round to round"
    (doubt,) = overhead.find_doubts({"proxied 1": [seen(), seen(cpu_us=50.0)]}, gateway)
    assert "CPU per request differs by 25%" in doubt


def test_what_is_doubted_is_measured_again_but_not_for_ever() -> None:
    made: list[tuple[str, int]] = []

    def again(doubts: Sequence[str], *, short: bool = False) -> list[str]:
        made.clear()
        return measure.in_turns("ab", lambda cell, at: made.append((cell, at)), lambda: doubts, rounds=2, short=short)

    assert again([]) == []
    assert made == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert again(["noisy"]) == ["noisy"]
    assert len(made) == 6
    assert again(["noisy"], short=True) == ["noisy"]
    assert len(made) == 4


def test_a_refusal_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    def script(_: Sequence[str] | None) -> None:
        raise Refused("after 6 rounds, the figures still differ")

    assert report.run(script) == 1
    assert capsys.readouterr() == ("", "no report: after 6 rounds, the figures still differ\n")


def test_compare_holds_ratios_against_goals_and_refuses_doubted_ones() -> None:
    cpu = {compare.WITH_REDIS: 30.0, peers.NGINX_LUA: 40.0}
    made = [
        figures.Figure("cpu", "CPU", 1, cpu, {}, {}),
        figures.Figure("start", "start", 0, {compare.WITH_REDIS: 500.0}, {}, {}),
        figures.Figure("rate", "req/s", 0, {compare.WITH_REDIS: 30_000.0}, {compare.WITH_REDIS: ["noisy"]}, {}),
    ]
    assert [(row[1], row[4]) for row in compare.judge(made)] == [
        ("0.75", "must"),
        ("refused", ""),
        ("500", "missed"),
    ]


def test_compare_refuses_single_values_and_only_those_asked_for() -> None:
    values = figures._Values("cpu", "CPU", "CPU per request")
    values.seen |= {"gateway, Redis": [30.0, 31.0], "HAProxy": [20.0, 30.0]}
    made = [values.figure()]
    assert made[0].values == {"gateway, Redis": 30.5, "HAProxy": 25.0}
    (doubt,) = compare.find_doubts(made, compare.read_options([]))
    assert doubt == "cpu: HAProxy: CPU per request of HAProxy differs by 50% from round to round"
    assert compare.find_doubts(made, compare.read_options(["--only", "p50"])) == []


def test_what_is_added_has_to_be_more_than_nothing() -> None:
    values = figures._Values("p50", "added p50", "p50", is_added=True)
    values.seen |= {figures.DIRECT: [50.0], "nginx": [49.0], "HAProxy": [80.0]}
    made = values.figure()
    assert made.values == {"nginx": -1.0, "HAProxy": 30.0}
    assert dict(made.doubts) == {"nginx": ["not slower than direct, so it is noise"]}


def test_peers_that_are_not_installed_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: str) -> None:
        return None

    monkeypatch.setattr(peers, "which", nothing)
    lacking = peers.missing()
    assert (lacking[peers.NGINX], lacking[peers.HAPROXY]) == ("nginx", "haproxy")
    assert "redis-server" in lacking[peers.NGINX_LUA]
    with Lab() as lab:
        assert peers.peers(lab, None) == {}


def test_processes_are_measured_with_their_children(lab: Lab) -> None:
    upstream: Server = peers.start_upstream(lab)
    with upstream.connect() as connection:
        # The kernel accepts for nginx before its worker is there; an answer says that it is.
        connection.send(request("/", upstream.token))
        connection.read()
    pids = upstream.pids
    assert len(pids) == (2 if which("nginx") else 1)
    assert upstream.rss_bytes() > 1_000_000
    upstream.stop()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
