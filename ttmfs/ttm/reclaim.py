"""Reclaim: memory of the system arena that can be had back without losing a byte.

First pages that hold nothing but zeros: a hole says the same at no cost. They are looked for without disturbing
anybody, unmapped, looked at again (a client may have written meanwhile) and freed. Then memory that copies in flight
are about to free.
"""

import numpy as np
import trio
from numpy.typing import NDArray

from ttmfs.sync.resv import Usage
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.device import Device
from ttmfs.ttm.lru_cursor import LruCursor
from ttmfs.ttm.placement import SYSTEM
from ttmfs.ttm.tt import TT
from ttmfs.ttm.unmap import unmap_virtual

GHOST_WAIT: float = 1.0
"""Seconds to wait for copies in flight to give their source back."""
_SCAN_PAGES = 256


async def reclaim(
    device: Device, pages: int, ctx: OperationContext, *, faulting: BufferObject | None, keep: tuple[int, int] | None
) -> int:
    """Free about `pages` pages; returns how many were freed, 0 when nothing more can be.

    `faulting` is reserved by the caller. `keep` is its page range that a request in flight has locked: that range is
    neither unmapped nor freed; None leaves `faulting` alone altogether. Trylocks others, so it never waits for another
    request (H31).
    """
    freed = 0
    if faulting is not None and keep is not None and _droppable(faulting):
        freed += await drop_zero_pages(faulting, keep)
    with LruCursor(device.managers[SYSTEM].lru, until_now=True) as cursor:
        while freed < pages and (item := cursor.next()) is not None:
            victim: BufferObject = item.bo
            if victim is faulting or not _droppable(victim) or not victim.resv.trylock():
                continue
            try:
                freed += await drop_zero_pages(victim, None)
            finally:
                victim.unlock()
    for reclaimer in device.reclaimers:
        if freed < pages:
            freed += await reclaimer(pages - freed)
    if not freed and device.num_ghosts and not ctx.no_wait_gpu:
        freed = await _wait_for_ghosts(device)
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


async def drop_zero_pages(bo: BufferObject, keep: tuple[int, int] | None) -> int:
    """Turn the all-zero pages of a reserved, idle system BO into holes; returns how many."""
    tt = bo.tt
    assert tt is not None
    candidates = tt.present()
    if keep is not None:
        candidates = candidates[(candidates < keep[0]) | (candidates >= keep[0] + keep[1])]
    candidates = await _look_for_zero_pages(tt, candidates)
    if not len(candidates):
        return 0
    if keep is None:
        await unmap_virtual(bo)
    else:
        # The folios of this range are locked by the request being served: INVAL around it (H30).
        first, count = keep
        if first:
            await unmap_virtual(bo, 0, first)
        if first + count < bo.num_pages:
            await unmap_virtual(bo, first + count)
    if not _droppable(bo) or bo.tt is not tt:
        return 0
    bo.drop_view()
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


async def _wait_for_ghosts(device: Device) -> int:
    before = device.pool.free_pages
    with trio.move_on_after(GHOST_WAIT):
        while device.num_ghosts and device.pool.free_pages <= before:
            await device.ghost_gone.wait()
    return max(0, device.pool.free_pages - before)
