"""The fuzzer finds nothing in what there is, and finds what is planted."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from ast import literal_eval
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from gateway.http1 import template, writer
from gateway.http1.chunked import ChunkedBody
from gateway.http1.parser import AnswerParser, RequestParser
from tools import fuzz, fuzz_inputs, fuzz_targets
from tools.fuzz_readers import Finding, leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.http1.message import AnswerHead, RequestHead

TOOL = Path(fuzz.__file__)


@pytest.mark.parametrize("target", fuzz.NAMES)
def test_nothing_is_found(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = fuzz.main([target, "--engine", "random", "--runs", "1000", "--seed", "1", "--found", str(tmp_path)])
    said = capsys.readouterr().out
    assert (status, list(tmp_path.iterdir())) == (0, []), said
    assert f"{target}: engine random, seed 1" in said
    match = re.search(r"1000 executions in [0-9]+ s, [0-9]+ a second; ([0-9]+) messages were taken", said)
    assert match is not None, said
    assert int(match[1]) > 250, "hardly anything gets past the first byte"


def test_the_bounds_are_as_before_afterwards(tmp_path: Path) -> None:
    before = (template.HEADS_A_TEMPLATE, template.MAX_GAPS)
    fuzz.main(["heads", "--engine", "random", "--runs", "1", "--found", str(tmp_path)])
    assert before == (template.HEADS_A_TEMPLATE, template.MAX_GAPS)


# --- what is planted -------------------------------------------------------------------------------------------------


class Repairing(RequestParser):
    """Takes white space in front of a colon, as nobody should (RFC 9112 §5.1)."""

    def parse(self, block: bytes) -> RequestHead:
        return super().parse(re.sub(rb"[ \t]+:", b":", block))


class Forgetful(AnswerParser):
    """Takes a head for the one before it, if it begins in the same way."""

    def __init__(self) -> None:
        super().__init__()
        self.last = b""

    def parse(self, block: bytes) -> AnswerHead:
        same = self.last[:60] == block[:60] and len(block) > 60
        self.last = self.last if same else block
        return super().parse(self.last)


class Impatient(ChunkedBody):
    """Loses a line break that comes in two pieces."""

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        return super().feed(b"" if data == b"\r" else data)


def unclosed(*arguments: Any, **named: Any) -> bytes:
    return writer.answer_head(*arguments, **named).replace(b"\r\nConnection: close", b"")


@pytest.mark.parametrize(
    ("target", "name", "planted"),
    [
        ("heads", "RequestParser", Repairing),
        ("answers", "AnswerParser", Forgetful),
        ("answers", "writer", SimpleNamespace(**{**vars(writer), "answer_head": unclosed})),
        ("chunks", "ChunkedBody", Impatient),
    ],
)
def test_what_is_planted_is_found(
    target: str,
    name: str,
    planted: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fuzz_targets, name, planted)
    arguments = [target, "--engine", "random", "--runs", "5000", "--seed", "1", "--found", str(tmp_path)]
    assert fuzz.main(arguments) == 1
    said = capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    match = re.search(r"^input: (b['\"].*)$", said, re.MULTILINE)
    assert match is not None
    assert literal_eval(match[1]) == path.read_bytes()
    assert f"again: python tools/fuzz.py {target} --input {path}\n" in said
    assert fuzz.main([target, "--input", str(path)]) == 1
    assert "Finding" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    assert fuzz.main([target, "--input", str(path)]) == 0


def test_an_error_that_is_no_refusal_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(RequestParser):
        def parse(self, block: bytes) -> RequestHead:
            return super().parse(block.decode("ascii").encode())

    monkeypatch.setattr(fuzz_targets, "RequestParser", Failing)
    assert fuzz.main(["heads", "--engine", "random", "--runs", "5000", "--seed", "1", "--found", str(tmp_path)]) == 1


def test_a_finding_is_made_smaller() -> None:
    def target(data: bytes) -> int:
        if b"ab" in data and b"c" in data:
            raise Finding("abc")
        return 0

    assert fuzz.reduce(lambda: target, b"xxxabxxxxxxxxcxx" * 50, Finding) in {b"abc", b"cab"}


@pytest.mark.parametrize(
    ("path", "leads_out"),
    [
        (b"/a/../b", False),
        (b"/a/../../b", True),
        (b"/%2e%2e", True),
        (b"/a%2f..%5c..", True),
        (b"/a%2fb/../..", True),
        (b"/a%2f..%2fb", False),
        (b"/..;x/b", True),
        (b"/a//../..", True),
        (b"/a?/../..", False),
    ],
)
def test_the_fuzzers_own_judge_of_paths(path: bytes, *, leads_out: bool) -> None:
    assert leaves(path) is leads_out


# --- the command -----------------------------------------------------------------------------------------------------


def test_all_targets_run_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "one").write_bytes(b"GET / HTTP/1.1\r\nHost: h")
    (tmp_path / "seeds" / "more.json").write_text('[{"raw": "GET / HTTP/1.1\\r\\nHost: \\u00e4"}]', encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, TOOL, "all", "--engine", "random", "--runs", "40", "--seeds", "seeds"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.findall(r"^(\w+): 40 executions", ran.stdout, re.MULTILINE) == list(fuzz.NAMES)
    assert not list(tmp_path.glob("found-*"))


def test_without_atheris_it_goes_on_or_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    assert fuzz.main(["chunks", "--runs", "5", "--found", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("atheris is not installed (pip install atheris): going on with --engine random")
    assert fuzz.main(["chunks", "--engine", "atheris", "--runs", "5"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "atheris is not installed: pip install atheris, or --engine random\n")


class FakeAtheris:
    """Calls as libFuzzer does: with the corpus first, and then with what the mutator makes of it."""

    def __init__(self) -> None:
        self.arguments: list[str] = []

    def instrument_imports(self, *, include: Sequence[str]) -> pytest.MonkeyPatch.context:  # type: ignore[valid-type]
        assert include == ["gateway"]
        return pytest.MonkeyPatch.context()

    def Setup(  # noqa: N802
        self, arguments: list[str], once: Callable[[bytes], None], *, custom_mutator: Callable[[bytes, int, int], bytes]
    ) -> list[str]:
        self.arguments, self._once, self._mutate = arguments, once, custom_mutator
        return arguments

    def Fuzz(self) -> None:  # noqa: N802
        corpus = Path(self.arguments[-1])
        seeds = [path.read_bytes() for path in sorted(corpus.iterdir())]
        for data in seeds:
            self._once(data)
        for number in range(10_000):
            self._once(self._mutate(seeds[number % len(seeds)], 100, number))

    def Mutate(self, data: bytes, max_size: int) -> bytes:  # noqa: N802
        return data[:max_size]


@pytest.mark.parametrize("planted", [False, True])
def test_with_atheris_the_process_ends_with_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, planted: bool
) -> None:
    fake = FakeAtheris()
    monkeypatch.setitem(sys.modules, "atheris", fake)
    monkeypatch.setattr(os, "_exit", sys.exit)
    if planted:
        monkeypatch.setattr(fuzz_targets, "ChunkedBody", Impatient)
    with pytest.raises(SystemExit) as ended:
        fuzz.main(["chunks", "--runs", "900", "--found", str(tmp_path)])
    assert ended.value.code == (1 if planted else 0)
    said = capsys.readouterr().out
    assert "chunks: engine atheris" in said
    assert planted or "chunks: 900 executions" in said
    assert not Path(fake.arguments[-1]).exists()


def test_an_input_is_never_longer_than_the_engines_take() -> None:
    dice = random.Random(1)
    data = b"x" * fuzz_inputs.MAX_INPUT_BYTES
    for _ in range(200):
        data = fuzz_inputs.mutate(dice, data, data, fuzz_inputs.WORDS["heads"])
        assert len(data) <= fuzz_inputs.MAX_INPUT_BYTES
