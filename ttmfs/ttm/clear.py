"""Clear: the zeros of a fresh BO in a region with memory of its own, written only where there are none.

A buddy manager knows of each page whether it was zero when it was handed out: never used, or cleared since
(GPU_BUDDY_CLEARED). A Clear passes over those. `clear_idle` makes what was freed zero again while nobody wants
anything, so that the next owner need not wait.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import trio

from ttmfs.memory.copy import zero_pages
from ttmfs.sync.fence import Fence
from ttmfs.ttm.copy import Copy
from ttmfs.ttm.device import CLEAR_STEP_PAGES, Device
from ttmfs.ttm.managers import BuddyManager
from ttmfs.ttm.resource import Resource
from ttmfs.units import PAGE_SIZE

_LOOK_PAGES: Final = 1 << 10
"""Pages that a clear looks at together for whether any of them is dirty."""
_LOOK_AT_MOST: Final = 1 << 16
"""Pages that it passes over in one step."""
_WINDOW_PAGES: Final = 1 << 14
"""64 MiB: of how much of a region the dirty free pages are looked for together."""


class Clear(Copy):
    """Zeros for all of `target`, which was allocated for it and to which nothing was written since."""

    __slots__ = ("target",)

    def __init__(self, target: Resource, fence: Fence) -> None:
        super().__init__(None, target, target.num_pages, fence)
        self.target = target

    @property
    def pages_to_move(self) -> int:
        """How many pages are not zero."""
        return self._dirty(0, self.num_pages)

    def next_to_move(self, index: int) -> int:
        """As of a copy: past what is zero, but not past so much that others wait for the look."""
        end = min(index + _LOOK_AT_MOST, self.num_pages)
        while index < end and not self._dirty(index, _LOOK_PAGES):
            index = min(index + _LOOK_PAGES, end)
        return index

    def step(self, index: int, count: int) -> None:
        """Clear `count` pages from page `index` on, as far as they are dirty; synchronous."""
        pages = self.target.manager.to_clear(self.target.numbers(index, count))
        zero_pages(self.target.arena, pages)
        self.target.bo.device.counters.moves.cleared += len(pages) * PAGE_SIZE

    def _dirty(self, index: int, count: int) -> int:
        return len(self.target.manager.to_clear(self.target.numbers(index, count)))


async def clear_idle(device: Device, idle: Callable[[], bool]) -> int:
    """Clear free memory of the device's regions, step by step while `idle`; how many pages.

    `idle` is false while any fence is pending: what a copy still reads from may be free already.
    """
    cleared = 0
    for manager in device.managers.values():
        if not isinstance(manager, BuddyManager):
            continue
        assert manager.arena is not None
        buddy = manager.buddy
        for first in range(0, buddy.num_pages, _WINDOW_PAGES):
            last = min(first + _WINDOW_PAGES, buddy.num_pages)
            while idle() and len(pages := buddy.dirty_free_pages(first, last)[:CLEAR_STEP_PAGES]):
                zero_pages(manager.arena, pages.astype(np.uint32))
                buddy.mark_clear(pages, 0)
                cleared += len(pages)
                await trio.lowlevel.checkpoint()
    return cleared
