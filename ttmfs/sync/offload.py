"""Offload: the one way into worker threads, for all layers below `fs`.

A lane is a kind of work with threads of its own, so that one kind never waits for another's. What a lane is given runs
off the loop: it touches nothing but what it was handed, and the loop goes on meanwhile. How it runs is the offloader's
business: `Threads`, unless a run was given another with `use`. One that runs the work on the loop, between checkpoints
that it chooses, makes every interleaving of loop and threads one that can be repeated.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, TypeVar, TypeVarTuple

import trio

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


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
        """As `Offloader.run`."""
        return await trio.to_thread.run_sync(work, limiter=lane.limiter, abandon_on_cancel=lane.abandon)


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
