"""The cases of perf/: each does what it says, and the scripts that measure them work. No test looks at a figure."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from perf import counts, messages, micro
from perf.bench import CheckError
from perf.cases import CASES, Case, chosen
from perf.counts import Count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from perf.bench import Bench

ROOT = Path(__file__).parent.parent.parent
TOKEN_SEEN = next(case for case in CASES if case.name == "token-seen")


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def need(*, found: bool, reason: str) -> None:
    """Skip the test unless what it needs was found; or fail it, where nothing may be skipped."""
    if not found:
        if os.environ.get("GATEWAY_TESTS_NO_SKIP") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


def expect_another_start(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the cases expect what the gateway does not do."""
    right = getattr(messages, name)
    monkeypatch.setattr(messages, name, lambda number: right(number)._replace(start=b"another"))


def once(name: str) -> None:
    (case,) = [case for case in CASES if case.name == name]
    one = case.set_up()
    try:
        one.once()
    finally:
        one.close()


# --- cases ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    one = request.param.set_up()
    yield one
    one.close()


def test_every_case_does_what_it_says_more_than_once(bench: Bench) -> None:
    bench.once()
    bench.once()


def all_bytes(inputs: Any) -> Iterator[bytes]:
    if isinstance(inputs, bytes):
        yield inputs
    elif isinstance(inputs, list | tuple):
        for one in inputs:
            yield from all_bytes(one)


@pytest.mark.parametrize(
    "name", ["parse-request", "parse-request-h11", "parse-answer", "token-unseen", "exchange-redis"]
)
def test_no_input_comes_twice(name: str) -> None:
    (case,) = [case for case in CASES if case.name == name]
    one = case.set_up()
    seen = [data for _ in range(2) for data in all_bytes(one.fresh())]
    one.close()
    assert len(seen) >= 2 * case.operations
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("name", ["parse-request", "write-request", "exchange-memory", "exchange-redis-32"])
def test_another_request_upstream_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_another_start(monkeypatch, "sent_upstream")
    with pytest.raises(CheckError, match="what goes upstream is "):
        once(name)


@pytest.mark.parametrize("name", ["write-answer", "exchange-memory", "exchange-redis-32"])
def test_another_answer_to_the_client_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_another_start(monkeypatch, "sent_to_client")
    with pytest.raises(CheckError, match=r"what goes to the clients? is "):
        once(name)


def test_messages_are_cut_where_they_end() -> None:
    stream = messages.answer(1_000_000) + b"HTTP/1.1 204 No Content\r\nA: b\r\n\r\n" + messages.answer(1_000_001)
    first, second, third = messages.split(stream)
    assert first.start == b"HTTP/1.1 200 OK"
    assert second == messages.Message(b"HTTP/1.1 204 No Content", frozenset([b"A: b"]), b"")
    assert json.loads(third.body)["id"] == "chatcmpl-1000001"
    with pytest.raises(CheckError, match="ends within a head"):
        messages.split(stream[: stream.rindex(b"\r\n\r\n")])


def test_cases_are_chosen_by_name_or_its_beginning() -> None:
    assert chosen([]) == list(CASES)
    assert [case.name for case in chosen(["exchange-redis", "limit-"])] == ["limit-1", "limit-3", "exchange-redis"]
    assert [case.name for case in chosen(["tok"])] == ["token-seen", "token-unseen"]
    with pytest.raises(ValueError, match="there is no case 'nothing'"):
        chosen(["limit-1", "nothing"])


# --- micro.py --------------------------------------------------------------------------------------------------------


def test_the_short_mode_checks_every_case() -> None:
    result = run("-m", "perf.micro", "--short")
    assert (result.returncode, result.stderr) == (0, "")
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [[case.name, "ok:"] for case in CASES]


def test_the_list_names_every_case_wherever_it_is_run(tmp_path: Path) -> None:
    result = run(str(ROOT / "perf" / "micro.py"), "--list", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert [line.split(maxsplit=1) for line in result.stdout.splitlines()] == [[case.name, case.what] for case in CASES]


def test_an_unknown_case_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert counts.main(["nothing"]) == 2
    assert capsys.readouterr().err == "counts: there is no case 'nothing'; micro.py --list names them\n"
    with pytest.raises(SystemExit, match="2"):
        micro.main(["--short", "nothing"])
    assert capsys.readouterr().err == "micro: there is no case 'nothing'; micro.py --list names them\n"


def test_a_case_that_does_not_do_what_it_says_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expect_another_start(monkeypatch, "sent_upstream")
    assert micro.main(["--short", "write-request"]) == 1
    assert capsys.readouterr().err.startswith("micro: write-request: what goes upstream is ")


def test_a_value_is_the_time_of_a_case_without_its_twin() -> None:
    assert micro.time_rounds(1, TOKEN_SEEN) > 0


def test_an_unsteady_value_is_left_out() -> None:
    lines = micro.table([(TOKEN_SEEN, 2e-6, 1e-7), (CASES[0], 3e-6, 1e-6)])
    assert lines[1].split()[:3] == ["token-seen", "2.00", "0.10"]
    assert lines[2].split()[:3] == ["parse-request", "unsteady", "1.00"]
    assert len(lines) == 4


def test_without_pyperf_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "pyperf", None)
    assert micro.main(["token-seen"]) == 1
    assert capsys.readouterr() == ("", "micro: pyperf is not installed: pip install 'rate-limiting-gateway[perf]'\n")


def test_pyperf_measures_the_chosen_cases(tmp_path: Path) -> None:
    need(found=importlib.util.find_spec("pyperf") is not None, reason="pyperf is not installed (PyPI package: pyperf)")
    output = tmp_path / "micro.json"
    result = run(str(ROOT / "perf" / "micro.py"), "--debug-single-value", "-o", str(output), "limit", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert [line.split()[0] for line in result.stdout.splitlines()[-2:]] == ["limit-1", "limit-3"]
    assert len(json.loads(output.read_text(encoding="utf-8"))["benchmarks"]) == 2


# --- counts.py -------------------------------------------------------------------------------------------------------


def test_without_valgrind_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert counts.main(["--short"]) == 1
    assert capsys.readouterr() == ("", "counts: valgrind: not found; Debian's package valgrind has it\n")


def test_instructions_are_counted_and_compared(tmp_path: Path) -> None:
    need(found=shutil.which("valgrind") is not None, reason="valgrind is not installed (Debian package: valgrind)")
    before, now = tmp_path / "before.json", tmp_path / "now.json"
    before.write_text(json.dumps({"cases": {counts.SHORT: {"instructions": 1}}}), encoding="utf-8")
    result = run("perf/counts.py", "--short", "-o", str(now), "--compare", str(before))
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout.splitlines()[-1].startswith(counts.SHORT)
    assert result.stdout.endswith("worse by more than 2.0%\n")
    report = json.loads(now.read_text(encoding="utf-8"))
    counted = report["cases"][counts.SHORT]
    # An operation is some dozens of bytecodes at the least, and its twin is not in it.
    assert counted["instructions"] > 500
    assert 0 < counted["twin"] < counted["instructions"]
    assert report["setting"]["valgrind"].startswith("valgrind-")


def test_a_comparison_finds_what_grew() -> None:
    before = {
        "cases": {"grew": {"instructions": 100}, "within": {"instructions": 100}, "shrank": {"instructions": 100}}
    }
    now = {"grew": 103.0, "within": 101.0, "shrank": 50.0, "new": 7.0}
    lines, worse = counts.compare(before, {name: Count(value, 0.0, 1.0) for name, value in now.items()}, 0.02)
    assert worse
    assert [line.split()[0] for line in lines[1:] if "worse" in line] == ["grew"]
    assert [line.split()[3] for line in lines[1:]] == ["1.030", "1.010", "0.500", "new"]
    del now["grew"]
    assert not counts.compare(before, {name: Count(value, 0.0, 1.0) for name, value in now.items()}, 0.02)[1]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"cases": {"limit-1": 3}}', '{"cases": {"limit-1": {"instructions": 0}}}']
)
def test_a_file_of_something_else_is_not_compared(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.json"
    file.write_text(content, encoding="utf-8")
    assert counts.main(["--compare", str(file), "limit"]) == 2
    assert capsys.readouterr().err == f"counts: {file} is not what `counts -o` writes\n"


def test_a_table_has_the_cases_that_were_counted() -> None:
    other = Case("other", "not counted", TOKEN_SEEN.set_up, 1)
    lines = counts.table([TOKEN_SEEN, other], {"token-seen": Count(1792.6, 0.00114, 148.0)})
    assert [line.split()[:4] for line in lines[1:]] == [["token-seen", "1,793", "0.11%", "148"]]
