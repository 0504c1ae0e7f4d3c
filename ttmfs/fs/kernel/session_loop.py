"""The readiness wait of pyfuse3's session loop, replaced by one that costs a third.

pyfuse3's stock wait spends two scheduler passes and three system calls (`epoll_ctl`, two `epoll_wait`) on every
request. Here a task that has just answered a request polls the session descriptor directly, spins for a few
microseconds, and only then parks in the stock wait. What is found, a Source takes: it may answer a request by itself,
and then the wait goes on (device_loop.py). Three promises:

* other trio tasks run at least every `checkpoint_s` (a request that is served inline never yields by itself), and
  in each turn of the loop there is one such period, however many tasks serve the session: a task that comes back
  while another one is at its checkpoint parks, and leaves what there is to read to that one;
* `True` is never returned unless a non-blocking poll said "readable" at that moment, because pyfuse3 then reads
  with a blocking `read(2)` and the interpreter lock held. What remains is a client killed between that poll and
  that read (nanoseconds to microseconds); `start_freeze_timer` ends such a freeze within its interval;
* pyfuse3's own accounting stays true. `_session_loop` starts a new task after each request that it reads while no
  task is parked in the stock wait, so the fast path is taken only while a spare task is parked there, and a task
  without a spare yields once, which lets the new one park. Idle tasks all end up in the stock wait, where
  pyfuse3's `min_tasks` rule makes the surplus exit.

pyfuse3 has no public name for this wait. `install` therefore tests that the session loop of the installed
pyfuse3 really calls the replacement, and otherwise leaves the stock loop alone and says why.
"""

import inspect
import os
import select
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import pyfuse3
import trio

from ttmfs.policy import deadline

_WAIT: Final = "_wait_fuse_readable"
_LOOP: Final = "_session_loop"


@dataclass(frozen=True)
class LoopStatistics:
    """What the session loop did, for a status file.

    `fast` says whether the replacement is installed, `reason` why (not), as a sentence. Counts: `polled` requests
    found by a poll or a spin, `parked` waits in the stock coroutine, `spurious` wake-ups of it that a poll did not
    confirm, `yields` checkpoints, `idle_tasks` tasks parked now.
    """

    fast: bool
    reason: str
    polled: int
    parked: int
    spurious: int
    yields: int
    idle_tasks: int


class Source(Protocol):
    """Who reads requests before pyfuse3 does."""

    linger_s: float
    """So much longer than usual the loop polls before it parks, if no other task is ready to run."""

    def take(self) -> bool:
        """There is a request: is pyfuse3 to read one? Neither awaits nor blocks."""


class _FastWait:
    """The state of one installed wait; `wait` is what pyfuse3 calls."""

    def __init__(
        self, session_fd: int, stock: Callable[[], Awaitable[bool]], spin_s: float, checkpoint_s: float
    ) -> None:
        self.stock = stock
        self.spin_s = spin_s
        self.checkpoint_s = checkpoint_s
        self.polled = self.parked = self.spurious = self.yields = 0
        self.idle_tasks = 0
        self.source: Source | None = None
        """None: pyfuse3 reads the session."""
        self._yielding = 0
        """Tasks at their checkpoint, which poll again after it."""
        self._last_checkpoint = 0.0
        self._idle_since: float | None = None
        poller = select.poll()
        poller.register(session_fd, select.POLLIN)
        self._poll = poller.poll
        self._clock = time.perf_counter

    async def wait(self) -> bool:
        """True when a read of the session descriptor finds a request now, False when the loop should end.

        Requests that the source answers are none of these.
        """
        clock = self._clock
        while True:
            if not self._leave_it_to_another:
                now = clock()
                if self.idle_tasks == 0 or now - self._last_checkpoint >= self.checkpoint_s:
                    now = await self._yield()
                if self.idle_tasks and not self._leave_it_to_another and self._found(now):
                    if self.source is None or self.source.take():
                        return True
                    continue
            self.parked += 1
            self.idle_tasks += 1
            try:
                if not await self.stock():
                    return False
            finally:
                self.idle_tasks -= 1
            self._last_checkpoint = clock()
            if self._poll(0):
                self._idle_since = None
                if self.source is None or self.source.take():
                    return True
                continue
            self.spurious += 1

    @property
    def _leave_it_to_another(self) -> bool:
        """One that is at its checkpoint polls after it, and while one is parked pyfuse3 starts no further task."""
        return self._yielding > 0 and self.idle_tasks > 0

    async def _yield(self) -> float:
        """One turn for all other tasks; the time after it."""
        self.yields += 1
        self._yielding += 1
        try:
            await trio.lowlevel.checkpoint()
        finally:
            self._yielding -= 1
        self._last_checkpoint = now = self._clock()
        return now

    def _found(self, now: float) -> bool:
        """Has a poll found a request, or a spin of at most `spin_s` since the descriptor was first found idle?"""
        clock, poll, sched_yield = self._clock, self._poll, os.sched_yield
        # One spin for an idle descriptor, not one for each task that comes back to it.
        if self._idle_since is None:
            self._idle_since = now
        deadline = self._idle_since + self.spin_s
        if self.source is not None and self.source.linger_s and not trio.lowlevel.current_statistics().tasks_runnable:
            deadline += self.source.linger_s
        while True:
            if poll(0):
                self._idle_since = None
                self.polled += 1
                return True
            if clock() >= deadline:
                return False
            # A client that waits for this very processor must not wait for the scheduler's next tick.
            sched_yield()

    def statistics(self, reason: str) -> LoopStatistics:
        return LoopStatistics(True, reason, self.polled, self.parked, self.spurious, self.yields, self.idle_tasks)


class _State:
    wait: _FastWait | None = None
    reason: str = "the stock loop runs: install() was not called"


def install(session_fd: int, *, spin_us: float = 10, checkpoint_s: float = 0.0005) -> bool:
    """Replace pyfuse3's readiness wait; True when done, False (and the stock loop) when it cannot be.

    Call it between `pyfuse3.init()` and `pyfuse3.main()`, inside or outside of trio. `session_fd` is the session's
    /dev/fuse descriptor (`inval.SessionFd`), `spin_us` how long a task polls an idle descriptor before it
    parks (0: one poll), `checkpoint_s` the longest time without a trio checkpoint. Never raises for a pyfuse3 that
    does not fit: `statistics().reason` says what did not.
    """
    uninstall()
    reason = _unfit(session_fd)
    if reason is None:
        stock = cast("Callable[[], Awaitable[bool]]", getattr(pyfuse3, _WAIT))
        wait = _FastWait(session_fd, stock, spin_us * 1e-6, checkpoint_s)
        setattr(pyfuse3, _WAIT, wait.wait)
        _State.wait = wait
        _State.reason = f"fast readiness wait on pyfuse3 {pyfuse3.__version__}, spin {spin_us:g} us"
        return True
    _State.reason = f"the stock loop runs: {reason}"
    return False


def read_through(source: Source | None) -> None:
    """From now on requests are read by `source`, or by pyfuse3 itself. Nothing happens where this is not installed."""
    if _State.wait is not None:
        _State.wait.source = source


def uninstall() -> None:
    """Give pyfuse3 its own wait back (nothing happens when it has it)."""
    if _State.wait is not None:
        setattr(pyfuse3, _WAIT, _State.wait.stock)
        _State.wait = None
        _State.reason = "the stock loop runs: the fast wait was taken out"


def statistics() -> LoopStatistics:
    """Counts and state of the loop now; all counts are 0 with the stock loop."""
    if _State.wait is None:
        return LoopStatistics(False, _State.reason, 0, 0, 0, 0, 0)
    return _State.wait.statistics(_State.reason)


def _unfit(session_fd: int) -> str | None:
    """Why this pyfuse3 cannot be given another wait, or None."""
    try:
        target = os.readlink(f"/proc/self/fd/{session_fd}")
    except OSError:
        return f"descriptor {session_fd} is not open"
    if target != "/dev/fuse":
        return f"descriptor {session_fd} is {target}, not /dev/fuse"
    for name in (_WAIT, _LOOP):
        if not inspect.iscoroutinefunction(getattr(pyfuse3, name, None)):
            return f"pyfuse3 {pyfuse3.__version__} has no coroutine function {name}"
    if getattr(pyfuse3, "trio", trio) is not trio:
        return "pyfuse3 runs on another event loop than trio"
    if trio.lowlevel.in_trio_run():
        return _probe()
    return trio.run(_probe_async)


async def _probe_async() -> str | None:
    return _probe()


def _probe() -> str | None:
    """Drive the session loop by hand, once, with a wait that ends it: None when the loop asked that wait.

    Leaves pyfuse3's task counter one lower, which `pyfuse3.main` sets anew.
    """
    calls = 0

    async def ending_wait() -> bool:
        nonlocal calls
        calls += 1
        return False

    stock = getattr(pyfuse3, _WAIT)
    setattr(pyfuse3, _WAIT, ending_wait)
    loop: Any = None
    try:
        loop = getattr(pyfuse3, _LOOP)(None, 1, 1)
        loop.send(None)
    except StopIteration:
        return None if calls == 1 else f"its session loop asked the wait {calls} times instead of once"
    except Exception as exc:  # an unknown version may fail in any way, and each means: keep the stock loop
        return f"its session loop failed in the self-test ({exc!r})"
    finally:
        setattr(pyfuse3, _WAIT, stock)
        if loop is not None:
            loop.close()
    return "its session loop did not call the replaced wait"


def start_freeze_timer(interval: float = 0.25) -> None:
    """Interrupt a blocking read of the loop every `interval` seconds (ITIMER_REAL, SIGALRM), against the freeze.

    When the only queued request is withdrawn between poll and read, pyfuse3 sleeps in `read(2)` with the interpreter
    lock held until the next request comes; a signal with a Python handler makes that read end with EINTR, which
    pyfuse3 takes as "go on". Must be called from the main thread (ValueError otherwise), which must be the loop's.
    Blocking system calls elsewhere in the process are restarted by Python; ones made through ctypes can see EINTR.
    """
    deadline.start_ticks(interval)


def stop_freeze_timer() -> None:
    """Stop the timer. The handler stays: a SIGALRM already on its way must not end the process."""
    deadline.stop_ticks()
