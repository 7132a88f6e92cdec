"""Which workers there are, whatever happens to them."""

from __future__ import annotations

import signal

import pytest

from gateway.supervisor.crew import CALM_S, LONGEST_WAIT_S, QUIT_TIMEOUT_S, Backoff, Supervisor
from gateway.supervisor.plan import START_TIMEOUT_S


class Machine:
    """What a supervisor has to do with: processes that are numbers, and a clock that is told the time."""

    def __init__(self) -> None:
        self.time_s = 1000.0
        self.started: list[tuple[int, int]] = []
        """Number and index of each worker that was started."""
        self.signals: list[tuple[int, int]] = []
        self.lines: list[str] = []
        self.is_listening = True
        self.renewed = 0
        self.fails = False
        self._next = 100

    def now_s(self) -> float:
        return self.time_s

    def spawn(self, index: int) -> int:
        if self.fails:
            raise OSError("no more processes")
        self._next += 1
        self.started.append((self._next, index))
        return self._next

    def kill(self, pid: int, number: int) -> None:
        self.signals.append((pid, number))

    def stop_listening(self) -> None:
        self.is_listening = False

    def renew(self) -> None:
        self.renewed += 1

    def log(self, level: str, text: str) -> None:
        self.lines.append(f"{level}: {text}")

    def sent(self) -> list[tuple[int, int]]:
        """Take the signals that were sent since this was asked last."""
        signals, self.signals = self.signals, []
        return signals

    def new(self) -> list[int]:
        """Take the workers that were started since this was asked last."""
        started, self.started = self.started, []
        return [pid for pid, _ in started]


@pytest.fixture
def machine() -> Machine:
    return Machine()


def serving(machine: Machine, count: int) -> tuple[Supervisor, list[int]]:
    """A supervisor whose workers all serve."""
    supervisor = Supervisor(machine)
    supervisor.begin()
    (first,) = machine.new()
    supervisor.on_ready(first, count)
    others = machine.new()
    for pid in others:
        supervisor.on_ready(pid, count)
    machine.lines.clear()
    return supervisor, [first, *others]


def pass_time(machine: Machine, supervisor: Supervisor, seconds: float) -> None:
    """Let time pass; nothing is done before it is due."""
    assert supervisor.wake_at_s >= machine.time_s
    machine.time_s += seconds
    supervisor.on_time()


# --- starting ---------------------------------------------------------------------------------------------------------


def test_the_others_start_when_the_first_serves_and_has_said_how_many_there_are_to_be(machine: Machine) -> None:
    supervisor = Supervisor(machine)
    supervisor.begin()
    assert machine.started == [(101, 0)]
    supervisor.on_ready(101, 3)
    assert machine.started == [(101, 0), (102, 1), (103, 2)]
    supervisor.on_ready(103, 3)
    assert not machine.lines
    supervisor.on_ready(102, 3)
    assert machine.lines == ["info: 3 workers serve"]
    assert (machine.sent(), machine.renewed, supervisor.is_over) == ([], 0, False)


@pytest.mark.parametrize(("code", "exit_code", "lines"), [(2, 2, 0), (1, 1, 0), (0, 1, 0), (-9, 1, 1)])
def test_a_first_worker_that_does_not_come_to_serving_is_the_end_with_its_code(
    machine: Machine, code: int, exit_code: int, lines: int
) -> None:
    supervisor = Supervisor(machine)
    supervisor.begin()
    supervisor.on_end(101, code)
    assert (supervisor.is_over, supervisor.exit_code, machine.is_listening) == (True, exit_code, False)
    # What ended by itself has said why.
    assert len(machine.lines) == lines


def test_one_of_the_others_that_does_not_come_to_serving_is_the_end_of_all(machine: Machine) -> None:
    supervisor = Supervisor(machine)
    supervisor.begin()
    supervisor.on_ready(101, 3)
    supervisor.on_end(102, 1)
    assert machine.sent() == [(101, signal.SIGTERM), (103, signal.SIGTERM)]
    assert not supervisor.is_over
    supervisor.on_end(101, 0)
    supervisor.on_end(103, -signal.SIGTERM)
    assert (supervisor.is_over, supervisor.exit_code) == (True, 1)


def test_a_worker_that_hangs_at_its_start_is_killed(machine: Machine) -> None:
    supervisor = Supervisor(machine)
    supervisor.begin()
    pass_time(machine, supervisor, START_TIMEOUT_S - 1)
    assert machine.sent() == []
    pass_time(machine, supervisor, 1)
    assert machine.sent() == [(101, signal.SIGKILL)]
    supervisor.on_end(101, -9)
    assert (supervisor.is_over, supervisor.exit_code) == (True, 1)


def test_a_machine_that_starts_no_process_is_said_and_is_the_end(machine: Machine) -> None:
    machine.fails = True
    supervisor = Supervisor(machine)
    supervisor.begin()
    assert (supervisor.is_over, supervisor.exit_code) == (True, 1)
    assert "no more processes" in machine.lines[0]


# --- crashes ----------------------------------------------------------------------------------------------------------


def test_a_worker_that_ends_is_replaced_by_one_with_its_index(machine: Machine) -> None:
    supervisor, (_, second) = serving(machine, 2)
    supervisor.on_end(second, -11)
    assert machine.lines == [f"error: worker {second} has ended (killed by signal 11): another one starts in 0 s"]
    pass_time(machine, supervisor, 0)
    ((third, index),) = machine.started
    assert index == 1
    supervisor.on_ready(third, 2)
    assert supervisor.workers[third].stage == "serving"
    assert machine.sent() == []


def test_who_ends_again_and_again_is_replaced_at_longer_and_longer_intervals(machine: Machine) -> None:
    supervisor, (_, pid) = serving(machine, 2)
    waits = []
    for _ in range(9):
        machine.new()
        supervisor.on_end(pid, 1)
        waits.append(supervisor.wake_at_s - machine.time_s)
        if waits[-1]:
            pass_time(machine, supervisor, waits[-1] * 0.99)
            assert machine.new() == []
            machine.time_s += waits[-1] * 0.02
        supervisor.on_time()
        (pid,) = machine.new()
    assert waits == pytest.approx([0.0, 0.5, 1.0, 2.0, 4.0, *[LONGEST_WAIT_S] * 4])
    assert "another one starts in 0.5 s" in machine.lines[1]


def test_who_has_lived_for_long_is_replaced_at_once_again() -> None:
    backoff = Backoff()
    assert [backoff.wait_s(1.0) for _ in range(3)] == [0.0, 0.5, 1.0]
    assert backoff.wait_s(CALM_S) == 0.0
    assert backoff.wait_s(1.0) == 0.5


def test_waits_stay_finite_however_often_it_fails() -> None:
    backoff = Backoff()
    assert {backoff.wait_s(0.0) for _ in range(5000)} <= {0.0, 0.5, 1.0, 2.0, 4.0, LONGEST_WAIT_S}


def test_a_replacement_that_cannot_be_started_is_tried_again(machine: Machine) -> None:
    supervisor, (_, second) = serving(machine, 2)
    machine.fails = True
    supervisor.on_end(second, 1)
    pass_time(machine, supervisor, 0)
    assert "no more processes" in machine.lines[-1]
    machine.fails = False
    pass_time(machine, supervisor, LONGEST_WAIT_S)
    assert [index for _, index in machine.started] == [1]


def test_a_process_that_is_no_worker_is_of_no_interest(machine: Machine) -> None:
    supervisor, pids = serving(machine, 2)
    supervisor.on_end(7, 1)
    assert list(supervisor.workers) == pids
    assert machine.lines == []


# --- signals ----------------------------------------------------------------------------------------------------------


def test_sighup_goes_to_all(machine: Machine) -> None:
    supervisor, pids = serving(machine, 3)
    supervisor.on_signal(signal.SIGHUP)
    assert machine.sent() == [(pid, signal.SIGHUP) for pid in pids]


def test_sighup_does_not_end_who_has_just_been_started_and_reaches_it_when_it_serves(machine: Machine) -> None:
    supervisor, (old,) = serving(machine, 1)
    supervisor.on_signal(signal.SIGUSR2)
    (scout,) = machine.new()
    supervisor.on_signal(signal.SIGHUP)
    assert machine.sent() == [(old, signal.SIGHUP)]
    supervisor.on_ready(scout, 1)
    assert machine.sent() == [(scout, signal.SIGHUP), (old, signal.SIGUSR2)]
    supervisor.on_signal(signal.SIGHUP)
    assert machine.sent() == [(scout, signal.SIGHUP)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_goes_to_all_and_nobody_is_replaced_meanwhile(machine: Machine, number: int) -> None:
    supervisor, pids = serving(machine, 2)
    supervisor.on_signal(number)
    assert machine.sent() == [(pid, signal.SIGTERM) for pid in pids]
    assert not machine.is_listening
    for pid in pids:
        assert not supervisor.is_over
        supervisor.on_end(pid, 0)
        pass_time(machine, supervisor, 100)
    assert (supervisor.is_over, supervisor.exit_code, machine.new(), machine.lines) == (True, 0, [], [])


def test_a_second_signal_ends_all_at_once_and_who_hangs_is_killed(machine: Machine) -> None:
    supervisor, (first, second) = serving(machine, 2)
    supervisor.on_signal(signal.SIGTERM)
    machine.sent()
    supervisor.on_signal(signal.SIGTERM)
    assert machine.sent() == [(first, signal.SIGQUIT), (second, signal.SIGQUIT)]
    supervisor.on_end(first, 0)
    assert supervisor.wake_at_s == machine.time_s + QUIT_TIMEOUT_S
    pass_time(machine, supervisor, QUIT_TIMEOUT_S)
    assert machine.sent() == [(second, signal.SIGKILL)]
    supervisor.on_end(second, -9)
    assert (supervisor.is_over, supervisor.exit_code) == (True, 0)


def test_sigquit_ends_all_at_once_whatever_came_before(machine: Machine) -> None:
    for before in ([], [signal.SIGTERM]):
        supervisor, pids = serving(machine, 2)
        for number in before:
            supervisor.on_signal(number)
        supervisor.on_signal(signal.SIGQUIT)
        told = [(pid, number) for number in (signal.SIGTERM, signal.SIGQUIT) for pid in pids]
        assert (machine.sent(), machine.is_listening) == (told, False)
        assert supervisor.wake_at_s == machine.time_s + QUIT_TIMEOUT_S


def test_a_crash_during_a_stop_is_said_and_not_mended(machine: Machine) -> None:
    supervisor, (first, _) = serving(machine, 2)
    supervisor.on_signal(signal.SIGTERM)
    supervisor.on_end(first, -11)
    pass_time(machine, supervisor, 100)
    assert machine.new() == []
    assert machine.lines == [f"warning: worker {first} did not end in good order (killed by signal 11)"]


def test_a_stop_before_anything_serves(machine: Machine) -> None:
    supervisor = Supervisor(machine)
    supervisor.begin()
    supervisor.on_signal(signal.SIGTERM)
    assert machine.sent() == [(101, signal.SIGTERM)]
    supervisor.on_end(101, -signal.SIGTERM)
    assert (supervisor.is_over, supervisor.exit_code, machine.lines) == (True, 0, [])


def test_who_serves_only_after_a_stop_starts_no_others(machine: Machine) -> None:
    supervisor = Supervisor(machine)
    supervisor.begin()
    supervisor.on_signal(signal.SIGTERM)
    supervisor.on_ready(101, 3)
    assert [pid for pid, _ in machine.started] == [101]
    supervisor.on_end(101, 0)
    assert (supervisor.is_over, supervisor.exit_code, machine.lines) == (True, 0, [])


# --- replacing --------------------------------------------------------------------------------------------------------


def test_the_old_ones_leave_when_all_the_new_ones_serve(machine: Machine) -> None:
    supervisor, old = serving(machine, 2)
    supervisor.on_signal(signal.SIGUSR2)
    (scout,) = machine.new()
    assert machine.sent() == []
    supervisor.on_ready(scout, 3)  # the configuration has another number now
    others = machine.new()
    supervisor.on_ready(others[0], 3)
    assert (machine.sent(), machine.renewed) == ([], 0)
    supervisor.on_ready(others[1], 3)
    assert machine.sent() == [(pid, signal.SIGUSR2) for pid in old]
    assert (machine.renewed, supervisor.wanted) == (1, 3)
    for pid in old:
        supervisor.on_end(pid, 0)
    pass_time(machine, supervisor, 100)
    assert (list(supervisor.workers), machine.new()) == ([scout, *others], [])


@pytest.mark.parametrize("is_scout", [True, False])
def test_a_new_program_that_does_not_come_to_serving_leaves_the_old_one_in_place(
    machine: Machine,
    is_scout: bool,  # noqa: FBT001
) -> None:
    supervisor, old = serving(machine, 2)
    supervisor.on_signal(signal.SIGUSR2)
    (pid,) = machine.new()
    if not is_scout:
        supervisor.on_ready(pid, 2)
        (pid,) = machine.new()
    supervisor.on_end(pid, 2)
    assert "not replaced, the old program goes on" in machine.lines[-1]
    assert "exit status 2" in machine.lines[-1]
    assert not {one for one, _ in machine.sent()} & set(old)
    assert (machine.renewed, machine.is_listening, supervisor.is_over) == (0, True, False)
    # And is looked after as before.
    supervisor.on_end(old[0], -9)
    pass_time(machine, supervisor, LONGEST_WAIT_S)
    assert len(machine.new()) == 1


def test_who_ends_while_a_new_program_starts_is_replaced_if_that_fails(machine: Machine) -> None:
    supervisor, (first, _) = serving(machine, 2)
    supervisor.on_signal(signal.SIGUSR2)
    (scout,) = machine.new()
    supervisor.on_end(first, -9)
    pass_time(machine, supervisor, 0)
    assert machine.new() == []
    supervisor.on_end(scout, 2)
    pass_time(machine, supervisor, 0)
    assert len(machine.new()) == 1


def test_who_ends_while_a_new_program_starts_is_not_missed_when_that_serves(machine: Machine) -> None:
    supervisor, (first, second) = serving(machine, 2)
    supervisor.on_signal(signal.SIGUSR2)
    (scout,) = machine.new()
    supervisor.on_end(first, -9)
    supervisor.on_ready(scout, 1)
    assert machine.sent() == [(second, signal.SIGUSR2)]
    pass_time(machine, supervisor, LONGEST_WAIT_S)
    assert machine.new() == []


def test_a_replacement_that_was_starting_is_not_waited_for(machine: Machine) -> None:
    supervisor, (first, second) = serving(machine, 2)
    supervisor.on_end(second, -9)
    pass_time(machine, supervisor, 0)
    (third,) = machine.new()
    supervisor.on_signal(signal.SIGUSR2)
    (scout,) = machine.new()
    supervisor.on_ready(scout, 1)
    assert machine.sent() == [(first, signal.SIGUSR2), (third, signal.SIGTERM)]
    supervisor.on_end(third, -signal.SIGTERM)
    assert machine.lines[-1] == "info: 1 worker serves"


def test_a_signal_to_replace_what_is_being_replaced_is_kept(machine: Machine) -> None:
    supervisor, _ = serving(machine, 1)
    supervisor.on_signal(signal.SIGUSR2)
    (scout,) = machine.new()
    supervisor.on_signal(signal.SIGUSR2)
    assert machine.new() == []
    supervisor.on_ready(scout, 1)
    assert machine.renewed == 1
    (scout,) = machine.new()
    assert not supervisor.is_settled  # who would be executed anew now would forget that one
    supervisor.on_ready(scout, 1)
    assert (machine.renewed, machine.new(), supervisor.is_settled) == (2, [], True)


def test_a_stop_while_a_new_program_starts_ends_both(machine: Machine) -> None:
    supervisor, (old,) = serving(machine, 1)
    supervisor.on_signal(signal.SIGUSR2)
    (scout,) = machine.new()
    supervisor.on_signal(signal.SIGTERM)
    assert machine.sent() == [(old, signal.SIGTERM), (scout, signal.SIGTERM)]
    supervisor.on_signal(signal.SIGUSR2)
    supervisor.on_end(old, 0)
    supervisor.on_end(scout, -signal.SIGTERM)
    assert (supervisor.is_over, supervisor.exit_code, machine.new()) == (True, 0, [])


# --- executed anew ----------------------------------------------------------------------------------------------------


def test_one_that_is_executed_anew_goes_on_with_the_workers_that_there_are(machine: Machine) -> None:
    supervisor = Supervisor(machine, wanted=3, serving=[11, 0, 13], leaving=[9])
    supervisor.begin()
    pass_time(machine, supervisor, 0)
    assert [index for _, index in machine.started] == [1]
    supervisor.on_end(9, 0)
    supervisor.on_end(13, 1)
    pass_time(machine, supervisor, 0)
    assert [index for _, index in machine.started] == [1, 2]


def test_one_that_is_executed_anew_during_a_stop_goes_on_with_that(machine: Machine) -> None:
    supervisor = Supervisor(machine, wanted=1, serving=[11], stops=1)
    supervisor.begin()
    assert (machine.sent(), machine.is_listening) == ([(11, signal.SIGTERM)], False)
    supervisor.on_end(11, 0)
    assert supervisor.is_over
