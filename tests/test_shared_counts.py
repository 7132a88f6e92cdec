"""The counts of several workers, in files: whoever is asked tells the sum, and what a dead one counted stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import TokenMissing
from gateway.metrics import Metrics
from gateway.shared_counts import SharedCounts

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


class Worker:
    def __init__(self, directory: Path | None) -> None:
        self.metrics = Metrics()
        self.counts = SharedCounts(self.metrics, directory)
        self.counts.open()

    def passes(self, times: int, *, in_flight: int = 0) -> None:
        usage = self.metrics.target("api")
        tally = usage.tallies.get("t") or usage.open("t", {})
        tally.begun += times + in_flight
        tally.passed += [0] * times
        tally.own_s += [0.0001] * times
        tally.upstream_s += [0.25] * times

    def dies(self) -> None:
        """End as `kill -9` ends it: the kernel drops the lock, and nothing is written."""
        self.counts.write = lambda: None  # type: ignore[method-assign]  # see above
        self.counts.close()


def told(worker: Worker) -> tuple[int, int]:
    """Return how many requests have passed, and how many are in flight."""
    api = worker.counts.all()["api"]
    return api["counts"]["passed"], api["in_flight"]


def test_each_worker_tells_the_sum(tmp_path: Path) -> None:
    workers = [Worker(tmp_path) for _ in range(3)]
    for number, worker in enumerate(workers, 1):
        worker.passes(number, in_flight=1)
    for worker in workers:
        worker.counts.write()  # as is done once a second
    assert [told(worker) for worker in workers] == [(6, 3)] * 3
    api = workers[0].counts.all()["api"]
    assert sum(api["own"]) == sum(api["upstream"]) == api["statuses"][2] == 6
    assert abs(api["upstream_s"] - 1.5) < 1e-9


def test_what_a_worker_counted_just_now_is_in_its_own_answer(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    worker.passes(1)
    assert told(worker) == (1, 0)
    worker.passes(1)
    assert told(worker) == (2, 0)


def test_a_dead_workers_counts_stay_but_nothing_of_it_is_in_flight(tmp_path: Path) -> None:
    stays, dies = Worker(tmp_path), Worker(tmp_path)
    stays.passes(1)
    dies.passes(5, in_flight=2)
    dies.counts.write()
    assert told(stays) == (6, 2)
    dies.dies()
    assert told(stays) == (6, 0)
    successor = Worker(tmp_path)
    assert told(stays) == told(successor) == (6, 0)
    successor.passes(1)
    assert told(successor) == (7, 0)


def test_workers_that_come_and_go_leave_no_more_files_than_there_were_at_once(tmp_path: Path) -> None:
    for _ in range(20):
        worker = Worker(tmp_path)
        worker.passes(1)
        worker.counts.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert told(Worker(tmp_path)) == (20, 0)


def test_alone_there_are_no_files(tmp_path: Path) -> None:
    worker = Worker(None)
    worker.passes(1)
    worker.metrics.nowhere.strangers.on_refused(TokenMissing())
    assert told(worker) == (1, 0)
    assert worker.counts.all()[""]["counts"] == {"refused:token_missing": 1, "requests": 1}
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_counts_for_nothing(tmp_path: Path) -> None:
    for number, text in enumerate(("", "{", "[]", '{"api": {}}', '{"api": {"own": [1], "upstream": [1]}}')):
        (tmp_path / f"worker-{number + 7}.json").write_text(text)
    worker = Worker(tmp_path)
    worker.passes(1)
    assert told(worker) == (1, 0)


def test_a_directory_that_is_not_there_costs_the_sum_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker(tmp_path / "missing")
    worker.passes(1)
    assert told(worker) == (1, 0)
    assert "/metrics has the counts of this process alone" in caplog.text


def test_a_directory_that_vanishes_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "shared"
    directory.mkdir()
    worker = Worker(directory)
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    worker.counts.write()
    worker.counts.write()
    worker.passes(1)
    assert told(worker) == (1, 0)
    assert caplog.text.count("the other workers do not know this one's counts") == 1
