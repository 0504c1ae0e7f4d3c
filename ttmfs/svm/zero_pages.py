"""Reclaim: system pages of address spaces that hold nothing but zeros become holes again, which say the same.

Whoever reads through a sparse space (grep -r over a mount) gives every page of it memory, because a page that a client
may have cached must have some. When memory is sought elsewhere such pages go first out of the caches, run by run, so
that no request of another page is waited for; then, if they are zeros still, they are freed.
"""

from typing import TYPE_CHECKING

import numpy as np
import trio

from ttmfs.svm.chunk import Chunk
from ttmfs.svm.pages import CHUNK_PAGES, CHUNK_SHIFT, index_of, lowest, mask_from, mask_of, run_length
from ttmfs.ttm.device import Need

if TYPE_CHECKING:
    from collections.abc import Collection

    from ttmfs.svm.space import AddressSpace


async def reclaim_zero_pages(spaces: "Collection[AddressSpace]", need: Need) -> int:
    """A Reclaimer: free about `need.pages` pages of these spaces; returns how many were freed."""
    freed = 0
    for space in list(spaces):
        # From where the last visit ended: most of what it left behind holds something.
        numbers = list(space.chunks.irange(space.reclaim_hand)) + list(space.chunks.irange(0, space.reclaim_hand - 1))
        for number in numbers:
            if freed >= need.pages:
                return freed
            freed += await _reclaim_chunk(space, number)
            space.reclaim_hand = number + 1
            await trio.lowlevel.checkpoint()
    return freed


async def _reclaim_chunk(space: "AddressSpace", number: int) -> int:
    chunk = space.chunks.get(number)
    if chunk is None or not chunk.pages.present or _in_use(chunk):
        return 0
    freed = 0
    zeros = _zero_pages(chunk, chunk.pages.present & ~space.asked.within(chunk.first_page))
    while zeros:
        run = mask_of(lowest(zeros), run_length(zeros, lowest(zeros)))
        zeros &= ~run
        first = (number << CHUNK_SHIFT) + lowest(run)
        end = first + run.bit_count()
        await space.flush(first, end)
        freed += _drop(space, number, run, first, end)
    return freed


def _drop(space: "AddressSpace", number: int, run: int, first: int, end: int) -> int:
    """Free those of these pages that nobody was handed meanwhile and that are zeros still. Synchronous."""
    chunk = space.chunks.get(number)
    if chunk is None or _in_use(chunk) or space.gate.unmaps(first, end - first):
        return 0
    gone = _zero_pages(chunk, run & chunk.pages.present & ~chunk.handed & ~space.asked.within(chunk.first_page))
    if gone:
        space.invalidate(first, end, "reclaim")
        chunk.drop(gone)
        space.tidy(chunk)
    return gone.bit_count()


def _in_use(chunk: Chunk) -> bool:
    return bool(chunk.moves or chunk.users or chunk.busy(-1))


def _zero_pages(chunk: Chunk, mask: int) -> int:
    """Those of these system pages that hold only zeros."""
    if not mask:
        return 0
    words = chunk.space.arena.mem[chunk.pages.numbers(mask)].view(np.uint64)
    zero = index_of(mask)[~words.any(axis=1)]
    flags = np.zeros(CHUNK_PAGES, np.bool_)
    flags[zero] = True
    return mask_from(flags)
