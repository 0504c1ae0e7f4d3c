"""Deadlines: policy code is left when it takes too long, nobody else's code is, and the timer has one owner."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import pytest

from ttmfs.policy import deadline
from ttmfs.policy.deadline import Budget, Overrun, run

SECOND = 1_000_000_000


def spin() -> None:
    while True:
        pass


def spin_catching_exceptions() -> None:
    while True:
        with contextlib.suppress(Exception):
            spin()


def catch_three() -> str:
    for _ in range(3):
        with contextlib.suppress(BaseException):
            spin()
    return "out"


def sleep() -> None:
    time.sleep(60)


def wait_for_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def sort_with_a_slow_key() -> None:
    sorted([2, 1], key=lambda _: spin())  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("function", [spin, spin_catching_exceptions, catch_three, sort_with_a_slow_key])
def test_processor_time(function: Callable[[], None]) -> None:
    budget = Budget(wall_limit=60 * SECOND)
    with pytest.raises(Overrun, match="5 ms of processor time"):
        run(budget, function)
    assert budget.cpu_ns >= deadline.CPU_NS


@pytest.mark.parametrize("function", [sleep, wait_for_a_lock])
def test_time(function: Callable[[], None]) -> None:
    with pytest.raises(Overrun, match="more than 100 ms"):
        run(Budget(cpu_limit=60 * SECOND), function)


class Clocks:
    """All clocks of a thread, which stand still but for what is spent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cpu = self.wall = self.delay = 7 * SECOND
        # Whose ticks they are depends on what ran before: here they begin anew.
        deadline.stop_ticks()
        monkeypatch.setattr(deadline, "time", self)
        monkeypatch.setattr(deadline, "run_delay_ns", lambda: self.delay)

    def thread_time_ns(self) -> int:
        return self.cpu

    def monotonic_ns(self) -> int:
        return self.wall

    def spend(self, cpu_ms: float, wall_ms: float, delay_ms: float = 0) -> None:
        self.cpu += int(cpu_ms * 1e6)
        self.wall += int(wall_ms * 1e6)
        self.delay += int(delay_ms * 1e6)


@pytest.mark.parametrize(("cpu_ms", "wall_ms"), [(2, 2), (0, 40), (0.5, 0.5)])
def test_an_answer_has_one_budget_for_all_its_calls(
    monkeypatch: pytest.MonkeyPatch, cpu_ms: float, wall_ms: float
) -> None:
    clocks = Clocks(monkeypatch)
    allowed = int(min(5 / cpu_ms if cpu_ms else 1e9, 100 / wall_ms) - 1e-9)
    budget = Budget()
    for _ in range(allowed):
        run(budget, clocks.spend, cpu_ms, wall_ms)
    with pytest.raises(Overrun):
        run(budget, clocks.spend, cpu_ms, wall_ms)


def test_another_process_that_had_the_processor_is_nobody_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(monkeypatch)
    budget = Budget()
    run(budget, clocks.spend, 1, 90)
    assert budget.cpu_ns == 1_000_000
    for _ in range(3):
        # Six seconds without a processor, and no more than 3 ms of anything else.
        run(budget, clocks.spend, 1, 2001, 2000)
    assert (budget.cpu_ns, budget.wall_ns) == (4_000_000, 93_000_000)
    with pytest.raises(Overrun, match="100 ms"):
        run(budget, clocks.spend, 0, 50, 40)


def test_a_tick_in_a_thread_that_was_kept_from_running_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(monkeypatch)

    def kept_waiting(slept_ms: float) -> str:
        clocks.spend(1, 501 + slept_ms, 500)
        os.kill(os.getpid(), signal.SIGALRM)
        return "in time"

    assert run(Budget(), kept_waiting, 98) == "in time"
    with pytest.raises(Overrun, match="100 ms"):
        run(Budget(), kept_waiting, 100)


def test_the_kernel_says_how_long_a_thread_waits_for_a_processor() -> None:
    """Two threads of one processor: one has it, the other one waits. Else nothing would ever be taken off."""
    code = (
        "import os, signal, time\n"
        "from ttmfs.policy.deadline import run_delay_ns\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    signal.alarm(60)\n"
        "    while True: pass\n"
        "end = time.monotonic() + 30\n"
        "while run_delay_ns() < 50_000_000: assert time.monotonic() < end\n"
        "os.kill(child, 9)\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


def test_what_is_in_time_is_left_alone() -> None:
    assert run(Budget(), sum, [1, 2]) == 3
    with pytest.raises(ZeroDivisionError):
        run(Budget(), lambda: 1 // 0)


def test_nobody_else_is_interrupted() -> None:
    with pytest.raises(Overrun):
        run(Budget(wall_limit=60 * SECOND), spin)
    # The timer ticks on for a while: what runs now is none of its business.
    spin_until_the_period_is(0.0)


def spin_until_the_period_is(seconds: float) -> None:
    """Burn processor time until the timer has this period."""
    end = time.monotonic() + 30
    while signal.getitimer(signal.ITIMER_REAL)[1] != seconds:
        assert time.monotonic() < end


def test_the_slow_tick_comes_back_after_a_fast_one() -> None:
    deadline.start_ticks(0.25)
    run(Budget(), int)
    assert signal.getitimer(signal.ITIMER_REAL)[1] == deadline.TICK_S
    spin_until_the_period_is(0.25)
    deadline.stop_ticks()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_tick_interrupts_a_blocking_call_of_nobody_in_particular() -> None:
    ticks = []
    reader, writer = os.pipe()
    deadline.start_ticks(0.01)
    handler = signal.getsignal(signal.SIGALRM)
    assert callable(handler)

    def count(number: int, frame: FrameType | None) -> None:
        ticks.append(number)
        if len(ticks) == 3:
            os.write(writer, b"x")
        handler(number, frame)

    signal.signal(signal.SIGALRM, count)
    assert os.read(reader, 1) == b"x"
    assert len(ticks) == 3
    os.close(reader)
    os.close(writer)


def test_the_collector_is_off_meanwhile_and_on_again() -> None:
    assert gc.isenabled()
    assert run(Budget(), gc.isenabled) is False
    assert gc.isenabled()
    with pytest.raises(Overrun):
        run(Budget(), spin)
    assert gc.isenabled()


def test_another_thread_is_judged_when_it_is_done() -> None:
    found: list[BaseException] = []

    def other() -> None:
        try:
            run(Budget(wall_limit=1_000_000), time.sleep, 0.01)
        except Overrun as error:
            found.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(found) == 1


def test_a_forked_child_has_a_timer_of_its_own() -> None:
    run(Budget(), int)
    child = os.fork()
    if not child:
        try:
            run(Budget(), spin)
        except Overrun:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_tick_ends_a_process_that_is_on_its_way_out() -> None:
    code = (
        "import atexit, time\n"
        "from ttmfs.policy import deadline\n"
        "deadline.start_ticks(0.001)\n"
        "deadline.run(deadline.Budget(), int)\n"
        "class Slow:\n"
        "    def __del__(self): time.sleep(0.05)\n"
        "import builtins; builtins.slow = Slow()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0
