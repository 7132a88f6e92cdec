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

from perf import compare, figures, measure, memory, overhead, peers, report
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

pytestmark = pytest.mark.alone  # on a busy machine Redis misses STORE_TIMEOUT, and there is no report

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
    markdown = (out / "compare.md").read_text(encoding="utf-8")
    assert [row[""] for row in rows(markdown, "|  ")] == [figure["label"] for figure in content["figures"]]
    # wrk cannot run for less than a second.
    assert markdown.endswith("\nLoad: perf/load.py.\n")
    assert re.search(r"req/s, .*; perf/load.py took \d+% of a core", runs["compare"].stderr)


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
    with pytest.raises(Refused, match=r"No module named 'no_such_module' \(pip install '\.\[perf\]'\)"):
        lab.start("it", [sys.executable, "-c", "import no_such_module"])


def test_scripts_load_without_any_package_so_that_they_can_say_what_is_missing() -> None:
    # -S: as if nothing was installed.
    command = [sys.executable, "-S", "-c", "import perf.overhead, perf.compare, perf.memory, perf.scaling"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


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


def test_overhead_leaves_out_what_is_unsteady_and_only_that() -> None:
    slower = {float(point): 200.0 + point for point in PERCENTILES}
    slow_tail = {**slower, 99.0: 350.0}
    cells = {f"{way} {count}": [seen(), seen()] for count in overhead.CONNECTIONS for way in ("direct", "proxied")}
    for count, tail in ((1, slower), (32, slow_tail), (128, slower)):
        rounds = [replace(seen(), load=replace(seen().load, latencies_us=values)) for values in (slower, tail)]
        cells[f"proxied {count}"] = rounds
    assert overhead.find_unsteady(cells) == ["added p99 on 32 connections: differs by 51% from round to round"]
    assert [overhead.shown(cells, 32, point) for point in overhead.POINTS] == ["100", "100", "unsteady"]
    assert (overhead.shown(cells, 1, 99), overhead.shown(cells, 1, 99, "{:+,.0f} µs")) == ("100", "+100 µs")


def test_overhead_names_what_it_did_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "which", lambda program: None if program != "nginx" else "/usr/sbin/nginx")
    assert overhead.missing(None) == ["wrk", "redis-server"]
    assert overhead.missing("embedded") == ["wrk"]


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


def test_a_steady_tail_is_refused_where_what_is_taken_off_it_is_not() -> None:
    values = figures._Values("p99", "added p99", "p99")
    values.seen |= {"nginx": [500.0, 510.0], "HAProxy": [500.0, 510.0]}
    made = values.figure(base={"nginx": [100.0, 105.0], "HAProxy": [100.0, 400.0]})
    assert dict(made.doubts) == {"HAProxy": ["what HAProxy adds differs by 264% from round to round"]}


@pytest.mark.parametrize("wanted", [0.95, 0.5])
def test_half_of_what_did_not_saturate_the_gateway_is_not_half_of_saturation(lab: Lab, wanted: float) -> None:
    name = compare.WITH_REDIS
    field = figures.Field(lab, None, {name: lambda upstream: upstream})
    field.saturated[name].append(seen(wanted=wanted, shares={name: 0.8, "wrk": 0.3}))
    paced = figures.Paced(field, 1.0)
    paced._p99.seen[name], paced._direct[name], paced._kept[name], paced._busy[name] = [200.0], [90.0], [1.0], [0.3]
    (made,) = paced.figures()
    idle = f"{name} was not the bottleneck: it had work for 50% of the time, not 80%"
    assert dict(made.doubts) == ({} if wanted > measure.SATURATED else {name: [idle]})


@pytest.mark.parametrize(
    ("each_time", "refusal"),
    [(1_000_000, "gateway, embedded: memory grew by 57.4% within 2,000 requests"), (10_000, None)],
)
def test_memory_that_goes_on_growing_is_refused(
    each_time: int, refusal: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = iter(range(30_000_000, 90_000_000, each_time))
    gateway: Any = type("Grown", (), {"rss_bytes": lambda _: next(sizes)})()
    monkeypatch.setattr(memory, "drive", lambda *_, **__: replace(seen().load, requests=100))
    told: list[str] = []
    last, growth = memory.many_requests(gateway, 2000, 0.0, lambda what, value: told.append(f"{what}: {value}"))
    assert last == 30_000_000 + 19 * each_time
    assert told == [f"after 2,000 requests: {last / 1e6:.1f} MB"]
    if refusal is None:
        memory.check_growth(memory.Found("embedded", growth=growth), 2000)
    else:
        with pytest.raises(Refused, match=re.escape(refusal)):
            memory.check_growth(memory.Found("embedded", growth=growth), 2000)


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
