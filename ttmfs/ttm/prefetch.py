"""Prefetch: memory for pages of a BO that a fault did not ask for, as whoever is registered for that says.

They are worth nothing that others have: only free pages are taken, of which so many are left that nobody shrinks for
them. Where there are too few, or the store does not give something back, nothing is prefetched; the fault is served all
the same.
"""

from ttmfs.errors import TtmError
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.restore import restore_range


async def prefetch(bo: BufferObject, first: int, count: int, *, holes: bool) -> int:
    """After a fault of pages [first, first + count) that had no memory, of a reserved BO: the pages added besides.

    Without `holes` only what is in the store comes (see ttmfs.ttm.looking).
    """
    device = bo.device
    if device.prefetcher is None:
        return 0
    start, pages = device.prefetcher.around(bo, first, count, "fault")
    end = min(start + pages, bo.num_pages)
    start = max(start, bo.own_pages)
    tt = bo.need_tt()
    if start >= end:
        return 0
    missing = end - start - len(tt.present_in(start, end - start)) if holes else len(tt.handles_in(start, end))
    if missing <= 0 or not device.can_spare(missing):
        return 0
    bo.drop_vmap()
    added = 0
    try:
        if len(tt.handles_in(start, end)):
            added = await restore_range(bo, tt, start, end - start)
        if holes:
            added += tt.populate_range(start, end - start)
    except TtmError:
        # What came until then is there.
        return added
    return added
