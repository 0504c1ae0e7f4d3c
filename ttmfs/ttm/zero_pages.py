"""Zero pages: pages of BOs in system that hold nothing but zeros become holes, which say the same at no cost.

They are looked for without disturbing anybody, unmapped, looked at again (a client may have written meanwhile) and
freed.
"""

import numpy as np
import trio
from numpy.typing import NDArray

from ttmfs.sync.resv import Usage
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.device import Device, Need
from ttmfs.ttm.lru_cursor import LruCursor
from ttmfs.ttm.placement import SYSTEM
from ttmfs.ttm.tt import TT
from ttmfs.ttm.unmap import unmap_virtual

_SCAN_PAGES = 256


async def reclaim_zero_pages(device: Device, need: Need) -> int:
    """A Reclaimer: free about `need.pages` pages; returns how many were freed.

    Trylocks others, so it never waits for another request (H31).
    """
    freed = 0
    if need.but is not None and need.keep is not None and _droppable(need.but):
        freed += await drop_zero_pages(need.but, need.keep)
    with LruCursor(device.managers[SYSTEM].lru, until_now=True) as cursor:
        while freed < need.pages and (item := cursor.next()) is not None:
            victim: BufferObject = item.bo
            if victim is need.but or not _droppable(victim) or not victim.resv.trylock():
                continue
            try:
                freed += await drop_zero_pages(victim, None)
            finally:
                victim.unlock()
    return freed


def _droppable(bo: BufferObject) -> bool:
    tt = bo.tt
    return (
        tt is not None
        and not tt.external
        and tt.populated_pages > 0
        and bo.mem_type == SYSTEM
        and not bo.pin_count
        and not bo.copies
        and bo.resv.test_signaled(Usage.BOOKKEEP)
    )


async def drop_zero_pages(bo: BufferObject, keep: range | None) -> int:
    """Turn the all-zero pages of a reserved, idle system BO into holes; returns how many."""
    tt = bo.tt
    assert tt is not None
    candidates = tt.present()
    if keep is not None:
        candidates = candidates[(candidates < keep.start) | (candidates >= keep.stop)]
    candidates = await _look_for_zero_pages(tt, candidates)
    if not len(candidates):
        return 0
    if keep is None:
        await unmap_virtual(bo)
    else:
        # The folios of this range are locked by the request being served: INVAL around it (H30).
        if keep.start:
            await unmap_virtual(bo, 0, keep.start)
        if keep.stop < bo.num_pages:
            await unmap_virtual(bo, keep.stop)
    if not _droppable(bo) or bo.tt is not tt:
        return 0
    bo.drop_vmap()
    return tt.depopulate(_zero_pages(tt, candidates))


async def _look_for_zero_pages(tt: TT, candidates: NDArray[np.intp]) -> NDArray[np.intp]:
    """Those of `candidates` that hold only zeros, a step at a time; clients may write meanwhile."""
    found = [candidates[:0]]
    for start in range(0, len(candidates), _SCAN_PAGES):
        found.append(_zero_pages(tt, candidates[start : start + _SCAN_PAGES]))
        await trio.lowlevel.checkpoint()
    return np.concatenate(found)


def _zero_pages(tt: TT, index: NDArray[np.intp]) -> NDArray[np.intp]:
    words = tt.arena.mem[tt.pages_at(index)].view(np.uint64)
    zeros: NDArray[np.intp] = index[~words.any(axis=1)]
    return zeros
