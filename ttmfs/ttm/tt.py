"""TT: the page vector of a BO (ttm_tt) and what gives and takes its memory.

Where the kernel's tt is populated or not, this one may be partly so while the BO lives in system; gtt, vram and jobs
populate it whole (ttmfs.ttm.populate). The same holds for backup: any page may be in the store while others are in
memory.
"""

import errno
from typing import Final

import numpy as np

from ttmfs.errors import TtmError
from ttmfs.memory.leftovers import STEP_PAGES
from ttmfs.memory.pool import PagePool
from ttmfs.memory.pool_types import Caching
from ttmfs.memory.stores import SwapStore
from ttmfs.ttm.account import MEMORY, SLACK_PAGES, Account
from ttmfs.ttm.holdings import Ahead, Holdings
from ttmfs.ttm.page_vector import Index
from ttmfs.units import MAX_ORDER

_NOBODY: Final = Account("nobody")


class TT(Holdings):
    """The pages of a BO: how they are populated, cut and given up. What it has of them is in `Holdings`."""

    __slots__ = ("hand", "past_pool")

    def __init__(
        self,
        pool: PagePool,
        num_pages: int,
        caching: Caching = Caching.cached,
        store: SwapStore | None = None,
        account: Account = _NOBODY,
    ) -> None:
        super().__init__(pool, num_pages, caching, store, account)
        self.hand = 0
        """Where the shrinker goes on in a BO that it backs up piece by piece."""
        self.past_pool = False
        """Freed past the pool: fragments that defrag left behind are of use only when they merge."""

    def fini(self) -> None:
        """ttm_tt_fini: give everything up, for good, in the store and in a restore that was not finished, too."""
        self.unpopulate(to_pool=not self.past_pool)

    # -- getting and losing memory -------------------------------------------------------------------------------

    def populate_range(
        self,
        first: int,
        count: int,
        *,
        prefault: int = 0,
        zero: bool = True,
        use_reserve: bool = False,
        unlimited: bool = False,
    ) -> int:
        """Give memory to every hole in [first, first + count), and load what is in the store; the pages it added.

        Fills aligned pieces of up to the beneficial order, at most `prefault` pages beyond those asked. `zero=False`
        leaves pages that lie wholly in the asked range as they come, for a caller that overwrites all of them.
        `unlimited`: no limit of its account counts.
        TtmError(ENOMEM, EDQUOT) when a hole that was asked for finds no memory; what was added until then stays (it is
        legal) if it was zeroed, only extra pages are given up silently. Otherwise what the store raises.
        """
        added = self.load_now(first, count, use_reserve=use_reserve) if self.backed_up_pages else 0
        end = first + count
        index = first
        filled: list[Index] = []
        try:
            while (index := self.next_hole(index, end)) < end:
                filled.append(self._populate_piece(index, first, end, prefault, zero, use_reserve, unlimited))
        except TtmError:
            if not zero:
                # Nobody will overwrite these now, and they may hold another BO's bytes.
                for pages in filled:
                    self.depopulate(pages)
            raise
        return added + sum(map(len, filled))

    def _populate_piece(
        self, index: int, first: int, end: int, prefault: int, zero: bool, use_reserve: bool, unlimited: bool
    ) -> Index:
        """Populate the holes of the largest aligned piece around `index` that adds at most `prefault` pages."""
        low, high = self.piece(index, first, end, prefault)
        if (low, high) != (max(low, first), min(high, end)):
            try:
                return self._fill(low, high, zero=True, use_reserve=False, unlimited=unlimited)
            except TtmError:
                low, high = max(low, first), min(high, end)
        return self._fill(low, high, zero=zero, use_reserve=use_reserve, unlimited=unlimited)

    def piece(self, index: int, first: int, end: int, prefault: int) -> tuple[int, int]:
        """[low, high): the largest aligned piece around `index` with at most `prefault` pages not in [first, end)."""
        limit = self.pool.beneficial_order or MAX_ORDER
        for order in range(limit, 0, -1):
            low = index >> order << order
            high = min(low + (1 << order), self.num_pages)
            asked = min(high, end) - max(low, first)
            if high - low - asked <= prefault:
                return low, high
        return index, index + 1

    def _fill(self, low: int, high: int, *, zero: bool, use_reserve: bool, unlimited: bool) -> Index:
        """Memory for the holes in [low, high), all of them or ENOMEM or EDQUOT; which these were."""
        holes = self.holes_in(low, high)
        if len(holes):
            rest = holes if self.ahead is None else np.setdiff1d(holes, self.ahead.index, assume_unique=True)
            if not unlimited:
                self.account.check(MEMORY, len(rest), slack=SLACK_PAGES if use_reserve else 0)
            backoff = self.pool.reclaim_backoff
            if len(rest):
                pages = self.alloc(len(rest), zero=zero, use_reserve=use_reserve, reclaim_backoff=backoff)
                self.adopt(rest, pages)
            if self.ahead is not None:
                self._adopt_ahead(self.ahead, holes, zero=zero)
        return holes

    def _adopt_ahead(self, ahead: Ahead, holes: Index, *, zero: bool) -> None:
        index, pages = ahead.take(holes)
        if zero:
            self.arena.zero(pages)
        self.adopt(index, pages)
        if not len(ahead.index):
            self.ahead = None

    def begin_fill(self, end: int, *, unlimited: bool) -> bool:
        """Take memory for all holes of [0, end), order by order as ttm_pool_alloc: for all or TtmError(ENOMEM, EDQUOT).

        They get it by `fill_from_stock`; False when there is no hole. `unlimited`: no limit of its account counts.
        """
        if self.backed_up_pages:
            self.load_now(0, end)
        if self.ahead is not None:
            self._adopt_ahead(self.ahead, self.holes_in(0, end), zero=True)
        whole = end == self.num_pages and not self.backed_up_pages
        count = end - self.populated_pages if whole else len(self.holes_in(0, end))
        if count:
            if not unlimited:
                self.account.check(MEMORY, count)
            self.take_stock(count)
        return count > 0

    def unpopulate(self, *, to_pool: bool = True) -> int:
        """Free everything (ttm_tt_unpopulate, ttm_pool_drop_backed_up): all entries become holes. The pages freed."""
        self.drop_restore()
        self.drop_ahead()
        self.forget(self.handles_in(0, self.num_pages))
        if self.populated_pages > STEP_PAGES and not self.external:
            return self.leave(to_pool=to_pool)
        return self.depopulate(self.present(), to_pool=to_pool)

    def resize(self, num_pages: int) -> None:
        """Grow with holes, or shrink and free what lies behind."""
        if num_pages < self.num_pages:
            self.drop_ahead()
            self.depopulate(self.present_in(num_pages, self.num_pages - num_pages))
            self.forget(self.handles_in(num_pages, self.num_pages))
            unfinished = self.unfinished
            if unfinished is not None and (not self.backed_up_pages or int(unfinished.index[-1]) >= num_pages):
                self.drop_restore()
        self.set_length(num_pages)

    def cut_tail(self, num_pages: int) -> "TT":
        """Take the pages from `num_pages` on away, into a new TT of the same length; blocks may be split."""
        assert not self.backed_up_pages, "only a BO in system has pages in the store"
        tail = TT(self.pool, self.num_pages, self.caching, self.store, self.account)
        moved, pages = self.pages_in(num_pages, self.num_pages - num_pages)
        if len(moved):
            if len(moved) != self.populated_pages:
                self.pool.split(pages)
            tail.adopt(moved, pages)
            self.clear(moved)
            self.populated_pages -= len(moved)
        return tail


def out_of_memory(pages: int, pool: PagePool) -> TtmError:
    """The ENOMEM of a populate that reclaim could not help."""
    return TtmError(
        errno.ENOMEM,
        f"no memory for {pages} pages: {pool.free_pages} of {pool.arena.num_pages} are free; "
        "unlink or evict something, or mount with more --memory",
    )
