"""Turns of trio's loop, counted: what others are kept from while one piece of work runs."""

import contextlib
import gc
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import ParamSpec, TypeVar

import trio
from trio.testing import MockClock

from ttmfs import clock

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@contextlib.contextmanager
def ticking_clock(us: int) -> Iterator[None]:
    """Within the block each look at the clock takes `us` microseconds, and nothing else takes any time."""
    now = 0

    def tick() -> int:
        nonlocal now
        now += us * 1000
        return now

    with clock.replaced(tick, tick):
        yield


class Turns(trio.abc.Instrument):
    """Within the block: how often something was noted in one turn of the loop at most, and how many turns there were.

    A request that arrives waits for what happens in one turn, so this is what a clock would show, without a clock.
    """

    def __init__(self) -> None:
        self.count = 0
        self._now: Counter[str] = Counter()
        self._most: Counter[str] = Counter()

    def note(self, what: str, amount: int = 1) -> None:
        """It happened."""
        self._now[what] += amount

    def noting(self, what: str, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """`function`, and each call of it is noted."""

        def noted(*args: Arguments.args, **more: Arguments.kwargs) -> Result:
            self.note(what)
            return function(*args, **more)

        return noted

    def most(self, what: str) -> int:
        """How much of it there was in one turn at most."""
        return max(self._most[what], self._now[what])

    def after_io_wait(self, timeout: float) -> None:
        """Another turn begins."""
        self.count += 1
        self._most |= self._now
        self._now.clear()

    def __enter__(self) -> "Turns":
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        trio.lowlevel.remove_instrument(self)


class LongestStep(trio.abc.Instrument):
    """Within the block: the longest that a task kept the loop, in seconds of this thread's processor time.

    So what other processes do does not count, nor does the collector of garbage, which is off meanwhile; how fast the
    machine is does: for stress tests only.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.task = ""
        self._began = time.thread_time_ns()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """It goes on."""
        self._began = time.thread_time_ns()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """It lets others run."""
        took = (time.thread_time_ns() - self._began) / 1e9
        if took > self.seconds:
            self.seconds, self.task = took, task.name

    def __enter__(self) -> "LongestStep":
        gc.disable()
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        trio.lowlevel.remove_instrument(self)
        gc.enable()

    def __str__(self) -> str:
        return f"{self.task} kept the loop for {self.seconds * 1000:.1f} ms"


def seed_turns(seed: int) -> None:
    """From here on `seed` says which of the tasks that can go on is the first, so that a failure can be replayed."""
    trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    trio._core._run._r.seed(seed)


def run_seeded(world: Callable[[int, int], Awaitable[None]], seed: int, steps: int) -> None:
    """Run `world(seed, steps)` on a clock that jumps, in the turns that `seed` says."""
    seed_turns(seed)
    trio.run(world, seed, steps, clock=MockClock(autojump_threshold=0))
