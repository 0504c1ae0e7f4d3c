"""Stored: the pages of a chunk that are in the swap store, and what is on its way there or back.

A page that is in the store has its handle here and is nowhere else. One on its way there is still in memory, and stays
there if anybody used it meanwhile; one on its way back is still here. What may not wait loads a page once more: whoever
comes second finds that it is there and gives up what he has (as ttmfs.ttm.holdings does for a tt). Nothing here awaits.
"""

import errno
from typing import Final

import numpy as np
import trio

from ttmfs.errors import TtmError
from ttmfs.memory.stores import LoadError, LoadTransfer, SwapStore
from ttmfs.svm.pages import CHUNK_PAGES, CpuPages, Index, Pages, Payer, free_pages, index_of, mask_of_index
from ttmfs.ttm.account import SWAP

_NOT_ENDED: Final = "interrupted"


class Storing:
    """Pages on their way to the store: `live` is the mask of those that nobody has used since it began."""

    __slots__ = ("live",)

    def __init__(self, mask: int) -> None:
        self.live = mask


class Loading:
    """Pages on their way back: `mask`, in its order their handles and the memory for them, and the end of it."""

    __slots__ = ("done", "handles", "mask", "pages", "transfer")

    def __init__(self, mask: int, handles: Pages, pages: Pages, transfer: LoadTransfer) -> None:
        self.mask = mask
        self.handles = handles
        self.pages = pages
        self.transfer = transfer
        self.done = trio.Event()

    def give_up(self) -> None:
        """Who has begun it is cancelled, perhaps half way: nothing has come."""
        self.transfer.error, self.transfer.loaded = TtmError(errno.EINTR, _NOT_ENDED), 0


class Stored:
    """What one chunk of `payer` has in `store`. All masks are of the chunk's 512 pages."""

    __slots__ = ("_cuts", "_payer", "_store", "handles", "loading", "storing")

    def __init__(self, payer: Payer, store: SwapStore) -> None:
        self._payer = payer
        self._store = store
        self.handles = CpuPages()
        """Handles where page numbers would be; `present` is the mask of the pages that are in the store."""
        self.storing: tuple[Storing, ...] = ()
        self.loading: tuple[Loading, ...] = ()
        self._cuts: dict[int, int] = {}
        """Page: byte from which on a truncate cut it off while it was away."""

    @property
    def empty(self) -> bool:
        """Nothing is there, or on its way."""
        return not (self.handles.present or self.storing or self.loading)

    def slots(self) -> Pages:
        """The slots of the store that it has, those included that go when a load has ended: uint32, each once."""
        parts = [self.handles.numbers(self.handles.present), *(load.handles for load in self.loading)]
        return np.unique(np.concatenate(parts)) - np.uint32(1)

    def coming_back(self) -> int:
        """Mask of the pages that somebody loads."""
        mask = 0
        for load in self.loading:
            mask |= load.mask
        return mask & self.handles.present

    # -- on its way there ----------------------------------------------------------------------------------------------

    def begin_storing(self, mask: int) -> Storing:
        """These pages are copied to the store from now on; ended with `end_storing`."""
        storing = Storing(mask)
        self.storing = (*self.storing, storing)
        return storing

    def end_storing(self, storing: Storing) -> None:
        """It is over, one way or the other."""
        self.storing = tuple(other for other in self.storing if other is not storing)

    def going(self) -> int:
        """Mask of the pages that somebody stores."""
        mask = 0
        for storing in self.storing:
            mask |= storing.live
        return mask

    def touch(self, mask: int) -> None:
        """These pages are used by somebody, or are no more: what is being stored of them is not what they hold."""
        for storing in self.storing:
            storing.live &= ~mask

    def put(self, mask: int, handles: Pages) -> None:
        """These pages are in the store from now on, and nowhere else."""
        self.handles.put(mask, handles)
        self._charge(mask.bit_count())

    def _charge(self, pages: int) -> None:
        self._payer.account.charge(SWAP, pages)
        self._payer.stored_pages += pages

    # -- lost while it is away -----------------------------------------------------------------------------------------

    def drop(self, mask: int) -> None:
        """These pages are holes from now on: what is there of them, or on its way, is needed no more."""
        self.touch(mask)
        gone = mask & self.handles.present
        if gone:
            for at in index_of(gone).tolist() if self._cuts else ():
                self._cuts.pop(at, None)
            self._forget(self._take(gone))

    def cut(self, index: int, skip: int) -> bool:
        """A truncate: page `index` reads as zeros from byte `skip` on. False: it is not here, but may be on its way."""
        self.touch(1 << index)
        if not self.handles.present >> index & 1:
            return False
        self._cuts[index] = min(skip, self._cuts.get(index, skip))
        return True

    def _take(self, mask: int) -> Pages:
        self._charge(-mask.bit_count())
        return self.handles.take(mask)

    def _forget(self, handles: Pages) -> None:
        """Drop handles; those on their way back are dropped by who has begun that."""
        for load in self.loading:
            handles = handles[~np.isin(handles, load.handles)]
        if len(handles):
            self._store.drop(handles, upkeep=False)

    # -- on its way back -----------------------------------------------------------------------------------------------

    def begin_load(self, mask: int, pages: Pages, *, takes: bool) -> Loading:
        """Ask the store for these pages, all of them there, for this memory, which is charged; ended with `end_load`.

        `takes` as SwapStore.begin_load. TtmError(EINVAL): the memory is the caller's still.
        """
        handles = self.handles.numbers(mask)
        load = Loading(mask, handles, pages, self._store.begin_load(handles, takes=takes))
        self.loading = (*self.loading, load)
        self._fly(len(pages))
        return load

    def _fly(self, pages: int) -> None:
        self._payer.account.charge_flight(pages)
        self._payer.loading_pages += pages

    def end_load(self, load: Loading) -> tuple[int, Pages, TtmError | None]:
        """(mask of the pages that are the chunk's now, the memory they are on, why others did not come).

        What else there is of its memory has been given back: what others have brought or cut off meanwhile with it.
        """
        self.loading = tuple(other for other in self.loading if other is not load)
        self._fly(-len(load.pages))
        error: TtmError | None = None
        came = len(load.pages)
        try:
            self._store.end_load(load.transfer)
        except LoadError as failure:
            came, error = failure.loaded, failure
        index = index_of(load.mask)
        waiting = self._waiting(index, load)
        arrived = np.arange(len(index)) < came
        adopted = waiting & arrived
        mask, memory = mask_of_index(index[adopted]), load.pages[adopted]
        for at, page in zip(index[adopted].tolist(), memory.tolist(), strict=True) if self._cuts else ():
            skip = self._cuts.pop(at, None)
            if skip is not None:
                self._payer.pool.arena.mem[page, skip:] = 0
        if mask:
            self._take(mask)
        self._forget(load.handles[arrived | ~waiting])
        free_pages(self._payer, load.pages[~adopted])
        load.done.set()
        return mask, memory, error

    def _waiting(self, index: Index, load: Loading) -> "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]":
        """Which of the pages of a load have the handle still that it loads: others were faster, or cut them off."""
        there = np.zeros(CHUNK_PAGES, np.bool_)
        there[index_of(self.handles.present)] = True
        waiting = there[index]
        waiting[waiting] = self.handles.numbers(mask_of_index(index[waiting])) == load.handles[waiting]
        return waiting
