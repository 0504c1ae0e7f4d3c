"""An allocation of the page pool: what it has taken so far (kernel: ttm_pool_alloc_state), and what it gives.

An AllocState lives while `PagePool.alloc` runs, which either finishes it, and the pages are the caller's, or undoes it,
and all is where it was.
"""

from dataclasses import dataclass, field

import numpy as np

from ttmfs.memory.arena import Arena
from ttmfs.memory.blocks import Blocks
from ttmfs.memory.buddy import Buddy
from ttmfs.memory.pool_types import Caching, PoolTypes
from ttmfs.memory.runs import BoolArray, Int64Array, Uint32Array, ascending, expand
from ttmfs.memory.warm import HUGE_ORDER, WarmFrames

NO_PAGES: Uint32Array = np.empty(0, np.uint32)


def _all_of(pages: Int64Array) -> BoolArray:
    return np.ones(pages.size, np.bool_)


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

    def finish(self, arena: Arena, warm: WarmFrames, *, zero: bool) -> tuple[Uint32Array, Uint32Array, int]:
        """`(pages, unzeroed, zeroed)`: all, by falling order; those that may hold old bytes; how many were zeroed.

        With `zero` none may hold old bytes. At least one page must have been taken.
        """
        unzeroed = [NO_PAGES]
        zeroed = 0
        merged: dict[int, list[Int64Array]] = {}
        for blocks, dirty_of in ((self._from_pool, _all_of), (self._from_buddy, self._buddy.dirty_of)):
            for order, starts in blocks:
                merged.setdefault(order, []).append(starts)
                pages = expand(starts, np.full(starts.size, 1 << order))
                dirty = dirty_of(pages)
                if not dirty.any():
                    continue
                if not zero:
                    unzeroed.append((pages if dirty.all() else pages[dirty]).astype(np.uint32))
                elif order >= HUGE_ORDER and starts.size > 1:
                    # Clearing all of it here would keep the loop for long: the host does it as each frame is touched.
                    warm.forget_bytes(ascending(starts[dirty.reshape(starts.size, -1).any(axis=1)]), order)
                else:
                    arena.zero(pages[dirty])
                    zeroed += int(np.count_nonzero(dirty))
        # Ascending within an order: neighbours become runs, which copies like.
        parts = [
            expand(ascending(np.concatenate(merged[order])), np.full(sum(map(len, merged[order])), 1 << order))
            for order in sorted(merged, reverse=True)
        ]
        return np.concatenate(parts).astype(np.uint32), np.concatenate(unzeroed), zeroed
