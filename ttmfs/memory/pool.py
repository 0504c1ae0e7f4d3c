"""PagePool: the system's pages for tts (kernel: ttm_pool and, below it, the page allocator), over one arena.

What it promises. Pages come in blocks of order 0 to 10, the largest that fit what remains, and orders only fall within
one allocation. A page has one owner. With `zero` (the default) every page reads as zeros. A failed call keeps nothing.
The last `reserve_pages` go only to those who ask for the reserve. Freed blocks stay pooled by caching type and order up
to a limit; the rest goes to the buddy, and host memory goes back when 2 MiB are free together and idle (WarmFrames).
Much memory becomes pages, and free blocks again, some at a time (Stock, Leftovers); it is counted at once.

Unlike the kernel's, pages are cleared when they are handed out again, not when they are freed: who overwrites them
whole (`zero=False`) never pays for it. The buddy's clear tracking means here: *not touched since the host last gave
this page*, so a clear page is zero and costs nothing; a dirty one, and any pooled one, may hold old bytes.
"""

import errno
from collections.abc import Callable, Iterator

import numpy as np

from ttmfs import clock
from ttmfs.errors import TtmError
from ttmfs.memory.account import Account
from ttmfs.memory.arena import Arena
from ttmfs.memory.blocks import Blocks
from ttmfs.memory.buddy import Buddy
from ttmfs.memory.leftovers import Leftovers
from ttmfs.memory.pool_alloc import NO_PAGES, AllocState, PoolAlloc, Stock
from ttmfs.memory.pool_types import NR_ORDERS, Caching, PoolTypes
from ttmfs.memory.runs import BoolArray, Int64Array, PageArray, Uint8Array, is_run
from ttmfs.memory.warm import WarmFrames
from ttmfs.units import MAX_ORDER

IDLE_SECONDS = 5.0
_COUNTERS = ("allocs", "pool_hit_pages", "beneficial_order_failed", "shrunk_pages", "zeroed_pages")


class PagePool:
    """A pool over all pages of `arena`, none of which may be used otherwise. All counts are in pages.

    `limit_pages`: how many freed pages stay pooled (page_pool_size). `warm_pages`: how much free memory may stay the
    process's for a moment before it goes back to the host (none with a limit of 0: then nothing freed is kept).
    `beneficial_order`: 0 is off. `now`: the clock, in seconds.
    Raises TtmError(EINVAL) for an arena without pages or numbers out of range.
    """

    def __init__(
        self,
        arena: Arena,
        *,
        limit_pages: int,
        reserve_pages: int = 64,
        warm_pages: int = 0,
        beneficial_order: int = 9,
        now: Callable[[], float] = clock.monotonic,
    ) -> None:
        if min(limit_pages, reserve_pages, warm_pages) < 0 or not 0 <= beneficial_order <= MAX_ORDER:
            raise TtmError(errno.EINVAL, f"no limit is negative, and the beneficial order is 0 to {MAX_ORDER}")
        self.arena = arena
        self.reserve_pages = reserve_pages
        self.beneficial_order = beneficial_order
        self.reclaim_backoff = False
        """Defrag failed a moment ago: who populates passes this on, so that nothing is reclaimed for a high order."""
        self.in_use_pages = 0
        self.accounts: list[Account] = []
        """Whoever finds out just now whose the pages are: hears of each that is handed out."""
        self.detached: dict[object, PageArray] = {}
        """Pages that nobody has any more and that a fence will free, by what frees them."""
        self._limit_pages = limit_pages
        self._now = now
        self._last_use = now()
        self._buddy = Buddy(arena.num_pages, clear=True)
        self._types = PoolTypes(arena.num_pages)
        self.leftovers = Leftovers(self._buddy.free_by_order, self._buddy.whole_blocks, self._give_back)
        """What was given back in one go and is not taken apart yet."""
        self._warm = WarmFrames(arena, self._buddy, warm_pages if limit_pages else 0, now)
        self._warm_pages = warm_pages
        self._counts = dict.fromkeys(_COUNTERS, 0)

    # What there is.

    @property
    def num_pages(self) -> int:
        """Pages of the arena."""
        return self.arena.num_pages

    @property
    def pooled_pages(self) -> int:
        """Freed pages that stay in the pool."""
        return self._types.pages

    @property
    def free_pages(self) -> int:
        """Pages that can be allocated now without the reserve, pooled ones included."""
        return max(0, self._free_pages - self.reserve_pages)

    @property
    def _free_pages(self) -> int:
        return self._buddy.free_pages + self.pooled_pages + self.leftovers.pages

    @property
    def limit_pages(self) -> int:
        """Up to how many freed pages stay pooled. Setting it shrinks the pool; TtmError(EINVAL) below 0."""
        return self._limit_pages

    @limit_pages.setter
    def limit_pages(self, pages: int) -> None:
        if pages < 0:
            raise TtmError(errno.EINVAL, f"{pages} pages is no limit for the pool")
        self._limit_pages = pages
        self._warm.limit_pages = self._warm_pages if pages else 0
        if self.pooled_pages > pages:
            self.shrink(self.pooled_pages - pages)

    def free_by_order(self) -> list[int]:
        """Free (not pooled) blocks of orders 0..10; larger ones count as blocks of order 10."""
        self.leftovers.settle()
        counts = self._buddy.free_by_order() + [0] * NR_ORDERS
        counts[MAX_ORDER] += sum(n << (order - MAX_ORDER) for order, n in enumerate(counts) if order > MAX_ORDER)
        return counts[:NR_ORDERS]

    def unusable_free_index(self, order: int) -> float:
        """Fraction (0..1) of the free memory that is in blocks too small for `order`; 1 when nothing is free."""
        self.leftovers.settle()
        free = self._buddy.free_pages
        if not free:
            return 1.0
        suitable = sum(n << k for k, n in enumerate(self._buddy.free_by_order()) if k >= order)
        return (free - suitable) / free

    def free_map(self) -> Uint8Array:
        """Per page of the arena, 1 when it is free in the buddy (pooled pages are not), uint8, the caller's own."""
        self.leftovers.settle()
        return self._buddy.free_map()

    def order_map(self) -> Uint8Array:
        """Per page of the arena, the order + 1 of its block, pooled ones included; 0 when free, uint8, the caller's."""
        self.leftovers.settle()
        return self._buddy.order_map()

    def pooled_map(self) -> BoolArray:
        """Per page of the arena, whether it is pooled: bool, the caller's own."""
        self.leftovers.settle()
        return self._types.pooled_map(self._buddy)

    def in_use_map(self) -> BoolArray:
        """Per page of the arena, whether it was allocated and not given back: bool, the caller's own."""
        pooled = self.pooled_map()
        return self._buddy.allocated_map() & ~pooled

    def page_orders(self, pages: PageArray) -> Uint8Array:
        """Per page, the order of the block that it belongs to, uint8. TtmError(EINVAL) for one not allocated."""
        return self._buddy.heads_of(pages)[1]

    def are_within(self, pages: PageArray, order: int) -> bool:
        """Is each of these pages in an allocated block of this order, or of a larger one?"""
        return self._buddy.are_within(pages, order)

    # Allocation.

    def alloc(
        self,
        num_pages: int,
        *,
        caching: Caching = Caching.cached,
        max_order: int | None = None,
        zero: bool = True,
        defrag: bool = False,
        use_reserve: bool = False,
        reclaim_backoff: bool = False,
    ) -> PoolAlloc:
        """Allocate pages (ttm_pool_alloc): per order the pool of (caching, order) first, then the buddy.

        An order that cannot be had is tried no more. At the beneficial order the pool is emptied for another try
        (not with `reclaim_backoff`), and a failure is reported; with `defrag` it is TtmError(ENOMEM) at once, the pool
        left alone. At order 0 the pool is shrunk. `max_order` caps the first order. `zero=False`: the caller
        overwrites whole pages, nothing is cleared. `use_reserve`: the reserve may be used.

        Raises TtmError(ENOMEM) when the pages are not there, with nothing kept and, when the count alone says so, the
        pool untouched; TtmError(EINVAL) for a negative number.
        """
        self._check_free(num_pages, use_reserve=use_reserve)
        if not num_pages:
            return PoolAlloc(NO_PAGES)
        top = MAX_ORDER if max_order is None else max(0, min(MAX_ORDER, max_order))
        self._last_use = self._now()
        if num_pages & (num_pages - 1) == 0 and num_pages <= 1 << min(top, self._buddy.max_order):
            single = self._alloc_single(num_pages.bit_length() - 1, caching, zero)
            if single is not None:
                return single
        stock = self._take(num_pages, top, caching, defrag=defrag, reclaim_backoff=reclaim_backoff)
        pages, unzeroed, zeroed = stock.take(num_pages, zero=zero)
        self._counts["zeroed_pages"] += zeroed
        return PoolAlloc(pages, stock.beneficial_order_failed, unzeroed)

    def stock(self, num_pages: int, *, caching: Caching = Caching.cached, reclaim_backoff: bool = False) -> Stock:
        """As `alloc`, of so many pages, at least one, that it would keep the loop: blocks, of which `draw` makes pages.

        What is not wanted of them is given back as pages, with `split`.
        """
        self._check_free(num_pages, use_reserve=False)
        return self._take(num_pages, MAX_ORDER, caching, defrag=False, reclaim_backoff=reclaim_backoff)

    def draw(self, stock: Stock, num_pages: int, *, zero: bool) -> PageArray:
        """The next pages of a stock, `num_pages` or as many as there are."""
        pages, _unzeroed, zeroed = stock.take(num_pages, zero=zero)
        self._counts["zeroed_pages"] += zeroed
        return pages

    def _check_free(self, num_pages: int, *, use_reserve: bool) -> None:
        if num_pages < 0:
            raise TtmError(errno.EINVAL, f"{num_pages} is no number of pages")
        if num_pages > (self._free_pages if use_reserve else self.free_pages):
            raise self._no_memory(num_pages)

    def _take(self, num_pages: int, top: int, caching: Caching, *, defrag: bool, reclaim_backoff: bool) -> Stock:
        """Take blocks, order by order from `top` on."""
        self._last_use = self._now()
        state = AllocState(self._buddy, self._types, caching)
        failed = False
        order = top
        remaining = num_pages
        while remaining:
            order = min(order, remaining.bit_length() - 1)
            want = remaining >> order
            short = want - state.take(order, want)
            while short and self.leftovers.step():
                short -= state.take(order, short)
            if short and order and order == self.beneficial_order:
                if not (defrag or reclaim_backoff) and self.pooled_pages and self.shrink(self.pooled_pages):
                    short -= state.take_fresh(order, short)
                failed = short > 0
                if failed and defrag:
                    self._undo(state)
                    self._counts["beneficial_order_failed"] += 1
                    raise self._no_memory(num_pages, f" in blocks of order {order}, which defrag insists on")
            elif short and not order:
                if self.shrink(short):
                    short -= state.take_fresh(order, short)
                if short:
                    self._undo(state)
                    raise self._no_memory(num_pages)
            remaining -= (want - short) << order
            order -= bool(short)
        self.in_use_pages += num_pages
        self._counts["allocs"] += 1
        self._counts["beneficial_order_failed"] += failed
        self._counts["pool_hit_pages"] += state.pool_hit_pages
        stock = state.stock(self.arena, self._warm, beneficial_order_failed=failed)
        for account in self.accounts:
            account.excuse(stock.rest())
        return stock

    def _undo(self, state: AllocState) -> None:
        """What came from the pool goes back there, where others may have been put meanwhile: of leftovers."""
        state.undo()
        self.shrink(max(0, self.pooled_pages - self._limit_pages))

    def _alloc_single(self, order: int, caching: Caching, zero: bool) -> PoolAlloc | None:
        """The usual small allocation, one block; None when there is none of this order (the general way tells why)."""
        size = 1 << order
        unzeroed = NO_PAGES
        start = self._types.pop_one(caching, order)
        if start >= 0:
            self._counts["pool_hit_pages"] += size
            pages = np.arange(start, start + size, dtype=np.uint32)
            unzeroed = pages
        else:
            start = self._buddy.alloc_one(order)
            if start < 0:
                return None
            pages = np.arange(start, start + size, dtype=np.uint32)
            unzeroed = self._buddy.dirty_in(start, order)
        if zero and unzeroed.size:
            self.arena.zero(unzeroed)
            self._counts["zeroed_pages"] += unzeroed.size
            unzeroed = NO_PAGES
        self.in_use_pages += size
        self._counts["allocs"] += 1
        for account in self.accounts:
            account.excuse(pages)
        return PoolAlloc(pages, False, unzeroed)

    def _no_memory(self, num_pages: int, how: str = "") -> TtmError:
        message = f"{self.arena.name}: no {num_pages} pages{how}: {self.free_pages} of {self.num_pages} are free"
        return TtmError(errno.ENOMEM, message)

    # Giving back.

    def free(
        self, pages: PageArray, caching: Caching = Caching.cached, *, to_pool: bool = True, split: bool = False
    ) -> None:
        """Give pages back in their native blocks (ttm_pool_free): into the pool while it is under its limit.

        What does not fit, and all with `to_pool=False` (purge, backup), goes to the buddy. With `split` blocks of
        which only a part goes are `split` first. Raises TtmError(EINVAL), with nothing changed, when the pages are not
        whole blocks in use: freed twice, or foreign.
        """
        size = len(pages)
        if not size:
            return
        if self._one_block(pages):
            self._free_single(int(pages[0]), size.bit_length() - 1, caching, to_pool)
        else:
            self._free_many(pages, caching, to_pool, split)
        self.in_use_pages -= size

    def free_in_steps(
        self, count: int, parts: Iterator[PageArray], caching: Caching = Caching.cached, *, to_pool: bool = True
    ) -> None:
        """As `free` with `split`, of so much that it would keep the loop: `count` pages, as `parts` gives them.

        They are free from now on. What is wrong with them is found when they are taken apart.
        """
        self.leftovers.add(count, parts, caching, to_pool=to_pool)
        self.in_use_pages -= count

    def _give_back(self, pages: PageArray, caching: Caching, to_pool: bool) -> None:
        self.in_use_pages += len(pages)
        self.free(pages, caching, to_pool=to_pool, split=True)

    def _free_many(self, pages: PageArray, caching: Caching, to_pool: bool, split: bool) -> None:
        try:
            blocks = self._buddy.blocks_of(pages)
        except TtmError:
            if not split or np.unique(pages).size < len(pages):
                raise
            self.split(pages)
            blocks = self._buddy.blocks_of(pages)
        self._in_use(blocks.start)
        self._last_use = self._now()
        start, orders = blocks.start, blocks.order
        room = self._limit_pages - self.pooled_pages if to_pool else 0
        if room > 0:
            sizes = np.left_shift(1, orders, dtype=np.int64)
            fits = int(np.searchsorted(np.cumsum(sizes), room, side="right"))
            for k in np.flatnonzero(np.bincount(orders[:fits])).tolist():
                self._types.push(caching, k, start[:fits][orders[:fits] == k])
            start, orders = start[fits:], orders[fits:]
        self._release(start, orders)

    def _one_block(self, pages: PageArray) -> bool:
        """Are these pages just one block that is not free?"""
        size = len(pages)
        order = size.bit_length() - 1
        return size == 1 << order and self._buddy.owns(int(pages[0]), order) and is_run(pages)

    def _free_single(self, start: int, order: int, caching: Caching, to_pool: bool) -> None:
        one = np.array([start], np.int64)
        self._in_use(one)
        size = 1 << order
        self._last_use = self._now()
        if to_pool and self.pooled_pages + size <= self._limit_pages:
            self._types.push(caching, order, one)
            return
        self._buddy.free_one(start, order)
        self._warm.freed_one(start, order)

    def split(self, pages: PageArray) -> None:
        """Cut blocks so that these pages, and what is left of their blocks, can be freed each by itself (split_page).

        Both parts become the largest blocks that avoid the cut. Raises TtmError(EINVAL), with nothing changed, when a
        page is not in use.
        """
        if self._one_block(pages):
            return
        self._in_use(self._buddy.heads_of(pages)[0])
        self._buddy.split(pages)

    def _in_use(self, starts: Int64Array) -> None:
        pooled = self._types.holds(starts)
        if pooled.any():
            raise TtmError(errno.EINVAL, f"page {starts[pooled][0]} is in the pool already: freed twice")

    def _release(self, start: Int64Array, order: Uint8Array) -> None:
        """Blocks (touched, as far as is known) to the buddy."""
        if start.size:
            self._buddy.free(Blocks.of(start, order), cleared=False)
            self._warm.freed(start, order)

    def shrink(self, pages_wanted: int) -> int:
        """Free pooled blocks, one of each type in turn, until `pages_wanted` pages or none are left (ttm_pool_shrink).

        Returns the pages freed, which may be more than wanted. They go to the buddy and merge.
        """
        starts, orders = self._types.take(pages_wanted)
        self._release(starts, orders)
        freed = int(np.left_shift(1, orders, dtype=np.int64).sum())
        self._counts["shrunk_pages"] += freed
        return freed

    @property
    def idle_windows(self) -> int:
        """Calls of `drop_idle` that look at everything once."""
        return self._warm.windows

    def drop_idle(self, max_runs: int = 256) -> int:
        """Give the host back what idles: a pool unused for 5 s, free frames after 1 s, small touched pieces at once.

        One call is short: it looks at 64 MiB, and gives back at most `max_runs` pieces and MAX_DROP_PAGES. Returns the
        pages given back; MAX_DROP_PAGES says that the next call goes on at the same place.
        """
        before = self._warm.given_back_pages
        if self.pooled_pages and self._now() - self._last_use >= IDLE_SECONDS:
            self.shrink(self.pooled_pages)
        self._warm.drop_idle(max_runs)
        return self._warm.given_back_pages - before

    # Looking at it.

    def statistics(self) -> dict[str, int]:
        """Everything countable, in pages where it ends so: gauges now, and totals since the start."""
        self.leftovers.settle()
        return {
            "num_pages": self.num_pages,
            "in_use_pages": self.in_use_pages,
            "pooled_pages": self.pooled_pages,
            "limit_pages": self._limit_pages,
            "reserve_pages": self.reserve_pages,
            "free_pages": self.free_pages,
            "dirty_free_pages": self._buddy.free_pages - self._buddy.clear_free_pages,
            "given_back_pages": self._warm.given_back_pages,
            **self._counts,
        }

    def page_pool_table(self) -> str:
        """The text of debugfs `ttm/page_pool`: pooled blocks by type and order (no DMA32 pages here: rows of zeros)."""
        self.leftovers.settle()
        rows = (("wc", Caching.write_combined), ("uc", Caching.uncached), ("wc 32", None), ("uc 32", None))
        return self._types.table(rows, self._limit_pages)

    def device_pool_table(self) -> str:
        """The text of a device's own pool file (ttm_pool_debugfs), which has the cached blocks too."""
        self.leftovers.settle()
        rows = (("DMA ", Caching.cached), ("DMA wc", Caching.write_combined), ("DMA uc", Caching.uncached))
        return self._types.table(rows, self._limit_pages)

    def check(self) -> None:
        """Walk everything; raises AssertionError naming what is wrong."""
        for _ in self.check_steps():
            pass

    def check_steps(self) -> Iterator[None]:
        """As `check`; others may run at each yield."""
        yield from self._buddy.check_steps()
        while self.leftovers.step():
            yield
        self._types.check(self._buddy)
        pooled = self.pooled_pages
        total = self.in_use_pages + pooled + self._buddy.free_pages
        assert total == self.num_pages, f"pool: {total} pages are accounted for, of {self.num_pages}"
        assert pooled <= self._limit_pages, f"pool: {pooled} pages are over the limit of {self._limit_pages}"
