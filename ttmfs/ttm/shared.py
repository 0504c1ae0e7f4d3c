"""A reservation of several BOs (the dma_resv of a VM), and how a BO comes to share it.

One lock and one table of fences for all of them: whoever reserves one has reserved all, and who waits for one waits for
what the others do. What a BO has put off until its reservation is released (a truncate's trim, a deletion) is done
whichever of the BOs it is released by.
"""

import errno

from ttmfs.errors import TtmError
from ttmfs.sync.resv import Reservation, Usage
from ttmfs.sync.ww_mutex import WwClass, reservation_ww_class
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.lru import LruBulkMove


class SharedReservation(Reservation):
    """`late`: BOs with something to do at the next unlock, whoever's it is."""

    __slots__ = ("late",)

    def __init__(self, ww_class: WwClass = reservation_ww_class) -> None:
        super().__init__(ww_class)
        self.late: dict[BufferObject, None] = {}

    def unlock(self) -> None:
        """As of any reservation; what was put off is tried before, and what comes after an unlock afterwards."""
        late = tuple(self.late)
        try:
            for bo in late:
                for work in bo.when_unlocking:
                    work(bo)
        finally:
            super().unlock()
        for bo in late:
            if bo in self.late:
                if not bo.when_unlocking and not bo.zombie:
                    del self.late[bo]
                for work in bo.when_unlocked:
                    work(bo)


def put_off(bo: BufferObject) -> None:
    """It has something to do when its reservation is released: the one that it shares may be so by another BO."""
    if isinstance(bo.resv, SharedReservation):
        bo.resv.late[bo] = None


def no_longer_late(bo: BufferObject) -> None:
    """It gets a reservation of its own."""
    if isinstance(bo.resv, SharedReservation):
        bo.resv.late.pop(bo, None)


def is_unused(bo: BufferObject) -> bool:
    """Has it nothing yet, and does nobody work on it, so that its reservation can be another?"""
    return (
        not bo.resv.locked
        and not bo.held_pages
        and not bo.external
        and not bo.pin_count
        and not bo.copies
        and not bo.unmapping
        and bo.resv.test_signaled(Usage.BOOKKEEP)
    )


def share(bo: BufferObject, resv: SharedReservation, bulk: LruBulkMove) -> None:
    """Give a BO that nobody has used yet the reservation, which is held, and make it a member of the bulk move.

    TtmError(EBUSY) when it is in use, or has content; nothing has changed then.
    """
    if not is_unused(bo) or not bo.resv.trylock():
        raise TtmError(errno.EBUSY, f"{bo.name!r} is in use: say which VM it is local to before its first use")
    own, bo.resv = bo.resv, resv
    bo.shares_resv = True
    bo.bulk = bulk
    bo.relist()
    own.unlock()
