"""Restore: pages of a tt back from the swap store (ttm_tt_restore, ttm_pool_restore_and_alloc). Seed: pool backup.

Piece by piece: fresh pages, the largest blocks first, then step by step the bytes of the handles, which are dropped as
they are copied. A restore of the whole also copies the pages that were never stored and frees them, so that what was
split for backup is whole again, and gives memory to holes. Where it stands is kept in `tt.restore` when it fails or is
interrupted, and the next one goes on from there: no page is loaded or allocated twice. It is dropped when complete,
also by a resume that completes it (the kernel kept it until 2026).
"""

import numpy as np
import trio

from ttmfs.errors import TtmError
from ttmfs.memory.copy import copy_pages, zero_pages
from ttmfs.ttm.backup import STEP_PAGES, load_pages
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.page_vector import HOLE, Index, Vector, decode_pages, encode_pages
from ttmfs.ttm.tt import TT, Restore
from ttmfs.units import MAX_ORDER


async def restore_range(bo: BufferObject, tt: TT, first: int, count: int, *, prefault: int = 0) -> int:
    """What is in the store of [first, first + count), and at most `prefault` pages besides; the pages that came.

    The BO is reserved. TtmError: ENOMEM, EIO, or what the medium says; what did not come is where it was.
    """
    end = first + count
    before = tt.backed_up_pages
    try:
        state = tt.restore
        if state is not None and len(tt.handles_in(first, end)) and _meets(state, first, end):
            await _fill_asked(bo, tt, state, first, end)
        while len(index := tt.handles_in(first, end)):
            low, high = tt.piece(int(index[0]), first, end, prefault)
            await _piece(bo, tt, tt.handles_in(low, high), first, end)
    finally:
        came = _came_back(bo, tt, before)
    return came


async def restore_all(bo: BufferObject, tt: TT) -> int:
    """All that is in the store; returns the pages that came. Pieces of the beneficial order become whole again.

    Errors as for `restore_range`.
    """
    before = tt.backed_up_pages
    order = tt.pool.beneficial_order or MAX_ORDER
    try:
        if tt.restore is not None:
            await _fill(bo, tt, tt.restore)
        while len(index := tt.handles_in(0, tt.num_pages)):
            low = int(index[0]) >> order << order
            await _whole_piece(bo, tt, low, min(low + (1 << order), tt.num_pages))
    finally:
        came = _came_back(bo, tt, before)
    return came


def _meets(state: Restore, first: int, end: int) -> bool:
    return bool(((state.index >= first) & (state.index < end)).any())


def _came_back(bo: BufferObject, tt: TT, before: int) -> int:
    """Books of pages that are in memory again; with the first of them the BO is on a LRU again."""
    came = before - tt.backed_up_pages
    if tt.restore is not None:
        bo.device.unfinished_restores[bo] = None
    else:
        bo.device.unfinished_restores.pop(bo, None)
    if came > 0:
        bo.drop_view()
        bo.device.counters.backup.pages_in += came
        bo.device.lru_bump(bo)
        if bo.device.trace.on:
            bo.device.trace.emit("restore", bo.name, pages=came, left=tt.backed_up_pages)
    return max(came, 0)


async def _whole_piece(bo: BufferObject, tt: TT, low: int, high: int) -> None:
    """All of [low, high) in one new block if that can be had, else only what is in the store."""
    handles = tt.handles_in(low, high)
    if len(handles) < high - low and tt.pool.free_pages >= high - low:
        handles = np.arange(low, high)
    await _piece(bo, tt, handles, low, high)


async def _piece(bo: BufferObject, tt: TT, index: Index, first: int, end: int) -> None:
    """Fresh pages for these entries, and their content. TtmError(ENOMEM) before anything else.

    Other errors only for entries of [first, end): the others are extra.
    """
    state = Restore(index, tt.take_pages(len(index), zero=False))
    kept = tt.restore is None
    if kept:
        tt.restore = state
    try:
        await _fill_asked(bo, tt, state, first, end)
    finally:
        if not kept:
            tt.give_pages(state.pages)


async def _fill_asked(bo: BufferObject, tt: TT, state: Restore, first: int, end: int) -> None:
    """Go on with `state`. Where an entry outside [first, end) does not come, those within come all the same: a page
    that is lost costs nobody the pages around it.
    """
    try:
        await _fill(bo, tt, state)
    except TtmError:
        asked = (state.index >= first) & (state.index < end)
        if asked.item(0):
            raise
        if not asked.any():
            return
        own = Restore(state.index[asked], state.pages[asked])
        state.index, state.pages = state.index[~asked], state.pages[~asked]
        try:
            await _fill(bo, tt, own)
        finally:
            index, pages = np.concatenate((state.index, own.index)), np.concatenate((state.pages, own.pages))
            order = np.argsort(index)
            state.index, state.pages = index[order], pages[order]


async def _fill(bo: BufferObject, tt: TT, state: Restore) -> None:
    """Go on with `state` until it is done."""
    while len(state.index):
        index, pages = state.index[:STEP_PAGES], state.pages[:STEP_PAGES]
        inside = index < tt.num_pages
        handle = np.zeros(len(index), bool)
        handle[inside] = tt.vector[index[inside]] & 1 == 1
        filled = len(index)
        error: TtmError | None = None
        if handle.any():
            done, error = await load_pages(bo.device, tt, index[handle], pages[handle])
            if not done.all():
                filled = int(np.flatnonzero(handle)[int(np.argmin(done))])
            else:
                error = None
        _finish(bo, tt, index[:filled], pages[:filled])
        state.index, state.pages = state.index[filled:], state.pages[filled:]
        if error is not None:
            bo.device.counters.backup.failed += 1
            raise error
        if not len(state.index) and tt.restore is state:
            tt.restore = None
        await trio.lowlevel.checkpoint()


def _finish(bo: BufferObject, tt: TT, index: Index, pages: Vector) -> None:
    """The entries that were no handles: retained pages are copied and freed, holes are zeros. Synchronous.

    What is not in the tt any more gives its page back.
    """
    bo.drop_view()
    gone = index >= tt.num_pages
    if gone.any():
        tt.give_pages(pages[gone])
        index, pages = index[~gone], pages[~gone]
    entries = tt.vector[index]
    rest = entries != encode_pages(pages)
    if not rest.any():
        return
    index, pages, entries = index[rest], pages[rest], entries[rest]
    hole = entries == HOLE
    if hole.any():
        zero_pages(tt.arena, pages[hole])
        tt.adopt(index[hole], pages[hole])
    page = (entries & 1 == 0) & ~hole
    if page.any():
        copy_pages(tt.arena, pages[page], tt.arena, decode_pages(entries[page]))
        tt.depopulate(index[page], to_pool=False)
        tt.adopt(index[page], pages[page])
    assert (hole | page).all(), "what is in the store is loaded or waits in the state"
