"""PoolTypes: the pooled blocks, by caching type and order (kernel: ttm_pool_type and the shrinker list).

Last in, first out within a type; the shrinker takes one block of each type in turn. What is in here is allocated as
far as the buddy knows, belongs to nobody, and may hold old bytes.
"""

from collections.abc import Iterable
from enum import IntEnum

import numpy as np

from ttmfs.memory.block_stack import BlockStack
from ttmfs.memory.buddy import Buddy
from ttmfs.memory.runs import BoolArray, Int64Array, Uint8Array
from ttmfs.units import MAX_ORDER

NR_ORDERS = MAX_ORDER + 1


class Caching(IntEnum):
    """enum ttm_caching: chooses the pool's list."""

    uncached = 0
    write_combined = 1
    cached = 2


class PoolTypes:
    """No blocks yet; `pages` counts the pages of all that are here."""

    __slots__ = ("_order", "_pooled", "_stacks", "pages")

    def __init__(self, num_pages: int) -> None:
        self.pages = 0
        self._stacks = {(caching, order): BlockStack() for caching in Caching for order in range(NR_ORDERS)}
        # Round robin of ttm_pool_shrink: the first gives a block and goes to the end.
        self._order = list(self._stacks)
        # Per page: a pooled block begins there.
        self._pooled: Uint8Array = np.zeros(num_pages, np.uint8)

    def push(self, caching: Caching, order: int, starts: Int64Array) -> None:
        """Put blocks in."""
        self._stacks[caching, order].push(starts)
        self._pooled[starts] = 1
        self.pages += starts.size << order

    def pop(self, caching: Caching, order: int, count: int) -> Int64Array:
        """Take out the last `count` blocks of a type, or as many as there are; their starts, int64."""
        starts = self._stacks[caching, order].pop(count)
        if starts.size:
            self._pooled[starts] = 0
            self.pages -= starts.size << order
        return starts

    def pop_one(self, caching: Caching, order: int) -> int:
        """Take out the last block of a type; its start, -1 when there is none."""
        start = self._stacks[caching, order].pop_one()
        if start >= 0:
            self._pooled[start] = 0
            self.pages -= 1 << order
        return start

    def holds(self, starts: Int64Array) -> BoolArray:
        """Per page number, whether a pooled block begins there: bool (n,)."""
        result: BoolArray = self._pooled[starts] != 0
        return result

    def pooled_map(self, buddy: Buddy) -> BoolArray:
        """Per page of the arena `buddy` divides, whether it is in here: bool."""
        mine = np.zeros(buddy.num_pages, bool)
        for (_caching, order), stack in self._stacks.items():
            if len(stack):
                rows = mine[: buddy.num_pages >> order << order].reshape(-1, 1 << order)
                rows[stack.starts() >> order] = True
        return mine

    def take(self, pages_wanted: int) -> tuple[Int64Array, Uint8Array]:
        """Take out blocks, one of each type in turn, until `pages_wanted` pages or none are left.

        Returns `(starts, orders)`, in pages perhaps a little more than wanted.
        """
        starts: list[Int64Array] = [np.empty(0, np.int64)]
        orders: list[Uint8Array] = [np.empty(0, np.uint8)]
        left = min(pages_wanted, self.pages)

        def move(caching: Caching, order: int, count: int) -> int:
            taken = self.pop(caching, order, count)
            starts.append(taken)
            orders.append(np.full(taken.size, order, np.uint8))
            return int(taken.size) << order

        if left > 0:
            # All full rounds at once: the largest number of them that takes less than is wanted.
            sizes = {kind: len(stack) for kind, stack in self._stacks.items() if len(stack)}
            low, high = 0, max(sizes.values())
            while low < high:
                rounds = (low + high + 1) // 2
                if sum(min(n, rounds) << order for (_, order), n in sizes.items()) < left:
                    low = rounds
                else:
                    high = rounds - 1
            if low:
                left -= sum(move(*kind, low) for kind in sizes)
        while left > 0:
            kind = self._order.pop(0)
            self._order.append(kind)
            left -= move(*kind, 1)
        return np.concatenate(starts), np.concatenate(orders)

    def table(self, rows: Iterable[tuple[str, Caching | None]], limit_pages: int) -> str:
        """Block counts by order, one row per `(title, type)`, in the format of the kernel's pool files."""
        lines = ["\t " + "".join(f" ---{order:2d}---" for order in range(NR_ORDERS))]
        for title, caching in rows:
            counts = [len(self._stacks[caching, order]) if caching is not None else 0 for order in range(NR_ORDERS)]
            lines.append(f"{title}\t:" + "".join(f" {count:8d}" for count in counts))
        return "\n".join(lines) + f"\n\ntotal\t: {self.pages:8d} of {limit_pages:8d}\n"

    def check(self, buddy: Buddy) -> None:
        """Raise AssertionError naming what is wrong with the blocks that are here."""
        pages = 0
        seen = np.zeros_like(self._pooled)
        for (caching, order), stack in self._stacks.items():
            starts = stack.starts()
            if starts.size:
                heads, orders = buddy.heads_of(starts)
                whole = (heads == starts).all() and (orders == order).all()
                assert whole, f"pool {caching.name}, order {order}: a block is not an allocated block of that order"
            assert not seen[starts].any(), f"pool {caching.name}, order {order}: a block is pooled twice"
            seen[starts] = 1
            pages += starts.size << order
        assert (seen == self._pooled).all(), "pool: the map of pooled blocks is wrong"
        assert pages == self.pages, f"pool: counts {self.pages} pages, has {pages}"
