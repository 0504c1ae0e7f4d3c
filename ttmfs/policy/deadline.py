"""Deadlines for code that is not ours, and the one owner of ITIMER_REAL (SIGALRM) in a process.

Two things want this timer. The session loop wants a tick now and then that interrupts a blocking read
(`start_ticks`); whoever calls policy code wants to get out of it when it takes too long (`run`). So the timer has one
owner: it ticks at the slow pace of `start_ticks`, or not at all, and every 5 ms while policy code is being called.

What `run` promises: the handler raises `Overrun` only while code below `run` is executing, never in the code of `run`
itself or of anybody else; when the policy catches it and goes on, it is raised again 5 ms later, until it is out. An
answer that was too late is `Overrun` also when no tick met it. While it runs, Python's garbage collector is off, so
that a collection of the process's own objects is not charged to a policy.

Time in which the thread could have run and was not let to, because others had the processors, is nobody's time: the
kernel counts it (the run delay of /proc/thread-self/schedstat), and it is taken off where a call took a millisecond or
more.

What no signal can end, an endless call into C or code that catches everything in an endless loop, does not end here.
Signals come to the main thread only: in another thread an answer is judged when it comes.
"""

import atexit
import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final, TypeVar

T = TypeVar("T")

CPU_NS: Final = 5_000_000
"""Processor time that one answer may take."""
WALL_NS: Final = 100_000_000
"""Time that one answer may take, not counting what the thread had to wait for a processor."""
SHORT_NS: Final = 1_000_000
TICK_S: Final = 0.005


class Overrun(BaseException):
    """An answer took too long. Not an Exception, so that `except Exception` in a policy lets it through."""


class Budget:
    """What there is for one answer, over all calls that it takes, and what was used of it (nanoseconds).

    Processor time is of this thread. Of a call that took less than a millisecond it is taken to be all of that time:
    asking the clock of a thread costs more than most calls. `wall_ns` has no time in which the thread waited for a
    processor.
    """

    __slots__ = ("cpu_limit", "cpu_ns", "wall_limit", "wall_ns")

    def __init__(self, cpu_limit: int = CPU_NS, wall_limit: int = WALL_NS) -> None:
        self.cpu_limit = cpu_limit
        self.wall_limit = wall_limit
        self.cpu_ns = self.wall_ns = 0

    def charge(self, cpu_start: int, wall_start: int, delayed: Callable[[], int] = int) -> None:
        """A call that began at these times of the two clocks is over. `delayed`: ns that it waited for a processor."""
        wall = time.monotonic_ns() - wall_start
        if wall < SHORT_NS:
            self.wall_ns += wall
            self.cpu_ns += wall
        else:
            self.wall_ns += max(0, wall - delayed())
            self.cpu_ns += time.thread_time_ns() - cpu_start

    def check(self) -> None:
        """Overrun, with the reason, when more was used than there was."""
        self.judge(self.cpu_ns >= self.cpu_limit, self.wall_ns >= self.wall_limit)

    def judge(self, cpu_over: bool, wall_over: bool) -> None:
        """Overrun, if there is reason to."""
        if cpu_over:
            raise Overrun(f"took more than {self.cpu_limit / 1e6:g} ms of processor time")
        if wall_over:
            raise Overrun(f"took more than {self.wall_limit / 1e6:g} ms")


class _Timer:
    """The state of the timer, one a process. `inside`: code below `run` is executing, with this
    budget and these ends on the two clocks."""

    def __init__(self) -> None:
        self.main = threading.main_thread().ident
        self.background = 0.0
        self.inside = False
        self.budget = Budget()
        self.cpu_end = self.wall_end = 0
        self.entries = self.seen = 0
        self.fast = False
        self.delay = 0
        """The run delay of the thread at the last tick that met no policy, or after the last long call."""
        self.former: Any = None
        """The handler of SIGALRM before ours; None while it is not ours."""

    def arm(self) -> None:
        """Tick every 5 ms from now on."""
        self.fast = True
        self.own()
        self.delay = run_delay_ns()
        signal.setitimer(signal.ITIMER_REAL, TICK_S, TICK_S)

    def delayed(self) -> int:
        """How long the thread has waited for a processor since then. A tick of 5 ms before the call may be in it."""
        return max(0, run_delay_ns() - self.delay)

    def settled(self) -> int:
        """The same; from now on it is counted anew."""
        delayed = self.delayed()
        self.delay += delayed
        return delayed

    def slow(self) -> None:
        """Tick at the slow pace, or not at all."""
        self.fast = False
        signal.setitimer(signal.ITIMER_REAL, self.background, self.background)

    def own(self) -> None:
        """Have the signal. ValueError outside the main thread."""
        if self.former is None:
            self.former = signal.signal(signal.SIGALRM, _on_tick) or signal.SIG_DFL

    def after_fork(self) -> None:
        """A child has the handler, but no timer."""
        self.main = threading.main_thread().ident
        self.fast = self.inside = False
        self.background = 0.0

    def at_exit(self) -> None:
        """The interpreter gives signals their default actions back: that of SIGALRM ends the process."""
        if self.former is not None:
            signal.setitimer(signal.ITIMER_REAL, 0.0)


_timer: Final = _Timer()
os.register_at_fork(after_in_child=_timer.after_fork)
atexit.register(_timer.at_exit)


def run_delay_ns() -> int:
    """How long this thread has waited for a processor since it began; 0 where the kernel does not say."""
    try:
        fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fields = os.read(fd, 100).split()
    finally:
        os.close(fd)
    return int(fields[1]) if len(fields) > 1 else 0


def start_ticks(interval: float) -> None:
    """Interrupt blocking calls every `interval` seconds from now on. ValueError outside the main thread."""
    _timer.own()
    _timer.background = interval
    _timer.slow()


def stop_ticks() -> None:
    """No more of that. The handler stays: a SIGALRM that is on its way must not end the process."""
    _timer.background = 0.0
    _timer.slow()


def stand_down() -> None:
    """Nobody calls policy code any more: the quick ticks end now, not when one finds that out."""
    if _timer.fast and not _timer.inside:
        _timer.slow()


@contextlib.contextmanager
def borrowed() -> Iterator[None]:
    """Give signal and timer back at the end, to whom they belonged before: for programs that have uses of their own."""
    timer = signal.getitimer(signal.ITIMER_REAL)
    handler = signal.getsignal(signal.SIGALRM)
    _timer.former = None
    try:
        yield
    finally:
        _timer.background = 0.0
        _timer.slow()
        _timer.former = None
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def run(budget: Budget, function: Callable[..., T], /, *args: Any) -> T:
    """`function(*args)`, within what is left of `budget`. Overrun when that is exceeded, else whatever it raises."""
    timer = _timer
    if timer.inside or threading.get_ident() != timer.main:
        result = run_unwatched(budget, function, *args)
        budget.check()
        return result
    if not timer.fast:
        timer.arm()
    timer.entries += 1
    collecting = gc.isenabled()
    gc.disable()
    cpu, wall = time.thread_time_ns(), time.monotonic_ns()
    timer.budget = budget
    timer.cpu_end = cpu + budget.cpu_limit - budget.cpu_ns
    timer.wall_end = wall + budget.wall_limit - budget.wall_ns
    try:
        # From here to the end of `inside` the handler raises, except in this very frame.
        timer.inside = True
        result = function(*args)
    finally:
        timer.inside = False
        if collecting:
            gc.enable()
        budget.charge(cpu, wall, timer.settled)
    budget.check()
    return result


def run_unwatched(budget: Budget, function: Callable[..., T], /, *args: Any) -> T:
    """The same without an end: what takes long is let to its own, and charged."""
    cpu, wall = time.thread_time_ns(), time.monotonic_ns()
    try:
        return function(*args)
    finally:
        budget.charge(cpu, wall)


_RUN: Final = run.__code__


def _on_tick(_signum: int, frame: FrameType | None) -> None:
    """SIGALRM: that a blocking call was interrupted is all that the slow tick is for."""
    timer = _timer
    if timer.inside:
        if frame is None or frame.f_code is _RUN:
            return
        late = time.monotonic_ns() - timer.wall_end
        timer.budget.judge(time.thread_time_ns() >= timer.cpu_end, late >= 0 and late >= timer.delayed())
        return
    if timer.fast:
        timer.delay = run_delay_ns()
    if timer.entries != timer.seen:
        timer.seen = timer.entries
    elif timer.fast:
        timer.slow()
