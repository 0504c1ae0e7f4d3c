"""Pages of one 2 MiB chunk: bit masks of pages, and the system memory that a chunk has (what the CPU's PTEs say).

A mask is a Python int of at most 512 bits, bit i for page i of the chunk. System pages are kept without a vector as
long as they are one run in the order of the chunk, which is what a whole chunk that was allocated at once is.
"""

from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ttmfs.memory.pool import PagePool
from ttmfs.sync.containers import merge
from ttmfs.sync.fence import Fence
from ttmfs.ttm.account import MEMORY, SLACK_PAGES, Account

CHUNK_SHIFT: Final = 9
CHUNK_PAGES: Final = 1 << CHUNK_SHIFT
"""Pages of a chunk: 2 MiB, the largest range."""
FULL: Final = (1 << CHUNK_PAGES) - 1

Index = NDArray[np.intp]
Pages = NDArray[np.uint32]


def mask_of(first: int, count: int) -> int:
    """Bits [first, first + count)."""
    if count == CHUNK_PAGES and not first:
        return FULL  # one object, however many chunks are whole
    return ((1 << count) - 1) << first


def lowest(mask: int) -> int:
    """The number of the lowest bit of a mask that has one."""
    return (mask & -mask).bit_length() - 1


def run_length(mask: int, first: int) -> int:
    """How many bits from `first` on are set without a gap."""
    return lowest(~(mask >> first))


def index_of(mask: int) -> Index:
    """The numbers of the bits, ascending: intp."""
    if not mask:
        return np.zeros(0, np.intp)
    first = lowest(mask)
    count = mask.bit_length() - first
    if run_length(mask, first) == count:
        return np.arange(first, first + count)
    packed = np.frombuffer(mask.to_bytes(CHUNK_PAGES >> 3, "little"), np.uint8)
    return np.flatnonzero(np.unpackbits(packed, bitorder="little"))


def mask_of_index(index: Index) -> int:
    """The mask of these pages."""
    flags = np.zeros(CHUNK_PAGES, np.bool_)
    flags[index] = True
    return mask_from(flags)


def mask_from(flags: NDArray[np.bool_]) -> int:
    """The mask of an array of flags, bit i for item i."""
    return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")


class CpuPages:
    """The system pages of one chunk. `present` is the mask of those it has; all else is a hole.

    `base` is the page number that page 0 of the chunk would have, while all pages are in that one order; else
    `vector`, uint32 (512,), holds page numbers (only those that are present mean anything).
    """

    __slots__ = ("base", "present", "vector")

    def __init__(self) -> None:
        self.present = 0
        self.base = 0
        self.vector: Pages | None = None

    def page(self, index: int) -> int:
        """The page number of a page that is present."""
        return self.base + index if self.vector is None else self.vector.item(index)

    def numbers(self, mask: int) -> Pages:
        """Page numbers of these pages, all present, in order: uint32."""
        index = index_of(mask)
        if self.vector is None:
            return (index + self.base).astype(np.uint32)
        found: Pages = self.vector[index]
        return found

    def extent(self, index: int, count: int) -> tuple[int, int]:
        """(page number, length) of the run of consecutive page numbers from page `index` on, which is present."""
        count = min(count, run_length(self.present, index))
        if self.vector is None:
            return self.base + index, count
        first = self.vector.item(index)
        if count == 1:
            return first, 1
        part = self.vector[index : index + count]
        follows = part[1:] - part[:-1] == 1
        return first, count if bool(follows.all()) else int(np.argmin(follows)) + 1

    def put(self, mask: int, pages: NDArray[np.generic]) -> None:
        """Give memory to these holes, in order."""
        assert not mask & self.present
        if not mask:
            return
        if mask & (mask - 1) == 0:
            self._put_one(lowest(mask), int(pages[0]))
            return
        index = index_of(mask)
        if self.vector is None:
            base = int(pages[0]) - int(index[0])
            if (not self.present or base == self.base) and bool((pages == index + base).all()):
                self.base = base
                self.present |= mask
                return
            self._make_vector()[index] = pages
        else:
            self.vector[index] = pages
        self.present |= mask

    def put_run(self, mask: int, base: int) -> None:
        """Give memory to these holes: page `base` + i to page i of the chunk."""
        if self.vector is None and (not self.present or base == self.base):
            assert not mask & self.present
            self.base = base
            self.present |= mask
        else:
            self.put(mask, index_of(mask) + base)

    def base_of(self, mask: int) -> int | None:
        """The page number that page 0 of the chunk would have, if these are all present and in that one order."""
        return self.base if self.vector is None and not mask & ~self.present else None

    def _put_one(self, index: int, page: int) -> None:
        if self.vector is None:
            if not self.present:
                self.base = page - index
            elif self.base != page - index:
                self._make_vector()[index] = page
        else:
            self.vector[index] = page
        self.present |= 1 << index

    def _make_vector(self) -> Pages:
        vector = self.vector = np.zeros(CHUNK_PAGES, np.uint32)
        if self.present:
            old = index_of(self.present)
            vector[old] = old + self.base
        return vector

    def take(self, mask: int) -> Pages:
        """Detach these pages, which are present: they are the caller's, and holes here."""
        pages = self.numbers(mask)
        self.leave(mask)
        return pages

    def leave(self, mask: int) -> None:
        """These are holes from now on; the caller knows the pages."""
        self.present &= ~mask
        if not self.present:
            self.vector = None


class Payer(Protocol):
    """What has system pages: an address space."""

    account: Account
    name: str
    held_pages: int
    """System pages that it has."""
    stored_pages: int
    """Pages that it has in the store."""
    loading_pages: int
    """Those of its system pages that wait for what comes back from there."""

    @property
    def pool(self) -> PagePool:
        """Where they come from."""


def take_pages(
    payer: Payer, count: int, *, zero: bool = True, use_reserve: bool = False, unlimited: bool = False
) -> Pages:
    """`count` system pages, now or TtmError(ENOMEM, or EDQUOT unless `unlimited`). `zero=False`: they come as they are.
    """
    if not unlimited:
        payer.account.check(MEMORY, count, slack=SLACK_PAGES if use_reserve else 0)
    pages = payer.pool.alloc(count, zero=zero, max_order=CHUNK_SHIFT, use_reserve=use_reserve).pages
    payer.account.charge(MEMORY, count)
    payer.held_pages += count
    return pages


def give_up_pages(payer: Payer, pages: Pages) -> None:
    """Their content is in the store: they go past the pool (ttm_pool_backup)."""
    payer.account.uncharge(MEMORY, len(pages))
    payer.held_pages -= len(pages)
    payer.pool.free(pages, to_pool=False, split=True)


def free_pages(payer: Payer, pages: NDArray[np.generic], fences: tuple[Fence, ...] = ()) -> None:
    """Give detached pages back, when the last of `fences` has signaled: nobody who still uses them is disturbed."""
    if not len(pages):
        return
    waited_for = merge(*fences)

    def free(_fence: Fence | None = None) -> None:
        payer.account.uncharge(MEMORY, len(pages))
        payer.held_pages -= len(pages)
        payer.pool.detached.pop(free, None)
        payer.pool.free(pages, split=True)

    if waited_for.add_callback(free):
        payer.pool.detached[free] = pages
    else:
        free()
