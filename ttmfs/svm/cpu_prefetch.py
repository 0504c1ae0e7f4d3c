"""Prefetch of the CPU's side of address spaces: memory for pages that a client's fault did not ask for.

As with BOs (ttmfs.ttm.prefetch) it is worth nothing that others have: free pages are taken as far as they reach, and so
many are left that nobody shrinks for them. What the device has stays with it: that comes back, a whole allocation at a
time, when it is touched.
"""

from typing import TYPE_CHECKING

import trio

from ttmfs.errors import TtmError
from ttmfs.svm.pages import CHUNK_PAGES, mask_of
from ttmfs.svm.swap import load_ahead
from ttmfs.svm.system_pages import give_pages
from ttmfs.ttm.advice import Prefetcher

if TYPE_CHECKING:
    from ttmfs.svm.space import AddressSpace


async def prefetch_for_cpu(space: "AddressSpace", first: int, end: int, prefetcher: Prefetcher, *, holes: bool) -> None:
    """What the policy wants around pages [first, end) of a READ or WRITE, some of which had no memory.

    Without `holes` only what is in the store comes (see ttmfs.ttm.looking).
    """
    start, count = prefetcher.around(space.cpu_view, first, end - first, "fault")
    page = max(start, 0)
    while page < (stop := min(start + count, space.num_pages)):
        _first, border, mode = space.mapping.interval(page, stop)
        if mode != "none":
            number, at = divmod(page, CHUNK_PAGES)
            border = min(border, page - at + CHUNK_PAGES)
            if not await _bring(space, number, mask_of(at, border - page), holes=holes):
                return
            await trio.lowlevel.checkpoint()
        page = border


async def _bring(space: "AddressSpace", number: int, mask: int, *, holes: bool) -> bool:
    """Memory for these pages of a chunk; False where too little is free."""
    device = space.vdev.ttm
    chunk = space.chunks.get(number)
    stored = 0 if chunk is None else chunk.in_store & mask
    # Where the device has a part, pages in system would only make a range mixed.
    apart = chunk is None or not (chunk.allocs or chunk.moves)
    empty = mask & ~space.held(number) if holes and apart else 0
    count = stored.bit_count() + empty.bit_count()
    if not count:
        return True
    if space.released or not device.can_spare(count):
        return False
    try:
        if empty:
            give_pages(space, number, empty)
        if stored:
            await load_ahead(space, number, stored)
    except TtmError:
        return False
    return True
