"""The soak: a minute of faults finds nothing wrong, and what is planted is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.kit.programs import program
from tools import soak

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.long


def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run a soak that leaves the machine to other tests: it waits for faults to pass most of the time."""
    program("redis-server")
    command = [sys.executable, str(Path(soak.__file__)), "--json", "--clients", "16", *arguments]
    done = subprocess.run(["nice", "-n", "10", *command], capture_output=True, text=True, timeout=400, check=False)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def test_a_minute_of_faults_breaks_nothing_and_leaves_nothing(
    record_property: Callable[[str, object], None],
) -> None:
    status, found, said = run("--seconds", "60", "--seed", "7", "--workers", "2")
    assert (status, found.get("violations")) == (0, {}), (found, said)
    record_property(
        "summary", f"soak: {found['requests']:,} requests, {found['outcomes']}, {sum(found['faults'].values())} faults"
    )
    assert found["outcomes"]["whole"] > 500, "hardly anything got through"
    assert {what.split()[0] for what in found["faults"]} >= {"upstream", "Redis", "worker", "workers"}


@pytest.mark.parametrize(
    ("planted", "violations"),
    [
        ("leak", {"left: descriptors"}),
        ("swallow", {"a wrong answer"}),
        ("twice", {"a POST sent twice"}),
    ],
)
def test_what_is_planted_is_found(planted: str, violations: set[str]) -> None:
    arguments = ("--seconds", "8", "--seed", "1", "--module", "tests.e2e.planted", "--set", f"PLANTED={planted}")
    status, found, said = run(*arguments)
    assert status == 1, said
    # A byte that is swallowed shows on the way up as well.
    assert violations <= found["violations"].keys() <= violations | {"spoilt on its way up"}, found


def test_a_time_that_is_no_time_is_bad_usage() -> None:
    status, _, said = run("--seconds", "4")
    assert status == 2
    assert "--seconds takes 5 or more" in said
