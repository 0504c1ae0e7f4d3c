"""An allocation of the page pool: what it has taken so far (kernel: ttm_pool_alloc_state), and the pages it becomes.

An AllocState lives while the pool allocates, which either makes a Stock of it, and the blocks are the caller's, or
undoes it, and all is where it was.
"""

from dataclasses import dataclass, field

import numpy as np

from ttmfs.memory.arena import FRAME_PAGES, Arena
from ttmfs.memory.blocks import Blocks
from ttmfs.memory.buddy import Buddy
from ttmfs.memory.pool_types import Caching, PoolTypes
from ttmfs.memory.runs import BoolArray, Int64Array, Uint8Array, Uint32Array, expand
from ttmfs.memory.warm import HUGE_ORDER, WarmFrames

NO_PAGES: Uint32Array = np.empty(0, np.uint32)


@dataclass(frozen=True, slots=True, eq=False)
class PoolAlloc:
    """Allocated pages: `pages` uint32 (num_pages,), in blocks of falling order, each contiguous and aligned.

    `beneficial_order_failed`: an attempt at the beneficial order failed on the way down. `unzeroed`: those of the
    pages that may hold old bytes (uint32; empty when zeroing was asked for): overwrite them whole, or zero them.
    """

    pages: Uint32Array
    beneficial_order_failed: bool = False
    unzeroed: Uint32Array = field(default_factory=lambda: NO_PAGES)


class AllocState:
    """Nothing taken yet. `caching`: the type that blocks are pooled by."""

    __slots__ = ("_buddy", "_caching", "_from_buddy", "_from_pool", "_types")

    def __init__(self, buddy: Buddy, types: PoolTypes, caching: Caching) -> None:
        self._buddy = buddy
        self._types = types
        self._caching = caching
        # (order, starts). Old bytes are in all of the first, and in those of the second that the buddy calls dirty.
        self._from_pool: list[tuple[int, Int64Array]] = []
        self._from_buddy: list[tuple[int, Int64Array]] = []

    def take(self, order: int, want: int) -> int:
        """Take up to `want` blocks of an order, pooled ones first, then the buddy's; how many there were."""
        pooled = self._types.pop(self._caching, order, want)
        if pooled.size:
            self._from_pool.append((order, pooled))
        return int(pooled.size) + self.take_fresh(order, want - pooled.size)

    def take_fresh(self, order: int, want: int) -> int:
        """Take up to `want` blocks of an order from the buddy alone; how many there were."""
        fresh = self._buddy.alloc_order(order, want)
        if fresh.size:
            self._from_buddy.append((order, fresh))
        return int(fresh.size)

    def undo(self) -> None:
        """Put everything back where it came from."""
        for order, starts in self._from_pool:
            self._types.push(self._caching, order, starts)
        for order, starts in self._from_buddy:
            self._buddy.free(Blocks.of(starts, np.full(starts.size, order, np.uint8)), cleared=None)

    @property
    def pool_hit_pages(self) -> int:
        """Pages that came from the pool."""
        return sum(starts.size << order for order, starts in self._from_pool)

    def stock(self, arena: Arena, warm: WarmFrames, *, beneficial_order_failed: bool) -> "Stock":
        """All that was taken, which is the caller's."""
        stock = Stock(arena, self._buddy, warm, self._from_pool, self._from_buddy)
        stock.beneficial_order_failed = beneficial_order_failed
        return stock


class Stock:
    """Allocated blocks that become pages, from the first on: by falling order, ascending within one.

    `pages`: how many are left. Those that are not wanted go back to the pool as any others (`rest`).
    `beneficial_order_failed`: an attempt at the beneficial order failed on the way down.
    """

    __slots__ = (
        "_arena",
        "_buddy",
        "_ends",
        "_given",
        "_orders",
        "_pooled",
        "_starts",
        "_warm",
        "beneficial_order_failed",
        "pages",
    )

    def __init__(
        self,
        arena: Arena,
        buddy: Buddy,
        warm: WarmFrames,
        pooled: list[tuple[int, Int64Array]],
        fresh: list[tuple[int, Int64Array]],
    ) -> None:
        """(order, starts) of blocks: all of the first hold old bytes, and of the second what the buddy calls dirty."""
        self._arena = arena
        self._buddy = buddy
        self._warm = warm
        self.beneficial_order_failed = False
        found = [(order, starts, old) for blocks, old in ((pooled, True), (fresh, False)) for order, starts in blocks]
        starts = np.concatenate([starts for _, starts, _ in found])
        orders = np.concatenate([np.full(starts.size, order, np.uint8) for order, starts, _ in found])
        are_pooled = np.concatenate([np.full(starts.size, old) for _, starts, old in found])
        # Ascending within an order: neighbours become runs, which copies like.
        at = np.lexsort((starts, -orders.astype(np.int8)))
        self._starts, self._orders, self._pooled = starts[at], orders[at], are_pooled[at]
        self._ends = np.cumsum(np.left_shift(1, self._orders, dtype=np.int64))
        self._given = 0
        self.pages = int(self._ends[-1])

    def take(self, count: int, *, zero: bool) -> tuple[Uint32Array, Uint32Array, int]:
        """`(pages, unzeroed, zeroed)`: the next `count` or as many as there are; those of them that may hold old bytes;
        how many were zeroed. With `zero` none may hold old bytes.
        """
        pages, orders, dirty = self._next(min(count, self.pages))
        self._given += pages.size
        self.pages -= pages.size
        if not zero or not dirty.any():
            return pages, pages if dirty.all() else pages[dirty], 0
        frames = self._whole_frames(pages[orders >= HUGE_ORDER], pages[dirty])
        if frames.size > 1:
            # Clearing all of it here would keep the loop for long: the host does it as each frame is touched.
            self._warm.forget_bytes(frames << HUGE_ORDER, HUGE_ORDER)
            dirty &= ~np.isin(pages >> HUGE_ORDER, frames)
        self._arena.zero(pages[dirty])
        return pages, NO_PAGES, int(np.count_nonzero(dirty))

    @property
    def order(self) -> int:
        """Of all blocks that pages were taken from so far, the lowest order."""
        last = np.searchsorted(self._ends, self._given - 1, side="right")
        return int(self._orders[last])

    def rest(self) -> Uint32Array:
        """The pages that are left."""
        return self._next(self.pages)[0]

    def _next(self, count: int) -> tuple[Uint32Array, Uint8Array, BoolArray]:
        """The next pages, the order of the block of each, and whether it may hold old bytes."""
        if not count:
            return NO_PAGES, NO_PAGES.astype(np.uint8), NO_PAGES.astype(np.bool_)
        low, high = np.searchsorted(self._ends, (self._given, self._given + count - 1), side="right").tolist()
        blocks = slice(low, high + 1)
        sizes = np.left_shift(1, self._orders[blocks], dtype=np.int64)
        skip = self._given - int(self._ends[low] - sizes[0])
        mine = slice(skip, skip + count)
        pages = expand(self._starts[blocks], sizes)[mine].astype(np.uint32)
        dirty = self._buddy.dirty_of(pages)
        if self._pooled[blocks].any():
            dirty |= np.repeat(self._pooled[blocks], sizes)[mine]
        return pages, np.repeat(self._orders[blocks], sizes)[mine], dirty

    @staticmethod
    def _whole_frames(pages: Uint32Array, dirty: Uint32Array) -> Int64Array:
        """Numbers of the frames that are all among `pages` and not clean, ascending."""
        frames, count = np.unique(pages >> HUGE_ORDER, return_counts=True)
        whole = frames[count == FRAME_PAGES].astype(np.int64)
        found: Int64Array = whole[np.isin(whole, dirty >> HUGE_ORDER)]
        return found
