"""SwappedPages: the part of a page vector that is in swap (TTM_TT_FLAG_SWAPPED and `swap_storage`).

A swapped entry of the vector is odd, (row + 1) << 1 | 1, its row counted over all storages of this tt: a tt that came
back only in part may be swapped out again. What a truncate cuts off while it is swapped is remembered and zeroed when
the page comes back. Where the kernel swaps a tt in whole or not at all, here any piece may come back; nothing is
dropped before it has.
"""

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from ttmfs.memory.arena import Arena
from ttmfs.memory.runs import PageArray
from ttmfs.memory.swap_store import SwapStorage
from ttmfs.units import PAGE_MASK

Vector = NDArray[np.uint32]


def encode_rows(rows: NDArray[np.intp]) -> Vector:
    """Rows as the vector holds them."""
    return ((rows + 1) << 1 | 1).astype(np.uint32)


def decode_rows(entries: Vector) -> NDArray[np.intp]:
    """Rows of entries that are all swapped."""
    return (entries >> np.uint32(1)).astype(np.intp) - 1


class SwappedPages:
    """Storages and what is in them. `pages`: entries that are still swapped."""

    __slots__ = ("_bases", "_cuts", "_storages", "pages")

    def __init__(self) -> None:
        self._storages: list[SwapStorage] = []
        self._bases: list[int] = []
        self._cuts: dict[int, int] = {}
        self.pages = 0

    def add(self, storage: SwapStorage) -> Vector:
        """A filled storage; returns the entries for its rows."""
        base = self._bases[-1] + self._storages[-1].num_pages if self._bases else 0
        self._storages.append(storage)
        self._bases.append(base)
        self.pages += storage.num_pages
        return encode_rows(np.arange(base, base + storage.num_pages))

    def _by_storage(self, rows: NDArray[np.intp]) -> list[tuple[SwapStorage, NDArray[np.bool_], int]]:
        if len(self._storages) == 1:
            return [(self._storages[0], np.ones(len(rows), bool), 0)]
        which = np.array([bisect_right(self._bases, row) - 1 for row in rows.tolist()], np.intp)
        return [(self._storages[n], which == n, self._bases[n]) for n in np.unique(which).tolist()]

    def load(self, rows: NDArray[np.intp], index: NDArray[np.intp], arena: Arena, pages: PageArray) -> None:
        """Copy rows into `pages`, which become the entries `index`; nothing is dropped."""
        for storage, mask, base in self._by_storage(rows):
            storage.load(rows[mask] - base, arena, pages[mask])
        if self._cuts:
            for at, page in zip(index.tolist(), pages.tolist(), strict=True):
                cut = self._cuts.get(at)
                if cut is not None:
                    arena.mem[page, cut:] = 0

    def drop(self, rows: NDArray[np.intp], index: NDArray[np.intp]) -> None:
        """The entries `index` are swapped no more."""
        for storage, mask, _base in self._by_storage(rows):
            storage.drop(int(mask.sum()))
        self.pages -= len(rows)
        if self._cuts:
            for at in index.tolist():
                self._cuts.pop(at, None)

    def cut(self, index: int, offset: int) -> None:
        """Entry `index` reads as zeros from byte `offset & 4095` on."""
        within = offset & PAGE_MASK
        self._cuts[index] = min(within, self._cuts.get(index, within))

