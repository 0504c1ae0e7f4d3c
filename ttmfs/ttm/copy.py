"""Copy: bytes of a BO on their way from one backing to another behind a fence.

A move swaps the resource at once and leaves a Copy; until its fence signals, the source is intact and owned (by the
BO, a ghost, or whoever inherited the fence) and requests that may not wait are served from it (rules R3 and R4).
"""

import enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ttmfs.memory.arena import Arena
from ttmfs.memory.copy import copy_pages, zero_pages
from ttmfs.sync.fence import Fence


class Backing(Protocol):
    """Where bytes are: a Resource with memory of its own, or a TT. Units are pages."""

    @property
    def num_pages(self) -> int: ...
    @property
    def arena(self) -> Arena: ...
    def extent(self, index: int, count: int) -> tuple[int, int]: ...
    def numbers(self, index: int, count: int) -> NDArray[np.uint32]: ...


class CopyState(enum.Enum):
    """QUEUED until its dependencies signaled and its simulated latency is spent; RUNNING while bytes move."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


class Copy:
    """`num_pages` pages from `src` (None: zeros) to `dst`, announced by `fence`.

    `src` and `dst` have memory for all of these pages when the copy runs. `zero_from` is a page index or None: pages
    of `dst` from there on were cut off by a truncate while the copy ran and read as zeros.
    """

    __slots__ = ("dst", "fence", "num_pages", "src", "state", "zero_from")

    def __init__(self, src: Backing | None, dst: Backing, num_pages: int, fence: Fence) -> None:
        self.src = src
        self.dst = dst
        self.num_pages = num_pages
        self.fence = fence
        self.state = CopyState.QUEUED
        self.zero_from: int | None = None

    def step(self, index: int, count: int) -> None:
        """Copy (or clear) `count` pages from page `index` on; synchronous."""
        dst_pages = self.dst.numbers(index, count)
        if self.src is None:
            zero_pages(self.dst.arena, dst_pages)
        else:
            copy_pages(self.dst.arena, dst_pages, self.src.arena, self.src.numbers(index, count))

    def finish(self) -> None:
        """Cut off what a truncate took away meanwhile."""
        if self.zero_from is not None and self.zero_from < self.num_pages:
            zero_pages(self.dst.arena, self.dst.numbers(self.zero_from, self.num_pages - self.zero_from))
        self.state = CopyState.DONE
