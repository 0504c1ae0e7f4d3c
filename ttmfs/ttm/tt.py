"""TT: the page vector of a BO (ttm_tt).

One uint32 per page: 0 is a hole (reads as zeros, costs nothing), an even value is a page of the system arena,
(page + 1) << 1, an odd one a backup handle, handle << 1 | 1. The vector is numpy zeros, so that a sparse BO of
64 GiB touches no memory of its own. Where the kernel's tt is populated or not, this one may be partly so while the
BO lives in system; gtt, vram and jobs populate it whole (`populate_all`).
"""

import errno
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.pool import PagePool
from ttmfs.memory.pool_types import Caching
from ttmfs.memory.swap_store import SwapStorage
from ttmfs.ttm.swapped import SwappedPages, decode_rows
from ttmfs.units import MAX_ORDER, PAGE_MASK, PAGE_SHIFT

HOLE: Final = 0
PageVector = NDArray[np.uint32]


def encode_pages(pages: PageVector) -> PageVector:
    """Page numbers as the vector holds them."""
    return (pages + np.uint32(1)) << np.uint32(1)


def decode_pages(vector: PageVector) -> PageVector:
    """Page numbers of entries that are all pages."""
    return (vector >> np.uint32(1)) - np.uint32(1)


class TT:
    """`num_pages` entries over the pool of one device. All counts are pages.

    `populated_pages` counts arena pages, `backed_up_pages` handles. `external` pages belong to somebody else (an
    imported BO) and are never evicted, swapped or backed up.
    """

    __slots__ = (
        "backed_up_pages",
        "beneficial_order_failed",
        "caching",
        "external",
        "mappable",
        "num_pages",
        "past_pool",
        "pool",
        "populated_pages",
        "swap",
        "vector",
    )

    def __init__(self, pool: PagePool, num_pages: int, caching: Caching = Caching.cached) -> None:
        self.pool = pool
        self.num_pages = num_pages
        self.caching = caching
        self.vector: PageVector = np.zeros(num_pages, np.uint32)
        self.populated_pages = 0
        self.backed_up_pages = 0
        self.beneficial_order_failed = False
        self.external = False
        self.mappable = True
        self.past_pool = False
        """Freed past the pool: fragments that defrag left behind are of use only when they merge."""
        self.swap: SwappedPages | None = None
        """What is in swap (TTM_TT_FLAG_SWAPPED); such entries are odd, and come back before anything else is done."""

    def usable(self) -> bool:
        """May its pages be touched right now? Only imported memory can go away."""
        return True

    def fini(self) -> None:
        """ttm_tt_fini: give everything up, for good."""
        self.unpopulate(to_pool=not self.past_pool)

    # -- what is where -------------------------------------------------------------------------------------------

    @property
    def arena(self) -> Arena:
        """The memory that the vector numbers."""
        return self.pool.arena

    @property
    def is_populated(self) -> bool:
        """Every page has memory (ttm_tt_is_populated)."""
        return self.populated_pages == self.num_pages

    @property
    def has_content(self) -> bool:
        """Is any page not a hole?"""
        return self.populated_pages > 0 or self.backed_up_pages > 0 or self.swap is not None

    @property
    def swapped_pages(self) -> int:
        """Entries whose bytes are in swap."""
        return 0 if self.swap is None else self.swap.pages

    def extent(self, index: int, count: int) -> tuple[int, int]:
        """(page number, length) of the longest run of consecutive pages from `index` on, at most `count` pages.

        The page number is -1 for a run of entries without memory (holes and handles).
        """
        vector = self.vector
        value = vector.item(index)
        if count == 1:
            return ((value >> 1) - 1 if _is_page(value) else -1), 1
        part = vector[index : index + count]
        if not _is_page(value):
            with_memory = np.flatnonzero((part != HOLE) & (part & 1 == 0))
            return -1, int(with_memory[0]) if len(with_memory) else len(part)
        page = (value >> 1) - 1
        follows = part[1:] - part[:-1] == 2
        if part.item(-1) - value == 2 * (len(part) - 1) and bool(follows.all()):
            return page, len(part)
        return page, int(np.argmin(follows)) + 1

    def numbers(self, index: int, count: int) -> PageVector:
        """Page numbers of `count` entries that all have memory."""
        return decode_pages(self.vector[index : index + count])

    def pages_at(self, index: NDArray[np.intp]) -> PageVector:
        """Page numbers of these entries, which all have memory."""
        return decode_pages(self.vector[index])

    def has_memory(self, index: int, count: int) -> bool:
        """Do all these entries have a page?"""
        if self.populated_pages == self.num_pages:
            return True
        if count == 1:
            return _is_page(self.vector.item(index))
        part = self.vector[index : index + count]
        return bool(((part != HOLE) & (part & 1 == 0)).all())

    def present(self) -> NDArray[np.intp]:
        """Indices of the entries that have a page, ascending."""
        if not self.populated_pages:
            return np.zeros(0, np.intp)
        return np.flatnonzero((self.vector != HOLE) & (self.vector & 1 == 0))

    def present_in(self, first: int, count: int) -> NDArray[np.intp]:
        """Indices of those of `count` entries from `first` on that have a page, ascending."""
        part = self.vector[first : first + count]
        return np.flatnonzero((part != HOLE) & (part & 1 == 0)) + first

    def letters(self) -> NDArray[np.uint8]:
        """`s`, `b` or `.` per page as ASCII codes: uint8 (num_pages,)."""
        out = np.full(self.num_pages, ord("."), np.uint8)
        if self.populated_pages:
            out[(self.vector != HOLE) & (self.vector & 1 == 0)] = ord("s")
        if self.backed_up_pages or self.swap is not None:
            out[self.vector & 1 == 1] = ord("b")
        return out

    # -- getting and losing memory -------------------------------------------------------------------------------

    def populate_range(
        self, first: int, count: int, *, prefault: int = 0, zero: bool = True, use_reserve: bool = False
    ) -> int:
        """Give memory to every hole in [first, first + count); returns the pages it added.

        Fills aligned pieces of up to the beneficial order, at most `prefault` pages beyond those asked. `zero=False`
        leaves pages that lie wholly in the asked range as they come, for a caller that overwrites all of them.
        TtmError(ENOMEM) when a hole that was asked for finds no memory; what was added until then stays (it is
        legal), only extra pages are given up silently.
        """
        added = self.swap_in(first, count, use_reserve=use_reserve) if self.swap is not None else 0
        end = first + count
        index = first
        holes = None if zero else np.flatnonzero(self.vector[first:end] == HOLE) + first
        try:
            while index < end:
                index += self._first_hole(index, end)
                if index >= end:
                    break
                added += self._populate_piece(index, first, end, prefault, zero, use_reserve)
        except TtmError:
            if holes is not None:
                # Nobody will overwrite these now, and they may hold another BO's bytes.
                self.depopulate(holes[self.vector[holes] != HOLE])
            raise
        return added

    def _first_hole(self, index: int, end: int) -> int:
        part = self.vector[index:end]
        if part.item(0) == HOLE:
            return 0
        holes = part == HOLE
        at = int(np.argmax(holes))
        return at if holes.item(at) else len(part)

    def _populate_piece(self, index: int, first: int, end: int, prefault: int, zero: bool, use_reserve: bool) -> int:
        """Populate the holes of the largest aligned piece around `index` that adds at most `prefault` pages."""
        low, high = self._piece(index, first, end, prefault)
        if (low, high) != (max(low, first), min(high, end)):
            try:
                return self._fill(low, high, zero=True, use_reserve=False)
            except TtmError:
                low, high = max(low, first), min(high, end)
        return self._fill(low, high, zero=zero, use_reserve=use_reserve)

    def _piece(self, index: int, first: int, end: int, prefault: int) -> tuple[int, int]:
        limit = self.pool.beneficial_order or MAX_ORDER
        for order in range(limit, 0, -1):
            low = index >> order << order
            high = min(low + (1 << order), self.num_pages)
            asked = min(high, end) - max(low, first)
            if high - low - asked <= prefault:
                return low, high
        return index, index + 1

    def _fill(self, low: int, high: int, *, zero: bool, use_reserve: bool) -> int:
        """Memory for the holes in [low, high): all of them or ENOMEM."""
        part = self.vector[low:high]
        holes = np.flatnonzero(part == HOLE)
        if not len(holes):
            return 0
        got = self.pool.alloc(
            len(holes),
            caching=self.caching,
            zero=zero,
            use_reserve=use_reserve,
            reclaim_backoff=self.pool.reclaim_backoff,
        )
        part[holes] = encode_pages(got.pages)
        self.populated_pages += len(holes)
        self.beneficial_order_failed |= got.beneficial_order_failed
        return len(holes)

    def populate_all(self, *, zero: bool = True) -> int:
        """Memory for every hole, order by order as ttm_pool_alloc; all or TtmError(ENOMEM) with nothing kept."""
        if self.is_populated:
            return 0
        if self.swap is not None:
            self.swap_in(0, self.num_pages)
        return self._fill(0, self.num_pages, zero=zero, use_reserve=False)

    def adopt(self, index: NDArray[np.intp] | slice, pages: PageVector) -> None:
        """Put freshly allocated `pages` into entries that are holes."""
        self.vector[index] = encode_pages(pages)
        self.populated_pages += len(pages)

    def depopulate(self, index: NDArray[np.intp], *, to_pool: bool = True) -> int:
        """Free the memory of these entries, which become holes; returns how many pages. Entries must have pages.

        Blocks of which only a part goes are split first.
        """
        if not len(index):
            return 0
        pages = decode_pages(self.vector[index])
        if not self.external:
            if len(index) != self.populated_pages:
                self.pool.split(pages)
            self.pool.free(pages, self.caching, to_pool=to_pool)
        self.vector[index] = HOLE
        self.populated_pages -= len(index)
        return len(index)

    def unpopulate(self, *, to_pool: bool = True) -> int:
        """Free everything (ttm_tt_unpopulate): all entries become holes. Returns the pages freed."""
        if self.swap is not None:
            self._drop_swapped(self._swapped_in(0, self.num_pages))
        return self.depopulate(self.present(), to_pool=to_pool)

    def resize(self, num_pages: int) -> None:
        """Grow with holes, or shrink and free what lies behind."""
        if num_pages < self.num_pages:
            present = self.present()
            self.depopulate(present[present >= num_pages])
            if self.swap is not None:
                self._drop_swapped(self._swapped_in(num_pages, self.num_pages))
            self.vector = self.vector[:num_pages].copy()
        elif num_pages > self.num_pages:
            grown = np.zeros(num_pages, np.uint32)
            if self.has_content:
                grown[: self.num_pages] = self.vector
            self.vector = grown
        self.num_pages = num_pages

    def cut_tail(self, num_pages: int) -> "TT":
        """Take the pages from `num_pages` on away, into a new TT of the same length; blocks may be split."""
        assert self.swap is None, "only a BO in system has pages in swap"
        tail = TT(self.pool, self.num_pages, self.caching)
        present = self.present()
        moved = present[present >= num_pages]
        if len(moved):
            if len(moved) != len(present):
                self.pool.split(decode_pages(self.vector[moved]))
            tail.vector[num_pages:] = self.vector[num_pages:]
            tail.populated_pages = len(moved)
            self.vector[num_pages:] = HOLE
            self.populated_pages -= len(moved)
        return tail

    # -- swap ----------------------------------------------------------------------------------------------------

    def _swapped_in(self, first: int, end: int) -> NDArray[np.intp]:
        """Entries of [first, end) that are in swap."""
        return np.flatnonzero(self.vector[first:end] & 1 == 1) + first

    def mark_swapped(self, index: NDArray[np.intp], storage: SwapStorage) -> None:
        """The pages of these entries were stored, row by row: free them (ttm_tt_swapout)."""
        if self.swap is None:
            self.swap = SwappedPages()
        entries = self.swap.add(storage)
        self.depopulate(index, to_pool=False)
        self.vector[index] = entries

    def swap_in(self, first: int, count: int, *, use_reserve: bool = False) -> int:
        """Bring what is in swap of [first, first + count) back (ttm_tt_swapin); returns the pages.

        TtmError(ENOMEM), or what the storage raises: then everything is where it was, and may be tried again.
        """
        swap = self.swap
        if swap is None:
            return 0
        index = self._swapped_in(first, first + count)
        if not len(index):
            return 0
        rows = decode_rows(self.vector[index])
        got = self.pool.alloc(len(index), caching=self.caching, zero=False, use_reserve=use_reserve)
        try:
            swap.load(rows, index, self.arena, got.pages)
        except BaseException:
            self.pool.free(got.pages, self.caching)
            raise
        swap.drop(rows, index)
        self.adopt(index, got.pages)
        self.beneficial_order_failed |= got.beneficial_order_failed
        if not swap.pages:
            self.swap = None
        return len(index)

    def _drop_swapped(self, index: NDArray[np.intp]) -> None:
        """Forget what is in swap of these entries: they become holes."""
        if self.swap is None or not len(index):
            return
        self.swap.drop(decode_rows(self.vector[index]), index)
        self.vector[index] = HOLE
        if not self.swap.pages:
            self.swap = None

    def cut_swapped(self, offset: int, end_page: int) -> None:
        """A truncate: what is in swap from byte `offset` to the end of page `end_page` - 1 reads as zeros."""
        swap = self.swap
        if swap is None:
            return
        index = offset >> PAGE_SHIFT
        end_page = min(end_page, self.num_pages)
        if offset & PAGE_MASK and index < end_page:
            if self.vector.item(index) & 1:
                swap.cut(index, offset)
            index += 1
        if index < end_page:
            self._drop_swapped(self._swapped_in(index, end_page))

    def page_orders(self) -> dict[int, int]:
        """Blocks by order among the pages it holds."""
        present = self.present()
        if not len(present):
            return {}
        orders = self.pool.page_orders(decode_pages(self.vector[present]))
        pages_by_order = np.bincount(orders, minlength=MAX_ORDER + 1)
        return {order: int(count) >> order for order, count in enumerate(pages_by_order) if count}

    def runs(self) -> int:
        """Number of maximal runs of consecutive pages; holes end a run."""
        present = self.present()
        if not len(present):
            return 0
        together = (np.diff(self.vector[present].astype(np.int64)) == 2) & (np.diff(present) == 1)
        return int((~together).sum()) + 1


def _is_page(value: int) -> bool:
    return value != HOLE and not value & 1


def out_of_memory(pages: int, pool: PagePool) -> TtmError:
    """The ENOMEM of a populate that reclaim could not help."""
    return TtmError(
        errno.ENOMEM,
        f"no memory for {pages} pages: {pool.free_pages} of {pool.arena.num_pages} are free; "
        "unlink or evict something, or mount with more --memory",
    )
