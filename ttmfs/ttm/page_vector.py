"""PageVector: what is where in a tt.

One uint32 per page: 0 is a hole (reads as zeros, costs nothing), an even value is a page of the system arena,
(page + 1) << 1, an odd one a backup handle, handle << 1 | 1. The vector is numpy zeros, so that a sparse BO of
64 GiB touches no memory of its own. Nothing here changes it.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ttmfs.memory.arena import Arena
from ttmfs.memory.pool import PagePool
from ttmfs.units import MAX_ORDER

HOLE: Final = 0
Vector = NDArray[np.uint32]
Index = NDArray[np.intp]


def encode_pages(pages: Vector) -> Vector:
    """Page numbers as the vector holds them."""
    return (pages + np.uint32(1)) << np.uint32(1)


def decode_pages(vector: Vector) -> Vector:
    """Page numbers of entries that are all pages."""
    return (vector >> np.uint32(1)) - np.uint32(1)


def encode_handles(handles: Vector) -> Vector:
    """Handles of the swap store as the vector holds them."""
    return handles << np.uint32(1) | np.uint32(1)


def decode_handles(vector: Vector) -> Vector:
    """Handles of entries that are all handles."""
    return vector >> np.uint32(1)


def is_page(value: int) -> bool:
    """Is this entry a page?"""
    return value != HOLE and not value & 1


class PageVector:
    """`num_pages` entries over the pool of one device. All counts are pages.

    `populated_pages` counts arena pages, `backed_up_pages` handles.
    """

    __slots__ = ("backed_up_pages", "num_pages", "pool", "populated_pages", "vector")

    def __init__(self, pool: PagePool, num_pages: int) -> None:
        self.pool = pool
        self.num_pages = num_pages
        self.vector: Vector = np.zeros(num_pages, np.uint32)
        self.populated_pages = 0
        self.backed_up_pages = 0

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
        return self.populated_pages > 0 or self.backed_up_pages > 0

    def extent(self, index: int, count: int) -> tuple[int, int]:
        """(page number, length) of the longest run of consecutive pages from `index` on, at most `count` pages.

        The page number is -1 for a run of entries without memory (holes and handles).
        """
        vector = self.vector
        value = vector.item(index)
        if count == 1:
            return ((value >> 1) - 1 if is_page(value) else -1), 1
        part = vector[index : index + count]
        if not is_page(value):
            with_memory = np.flatnonzero((part != HOLE) & (part & 1 == 0))
            return -1, int(with_memory[0]) if len(with_memory) else len(part)
        page = (value >> 1) - 1
        follows = part[1:] - part[:-1] == 2
        if part.item(-1) - value == 2 * (len(part) - 1) and bool(follows.all()):
            return page, len(part)
        return page, int(np.argmin(follows)) + 1

    def numbers(self, index: int, count: int) -> Vector:
        """Page numbers of `count` entries that all have memory."""
        return decode_pages(self.vector[index : index + count])

    def pages_at(self, index: Index) -> Vector:
        """Page numbers of these entries, which all have memory."""
        return decode_pages(self.vector[index])

    def has_memory(self, index: int, count: int) -> bool:
        """Do all these entries have a page? None behind the end has."""
        if self.populated_pages == self.num_pages:
            return index + count <= self.num_pages
        if count == 1:
            return index < self.num_pages and is_page(self.vector.item(index))
        part = self.vector[index : index + count]
        return len(part) == count and bool(((part != HOLE) & (part & 1 == 0)).all())

    def present(self) -> Index:
        """Indices of the entries that have a page, ascending."""
        if not self.populated_pages:
            return np.zeros(0, np.intp)
        return np.flatnonzero((self.vector != HOLE) & (self.vector & 1 == 0))

    def present_in(self, first: int, count: int) -> Index:
        """Indices of those of `count` entries from `first` on that have a page, ascending."""
        part = self.vector[first : first + count]
        return np.flatnonzero((part != HOLE) & (part & 1 == 0)) + first

    def letters(self) -> NDArray[np.uint8]:
        """`s`, `b` or `.` per page as ASCII codes: uint8 (num_pages,)."""
        out = np.full(self.num_pages, ord("."), np.uint8)
        if self.populated_pages:
            out[(self.vector != HOLE) & (self.vector & 1 == 0)] = ord("s")
        if self.backed_up_pages:
            out[self.vector & 1 == 1] = ord("b")
        return out

    def handles_in(self, first: int, end: int) -> Index:
        """Indices of the entries of [first, end) that are in the store, ascending."""
        if not self.backed_up_pages:
            return np.zeros(0, np.intp)
        return np.flatnonzero(self.vector[first:end] & 1 == 1) + first

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
