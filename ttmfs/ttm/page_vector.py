"""PageVector: what is where in a tt.

One uint32 per page: 0 is a hole (reads as zeros, costs nothing), an even value is a page of the system arena,
(page + 1) << 1, an odd one a backup handle, handle << 1 | 1. They are in leaves (ttmfs.ttm.leaves), so that a hole of
any size costs nothing either, and everything here takes time by what there is, not by the length. Nothing here changes
an entry.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ttmfs.memory.arena import Arena
from ttmfs.memory.pool import PagePool
from ttmfs.memory.runs import expand
from ttmfs.ttm.leaves import LEAF_PAGES, LEAF_SHIFT, Index, Kind, Leaves
from ttmfs.units import MAX_ORDER

__all__ = ["HOLE", "Index", "PageVector", "Vector", "decode_handles", "decode_pages", "encode_handles", "encode_pages"]

HOLE: Final = 0
Vector = NDArray[np.uint32]

_EMPTY: Final[Vector] = np.zeros(LEAF_PAGES, np.uint32)
_EMPTY.flags.writeable = False
_LEAVES_AT_ONCE: Final = 64
"""Leaves that are looked at together for how far a run goes."""
_FEW_PIECES: Final = 4
"""So many are looked at one by one: that costs less than to look at all at once."""


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


def are_pages(entries: Vector) -> NDArray[np.bool_]:
    """Which of these entries are pages."""
    found: NDArray[np.bool_] = (entries & 1 == 0) & (entries != HOLE)
    return found


def are_handles(entries: Vector) -> NDArray[np.bool_]:
    """Which of these entries are handles."""
    found: NDArray[np.bool_] = entries & 1 == 1
    return found


def are_set(entries: Vector) -> NDArray[np.bool_]:
    """Which of these entries are no holes."""
    found: NDArray[np.bool_] = entries != HOLE
    return found


class PageVector(Leaves[np.uint32]):
    """The entries of `num_pages` pages, over the pool of one device. All counts are pages.

    `populated_pages` counts arena pages, `backed_up_pages` handles.
    """

    __slots__ = ("backed_up_pages", "pool", "populated_pages")

    def __init__(self, pool: PagePool, num_pages: int) -> None:
        super().__init__(num_pages, _EMPTY)
        self.pool = pool
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

    @property
    def _pages(self) -> Kind:
        """What tells pages from the rest of this vector."""
        return are_pages if self.backed_up_pages else are_set

    # -- neighbours ----------------------------------------------------------------------------------------------

    def extent(self, index: int, count: int) -> tuple[int, int]:
        """(page number, length) of the longest run of consecutive pages from `index` on, at most `count` pages.

        The page number is -1 for a run of entries without memory (holes and handles, and all behind the end).
        """
        leaf = self._leaves.get(index >> LEAF_SHIFT)
        start = index & (LEAF_PAGES - 1)
        value = 0 if leaf is None or start >= len(leaf) else leaf.item(start)
        if value & 1 or not value or leaf is None:
            return -1, 1 if count == 1 else self._length_without_memory(index, count)
        page = (value >> 1) - 1
        if count == 1:
            return page, 1
        length = _run_length(leaf[start : start + count])
        if length == count or start + length < LEAF_PAGES:
            return page, length
        return page, length + self._goes_on(index + length, count - length, value + 2 * length)

    def _goes_on(self, index: int, count: int, value: int) -> int:
        """How many of `count` pages, from the begin of a leaf on, continue a run that has come to `value`."""
        length = 0
        while length < count:
            part = self.entries(index + length, min(LEAF_PAGES * _LEAVES_AT_ONCE, count - length))
            if not len(part) or part.item(0) != value + 2 * length:
                break
            run = _run_length(part)
            length += run
            if run < len(part):
                break
        return length

    def _length_without_memory(self, index: int, count: int) -> int:
        end = index + count
        at = index
        while self.populated_pages and (at := self.next_content(at)) < min(end, self.num_pages):
            stop = min(((at >> LEAF_SHIFT) + 1) << LEAF_SHIFT, end)
            with_memory = np.flatnonzero(are_pages(self.entries(at, stop - at)))
            if len(with_memory):
                return at + int(with_memory[0]) - index
            at = stop
        return count

    def has_memory(self, index: int, count: int) -> bool:
        """Do all these entries have a page? None behind the end has."""
        end = index + count
        if self.populated_pages == self.num_pages or end > self.num_pages:
            return end <= self.num_pages
        if count == 1:
            leaf = self._leaves.get(index >> LEAF_SHIFT)
            return leaf is not None and is_page(leaf.item(index & (LEAF_PAGES - 1)))
        while index < end:
            stop = min(((index >> LEAF_SHIFT) + 1) << LEAF_SHIFT, end)
            if not bool(are_pages(self.entries(index, stop - index)).all()):
                return False
            index = stop
        return True

    def next_hole(self, index: int, end: int) -> int:
        """The first hole of [index, end), or `end`."""
        while index < end:
            leaf = self._leaves.get(index >> LEAF_SHIFT)
            if leaf is None:
                return index
            start = index & (LEAF_PAGES - 1)
            holes = leaf[start : start + end - index] == HOLE
            at = int(np.argmax(holes))
            if holes.item(at):
                return index + at
            index += len(holes)
        return end

    def numbers(self, index: int, count: int) -> Vector:
        """Page numbers of `count` entries that all have memory."""
        return decode_pages(self.entries(index, count))

    # -- any of them ---------------------------------------------------------------------------------------------

    def pages_at(self, index: Index) -> Vector:
        """Page numbers of these entries, which all have memory."""
        return decode_pages(self.at(index))

    def present(self) -> Index:
        """Indices of the entries that have a page, ascending."""
        return self.present_in(0, self.num_pages)

    def present_in(self, first: int, count: int) -> Index:
        """Indices of those of `count` entries from `first` on that have a page, ascending."""
        return self.where(first, first + count if self.populated_pages else first, self._pages)

    def pages_in(self, first: int, count: int) -> tuple[Index, Vector]:
        """Indices, ascending, and page numbers of those of `count` entries from `first` on that have a page."""
        index, found = self.find(first, first + count if self.populated_pages else first, self._pages)
        return index, decode_pages(found)

    def handles_in(self, first: int, end: int) -> Index:
        """Indices of the entries of [first, end) that are in the store, ascending."""
        return self.where(first, end if self.backed_up_pages else first, are_handles)

    def holes_in(self, first: int, end: int) -> Index:
        """Indices of the holes of [first, end), ascending. Takes time by the length."""
        holes: Index = (self.entries(first, end - first) == HOLE).nonzero()[0] + first
        return holes

    def whole_pieces(self, order: int) -> tuple[Index, Vector]:
        """Aligned pieces of 2**order pages that are all there: the first index of each, ascending, and their entries.

        `order` is at most MAX_ORDER; the entries are (pieces, 2**order).
        """
        size = 1 << order
        leaves = max(1, size >> LEAF_SHIFT)
        numbers = self._numbers
        if leaves > 1:
            numbers = [head + n for head in numbers if not head % leaves for n in range(leaves)]
        if self.populated_pages < size or not numbers:
            return np.zeros(0, np.intp), np.zeros((0, size), np.uint32)
        entries = self.rows(numbers).reshape(-1, size)
        whole = are_pages(entries).all(axis=1)
        firsts = (np.array(numbers[::leaves], np.intp)[:, None] << LEAF_SHIFT) + np.arange(0, LEAF_PAGES, size)
        firsts = firsts.ravel()[: len(entries)]
        return (firsts, entries) if whole.all() else (firsts[whole], entries[whole])

    def in_blocks(self, order: int, pieces: Index) -> bool:
        """Is each of these pieces of 2**order pages that is all there one block, or part of a larger one?"""
        size = 1 << order
        firsts = pieces[pieces < self.num_pages >> order] << order
        # The ends tell most of those that are not: what is looked at whole costs more than a page of a fault.
        if len(firsts) > _FEW_PIECES:
            firsts = firsts[are_pages(self.at(firsts)) & are_pages(self.at(firsts + (size - 1)))]
            entries = self.at(expand(firsts, np.full(len(firsts), size))).reshape(-1, size)
        else:
            ends = [(first, first + size - 1) for first in firsts.tolist()]
            rows = [self.entries(a, size) for a, z in ends if is_page(self.entry(a)) and is_page(self.entry(z))]
            entries = np.stack(rows) if rows else np.zeros((0, size), np.uint32)
        return self.are_blocks(order, entries[are_pages(entries).all(axis=1)])

    def are_blocks(self, order: int, entries: Vector) -> bool:
        """Is each of these rows of 2**order pages one block, or part of a larger one?"""
        # An entry is twice a page number and two more: neighbours differ by two.
        if not len(entries) or bool((entries[:, 1:] - entries[:, :-1] != 2).any()):
            return not len(entries)
        heads = decode_pages(np.ascontiguousarray(entries[:, 0]))
        aligned = not bool((heads & ((1 << order) - 1)).any())
        return aligned and self.pool.are_within(heads, order)

    # -- what people look at -------------------------------------------------------------------------------------

    def letters(self, first: int, count: int) -> NDArray[np.uint8]:
        """`s`, `b` or `.` for each of `count` pages from `first` on, as ASCII codes: uint8 (count,)."""
        out = np.full(count, ord("."), np.uint8)
        if self.populated_pages:
            out[self.present_in(first, count) - first] = ord("s")
        if self.backed_up_pages:
            out[self.handles_in(first, first + count) - first] = ord("b")
        return out

    def page_orders(self) -> dict[int, int]:
        """Blocks by order among the pages it holds."""
        _index, pages = self.pages_in(0, self.num_pages)
        if not len(pages):
            return {}
        orders = self.pool.page_orders(pages)
        pages_by_order = np.bincount(orders, minlength=MAX_ORDER + 1)
        return {order: int(count) >> order for order, count in enumerate(pages_by_order) if count}

    def runs(self) -> int:
        """Number of maximal runs of consecutive pages; holes end a run."""
        index, pages = self.pages_in(0, self.num_pages)
        if not len(pages):
            return 0
        together = (np.diff(pages.astype(np.int64)) == 1) & (np.diff(index) == 1)
        return int((~together).sum()) + 1


def _run_length(entries: Vector) -> int:
    """How many of these entries, from the first on, are consecutive pages, given that the first is a page."""
    last = len(entries) - 1
    follows = entries[1:] - entries[:-1] == 2
    if entries.item(last) - entries.item(0) == 2 * last and bool(follows.all()):
        return last + 1
    return int(np.argmin(follows)) + 1
