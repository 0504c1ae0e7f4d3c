"""ShmemStore: backed-up pages in memory, as the kernel's ttm_backup keeps them in a shmem file.

Anonymous huge pages instead of shmem: touching 4 KiB shmem pages costs ten times what copying them does. The memory
goes back to the host as pages are dropped (see FixedStore for how soon).
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from ttmfs.memory.arena import Arena
from ttmfs.memory.runs import PageArray
from ttmfs.memory.stores.checksums import copy_and_sum
from ttmfs.memory.stores.fixed import FixedStore
from ttmfs.memory.stores.transfer import LoadTransfer, StoreTransfer
from ttmfs.units import PAGE_SHIFT

_STEP: Final = 128
"""512 KiB: some tenths of a millisecond."""


class ShmemStore(FixedStore):
    """Room for `size` bytes of pages in memory. Raises TtmError(ENOMEM) when the host refuses the address space."""

    blocking = False

    def __init__(self, size: int) -> None:
        super().__init__("shmem", size)
        self._arena = Arena("shmem store", self.slots.num_slots)

    def _write(self, transfer: StoreTransfer, arena: Arena, pages: PageArray, writeback: bool) -> None:
        for _ in self._write_steps(transfer, arena, pages, writeback):
            pass

    def _write_steps(
        self, transfer: StoreTransfer, arena: Arena, pages: PageArray, writeback: bool
    ) -> Iterator[None]:
        for begin in range(0, len(pages), _STEP):
            step = slice(begin, min(begin + _STEP, len(pages)))
            copy_and_sum(self._arena, transfer.slots[step], arena, pages[step], transfer.checksums[step])
            transfer.written = step.stop
            yield

    def _read(self, transfer: LoadTransfer, arena: Arena, pages: PageArray) -> None:
        for _ in self._read_steps(transfer, arena, pages):
            pass

    def _read_steps(self, transfer: LoadTransfer, arena: Arena, pages: PageArray) -> Iterator[None]:
        sums = np.empty(min(_STEP, len(pages)), np.uint32)
        for begin in range(0, len(pages), _STEP):
            step = slice(begin, min(begin + _STEP, len(pages)))
            slots = transfer.slots[step]
            found = sums[: slots.size]
            copy_and_sum(arena, pages[step], self._arena, slots, found)
            wrong = np.flatnonzero(found != self.checksums[slots])
            if wrong.size:
                good = int(wrong[0])
                arena.zero(pages[step][good:])  # what is not right is not handed out
                transfer.loaded = begin + good
                raise self._wrong(int(slots[good]))
            transfer.loaded = step.stop
            yield

    def _give_back(self, first: int, count: int) -> None:
        self._arena.give_back(first, count)

    def corrupt(self, handle: int, offset: int = 0, flip: int = 1) -> None:
        """Flip bits of one stored byte: damage on purpose, for who wants to see it found."""
        self._arena.buf[((handle - 1) << PAGE_SHIFT) + offset] ^= flip

    def _close(self) -> None:
        self._arena.close()
