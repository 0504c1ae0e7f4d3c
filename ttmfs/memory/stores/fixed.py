"""FixedStore: a store whose slot is a place of 4 KiB on its medium (memory or a file), and what gives back does there.

It promises that the medium holds no more than what is stored, plus a quarter of that, plus 2 MiB: a slab of 2 MiB
without a page goes back at once, smaller free stretches (the longest first) when there are too many of them. Giving
back every single page at once would cost a system call a page, and split the huge pages of those that stay.
"""

import logging
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from ttmfs.memory.runs import Int64Array
from ttmfs.memory.stores.base import SwapStore
from ttmfs.memory.stores.slots import MAX_SLOTS, SLAB, lazy_array
from ttmfs.memory.stores.transfer import StoreTransfer
from ttmfs.units import PAGE_SHIFT

log = logging.getLogger(__name__)

_WORK_PAGES = 64 * SLAB
"""Slots given back by one piece of upkeep at most, if these are several runs: while it runs they cannot be taken."""


@dataclass(slots=True)
class GiveBack:
    """Free slots on their way back to the host: runs `(first, count)`; `done` when the medium has dropped them."""

    first: Int64Array
    count: Int64Array
    done: bool = False


class FixedStore(SwapStore):
    """Slot i is at byte i * 4096 of the medium."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__(name, size, min(size >> PAGE_SHIFT, MAX_SLOTS))
        self.checksums = lazy_array(self.slots.num_slots, np.uint32)

    @property
    def used(self) -> int:
        return self.slots.stored << PAGE_SHIFT

    def begin_store(self, count: int, *, gives: bool = False) -> StoreTransfer:
        transfer = super().begin_store(count, gives=gives)
        self.slots.touch(transfer.slots)
        return transfer

    def _commit(self, transfer: StoreTransfer, written: int) -> int:
        self.checksums[transfer.slots[:written]] = transfer.checksums[:written]
        return written

    def begin_upkeep(self, flush: bool = False) -> GiveBack | None:
        keep = max(SLAB, self.slots.stored >> 2)
        if self._closed or not self.slots.waste:
            return None
        if self.slots.stored == 0:
            keep = 0
        # Half of what may be waste stays, so that the next single drops find room to wait in.
        first, count = self.slots.hold_waste(keep, keep >> 1, _WORK_PAGES)
        return GiveBack(first, count) if first.size else None

    def run_upkeep(self, work: GiveBack) -> None:
        try:
            for first, count in zip(work.first.tolist(), work.count.tolist(), strict=True):
                self._give_back(first, count)
        except OSError as error:
            # Not lost, only not given back: the slots are used again, and count as given back so that nobody retries.
            log.warning("giving back pages of the swap store %s failed: %s", self.name, error)
        work.done = True

    def end_upkeep(self, work: GiveBack) -> None:
        self.slots.release(work.first, work.count, work.done)

    @abstractmethod
    def _give_back(self, first: int, count: int) -> None:
        """Any thread: these free slots hold nothing any more."""
