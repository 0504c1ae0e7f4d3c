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

SCAN_BELOW_PAGES: Final = 512
"""A BO with fewer pages begins with SCAN (PAGE_SIZE / sizeof(pte))."""
NUM_CHANGE_TRIGGERS: Final = 2
"""The method changes when its reason was met more often than this in a row."""
PERCENT_DIRTY: Final = 10
"""LOG becomes SCAN when more than this was dirty."""

Run = tuple[int, int]


class DirtyTracker:
    """Dirty pages as a bitmap with a window [low, high) around them; sequential WRITEs cost one comparison.

    All numbers are pages; a run is (first, end), end exclusive.
    """

    __slots__ = ("_bits", "_end", "_first", "_high", "_low")

    def __init__(self) -> None:
        self._bits: NDArray[np.bool_] | None = None
        self._first = self._end = 0
        self._low = self._high = 0

    def wrote(self, first: int, end: int) -> None:
        """Pages [first, end) were written."""
        if self._first <= first <= self._end:
            self._end = max(self._end, end)
            return
        if self._end > self._first:
            self._mark()
        self._first, self._end = first, end

    def _mark(self) -> None:
        first, end = self._first, self._end
        bits = self._bits
        if bits is None or end > len(bits):
            # Untouched zeros cost nothing, so grow generously.
            grown = np.zeros(max(end, 2 * (0 if bits is None else len(bits)), 64), bool)
            if bits is not None:
                grown[self._low : self._high] = bits[self._low : self._high]
            self._bits = bits = grown
        bits[first:end] = True
        self._low = min(self._low, first) if self._high else first
        self._high = max(self._high, end)
        self._first = self._end = 0

    def runs(self) -> list[Run]:
        """Runs of dirty pages, ascending."""
        if not self._high:
            return [(self._first, self._end)] if self._end > self._first else []
        if self._end > self._first:
            self._mark()
        assert self._bits is not None
        part = np.concatenate(([False], self._bits[self._low : self._high], [False]))
        edges = np.flatnonzero(part[1:] != part[:-1]) + self._low
        return [(int(first), int(end)) for first, end in edges.reshape(-1, 2).tolist()]

    def take(self) -> list[Run]:
        """The runs; they are clean from now on (vmw_bo_dirty_transfer_to_res)."""
        runs = self.runs()
        self._bits = None
        self._first = self._end = self._low = self._high = 0
        return runs

    def cut(self, num_pages: int) -> None:
        """A truncate: pages from `num_pages` on are gone."""
        kept = [(first, min(end, num_pages)) for first, end in self.take() if first < num_pages]
        for first, end in kept:
            self.wrote(first, end)


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
