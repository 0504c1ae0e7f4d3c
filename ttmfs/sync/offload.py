"""Offload: the one way into worker threads, for all layers below `fs`.

A lane is a kind of work with threads of its own, so that one kind never waits for another's. What a lane is given runs
off the loop: it touches nothing but what it was handed, and the loop goes on meanwhile. How it runs is the offloader's
business: `Threads`, unless a run was given another with `use`. One that runs the work on the loop, between checkpoints
that it chooses, makes every interleaving of loop and threads one that can be repeated.
"""

import errno
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, TypeVar, TypeVarTuple

import trio

from ttmfs.errors import TtmError

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


_THREAD_SECONDS: Final = 1.0
"""How long a thread is waited for where the host gives no more: one that the daemon has may be done meanwhile."""
_LOOK_AGAIN_SECONDS: Final = 0.02


def is_want_of_threads(error: RuntimeError) -> bool:
    """Is it that of a thread that the host did not give (ulimit -u, TasksMax=, pids.max)?"""
    return "can't start new thread" in str(error)


async def in_thread(
    work: Callable[[*_Ts], _T],
    *args: *_Ts,
    limiter: trio.CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
) -> _T:
    """trio.to_thread.run_sync. TtmError(EAGAIN): for a second the host gave no thread for it, and it was not called."""
    until = trio.current_time() + _THREAD_SECONDS
    while True:
        try:
            return await trio.to_thread.run_sync(work, *args, limiter=limiter, abandon_on_cancel=abandon_on_cancel)
        except RuntimeError as error:
            if not is_want_of_threads(error):
                raise
            if trio.current_time() >= until:
                said = "the host gives this daemon no more threads: raise its limit (ulimit -u, TasksMax=, pids.max)"
                raise TtmError(errno.EAGAIN, said) from None
        await trio.sleep(_LOOK_AGAIN_SECONDS)


class Offloader(Protocol):
    """Runs the work of all lanes."""

    async def run(self, lane: "Lane", work: Callable[[], _T]) -> _T:
        """What `work` returns or raises, called once, off the caller's step: others may run before it and after.

        A caller that is cancelled before `work` has begun gets Cancelled and it is never called; from then on it is
        waited for, unless the lane says `abandon`. No more than `lane.threads` run at once.
        """


class Threads:
    """The offloader of a real run: trio's worker threads, at most `lane.threads` of them for a lane."""

    async def run(self, lane: "Lane", work: Callable[[], _T]) -> _T:
        """As `Offloader.run`. TtmError as `in_thread`."""
        return await in_thread(work, limiter=lane.limiter, abandon_on_cancel=lane.abandon)


class Lane:
    """A kind of work: its name, and how many threads may do it at once.

    `abandon`: a caller that is cancelled leaves work that has begun to itself (its thread counts until it ends). For
    work that may wait for what nobody here can end, and that touches nothing that the caller may give to others.
    """

    __slots__ = ("abandon", "limiter", "name", "threads")

    def __init__(self, name: str, threads: int, *, abandon: bool = False) -> None:
        self.name = name
        self.threads = threads
        self.abandon = abandon
        self.limiter = trio.CapacityLimiter(threads)

    async def run(self, work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        """`work(*args)` off the loop, when a thread of this lane is free; see `Offloader.run`."""
        return await _offloader.get().run(self, partial(work, *args))


_THREADS: Final = Threads()
_offloader: trio.lowlevel.RunVar[Offloader] = trio.lowlevel.RunVar("ttmfs offloader", _THREADS)


def use(offloader: Offloader) -> None:
    """From now on this run of trio gives the work of all lanes to `offloader`."""
    _offloader.set(offloader)
