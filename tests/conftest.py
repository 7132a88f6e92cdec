"""At the end of a run, summaries that tests recorded are shown, and skipped tests are named.

With `GATEWAY_TESTS_NO_SKIP=1` a skipped test fails the run.

Each process reads all nine thousand tests, which the collector of cycles would look through again and again: a third of
the CPU time of small tests. So it begins behind them, and more rarely.
"""

from __future__ import annotations

import gc
import os
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

pytest_plugins = ["tests.kit.printed"]

PROGRAMS = {"e2e", "perf", "stores", "tests"}
"""Where the tests are that start programs."""

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter


def pytest_configure() -> None:
    gc.set_threshold(50_000, 20, 50)
    # Else an example that gets no processor for 200 ms fails its test.
    settings.register_profile("on any machine", deadline=None)
    settings.load_profile("on any machine")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As a script's shell has it for what it runs with '&': all that is started here would ignore it, too, as it
        # should. What is caught here is not, and this process goes on as if it ignored it.
        signal.signal(signal.SIGINT, lambda *_: None)


def pytest_collection_finish() -> None:
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for programs comes before what only computes: so no process has much left when others are done."""
    items.sort(key=lambda item: (item.get_closest_marker("long") is None, item.path.parent.name not in PROGRAMS))


def skipped_tests(reporter: TerminalReporter) -> list[str]:
    return sorted({report.nodeid for report in reporter.stats.get("skipped", [])})


def summaries(reporter: TerminalReporter) -> list[str]:
    """What tests have recorded as their property `summary`, whether they passed or not."""
    reports = [*reporter.stats.get("passed", []), *reporter.stats.get("failed", [])]
    return [str(value) for report in reports for name, value in report.user_properties if name == "summary"]


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    for line in summaries(terminalreporter):
        terminalreporter.write_line(line)
    for name in skipped_tests(terminalreporter):
        terminalreporter.write_line(f"skipped: {name}", yellow=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    forbidden = os.environ.get("GATEWAY_TESTS_NO_SKIP") == "1"
    if forbidden and reporter is not None and skipped_tests(reporter) and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line("\nGATEWAY_TESTS_NO_SKIP=1, and tests were skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
