"""Swap: system pages of an address space to the swap store, and back on touch (what vmscan and swapin do for memory).

A chunk goes as the pages of a BO do (ttmfs.ttm.backup): first its pages leave the clients' caches, then they are
copied, and those that nobody has used meanwhile are freed in the same step in which their handles are entered. Pages
that a request asks for, that a job works on, or that are on their way elsewhere stay. What has gone is a page like any
other to whoever asks for it: it comes back first, to system memory.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from ttmfs.errors import TtmError
from ttmfs.observe import points
from ttmfs.svm.chunk import Chunk
from ttmfs.svm.pages import (
    CHUNK_PAGES,
    Pages,
    free_pages,
    give_up_pages,
    index_of,
    lowest,
    mask_of,
    mask_of_index,
    take_pages,
)
from ttmfs.svm.stored import Loading
from ttmfs.svm.system_pages import alloc_pages
from ttmfs.ttm.advice import pages_gone
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.move import IDLE_TIMEOUT
from ttmfs.ttm.store_io import inject_reads, read_pages, store_pages

if TYPE_CHECKING:
    from ttmfs.svm.space import AddressSpace

_CLUSTER: Final = 16
"""Pages around one that comes back that come along: 64 KiB (the kernel's page_cluster says 8 pages)."""
_UNMAPS: Final = 3
"""INVALs that pages get whose clients go on using them before they are left alone."""


# -- to the store ------------------------------------------------------------------------------------------------------


def may_go(space: "AddressSpace", chunk: Chunk) -> int:
    """Mask of a chunk's pages that could go to the store just now."""
    if chunk.moves or chunk.users or not chunk.pages.present:
        return 0
    going = 0 if chunk.stored is None else chunk.stored.going()
    return chunk.pages.present & ~(going | chunk.busy_pages() | space.asked.within(chunk.first_page))


async def idle(chunk: Chunk) -> None:
    """Wait for the jobs and the moves that it has now, in bounded time."""
    for fence in (*chunk.busy(-1), *(move.copy.fence for move in chunk.moves)):
        await fence.wait(IDLE_TIMEOUT)


async def store_chunk(space: "AddressSpace", chunk: Chunk, pages: int, *, writeback: bool = False) -> int:
    """About `pages` of a chunk's pages to the store, the lowest first; returns how many went.

    Needs a store. TtmError: ENOSPC, or the medium's error, when nothing went. Waits for nobody but the INVALs.
    """
    went = 0
    for part in _parts(may_go(space, chunk), space.asked.within(chunk.first_page)):
        if went >= pages:
            break
        some = mask_of_index(index_of(part)[: pages - went])
        try:
            went += await _store(space, chunk, some, writeback=writeback)
        except TtmError:
            if not went:
                raise
            break
    return went


def _parts(mask: int, asked: int) -> Iterator[int]:
    """`mask` cut where a page is asked for, which must not be invalidated along with those around it."""
    while mask:
        above = asked >> lowest(mask)
        part = mask & mask_of(0, lowest(mask) + lowest(above)) if above else mask
        yield part
        mask &= ~part


async def _store(space: "AddressSpace", chunk: Chunk, mask: int, *, writeback: bool) -> int:
    first, end = chunk.first_page + lowest(mask), chunk.first_page + mask.bit_length()
    for _ in range(_UNMAPS):
        await space.flush(first, end)
        if not (space.handed_out(first, end) or space.gate.unmaps(first, end - first)):
            break
    # Nothing is awaited from here on until it is noted who touches them.
    mask &= may_go(space, chunk) & ~chunk.handed
    if not mask or space.gate.unmaps(first, end - first):
        return 0
    device, stored, index = space.vdev.ttm, chunk.need_stored(), index_of(mask)
    storing = stored.begin_storing(mask)

    def unchanged() -> NDArray[np.bool_]:
        flags = np.zeros(CHUNK_PAGES, np.bool_)
        flags[index_of(storing.live & ~chunk.handed)] = True
        return flags[index]

    try:
        handles = await store_pages(
            device, space.arena, chunk.pages.numbers(mask), bo=space.name, writeback=writeback, unchanged=unchanged
        )
        went = np.flatnonzero(handles)
        gone = mask_of_index(index[went])
        if gone:
            space.invalidate(first, end, "backup")
            give_up_pages(space, chunk.pages.take(gone))
            stored.put(gone, handles[went])
            chunk.changed()
    finally:
        stored.end_storing(storing)
        _tidy(space, chunk)
    if gone:
        device.counters.backup.pages_out += len(went)
        pages_gone(device.prefetcher, space.cpu_view, first, end - first)
        points.svm_backup(device.trace, space, first=first, pages=len(went), left=space.held_pages)
    return len(went)


def _tidy(space: "AddressSpace", chunk: Chunk) -> None:
    if chunk.stored is not None and chunk.stored.empty:
        chunk.stored = None
    space.tidy(chunk)


# -- and back ----------------------------------------------------------------------------------------------------------


async def load_stored(
    space: "AddressSpace", number: int, mask: int, ctx: OperationContext | None = None
) -> bool:
    """What is in the store of these pages of chunk `number` comes back; True when this has waited.

    None of them is there when it returns, and nothing was awaited since that was so. TtmError: ENOMEM, or what the
    store says; what has come stays.
    """
    waited, alone = False, False
    while wanted := _wanted(space, number, mask):
        waited = True
        stored = space.chunks[number].need_stored()
        load = next((load for load in stored.loading if load.mask & wanted & stored.handles.present), None)
        if load is not None:
            await load.done.wait()
            continue
        more = wanted if alone else wanted | _around(space, space.chunks[number], wanted)
        pages = await alloc_pages(
            space.vdev.ttm, space, more.bit_count(), ctx or OperationContext(), zero=False, unlimited=True
        )
        error = await _load(space, number, more, pages)
        if error is not None and _wanted(space, number, wanted):
            # Another one than asked for may be what does not come.
            if alone or more == wanted:
                raise error
            alone = True
    return waited


async def load_ahead(space: "AddressSpace", number: int, mask: int) -> None:
    """These pages of chunk `number`, all in the store, to memory that is free, as far as they can be read.

    TtmError(ENOMEM) where there is too little.
    """
    pages = take_pages(space, mask.bit_count(), zero=False, unlimited=True)
    await _load(space, number, mask, pages)


def _wanted(space: "AddressSpace", number: int, mask: int) -> int:
    chunk = space.chunks.get(number)
    return 0 if chunk is None else chunk.in_store & mask


def _around(space: "AddressSpace", chunk: Chunk, wanted: int) -> int:
    """Pages of the store that come along (swapin readahead): a few around what is wanted and, where the page before
    it is in memory, as for one who reads on and on, as many behind it as a fault of a BO brings. None where little
    memory is free, and where a prefetch policy says what comes.
    """
    device, stored, low = space.vdev.ttm, chunk.need_stored(), lowest(wanted)
    if device.prefetcher is not None:
        return 0
    if low and chunk.pages.present >> (low - 1) & 1:
        size = device.prefault
    else:
        size = min(device.prefault, _CLUSTER)
        low -= low % _CLUSTER
    if not size or device.pool.free_pages < 2 * size:
        return 0
    return mask_of(low, min(size, CHUNK_PAGES - low)) & stored.handles.present & ~stored.coming_back()


async def _load(space: "AddressSpace", number: int, mask: int, pages: Pages) -> TtmError | None:
    """Those of `mask` that are still there, and that nobody else loads, to `pages`, of which the rest goes back.

    Synchronous up to the first page. The error is why some did not come.
    """
    chunk = space.chunks.get(number)
    if chunk is None or chunk.stored is None:
        free_pages(space, pages)
        return None
    stored = chunk.stored
    mask &= stored.handles.present & ~stored.coming_back()
    count = mask.bit_count()
    free_pages(space, pages[count:])
    if not mask:
        return None
    load = _begin(space, chunk, mask, pages[:count], takes=True)
    try:
        store = space.vdev.ttm.swap_store
        assert store is not None
        await read_pages(store, load.transfer, space.arena, load.pages)
    except BaseException:
        load.give_up()
        _end(space, chunk, load)
        raise
    return _end(space, chunk, load)


def load_now(space: "AddressSpace", number: int, mask: int) -> None:
    """As `load_stored` for who may not wait: at once, if need be to pages of the reserve. TtmError as that."""
    wanted = _wanted(space, number, mask)
    if not wanted:
        return
    chunk = space.chunks[number]
    pages = take_pages(space, wanted.bit_count(), zero=False, use_reserve=True, unlimited=True)
    load = _begin(space, chunk, wanted, pages, takes=False)
    store = space.vdev.ttm.swap_store
    assert store is not None
    store.read(load.transfer, space.arena, pages)
    error = _end(space, chunk, load)
    if error is not None:
        raise error


def _begin(space: "AddressSpace", chunk: Chunk, mask: int, pages: Pages, *, takes: bool) -> Loading:
    inject_reads(space.vdev.ttm, space.name)
    try:
        return chunk.need_stored().begin_load(mask, pages, takes=takes)
    except BaseException:
        free_pages(space, pages)
        raise


def _end(space: "AddressSpace", chunk: Chunk, load: Loading) -> TtmError | None:
    assert chunk.stored is not None
    mask, pages, error = chunk.stored.end_load(load)
    device = space.vdev.ttm
    if mask:
        chunk.pages.put(mask, pages)
        chunk.changed()
        space.used(chunk)
        device.counters.backup.pages_in += len(pages)
        first = chunk.first_page + lowest(mask)
        points.svm_restore(device.trace, space, first=first, pages=len(pages), left=space.stored_pages)
    device.counters.backup.failed += error is not None
    _tidy(space, chunk)
    return error
