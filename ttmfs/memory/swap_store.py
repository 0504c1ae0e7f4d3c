"""Swap storage: where the pages of a swapped-out BO are (the shmem file "ttm swap" of ttm_tt_swapout).

What it is: `SwapStore` is the device's limit and its books, `SwapStorage` the pages of one swapout, one numpy buffer.
What it promises: pages come back byte for byte, in any order and any number of times, until they are dropped; the
buffer is freed with its last page.
"""

import errno

import numpy as np
from numpy.typing import NDArray

from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.runs import PageArray, is_run
from ttmfs.units import PAGE_SIZE


class SwapStore:
    """Room for `limit_pages` pages. `used_pages` are in it now, `pages_out` and `pages_in` went through it."""

    __slots__ = ("limit_pages", "pages_in", "pages_out", "used_pages")

    def __init__(self, limit_pages: int) -> None:
        self.limit_pages = limit_pages
        self.used_pages = self.pages_out = self.pages_in = 0

    def reserve(self, num_pages: int) -> "SwapStorage":
        """Storage for so many pages, to be filled by `store`. TtmError(ENOSPC) when there is no such room."""
        left = self.limit_pages - self.used_pages
        if num_pages > left:
            raise TtmError(
                errno.ENOSPC, f"no room for {num_pages} pages in swap: {left} of {self.limit_pages} are free"
            )
        self.used_pages += num_pages
        return SwapStorage(self, num_pages)


class SwapStorage:
    """`num_pages` rows of a page each, of which `live` are not dropped yet."""

    __slots__ = ("_owner", "_rows", "live", "num_pages")

    def __init__(self, owner: SwapStore, num_pages: int) -> None:
        self._owner = owner
        self._rows: NDArray[np.void] = np.empty(num_pages, f"V{PAGE_SIZE}")
        self.num_pages = self.live = num_pages

    def store(self, row: int, arena: Arena, pages: PageArray) -> None:
        """Copy `pages` into the rows from `row` on."""
        count = len(pages)
        if count and is_run(pages):
            self._rows[row : row + count] = arena.rows[int(pages[0]) : int(pages[0]) + count]
        else:
            self._rows[row : row + count] = arena.rows[pages]
        self._owner.pages_out += count

    def load(self, rows: NDArray[np.intp], arena: Arena, pages: PageArray) -> None:
        """Copy these rows into `pages`; they stay stored."""
        arena.rows[pages] = self._rows[rows]
        self._owner.pages_in += len(pages)

    def drop(self, count: int) -> None:
        """So many rows are not needed any more; with the last one the buffer goes."""
        self.live -= count
        self._owner.used_pages -= count
        if not self.live:
            self._rows = np.empty(0, f"V{PAGE_SIZE}")
