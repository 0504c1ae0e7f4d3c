"""Ahead: a BO that is written from its begin to its end gets blocks of the beneficial order all the same.

WRITEs ask for at most 1 MiB, so what they are given piece by piece would never be a whole block of 2 MiB. Once a file
has come beyond 1 MiB, the WRITE that makes it longer takes the block for the piece where it ends, and the next ones
find their pages there; what the first piece had until then is copied over (khugepaged calls it collapse). What is left
goes back when the file is cut, when the last who may write has closed it, or when memory is sought. A BO holds at most
one such block, and small files, which would leave blocks broken that they do not half fill, none.
"""

from typing import Final

import numpy as np

from ttmfs.errors import TtmError
from ttmfs.memory.copy import copy_pages
from ttmfs.sync.resv import Usage
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.device import Device
from ttmfs.ttm.holdings import Ahead
from ttmfs.ttm.tt import TT

_FREE_SHARE: Final = 8
"""One part in so many of all memory has to stay free beside a block that nobody has asked for."""


def take_ahead(bo: BufferObject, tt: TT, first: int, count: int) -> None:
    """A WRITE that makes a reserved BO longer is about to populate these pages: have a block for the piece it ends in.

    Where the block is not to be had at once there is none, and no harm. Synchronous.
    """
    order = tt.pool.beneficial_order
    if bo.growth is None or not bo.has_writers or not order or bo.external or not _may_collapse(bo, tt):
        return
    size, end = 1 << order, first + count
    low = (end - 1) >> order << order
    if end != bo.num_pages or low < bo.own_pages or not _worth_it(tt, low, first, end, size):
        return
    present = tt.present_in(low, size)
    if len(present) > size // 2 or not _plenty(bo, tt, size):
        return
    held = _keep_only(tt, range(first, low))
    try:
        block = tt.alloc(size, max_order=order, zero=False, defrag=True)
    except TtmError:
        tt.ahead = held if len(held.index) else None
        return
    if len(present):
        copy_pages(tt.arena, block[present - low], tt.arena, tt.pages_at(present))
        tt.depopulate(present)
        tt.adopt(present, block[present - low])
    rest = np.setdiff1d(np.arange(low, low + size), present, assume_unique=True)
    tt.ahead = Ahead(np.concatenate([held.index, rest]), np.concatenate([held.pages, block[rest - low]]))
    bo.device.aheads[bo] = None


def _worth_it(tt: TT, low: int, first: int, end: int, size: int) -> bool:
    """Does the WRITE of [first, end) pass the middle of the piece of `size` at `low`, or begin one, but the first?

    Not when the block for this piece is held already, nor for a whole piece, which is given one block anyway.
    """
    if (tt.ahead is not None and end - 1 in tt.ahead.index) or first <= low < low + size == end:
        return False
    begins = low > 0 and first < low + size // 2 and not tt.has_memory(low, 1)
    return begins or first - low <= size // 2 < end - low


def _keep_only(tt: TT, index: range) -> Ahead:
    """Of the block that the BO holds, what is for these entries; the rest goes back."""
    if tt.ahead is None:
        return Ahead(np.zeros(0, np.intp), np.zeros(0, np.uint32))
    kept = Ahead(*tt.ahead.take(np.array(index, np.intp)))
    tt.drop_ahead()
    return kept


def give_ahead_back(bo: BufferObject) -> int:
    """Nobody writes on, or memory is sought: what is left of its block is free again; how many pages."""
    bo.device.aheads.pop(bo, None)
    return 0 if bo.tt is None else bo.tt.drop_ahead()


def give_all_back(device: Device) -> int:
    """All BOs do so; how many pages."""
    return sum(give_ahead_back(bo) for bo in tuple(device.aheads))


def _may_collapse(bo: BufferObject, tt: TT) -> bool:
    """Does nobody but the caller use the pages that it has, and come none back?"""
    restored = not tt.backed_up_pages and tt.unfinished is None and not tt.restoring
    return restored and not bo.copies and tt.storing is None and bo.resv.test_signaled(Usage.BOOKKEEP)


def _plenty(bo: BufferObject, tt: TT, size: int) -> bool:
    """Is there so much memory that one block more is in nobody's way, and nobody counts it?"""
    pool = tt.pool
    return (
        not tt.account.limited
        and bo.device.over_limit(size + bo.device.pages_gap) <= 0
        and pool.free_pages - size >= pool.num_pages // _FREE_SHARE
    )
