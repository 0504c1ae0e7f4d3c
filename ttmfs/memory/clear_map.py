"""ClearMap: which pages of a buddy allocator are known to be zero (the clear extents of gpu_buddy).

Two views of one fact. `dirty`, per page, 1 when it is *not* known to be zero: for a free page as of now, for an
allocated one as of when it was allocated. `area`, the free pages that are clear, as blocks that can be searched.
"""

import errno

import numpy as np

from ttmfs.errors import TtmError
from ttmfs.memory.free_area import FreeArea
from ttmfs.memory.runs import BoolArray, Int64Array, PageArray, Uint8Array, Uint32Array, expand


class ClearMap:
    """`num_pages` free pages, all of them clear or all dirty."""

    __slots__ = ("area", "dirty", "max_order", "num_pages")

    def __init__(self, num_pages: int, clear: bool) -> None:
        self.num_pages = num_pages
        self.max_order = num_pages.bit_length() - 1
        self.area = FreeArea(num_pages)
        self.dirty: Uint8Array = np.zeros(num_pages, np.uint8) if clear else np.ones(num_pages, np.uint8)
        if clear:
            self.area.add_range(0, num_pages)

    def put_one(self, start: int, order: int, cleared: bool | None) -> None:
        """A block becomes free: zero, dirty, or (None) as clear as it was when it was allocated."""
        if cleared is None:
            self._add_clear_pages(np.array([start], np.int64), order)
            return
        self.dirty[start : start + (1 << order)] = not cleared
        if cleared:
            self.area.add(start, order)

    def put_many(self, starts: Int64Array, orders: Uint8Array, cleared: bool | None) -> None:
        """Blocks become free, as `put_one`; none of their pages is in `area`."""
        for order in np.flatnonzero(np.bincount(orders)).tolist():
            mine = starts[orders == order]
            if cleared is None:
                self._add_clear_pages(mine, order)
            else:
                self._rows(order)[mine >> order] = not cleared
        if cleared:
            self.area.add_many(starts, orders)

    def _rows(self, order: int) -> Uint8Array:
        """The dirty map as one row per block of this order."""
        return self.dirty[: self.num_pages >> order << order].reshape(-1, 1 << order)

    def _add_clear_pages(self, starts: Int64Array, order: int) -> None:
        """Put into the clear set what of these (not yet free) blocks is not dirty."""
        dirty = self._rows(order)[starts >> order]
        whole = ~dirty.any(axis=1)
        if whole.any():
            part = starts[whole]
            self.area.add_many(part, np.full(part.size, order, np.uint8))
        mixed = ~whole & ~dirty.all(axis=1)
        if mixed.any():
            pages = expand(starts[mixed], np.full(int(mixed.sum()), 1 << order))
            pages = pages[self.dirty[pages] == 0]
            self.area.add_many(pages, np.zeros(pages.size, np.uint8))

    def is_clear(self, starts: PageArray, order: int) -> BoolArray:
        """Per block, whether all its pages were known to be zero: bool (n,).

        Free pages: now; allocated pages: when they were allocated (ask before writing). Raises TtmError(EINVAL) for a
        place where no block of this order can be.
        """
        numbers = np.asarray(starts).astype(np.int64, copy=False)
        if not 0 <= order <= self.max_order or (numbers & ((1 << order) - 1)).any():
            raise TtmError(errno.EINVAL, f"these are no starts of blocks of order {order}")
        pos = numbers >> order
        if pos.size and (int(pos.min()) < 0 or int(pos.max()) >= self.num_pages >> order):
            raise TtmError(errno.EINVAL, f"a block of order {order} is not inside the {self.num_pages} pages")
        result: BoolArray = ~self._rows(order)[pos].any(axis=1)
        return result

    def dirty_of(self, pages: PageArray) -> BoolArray:
        """Per page, whether it was *not* known to be zero (when allocated, or now if free): bool (n,)."""
        result: BoolArray = self.dirty[pages] != 0
        return result

    def dirty_in(self, start: int, order: int) -> Uint32Array:
        """Those pages of the block that are not known to be zero, uint32."""
        return (np.flatnonzero(self.dirty[start : start + (1 << order)]) + start).astype(np.uint32)
