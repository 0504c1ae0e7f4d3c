"""Engine: a copy engine of the virtual device, with a timeline of its own.

Copies run one after another in the order of submission, each behind its dependencies. Without a simulated link the
bytes move on the loop, in steps of at most 256 KiB with a checkpoint in between, so that faults are served meanwhile.
Simulated latency and bandwidth are spent before any byte moves.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from ttmfs.sync.fence import Fence, FenceCounters, Timeline
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.copy import Backing, Copy, CopyState
from ttmfs.ttm.device import CLEAR_STEP_PAGES
from ttmfs.units import PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Link:
    """The simulated link: `bandwidth` in bytes per second (0: not simulated), `latency` in seconds."""

    bandwidth: float = 0.0
    latency: float = 0.0

    def seconds(self, size: int) -> float:
        """What a copy of `size` bytes takes."""
        return self.latency + (size / self.bandwidth if self.bandwidth else 0.0)


class CopyEngine:
    """One engine. `run` is its task; `paused` keeps it from starting the next copy."""

    def __init__(self, name: str, counters: FenceCounters, link: Link) -> None:
        self.name = name
        self.timeline = Timeline(name, counters)
        self.link = link
        self._queue: deque[tuple[Copy, tuple[Fence, ...]]] = deque()
        self._work = trio.Event()
        self._resumed = trio.Event()
        self._resumed.set()

    @property
    def paused(self) -> bool:
        """Held by debug/pause_engine."""
        return not self._resumed.is_set()

    @paused.setter
    def paused(self, value: bool) -> None:
        if value and not self.paused:
            self._resumed = trio.Event()
        elif not value:
            self._resumed.set()

    def submit(
        self, bo: BufferObject, src: Backing | None, dst: Backing, num_pages: int, deps: Sequence[Fence]
    ) -> Fence:
        """Queue a copy (a clear when `src` is None) behind `deps`; returns the fence that announces it."""
        what = f"{'copy' if src is not None else 'clear'} {bo.name} {num_pages} pages"
        fence = self.timeline.next_fence(what, deps)
        copy = Copy(src, dst, num_pages, fence)
        bo.add_copy(copy)
        self._queue.append((copy, tuple(deps)))
        self._work.set()
        return fence

    def pending(self) -> list[Fence]:
        """Fences of copies that are queued or running, oldest first."""
        return [copy.fence for copy, _deps in self._queue]

    async def run(self) -> None:
        """Execute copies for ever."""
        while True:
            while self._queue:
                copy, deps = self._queue[0]
                for fence in deps:
                    await fence.wait()
                await self._execute(copy)
                self._queue.popleft()
            self._work = trio.Event()
            await self._work.wait()

    async def _execute(self, copy: Copy) -> None:
        seconds = self.link.seconds(copy.num_pages * PAGE_SIZE)
        if seconds:
            await trio.sleep(seconds)
        await self._resumed.wait()
        copy.state = CopyState.RUNNING
        for index in range(0, copy.num_pages, CLEAR_STEP_PAGES):
            copy.step(index, min(CLEAR_STEP_PAGES, copy.num_pages - index))
            await trio.lowlevel.checkpoint()
        copy.finish()
        copy.fence.signal()
