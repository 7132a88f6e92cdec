"""What BEHAVIOUR.md promises is held: each line names a test that exists, and says what its cases say."""

from __future__ import annotations

import ast
import functools
import re
from typing import TYPE_CHECKING

import pytest

from tests.conformance import answers
from tests.conformance.accepted import TAKEN as TAKEN_REQUESTS
from tests.conformance.contract import BEHAVIOUR, ROOT, Promise, over_strict, promises
from tests.conformance.refused import REFUSED
from tests.conformance.test_conformance import (
    BAD_ANSWER_CASES,
    CODES,
    REFUSED_CASES,
    TAKEN_ANSWER_CASES,
    TAKEN_CASES,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PROMISES = promises()
TABLES = {
    "test_refused": set(REFUSED_CASES),
    "test_taken": set(TAKEN_CASES),
    "test_bad_answer": set(BAD_ANSWER_CASES),
    "test_taken_answer": set(TAKEN_ANSWER_CASES),
}


@functools.cache
def functions_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def cases_of(test: str) -> dict[str, Promise]:
    """The promises that a table-driven test holds, by case."""
    named = [(promise.test, promise) for promise in PROMISES]
    return {case: promise for (_, name, case), promise in named if name == test and case is not None}


def groups(cases: Iterable[str]) -> set[str]:
    return {case.partition("/")[0] for case in cases}


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.what[:60])
def test_each_line_names_a_test_that_exists(promise: Promise) -> None:
    file, test, case = promise.test
    assert file.is_file(), file
    assert test.startswith("test_")
    assert test in functions_in(file)
    assert test not in TABLES or case in TABLES[test]


def test_every_test_that_is_named_anywhere_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)", BEHAVIOUR.read_text(encoding="utf-8"))
    assert [f"{path}::{test}" for path, test in named if test not in functions_in(ROOT / path)] == []


@pytest.mark.parametrize("test", TABLES)
def test_each_group_of_cases_is_promised(test: str) -> None:
    assert groups(cases_of(test)) == groups(TABLES[test])


def test_what_is_promised_of_requests_is_what_the_cases_have() -> None:
    by_name = {group.name: group for group in REFUSED}
    for case, promise in cases_of("test_refused").items():
        group = by_name[case.partition("/")[0]]
        assert promise.clause == group.clause, case
        end = "closes" if group.closes else "stays open"
        assert promise.decision.startswith(f"{group.status} `{CODES[group.status]}`, {end}"), case
        assert ("midway" in promise.decision) is group.late, case


def test_what_is_promised_of_answers_is_what_the_cases_have() -> None:
    by_name = {group.name: group for group in answers.BAD}
    for case, promise in cases_of("test_bad_answer").items():
        group = by_name[case.partition("/")[0]]
        assert promise.clause == group.clause, case
        assert promise.decision.startswith("a reset" if group.late and group.ends else "502"), case
        assert ("reset" in promise.decision) is group.late, case
        assert (f"`{group.code}`" in promise.decision) is (group.code != "upstream_protocol"), case


def test_what_is_promised_of_odd_requests_has_the_clauses_of_the_cases() -> None:
    for group, (clause, _) in TAKEN_REQUESTS.items():
        clauses = {line.clause for case, line in cases_of("test_taken").items() if case.startswith(f"{group}/")}
        assert clause in clauses, group


def test_a_line_with_no_test_or_with_two_is_found_out() -> None:
    one = "`tests/test_behaviour.py::test_each_line_names_a_test_that_exists`"
    Promise("", "", "", one).test  # noqa: B018 - does not raise
    for wrong in ("", f"{one} {one}", one.replace("::", ":"), one.strip("`")):
        with pytest.raises(AssertionError):
            Promise("", "", "", wrong).test  # noqa: B018 - raises


def test_the_over_strict_cases_are_read() -> None:
    assert over_strict()
    assert all("/" in case for case in over_strict())
