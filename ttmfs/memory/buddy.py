"""Buddy: the power-of-two allocator of a region (kernel: drm_buddy, since 7.1 gpu_buddy), in pages of 4 KiB.

What it promises. One root per set bit of the size. Every allocated page has one owner; a failed call leaves no trace;
free buddies are always merged. Allocations take the largest orders that fit the remaining size, from the
highest-offset block of the smallest sufficient order, and splitting keeps the right half. Blocks come in falling
order, and ascending within one order (the kernel's list is descending there), so that neighbours form runs.

Clear tracking is that of the newest trees: per page it is known whether it is zero (never used, or freed as cleared),
clear and dirty buddies merge all the same, and an allocation that asks for clear memory prefers blocks that are
wholly clear, then takes others; `is_clear` says which it got.

Single operations look at O(log n) blocks (`steps` counts them); those on many blocks are vectorised by order.
"""

import errno
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from ttmfs.errors import TtmError
from ttmfs.memory.block_map import BlockMap
from ttmfs.memory.blocks import Blocks
from ttmfs.memory.clear_map import ClearMap
from ttmfs.memory.free_area import FreeArea, canonical
from ttmfs.memory.runs import BoolArray, Int64Array, PageArray, Uint8Array, Uint32Array, ascending
from ttmfs.units import PAGE_SHIFT

__all__ = ["Blocks", "Buddy"]

_NO_BLOCKS = Blocks(np.empty(0, np.int64), np.empty(0, np.uint8), 0)
_CHECKED_AT_ONCE: Final = 1 << 16
"""Pages; a power of two."""
_ORDERS: Final = tuple(np.array([order], np.uint8) for order in range(64))
"""The orders of one block, by its order: shared by all such Blocks, so nobody may write into one."""
for _order in _ORDERS:
    _order.flags.writeable = False


class _Window(NamedTuple):
    """Where in the region an allocation may take blocks, and which it prefers."""

    first: int
    last: int
    topdown: bool
    clear: bool


class Buddy:
    """An allocator over pages [0, num_pages), all free; `clear=True` says that all of them are zero.

    Raises TtmError(EINVAL) when there is not at least one page.
    """

    __slots__ = ("_clear", "_free", "_owned", "max_order", "num_pages")

    def __init__(self, num_pages: int, clear: bool = False) -> None:
        if num_pages < 1:
            raise TtmError(errno.EINVAL, f"a buddy allocator needs at least one page, not {num_pages}")
        self.num_pages = num_pages
        self.max_order = num_pages.bit_length() - 1
        self._free = FreeArea(num_pages)
        self._free.add_range(0, num_pages)
        self._clear = ClearMap(num_pages, clear)
        self._owned = BlockMap(num_pages)

    @property
    def free_pages(self) -> int:
        """Pages that are free."""
        return self._free.pages

    @property
    def clear_free_pages(self) -> int:
        """Free pages that are known to be zero."""
        return self._clear.area.pages

    @property
    def steps(self) -> int:
        """Levels and blocks looked at so far, by all operations: what stays logarithmic in their number."""
        return self._free.steps + self._clear.area.steps

    def free_by_order(self) -> list[int]:
        """Number of free blocks of each order, 0 to max_order."""
        return list(self._free.blocks)

    # Allocation.

    def alloc(
        self,
        pages: int,
        *,
        first: int = 0,
        last: int | None = None,
        min_order: int = 0,
        contiguous: bool = False,
        topdown: bool = False,
        trim: bool = True,
        clear: bool = False,
    ) -> Blocks:
        """Allocate `pages` pages inside [first, last) (drm_buddy_alloc_blocks); `last` None is the end.

        `min_order`: no block is smaller, and the size is rounded up to one. `contiguous`: one run, tried as a single
        block of the next power of two whose tail is given back (kept with `trim=False`), then, without a range, as a
        block of the power of two below and what is free at its right, then left. `pages == last - first`: exactly these
        pages. `topdown`: highest offset of all blocks that suffice. `clear`: prefer blocks that are wholly zero.

        Raises TtmError(EINVAL) for arguments that can never be served and TtmError(ENOSPC) when there is no room (evict
        something); nothing has changed then.
        """
        last = self.num_pages if last is None else last
        self._check_arguments(pages, first, last, min_order)
        restricted = first > 0 or last < self.num_pages
        window = _Window(first, last, topdown, clear)
        if first + pages == last:
            return self._alloc_exact(first, last, min_order)
        size = -(-pages >> min_order) << min_order
        if contiguous:
            return self._alloc_contiguous(size, window, min_order, trim)
        if size > self.num_pages:
            message = f"{pages} pages in blocks of {1 << min_order} are more than the {self.num_pages} there are"
            raise TtmError(errno.EINVAL, message)
        if size > min(self._free.pages, last - first):
            raise self._full(pages)
        if size == 1 << (size.bit_length() - 1) and not (restricted or topdown or clear):
            order = size.bit_length() - 1
            start = self.alloc_one(order)
            if start >= 0:
                return Blocks(np.array([start], np.int64), _ORDERS[order], size)
        starts: list[Int64Array] = []
        orders: list[Uint8Array] = []
        remaining = size
        order = remaining.bit_length() - 1
        while remaining and order >= min_order:
            got = self._take(order, remaining >> order, window)
            if got.size:
                starts.append(got)
                orders.append(np.full(got.size, order, np.uint8))
                remaining -= got.size << order
            order = min(order - 1, remaining.bit_length() - 1)
        if remaining:
            for taken, order_of in zip(starts, orders, strict=True):
                self.free(Blocks.of(taken, order_of), cleared=None)
            raise self._full(pages)
        return Blocks(np.concatenate(starts), np.concatenate(orders), size)

    def alloc_order(self, order: int, count: int, *, clear: bool = False) -> Int64Array:
        """Up to `count` blocks of exactly `order`, larger ones split as needed; their starts, int64, ascending.

        The highest blocks of the smallest sufficient order go first, so that large ones stay whole. Never fails: the
        result is shorter, or empty, when there are no more (also for an order that the size cannot hold).
        """
        if count <= 0 or order > self.max_order or order < 0:
            return _NO_BLOCKS.start
        if count == 1 and not clear:
            start = self.alloc_one(order)
            return np.array([start], np.int64) if start >= 0 else _NO_BLOCKS.start
        return self._take(order, count, _Window(0, self.num_pages, False, clear))

    def alloc_one(self, order: int) -> int:
        """One block of exactly `order` (0..max_order), as `alloc_order` does; its start, -1 when there is none."""
        start = self._free.take_one(order)
        if start >= 0:
            self._owned.own_one(start, order)
            if self._clear.area.pages:
                self._clear.area.remove(start, order)
        return start

    def _check_arguments(self, pages: int, first: int, last: int, min_order: int) -> None:
        if pages < 1:
            raise TtmError(errno.EINVAL, f"{pages} pages: ask for at least one")
        if not 0 <= min_order <= self.max_order:
            raise TtmError(errno.EINVAL, f"minimum order {min_order} is not between 0 and {self.max_order}")
        if not 0 <= first < last <= self.num_pages:
            message = f"range {first}-{last} is not inside the {self.num_pages} pages there are"
            raise TtmError(errno.EINVAL, message)
        if first + pages > self.num_pages:
            message = f"{pages} pages from page {first} on are more than the {self.num_pages} there are"
            raise TtmError(errno.EINVAL, message)
        if first + pages == last and (first | last) & ((1 << min_order) - 1):
            message = f"exact range {first}-{last} is not made of blocks of {1 << min_order} pages"
            raise TtmError(errno.EINVAL, message)

    def _full(self, pages: int) -> TtmError:
        message = f"no room for {pages} pages as asked ({self.free_pages} of {self.num_pages} are free)"
        return TtmError(errno.ENOSPC, message)

    def _take(self, order: int, count: int, window: _Window) -> Int64Array:
        """Up to `count` blocks of `order` in the range, marked allocated, ascending."""
        wanted = _NO_BLOCKS.start
        first, last, topdown = window.first, window.last, window.topdown
        if window.clear and self._clear.area.pages:
            wanted = self._clear.area.take_units(order, count, first, last, topdown)
            self._free.remove_many(wanted, order)
        if wanted.size < count:
            more = self._free.take_units(order, count - wanted.size, first, last, topdown)
            self._clear.area.remove_many(more, order)
            wanted = ascending(np.concatenate((wanted, more))) if wanted.size else more
        self._owned.own(wanted, order)
        return wanted

    def _claim_range(self, first: int, last: int) -> Blocks:
        """Allocate free pages [first, last) as their largest aligned blocks, ascending."""
        blocks = list(canonical(first, last))
        for start, order in blocks:
            self._free.remove(start, order)
            if self._clear.area.pages:
                self._clear.area.remove(start, order)
            self._owned.own_one(start, order)
        starts, orders = zip(*blocks, strict=True)
        return Blocks(np.array(starts, np.int64), np.array(orders, np.uint8), last - first)

    def _alloc_exact(self, first: int, last: int, min_order: int) -> Blocks:
        if not all(self._free.holds(start, order) for start, order in canonical(first, last)):
            message = f"pages {first}-{last} are not all free: this exact range needs every one of them"
            raise TtmError(errno.ENOSPC, message)
        return self._claim_range(first, last)

    def _alloc_contiguous(self, size: int, window: _Window, min_order: int, trim: bool) -> Blocks:
        restricted = window.first > 0 or window.last < self.num_pages
        order = (size - 1).bit_length()
        if order > self.max_order:
            if restricted:
                message = f"a block of {1 << order} pages is more than the {self.num_pages} there are"
                raise TtmError(errno.EINVAL, message)
            return self._try_harder(size, min_order)
        got = self._take(order, 1, window)
        if not got.size:
            if restricted:
                raise self._full(size)
            return self._try_harder(size, min_order)
        block = Blocks(got, np.array([order], np.uint8), 1 << order)
        # The tail was not touched since it was taken: it is as clear as it was.
        return self.trim_tail(block, size, cleared=None) if trim and size < 1 << order else block

    def _try_harder(self, size: int, min_order: int) -> Blocks:
        """A contiguous run around a free block of the power of two below (__alloc_contig_try_harder).

        Of such blocks the highest is taken that has room: first to its right, then to its left.
        """
        order = size.bit_length() - 1
        if order == 0 or order > self.max_order or not self._free.blocks[order]:
            raise self._full(size)
        starts, orders = self._free.all_blocks()
        run_first, run_last = self._free.free_runs()
        starts = starts[orders == order]
        run = np.searchsorted(run_first, starts, side="right") - 1
        right = np.minimum(run_last[run] - starts, size) >> min_order << min_order
        fits = np.flatnonzero(starts - run_first[run] >= size - right)
        if not fits.size:
            raise self._full(size)
        best = int(fits[-1])
        begin = int(starts[best] - (size - right[best]))
        return self._claim_range(begin, begin + size)

    # Giving back.

    def free(self, blocks: Blocks, cleared: bool | None = False) -> None:
        """Give blocks back; they merge with their buddies (drm_buddy_free_list).

        `cleared`: the pages are known to be zero; None: they were not written since they were allocated, so they are
        as clear as they were then. Raises TtmError(EINVAL), with nothing changed, when any of them is not an allocated
        block of exactly this place and order (freed twice, or foreign).
        """
        size = len(blocks.start)
        if size == 1:
            self.free_one(int(blocks.start[0]), int(blocks.order[0]), cleared)
        elif size:
            self._owned.check_allocated(blocks)
            self._owned.drop(blocks.start)
            self._free.add_many(blocks.start, blocks.order)
            self._clear.put_many(blocks.start, blocks.order, cleared)

    def free_one(self, start: int, order: int, cleared: bool | None = False) -> None:
        """Give one block back, as `free` does; TtmError(EINVAL) likewise."""
        self._owned.drop_one(start, order)
        self._clear.put_one(start, order, cleared)
        self._free.add(start, order)

    def trim_tail(self, blocks: Blocks, keep_pages: int, cleared: bool | None = False) -> Blocks:
        """Free what lies beyond the first `keep_pages` pages (in allocation order); returns what is kept.

        A block that is cut becomes its largest aligned parts (drm_buddy_block_trim). `cleared` as in `free`. Raises
        TtmError(EINVAL), with nothing changed, when keep_pages is not in 1..num_pages or a block is not allocated.
        """
        if not 0 < keep_pages <= blocks.num_pages:
            message = f"cannot trim {blocks.num_pages} pages to {keep_pages}"
            raise TtmError(errno.EINVAL, message)
        self._owned.check_allocated(blocks)
        sizes = np.left_shift(1, blocks.order, dtype=np.int64)
        ends = np.cumsum(sizes)
        cut = int(np.searchsorted(ends, keep_pages))
        if ends[cut] == keep_pages:
            kept = Blocks(blocks.start[: cut + 1], blocks.order[: cut + 1], keep_pages)
            self.free(Blocks.of(blocks.start[cut + 1 :], blocks.order[cut + 1 :]), cleared)
            return kept
        start = int(blocks.start[cut])
        middle = start + keep_pages - int(ends[cut] - sizes[cut])
        head = self._split_at(start, middle)
        tail = self._split_at(middle, start + int(sizes[cut]))
        kept = Blocks(
            np.concatenate((blocks.start[:cut], head.start)),
            np.concatenate((blocks.order[:cut], head.order)),
            keep_pages,
        )
        gone_start = np.concatenate((tail.start, blocks.start[cut + 1 :]))
        gone_order = np.concatenate((tail.order, blocks.order[cut + 1 :]))
        self.free(Blocks.of(gone_start, gone_order), cleared)
        return kept

    def _split_at(self, first: int, last: int) -> Blocks:
        """Make allocated pages [first, last) blocks of their own."""
        starts, orders = zip(*canonical(first, last), strict=True)
        part = Blocks(np.array(starts, np.int64), np.array(orders, np.uint8), last - first)
        self._owned.own(part.start, part.order)
        return part

    # Allocated blocks by their pages.

    def owns(self, start: int, order: int) -> bool:
        """Whether an allocated block of this order begins at page `start`."""
        return self._owned.owns(start, order)

    def blocks_of(self, pages: PageArray) -> Blocks:
        """The allocated blocks that make up exactly these pages (BlockMap.blocks_of; EINVAL)."""
        return self._owned.blocks_of(pages)

    def whole_blocks(self, pages: PageArray) -> int:
        """How many of these pages, from the first on, make up whole allocated blocks (BlockMap.whole_blocks)."""
        return self._owned.whole_blocks(pages)

    def heads_of(self, pages: PageArray) -> tuple[Int64Array, Uint8Array]:
        """Per page, start and order of its allocated block (BlockMap.heads_of; EINVAL)."""
        return self._owned.heads_of(pages)

    def are_within(self, pages: PageArray, order: int) -> bool:
        """Is each of these pages in an allocated block of at least this order (BlockMap.are_within)?"""
        return self._owned.are_within(pages, order)

    def split(self, pages: PageArray) -> None:
        """Cut allocated blocks so that `pages` become whole blocks of their own (BlockMap.split; EINVAL)."""
        self._owned.split(pages)

    # Clear tracking.

    def is_clear(self, starts: PageArray, order: int) -> BoolArray:
        """Per block, whether all its pages were known to be zero (ClearMap.is_clear; EINVAL): bool (n,)."""
        return self._clear.is_clear(starts, order)

    def dirty_of(self, pages: PageArray) -> BoolArray:
        """Per page, whether it was *not* known to be zero (when allocated, or now if free): bool (n,)."""
        return self._clear.dirty_of(pages)

    def dirty_in(self, start: int, order: int) -> Uint32Array:
        """Those pages of the block that are not known to be zero, uint32."""
        return self._clear.dirty_in(start, order)

    def is_free(self, start: int, order: int) -> bool:
        """Whether all pages of the aligned block are free."""
        return self._free.holds(start, order)

    def wholly_free(self, starts: Int64Array, order: int) -> BoolArray:
        """Per aligned block of this order, whether all its pages are free: bool (n,)."""
        return self._free.holds_many(starts, order)

    def mark_clear(self, starts: Int64Array, order: int) -> None:
        """These aligned free blocks (ascending) have become zero: their memory went back to the host.

        Raises TtmError(EINVAL), with nothing changed, when one of them is not wholly free.
        """
        if not self.wholly_free(starts, order).all():
            raise TtmError(errno.EINVAL, "only free blocks can be marked clear here")
        self._clear.area.remove_many(starts, order)
        self._clear.put_many(starts, np.full(starts.size, order, np.uint8), True)

    def dirty_free_pages(self, first: int, last: int) -> Int64Array:
        """Numbers of the free pages of [first, last) that are not known to be zero, ascending, int64.

        `first` is a multiple of some power of two that is not less than the number of pages (FreeLevels.map_of).
        """
        dirty = self._clear.dirty[first:last]
        if not dirty.any():
            return np.empty(0, np.int64)
        return np.flatnonzero(self._free.map_of(first, last) & dirty) + first

    def order_map(self) -> Uint8Array:
        """Per page, the order + 1 of the allocated block that it is in, 0 when it is free; uint8, a copy."""
        return self._owned.order_map()

    def allocated_map(self) -> BoolArray:
        """Per page, whether it is in an allocated block: bool, a copy."""
        result: BoolArray = self._owned.order_map() != 0
        return result

    def free_map(self) -> Uint8Array:
        """Per page, 1 when it is free, uint8; a copy."""
        return self._free.map_of(0, self.num_pages)

    def reset_clear(self, is_clear: bool) -> None:
        """All free memory counts as zero (or as dirty) from now on (gpu_buddy_reset_clear)."""
        self._clear.area.clear()
        self._clear.put_many(*self._free.all_blocks(), is_clear)

    # Looking at it.

    def check(self) -> None:
        """Walk everything; raises AssertionError naming what is wrong. O(num_pages), for selfcheck and tests."""
        for _ in self.check_steps():
            pass

    def check_steps(self) -> Iterator[None]:
        """As `check`. What a step looks at holds at any moment, so others may run at each yield."""
        yield from self._free.check_steps("free")
        yield from self._clear.area.check_steps("clear")
        for first in range(0, self.num_pages, _CHECKED_AT_ONCE):
            self._check_pages(first, min(first + _CHECKED_AT_ONCE, self.num_pages))
            yield

    def _check_pages(self, first: int, last: int) -> None:
        """Each page of [first, last) is in one block, free or allocated, and clear in both views or in none."""
        free = self._free.map_of(first, last)
        owners = free + self._owned.owners_of(first, last)
        wrong = np.flatnonzero(owners != 1)
        assert not wrong.size, f"page {int(wrong[0]) + first} is in {int(owners[wrong[0]])} blocks, free and allocated"
        known = self._clear.area.map_of(first, last)
        differ = np.flatnonzero(known != (free & (self._clear.dirty[first:last] == 0)))
        assert not differ.size, f"clear: page {int(differ[0]) + first} is known as clear in one place only"

    def dump(self) -> str:
        """The text of drm_buddy_print: a header, then per order, from the largest, what is free."""
        chunk = 1 << PAGE_SHIFT
        total, free, clear = (
            pages << PAGE_SHIFT >> 20 for pages in (self.num_pages, self.free_pages, self.clear_free_pages)
        )
        lines = [f"chunk_size: {chunk >> 10}KiB, total: {total}MiB, free: {free}MiB, clear_free: {clear}MiB\n"]
        for order in range(self.max_order, -1, -1):
            count = self._free.blocks[order]
            size = count << (order + PAGE_SHIFT)
            amount = f"{size >> 10:8d} KiB" if size < 1 << 20 else f"{size >> 20:8d} MiB"
            lines.append(f"order-{order:2d} free: {amount}, blocks: {count}\n")
        return "".join(lines)
