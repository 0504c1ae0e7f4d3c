"""Dirty tracking: which pages of a BO clients have written since the device last took them (vmwgfx_page_dirty).

FUSE shows neither a write fault nor a dirty bit: of a store into a mapping nothing is seen until the kernel writes the
page back. What is recorded are WRITEs, from pwrite and from writeback alike. So "the page tables are scanned" means
here: have the dirty pages written back (INVAL), then collect what came; and "writes are trapped" means: record WRITEs
as they come, at no cost, late for stores into mappings.
"""

import enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ttmfs.ttm.bo import MAX_SIZE
from ttmfs.ttm.leaves import LEAF_PAGES, Leaves
from ttmfs.units import PAGE_SHIFT

SCAN_BELOW_PAGES: Final = 512
"""A BO with fewer pages begins with SCAN (PAGE_SIZE / sizeof(pte))."""
NUM_CHANGE_TRIGGERS: Final = 2
"""The method changes when its reason was met more often than this in a row."""
PERCENT_DIRTY: Final = 10
"""LOG becomes SCAN when more than this was dirty."""

Run = tuple[int, int]

_ALL_PAGES: Final = MAX_SIZE >> PAGE_SHIFT
_CLEAN: Final = np.zeros(LEAF_PAGES, np.bool_)
_DIRTY: Final = np.bool_(True)


class DirtyTracker:
    """Dirty pages, in leaves, and the window of the last WRITEs before them: sequential ones cost one comparison.

    All numbers are pages; a run is (first, end), end exclusive.
    """

    __slots__ = ("_end", "_first", "_pages")

    def __init__(self) -> None:
        self._pages: Leaves[np.bool_] | None = None
        """Those that are not in the window; None: none were there yet."""
        self._first = self._end = 0

    def wrote(self, first: int, end: int) -> None:
        """Pages [first, end) were written."""
        if self._first <= first <= self._end:
            self._end = max(self._end, end)
            return
        self._mark()
        self._first, self._end = first, end

    def _mark(self) -> None:
        """The window becomes empty."""
        if self._end > self._first:
            if self._pages is None:
                self._pages = Leaves(_ALL_PAGES, _CLEAN)
            self._pages.put_range(self._first, self._end, _DIRTY)
        self._first = self._end = 0

    def runs(self) -> list[Run]:
        """Runs of dirty pages, ascending."""
        if self._pages is None:
            return [(self._first, self._end)] if self._end > self._first else []
        self._mark()
        pages = self._pages.where(0, _ALL_PAGES, _are_dirty)
        if not len(pages):
            return []
        breaks = np.flatnonzero(pages[1:] - pages[:-1] != 1)
        firsts = pages[np.concatenate(([0], breaks + 1))]
        ends = pages[np.concatenate((breaks, [len(pages) - 1]))] + 1
        return list(zip(firsts.tolist(), ends.tolist(), strict=True))

    def take(self) -> list[Run]:
        """The runs; they are clean from now on (vmw_bo_dirty_transfer_to_res)."""
        runs = self.runs()
        self._pages = None
        self._first = self._end = 0
        return runs

    def cut(self, num_pages: int) -> None:
        """A truncate: pages from `num_pages` on are gone."""
        self._end = min(self._end, num_pages)
        self._first = min(self._first, self._end)
        if self._pages is not None:
            self._pages.clear(self._pages.where(num_pages, _ALL_PAGES, _are_dirty))


def _are_dirty(entries: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return entries


class DirtyMethod(enum.Enum):
    """How vmwgfx learns of writes; its PAGETABLE and MKWRITE."""

    SCAN = "scan"
    LOG = "log"


class MethodSwitch:
    """Which method a BO uses, and the count that makes it change."""

    __slots__ = ("_reasons", "method")

    def __init__(self, num_pages: int) -> None:
        self.method = DirtyMethod.SCAN if num_pages < SCAN_BELOW_PAGES else DirtyMethod.LOG
        self._reasons = 0

    def collected(self, dirty_pages: int, num_pages: int) -> bool:
        """A collection found so many dirty pages; True when that changed the method.

        SCAN: nothing was dirty, for the third time in a row: scanning is wasted. LOG: more than 10 % were dirty, for
        the third time in a row: recording each is.
        """
        many = dirty_pages * 100 > PERCENT_DIRTY * num_pages
        reason = dirty_pages == 0 if self.method is DirtyMethod.SCAN else many
        self._reasons = self._reasons + 1 if reason else 0
        if self._reasons <= NUM_CHANGE_TRIGGERS:
            return False
        self.method = DirtyMethod.LOG if self.method is DirtyMethod.SCAN else DirtyMethod.SCAN
        self._reasons = 0
        return True
