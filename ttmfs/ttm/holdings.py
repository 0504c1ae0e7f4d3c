"""Holdings: the memory and the stored content that a tt has, and who pays for them.

Pages are taken from the pool and given back, entries get and lose them, and each of it is charged to the account of who
owns the BO. Any page may be in the store while others are in memory.

What goes to the store and comes back does so in steps that others await (see ttmfs.ttm.backup and ttmfs.ttm.restore);
what changes the vector for it is here, and synchronous. A page that is on its way back may be asked for once more by
who may not wait, or be cut off by a truncate: `end_load` finds out and gives up what nobody needs.
"""

from typing import Final, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from ttmfs.errors import TtmError
from ttmfs.memory.leftovers import STEP_PAGES
from ttmfs.memory.pool import PagePool
from ttmfs.memory.pool_alloc import Stock
from ttmfs.memory.pool_types import Caching
from ttmfs.memory.runs import ascending, unique_sorted
from ttmfs.memory.stores import LoadError, LoadTransfer, SwapStore
from ttmfs.ttm.account import MEMORY, SWAP, Account
from ttmfs.ttm.leaves import LEAF_SHIFT
from ttmfs.ttm.page_vector import (
    HOLE,
    Index,
    PageVector,
    Vector,
    decode_handles,
    decode_pages,
    encode_handles,
    encode_pages,
)
from ttmfs.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

_NO_CUTS: Final[dict[int, int]] = {}


class PoolHow(TypedDict, total=False):
    """How `PagePool.alloc` is to allocate."""

    zero: bool
    use_reserve: bool
    reclaim_backoff: bool
    max_order: int
    defrag: bool


class Load:
    """Entries on their way back: their indices and handles, and the store's transfer."""

    __slots__ = ("handles", "index", "transfer")

    def __init__(self, index: Index, handles: Vector, transfer: LoadTransfer) -> None:
        self.index = index
        self.handles = handles
        self.transfer = transfer


class Restore:
    """Where a restore stands (ttm_pool_tt_restore): entries still to be filled, ascending, and the page for each.

    It outlives a restore that failed or was interrupted, and the next one goes on with these pages.
    """

    __slots__ = ("index", "pages")

    def __init__(self, index: Index, pages: Vector) -> None:
        self.index = index
        self.pages = pages


class Ahead:
    """What is left of a block that a growing BO took for a piece before its end came there: page by entry."""

    __slots__ = ("index", "pages")

    def __init__(self, index: Index, pages: Vector) -> None:
        self.index = index
        self.pages = pages

    def take(self, index: Index) -> tuple[Index, Vector]:
        """Those of these entries, ascending, that it has a page for, and the pages: they are the caller's now."""
        wanted = np.isin(self.index, index, assume_unique=True)
        got = self.index[wanted], self.pages[wanted]
        self.index, self.pages = self.index[~wanted], self.pages[~wanted]
        return got


class Holdings(PageVector):
    """A page vector whose pages and handles are somebody's.

    `external` pages belong to somebody else (an imported BO) and are never evicted, swapped or backed up.
    """

    __slots__ = (
        "_cuts",
        "_loads",
        "account",
        "ahead",
        "beneficial_order_failed",
        "caching",
        "external",
        "restoring",
        "stock",
        "store",
        "storing",
        "taken",
        "unfinished",
    )

    def __init__(
        self, pool: PagePool, num_pages: int, caching: Caching, store: SwapStore | None, account: Account
    ) -> None:
        super().__init__(pool, num_pages)
        self.account = account
        """Who pays for its pages, in memory and in the store."""
        self.taken = 0
        """Pages that are taken for content on its way, and not in the vector yet."""
        self.caching = caching
        self.store = store
        """Where its pages can be backed up; the device's, attached when the tt is made (ttm_tt_setup_backup)."""
        self.ahead: Ahead | None = None
        """Pages, paid for, that wait for entries behind its end."""
        self.unfinished: Restore | None = None
        self.stock: Stock | None = None
        """Memory that its holes are being given some at a time (populate)."""
        self.restoring: tuple[Restore, ...] = ()
        """Others that are under way, with pages of their own."""
        self.storing: Vector | None = None
        """Handles of pages that are in the store while it is not certain that all of them get there (swapout)."""
        self.beneficial_order_failed = False
        self.external = False
        self._loads: list[Load] = []
        self._cuts = _NO_CUTS

    # -- memory --------------------------------------------------------------------------------------------------

    def alloc(self, count: int, **how: Unpack[PoolHow]) -> Vector:
        """`count` pages of the pool, to be adopted at once. TtmError(ENOMEM)."""
        got = self.pool.alloc(count, caching=self.caching, **how)
        self.account.charge(MEMORY, count)
        self.beneficial_order_failed |= got.beneficial_order_failed
        return got.pages

    def take_pages(self, count: int, *, use_reserve: bool = False) -> Vector:
        """`count` pages of the pool, as they come, for content of the tt that is on its way. TtmError(ENOMEM)."""
        pages = self.alloc(count, zero=False, use_reserve=use_reserve, reclaim_backoff=self.pool.reclaim_backoff)
        self._take(count)
        return pages

    def take_stock(self, count: int) -> None:
        """Memory for `count` pages, which holes get by `fill_from_stock`; ended by `drop_stock`. TtmError(ENOMEM)."""
        self.stock = self.pool.stock(count, caching=self.caching, reclaim_backoff=self.pool.reclaim_backoff)
        self.account.charge(MEMORY, count)
        self._take(count)
        self.beneficial_order_failed |= self.stock.beneficial_order_failed

    def fill_from_stock(self, first: int, end: int, *, zero: bool) -> None:
        """The holes of [first, end) get pages of the stock, as far as that goes; zeroed, or as they come."""
        stock = self.stock
        assert stock is not None
        holes = self.holes_in(first, end)[: stock.pages]
        if len(holes):
            pages = self.pool.draw(stock, len(holes), zero=zero)
            self.adopt(holes, pages, taken=True, in_blocks=self._follows(holes, pages, stock.order))

    def _follows(self, holes: Index, pages: Vector, order: int) -> bool:
        """Are these neighbours, and the pages whole blocks of this or a higher order one behind the other, so that each
        piece of the beneficial order among them is a block or part of one?"""
        wanted = self.pool.beneficial_order
        neighbours = holes.item(-1) - holes.item(0) == len(holes) - 1
        return order >= wanted and neighbours and not (pages.item(0) - holes.item(0)) & ((1 << wanted) - 1)

    def drop_stock(self) -> None:
        """What is left of it goes back."""
        stock, self.stock = self.stock, None
        if stock is not None:
            self.give_pages(stock.rest())

    def _take(self, count: int) -> None:
        self.taken += count
        self.account.charge_flight(count)

    def give_pages(self, pages: Vector) -> None:
        """Back to the pool: pages that `take_pages` gave, and that went nowhere. Blocks may be split."""
        if len(pages):
            self._take(-len(pages))
            self._free(pages)

    def pay(self, account: Account) -> None:
        """From now on `account` pays, also for what there is."""
        if self.external:
            return
        self.drop_ahead()
        memory, stored, taken = self.populated_pages + self.taken, self.backed_up_pages, self.taken
        for who, sign in ((self.account, -1), (account, 1)):
            who.charge(MEMORY, sign * memory)
            who.charge(SWAP, sign * stored)
            who.charge_flight(sign * taken)
        self.account = account

    def _free(self, pages: Vector, *, to_pool: bool = True) -> None:
        """Back to the pool, and paid for no more."""
        self.account.uncharge(MEMORY, len(pages))
        self.pool.free(pages, self.caching, to_pool=to_pool, split=True)

    def adopt(self, index: Index, pages: Vector, *, taken: bool = False, in_blocks: bool = False) -> None:
        """Put `pages`, which are paid for, into entries that are holes; `taken`: by `take_pages`.

        A piece of the beneficial order that is whole now, and not one block, marks the tt: defrag can mend it.
        `in_blocks`: no piece does whose entries are all among these, which are neighbours.
        """
        if taken:
            self._take(-len(pages))
        self.put(index, encode_pages(pages))
        self.populated_pages += len(pages)
        order = self.pool.beneficial_order
        if order and not self.beneficial_order_failed and len(index) and self.populated_pages >= 1 << order:
            if in_blocks:
                ends = (at for at in (index.item(0), index.item(-1) + 1) if at & ((1 << order) - 1))
                pieces = np.array([at >> order for at in ends], np.intp)
            else:
                pieces = unique_sorted(ascending(index >> order))
            self.beneficial_order_failed = not self.in_blocks(order, pieces)

    def depopulate(self, index: Index, *, to_pool: bool = True) -> int:
        """Free the memory of these entries, which become holes; returns how many pages. Entries must have pages.

        Blocks of which only a part goes are split first.
        """
        if not len(index):
            return 0
        if not self.external:
            self._free(self.pages_at(index), to_pool=to_pool)
        self.clear(index)
        self.populated_pages -= len(index)
        return len(index)

    def leave(self, *, to_pool: bool) -> int:
        """Free all that there is of a tt without entries in the store, and no external one; the pages.

        The pool finds out some at a time which they are.
        """
        count, self.populated_pages = self.populated_pages, 0
        self.account.uncharge(MEMORY, count)
        parts = (decode_pages(part[part != HOLE]) for part in self.take_away(STEP_PAGES >> LEAF_SHIFT))
        self.pool.free_in_steps(count, parts, self.caching, to_pool=to_pool)
        return count

    @property
    def ahead_pages(self) -> int:
        """Pages that it holds for entries behind its end."""
        return 0 if self.ahead is None else len(self.ahead.pages)

    def drop_ahead(self) -> int:
        """Free what is held ahead; the pages."""
        ahead, self.ahead = self.ahead, None
        if ahead is None:
            return 0
        self._free(ahead.pages)
        return len(ahead.pages)

    # -- to the store --------------------------------------------------------------------------------------------

    def mark_backed_up(self, index: Index, handles: Vector) -> None:
        """The pages of these entries are stored under `handles`: free them, past the pool."""
        if len(index):
            self._free(self.pages_at(index), to_pool=False)
            self.account.charge(SWAP, len(index))
        self.put(index, encode_handles(handles))
        self.populated_pages -= len(index)
        self.backed_up_pages += len(index)

    # -- and back ------------------------------------------------------------------------------------------------

    def begin_load(self, index: Index, *, takes: bool = False) -> Load:
        """Begin to load these entries, all of them handles. Ended with `end_load`. TtmError(EINVAL).

        `takes`: no other load that `takes` brings one of them meanwhile (see SwapStore.begin_load).
        """
        assert self.store is not None
        handles = decode_handles(self.at(index))
        load = Load(index, handles, self.store.begin_load(handles, takes=takes))
        self._loads.append(load)
        return load

    def end_load(self, load: Load, pages: Vector) -> tuple[NDArray[np.bool_], TtmError | None]:
        """What came back goes into the vector, on `pages`; returns (which entries are done, why others are not).

        Done are those that came, and those that are no handle any more: somebody was faster, or cut them off. Their
        pages stay the caller's unless the vector has them now. The handles of what is done are dropped.
        """
        assert self.store is not None
        self._loads.remove(load)
        error: TtmError | None = None
        came = len(load.index)
        try:
            self.store.end_load(load.transfer)
        except LoadError as failure:
            came, error = failure.loaded, failure
        inside = load.index < self.num_pages
        now = np.zeros(len(load.index), np.uint32)
        now[inside] = self.at(load.index[inside])
        waiting = now == encode_handles(load.handles)
        arrived = np.arange(len(load.index)) < came
        adopted = waiting & arrived
        index, taken = load.index[adopted], pages[adopted]
        self._apply_cuts(index, taken)
        self.adopt(index, taken, taken=True)
        self.account.uncharge(SWAP, len(index))
        self.backed_up_pages -= len(index)
        self.drop_stored(load.handles[arrived | ~waiting])
        return arrived | ~waiting, error

    def end_look(self, load: Load) -> None:
        """The load was for who only looks: the entries keep their handles. TtmError with what the store says."""
        assert self.store is not None
        self._loads.remove(load)
        try:
            self.store.end_load(load.transfer)
        finally:
            inside = load.index < self.num_pages
            inside[inside] = self.at(load.index[inside]) == encode_handles(load.handles[inside])
            self.drop_stored(load.handles[~inside])

    def store_again(self, index: Index, handles: Vector) -> None:
        """These entries, all of them handles, are stored under other ones now, as they are to be: no cut counts."""
        old = decode_handles(self.at(index))
        self.put(index, encode_handles(handles))
        for at in index.tolist() if self._cuts else ():
            self._cuts.pop(at, None)
        self.drop_stored(old)

    def cut_at(self, index: int) -> int:
        """From which of its bytes on an entry in the store reads as zeros: PAGE_SIZE when a truncate cut none off."""
        return self._cuts.get(index, PAGE_SIZE)

    def load_now(self, first: int, count: int, *, use_reserve: bool = False) -> int:
        """Load what is in the store of [first, first + count), at once; returns the pages.

        For who may not wait. TtmError(ENOMEM), or what the store raises: then the pages that did not come are where
        they were.
        """
        index = self.handles_in(first, first + count)
        if not len(index):
            return 0
        assert self.store is not None
        pages = self.take_pages(len(index), use_reserve=use_reserve)
        load = self.begin_load(index)
        self.store.read(load.transfer, self.arena, pages)
        _done, error = self.end_load(load, pages)
        self.give_pages(pages[self.at(index) != encode_pages(pages)])
        if error is not None:
            raise error
        return len(index)

    def forget(self, index: Index) -> None:
        """What is in the store of these entries, all of them handles, is needed no more: they become holes."""
        if not len(index):
            return
        handles = decode_handles(self.at(index))
        self.clear(index)
        self.account.uncharge(SWAP, len(index))
        self.backed_up_pages -= len(index)
        for at in index.tolist() if self._cuts else ():
            self._cuts.pop(at, None)
        self.drop_stored(handles)

    def drop_stored(self, handles: Vector) -> None:
        """Drop handles from the store; those on their way back are dropped by who has begun that."""
        for load in self._loads:
            handles = handles[~np.isin(handles, load.handles)]
        if self.store is not None and len(handles):
            self.store.drop(handles, upkeep=False)

    def drop_restore(self) -> int:
        """Free the pages that an unfinished restore holds; it then starts its piece anew. Returns the pages."""
        unfinished, self.unfinished = self.unfinished, None
        if unfinished is None:
            return 0
        self.give_pages(unfinished.pages)
        return len(unfinished.pages)

    def handles(self) -> Vector:
        """The handles that the vector has."""
        return decode_handles(self.at(self.handles_in(0, self.num_pages)))

    def handles_on_their_way(self) -> Vector:
        """Those that the vector has not, not yet or no more, while somebody stores or loads their pages."""
        parts = [load.handles for load in self._loads]
        return np.concatenate([*parts, np.zeros(0, np.uint32) if self.storing is None else self.storing])

    # -- truncated while it is away ------------------------------------------------------------------------------

    def cut(self, offset: int, end_page: int) -> None:
        """A truncate: what is in the store from byte `offset` to the end of page `end_page` - 1 reads as zeros."""
        if not self.backed_up_pages:
            return
        index = offset >> PAGE_SHIFT
        end_page = min(end_page, self.num_pages)
        if offset & PAGE_MASK and index < end_page:
            if self.entry(index) & 1:
                if self._cuts is _NO_CUTS:
                    self._cuts = {}
                within = offset & PAGE_MASK
                self._cuts[index] = min(within, self._cuts.get(index, within))
            index += 1
        if index < end_page:
            self.forget(self.handles_in(index, end_page))

    def _apply_cuts(self, index: Index, pages: Vector) -> None:
        """`pages` are about to become the entries `index`: what a truncate cut off of them meanwhile is zeros."""
        if not self._cuts:
            return
        for at, page in zip(index.tolist(), pages.tolist(), strict=True):
            cut = self._cuts.pop(at, None)
            if cut is not None:
                self.arena.mem[page, cut:] = 0
